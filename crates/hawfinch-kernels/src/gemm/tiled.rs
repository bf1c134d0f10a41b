//! Panels of bf16 in AMX's tiles: 32 rows and 32 columns at a time, by whatever [`Tiles`] multiplies them.

use half::bf16;

use super::drive::{Block, Kernel};
#[cfg(target_arch = "x86_64")]
use super::pack_x86::{self, Pack};
use super::{PAIRS_DEPTH, View, depth};
use crate::Isa;
use crate::isa::compiled_for_each;
use crate::tiles::{self, SIDE, Tile, Tiles, Totals, Using};

/// Rows and columns of a panel: two tiles.
const LANES: usize = 2 * SIDE;
/// Numbers of a tile's row, and of its column.
const NUMBERS: usize = 32;

/// Tiles of bf16. A panel is two runs of tiles, each for sixteen rows or columns.
pub struct Tiled {
    /// One that has tiles.
    pub isa: Isa,
}

impl Kernel<f32> for Tiled {
    type Word = Tile;
    const ROWS: usize = LANES;
    const COLUMNS: usize = LANES;
    const STEP: usize = NUMBERS;

    fn depth(&self, k: usize) -> usize {
        depth(k, PAIRS_DEPTH, NUMBERS)
    }

    fn left_words(&self, k: usize) -> usize {
        2 * k.div_ceil(NUMBERS)
    }

    fn right_words(&self, k: usize) -> usize {
        2 * k.div_ceil(NUMBERS)
    }

    fn pack_left(&self, panel: &mut [Tile], at: usize, x: View<'_, f32>) {
        runs(panel, at, x, |tiles, x| {
            #[cfg(target_arch = "x86_64")]
            if self.isa.has_pairs() {
                // SAFETY: the machine has the instructions.
                return each(tiles, x, |tile, x| unsafe { pack_x86::rows_of_pairs(words(tile), x) });
            }
            rows(self.isa, tiles, x);
        });
    }

    fn pack_right(&self, panel: &mut [Tile], at: usize, x: View<'_, f32>) {
        runs(panel, at, x, |tiles, x| {
            #[cfg(target_arch = "x86_64")]
            if self.isa.has_pairs() {
                // SAFETY: the machine has the instructions.
                return each(tiles, x, |tile, x| unsafe { Pack::Pairs512.sixteens(words(tile), SIDE, x) });
            }
            columns(self.isa, tiles, x);
        });
    }

    unsafe fn multiply(&self, block: Block<'_, f32, Tile>) {
        // SAFETY: the caller's promise is handed on.
        assert!(tiles::with(self.isa, Multiply { isa: self.isa, block }), "an instruction set with tiles");
    }
}

/// A tile as words of 32 bits.
#[cfg(target_arch = "x86_64")]
fn words(tile: &mut Tile) -> &mut [f32] {
    bytemuck::cast_slice_mut(tile.0.as_flattened_mut())
}

/// Calls `pack` with the tiles from number `at` on of each of the two runs, and their lanes.
fn runs(panel: &mut [Tile], at: usize, x: View<'_, f32>, pack: impl Fn(&mut [Tile], View<'_, f32>)) {
    let (first, second) = panel.split_at_mut(panel.len() / 2);
    let middle = x.rows.min(SIDE);
    pack(&mut first[at / NUMBERS..], x.rows(0..middle));
    pack(&mut second[at / NUMBERS..], x.rows(middle..x.rows));
}

compiled_for_each! {
    /// Tiles `[lane, number]`.
    fn rows(tiles: &mut [Tile], x: View<'_, f32>) = rows_body
}

#[inline(always)]
fn rows_body(tiles: &mut [Tile], x: View<'_, f32>) {
    each(tiles, x, |tile, x| {
        for (lane, row) in tile.0.iter_mut().enumerate().take(x.rows) {
            for (k, to) in row.as_chunks_mut::<2>().0.iter_mut().enumerate().take(x.columns) {
                *to = bf16::from_f32(x.at(lane, k)).to_le_bytes();
            }
        }
    });
}

compiled_for_each! {
    /// Tiles `[pair of numbers, lane, number of the pair]`.
    fn columns(tiles: &mut [Tile], x: View<'_, f32>) = columns_body
}

#[inline(always)]
fn columns_body(tiles: &mut [Tile], x: View<'_, f32>) {
    each(tiles, x, |tile, x| {
        for k in 0..x.columns {
            for (lane, pair) in tile.0[k / 2].as_chunks_mut::<4>().0.iter_mut().enumerate().take(x.rows) {
                pair[k % 2 * 2..][..2].copy_from_slice(&bf16::from_f32(x.at(lane, k)).to_le_bytes());
            }
        }
    });
}

/// Calls `pack` with each tile and its numbers, `[lanes, numbers]`; cleared before where these do not fill it.
#[inline(always)]
fn each(tiles: &mut [Tile], x: View<'_, f32>, pack: impl Fn(&mut Tile, View<'_, f32>)) {
    for (from, tile) in (0..x.columns).step_by(NUMBERS).zip(tiles) {
        let x = x.columns(from..x.columns.min(from + NUMBERS));
        if x.rows < SIDE || x.columns < NUMBERS {
            *tile = Tile::ZERO;
        }
        pack(tile, x);
    }
}

/// The products of one block.
struct Multiply<'a> {
    isa: Isa,
    block: Block<'a, f32, Tile>,
}

impl Using for Multiply<'_> {
    fn using<T: Tiles>(self, tiles: &T) {
        let Multiply { isa, mut block } = self;
        let steps = block.depth.div_ceil(NUMBERS);
        // Of one panel: both runs.
        let halves = |panel: &'_ [Tile]| -> [usize; 2] { [0, panel.len() / 2] };
        for (p, left) in block.left.chunks_exact(block.left_panel).enumerate() {
            let left = halves(left).map(|at| &left[at..at + steps]);
            for (q, right) in block.right.chunks_exact(block.right_panel).enumerate() {
                let right = halves(right).map(|at| &right[at..at + steps]);
                for _ in 0..steps * 4 {
                    block.ahead.fetch();
                }
                let mut totals = [[Totals([[0.0; SIDE]; SIDE]); 2]; 2];
                tiles.bf16(&mut totals, left, right, 1);
                put(isa, &block, p * LANES, q * LANES, &totals);
            }
        }
    }
}

compiled_for_each! {
    /// Stores or adds the totals of the rows and columns from there, as many as there are.
    fn put(block: &Block<'_, f32, Tile>, row: usize, column: usize, totals: &[[Totals; 2]; 2]) = put_body
}

#[inline(always)]
fn put_body(block: &Block<'_, f32, Tile>, row: usize, column: usize, totals: &[[Totals; 2]; 2]) {
    for (down, totals) in totals.iter().enumerate() {
        for (across, totals) in totals.iter().enumerate() {
            let (row, column) = (row + down * SIDE, column + across * SIDE);
            let columns = SIDE.min(block.columns.saturating_sub(column));
            for (r, sums) in totals.0.iter().enumerate().take(block.rows.saturating_sub(row)) {
                // SAFETY: so many columns of this row are within the block, which is this thread's alone.
                let c = unsafe {
                    let row = block.c.wrapping_add((row + r) * block.c_row + column);
                    std::slice::from_raw_parts_mut(row, columns)
                };
                for (c, sum) in c.iter_mut().zip(sums) {
                    *c = if block.add { *c + *sum } else { *sum };
                }
            }
        }
    }
}
