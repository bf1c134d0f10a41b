//! What a product means.

use super::{DEPTH, Into, Operands, depth, rounded as to_bf16};
use crate::pool::Parts;
use crate::{Pool, Real};

/// Numbers of a row that are summed at once.
const RUN: usize = 64;

/// As [`super::gemm`].
pub fn gemm<F: Real>(pool: &Pool, rounded: bool, operands: Operands<'_, '_, F>) {
    let Operands { c, c_row, into, a, b } = operands;
    let ([m, k], n) = (a.shape(), b.columns);
    let number = |x: F| if rounded { to_bf16(x) } else { x };
    let depth = depth(k, DEPTH, 16);
    let c = Parts::new(c);
    pool.run(m, &|r| {
        for first in (0..n).step_by(RUN) {
            // SAFETY: row r belongs to this chunk alone.
            let c = unsafe { c.get(r * c_row + first, RUN.min(n - first)) };
            for from in (0..k).step_by(depth) {
                let mut chains = [F::ZERO; RUN];
                for k in from..k.min(from + depth) {
                    let x = number(a.at(r, k));
                    for (j, chain) in chains.iter_mut().enumerate().take(c.len()) {
                        *chain = x.mul_add(number(b.at(k, first + j)), *chain);
                    }
                }
                let add = into == Into::Add || from > 0;
                for (c, chain) in c.iter_mut().zip(chains) {
                    *c = if add { *c + chain } else { chain };
                }
            }
        }
    });
}
