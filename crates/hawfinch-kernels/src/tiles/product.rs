//! Matrix × matrix in tiles alone, both operands put into tiles before: the measure of what tiles give.
//!
//! [`int8`] is exact. [`bf16`] is another arithmetic than [`crate::linear`], so no model uses it unasked: its sums go by
//! tiles (`emulated.rs` has their order), and activations are either rounded to bf16 (one part: a relative error of up
//! to 2^-9 each) or divided into three parts that add up to them (the error of a sum in f32, for three times the work).
//! A token's result depends neither on the tokens beside it nor on threads: on a machine with tiles one token takes
//! them too.

use std::marker::PhantomData;

use super::{SIDE, Sums, Tile, Tiles, Totals, Using};
use crate::pool::Parts;
use crate::{Isa, Pool, Work};

/// Tiles of a run that are multiplied with all tokens before the next: of two runs, a third of the nearest cache.
const DEPTH: usize = 8;

/// A matrix in tiles: runs of sixteen rows, in a run the inputs in order, 64 bytes a tile. An even number of runs; zeros
/// stand where the matrix ends.
pub struct Runs {
    rows: usize,
    inputs: usize,
    /// Tiles of 64 bytes a row of a run, of each part.
    depth: usize,
    /// Tiles that stand for one.
    parts: usize,
    tiles: Vec<Tile>,
}

impl Runs {
    fn new(rows: usize, inputs: usize, per: usize, parts: usize) -> Runs {
        let depth = inputs.div_ceil(per);
        let tiles = vec![Tile::ZERO; rows.div_ceil(2 * SIDE) * 2 * depth * parts];
        Runs { rows, inputs, depth, parts, tiles }
    }

    /// Tokens `[t, i]` as bf16: in one part, rounded, or in three.
    ///
    /// # Panics
    /// When the rows are not whole, or `parts` is neither 1 nor 3.
    pub fn tokens_bf16(x: &[f32], i: usize, parts: usize) -> Runs {
        assert!(x.len().is_multiple_of(i) && (parts == 1 || parts == 3), "tiles: [t, {i}] in {parts} parts");
        let mut runs = Runs::new(x.len() / i, i, 32, parts);
        for (t, x) in x.chunks_exact(i).enumerate() {
            for (n, x) in x.chunks(32).enumerate() {
                let at = (t / SIDE * runs.depth + n) * parts;
                for (k, &x) in x.iter().enumerate() {
                    let numbers =
                        if parts == 1 { [half::bf16::from_f32(x).to_bits(), 0, 0] } else { divided(x) };
                    for (tile, number) in runs.tiles[at..at + parts].iter_mut().zip(numbers) {
                        tile.0[t % SIDE][2 * k..2 * k + 2].copy_from_slice(&number.to_le_bytes());
                    }
                }
            }
        }
        runs
    }

    /// Tokens `[t, i]` of signed bytes.
    ///
    /// # Panics
    /// When the rows are not whole.
    pub fn tokens_int8(x: &[i8], i: usize) -> Runs {
        assert!(x.len().is_multiple_of(i), "tiles: [t, {i}]");
        let mut runs = Runs::new(x.len() / i, i, 64, 1);
        for (t, x) in x.chunks_exact(i).enumerate() {
            for (n, x) in x.chunks(64).enumerate() {
                let at = t / SIDE * runs.depth + n;
                runs.tiles[at].0[t % SIDE][..x.len()].copy_from_slice(bytemuck::cast_slice(x));
            }
        }
        runs
    }

    /// Weights `[o, i]`, rows of bf16 as files hold them.
    ///
    /// # Panics
    /// When the rows are not whole.
    pub fn weights_bf16(w: &[u8], i: usize) -> Runs {
        Runs::weights(w, i, 2)
    }

    /// Weights `[o, i]` of signed bytes.
    ///
    /// # Panics
    /// When the rows are not whole.
    pub fn weights_int8(w: &[i8], i: usize) -> Runs {
        Runs::weights(bytemuck::cast_slice(w), i, 1)
    }

    fn weights(w: &[u8], i: usize, size: usize) -> Runs {
        assert!(w.len().is_multiple_of(i * size), "tiles: [o, {i}]");
        let mut runs = Runs::new(w.len() / (i * size), i, 64 / size, 1);
        for (o, w) in w.chunks_exact(i * size).enumerate() {
            for (n, w) in w.chunks(64).enumerate() {
                let tile = &mut runs.tiles[o / SIDE * runs.depth + n];
                for (row, w) in tile.0.iter_mut().zip(w.chunks(4)) {
                    row[o % SIDE * 4..][..w.len()].copy_from_slice(w);
                }
            }
        }
        runs
    }

    /// t or o
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// i
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Tiles `from ..` of run `run`, `DEPTH` or those that are left.
    fn part(&self, run: usize, from: usize) -> &[Tile] {
        let to = self.depth.min(from + DEPTH);
        &self.tiles[(run * self.depth + from) * self.parts..(run * self.depth + to) * self.parts]
    }
}

/// Three bf16 that add up to `x`, the smallest first (below 2^-110 some may be lost: tiles take tiny numbers for zero).
/// Infinity and NaN stand alone.
fn divided(x: f32) -> [u16; 3] {
    let top = |x: f32| (x.to_bits() >> 16) as u16;
    let widened = |b: u16| f32::from_bits(u32::from(b) << 16);
    if !x.is_finite() {
        return [0, 0, half::bf16::from_f32(x).to_bits()];
    }
    let first = top(x);
    let rest = x - widened(first);
    let second = top(rest);
    [top(rest - widened(second)), second, first]
}

/// `y = x Wᵀ`, times `scale`; `y`: `[t, o]`. False, and nothing written, when the instruction set has no tiles.
///
/// # Panics
/// When the operands are not of one shape, or not bf16.
pub fn bf16(isa: Isa, pool: &Pool, y: &mut [f32], x: &Runs, w: &Runs, scale: f32) -> bool {
    let zero = Totals([[0.0; SIDE]; SIDE]);
    product(isa, pool, y, x, w, 32, zero, &|t| t.0.map(|row| row.map(|v| v * scale)), &Bf16)
}

/// `y = x Wᵀ`, modulo 2^32; `y`: `[t, o]`. False, and nothing written, when the instruction set has no tiles.
///
/// # Panics
/// When the operands are not of one shape, or not of bytes.
pub fn int8(isa: Isa, pool: &Pool, y: &mut [i32], x: &Runs, w: &Runs) -> bool {
    product(isa, pool, y, x, w, 64, Sums([[0; SIDE]; SIDE]), &|t| t.0, &Int8)
}

/// Which instruction.
trait Format<C>: Sync {
    fn multiply<T: Tiles>(
        &self,
        tiles: &T,
        out: &mut [[C; 2]; 2],
        x: [&[Tile]; 2],
        w: [&[Tile]; 2],
        parts: usize,
    );
}

struct Bf16;
struct Int8;

impl Format<Totals> for Bf16 {
    fn multiply<T: Tiles>(
        &self,
        tiles: &T,
        out: &mut [[Totals; 2]; 2],
        x: [&[Tile]; 2],
        w: [&[Tile]; 2],
        parts: usize,
    ) {
        tiles.bf16(out, x, w, parts);
    }
}

impl Format<Sums> for Int8 {
    fn multiply<T: Tiles>(
        &self,
        tiles: &T,
        out: &mut [[Sums; 2]; 2],
        x: [&[Tile]; 2],
        w: [&[Tile]; 2],
        _: usize,
    ) {
        tiles.int8(out, x, w);
    }
}

#[allow(clippy::too_many_arguments)] // of two callers
fn product<C: Copy + Send + Sync, V: Copy + Send + Sync>(
    isa: Isa,
    pool: &Pool,
    y: &mut [V],
    x: &Runs,
    w: &Runs,
    per: usize,
    zero: C,
    values: &(dyn Fn(&C) -> [[V; SIDE]; SIDE] + Sync),
    format: &impl Format<C>,
) -> bool {
    assert!(
        x.inputs == w.inputs && y.len() == x.rows * w.rows,
        "tiles: y {} for [{}, {}]",
        y.len(),
        x.rows,
        w.rows
    );
    assert!([x, w].iter().all(|runs| runs.depth == runs.inputs.div_ceil(per)), "tiles: formats");
    if !isa.has_tiles() {
        return false;
    }
    let work = Product { isa, x, w, zero, values, format, y: Parts::new(y), borrowed: PhantomData };
    pool.run_all(&[work]);
    true
}

/// A chunk is two runs of outputs with every token.
struct Product<'a, C, V, F> {
    isa: Isa,
    x: &'a Runs,
    w: &'a Runs,
    zero: C,
    values: &'a (dyn Fn(&C) -> [[V; SIDE]; SIDE] + Sync),
    format: &'a F,
    y: Parts<V>,
    borrowed: PhantomData<&'a mut [V]>,
}

impl<C: Copy + Send + Sync, V: Copy + Send + Sync, F: Format<C>> Work for Product<'_, C, V, F> {
    fn chunks(&self) -> usize {
        self.w.rows.div_ceil(2 * SIDE)
    }

    unsafe fn chunk(&self, n: usize) {
        super::with(self.isa, Chunk { all: self, n });
    }
}

struct Chunk<'a, 'b, C, V, F> {
    all: &'a Product<'b, C, V, F>,
    n: usize,
}

impl<C: Copy, V: Copy, F: Format<C>> Using for Chunk<'_, '_, C, V, F> {
    fn using<T: Tiles>(self, tiles: &T) {
        let Product { x, w, zero, values, format, y, .. } = self.all;
        let mut totals = vec![[[*zero; 2]; 2]; x.rows.div_ceil(2 * SIDE)];
        for from in (0..w.depth).step_by(DEPTH) {
            let w = [w.part(2 * self.n, from), w.part(2 * self.n + 1, from)];
            for (pair, totals) in totals.iter_mut().enumerate() {
                let x = [self.all.x.part(2 * pair, from), self.all.x.part(2 * pair + 1, from)];
                format.multiply(tiles, totals, x, w, self.all.x.parts);
            }
        }
        for (r, totals) in totals.as_flattened().iter().enumerate() {
            for (half, totals) in totals.iter().enumerate() {
                let first = (2 * self.n + half) * SIDE;
                let count = SIDE.min(w.rows.saturating_sub(first));
                for (t, row) in values(totals).iter().enumerate().take(x.rows.saturating_sub(r * SIDE)) {
                    if count > 0 {
                        // SAFETY: these outputs belong to this chunk alone.
                        let y = unsafe { y.get((r * SIDE + t) * w.rows + first, count) };
                        y.copy_from_slice(&row[..count]);
                    }
                }
            }
        }
    }
}
