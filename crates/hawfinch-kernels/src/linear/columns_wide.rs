//! Products with weights that lie input by input on AVX2, AVX-512 and NEON: exactly the sums of `columns.rs`.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::Matrix;
use super::columns::RUN;
use super::rows::decode_number;
#[cfg(target_arch = "x86_64")]
use super::widen_x86 as widen;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::{DType, Isa, Level, prefetch};

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
    match isa.level() {
        // SAFETY: an Isa exists only where the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::block(x, w, put) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::block(x, w, put) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe { with_neon::block(x, w, put) },
        _ => return false,
    }
    true
}

/// The loops for one register width: `$pieces` pieces of sixteen outputs at a time. `$load` widens as many numbers
/// of a format as a register holds.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $pieces:literal, $zero:path, $set1:path, $loadu:path,
     $storeu:path, $fma:path, $bf16:path, $f16:path) => {
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
                for j in 0..len {
                    for line in (0..P * PIECE * SIZE).step_by(64) {
                        prefetch::first(w.wrapping_add((j + AHEAD) * stride + line));
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

            #[target_feature(enable = $features)]
            unsafe fn tiles<const P: usize, const T: usize>(
                dtype: DType,
                w: *const u8,
                stride: usize,
                x: *const f32,
                k: usize,
            ) -> [[[f32; PIECE]; T]; P] {
                let fma = |w, x, sum| $fma(w, $set1(x), sum);
                let mut sums = [[[0f64; PIECE]; T]; P];
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
                            let mut lanes = [0f32; PIECE];
                            for n in 0..N {
                                // SAFETY: as many numbers as `lanes` has from there.
                                unsafe { $storeu(lanes.as_mut_ptr().add(n * $per), run[p][t][n]) };
                            }
                            for l in 0..PIECE {
                                sums[p][t][l] += f64::from(lanes[l]);
                            }
                        }
                    }
                }
                sums.map(|tokens| tokens.map(|sums| sums.map(|sum| sum as f32)))
            }

            #[target_feature(enable = $features)]
            pub fn block(x: &[f32], w: Matrix<'_>, put: &mut dyn FnMut(usize, usize, &[f32])) {
                let k = w.inputs;
                let size = w.dtype.block_bytes();
                let stride = size * w.outputs;
                assert!(w.data.len() >= k * stride);
                let mut j = 0;
                while j + PIECE <= w.outputs {
                    let pieces = if j + $pieces * PIECE <= w.outputs { $pieces } else { 1 };
                    let from = w.data.as_ptr().wrapping_add(j * size);
                    for (n, x) in x.chunks(MOST * k).enumerate() {
                        macro_rules! run {
                            ($tokens:literal) => {
                                if pieces == 1 {
                                    let (x, dtype) = (x.as_ptr(), w.dtype);
                                    // SAFETY: one piece is left of each row, so many tokens are in x.
                                    let out = unsafe { tiles::<1, $tokens>(dtype, from, stride, x, k) };
                                    out[0]
                                        .iter()
                                        .enumerate()
                                        .for_each(|(t, sums)| put(n * MOST + t, j, sums));
                                } else {
                                    // SAFETY: as above, for all pieces.
                                    let out = unsafe {
                                        tiles::<$pieces, $tokens>(w.dtype, from, stride, x.as_ptr(), k)
                                    };
                                    for (p, out) in out.iter().enumerate() {
                                        for (t, sums) in out.iter().enumerate() {
                                            put(n * MOST + t, j + p * PIECE, sums);
                                        }
                                    }
                                }
                            };
                        }
                        match x.len() / k {
                            1 => run!(1),
                            2 => run!(2),
                            3 => run!(3),
                            4 => run!(4),
                            5 => run!(5),
                            _ => run!(6),
                        }
                    }
                    j += pieces * PIECE;
                }
                // Outputs that fill no register.
                for j in j..w.outputs {
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

#[cfg(target_arch = "x86_64")]
width!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    __m512,
    16,
    4,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    widen::bf16_512,
    widen::f16_512
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma,f16c",
    __m256,
    8,
    1,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
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
    neon::zero_ps,
    vdupq_n_f32,
    vld1q_f32,
    vst1q_f32,
    neon::fma,
    neon::bf16,
    neon::f16
);
