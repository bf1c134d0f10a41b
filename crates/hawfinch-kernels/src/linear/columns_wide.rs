//! Products with weights that lie input by input on AVX2, AVX-512 and NEON: exactly the sums of `columns.rs`.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::Matrix;
use super::columns::RUN;
use super::rows::{by_width, decode_number};
#[cfg(target_arch = "x86_64")]
use super::widen_x86 as widen;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::{DType, Isa, prefetch};

/// Outputs of one piece of a row.
const PIECE: usize = 16;
/// Tokens held in registers.
const MOST: usize = 6;
/// Rows that are asked for ahead; behind the last row of a tile the next tile begins.
const AHEAD: usize = 24;

/// Outputs of all tokens before scaling, given to `put(token, first output, values)`. False when this instruction set
/// or number format has no loops of its own.
pub fn block(isa: Isa, x: &[f32], w: Matrix<'_>, put: &mut dyn FnMut(usize, usize, &[f32])) -> bool {
    if !matches!(w.dtype, DType::BF16 | DType::F16 | DType::F32) {
        return false;
    }
    macro_rules! run {
        ($width:ident) => {
            // SAFETY: an Isa exists only where the machine has the instructions.
            unsafe { $width::block(x, w, put) }
        };
    }
    by_width!(isa, run, return false);
    true
}

/// The loops for one register width: `$one` pieces of sixteen outputs at a time for one token, `$few` for two, `$many` for
/// more, so that the sums of a run stay in registers.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $one:literal, $few:literal, $many:literal, $zero:path, $set1:path,
     $loadu:path, $storeu:path, $fma:path, $zero_wide:path, $add_wide:path, $widen:path, $narrow:path, $bf16:path,
     $f16:path) => {
        mod $name {
            use super::*;

            /// Registers of a piece.
            const N: usize = PIECE / $per;

            /// P pieces with T tokens.
            ///
            /// # Safety
            /// `w` is the first of P pieces in the first of `len` rows that lie `stride` bytes apart, numbers of
            /// SIZE bytes; `x` is the first of T rows of `k` numbers, of which `len` are
            /// left.
            #[inline(always)]
            unsafe fn tile<const P: usize, const T: usize, const SIZE: usize>(
                w: *const u8,
                stride: usize,
                x: *const f32,
                k: usize,
                len: usize,
                load: impl Fn(*const u8) -> $reg,
                fma: impl Fn($reg, f32, $reg) -> $reg,
                zero: $reg,
            ) -> [[[$reg; N]; T]; P] {
                let mut sums = [[[zero; N]; T]; P];
                let fetch = prefetch::by_name();
                for j in 0..len {
                    if fetch {
                        for line in (0..P * PIECE * SIZE).step_by(64) {
                            prefetch::first(w.wrapping_add((j + AHEAD) * stride + line));
                        }
                    }
                    let mut ws = [[zero; N]; P];
                    for p in 0..P {
                        for n in 0..N {
                            // SAFETY: within row j.
                            ws[p][n] = load(unsafe { w.add(j * stride + (p * PIECE + n * $per) * SIZE) });
                        }
                    }
                    for t in 0..T {
                        // SAFETY: within token t.
                        let x = unsafe { *x.add(t * k + j) };
                        for p in 0..P {
                            for n in 0..N {
                                sums[p][t][n] = fma(ws[p][n], x, sums[p][t][n]);
                            }
                        }
                    }
                }
                sums
            }

            /// The sums of P pieces with T tokens, `[t, output]`.
            ///
            /// # Safety
            /// As `tile`, with `k` rows.
            #[target_feature(enable = $features)]
            unsafe fn tiles<const P: usize, const T: usize>(
                dtype: DType,
                w: *const u8,
                stride: usize,
                x: *const f32,
                k: usize,
            ) -> [[[f32; PIECE]; P]; T] {
                let fma = |w, x, sum| $fma(w, $set1(x), sum);
                let mut sums = [[[[$zero_wide(); 2]; N]; T]; P];
                for from in (0..k).step_by(RUN) {
                    let len = RUN.min(k - from);
                    // SAFETY: the caller's promise, from input `from` on.
                    let run = unsafe {
                        let (w, x) = (w.add(from * stride), x.add(from));
                        match dtype {
                            DType::BF16 => tile::<P, T, 2>(w, stride, x, k, len, |p| $bf16(p), fma, $zero()),
                            DType::F16 => tile::<P, T, 2>(w, stride, x, k, len, |p| $f16(p), fma, $zero()),
                            _ => tile::<P, T, 4>(w, stride, x, k, len, |p| $loadu(p.cast()), fma, $zero()),
                        }
                    };
                    for p in 0..P {
                        for t in 0..T {
                            for n in 0..N {
                                let [low, high] = $widen(run[p][t][n]);
                                sums[p][t][n][0] = $add_wide(sums[p][t][n][0], low);
                                sums[p][t][n][1] = $add_wide(sums[p][t][n][1], high);
                            }
                        }
                    }
                }
                let mut out = [[[0f32; PIECE]; P]; T];
                for p in 0..P {
                    for t in 0..T {
                        for n in 0..N {
                            // SAFETY: as many numbers as a piece has from there.
                            unsafe { $storeu(out[t][p].as_mut_ptr().add(n * $per), $narrow(sums[p][t][n])) };
                        }
                    }
                }
                out
            }

            #[target_feature(enable = $features)]
            pub fn block(x: &[f32], w: Matrix<'_>, put: &mut dyn FnMut(usize, usize, &[f32])) {
                let k = w.inputs;
                let size = w.dtype.block_bytes();
                let stride = size * w.outputs;
                assert!(w.data.len() >= k * stride);
                for (n, x) in x.chunks(MOST * k).enumerate() {
                    let tokens = x.len() / k;
                    let most = match tokens {
                        1 => $one,
                        2 => $few,
                        _ => $many,
                    };
                    let mut j = 0;
                    while j + PIECE <= w.outputs {
                        let pieces = if j + most * PIECE <= w.outputs { most } else { 1 };
                        let from = w.data.as_ptr().wrapping_add(j * size);
                        macro_rules! run {
                            ($pieces:literal, $tokens:literal) => {{
                                // SAFETY: so many pieces are left of each row, so many tokens are in x.
                                let out = unsafe {
                                    tiles::<$pieces, $tokens>(w.dtype, from, stride, x.as_ptr(), k)
                                };
                                out.iter()
                                    .enumerate()
                                    .for_each(|(t, sums)| put(n * MOST + t, j, sums.as_flattened()));
                            }};
                        }
                        match (pieces > 1, tokens) {
                            (true, 1) => run!($one, 1),
                            (true, 2) => run!($few, 2),
                            (true, 3) => run!($many, 3),
                            (true, 4) => run!($many, 4),
                            (true, 5) => run!($many, 5),
                            (true, _) => run!($many, 6),
                            (false, 1) => run!(1, 1),
                            (false, 2) => run!(1, 2),
                            (false, 3) => run!(1, 3),
                            (false, 4) => run!(1, 4),
                            (false, 5) => run!(1, 5),
                            (false, _) => run!(1, 6),
                        }
                        j += pieces * PIECE;
                    }
                }
                // Outputs that fill no register.
                for j in w.outputs / PIECE * PIECE..w.outputs {
                    for (t, x) in x.chunks_exact(k).enumerate() {
                        let number = |r: usize| decode_number(w.dtype, &w.data[r * stride + j * size..]);
                        let run = |(n, x): (usize, &[f32])| {
                            let step = |sum: f32, (r, x): (usize, &f32)| number(n * RUN + r).mul_add(*x, sum);
                            f64::from(x.iter().enumerate().fold(0f32, step))
                        };
                        let sum = x.chunks(RUN).enumerate().map(run).fold(0f64, |a, b| a + b) as f32;
                        put(t, j, &[sum]);
                    }
                }
            }
        }
    };
}

/// Sixteen numbers in f64.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn widen_512(v: __m512) -> [__m512d; 2] {
    [_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v))]
}

/// Back.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn narrow_512([low, high]: [__m512d; 2]) -> __m512 {
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high))
}

/// Eight numbers in f64.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn widen_256(v: __m256) -> [__m256d; 2] {
    [_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v))]
}

/// Back.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn narrow_256([low, high]: [__m256d; 2]) -> __m256 {
    _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low))
}

/// Four numbers in f64.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn widen_neon(v: float32x4_t) -> [float64x2_t; 2] {
    // SAFETY: every processor of this architecture has the instructions.
    unsafe { [vcvt_f64_f32(vget_low_f32(v)), vcvt_high_f64_f32(v)] }
}

/// Back.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn narrow_neon([low, high]: [float64x2_t; 2]) -> float32x4_t {
    // SAFETY: every processor of this architecture has the instructions.
    unsafe { vcvt_high_f32_f64(vcvt_f32_f64(low), high) }
}

/// Nothing yet.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn zero_wide_neon() -> float64x2_t {
    // SAFETY: every processor of this architecture has the instruction.
    unsafe { vdupq_n_f64(0.0) }
}

#[cfg(target_arch = "x86_64")]
width!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    __m512,
    16,
    4,
    4,
    4,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    _mm512_setzero_pd,
    _mm512_add_pd,
    widen_512,
    narrow_512,
    widen::bf16_512,
    widen::f16_512
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma,f16c",
    __m256,
    8,
    4,
    2,
    1,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    _mm256_setzero_pd,
    _mm256_add_pd,
    widen_256,
    narrow_256,
    widen::bf16_256,
    widen::f16_256
);
#[cfg(target_arch = "aarch64")]
width!(
    with_neon,
    "neon",
    float32x4_t,
    4,
    1,
    1,
    1,
    neon::zero_ps,
    vdupq_n_f32,
    vld1q_f32,
    vst1q_f32,
    neon::fma,
    zero_wide_neon,
    vaddq_f64,
    widen_neon,
    narrow_neon,
    neon::bf16,
    neon::f16
);
