//! RWKV-5.0, 5.1 and 5.2 (Eagle): a matrix state with a constant decay (spec sections 2 and 3).

use super::backward::{RUN, Saved};
use super::{Head, Rows, Scratch, USUAL, matrix_step};
use crate::Real;
use crate::isa::compiled_for_each;

compiled_for_each! {
    /// The recurrence of one head.
    ///
    /// * `y`: `[t, h*n]`
    /// * `s`: `[n, n]`, index [key, value]
    /// * `time_decay`, `bonus`: `[h]` (v5.0, v5.1: one a head) or `[h*n]` (v5.2: one a key channel);
    ///   the decay of a step is exp(-exp(time_decay)), the bonus u is used directly
    pub fn wkv5<F: Real>(y: &Rows<F>, s: &mut [F], x: Head<'_, F>, time_decay: &[F], bonus: &[F]) = body
}

compiled_for_each! {
    /// As [`wkv5`], for training: the state before each run of [`RUN`](super::RUN) tokens is kept in `saved`, as long as
    /// [`saved_len`](super::saved_len) says.
    pub fn wkv5_saving<F: Real>(
        y: &Rows<F>,
        s: &mut [F],
        saved: &mut [F],
        x: Head<'_, F>,
        time_decay: &[F],
        bonus: &[F],
    ) = saving
}

#[inline(always)]
fn body<F: Real>(y: &Rows<F>, s: &mut [F], x: Head<'_, F>, time_decay: &[F], bonus: &[F]) {
    saving(y, s, &mut [], x, time_decay, bonus);
}

#[inline(always)]
fn saving<F: Real>(y: &Rows<F>, s: &mut [F], saved: &mut [F], x: Head<'_, F>, time_decay: &[F], bonus: &[F]) {
    let n = x.n;
    let mut saved = Saved::new(saved, RUN, x.r.len() / x.c, n);
    let mut scratch = Scratch::<F, { 2 * USUAL }>::new(2 * n);
    let (w, u) = scratch.get().split_at_mut(n);
    constants(w, u, &x, time_decay, bonus);
    for at in x.tokens() {
        saved.before_token(s);
        matrix_step(y.at(at, n), s, &x.r[at..at + n], &x.k[at..at + n], &x.v[at..at + n], w, u);
    }
}

/// Decay and bonus of each key channel of this head, from one a head or one a channel; `w` and `u`: `[n]`.
#[inline(always)]
pub fn constants<F: Real>(w: &mut [F], u: &mut [F], x: &Head<'_, F>, time_decay: &[F], bonus: &[F]) {
    let (head, n) = (x.head, x.n);
    for (own, p) in [(&mut *w, time_decay), (u, bonus)] {
        if p.len() == x.c { own.copy_from_slice(&p[head * n..][..n]) } else { own.fill(p[head]) }
    }
    // On their own, so that they run in vector registers.
    w.iter_mut().for_each(|w| *w = (-w.exp()).exp());
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_heads;
    use super::*;
    use crate::Isa;

    #[test]
    fn one_decay_a_head_is_the_same_decay_for_each_channel() {
        let (h, n, t) = (2, 3, 4);
        let wave = |m: usize, f: f64| -> Vec<f64> { (0..m).map(|i| (i as f64 * f).sin()).collect() };
        let (r, k, v) = (wave(t * h * n, 0.7), wave(t * h * n, 1.3), wave(t * h * n, 0.4));
        let (d, u) = ([-1.0, 0.5], [0.3, -0.2]);
        let wide = |p: [f64; 2]| -> Vec<f64> { (0..h * n).map(|i| p[i / n]).collect() };
        let run = |d: &[f64], u: &[f64]| {
            let (mut y, mut s) = (vec![0.0; t * h * n], vec![0.0; h * n * n]);
            run_heads(&mut y, &mut s, [&r, &k, &v], n, |rows, s, x| wkv5(Isa::best(), rows, s, x, d, u));
            (y, s)
        };
        assert_eq!(run(&d, &u), run(&wide(d), &wide(u)));
        // First token on an empty state: y = (r · (u k)) v.
        let (y, _) = run(&d, &u);
        let dot: f64 = (0..n).map(|i| r[i] * u[0] * k[i]).sum();
        assert!((0..n).all(|j| (y[j] - dot * v[j]).abs() < 1e-15));
    }
}
