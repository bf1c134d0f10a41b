//! Products with rows as they lie, for AVX2 and AVX-512: exactly the sums of [`crate::reduce::dot`].
//!
//! One token: four rows at a time, each a stream of its own, widened as they are loaded. More tokens: rows are
//! widened once into near memory, then tiles of rows × tokens are held in registers.

use std::arch::x86_64::*;

use super::{Matrix, rows::GROUP};
use crate::reduce::{LANES, fold};
use crate::{DType, Isa, Level, block};

/// How far ahead of the loads each stream is fetched, in bytes.
const AHEAD: usize = 2048;

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
                Level::Avx512 => unsafe { avx512::four(w.dtype, rows, x) },
                // SAFETY: as above.
                Level::Avx2 => unsafe { avx2::four(w.dtype, rows, x) },
                _ => return false,
            };
            for (r, mut sum) in sums.into_iter().enumerate().take(n) {
                for k in i / LANES * LANES..i {
                    let mut number = [0f32];
                    block::decode(w.dtype, &rows[r][size * k..size * (k + 1)], &mut number);
                    sum = number[0].mul_add(x[k], sum);
                }
                set(0, j + r, sum * w.scale);
            }
            j += n;
        }
        return true;
    }
    match isa.level() {
        // SAFETY: as above.
        Level::Avx512 => unsafe { avx512::tiles(x, w, first, count, set) },
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::tiles(x, w, first, count, set) },
        _ => return false,
    }
    true
}

/// Defines the loops for one register width. `$load` gives the `n`-th register of the sixteen numbers of
/// `$dtype` at a pointer.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:ident, $loadu:ident, $storeu:ident, $fma:ident,
     $bf16:expr, $f16:expr, $rows:literal, $tokens:literal) => {
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
                            // SAFETY: a prefetch may name any address.
                            let ahead = rows[r].as_ptr().wrapping_add(at * SIZE + AHEAD);
                            // SAFETY: as above.
                            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
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

            /// R rows with T tokens; `w` and `x` have rows of `k` numbers.
            #[inline]
            #[target_feature(enable = $features)]
            fn tile<const R: usize, const T: usize>(w: &[f32], x: &[f32], k: usize) -> [[f32; T]; R] {
                assert!(w.len() >= R * k && x.len() >= T * k);
                let mut acc = [[[$zero(); N]; T]; R];
                let whole = k / LANES * LANES;
                let (wp, xp) = (w.as_ptr(), x.as_ptr());
                let mut at = 0;
                while at < whole {
                    for n in 0..N {
                        let mut ws = [$zero(); R];
                        for r in 0..R {
                            // SAFETY: within row r.
                            ws[r] = unsafe { $loadu(wp.add(r * k + at + n * $per)) };
                        }
                        for t in 0..T {
                            // SAFETY: within token t.
                            let xs = unsafe { $loadu(xp.add(t * k + at + n * $per)) };
                            for r in 0..R {
                                acc[r][t][n] = $fma(ws[r], xs, acc[r][t][n]);
                            }
                        }
                    }
                    at += LANES;
                }
                let mut out = [[0f32; T]; R];
                for r in 0..R {
                    for t in 0..T {
                        let mut sum = folded(acc[r][t]);
                        for at in whole..k {
                            sum = w[r * k + at].mul_add(x[t * k + at], sum);
                        }
                        out[r][t] = sum;
                    }
                }
                out
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
                let k = w.inputs;
                let t = x.len() / k;
                let mut block = vec![0f32; GROUP.min(count) * k];
                let mut narrow = Vec::new();
                let mut put = |j: usize, r: usize, s: usize, v: f32| set(s, j + r, v * w.scale);
                for j in (first..first + count).step_by(GROUP) {
                    let n = GROUP.min(first + count - j);
                    for (r, row) in block.chunks_exact_mut(k).take(n).enumerate() {
                        decode(w, j + r, row, &mut narrow);
                    }
                    let mut r = 0;
                    while r + $rows <= n {
                        let rows = &block[r * k..(r + $rows) * k];
                        let mut s = 0;
                        while s + $tokens <= t {
                            let out = tile::<$rows, $tokens>(rows, &x[s * k..], k);
                            for (a, row) in out.iter().enumerate() {
                                row.iter().enumerate().for_each(|(b, v)| put(j, r + a, s + b, *v));
                            }
                            s += $tokens;
                        }
                        while s < t {
                            let out = tile::<$rows, 1>(rows, &x[s * k..], k);
                            out.iter().enumerate().for_each(|(a, v)| put(j, r + a, s, v[0]));
                            s += 1;
                        }
                        r += $rows;
                    }
                    while r < n {
                        for s in 0..t {
                            let out = tile::<1, 1>(&block[r * k..], &x[s * k..], k);
                            put(j, r, s, out[0][0]);
                        }
                        r += 1;
                    }
                }
            }
        }
    };
}

width!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    |p: *const u8| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
        p.cast()
    )))),
    |p: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
    4,
    6
);
width!(
    avx2,
    "avx2,fma,f16c",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    |p: *const u8| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(
        p.cast()
    )))),
    |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
    2,
    3
);
