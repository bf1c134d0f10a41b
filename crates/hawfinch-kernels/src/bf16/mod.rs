//! Matrix products with weights and activations in bf16, by the instructions that processors have for them.
//!
//! Thirty-two outputs are a panel. A panel runs over the inputs pair by pair, the two numbers of a pair of every output
//! together. Sixteen of them are what `vdpbf16ps` multiplies by a pair of activations that is the same in every lane, and
//! also a row of AMX's tiles. Activations are rounded to bf16
//! ([`Tokens`]); nothing is ever added across a register.
//!
//! The meaning (`scalar.rs`) is that of `vdpbf16ps`: an output is one chain of fused multiply-adds in f32 over all
//! inputs, of every pair the second number first. Loops for numbers of f32 follow it to the bit. Tiles cannot: their
//! sums go as `tiles/emulated.rs` says, with one token as with many. So a result depends neither on the
//! other tokens nor on threads, and on the instruction set only where there are tiles. Numbers below 2^-126 may count as
//! zero.

mod scalar;
#[cfg(test)]
mod tests;
mod tiled;
mod tokens;
mod wide;

pub use tokens::{Rounding, Tokens};

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::output::Out;
use crate::{Isa, Level, Pool, Store, Then, Work, prefetch};

/// Outputs of a panel.
pub const ROWS: usize = 32;
/// Outputs whose numbers lie together.
const HALF: usize = 16;
/// Inputs of a block.
const BLOCK: usize = 32;
/// Bytes of a block of a panel: two tiles.
const BLOCK_BYTES: usize = BLOCK * ROWS * 2;
/// Blocks that are multiplied with all tokens before the next: half of the nearest cache.
const DEPTH: usize = 8;
/// Panels of a chunk of work where tokens are few.
const STRIP: usize = 2;
/// Tokens that are few: all of them are held in registers to the end of a panel.
const FEW: usize = 4;
/// Multiply-adds below which a product stays on the calling thread: about a microsecond.
const ALONE: usize = 1 << 16;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The meaning itself.
    Scalar,
    /// Numbers of f32 in registers.
    Numbers,
    /// Pairs of bf16, by AVX512-BF16.
    Pairs,
    /// Tiles of bf16.
    Tiles,
}

impl Way {
    fn of(isa: Isa) -> Way {
        if isa.has_tiles() {
            Way::Tiles
        } else if isa.prefers_pairs() {
            Way::Pairs
        } else if isa.level() == Level::Scalar {
            Way::Scalar
        } else {
            Way::Numbers
        }
    }
}

/// A weight matrix in panels.
pub struct Panels {
    outputs: usize,
    inputs: usize,
    scale: f32,
    data: Arc<Store>,
}

/// Bytes of `[outputs, inputs]` in panels; `None` on overflow.
pub fn bytes_for(outputs: usize, inputs: usize) -> Option<usize> {
    outputs.div_ceil(ROWS).checked_mul(inputs.div_ceil(BLOCK).checked_mul(BLOCK_BYTES)?)
}

/// Whether what fills up the last block of inputs, which products multiply too, is zero. `panels`: as many bytes as
/// [`bytes_for`] says.
pub fn is_filled_with_zeros(panels: &[u8], inputs: usize) -> bool {
    let blocks = inputs.div_ceil(BLOCK);
    if inputs.is_multiple_of(BLOCK) {
        return true;
    }
    let of_last = inputs % BLOCK;
    panels.chunks_exact(blocks * BLOCK_BYTES).all(|panel| {
        let last = panel[(blocks - 1) * BLOCK_BYTES..].as_chunks::<4>().0;
        let (pair, after) = last[of_last / 2 * ROWS..].split_at(ROWS);
        let half_used = of_last % 2 == 1;
        pair.iter().all(|p| p[2..] == [0; 2] && (half_used || p[..2] == [0; 2]))
            && after.iter().all(|p| *p == [0; 4])
    })
}

impl Panels {
    /// Repacks rows `[o, i]` of bf16, on all threads.
    ///
    /// # Panics
    /// When the bytes are not as many as the shape asks for.
    pub fn pack(pool: &Pool, rows: &[u8], outputs: usize, inputs: usize, scale: f32) -> Self {
        assert_eq!(rows.len(), outputs * inputs * 2);
        let bytes = bytes_for(outputs, inputs).expect("a size that can be allocated");
        let mut data = Buffer::new(bytes);
        if bytes > 0 {
            let panel_bytes = inputs.div_ceil(BLOCK) * BLOCK_BYTES;
            pool.split(&mut data.bytes_mut()[..bytes], panel_bytes, STRIP, |first, strip| {
                let mut rows = rows.chunks_exact(inputs * 2).skip(first * ROWS);
                for panel in strip.chunks_exact_mut(panel_bytes) {
                    rows.by_ref().take(ROWS).enumerate().for_each(|(r, row)| put_row(row, panel, r));
                }
            });
        }
        Panels { outputs, inputs, scale, data: Arc::new(Store::own(data)) }
    }

    /// What [`Panels::pack`] makes, made before. `None` when the bytes are fewer than [`bytes_for`] says.
    pub fn packed(data: Arc<Store>, outputs: usize, inputs: usize, scale: f32) -> Option<Self> {
        let fits = bytes_for(outputs, inputs)? <= data.bytes().len();
        fits.then_some(Panels { outputs, inputs, scale, data })
    }

    /// The rows that were packed, without the scale.
    pub fn unpack(&self) -> Vec<u8> {
        let row_bytes = self.inputs * 2;
        let mut rows = vec![0; row_bytes * self.outputs];
        if row_bytes > 0 {
            let panels = self.data.bytes().chunks_exact(self.panel_bytes());
            for (rows, panel) in rows.chunks_mut(ROWS * row_bytes).zip(panels) {
                rows.chunks_exact_mut(row_bytes).enumerate().for_each(|(r, row)| get_row(row, panel, r));
            }
        }
        rows
    }

    /// Where the panels lie.
    pub fn store(&self) -> &Arc<Store> {
        &self.data
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
        self.panels() * self.panel_bytes()
    }

    fn panels(&self) -> usize {
        self.outputs.div_ceil(ROWS)
    }

    fn blocks(&self) -> usize {
        self.inputs.div_ceil(BLOCK)
    }

    fn panel_bytes(&self) -> usize {
        self.blocks() * BLOCK_BYTES
    }

    fn view(&self, panels: Range<usize>) -> &[u8] {
        let per = self.panel_bytes();
        &self.data.bytes()[panels.start * per..panels.end.min(self.panels()) * per]
    }
}

/// Where pair `p` of row `r` lies in a block, or in all of a panel.
const fn place(r: usize, p: usize) -> usize {
    4 * (p * ROWS + r)
}

fn put_row(row: &[u8], panel: &mut [u8], r: usize) {
    let pairs = panel.as_chunks_mut::<4>().0.iter_mut().skip(r).step_by(ROWS);
    let (whole, rest) = row.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty()).then_some(&last);
    pairs.zip(whole.iter().chain(last)).for_each(|(to, pair)| *to = *pair);
}

fn get_row(row: &mut [u8], panel: &[u8], r: usize) {
    let pairs = panel.as_chunks::<4>().0.iter().skip(r).step_by(ROWS);
    row.chunks_mut(4).zip(pairs).for_each(|(to, pair)| to.copy_from_slice(&pair[..to.len()]));
}

/// y = x Wᵀ.
///
/// * `y`: `[t, o]`, overwritten
/// * `x`: `[t, i]`
/// * `a`: scratch for the rounded activations
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear(isa: Isa, pool: &Pool, y: &mut [f32], x: &[f32], w: &Panels, a: &mut Tokens) {
    if crate::linear::tokens(y, x, w.outputs, w.inputs).is_some() {
        pool.run_all(&[a.of(isa, x, w.inputs)]);
        pool.run_all(&[product(isa, y, w, a, Then::Nothing)]);
    }
}

/// [`linear`] as work to be done, and what follows it, with activations rounded before; `None` when there is nothing
/// to multiply.
///
/// # Panics
/// As [`linear`]; when the activations were rounded for another instruction set.
pub fn product<'a>(
    isa: Isa,
    y: &'a mut [f32],
    w: &'a Panels,
    a: &'a Tokens,
    then: Then<'a, f32>,
) -> Option<Product<'a>> {
    product_by(Way::of(isa), isa, y, w, a, then)
}

fn product_by<'a>(
    way: Way,
    isa: Isa,
    y: &'a mut [f32],
    w: &'a Panels,
    a: &'a Tokens,
    then: Then<'a, f32>,
) -> Option<Product<'a>> {
    if w.outputs == 0 || w.inputs == 0 {
        y.fill(0.0);
        then.finish(y, 0);
        return None;
    }
    let tokens = y.len() / w.outputs;
    assert!(a.is_for(way, tokens, w.blocks()) && y.len().is_multiple_of(w.outputs), "bf16: activations");
    let alone = y.len() * w.inputs <= ALONE;
    let width = if alone {
        w.panels()
    } else if tokens <= FEW {
        STRIP
    } else {
        1
    };
    Some(Product { isa, way, w, a, width, y: Out::new(y, w.outputs, then) })
}

/// A product with panels: a chunk is some panels with every token.
pub struct Product<'a> {
    isa: Isa,
    way: Way,
    w: &'a Panels,
    a: &'a Tokens,
    /// Panels of a chunk.
    width: usize,
    y: Out<'a, f32>,
}

thread_local! {
    /// Sums of a chunk, used by one after the other: `[panel, token, output]`.
    static SUMS: RefCell<Vec<[f32; ROWS]>> = RefCell::default();
}

impl Product<'_> {
    fn panels(&self, n: usize) -> Range<usize> {
        n * self.width..((n + 1) * self.width).min(self.w.panels())
    }

    /// Panels `panels`, of which what follows is asked for meanwhile.
    fn strip(&self, panels: Range<usize>, sums: &mut Vec<[f32; ROWS]>) {
        let tokens = self.a.tokens();
        // Every sum is overwritten.
        sums.resize(panels.len() * tokens, [0.0; ROWS]);
        let strip = Strip { width: panels.len(), blocks: self.w.blocks(), data: self.w.view(panels.clone()) };
        match self.way {
            Way::Scalar => scalar::strip(strip, self.a, sums),
            Way::Tiles => tiled::strip(self.isa, strip, self.a, sums),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa exists only where the machine has the instructions; it has those for pairs.
            Way::Pairs => unsafe { wide::strip_of_pairs(strip, self.a, sums) },
            #[cfg(not(target_arch = "x86_64"))]
            Way::Pairs => unreachable!("pairs are AVX-512's"),
            Way::Numbers => wide::strip(self.isa, strip, self.a, sums),
        }
        for (panel, sums) in panels.zip(sums.chunks_exact(tokens)) {
            let first = panel * ROWS;
            let n = ROWS.min(self.w.outputs - first);
            for (t, sums) in sums.iter().enumerate() {
                // SAFETY: these outputs belong to this chunk alone.
                unsafe { self.y.put(t, first, &sums[..n], self.w.scale) };
            }
        }
    }
}

impl Work for Product<'_> {
    fn chunks(&self) -> usize {
        if self.a.tokens() == 0 { 0 } else { self.w.panels().div_ceil(self.width) }
    }

    unsafe fn chunk(&self, n: usize) {
        SUMS.with_borrow_mut(|sums| {
            let panels = self.panels(n);
            for first in panels.clone().step_by(STRIP) {
                self.strip(first..(first + STRIP).min(panels.end), sums);
            }
        });
    }

    fn reads(&self, n: usize) -> &[u8] {
        if self.width > STRIP { &[] } else { self.w.view(self.panels(n)) }
    }
}

/// Panels that are multiplied together: `[panel, block]`.
#[derive(Clone, Copy)]
struct Strip<'a> {
    width: usize,
    blocks: usize,
    data: &'a [u8],
}

/// Lines that will be read next, asked for some at a time while others are multiplied.
struct Next {
    at: *const u8,
    lines: usize,
}

impl Next {
    fn new(data: &[u8]) -> Self {
        Next { at: data.as_ptr(), lines: data.len() / 64 }
    }

    /// Asks for the next so many lines.
    #[inline(always)]
    fn fetch(&mut self, lines: usize) {
        let lines = lines.min(self.lines);
        for _ in 0..lines {
            prefetch::second(self.at);
            self.at = self.at.wrapping_add(64);
        }
        self.lines -= lines;
    }
}
