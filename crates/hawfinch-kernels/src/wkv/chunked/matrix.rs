//! RWKV-5 and 6, a chunk of tokens at a time (spec section 10.2; one decay a head is the same decay for each channel).

use super::pairs::{Pairs, Reads, Side};
use super::product::{Start, dot};
use crate::isa::compiled_for_each;
use crate::wkv::{Head, Rows, v5};
use crate::{Isa, Real};

/// As [`wkv5`](crate::wkv::wkv5), `chunk` tokens at a time (at least 1).
pub fn wkv5<F: Real>(
    isa: Isa,
    chunk: usize,
    y: &Rows<F>,
    s: &mut [F],
    x: Head<'_, F>,
    time_decay: &[F],
    bonus: &[F],
) {
    five(isa, isa, chunk, y, s, x, time_decay, bonus);
}

/// As [`wkv6`](crate::wkv::wkv6), `chunk` tokens at a time (at least 1).
pub fn wkv6<F: Real>(isa: Isa, chunk: usize, y: &Rows<F>, s: &mut [F], x: Head<'_, F>, d: &[F], bonus: &[F]) {
    six(isa, isa, chunk, y, s, x, d, bonus);
}

compiled_for_each! {
    fn five<F: Real>(
        level: Isa,
        chunk: usize,
        y: &Rows<F>,
        s: &mut [F],
        x: Head<'_, F>,
        time_decay: &[F],
        bonus: &[F],
    ) = five_body
}

compiled_for_each! {
    fn six<F: Real>(
        level: Isa,
        chunk: usize,
        y: &Rows<F>,
        s: &mut [F],
        x: Head<'_, F>,
        d: &[F],
        bonus: &[F],
    ) = six_body
}

#[inline(always)]
fn five_body<F: Real>(
    isa: Isa,
    chunk: usize,
    y: &Rows<F>,
    s: &mut [F],
    x: Head<'_, F>,
    time_decay: &[F],
    bonus: &[F],
) {
    let (mut w, mut u) = (vec![F::ZERO; x.n], vec![F::ZERO; x.n]);
    v5::constants(&mut w, &mut u, &x, time_decay, bonus);
    chunks(isa, chunk, y, s, x, &u, Decays::Same(&w));
}

#[inline(always)]
fn six_body<F: Real>(isa: Isa, chunk: usize, y: &Rows<F>, s: &mut [F], x: Head<'_, F>, d: &[F], bonus: &[F]) {
    let u = &bonus[x.head * x.n..][..x.n];
    chunks(isa, chunk, y, s, x, u, Decays::Raw(d));
}

/// Decays of tokens.
#[derive(Clone, Copy)]
enum Decays<'a, F> {
    /// `[n]`, of every token.
    Same(&'a [F]),
    /// `[t, c]`, to be exponentiated.
    Raw(&'a [F]),
}

/// All tokens; `u`: the bonus of each key channel.
#[inline(always)]
fn chunks<F: Real>(
    isa: Isa,
    chunk: usize,
    y: &Rows<F>,
    s: &mut [F],
    x: Head<'_, F>,
    u: &[F],
    decays: Decays<'_, F>,
) {
    let n = x.n;
    let total = x.r.len() / x.c;
    let chunk = chunk.min(total);
    let mut pairs = Pairs::<F, 1, 1>::new(chunk, n);
    let (mut w, mut out, mut ru) = (vec![F::ZERO; chunk * n], vec![F::ZERO; chunk * n], vec![F::ZERO; n]);
    for from in (0..total).step_by(chunk.max(1)) {
        let tokens = chunk.min(total - from);
        let first = x.at(from);
        let (w, out) = (&mut w[..tokens * n], &mut out[..tokens * n]);
        for (t, w) in w.chunks_exact_mut(n).enumerate() {
            match decays {
                Decays::Same(same) => w.copy_from_slice(same),
                Decays::Raw(d) => {
                    for (w, d) in w.iter_mut().zip(&d[x.at(from + t)..][..n]) {
                        *w = (-d.exp()).exp();
                    }
                }
            }
        }
        let [r, k] = [x.r, x.k].map(|data| Side { data, first, step: x.c });
        pairs.fill(isa, w, [Reads { rows: r, after: false }], [k]);
        // A token finds its own write with the bonus for a decay.
        for t in 0..tokens {
            for ((ru, r), u) in ru.iter_mut().zip(r.row(t, n)).zip(u) {
                *ru = *r * *u;
            }
            pairs.found[0][0][t * pairs.room + t] = dot(isa, &ru, k.row(t, n));
        }
        let v = (&x.v[first..], x.c);
        pairs.read_state(isa, out, 0, s);
        pairs.read_written(isa, out, [0, 0], v);
        pairs.write_state(isa, s, 0, v, tokens, Start::Scaled(&pairs.decay));
        for (t, out) in out.chunks_exact(n).enumerate() {
            y.at(x.at(from + t), n).copy_from_slice(out);
        }
    }
}
