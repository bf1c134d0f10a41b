//! AdamW, one pass over parameters, moments and gradients; and the sums of squares that gradient clipping needs.
//!
//! Source: Kingma and Ba 2015, Loshchilov and Hutter 2019, in the form of DeepSpeed's `FusedAdam` with
//! `adam_w_mode`, which the RWKV references use. Per element, with `g` the gradient times
//! [`Step::gradient_scale`] and `t` the number of the step from 1:
//!
//! ```text
//! m = β1 m + (1 - β1) g
//! v = β2 v + (1 - β2) g²
//! p = p - rate ( m/(1 - β1^t) / (√(v/(1 - β2^t)) + ε) + weight_decay p )
//! ```
//!
//! An element whose gradient has always been 0 does not move, but for weight decay: 0/(0 + ε) = 0.

use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::reduce::{LANES, fold};
use crate::{Isa, Pool, Real, Work};

/// Numbers that one thread takes at a time, and whose squares are one sum of those that [`sums_of_squares`] adds.
pub const CHUNK: usize = 1 << 14;

/// Moments below it are put to 0 where the gradient is 0: the smallest normal f32. Rows of an embedding whose token
/// does not come would else hold subnormal numbers for ever (0.9 x rounds to x there), which processors multiply a
/// hundred times slower. With ε = 1e-18 what is lost moves a parameter by less than 1e-19 rates.
const TINY: f64 = f32::MIN_POSITIVE as f64;

/// What one step has in common for all elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step<F> {
    /// Learning rate of this tensor, at this step.
    pub rate: F,
    /// Decoupled weight decay.
    pub weight_decay: F,
    /// β1 and 1 - β1.
    pub beta1: [F; 2],
    /// β2 and 1 - β2.
    pub beta2: [F; 2],
    /// ε
    pub eps: F,
    /// 1/(1 - β1^t)
    pub correction1: F,
    /// 1/(1 - β2^t)
    pub correction2: F,
    /// Gradients are multiplied by it: the factor of clipping, and of whatever else they have to be divided by.
    pub gradient_scale: F,
}

impl<F: Real> Step<F> {
    /// Step number `t`, from 1, with `betas` (β1, β2); everything is computed in f64 and rounded once.
    pub fn new(
        t: u64,
        rate: f64,
        weight_decay: f64,
        betas: (f64, f64),
        eps: f64,
        gradient_scale: f64,
    ) -> Self {
        let t = t as f64;
        let pair = |beta: f64| [F::from_f64(beta), F::from_f64(1.0 - beta)];
        let correction = |beta: f64| F::from_f64(1.0 / (1.0 - beta.powf(t)));
        Step {
            rate: F::from_f64(rate),
            weight_decay: F::from_f64(weight_decay),
            beta1: pair(betas.0),
            beta2: pair(betas.1),
            eps: F::from_f64(eps),
            correction1: correction(betas.0),
            correction2: correction(betas.1),
            gradient_scale: F::from_f64(gradient_scale),
        }
    }
}

compiled_for_each! {
    /// Updates parameters `p` and moments `m`, `v` with gradients `g`, all of one length.
    ///
    /// # Panics
    /// When they are not.
    pub fn update<F: Real>(p: &mut [F], m: &mut [F], v: &mut [F], g: &[F], step: &Step<F>) = update_body
}

#[inline(always)]
fn update_body<F: Real>(p: &mut [F], m: &mut [F], v: &mut [F], g: &[F], step: &Step<F>) {
    let n = g.len();
    assert!(p.len() == n && m.len() == n && v.len() == n, "adamw: lengths");
    let s = *step;
    let tiny = F::from_f64(TINY);
    for i in 0..n {
        let g = g[i] * s.gradient_scale;
        let first = s.beta1[1].mul_add(g, s.beta1[0] * m[i]);
        let second = s.beta2[1].mul_add(g * g, s.beta2[0] * v[i]);
        let still = g == F::ZERO;
        let first = if still & (first < tiny) & (-first < tiny) { F::ZERO } else { first };
        let second = if still & (second < tiny) { F::ZERO } else { second };
        let change = first * s.correction1 / ((second * s.correction2).sqrt() + s.eps);
        p[i] = (-s.rate).mul_add(s.weight_decay.mul_add(p[i], change), p[i]);
        m[i] = first;
        v[i] = second;
    }
}

/// One tensor of [`update_all`]; all slices of one length.
#[derive(Debug)]
pub struct Tensor<'a, F> {
    /// Parameters.
    pub p: &'a mut [F],
    /// First moments.
    pub m: &'a mut [F],
    /// Second moments.
    pub v: &'a mut [F],
    /// Gradients.
    pub g: &'a [F],
    /// What its elements have in common.
    pub step: Step<F>,
}

struct Update<'a, F> {
    isa: Isa,
    p: Parts<F>,
    m: Parts<F>,
    v: Parts<F>,
    g: &'a [F],
    step: Step<F>,
}

impl<F: Real> Work for Update<'_, F> {
    fn chunks(&self) -> usize {
        self.g.len().div_ceil(CHUNK)
    }
    unsafe fn chunk(&self, n: usize) {
        let at = n * CHUNK;
        let g = &self.g[at..self.g.len().min(at + CHUNK)];
        // SAFETY: chunks are disjoint and each number is called once.
        let (p, m, v) =
            unsafe { (self.p.get(at, g.len()), self.m.get(at, g.len()), self.v.get(at, g.len())) };
        update(self.isa, p, m, v, g, &self.step);
    }
}

/// [`update`] of many tensors, on all threads; the same bits whatever their number.
///
/// # Panics
/// When the slices of a tensor differ in length.
pub fn update_all<F: Real>(isa: Isa, pool: &Pool, tensors: &mut [Tensor<'_, F>]) {
    let works: Vec<Update<'_, F>> = tensors
        .iter_mut()
        .map(|t| {
            let n = t.g.len();
            assert!(t.p.len() == n && t.m.len() == n && t.v.len() == n, "adamw: lengths");
            let [p, m, v] = [&mut *t.p, &mut *t.m, &mut *t.v].map(Parts::new);
            Update { isa, p, m, v, g: t.g, step: t.step }
        })
        .collect();
    pool.run_all(&works);
}

compiled_for_each! {
    fn squares<F: Real>(sum: &mut f64, x: &[F]) = squares_body
}

#[inline(always)]
fn squares_body<F: Real>(sum: &mut f64, x: &[F]) {
    let mut acc = [0f64; LANES];
    let (parts, rest) = x.as_chunks::<LANES>();
    for x in parts {
        for l in 0..LANES {
            let x = x[l].to_f64();
            acc[l] = x.mul_add(x, acc[l]);
        }
    }
    *sum = rest.iter().fold(fold(acc), |sum, x| x.to_f64().mul_add(x.to_f64(), sum));
}

/// Σ x² of each tensor, in f64; the order of additions depends on the lengths alone. Not finite exactly where the
/// tensor (of f32) holds a number that is not.
pub fn sums_of_squares<F: Real>(isa: Isa, pool: &Pool, tensors: &[&[F]]) -> Vec<f64> {
    let chunks: Vec<&[F]> = tensors.iter().flat_map(|t| t.chunks(CHUNK)).collect();
    let mut parts = vec![0f64; chunks.len()];
    pool.split(&mut parts, 1, 1, |first, sum| squares(isa, &mut sum[0], chunks[first]));
    let mut parts = parts.into_iter();
    tensors.iter().map(|t| parts.by_ref().take(t.len().div_ceil(CHUNK)).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// The formulas at the head of this file, in f64, written without regard to speed.
    fn by_definition(x: &mut [f64; 3], g: f64, t: i32, rate: f64, decay: f64) {
        let [p, m, v] = x;
        *m = 0.9 * *m + 0.1 * g;
        *v = 0.99 * *v + 0.01 * g * g;
        let change = (*m / (1.0 - 0.9f64.powi(t))) / ((*v / (1.0 - 0.99f64.powi(t))).sqrt() + 1e-18);
        *p -= rate * (change + decay * *p);
    }

    #[test]
    fn many_steps_are_those_of_the_definition() {
        let n = CHUNK + 33;
        let pool = Pool::new(3);
        let start = values(n, 1);
        let mut wide: Vec<[f64; 3]> = start.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
        let (mut p32, mut m32, mut v32) = (start.clone(), vec![0f32; n], vec![0f32; n]);
        let (mut p64, mut m64, mut v64) =
            (start.iter().map(|&p| f64::from(p)).collect::<Vec<_>>(), vec![0f64; n], vec![0f64; n]);
        for t in 1..=40u32 {
            // Gradients of very different sizes; every seventh is always 0.
            let g: Vec<f32> = values(n, 100 + t)
                .iter()
                .enumerate()
                .map(|(i, g)| if i % 7 == 0 { 0.0 } else { g * 10f32.powi(-((i % 13) as i32)) })
                .collect();
            let g64: Vec<f64> = g.iter().map(|&g| f64::from(g)).collect();
            let (rate, decay, scale) = (3e-3 / f64::from(t), 0.1, 0.5);
            let (step32, step64) = (
                Step::<f32>::new(t.into(), rate, decay, (0.9, 0.99), 1e-18, scale),
                Step::<f64>::new(t.into(), rate, decay, (0.9, 0.99), 1e-18, scale),
            );
            let one = Tensor { p: &mut p32, m: &mut m32, v: &mut v32, g: &g, step: step32 };
            update_all(Isa::best(), &pool, &mut [one]);
            let one = Tensor { p: &mut p64, m: &mut m64, v: &mut v64, g: &g64, step: step64 };
            update_all(Isa::best(), &pool, &mut [one]);
            wide.iter_mut().zip(&g64).for_each(|(x, g)| by_definition(x, g * scale, t as i32, rate, decay));
        }
        for i in 0..n {
            let moved = (wide[i][0] - f64::from(start[i])).abs();
            // f64: rounding alone. f32: of each step, half a unit of p and some units of the change.
            assert!((p64[i] - wide[i][0]).abs() < 1e-14, "{i}: {} for {}", p64[i], wide[i][0]);
            let near = 40.0 * 6e-8 * f64::from(start[i]).abs() + 1e-6 * moved + 1e-9;
            assert!((f64::from(p32[i]) - wide[i][0]).abs() < near, "{i}: {} for {}", p32[i], wide[i][0]);
            // Gradients of both signs cancel in m: its error is by their size.
            let size = 10f64.powi(-((i % 13) as i32));
            assert!((f64::from(m32[i]) - wide[i][1]).abs() <= 5e-7 * size, "{i}: m");
            assert!((f64::from(v32[i]) - wide[i][2]).abs() <= 4e-6 * wide[i][2] + 1e-38);
        }
    }

    #[test]
    fn without_gradient_and_decay_nothing_moves_and_tiny_moments_end() {
        let mut p = [0.5f32, -3.0, 0.25];
        let (mut m, mut v) = ([0.0, 0.0, -2e-38], [0.0, 0.0, 2e-38]);
        for t in 1..2000 {
            let step = Step::new(t, 1.0, 0.0, (0.9, 0.99), 1e-18, 1.0);
            update(Isa::best(), &mut p, &mut m, &mut v, &[0.0; 3], &step);
        }
        assert_eq!(p[..2], [0.5, -3.0]);
        assert!((p[2] - 0.25).abs() < 1e-6);
        assert_eq!((m, v), ([0.0; 3], [0.0; 3]));
        let step = Step::new(1, 0.5, 0.1, (0.9, 0.99), 1e-18, 1.0);
        update(Isa::best(), &mut p, &mut m, &mut v, &[0.0; 3], &step);
        assert_eq!(p[1], -3.0f32 * 0.95, "decay alone");
        // The size of a gradient does not matter, down to where ε does.
        for g in [1e-15f32, -1e-3, 1e15] {
            let (mut p, mut m, mut v) = ([1.0], [0.0], [0.0]);
            let step = Step::new(1, 0.5, 0.0, (0.9, 0.99), 1e-18, 1.0);
            update(Isa::best(), &mut p, &mut m, &mut v, &[g], &step);
            assert!((p[0] - (1.0 - 0.5 * g.signum())).abs() < 2e-3, "{g}: {}", p[0]);
        }
    }

    #[test]
    fn sums_and_updates_do_not_depend_on_the_threads() {
        let tensors: Vec<Vec<f32>> = [3, CHUNK, 2 * CHUNK + 17, 0, 100].map(|n| values(n, n as u32)).into();
        let tensors: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
        let sums = |isa, threads| sums_of_squares(isa, &Pool::new(threads), &tensors);
        let want = sums(Isa::SCALAR, 1);
        for isa in Isa::available() {
            for threads in [1, 2, 5] {
                assert_eq!(sums(isa, threads), want, "{isa} {threads}");
            }
        }
        for (sum, t) in want.iter().zip(&tensors) {
            let plain: f64 = t.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((sum - plain).abs() <= 1e-12 * plain);
        }
        let bad = [1.0, f32::NAN];
        assert!(
            sums_of_squares(Isa::best(), &Pool::new(1), &[&bad[..], &[f32::INFINITY]])
                .iter()
                .all(|s| !s.is_finite())
        );

        let run = |threads| {
            let (mut p, mut m, mut v) = (values(50_000, 1), values(50_000, 2), vec![0.25f32; 50_000]);
            let g = values(50_000, 3);
            let (p1, p2) = p.split_at_mut(20_000);
            let (m1, m2) = m.split_at_mut(20_000);
            let (v1, v2) = v.split_at_mut(20_000);
            let step = |rate| Step::new(5, rate, 0.1, (0.9, 0.99), 1e-18, 1.0);
            let pool = Pool::new(threads);
            update_all(
                Isa::best(),
                &pool,
                &mut [
                    Tensor { p: p1, m: m1, v: v1, g: &g[..20_000], step: step(1e-3) },
                    Tensor { p: p2, m: m2, v: v2, g: &g[20_000..], step: step(2e-3) },
                ],
            );
            [p, m, v].concat()
        };
        assert_eq!(run(1), run(4));
    }
}
