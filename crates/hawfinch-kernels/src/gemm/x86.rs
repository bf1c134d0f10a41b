//! Panels on AVX2 and AVX-512: numbers, and with AVX512-BF16 pairs of bf16.
//!
//! A patch of `c` is held in registers while a panel of rows and one of columns are read to their ends: of AVX-512's 32
//! registers 24 are 8 rows of 48 columns, of AVX2's 16 twelve are 6 rows of 16. A step loads the columns' words once,
//! and broadcasts the rows' words one by one. A panel of rows stays in the first cache while those of columns are read.

use std::arch::x86_64::*;

use super::drive::{Block, Kernel};
use super::pack_x86::Pack;
use super::{DEPTH, PAIRS_DEPTH, View, depth};
use crate::prefetch;

/// How many steps ahead columns are fetched: as long as a line takes from the third cache.
const AHEAD: usize = 16;

/// Defines what multiplies panels of one instruction set.
macro_rules! loops {
    ($name:ident, $features:literal, rows: $rows:literal, $($row:literal)*, columns: $columns:literal, $($n:literal)*,
     left: $left:literal, numbers: $numbers:literal, $reg:ty, $per:literal, $zero:ident, $set1:ident, $load:ident,
     $store:ident, $add:ident, $fma:ident) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The machine has the instructions; [`Kernel::multiply`].
            #[target_feature(enable = $features)]
            pub unsafe fn multiply(mut block: Block<'_, f32, f32>) {
                let steps = block.depth.div_ceil($numbers);
                assert!(block.left_panel >= steps * $left && block.right_panel >= steps * $columns);
                for (p, left) in block.left.chunks_exact(block.left_panel).enumerate() {
                    let rows = (block.rows - p * $rows).min($rows);
                    for (q, right) in block.right.chunks_exact(block.right_panel).enumerate() {
                        let columns = (block.columns - q * $columns).min($columns);
                        let (left, right) = (left.as_ptr(), right.as_ptr());
                        // SAFETY: so many rows and columns from there are within the block, so many steps within the
                        // panels.
                        unsafe {
                            let c = block.c.add(p * $rows * block.c_row + q * $columns);
                            match rows {
                                $($row => across::<$row>(c, columns, &mut block, steps, left, right),)*
                                _ => unreachable!("panels of so many rows"),
                            }
                        }
                    }
                }
            }

            /// R rows.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn across<const R: usize>(
                c: *mut f32,
                columns: usize,
                block: &mut Block<'_, f32, f32>,
                steps: usize,
                left: *const f32,
                right: *const f32,
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    match columns.div_ceil($per) {
                        $($n => patch::<R, $n>(c, columns, block, steps, left, right),)*
                        _ => unreachable!("panels of so many columns"),
                    }
                }
            }

            /// R rows of N registers, of whose last some columns may be none of `c`'s.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn patch<const R: usize, const N: usize>(
                c: *mut f32,
                columns: usize,
                block: &mut Block<'_, f32, f32>,
                steps: usize,
                mut left: *const f32,
                mut right: *const f32,
            ) {
                for r in 0..R {
                    for n in 0..N {
                        prefetch::first(c.wrapping_add(r * block.c_row + n * $per));
                    }
                }
                let mut sums = [[$zero(); N]; R];
                let next = left.wrapping_add(block.left_panel);
                let mut ahead = block.ahead;
                for step in 0..steps {
                    for n in 0..N {
                        prefetch::first(right.wrapping_add(n * $per + AHEAD * $columns));
                    }
                    prefetch::first(next.wrapping_add(step * $left));
                    ahead.fetch();
                    // SAFETY: so many steps are left in both panels.
                    unsafe {
                        let mut across = [$zero(); N];
                        for n in 0..N {
                            across[n] = $load(right.add(n * $per));
                        }
                        for r in 0..R {
                            let down: $reg = $set1(*left.add(r));
                            for n in 0..N {
                                sums[r][n] = $fma(down, across[n], sums[r][n]);
                            }
                        }
                    }
                    left = left.wrapping_add($left);
                    right = right.wrapping_add($columns);
                }
                block.ahead = ahead;
                if columns == N * $per {
                    for r in 0..R {
                        for n in 0..N {
                            // SAFETY: within row r.
                            unsafe {
                                let c = c.add(r * block.c_row + n * $per);
                                let sum = if block.add { $add($load(c), sums[r][n]) } else { sums[r][n] };
                                $store(c, sum);
                            }
                        }
                    }
                    return;
                }
                for r in 0..R {
                    let mut row = [[0f32; $per]; N];
                    // SAFETY: as many rows as there are, and as many columns of each.
                    let c = unsafe {
                        for n in 0..N {
                            $store(row[n].as_mut_ptr(), sums[r][n]);
                        }
                        std::slice::from_raw_parts_mut(c.add(r * block.c_row), columns)
                    };
                    for (c, sum) in c.iter_mut().zip(row.as_flattened()) {
                        *c = if block.add { *c + *sum } else { *sum };
                    }
                }
            }
        }
    };
}

loops!(
    avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", rows: 8, 1 2 3 4 5 6 7 8, columns: 48, 1 2 3,
    left: 8, numbers: 1, __m512, 16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps,
    _mm512_add_ps, _mm512_fmadd_ps
);
loops!(
    pairs512, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", rows: 8, 1 2 3 4 5 6 7 8,
    columns: 48, 1 2 3, left: 8, numbers: 2, __m512, 16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps,
    _mm512_storeu_ps, _mm512_add_ps, dot_pairs
);
loops!(
    avx2, "avx2,fma", rows: 6, 1 2 3 4 5 6, columns: 16, 1 2, left: 8, numbers: 1, __m256, 8, _mm256_setzero_ps,
    _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_fmadd_ps
);

/// Of words that are pairs: both products added.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_pairs(a: __m512, b: __m512, sum: __m512) -> __m512 {
    // SAFETY: registers of the same size; any bits are bf16.
    let a = unsafe { std::mem::transmute::<__m512, __m512bh>(a) };
    // SAFETY: as above.
    let b = unsafe { std::mem::transmute::<__m512, __m512bh>(b) };
    _mm512_dpbf16_ps(sum, a, b)
}

/// Defines a [`Kernel`]. Having one is the proof that the machine has the instructions.
macro_rules! kernel {
    ($name:ident, $most:expr, $step:literal, $module:ident, rows: $rows:literal,
     columns: $columns:literal, left: $left:literal, numbers: $numbers:literal) => {
        impl Kernel<f32> for $name {
            type Word = f32;
            const ROWS: usize = $rows;
            const COLUMNS: usize = $columns;
            const STEP: usize = $step;

            fn depth(&self, k: usize) -> usize {
                depth(k, $most, $step)
            }

            fn left_words(&self, k: usize) -> usize {
                k / $numbers * $left
            }

            fn right_words(&self, k: usize) -> usize {
                k / $numbers * $columns
            }

            fn pack_left(&self, panel: &mut [f32], at: usize, x: View<'_, f32>) {
                // SAFETY: the machine has the instructions.
                unsafe { self.0.eights(&mut panel[at / $numbers * $left..], $left, x) };
            }

            fn pack_right(&self, panel: &mut [f32], at: usize, x: View<'_, f32>) {
                // SAFETY: the machine has the instructions.
                unsafe { self.0.sixteens(&mut panel[at / $numbers * $columns..], $columns, x) };
            }

            unsafe fn multiply(&self, block: Block<'_, f32, f32>) {
                // SAFETY: the machine has the instructions; the caller's promise.
                unsafe { $module::multiply(block) }
            }
        }
    };
}

/// Numbers, or numbers rounded to bf16, on AVX-512.
pub struct Avx512(Pack);
/// Pairs of bf16 on AVX-512.
pub struct Pairs512(Pack);
/// Numbers, or numbers rounded to bf16, on AVX2.
pub struct Avx2(Pack);

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512, as [`crate::Level`] says.
    pub unsafe fn new(rounded: bool) -> Self {
        Avx512(if rounded { Pack::Rounded512 } else { Pack::Numbers512 })
    }
}

impl Pairs512 {
    /// # Safety
    /// The machine has AVX-512, as [`crate::Level`] says, and AVX512-BF16.
    pub unsafe fn new() -> Self {
        Pairs512(Pack::Pairs512)
    }
}

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, as [`crate::Level`] says.
    pub unsafe fn new(rounded: bool) -> Self {
        Avx2(if rounded { Pack::Rounded256 } else { Pack::Numbers256 })
    }
}

kernel!(Avx512, DEPTH, 16, avx512, rows: 8, columns: 48, left: 8, numbers: 1);
kernel!(Pairs512, PAIRS_DEPTH, 32, pairs512, rows: 8, columns: 48, left: 8, numbers: 2);
kernel!(Avx2, DEPTH, 16, avx2, rows: 6, columns: 16, left: 8, numbers: 1);
