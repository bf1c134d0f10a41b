//! Products of several tokens with panels by `usmmla`: two outputs with two tokens, eight inputs at a time, so that an
//! instruction does twice the multiply-adds of a dot product. Exactly the sums of `scalar.rs`.

use std::arch::aarch64::*;

use super::neon::{REGISTERS, Scales, activations, codes, load, parts, sixes, start};
use super::operands::{Operands, Put, Q4, Q4K, Q6K, Q8, by_kind, kind_of};
use super::{GROUP, Group, Kind, ROWS, SIX_BYTES, STRIP, Strip};
use crate::neon::{self, Mixed};
use crate::prefetch;

/// Pairs of tokens at most.
const PAIRS: usize = GROUP / 2;
/// Blocks whose activations are put into order at a time: whole records of every kind, a fraction of the nearest cache.
const BLOCKS: usize = 16;
/// Eights of inputs of a block.
const EIGHTS: usize = 4;

/// Activations of some blocks as `usmmla` takes them, `[block][eight][pair of tokens]`: eight inputs of one token, then
/// of the next. Tokens that are missing are zero.
struct Ordered {
    x: [[[[i8; 16]; PAIRS]; EIGHTS]; BLOCKS],
    scales: [[f32; GROUP]; BLOCKS],
    /// `[block][part]`: see [`activations`].
    sums: [[[i32; GROUP]; 2]; BLOCKS],
}

impl Ordered {
    /// Takes `len` blocks from `first` on.
    ///
    /// # Safety
    /// The group of the operands has them.
    #[inline(always)]
    unsafe fn fill<const KIND: u8>(&mut self, o: &Operands<'_>, first: usize, len: usize) {
        let width = o.x.width;
        for (n, block) in (first..first + len).enumerate() {
            for part in 0..const { parts(KIND) } {
                for t in 0..width {
                    // SAFETY: the caller's promise.
                    (self.scales[n][t], self.sums[n][part][t]) =
                        unsafe { activations::<KIND>(o, block, part, t) };
                }
            }
            for eight in 0..EIGHTS {
                for t in (0..width).step_by(4) {
                    // Quads 2n and 2n + 1. Of 4 bits: n and n + 4, whose codes share bytes.
                    let quads = match KIND {
                        Q8 | Q6K => [2 * eight, 2 * eight + 1],
                        _ => [eight, eight + 4],
                    };
                    // SAFETY: so many tokens are left; registers are stored whole where sixteen bytes are.
                    unsafe {
                        let a = neon::fours(o.quads(block * 8 + quads[0]).add(t), width - t);
                        let b = neon::fours(o.quads(block * 8 + quads[1]).add(t), width - t);
                        let to = &mut self.x[n][eight];
                        vst1q_s32(to[t / 2].as_mut_ptr().cast(), vzip1q_s32(a, b));
                        vst1q_s32(to[t / 2 + 1].as_mut_ptr().cast(), vzip2q_s32(a, b));
                    }
                }
            }
        }
    }
}

/// A strip with all tokens of a group.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub fn run(w: Strip<'_>, x: Group<'_>, put: Put<'_>) {
    by_kind!(w, strip, x, put);
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn strip<const KIND: u8>(w: Strip<'_>, x: Group<'_>, put: Put<'_>) {
    let kind = const { kind_of(KIND) };
    let o = Operands::new(w, 0, w.width, x, 0);
    let mut ordered = Ordered {
        x: [[[[0; 16]; PAIRS]; EIGHTS]; BLOCKS],
        scales: [[0.0; GROUP]; BLOCKS],
        sums: [[[0; GROUP]; 2]; BLOCKS],
    };
    let mut sums = [[[0f32; ROWS]; GROUP]; STRIP];
    let blocks = w.records * kind.record_blocks();
    for first in (0..blocks).step_by(BLOCKS) {
        let len = BLOCKS.min(blocks - first);
        // SAFETY: the group has the blocks of the strip.
        unsafe { ordered.fill::<KIND>(&o, first, len) };
        for (p, sums) in sums.iter_mut().enumerate().take(w.width) {
            for h in 0..REGISTERS {
                // SAFETY: so many blocks are in the strip and in order, and as many pairs as tokens need.
                unsafe {
                    match x.width.div_ceil(2) {
                        2 => tile::<KIND, 2>(&o, p, h, first, len, &ordered, sums),
                        3 => tile::<KIND, 3>(&o, p, h, first, len, &ordered, sums),
                        4 => tile::<KIND, 4>(&o, p, h, first, len, &ordered, sums),
                        5 => tile::<KIND, 5>(&o, p, h, first, len, &ordered, sums),
                        _ => tile::<KIND, 6>(&o, p, h, first, len, &ordered, sums),
                    }
                }
            }
        }
    }
    for (p, sums) in sums.iter().enumerate().take(w.width) {
        for (t, sums) in sums.iter().enumerate().take(x.width) {
            put(p, t, sums);
        }
    }
}

/// Adds to the sums of register `h` of panel `p` with T pairs of tokens what `len` blocks from `first` on add.
///
/// # Safety
/// The panel and the blocks are in the strip; `x` holds the blocks and so many pairs.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn tile<const KIND: u8, const T: usize>(
    o: &Operands<'_>,
    p: usize,
    h: usize,
    first: usize,
    len: usize,
    x: &Ordered,
    sums: &mut [[f32; ROWS]; GROUP],
) {
    let kind = const { kind_of(KIND) };
    let (before, of_block) = const { codes(KIND) };
    // SAFETY: the caller's promise; four of sixteen sums.
    unsafe {
        let mut totals = [[neon::zero_ps(); 2]; T];
        for t in 0..T {
            for n in 0..2 {
                totals[t][n] = vld1q_f32(sums[2 * t + n].as_ptr().add(4 * h));
            }
        }
        for n in 0..len {
            let (record, b) = ((first + n) / kind.record_blocks(), (first + n) % kind.record_blocks());
            let at = o.data.add(p * o.bytes + record * kind.record_bytes());
            let from = at.add(before + of_block * b);
            if h == 0 {
                let ahead = o.ahead(record * kind.record_bytes(), 1);
                for line in 0..of_block / 64 {
                    prefetch::second(from.wrapping_add(64 * line + ahead));
                }
            }
            for part in 0..const { parts(KIND) } {
                // Outputs 0 and 1, then 2 and 3.
                let mut dot = [[neon::zero(); T]; 2];
                let from = from.add(16 * h);
                let six = if KIND == Q6K { sixes(from.add(SIX_BYTES * part)) } else { [neon::zero(); 4] };
                let eights = EIGHTS / const { parts(KIND) };
                for eight in 0..eights {
                    let [[a], [b]] = match KIND {
                        Q8 => {
                            let [a, _] = load::<KIND, Mixed, 1>(from, 2 * eight);
                            let [b, _] = load::<KIND, Mixed, 1>(from, 2 * eight + 1);
                            [a, b]
                        }
                        Q6K => [[six[2 * eight]], [six[2 * eight + 1]]],
                        _ => load::<KIND, Mixed, 1>(from, eight),
                    };
                    let w = [vzip1q_s32(a, b), vzip2q_s32(a, b)];
                    for t in 0..T {
                        let x = vld1q_s32(x.x[n][part * eights + eight][t].as_ptr().cast());
                        for i in 0..2 {
                            dot[i][t] = neon::multiply_rows(dot[i][t], w[i], x);
                        }
                    }
                }
                let scales = Scales::of::<KIND>(at, b * parts(KIND) + part, h);
                for t in 0..T {
                    let (low, high) = (dot[0][t], dot[1][t]);
                    let of_token = [vuzp1q_s32(low, high), vuzp2q_s32(low, high)];
                    for k in 0..2 {
                        let (x_scale, x_sum) = (x.scales[n][2 * t + k], x.sums[n][part][2 * t + k]);
                        let dot = vaddq_s32(of_token[k], vdupq_n_s32(start::<KIND, Mixed>(x_sum)));
                        totals[t][k] = scales.add::<KIND>(totals[t][k], dot, x_scale, x_sum);
                    }
                }
            }
        }
        for t in 0..T {
            for n in 0..2 {
                vst1q_f32(sums[2 * t + n].as_mut_ptr().add(4 * h), totals[t][n]);
            }
        }
    }
}
