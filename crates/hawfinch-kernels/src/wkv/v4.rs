//! RWKV-4: a channel-wise weighted mean (spec section 1.2). It has no matrix form.

use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::{Isa, Pool, Real};

/// Numerator and denominator of the running mean, both scaled by e^-pp; each `[c]`.
pub struct State4<'a, F> {
    /// Numerator.
    pub aa: &'a mut [F],
    /// Denominator.
    pub bb: &'a mut [F],
    /// Common exponent.
    pub pp: &'a mut [F],
}

/// The stable recurrence.
///
/// * `y`, `k`, `v`: `[t, c]`
/// * `time_decay`: `[c]`, raw; the log-decay of a step is -exp(time_decay)
/// * `time_first`: `[c]`, the log-space bonus of the current token
pub fn wkv4<F: Real>(
    isa: Isa,
    pool: &Pool,
    y: &mut [F],
    s: State4<'_, F>,
    k: &[F],
    v: &[F],
    time_decay: &[F],
    time_first: &[F],
) {
    let c = time_decay.len();
    let (y, aa, bb, pp) = (Parts::new(y), Parts::new(s.aa), Parts::new(s.bb), Parts::new(s.pp));
    let chunk = if c * (k.len() / c) <= ALONE { c } else { CHANNELS };
    pool.run(c.div_ceil(chunk), &|n| {
        let first = n * chunk;
        let len = chunk.min(c - first);
        // SAFETY: chunks are disjoint channels, each computed once.
        let s = unsafe { State4 { aa: aa.get(first, len), bb: bb.get(first, len), pp: pp.get(first, len) } };
        channels(isa, &y, s, k, v, time_decay, time_first, first);
    });
}

/// Channels that make a chunk of work, and numbers below which the calling thread does all.
pub(super) const CHANNELS: usize = 64;
pub(super) const ALONE: usize = 2048;

compiled_for_each! {
    /// Channels `first ..`, as many as the state has.
    fn channels<F: Real>(
        y: &Parts<F>,
        s: State4<'_, F>,
        k: &[F],
        v: &[F],
        time_decay: &[F],
        time_first: &[F],
        first: usize,
    ) = body
}

/// Channels that run together.
pub(super) const WIDE: usize = 16;

#[inline(always)]
fn body<F: Real>(
    y: &Parts<F>,
    s: State4<'_, F>,
    k: &[F],
    v: &[F],
    time_decay: &[F],
    time_first: &[F],
    first: usize,
) {
    let c = time_decay.len();
    let channels = s.aa.len();
    for at in (0..channels).step_by(WIDE) {
        let n = WIDE.min(channels - at);
        let j = first + at;
        let State4 { aa, bb, pp } = &s;
        let (mut a, mut b, mut p) = ([F::ZERO; WIDE], [F::ZERO; WIDE], [F::ZERO; WIDE]);
        let (mut w, mut u) = (a, a);
        a[..n].copy_from_slice(&aa[at..at + n]);
        b[..n].copy_from_slice(&bb[at..at + n]);
        p[..n].copy_from_slice(&pp[at..at + n]);
        w[..n].copy_from_slice(&time_decay[j..j + n]);
        u[..n].copy_from_slice(&time_first[j..j + n]);
        w = w.map(|w| -w.exp());
        for t in (j..k.len()).step_by(c) {
            let (mut kt, mut vt, mut out) = ([F::ZERO; WIDE], [F::ZERO; WIDE], [F::ZERO; WIDE]);
            kt[..n].copy_from_slice(&k[t..t + n]);
            vt[..n].copy_from_slice(&v[t..t + n]);
            let (mut now, mut past) = ([F::ZERO; WIDE], [F::ZERO; WIDE]);
            for l in 0..WIDE {
                now[l] = u[l] + kt[l];
                past[l] = p[l] + w[l];
            }
            let (e1, e2) = weights(&p, &now);
            for l in 0..WIDE {
                out[l] = e1[l].mul_add(a[l], e2[l] * vt[l]) / e1[l].mul_add(b[l], e2[l]);
            }
            let (e1, e2) = weights(&past, &kt);
            for l in 0..WIDE {
                a[l] = e1[l].mul_add(a[l], e2[l] * vt[l]);
                b[l] = e1[l].mul_add(b[l], e2[l]);
                p[l] = if past[l] > kt[l] { past[l] } else { kt[l] };
            }
            // SAFETY: these channels are this call's.
            unsafe { y.get(t, n) }.copy_from_slice(&out[..n]);
        }
        s.aa[at..at + n].copy_from_slice(&a[..n]);
        s.bb[at..at + n].copy_from_slice(&b[..n]);
        s.pp[at..at + n].copy_from_slice(&p[..n]);
    }
}

/// e^(past - q) and e^(now - q), q the larger of the two: one of them is 1, so one e^x is enough.
#[inline(always)]
pub(super) fn weights<F: Real>(past: &[F; WIDE], now: &[F; WIDE]) -> ([F; WIDE], [F; WIDE]) {
    let (mut e, mut e1, mut e2) = ([F::ZERO; WIDE], [F::ONE; WIDE], [F::ONE; WIDE]);
    for l in 0..WIDE {
        let apart = past[l] - now[l];
        e[l] = (if past[l] > now[l] { -apart } else { apart }).exp();
    }
    for l in 0..WIDE {
        e1[l] = if past[l] > now[l] { F::ONE } else { e[l] };
        e2[l] = if past[l] > now[l] { e[l] } else { F::ONE };
    }
    (e1, e2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_both_exponentials() {
        let exponents = [-1e30f32, -90.0, -3.5, -1e-6, 0.0, 0.7, 12.0, 88.0, 300.0, 1e30];
        for (past, now) in exponents.iter().flat_map(|p| exponents.map(|n| (*p, n))) {
            let q = if past > now { past } else { now };
            let want = ([Real::exp(past - q); WIDE], [Real::exp(now - q); WIDE]);
            assert_eq!(weights(&[past; WIDE], &[now; WIDE]), want, "{past}, {now}");
        }
    }

    /// Against the definition: sums over all earlier tokens.
    #[test]
    fn equals_the_plain_definition() {
        let (c, t) = (3, 9);
        let wave = |n: usize, f: f64| -> Vec<f64> { (0..n).map(|i| (i as f64 * f).sin() * 2.0).collect() };
        let (k, v, td, u) = (wave(t * c, 0.7), wave(t * c, 1.3), wave(c, 2.1), wave(c, 0.3));
        let (mut aa, mut bb, mut pp) = (vec![0.0; c], vec![0.0; c], vec![-1e30; c]);
        let mut y = vec![0.0; t * c];
        let state = State4 { aa: &mut aa, bb: &mut bb, pp: &mut pp };
        wkv4(Isa::best(), &Pool::new(1), &mut y, state, &k, &v, &td, &u);
        for j in 0..c {
            let w = -td[j].exp();
            for s in 0..t {
                let e = (u[j] + k[s * c + j]).exp();
                let (mut num, mut den) = (e * v[s * c + j], e);
                for i in 0..s {
                    let e = ((s - 1 - i) as f64 * w + k[i * c + j]).exp();
                    num += e * v[i * c + j];
                    den += e;
                }
                assert!((y[s * c + j] - num / den).abs() < 1e-12);
            }
        }
    }
}
