//! Loops over panels in registers. Numbers of f32, for AVX2, AVX-512 and NEON: both numbers of a pair are widened, and
//! multiplied one after the other. Pairs, by AVX512-BF16: one instruction for both.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::tokens::Line;
use super::{BLOCK_BYTES, DEPTH, HALF, Next, ROWS, Strip, Tokens, scalar};
use crate::{Isa, Level, prefetch};

/// How far ahead a panel is fetched where few tokens are multiplied: as long as memory takes to answer.
const AHEAD: usize = 2048;

/// Sums of every panel and token, `[panel, token, output]`.
pub fn strip(isa: Isa, strip: Strip<'_>, x: &Tokens, sums: &mut [[f32; ROWS]]) {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an Isa exists only where the machine has the instructions.
        Level::Avx512 => unsafe { avx512::strip(strip, x, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::strip(strip, x, sums) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe { neon::strip(strip, x, sums) },
        _ => scalar::strip(strip, x, sums),
    }
}

/// The same by AVX512-BF16.
///
/// # Safety
/// The machine has the instructions.
#[cfg(target_arch = "x86_64")]
pub unsafe fn strip_of_pairs(strip: Strip<'_>, x: &Tokens, sums: &mut [[f32; ROWS]]) {
    // SAFETY: the caller's promise.
    unsafe { pairs::strip(strip, x, sums) }
}

/// Defines the loops for one register width. `$load` gives a register of pairs of as many outputs as it holds sums,
/// `$multiply` adds their products with a token's pair, of which `$lines` lines hold a block. With one token `$streams` panels are
/// read at a time.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:path, $loadu:path, $storeu:path,
     $load:path, $multiply:path, lines: $lines:literal, streams: $streams:literal, halves: $halves:literal,
     tokens: $most:literal, $($tokens:literal)*) => {
        mod $name {
            use super::*;

            /// Registers of sixteen outputs.
            const N: usize = HALF / $per;

            /// # Safety
            /// The machine has the instructions.
            #[target_feature(enable = $features)]
            pub unsafe fn strip(strip: Strip<'_>, x: &Tokens, sums: &mut [[f32; ROWS]]) {
                let Strip { width, blocks, data } = strip;
                let panel_bytes = blocks * BLOCK_BYTES;
                if $streams == 2 && x.tokens() == 1 && width == 2 {
                    let (w, x) = (data.as_ptr(), x.group(0).lines.as_ptr());
                    // SAFETY: two panels, a token and their sums are there.
                    return unsafe {
                        tile::<1, 2, 2>(w, x, 1, blocks, sums.as_mut_ptr(), true, (&mut Next::new(&[]), 0))
                    };
                }
                // Of a single tile nothing need be kept.
                let depth = if x.tokens() <= $most { blocks } else { DEPTH };
                let tiles = x.groups().map(|g| g.width.div_ceil($most)).sum::<usize>();
                for (panel, sums) in data.chunks_exact(panel_bytes).zip(sums.chunks_exact_mut(x.tokens())) {
                    for from in (0..blocks).step_by(depth) {
                        let count = depth.min(blocks - from);
                        let (w, rest) = panel[from * BLOCK_BYTES..].split_at(count * BLOCK_BYTES);
                        let mut next = Next::new(&rest[..rest.len().min(depth * BLOCK_BYTES)]);
                        let share = next.lines.div_ceil(tiles * count * (2 / $halves));
                        for group in x.groups() {
                            let lines = &group.lines[$lines * from * group.width..][..$lines * count * group.width];
                            for (n, sums) in sums[group.first..][..group.width].chunks_mut($most).enumerate() {
                                for half in (0..2).step_by($halves) {
                                    let next = (&mut next, share);
                                    // SAFETY: so many blocks of so many tokens are there, and half of a panel from its
                                    // middle.
                                    unsafe {
                                        let (w, x) = (w.as_ptr().add(half * 64), lines.as_ptr().add($lines * n * $most));
                                        let to = sums.as_mut_ptr().cast::<f32>().add(half * HALF).cast();
                                        match sums.len() {
                                            $($tokens => {
                                                tile::<$tokens, 1, $halves>(w, x, group.width, count, to, from == 0, next)
                                            })*
                                            _ => unreachable!("tiles of so many tokens"),
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }

            /// Adds to the sums of S panels, H halves of each, with T tokens, or where they `begin` to nothing, the products of some
            /// blocks.
            ///
            /// # Safety
            /// `w` has so many blocks of S panels; `x` T tokens of each block, those of one block `width` tokens after those of the
            /// one before; `sums` is `[panel, token]`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const T: usize, const S: usize, const H: usize>(
                w: *const u8,
                x: *const Line,
                width: usize,
                blocks: usize,
                sums: *mut [f32; ROWS],
                begin: bool,
                (next, share): (&mut Next, usize),
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut acc = [[[[$zero(); N]; H]; S]; T];
                    if !begin {
                        for t in 0..T {
                            for s in 0..S {
                                for h in 0..H {
                                    for n in 0..N {
                                        let sums = sums.add(s * T + t).cast::<f32>();
                                        acc[t][s][h][n] = $loadu(sums.add(h * HALF + n * $per));
                                    }
                                }
                            }
                        }
                    }
                    for b in 0..blocks {
                        next.fetch(share);
                        let (w, x) = (w.add(b * BLOCK_BYTES), x.add($lines * b * width).cast::<u32>());
                        for p in 0..HALF {
                            for s in 0..S {
                                for h in 0..H {
                                    let w = w.add(s * blocks * BLOCK_BYTES + h * 64 + p * 128);
                                    if S > 1 {
                                        prefetch::first(w.wrapping_add(AHEAD));
                                    }
                                    for n in 0..N {
                                        let w = w.add(n * 4 * $per);
                                        let w = $load(w);
                                        for t in 0..T {
                                            let sum = &mut acc[t][s][h][n];
                                            *sum = $multiply(w, x.add($lines * (t * HALF + p)), *sum);
                                        }
                                    }
                                }
                            }
                        }
                    }
                    for t in 0..T {
                        for s in 0..S {
                            for h in 0..H {
                                for n in 0..N {
                                    let sums = sums.add(s * T + t).cast::<f32>();
                                    $storeu(sums.add(h * HALF + n * $per), acc[t][s][h][n]);
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
    pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps,
    load_pairs, multiply_pairs, lines: 1, streams: 1, halves: 2, tokens: 8, 1 2 3 4 5 6 7 8
);
#[cfg(target_arch = "x86_64")]
width!(
    avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps,
    load512, multiply512, lines: 2, streams: 2, halves: 2, tokens: 8, 1 2 3 4 5 6 7 8
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2, "avx2,fma", __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, load256, multiply256, lines: 2,
    streams: 2, halves: 1, tokens: 4, 1 2 3 4
);
#[cfg(target_arch = "aarch64")]
width!(
    neon, "neon", float32x4_t, 4, zero128, vld1q_f32, vst1q_f32, load128, multiply128, lines: 2, streams: 2, halves: 1,
    tokens: 4, 1 2 3 4
);

/// Pairs of sixteen outputs.
///
/// # Safety
/// They lie there.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_pairs(w: *const u8) -> __m512bh {
    // SAFETY: the caller's promise; any bits are bf16.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.cast())) }
}

/// Their products with a token's pair, added.
///
/// # Safety
/// `x` is a pair.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_pairs(w: __m512bh, x: *const u32, sum: __m512) -> __m512 {
    // SAFETY: the caller's promise; any bits are bf16.
    let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32((*x).cast_signed())) };
    _mm512_dpbf16_ps(sum, w, x)
}

/// Defines, for one width of numbers, what loads pairs and widens both numbers, and what multiplies them with a token's, the
/// second first.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! numbers {
    ($load:ident, $multiply:ident, $features:literal, $reg:ty, $first:expr, $second:expr, $fma:expr) => {
        /// # Safety
        /// A register of pairs lies there.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $load(w: *const u8) -> [$reg; 2] {
            // SAFETY: the caller's promise.
            unsafe { [$first(w), $second(w)] }
        }

        /// # Safety
        /// `x` is two numbers of f32.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $multiply([first, second]: [$reg; 2], x: *const u32, sum: $reg) -> $reg {
            // Each read alone, so that it is broadcast from memory.
            // SAFETY: the caller's promise.
            let [a, b] = unsafe { [*x.cast::<f32>(), *x.cast::<f32>().add(1)] };
            $fma(first, a, $fma(second, b, sum))
        }
    };
}

#[cfg(target_arch = "x86_64")]
numbers!(
    load512,
    multiply512,
    "avx512f",
    __m512,
    |w: *const u8| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(w.cast()))),
    |w: *const u8| {
        let high = _mm512_set1_epi32(0xFFFF_0000u32.cast_signed());
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(w.cast()), high))
    },
    |w, x, sum| _mm512_fmadd_ps(w, _mm512_set1_ps(x), sum)
);
#[cfg(target_arch = "x86_64")]
numbers!(
    load256,
    multiply256,
    "avx2,fma",
    __m256,
    |w: *const u8| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(w.cast()))),
    |w: *const u8| {
        let high = _mm256_set1_epi32(0xFFFF_0000u32.cast_signed());
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(w.cast()), high))
    },
    |w, x, sum| _mm256_fmadd_ps(w, _mm256_set1_ps(x), sum)
);
#[cfg(target_arch = "aarch64")]
numbers!(
    load128,
    multiply128,
    "neon",
    float32x4_t,
    |w: *const u8| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u8(vld1q_u8(w)))),
    |w: *const u8| {
        let words = vreinterpretq_u32_u8(vld1q_u8(w));
        vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xFFFF_0000)))
    },
    |w, x, sum| vfmaq_n_f32(sum, w, x)
);

#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
fn zero128() -> float32x4_t {
    vdupq_n_f32(0.0)
}
