//! Backward of RWKV-5 and 6 (spec section 11.1). G is the gradient with respect to the state, `[key, value]` as that is.
//!
//! Rows of the state, one a key, do not see each other. So a run is done key by key: its states are computed and kept,
//! then read from the last token to the first, and neither they nor G leave the nearest cache.

use super::{Arrays, Gradients, RUN, ahead, copy, put, saved_len, sixteen};
use crate::isa::compiled_for_each;
use crate::reduce::{LANES, dot, dot3};
use crate::wkv::{Head, Rows, v5};
use crate::{Isa, Real};

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
    isa: Isa,
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
    five_for_each(isa, isa, d, d_time_decay, d_bonus, d_s, saved, d_y, x, time_decay, bonus);
}

compiled_for_each! {
    fn five_for_each<F: Real>(
        level: Isa,
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

/// Backward of one head of [`wkv6`](crate::wkv::wkv6).
///
/// * `d`, `d_d`, `d_y`: `[t, h*n]`, gradients to write (`d_d`: of the raw decay), and that of the output
/// * `d_bonus`: `[n]`, this head's, overwritten
/// * `d_s`: `[n, n]`, the gradient with respect to the last state on entry (zeros: it is not used), to the first on
///   return
/// * `saved`: what [`wkv6_saving`](crate::wkv::wkv6_saving) kept
/// * `x`, `raw`, `bonus`: as there (`raw`: the decays `d`)
pub fn wkv6_backward<F: Real>(
    isa: Isa,
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
    six_for_each(isa, isa, d, d_d, d_bonus, d_s, saved, d_y, x, raw, bonus);
}

compiled_for_each! {
    fn six_for_each<F: Real>(
        level: Isa,
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
    isa: Isa,
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
    runs(isa, d, d_u, d_s, saved, d_y, x, u, Constant { w, d_w });
    let own = |p: &[F], i| if p.len() == x.c { p[x.head * n + i] } else { p[x.head] };
    for (i, (d, w)) in d_w.iter_mut().zip(w).enumerate() {
        *d *= slope(own(time_decay, i), *w);
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
    isa: Isa,
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
    runs(isa, d, d_bonus, d_s, saved, d_y, x, u, Raw { raw, d_raw: d_d });
}

/// Where decays come from, and where their gradients go.
trait Decays<F> {
    /// Those of the token whose numbers begin at `at`, `[n]`.
    fn fill(&self, at: usize, w: &mut [F]);
    /// Asks for those of a token that comes later, of `n` channels.
    fn ahead(&self, at: usize, n: usize);
    /// Asks for where the gradients of a token go.
    fn results_ahead(&self, at: usize, n: usize);
    /// Takes their gradients, `[n]`.
    fn take(&mut self, at: usize, w: &[F], d_w: &[F]);
}

/// The same for every token: gradients are added up.
struct Constant<'a, F> {
    w: &'a [F],
    d_w: &'a mut [F],
}

impl<F: Real> Decays<F> for Constant<'_, F> {
    #[inline(always)]
    fn fill(&self, _: usize, w: &mut [F]) {
        w.copy_from_slice(self.w);
    }
    #[inline(always)]
    fn ahead(&self, _: usize, _: usize) {}
    #[inline(always)]
    fn results_ahead(&self, _: usize, _: usize) {}
    #[inline(always)]
    fn take(&mut self, _: usize, _: &[F], d_w: &[F]) {
        for i in (0..d_w.len()).step_by(LANES) {
            let (mut sum, d) = (sixteen(self.d_w, i), sixteen(d_w, i));
            for l in 0..LANES {
                sum[l] += d[l];
            }
            put(self.d_w, i, sum);
        }
    }
}

/// Raw ones for every token, `[t, h*n]`.
struct Raw<'a, F> {
    raw: &'a [F],
    d_raw: &'a Rows<F>,
}

impl<F: Real> Decays<F> for Raw<'_, F> {
    #[inline(always)]
    fn fill(&self, at: usize, w: &mut [F]) {
        let n = w.len();
        for i in (0..n).step_by(LANES) {
            let mut decay = sixteen(&self.raw[at..at + n], i);
            for l in 0..LANES {
                decay[l] = (-decay[l].exp()).exp();
            }
            put(w, i, decay);
        }
    }
    #[inline(always)]
    fn ahead(&self, at: usize, n: usize) {
        ahead(self.raw, at, n);
    }
    #[inline(always)]
    fn results_ahead(&self, at: usize, n: usize) {
        ahead(self.d_raw.at(at, n), 0, n);
    }
    #[inline(always)]
    fn take(&mut self, at: usize, w: &[F], d_w: &[F]) {
        let n = w.len();
        let (raw, to) = (&self.raw[at..at + n], self.d_raw.at(at, n));
        for i in (0..n).step_by(LANES) {
            let (raw, w, mut d) = (sixteen(raw, i), sixteen(w, i), sixteen(d_w, i));
            for l in 0..LANES {
                d[l] *= slope(raw[l], w[l]);
            }
            put(to, i, d);
        }
    }
}

/// dw / d raw of w = exp(-exp(raw)); 0 where w is, whatever e^raw overflows to.
#[inline(always)]
fn slope<F: Real>(raw: F, w: F) -> F {
    let slope = -(raw.exp() * w);
    if w > F::ZERO { slope } else { F::ZERO }
}

/// A run's operands and results, `[RUN, n]` each, or as said: decays are w, g is the gradient of the output.
pub(super) struct Run<'a, F> {
    pub n: usize,
    pub tokens: usize,
    /// The bonus, `[n]`.
    pub u: &'a [F],
    pub r: &'a mut [F],
    pub k: &'a mut [F],
    pub v: &'a mut [F],
    pub w: &'a mut [F],
    pub g: &'a mut [F],
    /// As far as these come from the state.
    pub d_r: &'a mut [F],
    pub d_k: &'a mut [F],
    pub d_v: &'a mut [F],
    pub d_w: &'a mut [F],
    /// v · g of each token, `[RUN]`.
    pub now: &'a mut [F],
    /// What loops may need, `[SCRATCH]`.
    pub scratch: &'a mut [F],
}

/// Room for the loops of `matrix_wide.rs`.
pub(super) const SCRATCH: usize = 5 * 1024;

/// Adds to `d_u`.
#[inline(always)]
fn runs<F: Real>(
    isa: Isa,
    d: Gradients<'_, F>,
    d_u: &mut [F],
    d_s: &mut [F],
    saved: &[F],
    d_y: &[F],
    x: Head<'_, F>,
    u: &[F],
    mut decays: impl Decays<F>,
) {
    let (n, t) = (x.n, x.r.len() / x.c);
    assert_eq!(
        (d_s.len(), saved.len(), d_y.len()),
        (n * n, saved_len(t, n), x.r.len()),
        "states and gradients"
    );
    let (mut arrays, mut scratch) = (Arrays::new(10, RUN * n), Arrays::new(1, SCRATCH));
    let [r, k, v, w, g, d_r, d_k, d_v, d_w, now] = arrays.get();
    let [scratch] = scratch.get();
    let mut run = Run { n, tokens: 0, u, r, k, v, w, g, d_r, d_k, d_v, d_w, now, scratch };
    for (number, s) in saved.chunks_exact(n * n).enumerate().rev() {
        let first = number * RUN;
        run.tokens = RUN.min(t - first);
        for token in 0..run.tokens {
            let (at, here) = (x.at(first + token), token * n..(token + 1) * n);
            copy(&mut run.r[here.clone()], x.r, at, n);
            copy(&mut run.k[here.clone()], x.k, at, n);
            copy(&mut run.v[here.clone()], x.v, at, n);
            copy(&mut run.g[here.clone()], d_y, at, n);
            decays.fill(at, &mut run.w[here]);
            [d.r, d.k, d.v].iter().for_each(|d| ahead(d.at(at, n), 0, n));
            decays.results_ahead(at, n);
        }
        rows(isa, &mut run, s, d_s);
        for token in (0..run.tokens).rev() {
            let (at, here) = (x.at(first + token), token * n..(token + 1) * n);
            let (r, k) = (&run.r[here.clone()], &run.k[here.clone()]);
            let (state_r, state_k) = (&run.d_r[here.clone()], &run.d_k[here.clone()]);
            let now = run.now[token];
            let (d_r, d_k) = (d.r.at(at, n), d.k.at(at, n));
            for i in (0..n).step_by(LANES) {
                let (r, k, u) = (sixteen(r, i), sixteen(k, i), sixteen(u, i));
                let (mut of_r, mut of_k) = (sixteen(state_r, i), sixteen(state_k, i));
                let mut of_u = sixteen(d_u, i);
                for l in 0..LANES {
                    of_r[l] = (u[l] * k[l]).mul_add(now, of_r[l]);
                    of_k[l] = (u[l] * r[l]).mul_add(now, of_k[l]);
                    of_u[l] = (r[l] * k[l]).mul_add(now, of_u[l]);
                }
                put(d_r, i, of_r);
                put(d_k, i, of_k);
                put(d_u, i, of_u);
            }
            copy(d.v.at(at, n), run.d_v, here.start, n);
            decays.take(at, &run.w[here.clone()], &run.d_w[here]);
            if let Some(before) = (first + token).checked_sub(RUN) {
                let before = x.at(before);
                ahead(x.r, before, n);
                ahead(x.k, before, n);
                ahead(x.v, before, n);
                ahead(d_y, before, n);
                decays.ahead(before, n);
                ahead(saved, (number - 1) * n * n + token * n * n / RUN, n * n / RUN);
            }
        }
    }
}

/// The gradients of a run, whose first state is `s`, but for what the current token's bonus adds to d_r and d_k.
#[inline(always)]
fn rows<F: Real>(isa: Isa, run: &mut Run<'_, F>, s: &[F], d_s: &mut [F]) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if wide(isa, run, s, d_s).is_some() {
        return;
    }
    let _ = isa;
    let n = run.n;
    for token in 0..run.tokens {
        let here = token * n..(token + 1) * n;
        let g = &run.g[here.clone()];
        run.now[token] = dot(&run.v[here.clone()], g);
        let current = dot3(&run.r[here.clone()], run.u, &run.k[here.clone()]);
        run.d_v[here].iter_mut().zip(g).for_each(|(d_v, g)| *d_v = current * *g);
    }
    let mut before = vec![F::ZERO; (RUN + 1) * n];
    for i in 0..n {
        before[..n].copy_from_slice(&s[i * n..][..n]);
        for token in 0..run.tokens {
            let here = token * n;
            let (row, next) = before[here..here + 2 * n].split_at_mut(n);
            run.d_r[here + i] = dot(row, &run.g[here..here + n]);
            let (k, w, v) = (run.k[here + i], run.w[here + i], &run.v[here..here + n]);
            for j in 0..n {
                next[j] = w.mul_add(row[j], k * v[j]);
            }
        }
        let d_row = &mut d_s[i * n..][..n];
        for token in (0..run.tokens).rev() {
            let here = token * n;
            let (r, k, w) = (run.r[here + i], run.k[here + i], run.w[here + i]);
            let (g, d_v) = (&run.g[here..here + n], &mut run.d_v[here..here + n]);
            run.d_k[here + i] = dot(d_row, &run.v[here..here + n]);
            run.d_w[here + i] = dot(d_row, &before[here..here + n]);
            for j in 0..n {
                d_v[j] = k.mul_add(d_row[j], d_v[j]);
                d_row[j] = w.mul_add(d_row[j], r * g[j]);
            }
        }
    }
}

/// The same in loops of the instruction set's own, if it has them for heads of this size.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn wide<F: Real>(isa: Isa, run: &mut Run<'_, F>, s: &[F], d_s: &mut [F]) -> Option<()> {
    let run = Run {
        n: run.n,
        tokens: run.tokens,
        u: F::as_f32s(run.u)?,
        r: F::as_f32_slice(run.r)?,
        k: F::as_f32_slice(run.k)?,
        v: F::as_f32_slice(run.v)?,
        w: F::as_f32_slice(run.w)?,
        g: F::as_f32_slice(run.g)?,
        d_r: F::as_f32_slice(run.d_r)?,
        d_k: F::as_f32_slice(run.d_k)?,
        d_v: F::as_f32_slice(run.d_v)?,
        d_w: F::as_f32_slice(run.d_w)?,
        now: F::as_f32_slice(run.now)?,
        scratch: F::as_f32_slice(run.scratch)?,
    };
    super::matrix_wide::rows(isa, run, F::as_f32s(s)?, F::as_f32_slice(d_s)?).then_some(())
}
