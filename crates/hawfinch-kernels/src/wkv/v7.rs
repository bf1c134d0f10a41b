//! RWKV-7 (Goose): a state that is edited, not only added to (spec section 5.2).

use super::{Head, Rows, USUAL};
use crate::Real;
use crate::isa::compiled_for_each;
use crate::reduce::dot;

/// e^(-1/2): the largest log-decay of a step.
const MAX_LOG_DECAY: f64 = 0.606_530_659_712_633_4;

compiled_for_each! {
    /// The recurrence of one head: S ← S diag(w) - (S kk)(kk ⊙ a)ᵀ + v kᵀ, then y = S r.
    ///
    /// * `y`, `kk`, `a`: `[t, h*n]`; `kk` is the normalised removal key, `a` the in-context learning rate
    /// * `om`: `[t, h*n]`, raw; the decay of a step is w = exp(-e^(-1/2) sigmoid(om))
    /// * `s`: `[n, n]`, index [value, key]
    pub fn wkv7<F: Real>(y: &Rows<F>, s: &mut [F], x: Head<'_, F>, om: &[F], kk: &[F], a: &[F]) = body
}

#[inline(always)]
fn body<F: Real>(y: &Rows<F>, s: &mut [F], x: Head<'_, F>, om: &[F], kk: &[F], a: &[F]) {
    let n = x.n;
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let (mut w, mut b) = (vec![F::ZERO; n], vec![F::ZERO; n]);
    for at in x.tokens() {
        let of = at..at + n;
        let (om, kk, a) = (&om[of.clone()], &kk[of.clone()], &a[of.clone()]);
        for j in 0..n {
            w[j] = (rate * om[j].sigmoid()).exp();
            b[j] = kk[j] * a[j];
        }
        let (r, k, v) = (&x.r[of.clone()], &x.k[of.clone()], &x.v[of]);
        let y = y.at(at, n);
        let usual = |x: &[F]| <[F; USUAL]>::try_from(x);
        match (usual(r), usual(k), usual(&w), usual(kk), usual(&b)) {
            (Ok(r), Ok(k), Ok(w), Ok(kk), Ok(b)) => rows(y, s, &r, &k, v, &w, &kk, &b),
            _ => rows(y, s, r, k, v, &w, kk, &b),
        }
    }
}

#[inline(always)]
fn rows<F: Real>(y: &mut [F], s: &mut [F], r: &[F], k: &[F], v: &[F], w: &[F], kk: &[F], b: &[F]) {
    let n = r.len();
    for (i, row) in s.chunks_exact_mut(n).enumerate() {
        let removed = -dot(row, kk);
        for j in 0..n {
            row[j] = row[j].mul_add(w[j], removed.mul_add(b[j], v[i] * k[j]));
        }
        y[i] = dot(row, r);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_heads;
    use super::*;
    use crate::Isa;

    #[test]
    fn the_first_token_reads_back_its_value() {
        let n = 4;
        let (r, k, v) = ([1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.25, 2.0], [3.0, 5.0, 7.0, 9.0]);
        let (kk, a, om) = ([0.5; 4], [0.3; 4], [1.0; 4]);
        let (mut y, mut s) = ([0.0f64; 4], [0.0; 16]);
        let run = |y: &mut [f64], s: &mut [f64], rkv, om: &[f64], kk: &[f64], a: &[f64]| {
            run_heads(y, s, rkv, n, |y, s, x| wkv7(Isa::best(), y, s, x, om, kk, a));
        };
        run(&mut y, &mut s, [&r, &k, &v], &om, &kk, &a);
        let kr: f64 = k.iter().zip(&r).map(|(k, r)| k * r).sum();
        assert!((0..4).all(|i| (y[i] - v[i] * kr).abs() < 1e-12));
        // With a = 1, writing (kk, 0) removes what was stored under the unit key kk, but for decay.
        let (mut s, key) = ([0.0; 16], [1.0, 0.0, 0.0, 0.0]);
        s[0] = 5.0;
        run(&mut y, &mut s, [&r, &[0.0; 4], &[0.0; 4]], &[-50.0; 4], &key, &[1.0; 4]);
        assert!(s.iter().all(|v| v.abs() < 1e-12));
    }
}
