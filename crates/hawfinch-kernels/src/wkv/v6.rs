//! RWKV-6 (Finch): a matrix state with a decay of its own for every token and key channel (spec
//! section 4.2).

use super::backward::{RUN, Saved};
use super::{Head, Rows, Scratch, USUAL, matrix_step};
use crate::Real;
use crate::isa::compiled_for_each;

compiled_for_each! {
    /// The recurrence of one head.
    ///
    /// * `y`: `[t, h*n]`
    /// * `s`: `[n, n]`, index [key, value]
    /// * `d`: `[t, h*n]`, raw; the decay of a step is exp(-exp(d)), applied after that step's read
    /// * `bonus`: `[h*n]`
    pub fn wkv6<F: Real>(y: &Rows<F>, s: &mut [F], x: Head<'_, F>, d: &[F], bonus: &[F]) = body
}

compiled_for_each! {
    /// As [`wkv6`], for training: the state before each run of [`RUN`](super::RUN) tokens is kept in `saved`, as long as
    /// [`saved_len`](super::saved_len) says.
    pub fn wkv6_saving<F: Real>(
        y: &Rows<F>,
        s: &mut [F],
        saved: &mut [F],
        x: Head<'_, F>,
        d: &[F],
        bonus: &[F],
    ) = saving
}

#[inline(always)]
fn body<F: Real>(y: &Rows<F>, s: &mut [F], x: Head<'_, F>, d: &[F], bonus: &[F]) {
    saving(y, s, &mut [], x, d, bonus);
}

#[inline(always)]
fn saving<F: Real>(y: &Rows<F>, s: &mut [F], saved: &mut [F], x: Head<'_, F>, d: &[F], bonus: &[F]) {
    let n = x.n;
    let mut saved = Saved::new(saved, RUN, x.r.len() / x.c, n);
    let u = &bonus[x.head * n..(x.head + 1) * n];
    let mut scratch = Scratch::<F, USUAL>::new(n);
    let w = scratch.get();
    for at in x.tokens() {
        for (w, d) in w.iter_mut().zip(&d[at..at + n]) {
            *w = (-d.exp()).exp();
        }
        saved.before_token(s);
        matrix_step(y.at(at, n), s, &x.r[at..at + n], &x.k[at..at + n], &x.v[at..at + n], w, u);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_heads;
    use super::*;
    use crate::Isa;

    #[test]
    fn a_constant_decay_is_version_5_2() {
        let (h, n, t) = (2, 4, 6);
        let c = h * n;
        let wave = |m: usize, f: f64| -> Vec<f64> { (0..m).map(|i| (i as f64 * f).sin()).collect() };
        let (r, k, v, d, u) =
            (wave(t * c, 0.7), wave(t * c, 1.3), wave(t * c, 0.4), wave(c, 0.9), wave(c, 0.2));
        let (mut y5, mut s5) = (vec![0.0; t * c], wave(h * n * n, 0.11));
        let (mut y6, mut s6) = (y5.clone(), s5.clone());
        let (isa, rkv) = (Isa::best(), [&r[..], &k, &v]);
        run_heads(&mut y5, &mut s5, rkv, n, |y, s, x| super::super::wkv5(isa, y, s, x, &d, &u));
        run_heads(&mut y6, &mut s6, rkv, n, |y, s, x| wkv6(isa, y, s, x, &d.repeat(t), &u));
        assert_eq!((y5, s5), (y6, s6));
    }
}
