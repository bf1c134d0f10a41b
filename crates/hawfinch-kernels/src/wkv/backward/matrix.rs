//! Backward of RWKV-5 and 6 (spec section 11.1). G is the gradient with respect to the state, `[key, value]` as that is.
//!
//! Rows of the state, one a key, do not see each other. So a run is done key by key: its states are computed and kept,
//! then read from the last token to the first, and neither they nor G leave the nearest cache.

use super::{Gradients, RUN, saved_len};
use crate::Real;
use crate::isa::compiled_for_each;
use crate::reduce::{dot, dot3};
use crate::wkv::{Head, Rows, USUAL, v5};

compiled_for_each! {
    /// Backward of one head of [`wkv5`](crate::wkv::wkv5).
    ///
    /// * `d`, `d_y`: `[t, h*n]`, gradients to write, and that of the output
    /// * `d_time_decay`, `d_bonus`: this head's, overwritten: `[1]` or `[n]`, as the parameters are one a head or one a
    ///   channel; of the raw decay
    /// * `d_s`: `[n, n]`, the gradient with respect to the last state on entry (zeros: it is not used), to the first on
    ///   return
    /// * `saved`: what [`wkv5_saving`](crate::wkv::wkv5_saving) kept
    /// * `x`, `time_decay`, `bonus`: as there
    pub fn wkv5_backward<F: Real>(
        d: Gradients<'_, F>,
        d_time_decay: &mut [F],
        d_bonus: &mut [F],
        d_s: &mut [F],
        saved: &[F],
        d_y: &[F],
        x: Head<'_, F>,
        time_decay: &[F],
        bonus: &[F],
    ) = five
}

compiled_for_each! {
    /// Backward of one head of [`wkv6`](crate::wkv::wkv6).
    ///
    /// * `d`, `d_d`, `d_y`: `[t, h*n]`, gradients to write (`d_d`: of the raw decay), and that of the output
    /// * `d_bonus`: `[n]`, this head's, overwritten
    /// * `d_s`: `[n, n]`, the gradient with respect to the last state on entry (zeros: it is not used), to the first on
    ///   return
    /// * `saved`: what [`wkv6_saving`](crate::wkv::wkv6_saving) kept
    /// * `x`, `raw`, `bonus`: as there (`raw`: the decays `d`)
    pub fn wkv6_backward<F: Real>(
        d: Gradients<'_, F>,
        d_d: &Rows<F>,
        d_bonus: &mut [F],
        d_s: &mut [F],
        saved: &[F],
        d_y: &[F],
        x: Head<'_, F>,
        raw: &[F],
        bonus: &[F],
    ) = six
}

#[inline(always)]
fn five<F: Real>(
    d: Gradients<'_, F>,
    d_time_decay: &mut [F],
    d_bonus: &mut [F],
    d_s: &mut [F],
    saved: &[F],
    d_y: &[F],
    x: Head<'_, F>,
    time_decay: &[F],
    bonus: &[F],
) {
    let n = x.n;
    let mut vectors = vec![F::ZERO; 4 * n];
    let (w, rest) = vectors.split_at_mut(n);
    let (u, rest) = rest.split_at_mut(n);
    let (d_w, d_u) = rest.split_at_mut(n);
    v5::constants(w, u, &x, time_decay, bonus);
    runs(
        d,
        d_u,
        d_s,
        saved,
        d_y,
        x,
        u,
        |_, to| to.copy_from_slice(w),
        |_, _, d_decay| d_w.iter_mut().zip(d_decay).for_each(|(sum, d)| *sum += *d),
    );
    let own = |p: &[F], i| if p.len() == x.c { p[x.head * n + i] } else { p[x.head] };
    for (i, (d, w)) in d_w.iter_mut().zip(w).enumerate() {
        *d = *d * slope(own(time_decay, i), *w);
    }
    for (to, from) in [(d_time_decay, d_w), (d_bonus, d_u)] {
        if to.len() == n {
            to.copy_from_slice(from);
        } else {
            to[0] = from.iter().fold(F::ZERO, |sum, d| sum + *d);
        }
    }
}

#[inline(always)]
fn six<F: Real>(
    d: Gradients<'_, F>,
    d_d: &Rows<F>,
    d_bonus: &mut [F],
    d_s: &mut [F],
    saved: &[F],
    d_y: &[F],
    x: Head<'_, F>,
    raw: &[F],
    bonus: &[F],
) {
    let n = x.n;
    let u = &bonus[x.head * n..][..n];
    d_bonus.fill(F::ZERO);
    runs(
        d,
        d_bonus,
        d_s,
        saved,
        d_y,
        x,
        u,
        |at, w| w.iter_mut().zip(&raw[at..at + n]).for_each(|(w, raw)| *w = (-raw.exp()).exp()),
        |at, w, d_w| {
            let to = d_d.at(at, n);
            for i in 0..n {
                to[i] = d_w[i] * slope(raw[at + i], w[i]);
            }
        },
    );
}

/// dw / d raw of w = exp(-exp(raw)); 0 where w is, whatever e^raw overflows to.
#[inline(always)]
fn slope<F: Real>(raw: F, w: F) -> F {
    if w > F::ZERO { -(raw.exp() * w) } else { F::ZERO }
}

/// What a run works with. `[RUN, n]` each but for the row.
struct Scratch<F> {
    /// Decays.
    w: Vec<F>,
    /// Gradients, as far as they come from the state.
    d_r: Vec<F>,
    d_k: Vec<F>,
    d_w: Vec<F>,
    /// One row of the state, before each token.
    before: Vec<F>,
    /// The same row, `[n]`.
    row: Vec<F>,
}

/// Adds to `d_u`. `decays` fills in the decays of the token whose numbers begin at its first argument; `give` gets decays
/// and their gradients, `[n]` each.
#[inline(always)]
fn runs<F: Real>(
    d: Gradients<'_, F>,
    d_u: &mut [F],
    d_s: &mut [F],
    saved: &[F],
    d_y: &[F],
    x: Head<'_, F>,
    u: &[F],
    decays: impl Fn(usize, &mut [F]),
    mut give: impl FnMut(usize, &[F], &[F]),
) {
    let (n, t) = (x.n, x.r.len() / x.c);
    assert_eq!(
        (d_s.len(), saved.len(), d_y.len()),
        (n * n, saved_len(t, n), x.r.len()),
        "states and gradients"
    );
    let zeros = || vec![F::ZERO; RUN * n];
    let mut scratch = Scratch {
        w: zeros(),
        d_r: zeros(),
        d_k: zeros(),
        d_w: zeros(),
        before: zeros(),
        row: vec![F::ZERO; n],
    };
    for (run, states) in saved.chunks_exact(n * n).enumerate().rev() {
        let first = run * RUN;
        let tokens = RUN.min(t - first);
        let at = |token: usize| x.at(first + token);
        for token in 0..tokens {
            decays(at(token), &mut scratch.w[token * n..][..n]);
            let of = at(token)..at(token) + n;
            let current = dot3(&x.r[of.clone()], u, &x.k[of.clone()]);
            for (d_v, g) in d.v.at(of.start, n).iter_mut().zip(&d_y[of]) {
                *d_v = current * *g;
            }
        }
        if n == USUAL {
            rows(USUAL, d.v, d_s, states, d_y, &x, first, tokens, &mut scratch);
        } else {
            rows(n, d.v, d_s, states, d_y, &x, first, tokens, &mut scratch);
        }
        for token in (0..tokens).rev() {
            let of = at(token)..at(token) + n;
            let (r, k) = (&x.r[of.clone()], &x.k[of.clone()]);
            let (d_r, d_k) = (d.r.at(of.start, n), d.k.at(of.start, n));
            let now = dot(&x.v[of.clone()], &d_y[of.clone()]);
            let here = token * n;
            for i in 0..n {
                d_r[i] = (u[i] * k[i]).mul_add(now, scratch.d_r[here + i]);
                d_k[i] = (u[i] * r[i]).mul_add(now, scratch.d_k[here + i]);
                d_u[i] = (r[i] * k[i]).mul_add(now, d_u[i]);
            }
            give(of.start, &scratch.w[here..here + n], &scratch.d_w[here..here + n]);
        }
    }
}

/// The state's part of a run of `tokens` from token `first` on, whose first state is `s`: adds to `d_v`.
#[inline(always)]
fn rows<F: Real>(
    n: usize,
    d_v: &Rows<F>,
    d_s: &mut [F],
    s: &[F],
    d_y: &[F],
    x: &Head<'_, F>,
    first: usize,
    tokens: usize,
    scratch: &mut Scratch<F>,
) {
    let Scratch { w, d_r, d_k, d_w, before, row } = scratch;
    for i in 0..n {
        row.copy_from_slice(&s[i * n..][..n]);
        for token in 0..tokens {
            let (at, here) = (x.at(first + token), token * n);
            before[here..here + n].copy_from_slice(row);
            d_r[here + i] = dot(&row[..n], &d_y[at..at + n]);
            let (k, w, v) = (x.k[at + i], w[here + i], &x.v[at..at + n]);
            for j in 0..n {
                row[j] = w.mul_add(row[j], k * v[j]);
            }
        }
        let g = &mut d_s[i * n..][..n];
        for token in (0..tokens).rev() {
            let (at, here) = (x.at(first + token), token * n);
            let (d_y, d_v) = (&d_y[at..at + n], d_v.at(at, n));
            let (r, k, w) = (x.r[at + i], x.k[at + i], w[here + i]);
            d_k[here + i] = dot(&g[..n], &x.v[at..at + n]);
            d_w[here + i] = dot(&g[..n], &before[here..here + n]);
            for j in 0..n {
                d_v[j] = k.mul_add(g[j], d_v[j]);
                g[j] = w.mul_add(g[j], r * d_y[j]);
            }
        }
    }
}
