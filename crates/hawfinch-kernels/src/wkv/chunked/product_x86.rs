//! Small dense products of f32 on AVX2 and AVX-512: exactly the sums of `product.rs`.

use std::arch::x86_64::*;

use super::product::{Left, Start};
use crate::reduce::LANES;
use crate::{Isa, Level};

/// As [`super::product::product`]. False when this instruction set has no loops of its own.
#[inline(always)]
pub fn product(
    isa: Isa,
    (c, c_row): (&mut [f32], usize),
    a: Left<'_, f32>,
    (b, b_row): (&[f32], usize),
    [m, k, n]: [usize; 3],
    start: Start<'_, f32>,
) -> bool {
    if m == 0 || n == 0 || isa.level() < Level::Avx2 {
        return false;
    }
    assert!(c_row >= n && c.len() >= (m - 1) * c_row + n);
    assert!(k == 0 || a.data.len() > (m - 1) * a.row + (k - 1) * a.step);
    assert!(k == 0 || b.len() >= (k - 1) * b_row + n);
    let (kept, by) = match start {
        Start::Zero => (false, None),
        Start::Kept => (true, None),
        Start::Scaled(by) => (true, Some(&by[..m])),
    };
    let x = Operands { c_row, a_row: a.row, a_step: a.step, b_row, k, kept };
    let by = by.map_or(std::ptr::null(), <[f32]>::as_ptr);
    // SAFETY: an Isa exists only where the machine has the instructions; the sizes were checked.
    unsafe {
        match isa.level() {
            Level::Avx512 => avx512::all(c.as_mut_ptr(), a.data.as_ptr(), b.as_ptr(), by, m, n, &x),
            _ => avx2::all(c.as_mut_ptr(), a.data.as_ptr(), b.as_ptr(), by, m, n, &x),
        }
    }
    true
}

/// As [`super::product::dot`]. None when this instruction set has no loops of its own, or the numbers do not fill its
/// partial sums.
#[inline(always)]
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> Option<f32> {
    if a.len() != b.len() || !a.len().is_multiple_of(LANES) {
        return None;
    }
    match isa.level() {
        // SAFETY: an Isa exists only where the machine has the instructions; the sizes were checked.
        Level::Avx512 => Some(unsafe { dot512(a, b) }),
        // SAFETY: as above.
        Level::Avx2 => Some(unsafe { dot256(a, b) }),
        _ => None,
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn dot512(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for at in (0..a.len()).step_by(LANES) {
        // SAFETY: a whole register is left in both.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(a.as_ptr().add(at)), _mm512_loadu_ps(b.as_ptr().add(at)));
            sum = _mm512_fmadd_ps(a, b, sum);
        }
    }
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum)));
    fold(_mm256_add_ps(_mm512_castps512_ps256(sum), high))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot256(a: &[f32], b: &[f32]) -> f32 {
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for at in (0..a.len()).step_by(LANES) {
        // SAFETY: two whole registers are left in both.
        unsafe {
            let (a, b) = (a.as_ptr().add(at), b.as_ptr().add(at));
            low = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), low);
            high = _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8)), high);
        }
    }
    fold(_mm256_add_ps(low, high))
}

/// The last three foldings of `reduce::fold`.
#[inline]
#[target_feature(enable = "avx")]
fn fold(sum: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
}

/// How the operands lie, as in `product.rs`.
struct Operands {
    c_row: usize,
    a_row: usize,
    a_step: usize,
    b_row: usize,
    k: usize,
    /// Whether sums start from what stands there.
    kept: bool,
}

/// Rows of a tile.
const ROWS: usize = 4;

/// The loops for one register width: a tile is up to four rows by up to `$n` registers.
macro_rules! width {
    ($name:ident, $features:literal, $per:literal, $n:literal, $reg:ty, $set1:ident, $zero:ident, $load:ident,
     $store:ident, $mul:ident, $fma:ident) => {
        mod $name {
            use super::*;

            /// # Safety
            /// As `product` asserts; `by` is null or a number for each row.
            #[target_feature(enable = $features)]
            pub unsafe fn all(
                c: *mut f32,
                a: *const f32,
                b: *const f32,
                by: *const f32,
                m: usize,
                n: usize,
                x: &Operands,
            ) {
                let mut i = 0;
                while i < m {
                    let rows = if m - i >= ROWS { ROWS } else { 1 };
                    // SAFETY: rows i .. i + rows.
                    unsafe {
                        let (c, a) = (c.add(i * x.c_row), a.wrapping_add(i * x.a_row));
                        let by = if by.is_null() { by } else { by.add(i) };
                        if rows == ROWS {
                            strip::<ROWS>(c, a, b, by, n, x);
                        } else {
                            strip::<1>(c, a, b, by, n, x);
                        }
                    }
                    i += rows;
                }
            }

            /// R rows of n numbers.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn strip<const R: usize>(
                c: *mut f32,
                a: *const f32,
                b: *const f32,
                by: *const f32,
                n: usize,
                x: &Operands,
            ) {
                let mut j = 0;
                // SAFETY: columns j .. j + what a tile has, while as many are left.
                unsafe {
                    while n - j >= $n * $per {
                        tile::<R, $n>(c.add(j), a, b.wrapping_add(j), by, x);
                        j += $n * $per;
                    }
                    while n - j >= $per {
                        tile::<R, 1>(c.add(j), a, b.wrapping_add(j), by, x);
                        j += $per;
                    }
                    for j in j..n {
                        for r in 0..R {
                            let c = c.add(r * x.c_row + j);
                            let mut sum = if x.kept { *c } else { 0.0 };
                            if !by.is_null() {
                                sum *= *by.add(r);
                            }
                            for k in 0..x.k {
                                sum = (*a.add(r * x.a_row + k * x.a_step))
                                    .mul_add(*b.add(k * x.b_row + j), sum);
                            }
                            *c = sum;
                        }
                    }
                }
            }

            /// R rows of N registers.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const N: usize>(
                c: *mut f32,
                a: *const f32,
                b: *const f32,
                by: *const f32,
                x: &Operands,
            ) {
                // SAFETY: R rows of N registers of c, as many numbers of a, N registers of b for each k.
                unsafe {
                    let mut sum = [[$zero(); N]; R];
                    if x.kept {
                        for r in 0..R {
                            for n in 0..N {
                                sum[r][n] = $load(c.add(r * x.c_row + n * $per));
                            }
                        }
                    }
                    if !by.is_null() {
                        for r in 0..R {
                            let by = $set1(*by.add(r));
                            for n in 0..N {
                                sum[r][n] = $mul(sum[r][n], by);
                            }
                        }
                    }
                    let (mut a, mut b) = (a, b);
                    for _ in 0..x.k {
                        let mut right = [$zero(); N];
                        for n in 0..N {
                            right[n] = $load(b.add(n * $per));
                        }
                        for r in 0..R {
                            let left: $reg = $set1(*a.add(r * x.a_row));
                            for n in 0..N {
                                sum[r][n] = $fma(left, right[n], sum[r][n]);
                            }
                        }
                        a = a.wrapping_add(x.a_step);
                        b = b.wrapping_add(x.b_row);
                    }
                    for r in 0..R {
                        for n in 0..N {
                            $store(c.add(r * x.c_row + n * $per), sum[r][n]);
                        }
                    }
                }
            }
        }
    };
}

width!(
    avx512,
    "avx512f",
    16,
    4,
    __m512,
    _mm512_set1_ps,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps
);
width!(
    avx2,
    "avx2,fma",
    8,
    2,
    __m256,
    _mm256_set1_ps,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps
);
