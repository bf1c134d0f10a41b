//! Matrix products with weights in any stored format: `y = W x` for one token or many, by the same
//! arithmetic, so that a token's result depends neither on its neighbours, nor on the number of threads, nor
//! on the instruction set.
//!
//! Here: weights as they lie in a checkpoint, row after row, widened in registers. Each output is one
//! [dot product](crate::reduce::dot) in f32. `wide.rs` has the loops for AVX2, AVX-512 and NEON with few tokens, `blocked.rs`
//! with several. [`columns`]: weights that lie input by input. Quantised weights: [`crate::panel`].

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod blocked;
pub mod columns;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod columns_wide;
mod rows;
mod turn;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod wide;
#[cfg(target_arch = "x86_64")]
mod widen_x86;

pub use turn::turned;

use crate::output::Out;
use crate::{DType, Isa, Pool, Real, Then, Work, block};

/// A borrowed weight matrix `[o, i]` in its stored format: row after row, one row an output.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Number format.
    pub dtype: DType,
    /// o
    pub outputs: usize,
    /// i
    pub inputs: usize,
    /// Factor on every number.
    pub scale: f32,
    /// The bytes; no alignment is asked for.
    pub data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.dtype.bytes_for(self.inputs).expect("a row is whole blocks")
    }

    /// Bytes of row `row`.
    fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Decodes row `row` into `out` (`i` numbers); `narrow` is scratch.
    #[inline(always)]
    fn decode_row<F: Real>(&self, row: usize, out: &mut [F], narrow: &mut Vec<f32>) {
        self.decode_part(row, 0, out, narrow);
    }

    /// Decodes numbers `at ..` of row `row` into `out`: whole blocks of the format.
    #[inline(always)]
    fn decode_part<F: Real>(&self, row: usize, at: usize, out: &mut [F], narrow: &mut Vec<f32>) {
        let bytes = |numbers| self.dtype.bytes_for(numbers).expect("a part is whole blocks");
        let bytes = &self.row(row)[bytes(at)..bytes(at + out.len())];
        if self.dtype == DType::F64 {
            let values = bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
            out.iter_mut().zip(values).for_each(|(o, v)| *o = F::from_f64(v));
        } else if let Some(out32) = F::as_f32_slice(out) {
            block::decode(self.dtype, bytes, out32);
        } else {
            narrow.resize(out.len(), 0.0);
            block::decode(self.dtype, bytes, narrow);
            out.iter_mut().zip(narrow).for_each(|(o, v)| *o = F::from_f32(*v));
        }
    }
}

/// Multiply-adds below which a product stays on the calling thread: about two microseconds.
const ALONE: usize = 1 << 15;
/// Multiply-adds that make a chunk of work worth handing out.
const CHUNK: usize = 1 << 15;

/// Tokens of a product of `x` `[t, i]` into `y` `[t, o]`; `None`, with `y` zero, when there is nothing to multiply.
///
/// # Panics
/// When the lengths disagree.
pub(crate) fn tokens<F: Real>(y: &mut [F], x: &[F], o: usize, i: usize) -> Option<usize> {
    if o == 0 || i == 0 {
        y.fill(F::ZERO);
        return None;
    }
    let t = x.len() / i;
    assert!(x.len() == t * i && y.len() == t * o, "linear: x {} y {} for [{o}, {i}]", x.len(), y.len());
    (t > 0).then_some(t)
}

/// y = x Wᵀ, times the scale.
///
/// * `y`: `[t, o]`, overwritten
/// * `x`: `[t, i]`
///
/// Each output is one dot product over `i` in a fixed order, whatever `t`, the threads and the instruction
/// set are.
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear<F: Real>(isa: Isa, pool: &Pool, y: &mut [F], x: &[F], w: Matrix<'_>) {
    pool.run_all(&[product((isa, pool.threads()), y, x, w, Then::Nothing)]);
}

/// [`linear`] as work to be done by so many threads, and what follows it; `None` when there is nothing to multiply.
///
/// # Panics
/// As [`linear`].
pub fn product<'a, F: Real>(
    (isa, threads): (Isa, usize),
    y: &'a mut [F],
    x: &'a [F],
    w: Matrix<'a>,
    then: Then<'a, F>,
) -> Option<Product<'a, F>> {
    let (o, i) = (w.outputs, w.inputs);
    let Some(t) = tokens(y, x, o, i) else {
        then.finish(y, 0);
        return None;
    };
    assert_eq!(w.data.len(), o * w.row_bytes(), "linear: bytes of [{o}, {i}]");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = threads;
    let (per, tokens) = match t {
        _ if t * o * i <= ALONE => (o, t),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        _ if t > wide::direct(isa) => blocked::chunk((isa, threads), o, i, t),
        _ => (CHUNK.div_ceil(t * i).next_multiple_of(rows::GROUP), t),
    };
    Some(Product { isa, x, w, per: per.min(o), tokens, y: Out::new(y, o, then) })
}

/// A product with rows as they lie: a chunk is some outputs of some tokens.
pub struct Product<'a, F: Real> {
    isa: Isa,
    x: &'a [F],
    w: Matrix<'a>,
    /// Outputs of a chunk.
    per: usize,
    /// Tokens of a chunk.
    tokens: usize,
    y: Out<'a, F>,
}

impl<F: Real> Product<'_, F> {
    /// Chunks with the same outputs.
    fn down(&self) -> usize {
        (self.x.len() / self.w.inputs).div_ceil(self.tokens)
    }
}

impl<F: Real> Work for Product<'_, F> {
    fn chunks(&self) -> usize {
        self.w.outputs.div_ceil(self.per) * self.down()
    }

    unsafe fn chunk(&self, n: usize) {
        let (first, from) = (n / self.down() * self.per, n % self.down() * self.tokens);
        let i = self.w.inputs;
        let x = &self.x[from * i..self.x.len().min((from + self.tokens) * i)];
        rows::rows(self.isa, &self.y, x, self.w, (first, self.per.min(self.w.outputs - first)), from);
    }

    fn reads(&self, n: usize) -> &[u8] {
        if !n.is_multiple_of(self.down()) {
            return &[]; // read for the tokens before
        }
        let (from, bytes) = (n / self.down() * self.per, self.w.row_bytes());
        &self.w.data[from * bytes..self.w.outputs.min(from + self.per) * bytes]
    }
}

/// Rows of an embedding table: `out` `[t, c]`, table `[v, c]`.
///
/// # Panics
/// When a token is outside the table (callers check ids first).
pub fn embedding<F: Real>(out: &mut [F], tokens: &[u32], table: Matrix<'_>) {
    let mut narrow = Vec::new();
    let scale = F::from_f32(table.scale);
    for (o, &id) in out.chunks_exact_mut(table.inputs).zip(tokens) {
        table.decode_row(id as usize, o, &mut narrow);
        if table.scale != 1.0 {
            o.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

#[cfg(test)]
mod tests;
