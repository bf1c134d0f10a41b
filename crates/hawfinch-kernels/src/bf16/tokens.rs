//! Activations rounded to bf16, as what multiplies wants them.

use std::marker::PhantomData;

use super::{BLOCK, Way};
use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::{Isa, Work};

/// Tokens of a group: rows of a tile.
pub(super) const GROUP: usize = 16;
/// Words of 32 bits in a line.
const WORDS: usize = 16;

/// A cache line of words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; WORDS]);

/// Rows of activations, rounded to bf16 (to the nearest, ties to even) and filled up to whole blocks of 32 with zeros.
///
/// Tokens lie in groups of up to sixteen (for tiles always sixteen), in a group block by block the tokens' numbers: as pairs, the
/// first in the low half of a word, or each widened to f32.
pub struct Tokens {
    way: Way,
    tokens: usize,
    blocks: usize,
    lines: Vec<Line>,
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens { way: Way::Scalar, tokens: 0, blocks: 0, lines: Vec::new() }
    }
}

/// One group of tokens.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    /// The first token.
    pub first: usize,
    /// Tokens.
    pub width: usize,
    /// `[block, token, lines of a block]`; for tiles sixteen tokens.
    pub lines: &'a [Line],
}

impl Tokens {
    /// `x` `[t, i]`, to be rounded for the products of this instruction set.
    ///
    /// # Panics
    /// When the rows are not whole.
    pub fn of<'a>(&'a mut self, isa: Isa, x: &'a [f32], i: usize) -> Rounding<'a> {
        self.of_way(isa, Way::of(isa), x, i)
    }

    /// The same for another way.
    pub(super) fn of_way<'a>(&'a mut self, isa: Isa, way: Way, x: &'a [f32], i: usize) -> Rounding<'a> {
        assert!(i > 0 && x.len().is_multiple_of(i), "bf16: rows of {i} numbers");
        self.way = way;
        (self.tokens, self.blocks) = (x.len() / i, i.div_ceil(BLOCK));
        let places = if self.way == Way::Tiles { self.tokens.next_multiple_of(GROUP) } else { self.tokens };
        // Every line is overwritten by the work.
        self.lines.resize(places * self.blocks * self.per(), Line([0; WORDS]));
        let Tokens { way, tokens, blocks, .. } = *self;
        let per = self.per();
        Rounding {
            isa,
            way,
            x,
            i,
            tokens,
            blocks,
            per,
            lines: Parts::new(&mut self.lines),
            borrowed: PhantomData,
        }
    }

    /// Lines of a token's block.
    fn per(&self) -> usize {
        if matches!(self.way, Way::Pairs | Way::Tiles) { 1 } else { 2 }
    }

    /// t
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether it holds so many tokens of so many blocks for that way.
    pub(super) fn is_for(&self, way: Way, tokens: usize, blocks: usize) -> bool {
        (self.way, self.tokens, self.blocks) == (way, tokens, blocks)
    }

    /// The groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        (0..self.tokens.div_ceil(GROUP)).map(|n| self.group(n))
    }

    /// Group `n`.
    pub(super) fn group(&self, n: usize) -> Group<'_> {
        let first = n * GROUP;
        let width = GROUP.min(self.tokens - first);
        let (at, lines) = extent(self.way, first, width, self.blocks * self.per());
        Group { first, width, lines: &self.lines[at..at + lines] }
    }

    /// Number `k` of token `t`, where numbers are widened.
    pub(super) fn number(&self, t: usize, k: usize) -> f32 {
        let group = self.group(t / GROUP);
        let at = k / BLOCK * group.width + t % GROUP;
        f32::from_bits(group.lines[2 * at + k % BLOCK / WORDS].0[k % WORDS])
    }
}

/// Where the lines of a group begin, and how many they are, for so many lines a token.
fn extent(way: Way, first: usize, width: usize, per: usize) -> (usize, usize) {
    (first * per, if way == Way::Tiles { GROUP } else { width } * per)
}

/// Rows to be rounded: a chunk is a group of tokens.
pub struct Rounding<'a> {
    isa: Isa,
    way: Way,
    x: &'a [f32],
    i: usize,
    tokens: usize,
    blocks: usize,
    /// Lines of a token's block.
    per: usize,
    lines: Parts<Line>,
    borrowed: PhantomData<&'a mut Tokens>,
}

impl Work for Rounding<'_> {
    fn chunks(&self) -> usize {
        self.tokens.div_ceil(GROUP)
    }

    unsafe fn chunk(&self, n: usize) {
        let Rounding { isa, way, x, i, tokens, blocks, per, lines, .. } = self;
        let first = n * GROUP;
        let width = GROUP.min(tokens - first);
        let (at, count) = extent(*way, first, width, blocks * per);
        // SAFETY: each group has lines of its own.
        let lines = unsafe { lines.get(at, count) };
        let places = count / (blocks * per);
        if places > width {
            lines.fill(Line([0; WORDS]));
        }
        for (t, x) in x[first * i..][..width * i].chunks_exact(*i).enumerate() {
            row(*isa, x, t, places, *per == 1, lines);
        }
    }
}

compiled_for_each! {
    /// Token `t` of a group with so many places.
    fn row(x: &[f32], t: usize, places: usize, paired: bool, lines: &mut [Line]) = row_body
}

#[inline(always)]
fn row_body(x: &[f32], t: usize, places: usize, paired: bool, lines: &mut [Line]) {
    let mut padded = [0f32; BLOCK];
    for (b, x) in x.chunks(BLOCK).enumerate() {
        let x = match x.first_chunk::<BLOCK>() {
            Some(x) => x,
            None => {
                padded[..x.len()].copy_from_slice(x);
                &padded
            }
        };
        let at = b * places + t;
        if paired {
            let line = &mut lines[at].0;
            for p in 0..WORDS {
                line[p] = rounded(x[2 * p]) >> 16 | rounded(x[2 * p + 1]);
            }
        } else {
            for (line, x) in lines[2 * at..2 * at + 2].iter_mut().zip(x.as_chunks::<WORDS>().0) {
                for k in 0..WORDS {
                    line.0[k] = rounded(x[k]);
                }
            }
        }
    }
}

/// The bits of the nearest bf16, in the high half: as `half` rounds, in steps that compile to wide registers.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000;
    // What would become infinity keeps being no number.
    if x.is_nan() { bits & 0xFFFF_0000 | 0x0040_0000 } else { nearest }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    #[test]
    fn rounded_to_the_nearest() {
        let bits = (0..1 << 16)
            .flat_map(|high: u32| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| high << 16 | low));
        for x in bits.map(f32::from_bits) {
            assert_eq!(super::rounded(x) >> 16, u32::from(bf16::from_f32(x).to_bits()), "{x:e}");
            assert_eq!(super::rounded(x) & 0xFFFF, 0);
        }
    }
}
