//! RWKV-7, a chunk of tokens at a time (the WY form of spec section 10.3).

use super::pairs::{BLOCK, Pairs, Reads, Side};
use super::product::{Left, Start, product};
use crate::isa::compiled_for_each;
use crate::wkv::v7::MAX_LOG_DECAY;
use crate::wkv::{Head, Rows};
use crate::{Isa, Real};

/// As [`wkv7`](crate::wkv::wkv7), `chunk` tokens at a time (at least 1).
pub fn wkv7<F: Real>(
    isa: Isa,
    chunk: usize,
    y: &Rows<F>,
    s: &mut [F],
    x: Head<'_, F>,
    om: &[F],
    kk: &[F],
    a: &[F],
) {
    chunks(isa, isa, chunk, y, s, x, om, kk, a);
}

compiled_for_each! {
    fn chunks<F: Real>(
        level: Isa,
        chunk: usize,
        y: &Rows<F>,
        s: &mut [F],
        x: Head<'_, F>,
        om: &[F],
        kk: &[F],
        a: &[F],
    ) = body
}

/// Reads: the removal key, before the token's decay, and the receptance, after.
const REMOVAL: usize = 0;
const RECEPTANCE: usize = 1;
/// Writes: the key with the value, and what replaces, kk ⊙ a, with what was removed.
const KEY: usize = 0;
const REPLACEMENT: usize = 1;

#[inline(always)]
fn body<F: Real>(
    isa: Isa,
    chunk: usize,
    y: &Rows<F>,
    s: &mut [F],
    x: Head<'_, F>,
    om: &[F],
    kk: &[F],
    a: &[F],
) {
    let n = x.n;
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let total = x.r.len() / x.c;
    let chunk = chunk.min(total);
    let mut pairs = Pairs::<F, 2, 2>::new(chunk, n);
    let [mut w, mut removal, mut replacement, mut removed, mut out] =
        std::array::from_fn(|_| vec![F::ZERO; chunk * n]);
    for from in (0..total).step_by(chunk.max(1)) {
        let tokens = chunk.min(total - from);
        let first = x.at(from);
        let len = tokens * n;
        for t in 0..tokens {
            let (of, own) = (x.at(from + t)..x.at(from + t) + n, t * n..(t + 1) * n);
            let (om, kk, a) = (&om[of.clone()], &kk[of.clone()], &a[of]);
            let (w, removal) = (&mut w[own.clone()], &mut removal[own.clone()]);
            let replacement = &mut replacement[own];
            for j in 0..n {
                w[j] = (rate * om[j].sigmoid()).exp();
                removal[j] = -kk[j];
                replacement[j] = kk[j] * a[j];
            }
        }
        let [r, k] = [x.r, x.k].map(|data| Side { data, first, step: x.c });
        let [kk, b] = [&removal, &replacement].map(|data| Side { data, first: 0, step: n });
        let reads = [Reads { rows: kk, after: false }, Reads { rows: r, after: true }];
        pairs.fill(isa, &w[..len], reads, [k, b]);
        let (removed, out) = (&mut removed[..len], &mut out[..len]);
        let v = (&x.v[first..], x.c);
        // U = (I - A_ab)^-1 (A_ak V + ã S)
        pairs.read_state(isa, removed, REMOVAL, s);
        pairs.read_written(isa, removed, [REMOVAL, KEY], v);
        substitute(isa, removed, &pairs.found[REMOVAL][REPLACEMENT], pairs.room, n);
        // Y = r̃ S + A_qk V + A_qb U
        pairs.read_state(isa, out, RECEPTANCE, s);
        pairs.read_written(isa, out, [RECEPTANCE, KEY], v);
        pairs.read_written(isa, out, [RECEPTANCE, REPLACEMENT], (removed, n));
        pairs.write_state(isa, s, KEY, v, tokens, Start::Scaled(&pairs.decay));
        pairs.write_state(isa, s, REPLACEMENT, (removed, n), tokens, Start::Kept);
        for (t, out) in out.chunks_exact(n).enumerate() {
            y.at(x.at(from + t), n).copy_from_slice(out);
        }
    }
}

/// `u ← (I - A)^-1 u`, A strictly lower triangular: what a token removes is known once all tokens before it have
/// written what they did. `u`: `[tokens, n]`, `a`: rows of `room`.
#[inline(always)]
fn substitute<F: Real>(isa: Isa, u: &mut [F], a: &[F], room: usize, n: usize) {
    for first in (0..u.len() / n).step_by(BLOCK) {
        let (done, rest) = u.split_at_mut(first * n);
        let len = BLOCK.min(rest.len() / n);
        let rows = Left { data: &a[first * room..], row: room, step: 1 };
        product(isa, (rest, n), rows, (done, n), [len, first, n], Start::Kept);
        for t in 1..len {
            let (before, own) = rest.split_at_mut(t * n);
            for (s, before) in before.chunks_exact(n).enumerate() {
                let a = a[(first + t) * room + first + s];
                for (own, before) in own[..n].iter_mut().zip(before) {
                    *own = a.mul_add(*before, *own);
                }
            }
        }
    }
}
