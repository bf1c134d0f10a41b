//! RWKV-7 (Goose): a state that is edited, not only added to (spec section 5.2).

use super::backward::{RUN7, Saved, states_len7};
use super::{Head, Rows, Scratch, USUAL};
use crate::isa::compiled_for_each;
use crate::{Isa, Real};

/// e^(-1/2): the largest log-decay of a step.
pub(super) const MAX_LOG_DECAY: f64 = 0.606_530_659_712_633_4;

/// Tokens from which on it pays to work on a copy of the state whose rows keep to their cache lines.
const COPIED: usize = 8;

/// The recurrence of one head: S ← S diag(w) - (S kk)(kk ⊙ a)ᵀ + v kᵀ, then y = S r.
///
/// * `y`, `kk`, `a`: `[t, h*n]`; `kk` is the normalised removal key, `a` the in-context learning rate
/// * `om`: `[t, h*n]`, raw; the decay of a step is w = exp(-e^(-1/2) sigmoid(om))
/// * `s`: `[n, n]`, index [key, value]: then a register holds the values of one key, and nothing is ever added across
///   it
pub fn wkv7<F: Real>(isa: Isa, y: &Rows<F>, s: &mut [F], x: Head<'_, F>, om: &[F], kk: &[F], a: &[F]) {
    wkv7_saving(isa, y, s, &mut [], x, om, kk, a);
}

/// As [`wkv7`], for training: the state before each run of [`RUN7`](super::RUN7) tokens and what each token removes are
/// kept in `saved`, as long as [`saved_len7`](super::saved_len7) says.
pub fn wkv7_saving<F: Real>(
    isa: Isa,
    y: &Rows<F>,
    s: &mut [F],
    saved: &mut [F],
    x: Head<'_, F>,
    om: &[F],
    kk: &[F],
    a: &[F],
) {
    if x.r.len() / x.c < COPIED {
        return tokens(isa, isa, y, s, saved, x, om, kk, a);
    }
    let mut aligned = Scratch::<F, { USUAL * USUAL }>::new(s.len());
    let aligned = aligned.get();
    aligned.copy_from_slice(s);
    tokens(isa, isa, y, aligned, saved, x, om, kk, a);
    s.copy_from_slice(aligned);
}

compiled_for_each! {
    fn tokens<F: Real>(
        level: Isa,
        y: &Rows<F>,
        s: &mut [F],
        saved: &mut [F],
        x: Head<'_, F>,
        om: &[F],
        kk: &[F],
        a: &[F],
    ) = body
}

#[inline(always)]
fn body<F: Real>(
    isa: Isa,
    y: &Rows<F>,
    s: &mut [F],
    saved: &mut [F],
    x: Head<'_, F>,
    om: &[F],
    kk: &[F],
    a: &[F],
) {
    let n = x.n;
    let t = x.r.len() / x.c;
    let (states, keep) = saved.split_at_mut(if saved.is_empty() { 0 } else { states_len7(t, n) });
    let (mut states, mut keep) = (Saved::new(states, RUN7, t, n), keep.chunks_exact_mut(n));
    let rate = F::from_f64(-MAX_LOG_DECAY);
    let mut scratch = Scratch::<F, { 3 * USUAL }>::new(3 * n);
    let (w, rest) = scratch.get().split_at_mut(n);
    let (b, removed) = rest.split_at_mut(n);
    for at in x.tokens() {
        let of = at..at + n;
        let (om, kk, a) = (&om[of.clone()], &kk[of.clone()], &a[of.clone()]);
        let (r, k, v) = (&x.r[of.clone()], &x.k[of.clone()], &x.v[of]);
        let y = y.at(at, n);
        states.before_token(s);
        for j in 0..n {
            w[j] = (rate * om[j].sigmoid()).exp();
            b[j] = kk[j] * a[j];
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let done = F::as_f32_slice(s).is_some_and(|s| usual(isa, y, removed, s, [r, k, v, w, kk, b]));
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let (done, _) = (false, isa);
        if !done {
            removed.fill(F::ZERO);
            y.fill(F::ZERO);
            step(y, s, r, k, v, w, kk, b, removed);
        }
        if let Some(keep) = keep.next() {
            keep.copy_from_slice(removed);
        }
    }
}

/// A head of the usual size, in loops of the instruction set's own if it has them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn usual<F: Real>(isa: Isa, y: &mut [F], removed: &mut [F], s: &mut [f32], x: [&[F]; 6]) -> bool {
    fn filled<F: Real>(x: &mut [F]) -> Option<&mut [f32; USUAL]> {
        F::as_f32_slice(x)?.try_into().ok()
    }
    fn sized<F: Real>(x: &[F]) -> Option<&[f32; USUAL]> {
        F::as_f32s(x)?.try_into().ok()
    }
    let [Some(r), Some(k), Some(v), Some(w), Some(kk), Some(b)] = x.map(sized) else { return false };
    let (Some(y), Some(removed)) = (filled(y), filled(removed)) else { return false };
    super::v7_wide::step(isa, y, removed, s, &super::v7_wide::Token { r, k, v, w, kk, b })
}

/// One token; `y` and `removed` are zero. All `[n]`.
#[inline(always)]
fn step<F: Real>(
    y: &mut [F],
    s: &mut [F],
    r: &[F],
    k: &[F],
    v: &[F],
    w: &[F],
    kk: &[F],
    b: &[F],
    removed: &mut [F],
) {
    let n = v.len();
    for (j, row) in s.chunks_exact(n).enumerate() {
        let kk = kk[j];
        for i in 0..n {
            removed[i] = row[i].mul_add(kk, removed[i]);
        }
    }
    for (j, row) in s.chunks_exact_mut(n).enumerate() {
        let (w, b, k, r) = (w[j], -b[j], k[j], r[j]);
        for i in 0..n {
            row[i] = row[i].mul_add(w, removed[i].mul_add(b, v[i] * k));
            y[i] = row[i].mul_add(r, y[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_heads;
    use super::*;

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
