//! Products of many tokens with strips on AVX2, AVX-512 with VNNI and NEON: exactly the sums of `sparse.rs`.
//!
//! With some tokens at once hardly an input is zero for all of them, so nothing is skipped: the codes of a block are
//! put into the order of registers once, then multiplied with every token.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::operands::{Q4, Q4K, Q8, by_width, offset};
use super::sparse::{NO_STRIPS, StripOf, UNIT, WIDEST, header, row_bytes};
use super::{Activations, BLOCK, GROUP, Group, Kind, QUAD};
#[cfg(target_arch = "x86_64")]
use super::{block_avx2, x86::multiply512};
#[cfg(target_arch = "aarch64")]
use crate::neon::{self, Dot, Mixed, Multiply, Plain, shift};
use crate::{Isa, Level, prefetch};

/// Bytes of a row whose codes are arranged together: those of 64 outputs, or of 128 of 4 bits.
const PIECE: usize = 64;
/// Groups of 64 outputs in a piece at most.
const HALVES: usize = 2;
/// Groups of 64 outputs times blocks that are arranged together: half of the nearest cache.
const SLOTS: usize = 8;
/// Sums kept at a time: those of a call with as many tokens as a step of a model takes.
const SUMS: usize = 11 * GROUP * SPAN;

/// The codes of 64 outputs and a block, as multiplied: `[quad][register][output, input of the quad]`.
type Slot = [[[u8; PIECE]; 4]; BLOCK / QUAD];

/// Bytes of a slot's quad.
const QUADS: usize = 4 * PIECE;

/// 64 outputs of some blocks.
#[derive(Clone, Copy)]
struct Piece<'a> {
    w: StripOf<'a>,
    /// Those of the blocks, `slots_of` apart.
    slots: &'a [Slot],
    slots_of: usize,
    /// The first output within the strip.
    output: usize,
}

/// Blocks that will be put into order next. Their lines are asked for some at a time while others are multiplied:
/// asked for all at once they would wait for one another, and the processor for them.
struct Next<'a> {
    w: StripOf<'a>,
    /// The first output, and how many.
    first: usize,
    outputs: usize,
    blocks: Range<usize>,
    /// What is asked for next of the first of them: its scales, then (Q4_K) minima, then rows.
    part: usize,
}

impl Next<'_> {
    /// Parts of a block.
    const PARTS: usize = 2 + BLOCK;

    /// Asks for the next so many parts.
    #[inline(always)]
    fn fetch(&mut self, parts: usize) {
        let (w, bytes) = (self.w, row_bytes(self.w.kind, self.w.width));
        // Bytes of an output's scale, from the second part on those of a minimum.
        let of_scale = if w.kind == Kind::Q4K { w.width } else { self.outputs };
        let of_first = if w.kind == Kind::Q4K { self.first } else { 2 * self.first };
        for _ in 0..parts {
            if self.blocks.is_empty() {
                return;
            }
            let block = w.block(self.blocks.start);
            let (at, len) = match self.part {
                part @ 0..2 => (block + of_first + part * of_scale, self.outputs),
                part => {
                    let (first, len) = (row_bytes(w.kind, self.first), row_bytes(w.kind, self.outputs));
                    (block + header(w.width) + (part - 2) * bytes + first, len)
                }
            };
            (at..at + len).step_by(64).for_each(|at| prefetch::second(w.data.as_ptr().wrapping_add(at)));
            self.part += 1;
            if self.part == Self::PARTS {
                self.part = 0;
                self.blocks.start += 1;
            }
        }
    }
}

/// Outputs that one call of [`run`] computes at most: two or four lines of a row, which processors fetch together.
const SPAN: usize = 256;

/// Outputs that one call of [`run`] computes, for so many outputs in all. Four lines of 8-bit codes rather than two where
/// that was measured to be faster (AVX2), unless threads would have nothing to do.
pub fn span(isa: Isa, kind: Kind, outputs: usize, threads: usize) -> usize {
    let wide = isa.level() == Level::Avx2 && outputs.div_ceil(SPAN) >= threads;
    if kind != Kind::Q8 || wide { SPAN } else { SPAN / 2 }
}

/// Calls of [`run`] of so many outputs that make a strip.
pub fn calls(width: usize, span: usize) -> usize {
    width.div_ceil(span)
}

/// Sums of the `n`-th `span` outputs of a strip with every token, given to `put(token, first output of the strip, sums)`.
pub fn run(
    isa: Isa,
    w: StripOf<'_>,
    (n, span): (usize, usize),
    a: &Activations,
    put: &mut dyn FnMut(usize, usize, &[f32]),
) {
    assert!(w.width <= WIDEST && w.width.is_multiple_of(UNIT) && w.data.len() == w.block(w.blocks));
    let all = row_bytes(w.kind, w.width) / PIECE;
    assert!(span <= SPAN && n < calls(w.width, span));
    let span = row_bytes(w.kind, span) / PIECE;
    let pieces = n * span..all.min((n + 1) * span);
    let outputs = pieces.len() * w.width / all;
    let step = (SUMS / outputs / GROUP).max(1);
    let groups = a.groups().count();
    for first in (0..groups).step_by(step) {
        let groups = first..groups.min(first + step);
        // SAFETY: an Isa exists only where the machine has the instructions.
        unsafe {
            macro_rules! slab {
                ($width:ident) => {
                    match w.kind {
                        Kind::Q8 => $width::slab::<Q8>(w, pieces.clone(), a, groups, put),
                        Kind::Q4 => $width::slab::<Q4>(w, pieces.clone(), a, groups, put),
                        Kind::Q4K => $width::slab::<Q4K>(w, pieces.clone(), a, groups, put),
                        Kind::Q6K => unreachable!("{NO_STRIPS}"),
                    }
                };
            }
            by_width!(isa, slab)
        }
    }
}

/// Adds the products of a block's codes with the inputs of T tokens: sixteen outputs in a register.
///
/// `w`: codes of the first quad, those of the others [`QUADS`] apart; `x`: inputs of the first quad, token by token,
/// those of the others `stride` bytes apart. (The same for the other instruction sets, whose names end in theirs.)
///
/// # Safety
/// They lie there.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply_avx512<const KIND: u8, const T: usize>(
    dot: &mut [[__m512i; T]; 1],
    w: *const u8,
    x: *const [i8; QUAD],
    stride: usize,
) {
    for quad in 0..BLOCK / QUAD {
        // SAFETY: the caller's promise.
        unsafe {
            multiply512(dot, &[_mm512_loadu_si512(w.add(QUADS * quad).cast())], x.byte_add(stride * quad))
        }
    }
}

/// The same in two registers, which are zero before; 4-bit codes are summed in pairs of 16 bits.
///
/// # Safety
/// As [`multiply_avx512`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_avx2<const KIND: u8, const T: usize>(
    dot: &mut [[__m256i; T]; 2],
    w: *const u8,
    x: *const [i8; QUAD],
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if T > 1 {
            let sums = match KIND {
                Q8 => block_avx2::slot_eights::<T>(w, x, stride),
                _ => block_avx2::slot_fours::<T>(w, x, stride),
            };
            for t in 0..T {
                for h in 0..2 {
                    dot[h][t] = sums[t][h];
                }
            }
            return;
        }
        for quad in 0..BLOCK / QUAD {
            let x = _mm256_set1_epi32(x.byte_add(stride * quad).cast::<i32>().read_unaligned());
            for h in 0..2 {
                let w = _mm256_loadu_si256(w.add(QUADS * quad + 32 * h).cast());
                dot[h][0] = block_avx2::add::<KIND>(dot[h][0], w, x);
            }
        }
    }
}

/// Defines the loops for one register width: a register holds `$outputs` outputs; `$together` registers are multiplied
/// at a time.
macro_rules! width {
    ($name:ident, $features:literal, $outputs:literal, $together:literal, $most:literal, ($($tokens:literal)*), $ints:ty, $floats:ty,
     $load:path, $store:path, $set8:path, $and:path, $shift:ident, $low8:path, $high8:path, $low16:path,
     $high16:path, $set1:path, $to_ps:path, $loadu_ps:path, $storeu_ps:path, $set1_ps:path,
     $mul:path, $fma:path, $fnma:path, $from_start:literal, $halves:expr, $octets:expr, $multiply:ident, $finish:expr) => {
        mod $name {
            use super::*;

            /// Registers of sixteen outputs.
            const N: usize = 16 / $outputs;
            /// Whether sums begin with what the codes' offset adds, or it is added at the end.
            const FROM_START: bool = $from_start;

            /// Puts the codes of some pieces of a block into order, one slot a group of 64 outputs.
            ///
            /// # Safety
            /// The block and the pieces lie within the strip; there are as many slots.
            #[target_feature(enable = $features)]
            unsafe fn arrange<const KIND: u8>(
                slots: &mut [Slot],
                w: StripOf<'_>,
                block: usize,
                pieces: Range<usize>,
            ) {
                let (bytes, low) = (row_bytes(w.kind, w.width), $set8(15));
                let halves = if KIND == Q8 { 1 } else { HALVES };
                let codes = w.data.as_ptr().wrapping_add(w.block(block) + header(w.width));
                for quad in 0..BLOCK / QUAD {
                    for (n, piece) in pieces.clone().enumerate() {
                        let at = quad * QUAD * bytes + piece * PIECE;
                        for h in 0..N {
                            let mut rows = [low; QUAD];
                            for k in 0..QUAD {
                                // SAFETY: as many bytes of a row's piece.
                                rows[k] = unsafe { $load(codes.add(at + k * bytes + 4 * $outputs * h).cast()) };
                            }
                            for half in 0..halves {
                                let mut r = rows;
                                if KIND != Q8 {
                                    for k in 0..QUAD {
                                        r[k] = $and(if half == 0 { r[k] } else { $shift::<4>(r[k]) }, low);
                                    }
                                }
                                let (a, b) = ($low8(r[0], r[1]), $high8(r[0], r[1]));
                                let (c, d) = ($low8(r[2], r[3]), $high8(r[2], r[3]));
                                let q = [$low16(a, c), $high16(a, c), $low16(b, d), $high16(b, d)];
                                let slot = &mut slots[n * halves + half][quad];
                                for i in 0..4 {
                                    // SAFETY: part of 64 bytes.
                                    unsafe { $store(slot[i].as_mut_ptr().add(4 * $outputs * h).cast(), q[i]) };
                                }
                            }
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            pub fn slab<const KIND: u8>(
                w: StripOf<'_>,
                pieces: Range<usize>,
                a: &Activations,
                groups: Range<usize>,
                put: &mut dyn FnMut(usize, usize, &[f32]),
            ) {
                let halves = if KIND == Q8 { 1 } else { HALVES };
                let (start, outputs) = (groups.start * GROUP, pieces.len() * halves * 64);
                let first = pieces.start * halves * 64;
                let slots_of = pieces.len() * halves;
                let mut slots: [Slot; SLOTS] = [[[[0; PIECE]; 4]; BLOCK / QUAD]; SLOTS];
                let mut sums = [0f32; SUMS];
                let step = SLOTS / slots_of;
                for b in (0..w.blocks).step_by(step) {
                    let blocks = b..w.blocks.min(b + step);
                    for (slots, b) in slots.chunks_exact_mut(slots_of).zip(blocks.clone()) {
                        // SAFETY: `run` checked the sizes.
                        unsafe { arrange::<KIND>(slots, w, b, pieces.clone()) };
                    }
                    let next = b + step..w.blocks.min(b + 2 * step);
                    let mut next = Next { w, first, outputs, blocks: next, part: 0 };
                    let runs: usize = groups.clone().map(|g| a.group(g).width.div_ceil($most)).sum();
                    let share = (next.blocks.len() * Next::PARTS).div_ceil(runs * slots_of);
                    for n in 0..slots_of {
                        let slots = &slots[n..];
                        for g in groups.clone() {
                            let x = a.group(g);
                            assert!(x.quads.len() >= w.blocks * 8 * x.width);
                            assert!(x.scales.len() >= w.blocks * x.width);
                            assert!(x.sums.len() >= w.blocks * x.width);
                            for token in (0..x.width).step_by($most) {
                                let sums = &mut sums[(x.first - start + token) * outputs + 64 * n..];
                                let piece = Piece { w, slots, slots_of, output: first + 64 * n };
                                let ahead = (&mut next, share);
                                // SAFETY: so many tokens are left of the group, and their sums.
                                unsafe {
                                    match x.width - token {
                                        $($tokens => run::<KIND, $tokens>(
                                            piece, blocks.clone(), x, token, sums, outputs, ahead,
                                        ),)*
                                        _ => run::<KIND, $most>(
                                            piece, blocks.clone(), x, token, sums, outputs, ahead,
                                        ),
                                    }
                                }
                            }
                        }
                    }
                }
                let tokens: usize = groups.map(|g| a.group(g).width).sum();
                for (t, sums) in sums.chunks_exact(outputs).take(tokens).enumerate() {
                    put(start + t, first, sums);
                }
            }

            /// 64 outputs of some blocks with T tokens of a group, from `token` on; meanwhile so many parts of what
            /// comes next are asked for.
            ///
            /// # Safety
            /// Blocks and outputs are in the strip, so many tokens in the group; `sums` has 64 for each token,
            /// `stride` apart.
            #[target_feature(enable = $features)]
            unsafe fn run<const KIND: u8, const T: usize>(
                p: Piece<'_>,
                blocks: Range<usize>,
                x: Group<'_>,
                token: usize,
                sums: &mut [f32],
                stride: usize,
                (next, share): (&mut Next<'_>, usize),
            ) {
                let Piece { w, output, .. } = p;
                debug_assert!(sums.len() >= (T - 1) * stride + 64);
                let sums = sums.as_mut_ptr();
                // SAFETY: the caller's promise: everything lies within the strip, the group and the sums.
                unsafe {
                    // Where registers are as wide as lines, before every product; else (AVX2) that was slower than some at
                    // once.
                    let times = if N == 1 { 4 * blocks.len() } else { 4 };
                    let mut fetches = (0..times).map(|n| share * (n + 1) / times - share * n / times);
                    for i in 0..4 {
                        if N > 1 {
                            next.fetch(fetches.next().unwrap_or(0));
                        }
                        for n in (0..N).step_by($together) {
                            let o = 16 * i + $outputs * n;
                            let mut totals = [[$set1_ps(0.0); T]; $together];
                            for h in 0..$together {
                                for t in 0..T {
                                    totals[h][t] = $loadu_ps(sums.add(t * stride + o + $outputs * h));
                                }
                            }
                            for (b, codes) in blocks.clone().zip(p.slots.iter().step_by(p.slots_of)) {
                                if N == 1 {
                                    next.fetch(fetches.next().unwrap_or(0));
                                }
                                let first = b * x.width + token;
                                let mut start = [$set1(0); T];
                                if KIND != Q4K {
                                    for t in 0..T {
                                        let sum = *x.sums.get_unchecked(first + t);
                                        start[t] = $set1(offset(KIND).wrapping_mul(sum));
                                    }
                                }
                                let mut dot = [if FROM_START { start } else { [$set1(0); T] }; $together];
                                let quads = x.quads.as_ptr().add(b * 8 * x.width + token);
                                let codes = codes.as_ptr().cast::<u8>().add(PIECE * i + 4 * $outputs * n);
                                $multiply::<KIND, T>(&mut dot, codes, quads, QUAD * x.width);
                                let at = w.data.as_ptr().add(w.block(b));
                                for h in 0..$together {
                                    let o = output + o + $outputs * h;
                                    let (scale, min) = if KIND == Q4K {
                                        let d = w.data.as_ptr().add(w.block(b / 8 * 8) - 4 * w.width + 2 * o);
                                        (
                                            $mul($halves(d), $octets(at.add(o))),
                                            $mul($halves(d.add(2 * w.width)), $octets(at.add(w.width + o))),
                                        )
                                    } else {
                                        ($halves(at.add(2 * o)), $set1_ps(0.0))
                                    };
                                    for t in 0..T {
                                        let x_scale = *x.scales.get_unchecked(first + t);
                                        let dot = $to_ps($finish(KIND, dot[h][t], start[t]));
                                        let total = $fma(dot, $mul(scale, $set1_ps(x_scale)), totals[h][t]);
                                        totals[h][t] = if KIND == Q4K {
                                            let x_sum = *x.sums.get_unchecked(first + t) as f32;
                                            $fnma(min, $set1_ps(x_scale * x_sum), total)
                                        } else {
                                            total
                                        };
                                    }
                                }
                            }
                            for h in 0..$together {
                                for t in 0..T {
                                    $storeu_ps(sums.add(t * stride + o + $outputs * h), totals[h][t]);
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
width!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
    16,
    1,
    12,
    (1 2 3 4 5 6 7 8 9 10 11),
    __m512i,
    __m512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_set1_epi8,
    _mm512_and_si512,
    _mm512_srli_epi16,
    _mm512_unpacklo_epi8,
    _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi16,
    _mm512_unpackhi_epi16,
    _mm512_set1_epi32,
    _mm512_cvtepi32_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_fnmadd_ps,
    true,
    |at: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
    |at: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))),
    multiply_avx512,
    |_: u8, sum, _| sum
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma,f16c",
    8,
    2,
    4,
    (1 2 3),
    __m256i,
    __m256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_set1_epi8,
    _mm256_and_si256,
    _mm256_srli_epi16,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_set1_epi32,
    _mm256_cvtepi32_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_fnmadd_ps,
    false,
    |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
    |at: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))),
    multiply_avx2,
    |kind: u8, sum, start| if kind == Q8 {
        sum
    } else {
        _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), start)
    }
);

/// The same for four outputs, by M.
#[cfg(target_arch = "aarch64")]
macro_rules! neon {
    ($name:ident, $multiply_name:ident, $features:literal, $multiply:ty, $from_start:literal) => {
        /// As on AVX-512, with four outputs in a register.
        ///
        /// # Safety
        /// Codes and inputs lie there.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $multiply_name<const KIND: u8, const T: usize>(
            dot: &mut [[int32x4_t; T]; 1],
            w: *const u8,
            x: *const [i8; QUAD],
            stride: usize,
        ) {
            for quad in 0..BLOCK / QUAD {
                // SAFETY: the caller's promise.
                unsafe {
                    let w = vld1q_s32(w.add(QUADS * quad).cast());
                    let w = if KIND == Q8 && <$multiply>::SIGNED { neon::signed(w) } else { w };
                    neon::multiply::<$multiply, T>(&mut dot[0], w, x.byte_add(stride * quad))
                }
            }
        }

        width!(
            $name,
            $features,
            4,
            1,
            12,
            (1 2 3 4 5 6 7 8 9 10 11),
            int32x4_t,
            float32x4_t,
            vld1q_s32,
            vst1q_s32,
            neon::set8,
            vandq_s32,
            shift,
            neon::low8,
            neon::high8,
            neon::low16,
            neon::high16,
            vdupq_n_s32,
            vcvtq_f32_s32,
            vld1q_f32,
            vst1q_f32,
            vdupq_n_f32,
            vmulq_f32,
            neon::fma,
            neon::fnma,
            $from_start,
            |at: *const u8| neon::f16(at),
            |at: *const u8| neon::bytes(at),
            $multiply_name,
            |kind: u8, sum, start| if $from_start || kind == Q8 { sum } else { vaddq_s32(sum, start) }
        );
    };
}
#[cfg(target_arch = "aarch64")]
neon!(plain, multiply_plain, "neon", Plain, false);
#[cfg(target_arch = "aarch64")]
neon!(dotprod, multiply_dotprod, "neon,dotprod", Dot, false);
#[cfg(target_arch = "aarch64")]
neon!(mixed, multiply_mixed, "neon,dotprod,i8mm", Mixed, true);
