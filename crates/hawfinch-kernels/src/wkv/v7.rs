//! RWKV-7 (Goose): a state that is edited, not only added to (spec section 5.2).

use crate::Real;
use crate::linear::dot;

/// e^(-1/2): the largest log-decay of a step.
const MAX_LOG_DECAY: f64 = 0.606_530_659_712_633_4;

/// The recurrence, per head: S ← S diag(w) - (S kk)(kk ⊙ a)ᵀ + v kᵀ, then y = S r.
///
/// * `y`, `r`, `k`, `v`, `kk`, `a`: `[t, h*n]`; `kk` is the normalised removal key, `a` the in-context
///   learning rate
/// * `om`: `[t, h*n]`, raw; the decay of a step is w = exp(-e^(-1/2) sigmoid(om))
/// * `s`: `[h, n, n]`, index [head, value, key]
pub fn wkv7<F: Real>(
    y: &mut [F],
    s: &mut [F],
    r: &[F],
    om: &[F],
    k: &[F],
    v: &[F],
    kk: &[F],
    a: &[F],
    n: usize,
) {
    let c = s.len() / n;
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let (mut w, mut b) = (vec![F::ZERO; n], vec![F::ZERO; n]);
    for (head, s) in s.chunks_exact_mut(n * n).enumerate() {
        for t in (0..y.len()).step_by(c) {
            let at = t + head * n..t + head * n + n;
            let (r, k, v, kk, a) =
                (&r[at.clone()], &k[at.clone()], &v[at.clone()], &kk[at.clone()], &a[at.clone()]);
            for j in 0..n {
                w[j] = (rate * om[at.start + j].sigmoid()).exp();
                b[j] = kk[j] * a[j];
            }
            let y = &mut y[at];
            for (i, row) in s.chunks_exact_mut(n).enumerate() {
                let removed = -dot(row, kk);
                for j in 0..n {
                    row[j] = row[j] * w[j] + removed * b[j] + v[i] * k[j];
                }
                y[i] = dot(row, r);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_reads_back_its_value() {
        let n = 4;
        let (r, k, v) = ([1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.25, 2.0], [3.0, 5.0, 7.0, 9.0]);
        let (kk, a, om) = ([0.5; 4], [0.3; 4], [1.0; 4]);
        let (mut y, mut s) = ([0.0f64; 4], [0.0; 16]);
        wkv7(&mut y, &mut s, &r, &om, &k, &v, &kk, &a, n);
        let kr: f64 = k.iter().zip(&r).map(|(k, r)| k * r).sum();
        assert!((0..4).all(|i| (y[i] - v[i] * kr).abs() < 1e-12));
        // With a = 1, writing (kk, 0) removes what was stored under the unit key kk, but for decay.
        let (mut s, key) = ([0.0; 16], [1.0, 0.0, 0.0, 0.0]);
        s[0] = 5.0;
        wkv7(&mut y, &mut s, &r, &[-50.0; 4], &[0.0; 4], &[0.0; 4], &key, &[1.0; 4], n);
        assert!(s.iter().all(|v| v.abs() < 1e-12));
    }
}
