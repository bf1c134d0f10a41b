//! Cross-entropy of logits with their targets, and its gradient in their place, so that logits are held once.

use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::reduce::sum_of;
use crate::{Isa, Pool, Real};

/// What [`cross_entropy`] is asked.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// `[t]`: the right token of each row, below v.
    pub ids: &'a [u32],
    /// `[t]`: how much each row's loss counts: 1 / (tokens of the batch) for their mean, 0 for rows that do not count.
    pub weights: &'a [f32],
    /// Factor of L2Wrap, which pulls the largest logit of each row to zero: `weight * l2wrap * largest` is added to its
    /// gradient, and nothing to the loss. 1e-4 in the references; 0 for none. (Of equal logits, the first.)
    pub l2wrap: f64,
}

/// The loss of each row, -log softmax(logits)\[target\] in nats, unweighted; `logits` `[t, v]` become the gradient of the
/// weighted sum of losses.
///
/// Source: training spec, section 4.
///
/// # Panics
/// When the shapes disagree or a target is not below v.
pub fn cross_entropy<F: Real>(
    isa: Isa,
    pool: &Pool,
    losses: &mut [f64],
    logits: &mut [F],
    v: usize,
    targets: Targets<'_>,
) {
    let t = targets.ids.len();
    assert!(
        losses.len() == t && logits.len() == t * v && targets.weights.len() == t,
        "cross_entropy: shapes"
    );
    assert!(targets.ids.iter().all(|&id| (id as usize) < v), "cross_entropy: targets");
    let losses = Parts::new(losses);
    pool.split(logits, v, 1, |row, logits| {
        // SAFETY: each row is worked on once.
        let loss = unsafe { losses.get(row, 1) };
        one(
            isa,
            loss,
            logits,
            targets.ids[row] as usize,
            F::from_f32(targets.weights[row]),
            F::from_f64(targets.l2wrap),
        );
    });
}

/// Numbers that are added up in their own type before they are added in f64.
const RUN: usize = 1024;

compiled_for_each! {
    fn one<F: Real>(loss: &mut [f64], logits: &mut [F], target: usize, weight: F, l2wrap: F) = one_body
}

#[inline(always)]
fn one_body<F: Real>(loss: &mut [f64], logits: &mut [F], target: usize, weight: F, l2wrap: F) {
    let largest = largest(logits);
    let at_target = logits[target];
    let mut sum = 0.0;
    for part in logits.chunks_mut(RUN) {
        part.iter_mut().for_each(|l| *l = (*l - largest).exp());
        sum += sum_of(part, |e| e).to_f64();
    }
    loss[0] = sum.ln() - (at_target - largest).to_f64();
    let scale = weight * F::from_f64(1.0 / sum);
    // The first of the largest is where e^0 stands.
    let first = if l2wrap > F::ZERO { logits.iter().position(|e| *e == F::ONE) } else { None };
    logits.iter_mut().for_each(|e| *e *= scale);
    logits[target] += -weight;
    if let Some(first) = first {
        logits[first] = (weight * l2wrap).mul_add(largest, logits[first]);
    }
}

/// The largest number; NaN is passed over.
#[inline(always)]
fn largest<F: Real>(x: &[F]) -> F {
    const LANES: usize = crate::reduce::LANES;
    let mut lanes = [F::from_f64(f64::NEG_INFINITY); LANES];
    let (parts, rest) = x.as_chunks::<LANES>();
    for part in parts {
        for l in 0..LANES {
            lanes[l] = if part[l] > lanes[l] { part[l] } else { lanes[l] };
        }
    }
    lanes.iter().chain(rest).fold(lanes[0], |m, &v| if v > m { v } else { m })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;
    use crate::testing_gradients::check_gradients;

    fn run<F: Real>(
        isa: Isa,
        threads: usize,
        logits: &[F],
        v: usize,
        targets: Targets<'_>,
    ) -> (Vec<f64>, Vec<F>) {
        let (mut losses, mut d) = (vec![0.0; targets.ids.len()], logits.to_vec());
        cross_entropy(isa, &Pool::new(threads), &mut losses, &mut d, v, targets);
        (losses, d)
    }

    #[test]
    fn its_gradient_is_its_slope() {
        let (t, v) = (3, 37);
        let (ids, weights) = ([4, 36, 0], [0.5f32, 0.0, 0.25]);
        let targets = Targets { ids: &ids, weights: &weights, l2wrap: 0.0 };
        let logits: Vec<f64> = values(t * v, 1).iter().map(|&l| f64::from(l) * 4.0).collect();
        let forward = |xs: &[Vec<f64>]| {
            let (losses, _) = run(Isa::best(), 1, &xs[0], v, targets);
            vec![losses.iter().zip(&weights).map(|(l, &w)| l * f64::from(w)).sum()]
        };
        check_gradients("cross-entropy", std::slice::from_ref(&logits), forward, |xs, d_y| {
            let (_, d) = run(Isa::best(), 1, &xs[0], v, targets);
            vec![d.iter().map(|d| d * d_y[0]).collect()]
        });
        // By definition.
        let (losses, _) = run(Isa::best(), 1, &logits, v, targets);
        let sum: f64 = logits[..v].iter().map(|l| l.exp()).sum();
        assert!((losses[0] - (sum.ln() - logits[4])).abs() < 1e-12);
    }

    #[test]
    fn l2wrap_pulls_the_largest_logit_and_leaves_the_loss() {
        let logits = [1.0f64, 5.0, 5.0, -2.0];
        let targets = Targets { ids: &[0], weights: &[0.5], l2wrap: 0.0 };
        let (loss, plain) = run(Isa::best(), 1, &logits, 4, targets);
        let (same, wrapped) = run(Isa::best(), 1, &logits, 4, Targets { l2wrap: 1e-4, ..targets });
        assert_eq!(loss, same);
        let moved: Vec<f64> = wrapped.iter().zip(&plain).map(|(w, p)| w - p).collect();
        assert!((moved[1] - 0.5 * 1e-4 * 5.0).abs() < 1e-15 && moved[0] == 0.0 && moved[2] == 0.0);
    }

    #[test]
    fn the_same_bits_everywhere_and_no_overflow() {
        let v = 2500;
        let mut logits: Vec<f32> = values(5 * v, 3).iter().map(|l| l * 30.0).collect();
        logits[7] = 1e30;
        let targets = Targets { ids: &[7, 1, 2, 3, 2499], weights: &[0.2; 5], l2wrap: 1e-4 };
        let bits = |(losses, d): (Vec<f64>, Vec<f32>)| {
            assert!(losses.iter().all(|l| l.is_finite()) && d.iter().all(|d| d.is_finite()));
            (
                losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>(),
                d.iter().map(|d| d.to_bits()).collect::<Vec<_>>(),
            )
        };
        let want = bits(run(Isa::SCALAR, 1, &logits, v, targets));
        for isa in Isa::available() {
            assert!(bits(run(isa, 3, &logits, v, targets)) == want, "{isa}");
        }
    }
}
