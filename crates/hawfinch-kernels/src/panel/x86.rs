//! Products with panels on AVX2 and on AVX-512 with VNNI: exactly the sums of `scalar.rs`.

use std::arch::x86_64::*;

use super::operands::{Operands, Put, by_kind, give, kind_of};
pub use super::operands::{Q4, Q4K, Q6K, Q8, offset};
use super::{Group, Kind, QUAD, ROWS, STRIP, Strip, block_avx2, six_x86};
use crate::prefetch;

/// Tokens up to which a block is multiplied panel by panel: memory gives most when it is read in runs of some lines.
/// With more tokens, a panel's four inputs of each are worth loading once for all panels.
const FEW: usize = 2;

/// Tokens up to which a single panel is read as the processor finds it.
pub const ONE_STREAM: usize = 4;

/// Adds the products of P panels' bytes with four inputs of T tokens.
///
/// # Safety
/// `x` is the first of T tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub unsafe fn multiply512<const P: usize, const T: usize>(
    dot: &mut [[__m512i; T]; P],
    w: &[__m512i; P],
    x: *const [i8; QUAD],
) {
    if P > 1 {
        for t in 0..T {
            // SAFETY: the caller's promise.
            let x = _mm512_set1_epi32(unsafe { x.add(t).cast::<i32>().read_unaligned() });
            for p in 0..P {
                dot[p][t] = _mm512_dpbusd_epi32(dot[p][t], w[p], x);
            }
        }
        return;
    }
    // With so many tokens the compiler would load all broadcasts early and spill them: the operand in memory is
    // asked for by name.
    macro_rules! tokens {
        ($($t:literal)*) => {$(
            if $t < T {
                // SAFETY: reads four bytes of token $t, which the caller promises; changes one register.
                unsafe {
                    std::arch::asm!(
                        "vpdpbusd {sum}, {w}, dword ptr [{x} + {at}]{{1to16}}",
                        sum = inout(zmm_reg) dot[0][$t % T],
                        w = in(zmm_reg) w[0],
                        x = in(reg) x,
                        at = const 4 * $t,
                        options(pure, readonly, nostack, preserves_flags)
                    );
                }
            }
        )*};
    }
    tokens!(0 1 2 3 4 5 6 7 8 9 10 11);
}

/// P panels with T tokens, sixteen outputs a register.
///
/// # Safety
/// `o` was made for at least P panels, and T tokens of the group are left.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile512<const KIND: u8, const P: usize, const T: usize>(o: Operands<'_>) -> [[[f32; ROWS]; T]; P] {
    if KIND == Q6K {
        // SAFETY: the caller's promise.
        return unsafe { six_x86::tile512(o) };
    }
    let kind = const { kind_of(KIND) };
    let fetch = P > 1 || T > ONE_STREAM;
    assert!(o.x.width == T && o.token == 0);
    // A constant width makes the places of all tokens' inputs constant offsets.
    let o = Operands { x: Group { width: T, ..o.x }, ..o };
    let mut sums = [[_mm512_setzero_ps(); T]; P];
    let low = _mm512_set1_epi8(15);
    for n in 0..o.records {
        let mut at = [o.data; P];
        for p in 0..P {
            at[p] = at[p].wrapping_add(p * o.bytes + n * kind.record_bytes());
        }
        let ahead = o.ahead(n * kind.record_bytes(), P);
        for b in 0..kind.record_blocks() {
            let block = n * kind.record_blocks() + b;
            let mut dot = [[_mm512_setzero_si512(); T]; P];
            // SAFETY: all offsets lie within record n of each panel, block and quads within the group.
            unsafe {
                if KIND != Q4K {
                    for t in 0..T {
                        let start = _mm512_set1_epi32(offset(KIND).wrapping_mul(o.block(block, t).1));
                        for p in 0..P {
                            dot[p][t] = start;
                        }
                    }
                }
                let (codes, quads) = if KIND == Q8 {
                    (64 + 512 * b, 8)
                } else {
                    (kind.record_bytes() - kind.record_blocks() * 256 + 256 * b, 4)
                };
                // A line of codes: of one quad, or of two.
                let load = |p: usize, quad: usize| {
                    let from = at[p].add(codes + 64 * quad);
                    if fetch {
                        prefetch::second(from.wrapping_add(ahead));
                    }
                    let codes = _mm512_loadu_si512(from.cast());
                    if KIND == Q8 {
                        [codes, codes]
                    } else {
                        [codes, _mm512_srli_epi16::<4>(codes)].map(|codes| _mm512_and_si512(codes, low))
                    }
                };
                if T <= FEW {
                    for p in 0..P {
                        let dot = std::array::from_mut(&mut dot[p]);
                        for quad in 0..quads {
                            let [w, high] = load(p, quad);
                            multiply512(dot, &[w], o.quads(block * 8 + quad));
                            if KIND != Q8 {
                                multiply512(dot, &[high], o.quads(block * 8 + quad + 4));
                            }
                        }
                    }
                } else {
                    for quad in 0..quads {
                        let (mut w, mut high) = ([low; P], [low; P]);
                        for p in 0..P {
                            [w[p], high[p]] = load(p, quad);
                        }
                        multiply512(&mut dot, &w, o.quads(block * 8 + quad));
                        if KIND != Q8 {
                            multiply512(&mut dot, &high, o.quads(block * 8 + quad + 4));
                        }
                    }
                }
                for p in 0..P {
                    if KIND == Q4K {
                        let halves = |at: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()));
                        let bytes = |at: *const u8| {
                            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
                        };
                        let scale = _mm512_mul_ps(halves(at[p]), bytes(at[p].add(64 + 32 * b)));
                        let min = _mm512_mul_ps(halves(at[p].add(32)), bytes(at[p].add(64 + 32 * b + 16)));
                        for t in 0..T {
                            let (x_scale, x_sum) = o.block(block, t);
                            let both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
                            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][t]), both, sums[p][t]);
                            let x = _mm512_set1_ps(x_scale * x_sum as f32);
                            sums[p][t] = _mm512_fnmadd_ps(min, x, sum);
                        }
                    } else {
                        let scale = _mm512_cvtph_ps(_mm256_loadu_si256(at[p].add(32 * b).cast()));
                        if b == 0 && fetch {
                            prefetch::second(at[p].wrapping_add(ahead));
                        }
                        for t in 0..T {
                            let both = _mm512_mul_ps(scale, _mm512_set1_ps(o.block(block, t).0));
                            sums[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][t]), both, sums[p][t]);
                        }
                    }
                }
            }
        }
    }
    stored512(sums)
}

/// Registers as numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn stored512<const P: usize, const T: usize>(sums: [[__m512; T]; P]) -> [[[f32; ROWS]; T]; P] {
    let mut out = [[[0f32; ROWS]; T]; P];
    for p in 0..P {
        for t in 0..T {
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(out[p][t].as_mut_ptr(), sums[p][t]) };
        }
    }
    out
}

/// P panels with T tokens, eight outputs a register; more than one token with one panel.
///
/// # Safety
/// As [`tile512`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile256<const KIND: u8, const P: usize, const T: usize>(o: Operands<'_>) -> [[[f32; ROWS]; T]; P] {
    if KIND == Q6K {
        // SAFETY: the caller's promise.
        return unsafe { six_x86::tile256::<P, T>(o) };
    }
    const { assert!(T == 1 || P == 1) };
    let kind = const { kind_of(KIND) };
    let fetch = P > 1 || T > 1;
    let mut sums = [[[_mm256_setzero_ps(); 2]; T]; P];
    let ones = _mm256_set1_epi16(1);
    let codes_of = if KIND == Q8 { 512 } else { 256 };
    for n in 0..o.records {
        let ahead = o.ahead(n * kind.record_bytes(), P);
        for b in 0..kind.record_blocks() {
            let block = n * kind.record_blocks() + b;
            for p in 0..P {
                // SAFETY: all offsets lie within record n of each panel, block and quads within the group.
                unsafe {
                    let at = o.data.add(p * o.bytes + n * kind.record_bytes());
                    let codes = at.add(kind.record_bytes() - (kind.record_blocks() - b) * codes_of);
                    if fetch {
                        for line in (0..codes_of).step_by(64) {
                            prefetch::second(codes.wrapping_add(line + ahead));
                        }
                    }
                    let mut dot = [[_mm256_setzero_si256(); 2]; T];
                    if T == 1 {
                        dot[0] = one256::<KIND>(codes, o, block);
                    } else {
                        let (x, stride) = (o.quads(block * 8), size_of::<[i8; QUAD]>() * o.x.width);
                        let several = if KIND == Q8 {
                            block_avx2::panel_eights::<T>(codes, x, stride)
                        } else {
                            block_avx2::panel_fours::<T>(codes, x, stride)
                        };
                        dot.copy_from_slice(&several[..T]);
                    }
                    if KIND != Q8 {
                        for t in 0..T {
                            let start = _mm256_set1_epi32(offset(KIND).wrapping_mul(o.block(block, t).1));
                            dot[t] = dot[t].map(|dot| _mm256_add_epi32(_mm256_madd_epi16(dot, ones), start));
                        }
                    }
                    for h in 0..2 {
                        let halves = |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * h).cast()));
                        if KIND == Q4K {
                            let bytes = |at: *const u8| {
                                let bytes = _mm_loadl_epi64(at.add(8 * h).cast());
                                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
                            };
                            let scale = _mm256_mul_ps(halves(at), bytes(at.add(64 + 32 * b)));
                            let min = _mm256_mul_ps(halves(at.add(32)), bytes(at.add(64 + 32 * b + 16)));
                            for t in 0..T {
                                let (x_scale, x_sum) = o.block(block, t);
                                let x_scale = _mm256_set1_ps(x_scale);
                                let both = _mm256_mul_ps(scale, x_scale);
                                let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][h]), both, sums[p][t][h]);
                                let x = _mm256_mul_ps(x_scale, _mm256_cvtepi32_ps(_mm256_set1_epi32(x_sum)));
                                sums[p][t][h] = _mm256_fnmadd_ps(min, x, sum);
                            }
                        } else {
                            let scale = halves(at.add(32 * b));
                            for t in 0..T {
                                let both = _mm256_mul_ps(scale, _mm256_set1_ps(o.block(block, t).0));
                                sums[p][t][h] =
                                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][h]), both, sums[p][t][h]);
                            }
                        }
                    }
                }
            }
        }
    }
    stored256(sums)
}

/// A block of a panel with one token, as [`block_avx2`] with more.
///
/// # Safety
/// Codes and block lie there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn one256<const KIND: u8>(codes: *const u8, o: Operands<'_>, block: usize) -> [__m256i; 2] {
    let mut dot = [_mm256_setzero_si256(); 2];
    let low = _mm256_set1_epi8(15);
    // SAFETY: the caller's promise.
    unsafe {
        for quad in 0..if KIND == Q8 { 8 } else { 4 } {
            let x = _mm256_set1_epi32(o.quad(block * 8 + quad, 0));
            for h in 0..2 {
                let w = _mm256_loadu_si256(codes.add(64 * quad + 32 * h).cast());
                if KIND == Q8 {
                    dot[h] = block_avx2::add::<KIND>(dot[h], w, x);
                } else {
                    let y = _mm256_set1_epi32(o.quad(block * 8 + quad + 4, 0));
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                    dot[h] = block_avx2::add::<KIND>(dot[h], _mm256_and_si256(w, low), x);
                    dot[h] = block_avx2::add::<KIND>(dot[h], high, y);
                }
            }
        }
    }
    dot
}

/// Registers as numbers.
#[inline]
#[target_feature(enable = "avx")]
pub fn stored256<const P: usize, const T: usize>(sums: [[[__m256; 2]; T]; P]) -> [[[f32; ROWS]; T]; P] {
    let mut out = [[[0f32; ROWS]; T]; P];
    for p in 0..P {
        for t in 0..T {
            for h in 0..2 {
                // SAFETY: eight numbers of sixteen.
                unsafe { _mm256_storeu_ps(out[p][t].as_mut_ptr().add(8 * h), sums[p][t][h]) };
            }
        }
    }
    out
}

/// A strip with all tokens of a group; `streams`: few tokens with several panels at a time, each fetched by name.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn avx512(w: Strip<'_>, x: Group<'_>, streams: bool, put: Put<'_>) {
    by_kind!(w, group512, x, streams, put);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn group512<const KIND: u8>(w: Strip<'_>, x: Group<'_>, streams: bool, put: Put<'_>) {
    let count = w.width;
    let mut p = 0;
    while p < count {
        // Panels × tokens whose sums fit the 32 registers beside the operands.
        macro_rules! run {
            ($panels:literal, $tokens:literal) => {{
                const P: usize = $panels;
                let n = if p + P <= count { P } else { 1 };
                let o = Operands::new(w, p, n, x, 0);
                // SAFETY: the operands are of so many panels, the group has so many tokens.
                unsafe {
                    if n == P {
                        give(p, 0, &tile512::<KIND, P, $tokens>(o), put);
                    } else {
                        give(p, 0, &tile512::<KIND, 1, $tokens>(o), put);
                    }
                }
                p += n;
            }};
        }
        match x.width {
            1 if !streams => run!(1, 1),
            2 if !streams => run!(1, 2),
            3 if !streams => run!(1, 3),
            4 if !streams => run!(1, 4),
            1 => run!(4, 1),
            2 => run!(4, 2),
            3 => run!(2, 3),
            4 => run!(2, 4),
            5 => run!(2, 5),
            6 => run!(2, 6),
            7 => run!(1, 7),
            8 => run!(1, 8),
            9 => run!(1, 9),
            10 => run!(1, 10),
            11 => run!(1, 11),
            _ => run!(1, 12),
        }
    }
}

/// As [`avx512`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn avx2(w: Strip<'_>, x: Group<'_>, streams: bool, put: Put<'_>) {
    by_kind!(w, group256, x, streams, put);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn group256<const KIND: u8>(w: Strip<'_>, x: Group<'_>, streams: bool, put: Put<'_>) {
    let count = w.width;
    let mut p = 0;
    while p < count {
        // One token: as many streams as the strip has panels, or one. More: a panel, whose sums fit the 16 registers.
        let n = if streams && x.width == 1 && p + STRIP <= count { STRIP } else { 1 };
        for token in (0..x.width).step_by(block_avx2::MOST) {
            let o = Operands::new(w, p, n, x, token);
            macro_rules! run {
                ($panels:expr, $tokens:literal) => {{
                    // SAFETY: the operands are of so many panels, and so many tokens are left.
                    let sums = unsafe { tile256::<KIND, { $panels }, $tokens>(o) };
                    give(p, token, &sums, put);
                }};
            }
            match x.width - token {
                1 if n == STRIP => run!(STRIP, 1),
                1 => run!(1, 1),
                2 => run!(1, 2),
                3 => run!(1, 3),
                _ => run!(1, 4),
            }
        }
        p += n;
    }
}
