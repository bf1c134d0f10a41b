//! Panels in portable code, for f64 and for instruction sets without loops of their own.

use super::drive::{Block, Kernel};
use super::{DEPTH, View, depth, rounded};
use crate::isa::compiled_for_each;
use crate::{Isa, Real};

/// Rows of a panel.
const ROWS: usize = 6;
/// Columns of a panel: with the rows, what sixteen registers of four f64 hold.
const COLUMNS: usize = 8;

/// Numbers as they are, or rounded to bf16.
pub struct Portable {
    pub isa: Isa,
    pub rounded: bool,
}

impl<F: Real> Kernel<F> for Portable {
    type Word = F;
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

    fn pack_left(&self, panel: &mut [F], at: usize, x: View<'_, F>) {
        pack(self.isa, &mut panel[at * ROWS..], ROWS, x, self.rounded);
    }

    fn pack_right(&self, panel: &mut [F], at: usize, x: View<'_, F>) {
        pack(self.isa, &mut panel[at * COLUMNS..], COLUMNS, x, self.rounded);
    }

    unsafe fn multiply(&self, block: Block<'_, F, F>) {
        multiply(self.isa, block);
    }
}

compiled_for_each! {
    /// Numbers of `x`, `[lanes, numbers]`, number by number: `width` lanes, zeros where there are fewer.
    pub fn pack<F: Real>(to: &mut [F], width: usize, x: View<'_, F>, rounds: bool) = pack_body
}

#[inline(always)]
fn pack_body<F: Real>(to: &mut [F], width: usize, x: View<'_, F>, rounds: bool) {
    let number = |x: F| if rounds { rounded(x) } else { x };
    for (k, to) in to.chunks_exact_mut(width).enumerate().take(x.columns) {
        let (to, rest) = to.split_at_mut(x.rows);
        rest.fill(F::ZERO);
        if x.row_stride == 1 {
            let from = &x.data[k * x.column_stride..][..x.rows];
            to.iter_mut().zip(from).for_each(|(to, x)| *to = number(*x));
        } else {
            to.iter_mut().enumerate().for_each(|(lane, to)| *to = number(x.at(lane, k)));
        }
    }
}

compiled_for_each! {
    fn multiply<F: Real>(block: Block<'_, F, F>) = multiply_body
}

#[inline(always)]
fn multiply_body<F: Real>(block: Block<'_, F, F>) {
    for (p, right) in block.right.chunks_exact(block.right_panel).enumerate() {
        for (q, left) in block.left.chunks_exact(block.left_panel).enumerate() {
            let mut sums = [[F::ZERO; COLUMNS]; ROWS];
            let (left, right) = (left.as_chunks::<ROWS>().0, right.as_chunks::<COLUMNS>().0);
            for (left, right) in left.iter().zip(right).take(block.depth) {
                for (sums, left) in sums.iter_mut().zip(left) {
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = left.mul_add(*right, *sum);
                    }
                }
            }
            let columns = COLUMNS.min(block.columns - p * COLUMNS);
            for (r, sums) in sums.iter().enumerate().take(block.rows - q * ROWS) {
                let at = (q * ROWS + r) * block.c_row + p * COLUMNS;
                // SAFETY: so many columns of this row are within the block.
                let c = unsafe { std::slice::from_raw_parts_mut(block.c.add(at), columns) };
                for (c, sum) in c.iter_mut().zip(sums) {
                    *c = if block.add { *c + *sum } else { *sum };
                }
            }
        }
    }
}
