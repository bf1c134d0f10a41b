//! Numbers of f32 in registers, for AVX2, AVX-512 and NEON: both numbers of a pair are widened, and multiplied one after
//! the other.

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

/// Defines the loops for one register width. `$first` and `$second` give a register of the first or second numbers of pairs.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:path, $loadu:path, $storeu:path, $set1:path, $fma:path,
     $first:path, $second:path, halves: $halves:literal, tokens: $most:literal, $($tokens:literal)*) => {
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
                if x.tokens() == 1 && width == 2 {
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
                            let lines = &group.lines[2 * from * group.width..][..2 * count * group.width];
                            for (n, sums) in sums[group.first..][..group.width].chunks_mut($most).enumerate() {
                                for half in (0..2).step_by($halves) {
                                    let next = (&mut next, share);
                                    // SAFETY: so many blocks of so many tokens are there, and half of a panel from its
                                    // middle.
                                    unsafe {
                                        let (w, x) = (w.as_ptr().add(half * 64), lines.as_ptr().add(2 * n * $most));
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
                        let (w, x) = (w.add(b * BLOCK_BYTES), x.add(2 * b * width).cast::<f32>());
                        for p in 0..HALF {
                            for s in 0..S {
                                for h in 0..H {
                                    let w = w.add(s * blocks * BLOCK_BYTES + h * 64 + p * 128);
                                    if S > 1 {
                                        prefetch::first(w.wrapping_add(AHEAD));
                                    }
                                    for n in 0..N {
                                        let w = w.add(n * 4 * $per);
                                        let (first, second) = ($first(w), $second(w));
                                        for t in 0..T {
                                            let x = x.add(2 * (t * HALF + p));
                                            let sum = &mut acc[t][s][h][n];
                                            *sum = $fma(second, $set1(*x.add(1)), *sum);
                                            *sum = $fma(first, $set1(*x), *sum);
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
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    first512,
    second512,
    halves: 2,
    tokens: 8,
    1 2 3 4 5 6 7 8
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    first256,
    second256,
    halves: 1,
    tokens: 4,
    1 2 3 4
);
#[cfg(target_arch = "aarch64")]
width!(neon, "neon", float32x4_t, 4, zero128, vld1q_f32, vst1q_f32, vdupq_n_f32, fma128, first128, second128,
    halves: 1, tokens: 4, 1 2 3 4);

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn first512(w: *const u8) -> __m512 {
    // SAFETY: 64 bytes, the callers' promise.
    let words = unsafe { _mm512_loadu_si512(w.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn second512(w: *const u8) -> __m512 {
    // SAFETY: as above.
    let words = unsafe { _mm512_loadu_si512(w.cast()) };
    _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xFFFF_0000u32.cast_signed())))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn first256(w: *const u8) -> __m256 {
    // SAFETY: 32 bytes, the callers' promise.
    let words = unsafe { _mm256_loadu_si256(w.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn second256(w: *const u8) -> __m256 {
    // SAFETY: as above.
    let words = unsafe { _mm256_loadu_si256(w.cast()) };
    _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000u32.cast_signed())))
}

#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
fn zero128() -> float32x4_t {
    vdupq_n_f32(0.0)
}

#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
fn fma128(a: float32x4_t, b: float32x4_t, sum: float32x4_t) -> float32x4_t {
    vfmaq_f32(sum, a, b)
}

#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
unsafe fn first128(w: *const u8) -> float32x4_t {
    // SAFETY: 16 bytes, the callers' promise.
    let words = unsafe { vreinterpretq_u32_u8(vld1q_u8(w)) };
    vreinterpretq_f32_u32(vshlq_n_u32::<16>(words))
}

#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
unsafe fn second128(w: *const u8) -> float32x4_t {
    // SAFETY: as above.
    let words = unsafe { vreinterpretq_u32_u8(vld1q_u8(w)) };
    vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xFFFF_0000)))
}
