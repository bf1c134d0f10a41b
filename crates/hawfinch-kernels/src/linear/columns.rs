//! Products with weights that lie input by input, `[i, o]`: the low-rank ones, `y = x W`.
//!
//! Registers hold neighbouring outputs, so nothing is added across a register, and short inputs or few outputs cost
//! no more than their multiply-adds. Each output is a sum over the inputs in order: [`RUN`] at a time by fused
//! multiply-adds, these added up in f64 (what is small here, mixes and decays, is amplified by every layer after). The
//! same bits whatever the tokens beside, the threads and the instruction set.

use std::marker::PhantomData;

use super::{ALONE, Matrix, rows::Out, tokens};
use crate::isa::compiled_for_each;
use crate::{Isa, Pool, Real, Work};

/// Outputs of a chunk of work, and of one with few inputs, up to [`FLAT`].
const WIDE: [usize; 2] = [64, 256];
/// Inputs up to which a chunk is several tiles side by side.
pub const FLAT: usize = 256;
/// Inputs that are added up in the activations' own precision.
pub const RUN: usize = 16;
/// Tokens of a chunk of work.
const TOKENS: usize = 24;

/// y = x W, times the scale.
///
/// * `y`: `[t, o]`, overwritten
/// * `x`: `[t, i]`
/// * `w`: the bytes of `[i, o]`
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear<F: Real>(isa: Isa, pool: &Pool, y: &mut [F], x: &[F], w: Matrix<'_>) {
    pool.run_all(&[product(isa, y, x, w)]);
}

/// [`linear`] as work to be done; `None` when there is nothing to multiply.
///
/// # Panics
/// As [`linear`].
pub fn product<'a, F: Real>(isa: Isa, y: &'a mut [F], x: &'a [F], w: Matrix<'a>) -> Option<Product<'a, F>> {
    let (o, i) = (w.outputs, w.inputs);
    let t = tokens(y, x, o, i)?;
    assert_eq!(Some(w.data.len()), w.dtype.bytes_for(o).map(|row| row * i), "linear: bytes of [{i}, {o}]");
    let alone = t * o * i <= ALONE;
    Some(Product { isa, x, w, tokens: t, alone, y: Out::new(y, o), borrowed: PhantomData })
}

/// A product with weights that lie input by input: a chunk is some outputs of some tokens.
pub struct Product<'a, F: Real> {
    isa: Isa,
    x: &'a [F],
    w: Matrix<'a>,
    tokens: usize,
    /// All of it is one chunk.
    alone: bool,
    y: Out<F>,
    borrowed: PhantomData<&'a mut [F]>,
}

impl<F: Real> Product<'_, F> {
    fn parts(&self) -> (usize, usize) {
        (self.w.outputs.div_ceil(self.wide()), self.tokens.div_ceil(TOKENS))
    }

    fn wide(&self) -> usize {
        WIDE[usize::from(self.w.inputs <= FLAT)]
    }

    fn part(&self, n: usize) {
        let (o, i) = (self.w.outputs, self.w.inputs);
        let across = self.parts().0;
        let (first, from) = (n % across * self.wide(), n / across * TOKENS);
        let x = &self.x[from * i..(from + TOKENS.min(self.tokens - from)) * i];
        block(self.isa, &self.y, x, self.w, first, self.wide().min(o - first), from);
    }
}

impl<F: Real> Work for Product<'_, F> {
    fn chunks(&self) -> usize {
        let (across, down) = self.parts();
        if self.alone { 1 } else { across * down }
    }

    unsafe fn chunk(&self, n: usize) {
        if self.alone {
            let (across, down) = self.parts();
            (0..across * down).for_each(|n| self.part(n));
        } else {
            self.part(n);
        }
    }
}

/// Outputs `first .. first + count` of the tokens `x`, the first of which is token `from` of `y`.
fn block<F: Real>(isa: Isa, y: &Out<F>, x: &[F], w: Matrix<'_>, first: usize, count: usize, from: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(x) = F::as_f32s(x)
        && super::columns_x86::block(isa, x, w, first, count, &mut |t, j, v| {
            // SAFETY: each chunk has outputs and tokens of its own.
            let y = unsafe { y.part(from + t, j, v.len()) };
            y.iter_mut().zip(v).for_each(|(y, v)| *y = F::from_f32(v * w.scale));
        })
    {
        return;
    }
    portable(isa, y, x, w, first, count, from);
}

compiled_for_each! {
    /// The meaning.
    fn portable<F: Real>(
        y: &Out<F>,
        x: &[F],
        w: Matrix<'_>,
        first: usize,
        count: usize,
        from: usize,
    ) = body
}

#[inline(always)]
fn body<F: Real>(y: &Out<F>, x: &[F], w: Matrix<'_>, first: usize, count: usize, from: usize) {
    let (o, i) = (w.outputs, w.inputs);
    let tokens = x.len() / i;
    let mut row = vec![F::ZERO; o];
    let mut narrow = Vec::new();
    let mut runs = vec![F::ZERO; tokens * count];
    let mut sums = vec![0f64; tokens * count];
    let w = Matrix { outputs: i, inputs: o, ..w }; // its rows are inputs
    for k in 0..i {
        w.decode_row(k, &mut row, &mut narrow);
        for (runs, x) in runs.chunks_exact_mut(count).zip(x.chunks_exact(i)) {
            for (run, w) in runs.iter_mut().zip(&row[first..]) {
                *run = w.mul_add(x[k], *run);
            }
        }
        if (k + 1) % RUN == 0 || k + 1 == i {
            for (sum, run) in sums.iter_mut().zip(&mut runs) {
                *sum += std::mem::replace(run, F::ZERO).to_f64();
            }
        }
    }
    let scale = F::from_f32(w.scale);
    for (t, sums) in sums.chunks_exact(count).enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            // SAFETY: each chunk has outputs and tokens of its own.
            unsafe { y.set(from + t, first + j, F::from_f64(*sum) * scale) };
        }
    }
}
