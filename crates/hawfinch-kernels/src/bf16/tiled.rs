//! Tiles of bf16, by whatever [`Tiles`] multiplies them: 32 tokens × 32 outputs, one token likewise.

use std::cell::RefCell;

use super::tokens::{GROUP, Line};
use super::{BLOCK_BYTES, DEPTH, HALF, Next, ROWS, Strip, Tokens};
use crate::Isa;
use crate::tiles::{self, SIDE, Tile, Tiles, Totals, Using};

const _: () = assert!(GROUP == SIDE && HALF == SIDE && size_of::<[Line; GROUP]>() == size_of::<Tile>());

/// Sums of every panel and token, `[panel, token, output]`.
pub fn strip(isa: Isa, strip: Strip<'_>, x: &Tokens, sums: &mut [[f32; ROWS]]) {
    assert!(tiles::with(isa, Multiply { strip, x, sums }), "an instruction set with tiles");
}

struct Multiply<'a, 's> {
    strip: Strip<'a>,
    x: &'a Tokens,
    sums: &'s mut [[f32; ROWS]],
}

impl Using for Multiply<'_, '_> {
    fn using<T: Tiles>(self, tiles: &T) {
        let Multiply { strip, x, sums } = self;
        TOTALS.with_borrow_mut(|totals| multiply(tiles, strip, x, sums, totals));
    }
}

/// Sums of 32 tokens and 32 outputs.
type Square = [[Totals; 2]; 2];
const ZERO: Square = [[Totals([[0.0; SIDE]; SIDE]); 2]; 2];

thread_local! {
    /// Of one panel and all tokens, used by one after the other.
    static TOTALS: RefCell<Vec<Square>> = RefCell::default();
}

fn multiply(
    tiles: &impl Tiles,
    strip: Strip<'_>,
    x: &Tokens,
    sums: &mut [[f32; ROWS]],
    totals: &mut Vec<Square>,
) {
    let groups = x.tokens().div_ceil(GROUP);
    for (panel, sums) in
        strip.data.chunks_exact(strip.blocks * BLOCK_BYTES).zip(sums.chunks_exact_mut(x.tokens()))
    {
        totals.clear();
        totals.resize(groups.div_ceil(2), ZERO);
        let w = panel.as_chunks::<64>().0.as_chunks::<2>().0.as_chunks::<SIDE>().0;
        for from in (0..w.len()).step_by(DEPTH) {
            let to = w.len().min(from + DEPTH);
            let mut next = Next::new(&panel[to * BLOCK_BYTES..(w.len().min(to + DEPTH)) * BLOCK_BYTES]);
            let share = next.lines.div_ceil(totals.len());
            for (n, totals) in totals.iter_mut().enumerate() {
                next.fetch(share);
                // Where the second of two groups is none, the first stands in for it, for nothing.
                let run = |g: usize| &run(x.group(g.min(groups - 1)).lines)[from..to];
                tiles.bf16_beside(totals, [run(2 * n), run(2 * n + 1)], &w[from..to]);
            }
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            let [first, second] = &totals[t / (2 * SIDE)][t / SIDE % 2];
            sums[..SIDE].copy_from_slice(&first.0[t % SIDE]);
            sums[SIDE..].copy_from_slice(&second.0[t % SIDE]);
        }
    }
}

/// A group's lines as tiles.
fn run(lines: &[Line]) -> &[Tile] {
    // SAFETY: sixteen lines are a tile's bytes, of the same alignment; the slice is as long.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() / GROUP) }
}
