//! RWKV-4: a channel-wise weighted mean (spec section 1.2).

use crate::Real;

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
pub fn wkv4<F: Real>(y: &mut [F], s: State4<'_, F>, k: &[F], v: &[F], time_decay: &[F], time_first: &[F]) {
    let c = time_decay.len();
    for j in 0..c {
        let (w, u) = (-time_decay[j].exp(), time_first[j]);
        let (mut a, mut b, mut p) = (s.aa[j], s.bb[j], s.pp[j]);
        for t in (j..y.len()).step_by(c) {
            let (kt, vt) = (k[t], v[t]);
            let q = p.max(u + kt);
            let (e1, e2) = ((p - q).exp(), (u + kt - q).exp());
            y[t] = (e1 * a + e2 * vt) / (e1 * b + e2);
            let q = (p + w).max(kt);
            let (e1, e2) = ((p + w - q).exp(), (kt - q).exp());
            a = e1 * a + e2 * vt;
            b = e1 * b + e2;
            p = q;
        }
        (s.aa[j], s.bb[j], s.pp[j]) = (a, b, p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition: sums over all earlier tokens.
    #[test]
    fn equals_the_plain_definition() {
        let (c, t) = (3, 9);
        let wave = |n: usize, f: f64| -> Vec<f64> { (0..n).map(|i| (i as f64 * f).sin() * 2.0).collect() };
        let (k, v, td, u) = (wave(t * c, 0.7), wave(t * c, 1.3), wave(c, 2.1), wave(c, 0.3));
        let (mut aa, mut bb, mut pp) = (vec![0.0; c], vec![0.0; c], vec![-1e30; c]);
        let mut y = vec![0.0; t * c];
        wkv4(&mut y, State4 { aa: &mut aa, bb: &mut bb, pp: &mut pp }, &k, &v, &td, &u);
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
