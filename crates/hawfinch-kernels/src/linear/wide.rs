//! Products with rows as they lie, for AVX2, AVX-512 and NEON: exactly the sums of [`crate::reduce::dot`].
//!
//! Few tokens: four rows at a time, each a stream of its own, widened as they are loaded. More: `blocked.rs`.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::Matrix;
use super::rows::{by_width, decode_number};
#[cfg(target_arch = "x86_64")]
use super::widen_x86 as widen;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::reduce::{LANES, fold};
use crate::{DType, Isa, prefetch};

/// [`direct`], where there are registers enough.
#[cfg(target_arch = "x86_64")]
const DIRECT: usize = 4;
/// How far ahead of the loads each stream is fetched, in bytes: into the second cache, which has room for more
/// lines under way than the first.
const AHEAD: usize = 1024;
/// Numbers of a row that are multiplied before those of the next row.
const RUN: usize = 128;

/// Tokens that are multiplied with rows as they are widened.
pub fn direct(isa: Isa) -> usize {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        crate::Level::Avx512 => DIRECT,
        _ => 1,
    }
}

/// Outputs `first .. first + count` of every token before scaling, given to `put(token, first output, values)`. False
/// when this instruction set has no loops of its own.
pub fn rows(
    isa: Isa,
    x: &[f32],
    w: Matrix<'_>,
    first: usize,
    count: usize,
    put: &mut dyn FnMut(usize, usize, &[f32]),
) -> bool {
    let i = w.inputs;
    let t = x.len() / i;
    if t <= direct(isa) && matches!(w.dtype, DType::BF16 | DType::F16 | DType::F32) {
        let size = w.dtype.block_bytes();
        let bytes = w.row_bytes();
        let mut j = first;
        while j < first + count {
            let n = 4.min(first + count - j);
            // Fewer than four are left: the last one stands in for those that are missing.
            let rows: [&[u8]; 4] = std::array::from_fn(|r| &w.data[(j + r.min(n - 1)) * bytes..][..bytes]);
            let mut finish = |token: usize, mut sums: [f32; 4]| {
                if !i.is_multiple_of(LANES) {
                    for (row, sum) in rows.iter().zip(&mut sums) {
                        for k in i / LANES * LANES..i {
                            *sum = decode_number(w.dtype, &row[size * k..]).mul_add(x[token * i + k], *sum);
                        }
                    }
                }
                put(token, j, &sums[..n]);
            };
            macro_rules! run {
                ($width:ident) => {
                    // SAFETY: an Isa exists only where the machine has the instructions.
                    unsafe { $width::four(w.dtype, rows, x, &mut finish) }
                };
            }
            by_width!(isa, run, return false);
            j += n;
        }
        return true;
    }
    super::blocked::rows(isa, x, w, first, count, put)
}

/// Defines the loops for one register width. `$load` gives the `n`-th register of the sixteen numbers of
/// `$dtype` at a pointer.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:path, $loadu:path, $storeu:path, $fma:path,
     $bf16:path, $f16:path) => {
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

            /// Sums of four rows with each token, over the whole groups of sixteen, given to `put(token, sums)`. No more
            /// tokens than `DIRECT`.
            #[target_feature(enable = $features)]
            pub fn four(dtype: DType, rows: [&[u8]; 4], x: &[f32], put: &mut dyn FnMut(usize, [f32; 4])) {
                #[inline(always)]
                unsafe fn run<const SIZE: usize, const T: usize>(
                    rows: [&[u8]; 4],
                    x: &[f32],
                    load: impl Fn(*const u8) -> $reg,
                    fma: impl Fn($reg, $reg, $reg) -> $reg,
                    loadx: impl Fn(*const f32) -> $reg,
                    zero: $reg,
                ) -> [[Acc; 4]; T] {
                    let mut acc = [[[zero; N]; 4]; T];
                    let k = x.len() / T;
                    let whole = k / LANES * LANES;
                    assert!(rows.iter().all(|r| r.len() == k * SIZE));
                    // Rows follow each other: near their ends each stream goes on four rows further.
                    let ahead = |at: usize| {
                        let ahead = AHEAD + if at * SIZE + AHEAD < k * SIZE { 0 } else { 3 * k * SIZE };
                        rows.map(|row| row.as_ptr().wrapping_add(at * SIZE + ahead))
                    };
                    if T == 1 {
                        // One row after the other in runs of some lines, in which memory gives most.
                        for at in (0..whole).step_by(RUN) {
                            let end = whole.min(at + RUN);
                            let ahead = ahead(at);
                            for r in 0..4 {
                                let lines = (0..(end - at) * SIZE).step_by(64);
                                lines.for_each(|line| prefetch::second(ahead[r].wrapping_add(line)));
                                for at in (at..end).step_by(LANES) {
                                    for n in 0..N {
                                        let j = at + n * $per;
                                        // SAFETY: j + the register's numbers <= whole <= the length of both.
                                        let (w, x) = unsafe {
                                            (load(rows[r].as_ptr().add(j * SIZE)), loadx(x.as_ptr().add(j)))
                                        };
                                        acc[0][r][n] = fma(w, x, acc[0][r][n]);
                                    }
                                }
                            }
                        }
                        return acc;
                    }
                    let mut at = 0;
                    while at < whole {
                        if (at * SIZE).is_multiple_of(64) {
                            ahead(at).into_iter().for_each(prefetch::second);
                        }
                        for n in 0..N {
                            let j = at + n * $per;
                            let mut ws = [zero; 4];
                            for r in 0..4 {
                                // SAFETY: j + the register's numbers <= whole <= the length of all.
                                ws[r] = load(unsafe { rows[r].as_ptr().add(j * SIZE) });
                            }
                            for t in 0..T {
                                // SAFETY: as above, in token t.
                                let xs = loadx(unsafe { x.as_ptr().add(t * k + j) });
                                for r in 0..4 {
                                    acc[t][r][n] = fma(ws[r], xs, acc[t][r][n]);
                                }
                            }
                        }
                        at += LANES;
                    }
                    acc
                }
                macro_rules! tokens {
                    ($count:literal) => {{
                        let fma = |a, b, c| $fma(a, b, c);
                        // SAFETY: `run` keeps the pointer within x.
                        let loadx = |p: *const f32| unsafe { $loadu(p) };
                        let zero = $zero();
                        // SAFETY: `run` keeps the pointers within the rows and x.
                        let acc = unsafe {
                            match dtype {
                                DType::BF16 => run::<2, $count>(rows, x, |p| $bf16(p), fma, loadx, zero),
                                DType::F16 => run::<2, $count>(rows, x, |p| $f16(p), fma, loadx, zero),
                                _ => run::<4, $count>(rows, x, |p| $loadu(p.cast()), fma, loadx, zero),
                            }
                        };
                        for (t, acc) in acc.into_iter().enumerate() {
                            put(t, [folded(acc[0]), folded(acc[1]), folded(acc[2]), folded(acc[3])]);
                        }
                    }};
                }
                match x.len() * dtype.block_bytes() / rows[0].len() {
                    1 => tokens!(1),
                    2 => tokens!(2),
                    3 => tokens!(3),
                    4 => tokens!(4),
                    _ => unreachable!("no more tokens than DIRECT"),
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
    widen::f16_512
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
    widen::f16_256
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
    neon::f16
);
