//! RWKV-6 (Finch): a matrix state with a decay of its own for every token and key channel (spec
//! section 4.2).

use super::matrix_step;
use crate::Real;

/// The recurrence.
///
/// * `y`, `r`, `k`, `v`: `[t, h*n]`
/// * `s`: `[h, n, n]`, index [head, key, value]
/// * `d`: `[t, h*n]`, raw; the decay of a step is exp(-exp(d)), applied after that step's read
/// * `bonus`: `[h*n]`
pub fn wkv6<F: Real>(y: &mut [F], s: &mut [F], r: &[F], k: &[F], v: &[F], d: &[F], bonus: &[F], n: usize) {
    let c = bonus.len();
    let mut w = vec![F::ZERO; n];
    for (head, s) in s.chunks_exact_mut(n * n).enumerate() {
        let u = &bonus[head * n..(head + 1) * n];
        for t in (0..y.len()).step_by(c) {
            let at = t + head * n..t + head * n + n;
            for (w, d) in w.iter_mut().zip(&d[at.clone()]) {
                *w = (-d.exp()).exp();
            }
            matrix_step(&mut y[at.clone()], s, &r[at.clone()], &k[at.clone()], &v[at], &w, u);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_decay_is_version_5_2() {
        let (h, n, t) = (2, 4, 6);
        let c = h * n;
        let wave = |m: usize, f: f64| -> Vec<f64> { (0..m).map(|i| (i as f64 * f).sin()).collect() };
        let (r, k, v, d, u) =
            (wave(t * c, 0.7), wave(t * c, 1.3), wave(t * c, 0.4), wave(c, 0.9), wave(c, 0.2));
        let (mut y5, mut s5) = (vec![0.0; t * c], wave(h * n * n, 0.11));
        let (mut y6, mut s6) = (y5.clone(), s5.clone());
        super::super::wkv5(&mut y5, &mut s5, &r, &k, &v, &d, &u, n);
        wkv6(&mut y6, &mut s6, &r, &k, &v, &d.repeat(t), &u, n);
        assert_eq!((y5, s5), (y6, s6));
    }
}
