//! Operations that look at one channel of one token at a time. An operand with one row stands for every
//! row: `[1, c]` beside `[t, c]`.

pub mod backward;

use crate::isa::compiled_for_each;
use crate::reduce::dot3;
use crate::{Isa, Real};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// e^x
    Exp,
    /// Hyperbolic tangent.
    Tanh,
    /// 1/(1+e^-x)
    Sigmoid,
    /// x * sigmoid(x)
    Silu,
    /// max(x, 0)²; NaN stays NaN, so that a damaged weight shows.
    ReluSquared,
}

compiled_for_each! {
    /// `y = f(x)`, any shape.
    pub fn unary<F: Real>(f: Unary, y: &mut [F], x: &[F]) = unary_body
}

#[inline(always)]
fn unary_body<F: Real>(f: Unary, y: &mut [F], x: &[F]) {
    #[inline(always)]
    fn map<F: Real>(y: &mut [F], x: &[F], f: impl Fn(F) -> F) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
    }
    match f {
        Unary::Exp => map(y, x, |x| x.exp()),
        Unary::Tanh => map(y, x, |x| x.tanh()),
        Unary::Sigmoid => map(y, x, |x| x.sigmoid()),
        Unary::Silu => map(y, x, |x| x * x.sigmoid()),
        Unary::ReluSquared => map(y, x, |x| {
            let p = if x < F::ZERO { F::ZERO } else { x };
            p * p
        }),
    }
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a * b
    Mul,
    /// sigmoid(a) * b
    SigmoidMul,
    /// silu(a) * b
    SiluMul,
}

compiled_for_each! {
    /// `y = f(a, b)`: `y`, `a` `[t, c]`; `b` `[t, c]` or `[1, c]`.
    pub fn binary<F: Real>(f: Binary, y: &mut [F], a: &[F], b: &[F]) = binary_body
}

#[inline(always)]
fn binary_body<F: Real>(f: Binary, y: &mut [F], a: &[F], b: &[F]) {
    #[inline(always)]
    fn each<F: Real>(y: &mut [F], a: &[F], b: &[F], f: impl Fn(F, F) -> F) {
        for (y, a) in y.chunks_exact_mut(b.len()).zip(a.chunks_exact(b.len())) {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        }
    }
    match f {
        Binary::Add => each(y, a, b, |a, b| a + b),
        Binary::Mul => each(y, a, b, |a, b| a * b),
        Binary::SigmoidMul => each(y, a, b, |a, b| a.sigmoid() * b),
        Binary::SiluMul => each(y, a, b, |a, b| a * a.sigmoid() * b),
    }
}

compiled_for_each! {
    /// `y = a + s b`, any one shape.
    pub fn add_scaled<F: Real>(y: &mut [F], a: &[F], b: &[F], s: F) = add_scaled_body
}

#[inline(always)]
fn add_scaled_body<F: Real>(y: &mut [F], a: &[F], b: &[F], s: F) {
    y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = s.mul_add(b, a));
}

compiled_for_each! {
    /// `y += s x`, any one shape; the bits of [`add_scaled`].
    pub fn add_scaled_to<F: Real>(y: &mut [F], x: &[F], s: F) = add_scaled_to_body
}

#[inline(always)]
fn add_scaled_to_body<F: Real>(y: &mut [F], x: &[F], s: F) {
    assert_eq!(y.len(), x.len(), "add_scaled_to: shapes");
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = s.mul_add(x, *y));
}

compiled_for_each! {
    /// `y += x`, any one shape.
    pub fn add_to<F: Real>(y: &mut [F], x: &[F]) = add_to_body
}

#[inline(always)]
fn add_to_body<F: Real>(y: &mut [F], x: &[F]) {
    assert_eq!(y.len(), x.len(), "add_to: shapes");
    y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
}

compiled_for_each! {
    /// `y = from + (to - from) * weight`: `from`, `to`, `y` `[t, c]`; `weight` `[t, c]` or `[1, c]`.
    pub fn lerp<F: Real>(y: &mut [F], from: &[F], to: &[F], weight: &[F]) = lerp_body
}

#[inline(always)]
fn lerp_body<F: Real>(y: &mut [F], from: &[F], to: &[F], weight: &[F]) {
    let c = weight.len();
    for ((y, from), to) in y.chunks_exact_mut(c).zip(from.chunks_exact(c)).zip(to.chunks_exact(c)) {
        for (((y, &from), &to), &weight) in y.iter_mut().zip(from).zip(to).zip(weight) {
            *y = (to - from).mul_add(weight, from);
        }
    }
}

/// Which row a mix of a row with the one before it gives at weight 1; at weight 0 it gives the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// The row itself: RWKV-4 and 5.
    Row,
    /// The row before: RWKV-6 and 7.
    Before,
}

/// Mixes of a row with the row before it: each [`lerp`] with a weight of its own, every number read once.
///
/// * `ys`, `weights`: as many rows `[c]` each
/// * `row`, `before`: `[c]`
pub fn mixes<F: Real>(
    isa: Isa,
    ys: &mut [&mut [F]],
    row: &[F],
    before: &[F],
    weights: &[&[F]],
    toward: Toward,
) {
    let (from, to) = if toward == Toward::Row { (before, row) } else { (row, before) };
    mixes_between(isa, ys, from, to, weights);
}

compiled_for_each! {
    fn mixes_between<F: Real>(ys: &mut [&mut [F]], from: &[F], to: &[F], weights: &[&[F]]) = mixes_body
}

#[inline(always)]
fn mixes_body<F: Real>(ys: &mut [&mut [F]], from: &[F], to: &[F], weights: &[&[F]]) {
    const LANES: usize = 16;
    let c = from.len();
    assert!(to.len() == c && ys.len() == weights.len(), "mixes: shapes");
    assert!(ys.iter().all(|y| y.len() == c) && weights.iter().all(|w| w.len() == c), "mixes: rows");
    let (from_parts, from_rest) = from.as_chunks::<LANES>();
    let (to_parts, to_rest) = to.as_chunks::<LANES>();
    for (n, (from, to)) in from_parts.iter().zip(to_parts).enumerate() {
        let at = n * LANES..(n + 1) * LANES;
        for (y, weight) in ys.iter_mut().zip(weights) {
            let (y, weight) = (&mut y[at.clone()], &weight[at.clone()]);
            for l in 0..LANES {
                y[l] = (to[l] - from[l]).mul_add(weight[l], from[l]);
            }
        }
    }
    let whole = from_parts.len() * LANES;
    for (y, weight) in ys.iter_mut().zip(weights) {
        for (j, (from, to)) in from_rest.iter().zip(to_rest).enumerate() {
            y[whole + j] = (*to - *from).mul_add(weight[whole + j], *from);
        }
    }
}

compiled_for_each! {
    /// RWKV-7's key: `y = k * (1 + (a - 1) * k_a)`; `k`, `a`, `y` `[t, c]`, `k_a` `[c]`.
    pub fn scale_key<F: Real>(y: &mut [F], k: &[F], a: &[F], k_a: &[F]) = scale_key_body
}

#[inline(always)]
fn scale_key_body<F: Real>(y: &mut [F], k: &[F], a: &[F], k_a: &[F]) {
    let c = k_a.len();
    for ((y, k), a) in y.chunks_exact_mut(c).zip(k.chunks_exact(c)).zip(a.chunks_exact(c)) {
        for (((y, &k), &a), &k_a) in y.iter_mut().zip(k).zip(a).zip(k_a) {
            *y = k * (a - F::ONE).mul_add(k_a, F::ONE);
        }
    }
}

compiled_for_each! {
    /// RWKV-7's current-token bonus: per head, `y = x + (Σ r k r_k) v`; all `[t, c]`, `r_k` `[c]`, heads of
    /// `n`.
    pub fn bonus<F: Real>(y: &mut [F], x: &[F], r: &[F], k: &[F], v: &[F], r_k: &[F], n: usize) = bonus_body
}

#[inline(always)]
fn bonus_body<F: Real>(y: &mut [F], x: &[F], r: &[F], k: &[F], v: &[F], r_k: &[F], n: usize) {
    let c = r_k.len();
    for t in (0..y.len()).step_by(c) {
        for h in (0..c).step_by(n) {
            let at = t + h..t + h + n;
            let (r, k, v) = (&r[at.clone()], &k[at.clone()], &v[at.clone()]);
            let s = dot3(r, k, &r_k[h..h + n]);
            for ((y, &x), &v) in y[at.clone()].iter_mut().zip(&x[at]).zip(v) {
                *y = s.mul_add(v, x);
            }
        }
    }
}

/// The row before each row: `y[0] = previous`, `y[t] = x[t-1]`; afterwards `previous = x[last]`.
/// `y`, `x` `[t, c]` of one sequence, `previous` `[c]`.
pub fn token_shift<F: Real>(y: &mut [F], x: &[F], previous: &mut [F]) {
    let c = previous.len();
    if x.is_empty() {
        return;
    }
    y[..c].copy_from_slice(previous);
    y[c..].copy_from_slice(&x[..x.len() - c]);
    previous.copy_from_slice(&x[x.len() - c..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shift_carries_over_any_split() {
        let x: Vec<f32> = (0..10).map(|v| v as f32).collect();
        let (mut whole, mut parts) = (vec![0.0; 10], vec![0.0; 10]);
        let (mut p, mut q) = ([7.0, 8.0], [7.0, 8.0]);
        token_shift(&mut whole, &x, &mut p);
        token_shift(&mut parts[..4], &x[..4], &mut q);
        token_shift(&mut [], &[], &mut q);
        token_shift(&mut parts[4..], &x[4..], &mut q);
        assert_eq!((whole, p), (parts, q));
    }

    #[test]
    fn one_row_stands_for_all() {
        let mut y = [0.0f64; 4];
        lerp(Isa::best(), &mut y, &[0.0, 0.0, 2.0, 2.0], &[1.0, 1.0, 4.0, 4.0], &[0.25, 0.5]);
        assert_eq!(y, [0.25, 0.5, 2.5, 3.0]);
        binary(Isa::best(), Binary::Add, &mut y, &[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0]);
        assert_eq!(y, [11.0, 22.0, 13.0, 24.0]);
        unary(Isa::best(), Unary::ReluSquared, &mut y, &[-1.0, 2.0, 0.0, f64::NAN]);
        assert_eq!(y[..3], [0.0, 4.0, 0.0]);
        assert!(y[3].is_nan());
    }

    #[test]
    fn mixes_are_lerps() {
        for c in [1, 15, 16, 37] {
            let numbers = |k: usize| (0..c).map(|j| ((j * k) % 11) as f32 - 3.7).collect::<Vec<_>>();
            let (row, before, weights) = (numbers(3), numbers(5), [numbers(2), numbers(7)]);
            for isa in Isa::available() {
                for toward in [Toward::Row, Toward::Before] {
                    let mut ys = [vec![0.0; c], vec![0.0; c]];
                    let [a, b] = &mut ys;
                    mixes(isa, &mut [a, b], &row, &before, &[&weights[0], &weights[1]], toward);
                    for (y, weight) in ys.iter().zip(&weights) {
                        let mut one = vec![0.0; c];
                        let (from, to) =
                            if toward == Toward::Row { (&before, &row) } else { (&row, &before) };
                        lerp(Isa::SCALAR, &mut one, from, to, weight);
                        assert_eq!(*y, one, "{c} {isa} {toward:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn sigmoid_of_extremes_is_finite() {
        assert_eq!((-1e4f32).sigmoid(), 0.0);
        assert_eq!(1e4f32.sigmoid(), 1.0);
    }
}
