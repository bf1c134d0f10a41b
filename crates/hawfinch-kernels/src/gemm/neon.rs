//! Panels on NEON: 8 rows of 12 columns are 24 of its 32 registers.

use std::arch::aarch64::*;

use super::drive::{Block, Kernel};
use super::{DEPTH, View, depth, portable};
use crate::Isa;

/// Rows of a panel: two registers.
const ROWS: usize = 8;
/// Columns of a panel: three registers.
const COLUMNS: usize = 12;

/// Numbers as they are, or rounded to bf16.
pub struct Neon {
    pub isa: Isa,
    pub rounded: bool,
}

impl Kernel<f32> for Neon {
    type Word = f32;
    const ROWS: usize = ROWS;
    const COLUMNS: usize = COLUMNS;
    const STEP: usize = 16;

    fn depth(&self, k: usize) -> usize {
        depth(k, DEPTH, 16)
    }

    fn left_words(&self, k: usize) -> usize {
        k * ROWS
    }

    fn right_words(&self, k: usize) -> usize {
        k * COLUMNS
    }

    fn pack_left(&self, panel: &mut [f32], at: usize, x: View<'_, f32>) {
        portable::pack(self.isa, &mut panel[at * ROWS..], ROWS, x, self.rounded);
    }

    fn pack_right(&self, panel: &mut [f32], at: usize, x: View<'_, f32>) {
        portable::pack(self.isa, &mut panel[at * COLUMNS..], COLUMNS, x, self.rounded);
    }

    unsafe fn multiply(&self, mut block: Block<'_, f32, f32>) {
        assert!(block.left_panel >= block.depth * ROWS && block.right_panel >= block.depth * COLUMNS);
        for (p, left) in block.left.chunks_exact(block.left_panel).enumerate() {
            for (q, right) in block.right.chunks_exact(block.right_panel).enumerate() {
                // SAFETY: every 64-bit Arm processor has NEON; so many steps are within the panels.
                let sums = unsafe { patch(left.as_ptr(), right.as_ptr(), &mut block) };
                let columns = COLUMNS.min(block.columns - q * COLUMNS);
                for (r, sums) in sums.iter().enumerate().take(block.rows - p * ROWS) {
                    // SAFETY: so many columns of this row are within the block.
                    let c = unsafe {
                        let row = block.c.add((p * ROWS + r) * block.c_row + q * COLUMNS);
                        std::slice::from_raw_parts_mut(row, columns)
                    };
                    if columns == COLUMNS {
                        // SAFETY: twelve numbers.
                        unsafe { put(c.as_mut_ptr(), sums, block.add) };
                        continue;
                    }
                    for (c, sum) in c.iter_mut().zip(sums) {
                        *c = if block.add { *c + *sum } else { *sum };
                    }
                }
            }
        }
    }
}

/// The sums of eight rows and twelve columns.
///
/// # Safety
/// Both panels hold the block's steps.
#[target_feature(enable = "neon")]
unsafe fn patch(
    mut left: *const f32,
    mut right: *const f32,
    block: &mut Block<'_, f32, f32>,
) -> [[f32; COLUMNS]; ROWS] {
    let zero = vdupq_n_f32(0.0);
    let mut sums = [[zero; 3]; ROWS];
    let mut ahead = block.ahead;
    for _ in 0..block.depth {
        ahead.fetch();
        // SAFETY: a step of both panels.
        let (down, across) = unsafe {
            (
                [vld1q_f32(left), vld1q_f32(left.add(4))],
                [vld1q_f32(right), vld1q_f32(right.add(4)), vld1q_f32(right.add(8))],
            )
        };
        for half in 0..2 {
            for n in 0..3 {
                let sums = &mut sums[half * 4..half * 4 + 4];
                sums[0][n] = vfmaq_laneq_f32::<0>(sums[0][n], across[n], down[half]);
                sums[1][n] = vfmaq_laneq_f32::<1>(sums[1][n], across[n], down[half]);
                sums[2][n] = vfmaq_laneq_f32::<2>(sums[2][n], across[n], down[half]);
                sums[3][n] = vfmaq_laneq_f32::<3>(sums[3][n], across[n], down[half]);
            }
        }
        (left, right) = (left.wrapping_add(ROWS), right.wrapping_add(COLUMNS));
    }
    block.ahead = ahead;
    let mut numbers = [[0f32; COLUMNS]; ROWS];
    for (numbers, sums) in numbers.iter_mut().zip(sums) {
        for n in 0..3 {
            // SAFETY: four of twelve numbers.
            unsafe { vst1q_f32(numbers.as_mut_ptr().add(4 * n), sums[n]) };
        }
    }
    numbers
}

/// Stores or adds twelve numbers.
///
/// # Safety
/// `c` points to as many.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn put(c: *mut f32, sums: &[f32; COLUMNS], add: bool) {
    for n in 0..3 {
        // SAFETY: four of twelve numbers.
        unsafe {
            let (c, sum) = (c.add(4 * n), vld1q_f32(sums.as_ptr().add(4 * n)));
            vst1q_f32(c, if add { vaddq_f32(vld1q_f32(c), sum) } else { sum });
        }
    }
}
