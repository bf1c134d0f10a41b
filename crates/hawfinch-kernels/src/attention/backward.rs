//! Gradients of attention.

use super::{BLOCK, Rotary, blocks, gathered, probabilities, transposed};
use crate::isa::compiled_for_each;
use crate::reduce::dot;
use crate::wkv::chunked::product::{Left, Start, product};
use crate::wkv::{Gradients, Head};
use crate::{Isa, Real};

/// Gradients of one head of [`attention`](super::attention): overwrites its part of `d`.
///
/// * `d`: of queries (as its `r`), keys and values, `[t, c]` each
/// * `d_y`: `[t, c]`
/// * the others as in the forward
///
/// # Panics
/// As the forward.
pub fn attention_backward<F: Real>(
    isa: Isa,
    d: Gradients<'_, F>,
    x: Head<'_, F>,
    rotary: &Rotary<F>,
    scale: F,
    d_y: &[F],
) {
    let (t, n) = (x.len(), x.n);
    let (q, k) = (rotary.turned(isa, x.r, &x), rotary.turned(isa, x.k, &x));
    let (keys, values) = (transposed(&k, n), transposed(&gathered(x.v, &x), n));
    let d_out = gathered(d_y, &x);
    let (mut d_k, mut d_v) = (vec![F::ZERO; t * n], vec![F::ZERO; t * n]);
    let (mut scores, mut d_scores) = (vec![F::ZERO; BLOCK.min(t) * t], vec![F::ZERO; BLOCK.min(t) * t]);
    let (mut sums, mut d_q) = ([F::ZERO; BLOCK], vec![F::ZERO; BLOCK.min(t) * n]);
    for block in blocks(t) {
        let (m, seen) = (block.len(), block.end);
        let (p, d_p) = (&mut scores[..m * seen], &mut d_scores[..m * seen]);
        let (q, d_out) = (&q[block.start * n..], &d_out[block.start * n..]);
        probabilities(isa, p, &mut sums, q, (&keys, t), &block, n, scale);
        product(
            isa,
            (d_p, seen),
            Left { data: d_out, row: n, step: 1 },
            (&values, t),
            [m, n, seen],
            Start::Zero,
        );
        through_softmax(isa, p, d_p, &sums, block.start, seen, scale);
        // Of values: pᵀ d_out. Of keys: d_sᵀ q. Of queries: d_s k.
        let turned = |data| Left { data, row: 1, step: seen };
        product(isa, (&mut d_v, n), turned(p), (d_out, n), [seen, m, n], Start::Kept);
        product(isa, (&mut d_k, n), turned(d_p), (q, n), [seen, m, n], Start::Kept);
        let d_q = &mut d_q[..m * n];
        product(isa, (d_q, n), Left { data: d_p, row: seen, step: 1 }, (&k, n), [m, seen, n], Start::Zero);
        rotary.turn_back(isa, d_q, block.start);
        for (i, d_q) in block.zip(d_q.chunks_exact(n)) {
            d.r.at(x.at(i), n).copy_from_slice(d_q);
        }
    }
    rotary.turn_back(isa, &mut d_k, 0);
    for (to, from) in [(d.k, d_k), (d.v, d_v)] {
        x.tokens().zip(from.chunks_exact(n)).for_each(|(at, row)| to.at(at, n).copy_from_slice(row));
    }
}

compiled_for_each! {
    /// Divides the rows of `p` by their sums, and makes of the gradients of what comes out those of the scores:
    /// p (d_p - Σ p d_p) · scale. Both `[m, seen]`.
    fn through_softmax<F: Real>(p: &mut [F], d_p: &mut [F], sums: &[F], first: usize, seen: usize, scale: F) = body
}

#[inline(always)]
fn body<F: Real>(p: &mut [F], d_p: &mut [F], sums: &[F], first: usize, seen: usize, scale: F) {
    let rows = p.chunks_exact_mut(seen).zip(d_p.chunks_exact_mut(seen));
    for (i, ((p, d_p), sum)) in rows.zip(sums).enumerate() {
        let (p, (d_p, later)) = (&mut p[..first + i + 1], d_p.split_at_mut(first + i + 1));
        let inverse = F::ONE / *sum;
        p.iter_mut().for_each(|p| *p *= inverse);
        let mean = dot(p, d_p);
        d_p.iter_mut().zip(&*p).for_each(|(d, p)| *d = (*d - mean) * *p * scale);
        later.fill(F::ZERO);
    }
}
