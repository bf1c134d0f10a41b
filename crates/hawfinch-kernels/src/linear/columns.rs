//! Products with weights that lie input by input, `[i, o]`: the low-rank ones, `y = x W`.
//!
//! They are copied into tiles of neighbouring outputs, one after the other, so that a thread reads one stream.
//! Registers hold neighbouring outputs, so nothing is added across a register, and short inputs or few outputs cost
//! no more than their multiply-adds. Each output is a sum over the inputs in order: [`RUN`] at a time by fused
//! multiply-adds, these added up in f64 (what is small here, mixes and decays, is amplified by every layer after). The
//! same bits whatever the tokens beside, the threads and the instruction set.

use std::sync::Arc;

use super::{ALONE, Matrix, tokens};
use crate::buffer::Buffer;
use crate::isa::compiled_for_each;
use crate::output::Out;
use crate::{DType, Isa, Pool, Real, Store, Then, Work};

/// Outputs of a tile.
const TILE: usize = 64;
/// Inputs up to which a chunk of work is several tiles: some ten microseconds.
const FLAT: usize = 256;
/// Tiles of such a chunk.
const TILES: usize = 4;
/// Inputs that are added up in the activations' own precision.
pub const RUN: usize = 16;
/// Tokens of a chunk of work.
const TOKENS: usize = 24;

/// A weight matrix `[i, o]` in tiles `[tile, i, outputs of the tile]`.
pub struct Columns {
    dtype: DType,
    outputs: usize,
    inputs: usize,
    scale: f32,
    /// Outputs of a tile; the last may have fewer.
    width: usize,
    data: Arc<Store>,
}

/// Outputs of a tile; blocks of several numbers stay together.
fn width_for(dtype: DType, outputs: usize) -> usize {
    if dtype.block_len() == 1 { TILE } else { outputs.max(1) }
}

impl Columns {
    /// Copies rows `[i, o]` of `dtype`.
    ///
    /// # Panics
    /// When the bytes are not as many as the shape asks for.
    pub fn pack(dtype: DType, rows: &[u8], outputs: usize, inputs: usize, scale: f32) -> Self {
        let row = dtype.bytes_for(outputs);
        assert_eq!(Some(rows.len()), row.map(|row| row * inputs), "columns: bytes of [{inputs}, {outputs}]");
        let width = width_for(dtype, outputs);
        let mut data = Buffer::new(rows.len());
        let (number, row) = (dtype.block_bytes(), row.unwrap_or(0));
        let mut to = data.bytes_mut();
        for first in (0..outputs).step_by(width) {
            let from = if dtype.block_len() == 1 { first * number } else { 0 };
            let bytes = if dtype.block_len() == 1 { width.min(outputs - first) * number } else { row };
            for row in rows.chunks_exact(row) {
                let (tile, rest) = to.split_at_mut(bytes);
                tile.copy_from_slice(&row[from..from + bytes]);
                to = rest;
            }
        }
        Columns { dtype, outputs, inputs, scale, width, data: Arc::new(Store::own(data)) }
    }

    /// What [`Columns::pack`] makes of rows, made before: as many bytes, in another order. `None` when there are
    /// fewer.
    pub fn packed(dtype: DType, data: Arc<Store>, outputs: usize, inputs: usize, scale: f32) -> Option<Self> {
        let fits = dtype.bytes_for(outputs)?.checked_mul(inputs)? <= data.bytes().len();
        fits.then_some(Columns { dtype, outputs, inputs, scale, width: width_for(dtype, outputs), data })
    }

    /// Where the tiles lie.
    pub fn store(&self) -> &Arc<Store> {
        &self.data
    }

    /// The rows `[i, o]` that were packed, without the scale.
    pub fn unpack(&self) -> Vec<u8> {
        let row_bytes = self.dtype.bytes_for(self.outputs).expect("whole blocks");
        let mut rows = vec![0; row_bytes * self.inputs];
        let mut at = 0;
        for tile in (0..self.outputs.div_ceil(self.width)).map(|n| self.tile(n)) {
            let bytes = tile.data.len() / self.inputs.max(1);
            let from = tile.data.chunks_exact(bytes.max(1));
            for (row, from) in rows.chunks_exact_mut(row_bytes.max(1)).zip(from) {
                row[at..at + bytes].copy_from_slice(from);
            }
            at += bytes;
        }
        rows
    }

    /// o
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// i
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes_for(self.outputs).unwrap_or(0) * self.inputs
    }

    /// Tile `n`, as a matrix of its own.
    fn tile(&self, n: usize) -> Matrix<'_> {
        let outputs = self.width.min(self.outputs - n * self.width);
        let (dtype, inputs, scale) = (self.dtype, self.inputs, self.scale);
        Matrix { dtype, outputs, inputs, scale, data: self.tiles(n, 1) }
    }

    /// The bytes of `count` tiles, or as many as there are, from tile `n` on.
    fn tiles(&self, n: usize, count: usize) -> &[u8] {
        let at = |tile: usize| {
            let outputs = self.outputs.min(tile * self.width);
            self.dtype.bytes_for(outputs).expect("whole blocks") * self.inputs
        };
        &self.data.bytes()[at(n)..at(n + count)]
    }
}

/// y = x W, times the scale.
///
/// * `y`: `[t, o]`, overwritten
/// * `x`: `[t, i]`
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear<F: Real>(isa: Isa, pool: &Pool, y: &mut [F], x: &[F], w: &Columns) {
    pool.run_all(&[product(isa, y, x, w, Then::Nothing)]);
}

/// [`linear`] as work to be done, and what follows it; `None` when there is nothing to multiply.
///
/// # Panics
/// As [`linear`].
pub fn product<'a, F: Real>(
    isa: Isa,
    y: &'a mut [F],
    x: &'a [F],
    w: &'a Columns,
    then: Then<'a, F>,
) -> Option<Product<'a, F>> {
    let (o, i) = (w.outputs, w.inputs);
    let Some(t) = tokens(y, x, o, i) else {
        then.finish(y, 0);
        return None;
    };
    let alone = t * o * i <= ALONE;
    Some(Product { isa, x, w, tokens: t, alone, y: Out::new(y, o, then) })
}

/// A product with weights that lie input by input: a chunk is some tiles with some tokens.
pub struct Product<'a, F: Real> {
    isa: Isa,
    x: &'a [F],
    w: &'a Columns,
    tokens: usize,
    /// All of it is one chunk.
    alone: bool,
    y: Out<'a, F>,
}

impl<F: Real> Product<'_, F> {
    /// Tiles in all, and of a chunk.
    fn tiles(&self) -> (usize, usize) {
        (self.w.outputs.div_ceil(self.w.width), if self.w.inputs <= FLAT { TILES } else { 1 })
    }

    /// Chunks across the outputs and down the tokens.
    fn parts(&self) -> (usize, usize) {
        let (all, of) = self.tiles();
        (all.div_ceil(of), self.tokens.div_ceil(TOKENS))
    }

    fn part(&self, n: usize) {
        let (across, (all, of), i) = (self.parts().0, self.tiles(), self.w.inputs);
        let (first, from) = (n % across * of, n / across * TOKENS);
        let x = &self.x[from * i..(from + TOKENS.min(self.tokens - from)) * i];
        for tile in first..all.min(first + of) {
            block(self.isa, &self.y, x, self.w.tile(tile), tile * self.w.width, from);
        }
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

    fn reads(&self, n: usize) -> &[u8] {
        let (across, (_, of)) = (self.parts().0, self.tiles());
        if self.alone || n >= across { &[] } else { self.w.tiles(n * of, of) }
    }
}

/// The outputs of a tile, the first of which is output `first` of `y`, for the tokens `x`, the first of which is token
/// `from` of `y`.
fn block<F: Real>(isa: Isa, y: &Out<'_, F>, x: &[F], w: Matrix<'_>, first: usize, from: usize) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(x) = F::as_f32s(x)
        && super::columns_wide::block(isa, x, w, &mut |t, j, v| {
            // SAFETY: each chunk has outputs and tokens of its own.
            unsafe { y.put(from + t, first + j, v, w.scale) };
        })
    {
        return;
    }
    portable(isa, y, x, w, first, from);
}

compiled_for_each! {
    /// The meaning.
    fn portable<F: Real>(
        y: &Out<'_, F>,
        x: &[F],
        w: Matrix<'_>,
        first: usize,
        from: usize,
    ) = body
}

#[inline(always)]
fn body<F: Real>(y: &Out<'_, F>, x: &[F], w: Matrix<'_>, first: usize, from: usize) {
    let (count, i) = (w.outputs, w.inputs);
    let tokens = x.len() / i;
    let mut row = vec![F::ZERO; count];
    let mut narrow = Vec::new();
    let mut runs = vec![F::ZERO; tokens * count];
    let mut sums = vec![0f64; tokens * count];
    let w = Matrix { outputs: i, inputs: count, ..w }; // its rows are inputs
    for k in 0..i {
        w.decode_row(k, &mut row, &mut narrow);
        for (runs, x) in runs.chunks_exact_mut(count).zip(x.chunks_exact(i)) {
            for (run, w) in runs.iter_mut().zip(&row) {
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
