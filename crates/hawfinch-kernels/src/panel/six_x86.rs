//! Products with panels of Q6_K on AVX2 and on AVX-512 with VNNI: exactly the sums of `scalar.rs`.

use std::arch::x86_64::*;

use super::operands::Operands;
use super::x86::{ONE_STREAM, multiply512, stored256, stored512};
use super::{Group, Kind, ROWS, SIX_BYTES, SIX_CODES, SIX_SCALES};
use crate::prefetch;

/// Sub-blocks of a record.
const SUB_BLOCKS: usize = 2 * Kind::Q6K.record_blocks();

/// P panels with T tokens, sixteen outputs a register.
///
/// # Safety
/// `o` was made for at least P panels of Q6_K, and T tokens of the group are left.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub unsafe fn tile512<const P: usize, const T: usize>(o: Operands<'_>) -> [[[f32; ROWS]; T]; P] {
    /// Bits of `b` where the first operand has ones, of `c` where it has zeros.
    const CHOOSE: i32 = 0xca;
    let fetch = P > 1 || T > ONE_STREAM;
    // A constant width makes the places of all tokens' inputs constant offsets.
    assert!(o.x.width == T && o.token == 0);
    let o = Operands { x: Group { width: T, ..o.x }, ..o };
    let mut sums = [[_mm512_setzero_ps(); T]; P];
    let (six, two, four) = (_mm512_set1_epi8(63), _mm512_set1_epi8(3), _mm512_set1_epi8(15));
    for n in 0..o.records {
        let mut at = [o.data; P];
        for p in 0..P {
            at[p] = at[p].wrapping_add(p * o.bytes + n * Kind::Q6K.record_bytes());
        }
        let ahead = o.ahead(n * Kind::Q6K.record_bytes(), P);
        for s in 0..SUB_BLOCKS {
            // SAFETY: all offsets lie within record n of each panel, halves of blocks and quads within the group.
            unsafe {
                let half = n * SUB_BLOCKS + s;
                let mut dot = [[_mm512_setzero_si512(); T]; P];
                for t in 0..T {
                    let start = _mm512_set1_epi32(o.half(half, t));
                    for p in 0..P {
                        dot[p][t] = start;
                    }
                }
                // Two bits of the fourth quad lie in each of the other three.
                let (mut w, mut fourth) = ([six; P], [six; P]);
                for quad in 0..3 {
                    for p in 0..P {
                        let from = at[p].add(SIX_CODES + SIX_BYTES * s + 64 * quad);
                        let both = _mm512_loadu_si512(from.cast());
                        if fetch {
                            prefetch::second(from.wrapping_add(ahead));
                        }
                        w[p] = _mm512_and_si512(both, six);
                        fourth[p] = match quad {
                            0 => _mm512_srli_epi16::<6>(both),
                            1 => {
                                let bits = _mm512_srli_epi16::<4>(both);
                                _mm512_ternarylogic_epi32::<CHOOSE>(two, fourth[p], bits)
                            }
                            _ => {
                                let bits = _mm512_srli_epi16::<2>(both);
                                let all = _mm512_ternarylogic_epi32::<CHOOSE>(four, fourth[p], bits);
                                _mm512_and_si512(all, six)
                            }
                        };
                    }
                    multiply512(&mut dot, &w, o.quads(4 * half + quad));
                }
                multiply512(&mut dot, &fourth, o.quads(4 * half + 3));
                for p in 0..P {
                    let from = at[p].add(SIX_SCALES + ROWS * s);
                    if s % 4 == 0 && fetch {
                        prefetch::second(from.wrapping_add(ahead));
                    }
                    let d = _mm512_cvtph_ps(_mm256_loadu_si256(at[p].cast()));
                    let of_half = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()));
                    let scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(of_half));
                    for t in 0..T {
                        let both = _mm512_mul_ps(scale, _mm512_set1_ps(o.block(half / 2, t).0));
                        sums[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][t]), both, sums[p][t]);
                    }
                }
            }
        }
    }
    stored512(sums)
}

/// P panels with T tokens, eight outputs a register.
///
/// # Safety
/// As [`tile512`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tile256<const P: usize, const T: usize>(o: Operands<'_>) -> [[[f32; ROWS]; T]; P] {
    let mut sums = [[[_mm256_setzero_ps(); 2]; T]; P];
    for n in 0..o.records {
        let ahead = o.ahead(n * Kind::Q6K.record_bytes(), P);
        for s in 0..SUB_BLOCKS {
            let half = n * SUB_BLOCKS + s;
            for p in 0..P {
                // SAFETY: all offsets lie within record n of each panel, halves of blocks and quads within the group.
                unsafe {
                    let at = o.data.add(p * o.bytes + n * Kind::Q6K.record_bytes());
                    let (codes, scales) = (at.add(SIX_CODES + SIX_BYTES * s), at.add(SIX_SCALES + ROWS * s));
                    if P > 1 || T > 1 {
                        for quad in 0..3 {
                            prefetch::second(codes.wrapping_add(64 * quad + ahead));
                        }
                        if s % 4 == 0 {
                            prefetch::second(scales.wrapping_add(ahead));
                        }
                    }
                    for h in 0..2 {
                        let w = fours256(codes.add(32 * h));
                        let d = _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * h).cast()));
                        let of_half = _mm_loadl_epi64(scales.add(8 * h).cast());
                        let scale = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(of_half)));
                        for t in 0..T {
                            let start = _mm256_set1_epi32(o.half(half, t));
                            let dot = _mm256_cvtepi32_ps(multiply256(w, o, half, t, start));
                            let both = _mm256_mul_ps(scale, _mm256_set1_ps(o.block(half / 2, t).0));
                            sums[p][t][h] = _mm256_fmadd_ps(dot, both, sums[p][t][h]);
                        }
                    }
                }
            }
        }
    }
    stored256(sums)
}

/// The codes of a sub-block of eight outputs, quad by quad.
///
/// # Safety
/// They lie there, 64 bytes apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn fours256(codes: *const u8) -> [__m256i; 4] {
    // SAFETY: the caller's promise.
    let w = [0, 64, 128].map(|at| unsafe { _mm256_loadu_si256(codes.add(at).cast()) });
    let part = |bits, mask| _mm256_and_si256(bits, _mm256_set1_epi8(mask));
    let low = _mm256_or_si256(part(_mm256_srli_epi16::<6>(w[0]), 3), part(_mm256_srli_epi16::<4>(w[1]), 12));
    let fourth = _mm256_or_si256(low, part(_mm256_srli_epi16::<2>(w[2]), 48));
    [part(w[0], 63), part(w[1], 63), part(w[2], 63), fourth]
}

/// `start` plus the products of a sub-block's codes with half `half` of token `t`.
///
/// # Safety
/// Half and token are within the group.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply256(w: [__m256i; 4], o: Operands<'_>, half: usize, t: usize, start: __m256i) -> __m256i {
    let of = |quad: usize| {
        // SAFETY: the caller's promise.
        let x = _mm256_set1_epi32(unsafe { o.quad(4 * half + quad, t) });
        _mm256_maddubs_epi16(w[quad], x)
    };
    let wide = |sum| _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    // Two quads are at most 4 * 63 * 127: they fit 16 bits.
    let (first, second) = (_mm256_add_epi16(of(0), of(1)), _mm256_add_epi16(of(2), of(3)));
    _mm256_add_epi32(_mm256_add_epi32(wide(first), wide(second)), start)
}
