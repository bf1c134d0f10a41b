//! Causal softmax attention with rotary positions, one head of one sequence a call: what the recurrences of
//! [`crate::wkv`] are compared with.
//!
//! y_i = Σ_{j ≤ i} p_ij v_j with p_i = softmax over j ≤ i of scale · q̃_i·k̃_j, where q̃ and k̃ are queries and keys turned
//! by their positions ([`Rotary`]). Scores of a block of queries are held at a time, so memory grows with the text's length,
//! not with its square. Backward computes them again and keeps nothing of the forward. Products are those of
//! `wkv/chunked/product.rs`, sums of a row those of [`crate::reduce`]: the same bits on every instruction set.
//!
//! Later tokens change nothing of earlier rows, bit for bit, as long as they are finite: they count as p = 0 up to the end
//! of a block.

mod backward;
mod rotary;
#[cfg(test)]
mod tests;

pub use backward::attention_backward;
pub use rotary::Rotary;

use std::ops::Range;

use crate::isa::compiled_for_each;
use crate::reduce::{LANES, sum_of};
use crate::wkv::chunked::product::{Left, Start, product};
use crate::wkv::{Head, Rows};
use crate::{Isa, Real};

/// Queries whose scores are held at a time.
const BLOCK: usize = 32;

/// One head: fills its part of `y`.
///
/// * `y`: `[t, c]`
/// * `x`: queries (as its `r`), keys and values `[t, c]` of all heads, not yet turned
/// * `rotary`: of at least `t` positions and heads of `n`
/// * `scale`: what products of query and key are multiplied by, above 0
///
/// # Panics
/// When the turns are of fewer positions or other heads.
pub fn attention<F: Real>(isa: Isa, y: &Rows<F>, x: Head<'_, F>, rotary: &Rotary<F>, scale: F) {
    let (t, n) = (x.len(), x.n);
    let q = rotary.turned(isa, x.r, &x);
    let keys = transposed(&rotary.turned(isa, x.k, &x), n);
    let v = gathered(x.v, &x);
    let mut scores = vec![F::ZERO; BLOCK.min(t) * t];
    let (mut sums, mut out) = ([F::ZERO; BLOCK], vec![F::ZERO; BLOCK.min(t) * n]);
    for block in blocks(t) {
        let (m, seen) = (block.len(), block.end);
        let scores = &mut scores[..m * seen];
        probabilities(isa, scores, &mut sums, &q[block.start * n..], (&keys, t), &block, n, scale);
        let p = Left { data: scores, row: seen, step: 1 };
        product(isa, (&mut out, n), p, (&v, n), [m, seen, n], Start::Zero);
        for ((i, out), sum) in block.zip(out.chunks_exact(n)).zip(&sums) {
            let inverse = F::ONE / *sum;
            y.at(x.at(i), n).iter_mut().zip(out).for_each(|(y, out)| *y = *out * inverse);
        }
    }
}

/// The queries of each block.
fn blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t).step_by(BLOCK).map(move |first| first..(first + BLOCK).min(t))
}

/// What a block's queries make of the keys up to its end: e to the power of each score less the row's largest, 0 for keys
/// after the query; and each row's sum of them.
///
/// * `p`: `[m, seen]`
/// * `sums`: `[m]` or more
/// * `q`: `[m, n]` or more, the block's queries
/// * `keys`: `[n, t]`, with t
/// * `block`: its m queries; it ends at `seen`
#[inline(always)]
fn probabilities<F: Real>(
    isa: Isa,
    p: &mut [F],
    sums: &mut [F],
    q: &[F],
    keys: (&[F], usize),
    block: &Range<usize>,
    n: usize,
    scale: F,
) {
    let seen = block.end;
    product(isa, (p, seen), Left { data: q, row: n, step: 1 }, keys, [block.len(), n, seen], Start::Zero);
    exponentials(isa, p, sums, block.start, seen, scale);
}

compiled_for_each! {
    fn exponentials<F: Real>(p: &mut [F], sums: &mut [F], first: usize, seen: usize, scale: F) = exponentials_body
}

#[inline(always)]
fn exponentials_body<F: Real>(p: &mut [F], sums: &mut [F], first: usize, seen: usize, scale: F) {
    for (i, (row, sum)) in p.chunks_exact_mut(seen).zip(sums).enumerate() {
        let (live, later) = row.split_at_mut(first + i + 1);
        let most = largest(live);
        live.iter_mut().for_each(|p| *p = ((*p - most) * scale).exp());
        later.fill(F::ZERO);
        *sum = sum_of(live, |p| p);
    }
}

/// The largest of some numbers, at least one.
#[inline(always)]
fn largest<F: Real>(x: &[F]) -> F {
    let larger = |a: F, b: F| if b > a { b } else { a };
    let mut most = [x[0]; LANES];
    let parts = x.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        for l in 0..LANES {
            most[l] = larger(most[l], part[l]);
        }
    }
    rest.iter().chain(&most).fold(x[0], |a, b| larger(a, *b))
}

/// One head's rows of a tensor `[t, c]`: `[t, n]`.
fn gathered<F: Real>(from: &[F], x: &Head<'_, F>) -> Vec<F> {
    x.tokens().flat_map(|at| &from[at..at + x.n]).copied().collect()
}

/// `[t, n]` as `[n, t]`.
fn transposed<F: Real>(rows: &[F], n: usize) -> Vec<F> {
    let t = rows.len() / n;
    let mut columns = vec![F::ZERO; rows.len()];
    for (i, row) in rows.chunks_exact(n).enumerate() {
        for (j, v) in row.iter().enumerate() {
            columns[j * t + i] = *v;
        }
    }
    columns
}
