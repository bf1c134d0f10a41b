//! Backward of RWKV-7 (spec section 11.2), with state and gradient in the `[key, value]` order of memory.
//!
//! D is the gradient with respect to the state after a token, that of the token's own output included. A run takes two
//! sweeps of which each has one matrix, so that this stays in the nearest cache: from the last token to the first for D,
//! which gives the gradients of values, keys and replacements and, for each token, z = Σ_j D_j b_j; then from the first to
//! the last for the state, which gives the gradients of receptances (its product with that of the output) and of removals
//! (its product with z). The decays take no sweep: with E_t = Σ_i D_t ⊙ S_t, one number a key, S_t = w S_{t-1} - b ρ + k v
//! and D_{t-1} = w D_t - kk z + r g say
//!
//! ```text
//! w ⊙ dw_t = E_t + b ⊙ (D_t ρ) - k ⊙ (D_t v)        E_{t-1} = w ⊙ dw_t - kk ⊙ (S_{t-1} z) + r ⊙ (S_{t-1} g_{t-1})
//! ```
//!
//! and E is computed anew at the end of each run. A decay is never below 0.545, so no gradient is lost in these sums.

use super::{Gradients, RUN, saved_len, saved_len7};
use crate::Real;
use crate::isa::compiled_for_each;
use crate::reduce::dot;
use crate::wkv::v7::MAX_LOG_DECAY;
use crate::wkv::{Head, Rows, USUAL};

compiled_for_each! {
    /// Backward of one head of [`wkv7`](crate::wkv::wkv7).
    ///
    /// * `d`, `d_om`, `d_kk`, `d_a`, `d_y`: `[t, h*n]`, gradients to write (`d_om`: of the raw decay), and that of the
    ///   output
    /// * `d_s`: `[n, n]`, index [key, value], the gradient with respect to the last state on entry (zeros: it is not used),
    ///   to the first on return
    /// * `saved`: what [`wkv7_saving`](crate::wkv::wkv7_saving) kept
    /// * `x`, `om`, `kk`, `a`: as there
    pub fn wkv7_backward<F: Real>(
        d: Gradients<'_, F>,
        d_om: &Rows<F>,
        d_kk: &Rows<F>,
        d_a: &Rows<F>,
        d_s: &mut [F],
        saved: &[F],
        d_y: &[F],
        x: Head<'_, F>,
        om: &[F],
        kk: &[F],
        a: &[F],
    ) = body
}

/// What a run works with: `[RUN, n]`, or as said.
struct Scratch<F> {
    /// Decays.
    w: Vec<F>,
    /// kk ⊙ a
    b: Vec<F>,
    /// Of each token, Σ_j D_j b_j.
    z: Vec<F>,
    /// D v, D ρ, S z and S g of each token.
    dv: Vec<F>,
    drho: Vec<F>,
    sz: Vec<F>,
    sg: Vec<F>,
    /// D after the run's last token, `[n, n]`.
    last: Vec<F>,
    /// E, `[n]`.
    e: Vec<F>,
    /// One row of the state, `[n]`.
    row: Vec<F>,
    /// Of the token after this one: decay, removal key and z, `[n]`. D has not yet been taken through it.
    next: [Vec<F>; 3],
}

#[inline(always)]
fn body<F: Real>(
    d: Gradients<'_, F>,
    d_om: &Rows<F>,
    d_kk: &Rows<F>,
    d_a: &Rows<F>,
    d_s: &mut [F],
    saved: &[F],
    d_y: &[F],
    x: Head<'_, F>,
    om: &[F],
    kk: &[F],
    a: &[F],
) {
    let (n, t) = (x.n, x.r.len() / x.c);
    assert_eq!(
        (d_s.len(), saved.len(), d_y.len()),
        (n * n, saved_len7(t, n), x.r.len()),
        "states and gradients"
    );
    let (states, removed) = saved.split_at(saved_len(t, n));
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let (long, short) = (|| vec![F::ZERO; RUN * n], || vec![F::ZERO; n]);
    let mut scratch = Scratch {
        w: long(),
        b: long(),
        z: long(),
        dv: long(),
        drho: long(),
        sz: long(),
        sg: long(),
        last: vec![F::ZERO; n * n],
        e: short(),
        row: short(),
        next: [vec![F::ONE; n], short(), short()],
    };
    for (run, s) in states.chunks_exact(n * n).enumerate().rev() {
        let first = run * RUN;
        let tokens = RUN.min(t - first);
        for token in 0..tokens {
            let (at, here) = (x.at(first + token), token * n);
            for i in 0..n {
                scratch.w[here + i] = (rate * om[at + i].sigmoid()).exp();
                scratch.b[here + i] = kk[at + i] * a[at + i];
            }
        }
        let whole = Run { x: &x, d_y, kk, removed: &removed[first * n..], first, tokens };
        if n == USUAL {
            gradient_sweep(USUAL, d.v, d_s, &whole, &mut scratch);
            state_sweep(USUAL, s, &whole, &mut scratch);
        } else {
            gradient_sweep(n, d.v, d_s, &whole, &mut scratch);
            state_sweep(n, s, &whole, &mut scratch);
        }
        let Scratch { w, b, z, dv, drho, sz, sg, e, next, .. } = &mut scratch;
        for token in (0..tokens).rev() {
            let (at, here) = (x.at(first + token), token * n);
            let (d_r, d_k) = (d.r.at(at, n), d.k.at(at, n));
            let (d_om, d_kk, d_a) = (d_om.at(at, n), d_kk.at(at, n), d_a.at(at, n));
            for i in 0..n {
                let (dv, drho, sz) = (dv[here + i], drho[here + i], sz[here + i]);
                d_r[i] = sg[here + i];
                d_k[i] = dv;
                d_kk[i] = -a[at + i].mul_add(drho, sz);
                d_a[i] = -(kk[at + i] * drho);
                let d_log_w = (-x.k[at + i]).mul_add(dv, b[here + i].mul_add(drho, e[i]));
                d_om[i] = rate * d_log_w * sigmoid_slope(om[at + i]);
                e[i] = (-kk[at + i]).mul_add(sz, d_log_w);
            }
            if token > 0 {
                let (before, here) = (x.at(first + token - 1), here - n);
                for i in 0..n {
                    e[i] = x.r[before + i].mul_add(sg[here + i], e[i]);
                }
            }
        }
        let [next_w, next_kk, next_z] = next;
        next_w.copy_from_slice(&w[..n]);
        next_kk.copy_from_slice(&kk[x.at(first)..][..n]);
        next_z.copy_from_slice(&z[..n]);
    }
    let [w, kk, z] = &scratch.next;
    for (j, row) in d_s.chunks_exact_mut(n).enumerate() {
        for i in 0..n {
            row[i] = row[i].mul_add(w[j], -kk[j] * z[i]);
        }
    }
}

/// The slope of the logistic function, which falls to 0 on both sides without cancellation.
#[inline(always)]
fn sigmoid_slope<F: Real>(x: F) -> F {
    let e = (if x > F::ZERO { -x } else { x }).exp();
    let whole = F::ONE + e;
    e / (whole * whole)
}

/// Operands of a run.
struct Run<'a, F> {
    x: &'a Head<'a, F>,
    d_y: &'a [F],
    kk: &'a [F],
    /// From the run's first token on, `[t, n]`.
    removed: &'a [F],
    first: usize,
    tokens: usize,
}

/// From the last token to the first: takes D through the tokens, but for what the first one does to it.
#[inline(always)]
fn gradient_sweep<F: Real>(
    n: usize,
    d_v: &Rows<F>,
    d_s: &mut [F],
    run: &Run<'_, F>,
    scratch: &mut Scratch<F>,
) {
    let Scratch { w, b, z, dv, drho, last, next, .. } = scratch;
    for token in (0..run.tokens).rev() {
        let (at, here) = (run.x.at(run.first + token), token * n);
        let (r, k, v) = (&run.x.r[at..at + n], &run.x.k[at..at + n], &run.x.v[at..at + n]);
        let (g, rho, b) = (&run.d_y[at..at + n], &run.removed[here..here + n], &b[here..here + n]);
        let (z, later) = z[here..].split_at_mut(n);
        let (next_w, next_kk, next_z) = if token + 1 == run.tokens {
            (&next[0][..n], &next[1][..n], &next[2][..n])
        } else {
            (&w[here + n..][..n], &run.kk[run.x.at(run.first + token + 1)..][..n], &later[..n])
        };
        let d_v = d_v.at(at, n);
        d_v.fill(F::ZERO);
        z.fill(F::ZERO);
        for (j, row) in d_s.chunks_exact_mut(n).enumerate() {
            let (w, kk, r, k, b) = (next_w[j], -next_kk[j], r[j], k[j], b[j]);
            for i in 0..n {
                row[i] = row[i].mul_add(w, next_z[i].mul_add(kk, r * g[i]));
                d_v[i] = row[i].mul_add(k, d_v[i]);
                z[i] = row[i].mul_add(b, z[i]);
            }
            dv[here + j] = dot(&row[..n], v);
            drho[here + j] = dot(&row[..n], rho);
        }
        if token + 1 == run.tokens {
            last.copy_from_slice(d_s);
        }
    }
}

/// From the first token to the last, key by key: `s` is the state before the run.
#[inline(always)]
fn state_sweep<F: Real>(n: usize, s: &[F], run: &Run<'_, F>, scratch: &mut Scratch<F>) {
    let Scratch { w, b, z, sz, sg, last, e, row, .. } = scratch;
    for j in 0..n {
        row.copy_from_slice(&s[j * n..][..n]);
        for token in 0..run.tokens {
            let (at, here) = (run.x.at(run.first + token), token * n);
            let (v, rho) = (&run.x.v[at..at + n], &run.removed[here..here + n]);
            let (w, b, k) = (w[here + j], -b[here + j], run.x.k[at + j]);
            sz[here + j] = dot(&row[..n], &z[here..here + n]);
            for i in 0..n {
                row[i] = row[i].mul_add(w, rho[i].mul_add(b, v[i] * k));
            }
            sg[here + j] = dot(&row[..n], &run.d_y[at..at + n]);
        }
        e[j] = dot(&row[..n], &last[j * n..][..n]);
    }
}
