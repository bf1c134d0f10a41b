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

use super::{Arrays, Gradients, RUN7, ahead, copy, put, saved_len7, sixteen, states_len7};
use crate::isa::compiled_for_each;
use crate::reduce::{LANES, dot};
use crate::wkv::v7::MAX_LOG_DECAY;
use crate::wkv::{Head, Rows};
use crate::{Isa, Real};

/// Backward of one head of [`wkv7`](crate::wkv::wkv7).
///
/// * `d`, `d_om`, `d_kk`, `d_a`, `d_y`: `[t, h*n]`, gradients to write (`d_om`: of the raw decay), and that of the
///   output
/// * `d_s`: `[n, n]`, index [key, value], the gradient with respect to the last state on entry (zeros: it is not used), to
///   the first on return
/// * `saved`: what [`wkv7_saving`](crate::wkv::wkv7_saving) kept
/// * `x`, `om`, `kk`, `a`: as there
pub fn wkv7_backward<F: Real>(
    isa: Isa,
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
    runs(isa, isa, d, [d_om, d_kk, d_a], d_s, saved, d_y, x, om, kk, a);
}

compiled_for_each! {
    fn runs<F: Real>(
        level: Isa,
        d: Gradients<'_, F>,
        d_more: [&Rows<F>; 3],
        d_s: &mut [F],
        saved: &[F],
        d_y: &[F],
        x: Head<'_, F>,
        om: &[F],
        kk: &[F],
        a: &[F],
    ) = body
}

/// A run's operands and results, `[tokens, n]` each, or as said. g is the gradient of the output, ρ what was removed, b is
/// kk ⊙ a.
pub(super) struct Run<'a, F> {
    pub n: usize,
    pub tokens: usize,
    pub r: &'a mut [F],
    pub k: &'a mut [F],
    pub v: &'a mut [F],
    pub g: &'a mut [F],
    pub rho: &'a mut [F],
    pub b: &'a mut [F],
    /// `[tokens + 1, n]`, these three: the run's, then those of the token after it, through which D has not yet been taken.
    pub w: &'a mut [F],
    pub kk: &'a mut [F],
    pub z: &'a mut [F],
    pub d_v: &'a mut [F],
    /// D v, D ρ, S z and S g of each token.
    pub by_v: &'a mut [F],
    pub by_rho: &'a mut [F],
    pub s_z: &'a mut [F],
    pub s_g: &'a mut [F],
    /// D, and D after the run's last token, `[n, n]`.
    pub d: &'a mut [F],
    pub last: &'a mut [F],
    /// The state, `[n, n]`.
    pub s: &'a mut [F],
    /// E after the run's last token, `[n]`.
    pub e: &'a mut [F],
}

#[inline(always)]
fn body<F: Real>(
    isa: Isa,
    d: Gradients<'_, F>,
    d_more: [&Rows<F>; 3],
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
    let (states, removed) = saved.split_at(states_len7(t, n));
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let (mut vectors, mut matrices) = (Arrays::new(15, (RUN7.min(t) + 1) * n), Arrays::new(3, n * n));
    let [r, k, v, g, rho, b, w, kk_run, z, d_v, by_v, by_rho, s_z, s_g, e] = vectors.get();
    let [d_now, last, s] = matrices.get();
    let [d_now, last, s] = [d_now, last, s].map(|m| &mut m[..n * n]);
    let mut run = Run {
        n,
        tokens: 0,
        r,
        k,
        v,
        g,
        rho,
        b,
        w,
        kk: kk_run,
        z,
        d_v,
        by_v,
        by_rho,
        s_z,
        s_g,
        d: d_now,
        last,
        s,
        e,
    };
    run.d.copy_from_slice(d_s);
    // After all tokens: a token that does nothing.
    let mut next = [vec![F::ONE; n], vec![F::ZERO; n], vec![F::ZERO; n]];
    for (number, s) in states.chunks_exact(n * n).enumerate().rev() {
        let first = number * RUN7;
        let tokens = RUN7.min(t - first);
        run.tokens = tokens;
        run.s.copy_from_slice(s);
        for token in 0..tokens {
            let (at, here) = (x.at(first + token), token * n);
            copy(&mut run.r[here..], x.r, at, n);
            copy(&mut run.k[here..], x.k, at, n);
            copy(&mut run.v[here..], x.v, at, n);
            copy(&mut run.g[here..], d_y, at, n);
            copy(&mut run.kk[here..], kk, at, n);
            copy(&mut run.rho[here..], removed, (first + token) * n, n);
            let (om, kk, a) = (&om[at..at + n], &kk[at..at + n], &a[at..at + n]);
            for i in (0..n).step_by(LANES) {
                let (mut w, mut b) = (sixteen(om, i), sixteen(kk, i));
                let a = sixteen(a, i);
                for l in 0..LANES {
                    w[l] = (rate * w[l].sigmoid()).exp();
                    b[l] *= a[l];
                }
                put(&mut run.w[here..here + n], i, w);
                put(&mut run.b[here..here + n], i, b);
            }
            let [d_om, d_kk, d_a] = d_more;
            [d.r, d.k, d.v, d_om, d_kk, d_a].iter().for_each(|d| ahead(d.at(at, n), 0, n));
        }
        let [next_w, next_kk, next_z] = &mut next;
        for (to, from) in
            [&mut *run.w, &mut *run.kk, &mut *run.z].into_iter().zip([&next_w, &next_kk, &next_z])
        {
            to[tokens * n..][..n].copy_from_slice(from);
        }
        sweeps(isa, &mut run);
        finish(&mut run, &d, &d_more, &x, om, a, first);
        // What the next run reads, while this one's results are on their way.
        for token in (0..first).rev().take(RUN7) {
            let at = x.at(token);
            [x.r, x.k, x.v, d_y, kk, om, a].iter().for_each(|x| ahead(x, at, n));
            ahead(removed, token * n, n);
        }
        for (to, from) in [next_w, next_kk, next_z].into_iter().zip([&run.w, &run.kk, &run.z]) {
            to.copy_from_slice(&from[..n]);
        }
    }
    let [w, kk, z] = &next;
    for (j, (to, row)) in d_s.chunks_exact_mut(n).zip(run.d.chunks_exact(n)).enumerate() {
        for i in 0..n {
            to[i] = row[i].mul_add(w[j], -kk[j] * z[i]);
        }
    }
}

/// Puts the gradients of a run together, from the last token to the first: E goes along.
#[inline(always)]
fn finish<F: Real>(
    run: &mut Run<'_, F>,
    d: &Gradients<'_, F>,
    [d_om, d_kk, d_a]: &[&Rows<F>; 3],
    x: &Head<'_, F>,
    om: &[F],
    a: &[F],
    first: usize,
) {
    let n = run.n;
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let e = &mut run.e[..n];
    for token in (0..run.tokens).rev() {
        let (at, here) = (x.at(first + token), token * n..(token + 1) * n);
        let (by_v, by_rho) = (&run.by_v[here.clone()], &run.by_rho[here.clone()]);
        let (s_z, s_g) = (&run.s_z[here.clone()], &run.s_g[here.clone()]);
        let (k, kk, b) = (&run.k[here.clone()], &run.kk[here.clone()], &run.b[here.clone()]);
        let (om, a) = (&om[at..at + n], &a[at..at + n]);
        let (d_om, d_kk, d_a) = (d_om.at(at, n), d_kk.at(at, n), d_a.at(at, n));
        for i in (0..n).step_by(LANES) {
            let (by_v, by_rho, s_z) = (sixteen(by_v, i), sixteen(by_rho, i), sixteen(s_z, i));
            let (k, kk, b) = (sixteen(k, i), sixteen(kk, i), sixteen(b, i));
            let (om, a, mut sum) = (sixteen(om, i), sixteen(a, i), sixteen(e, i));
            let (mut of_kk, mut of_a, mut of_om) = ([F::ZERO; LANES], [F::ZERO; LANES], [F::ZERO; LANES]);
            for l in 0..LANES {
                of_kk[l] = -a[l].mul_add(by_rho[l], s_z[l]);
                of_a[l] = -(kk[l] * by_rho[l]);
                let d_log_w = (-k[l]).mul_add(by_v[l], b[l].mul_add(by_rho[l], sum[l]));
                of_om[l] = rate * d_log_w * sigmoid_slope(om[l]);
                sum[l] = (-kk[l]).mul_add(s_z[l], d_log_w);
            }
            put(d_om, i, of_om);
            put(d_kk, i, of_kk);
            put(d_a, i, of_a);
            put(e, i, sum);
        }
        copy(d.r.at(at, n), s_g, 0, n);
        copy(d.k.at(at, n), by_v, 0, n);
        copy(d.v.at(at, n), run.d_v, here.start, n);
        // What the token before read is a part of the gradient of the state after it.
        if token > 0 {
            let before = here.start - n..here.start;
            let (r, s_g) = (&run.r[before.clone()], &run.s_g[before]);
            for i in 0..n {
                e[i] = r[i].mul_add(s_g[i], e[i]);
            }
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

/// From the last token to the first, taking D through the tokens but for what the first one does to it; then from the
/// first to the last with the state.
#[inline(always)]
fn sweeps<F: Real>(isa: Isa, run: &mut Run<'_, F>) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if wide(isa, run).is_some() {
        return;
    }
    let _ = isa;
    let n = run.n;
    for token in (0..run.tokens).rev() {
        let here = token * n..(token + 1) * n;
        let next = here.end..here.end + n;
        let (g, v, rho) = (&run.g[here.clone()], &run.v[here.clone()], &run.rho[here.clone()]);
        let (z, later) = run.z[here.start..].split_at_mut(n);
        let (d_v, next_z) = (&mut run.d_v[here.clone()], &later[..n]);
        d_v.fill(F::ZERO);
        z.fill(F::ZERO);
        for (j, row) in run.d.chunks_exact_mut(n).enumerate() {
            let (w, kk) = (run.w[next.start + j], -run.kk[next.start + j]);
            let at = here.start + j;
            let (r, k, b) = (run.r[at], run.k[at], run.b[at]);
            for i in 0..n {
                row[i] = row[i].mul_add(w, next_z[i].mul_add(kk, r * g[i]));
                d_v[i] = row[i].mul_add(k, d_v[i]);
                z[i] = row[i].mul_add(b, z[i]);
            }
            run.by_v[at] = dot(row, v);
            run.by_rho[at] = dot(row, rho);
        }
        if token + 1 == run.tokens {
            run.last.copy_from_slice(run.d);
        }
    }
    for token in 0..run.tokens {
        let here = token * n..(token + 1) * n;
        let (g, v) = (&run.g[here.clone()], &run.v[here.clone()]);
        let (rho, z) = (&run.rho[here.clone()], &run.z[here.clone()]);
        for (j, row) in run.s.chunks_exact_mut(n).enumerate() {
            let at = here.start + j;
            let (w, b, k) = (run.w[at], -run.b[at], run.k[at]);
            run.s_z[at] = dot(row, z);
            for i in 0..n {
                row[i] = row[i].mul_add(w, rho[i].mul_add(b, v[i] * k));
            }
            run.s_g[at] = dot(row, g);
        }
    }
    for (e, (s, last)) in run.e.iter_mut().zip(run.s.chunks_exact(n).zip(run.last.chunks_exact(n))) {
        *e = dot(s, last);
    }
}

/// The same in loops of the instruction set's own, if it has them for heads of this size.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn wide<F: Real>(isa: Isa, run: &mut Run<'_, F>) -> Option<()> {
    let run = Run {
        n: run.n,
        tokens: run.tokens,
        r: F::as_f32_slice(run.r)?,
        k: F::as_f32_slice(run.k)?,
        v: F::as_f32_slice(run.v)?,
        g: F::as_f32_slice(run.g)?,
        rho: F::as_f32_slice(run.rho)?,
        b: F::as_f32_slice(run.b)?,
        w: F::as_f32_slice(run.w)?,
        kk: F::as_f32_slice(run.kk)?,
        z: F::as_f32_slice(run.z)?,
        d_v: F::as_f32_slice(run.d_v)?,
        by_v: F::as_f32_slice(run.by_v)?,
        by_rho: F::as_f32_slice(run.by_rho)?,
        s_z: F::as_f32_slice(run.s_z)?,
        s_g: F::as_f32_slice(run.s_g)?,
        d: F::as_f32_slice(run.d)?,
        last: F::as_f32_slice(run.last)?,
        s: F::as_f32_slice(run.s)?,
        e: F::as_f32_slice(run.e)?,
    };
    super::v7_wide::sweeps(isa, run).then_some(())
}
