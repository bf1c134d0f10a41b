//! Products with rows as they lie, for AVX2, AVX-512 and NEON: exactly the sums of [`crate::reduce::dot`].
//!
//! One token: four rows at a time, each a stream of its own, widened as they are loaded. More tokens: rows are
//! widened once into near memory, then tiles of rows × tokens are held in registers.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::Matrix;
use super::rows::{GROUP, decode_number};
#[cfg(target_arch = "x86_64")]
use super::widen_x86 as widen;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::reduce::{LANES, fold};
use crate::{DType, Isa, Level, prefetch};

/// Numbers of each row and token that tiles work through before the next: those of a tile stay in the nearest
/// cache, those of all tokens in the second.
const STRIP: usize = 512;
/// How far ahead of the loads each stream is fetched, in bytes: into the second cache, which has room for more
/// lines under way than the first.
const AHEAD: usize = 4096;

/// Outputs `first .. first + count` of every token, each given to `set(token, output, value)`. False when this
/// instruction set has no loops of its own.
pub fn rows(
    isa: Isa,
    x: &[f32],
    w: Matrix<'_>,
    first: usize,
    count: usize,
    set: &mut dyn FnMut(usize, usize, f32),
) -> bool {
    let i = w.inputs;
    let t = x.len() / i;
    if t == 1 && matches!(w.dtype, DType::BF16 | DType::F16 | DType::F32) {
        let size = w.dtype.block_bytes();
        let bytes = w.row_bytes();
        let mut j = first;
        while j < first + count {
            let n = 4.min(first + count - j);
            // Fewer than four are left: the last one stands in for those that are missing.
            let rows: [&[u8]; 4] = std::array::from_fn(|r| &w.data[(j + r.min(n - 1)) * bytes..][..bytes]);
            let sums = match isa.level() {
                // SAFETY: an Isa exists only where the machine has the instructions.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512::four(w.dtype, rows, x) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2::four(w.dtype, rows, x) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe {
                    with_neon::four(w.dtype, rows, x)
                },
                _ => return false,
            };
            for (r, mut sum) in sums.into_iter().enumerate().take(n) {
                for k in i / LANES * LANES..i {
                    sum = decode_number(w.dtype, &rows[r][size * k..]).mul_add(x[k], sum);
                }
                set(0, j + r, sum * w.scale);
            }
            j += n;
        }
        return true;
    }
    match isa.level() {
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::tiles(x, w, first, count, set) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::tiles(x, w, first, count, set) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe {
            with_neon::tiles(x, w, first, count, set)
        },
        _ => return false,
    }
    true
}

/// Defines the loops for one register width. `$load` gives the `n`-th register of the sixteen numbers of
/// `$dtype` at a pointer.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:path, $loadu:path, $storeu:path, $fma:path,
     $bf16:path, $f16:path, $rows:literal, $tokens:literal) => {
        mod $name {
            use super::*;

            /// Registers of sixteen numbers.
            const N: usize = LANES / $per;
            type Acc = [$reg; N];

            #[inline]
            #[target_feature(enable = $features)]
            fn folded(acc: Acc) -> f32 {
                let mut lanes = [0f32; LANES];
                for n in 0..N {
                    // SAFETY: as many numbers as `lanes` has from there.
                    unsafe { $storeu(lanes.as_mut_ptr().add(n * $per), acc[n]) };
                }
                fold(lanes)
            }

            /// Sums of four rows with one token, over the whole groups of sixteen.
            #[target_feature(enable = $features)]
            pub fn four(dtype: DType, rows: [&[u8]; 4], x: &[f32]) -> [f32; 4] {
                #[inline(always)]
                unsafe fn run<const SIZE: usize>(
                    rows: [&[u8]; 4],
                    x: &[f32],
                    load: impl Fn(*const u8) -> $reg,
                    fma: impl Fn($reg, $reg, $reg) -> $reg,
                    loadx: impl Fn(*const f32) -> $reg,
                    zero: $reg,
                ) -> [Acc; 4] {
                    let mut acc = [[zero; N]; 4];
                    let whole = x.len() / LANES * LANES;
                    assert!(rows.iter().all(|r| r.len() == x.len() * SIZE));
                    let mut at = 0;
                    while at < whole {
                        for r in 0..4 {
                            prefetch::second(rows[r].as_ptr().wrapping_add(at * SIZE + AHEAD));
                        }
                        for n in 0..N {
                            let k = at + n * $per;
                            // SAFETY: k + the register's numbers <= whole <= the length of all.
                            let xs = loadx(unsafe { x.as_ptr().add(k) });
                            for r in 0..4 {
                                // SAFETY: as above, in bytes.
                                let w = load(unsafe { rows[r].as_ptr().add(k * SIZE) });
                                acc[r][n] = fma(w, xs, acc[r][n]);
                            }
                        }
                        at += LANES;
                    }
                    acc
                }
                let zero = $zero();
                // SAFETY: `run` keeps the pointers within the rows and x.
                let acc = unsafe {
                    let fma = |a, b, c| $fma(a, b, c);
                    let loadx = |p: *const f32| $loadu(p);
                    match dtype {
                        DType::BF16 => run::<2>(rows, x, |p| $bf16(p), fma, loadx, zero),
                        DType::F16 => run::<2>(rows, x, |p| $f16(p), fma, loadx, zero),
                        _ => run::<4>(rows, x, |p| $loadu(p.cast()), fma, loadx, zero),
                    }
                };
                [folded(acc[0]), folded(acc[1]), folded(acc[2]), folded(acc[3])]
            }

            /// Adds to the sums of R rows with T tokens the products of `len` numbers, a multiple of sixteen.
            ///
            /// # Safety
            /// `w` has R and `x` has T rows of `k` numbers, of which `len` are left; `acc` holds R T groups of
            /// sixteen.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const T: usize>(
                w: *const f32,
                x: *const f32,
                k: usize,
                len: usize,
                sums: *mut f32,
            ) {
                let mut acc = [[[$zero(); N]; T]; R];
                for r in 0..R {
                    for t in 0..T {
                        for n in 0..N {
                            // SAFETY: within `sums`.
                            acc[r][t][n] = unsafe { $loadu(sums.add((r * T + t) * LANES + n * $per)) };
                        }
                    }
                }
                let mut at = 0;
                while at < len {
                    for n in 0..N {
                        let mut xs = [$zero(); T];
                        for t in 0..T {
                            // SAFETY: within token t.
                            xs[t] = unsafe { $loadu(x.add(t * k + at + n * $per)) };
                        }
                        for r in 0..R {
                            // SAFETY: within row r.
                            let ws = unsafe { $loadu(w.add(r * k + at + n * $per)) };
                            for t in 0..T {
                                acc[r][t][n] = $fma(ws, xs[t], acc[r][t][n]);
                            }
                        }
                    }
                    at += LANES;
                }
                for r in 0..R {
                    for t in 0..T {
                        for n in 0..N {
                            // SAFETY: within `sums`.
                            unsafe { $storeu(sums.add((r * T + t) * LANES + n * $per), acc[r][t][n]) };
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn decode(w: Matrix<'_>, row: usize, out: &mut [f32], narrow: &mut Vec<f32>) {
                w.decode_row(row, out, narrow);
            }

            #[target_feature(enable = $features)]
            pub fn tiles(
                x: &[f32],
                w: Matrix<'_>,
                first: usize,
                count: usize,
                set: &mut dyn FnMut(usize, usize, f32),
            ) {
                const { assert!(GROUP % $rows == 0) };
                let k = w.inputs;
                let tokens = x.len() / k;
                let whole = k / LANES * LANES;
                let mut block = vec![0f32; GROUP * k];
                let mut narrow = Vec::new();
                // [group of tokens][row][token of the group][lane]
                let mut sums = vec![0f32; GROUP * tokens.next_multiple_of($tokens) * LANES];
                for j in (first..first + count).step_by(GROUP) {
                    let n = GROUP.min(first + count - j);
                    for (r, row) in block.chunks_exact_mut(k).take(n).enumerate() {
                        decode(w, j + r, row, &mut narrow);
                    }
                    let rows = n.next_multiple_of($rows); // those beyond n hold other numbers, not used
                    sums.fill(0.0);
                    for at in (0..whole).step_by(STRIP) {
                        let len = STRIP.min(whole - at);
                        for r in (0..rows).step_by($rows) {
                            for s in (0..tokens).step_by($tokens) {
                                // SAFETY: rows r.., tokens s.. and the sums of both, from `at` on.
                                unsafe {
                                    let w = block.as_ptr().add(r * k + at);
                                    let x = x.as_ptr().add(s * k + at);
                                    let sums = sums.as_mut_ptr().add((s * GROUP + r * $tokens) * LANES);
                                    match tokens - s {
                                        1 => tile::<$rows, 1>(w, x, k, len, sums),
                                        2 => tile::<$rows, 2>(w, x, k, len, sums),
                                        _ => tile::<$rows, $tokens>(w, x, k, len, sums),
                                    }
                                }
                            }
                        }
                    }
                    for s in (0..tokens).step_by($tokens) {
                        let wide = $tokens.min(tokens - s);
                        for r in 0..n {
                            let from = r / $rows * $rows;
                            for t in 0..wide {
                                let at = s * GROUP + from * $tokens + (r - from) * wide + t;
                                let lanes: &[f32; LANES] =
                                    sums[at * LANES..][..LANES].try_into().expect("sixteen");
                                let (w_rest, x_rest) =
                                    (&block[r * k + whole..(r + 1) * k], &x[(s + t) * k + whole..]);
                                let sum = w_rest
                                    .iter()
                                    .zip(x_rest)
                                    .fold(fold(*lanes), |sum, (w, x)| w.mul_add(*x, sum));
                                set(s + t, j + r, sum * w.scale);
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
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    widen::bf16_512,
    widen::f16_512,
    8,
    3
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma,f16c",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    widen::bf16_256,
    widen::f16_256,
    2,
    3
);
#[cfg(target_arch = "aarch64")]
width!(
    with_neon,
    "neon",
    float32x4_t,
    4,
    neon::zero_ps,
    vld1q_f32,
    vst1q_f32,
    neon::fma,
    neon::bf16,
    neon::f16,
    2,
    3
);
