//! The optimiser: AdamW over named tensors, with gradients clipped by their global norm.
//!
//! Source: the training spec, section 2; the arithmetic is `hawfinch_kernels::adamw`'s. Parameters,
//! gradients and both moments are f32; the norm is summed in f64, in an order that does not depend on the threads.

use std::sync::Arc;

use hawfinch_kernels::adamw::{Step, Tensor, sums_of_squares, update_all};
use hawfinch_kernels::{Isa, Pool};
use hawfinch_model::checkpoint::StoredTensor;
use serde::{Deserialize, Serialize};

use crate::groups::Group;
use crate::{Error, Result, lent};

/// The optimiser's constants; the defaults are the references'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Settings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment. 1e-18 is meant: below it gradients count as zero.
    pub eps: f64,
    /// Longest global gradient: longer ones are shortened to it. 0 or less: as they are.
    pub clip: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { beta1: 0.9, beta2: 0.99, eps: 1e-18, clip: 1.0 }
    }
}

impl Settings {
    /// Checks that they make sense.
    ///
    /// # Errors
    /// One sentence: which does not.
    pub fn check(&self) -> Result<()> {
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::request(format!("{name} is {beta}: it must be at least 0 and below 1")));
            }
        }
        if !(self.eps > 0.0 && f64::from(self.eps as f32) > 0.0 && self.eps.is_finite()) {
            let eps = self.eps;
            return Err(Error::request(format!(
                "eps is {eps}: it must be above 0 (the reference has 1e-18)"
            )));
        }
        if self.clip.is_nan() {
            return Err(Error::request(
                "the longest gradient (clip) is no number; 1 is usual, 0 turns it off",
            ));
        }
        Ok(())
    }
}

/// Moments of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Its official name.
    pub name: String,
    /// Its group.
    pub group: Group,
    /// First moments, in the order of the tensor's numbers.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
}

/// Moments that a tensor of a file holds for a while.
struct Held(Arc<Vec<f32>>);

impl AsRef<[f32]> for Held {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Length of all gradients together (times the caller's scale), before clipping.
    pub norm: f64,
    /// What clipping multiplied them by: min(1, clip/(norm + 1e-6)).
    pub factor: f64,
}

/// A tensor's numbers and their gradients, in the same order.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Changed by a step.
    pub values: &'a mut [f32],
    /// Only read.
    pub gradient: &'a [f32],
}

/// Learning rate and weight decay of one step, before the groups' factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay, for the groups that decay.
    pub weight_decay: f64,
}

/// AdamW over a list of tensors.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: Settings,
    tensors: Vec<Moments>,
    steps: u64,
}

impl AdamW {
    /// For tensors of these names, numbers of numbers and groups; moments are zero, no step was made. What is not
    /// trained is not in the list.
    pub fn new(settings: Settings, tensors: impl IntoIterator<Item = (String, usize, Group)>) -> AdamW {
        let moments = |(name, len, group)| Moments { name, group, m: vec![0.0; len], v: vec![0.0; len] };
        AdamW { settings, tensors: tensors.into_iter().map(moments).collect(), steps: 0 }
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The constants.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Moments of every tensor, in the order of the list: with [`AdamW::steps`] all that a checkpoint has to keep.
    pub fn moments(&self) -> &[Moments] {
        &self.tensors
    }

    /// Calls `with` with both moments of each tensor as tensors of a file, without a copy.
    pub(crate) fn lend<T>(&mut self, with: impl FnOnce(Vec<[StoredTensor; 2]>) -> T) -> T {
        let take = |of: &mut Vec<f32>| Arc::new(std::mem::take(of));
        let held: Vec<_> = self.tensors.iter_mut().map(|t| [take(&mut t.m), take(&mut t.v)]).collect();
        let tensor = |of: &Arc<Vec<f32>>| lent::tensor(&[of.len()], Held(of.clone()));
        let done = with(held.iter().map(|both| both.each_ref().map(tensor)).collect());
        // Whoever kept a tensor keeps it; the moments are needed all the same.
        let back = |of: Arc<Vec<f32>>| Arc::try_unwrap(of).unwrap_or_else(|of| of.to_vec());
        for (t, both) in self.tensors.iter_mut().zip(held) {
            [t.m, t.v] = both.map(back);
        }
        done
    }

    /// Takes moments from a checkpoint: `steps` made, and for each tensor of the list, by name, both moments.
    ///
    /// # Errors
    /// A tensor has none there, or of another length; nothing is changed then.
    pub fn restore(
        &mut self,
        steps: u64,
        mut find: impl FnMut(&str) -> Option<(Vec<f32>, Vec<f32>)>,
    ) -> Result<()> {
        let mut restored = Vec::with_capacity(self.tensors.len());
        for Moments { name, group, m, .. } in &self.tensors {
            let Some((first, second)) = find(name) else {
                return Err(Error::request(format!("the checkpoint has no optimiser moments of `{name}`")));
            };
            for len in [first.len(), second.len()] {
                if len != m.len() {
                    return Err(Error::request(format!(
                        "the checkpoint has {len} optimiser moments of `{name}`, and the tensor has {} numbers",
                        m.len()
                    )));
                }
            }
            restored.push(Moments { name: name.clone(), group: *group, m: first, v: second });
        }
        self.tensors = restored;
        self.steps = steps;
        Ok(())
    }

    /// One step. `parameters` are those of the list, in its order; gradients are multiplied by `scale` first (1, or
    /// one over the number of batches that were added up).
    ///
    /// # Errors
    /// A gradient is not finite: nothing is changed then, and the step does not count.
    ///
    /// # Panics
    /// When the parameters are not as many, or not as long, as in [`AdamW::new`].
    pub fn step(
        &mut self,
        isa: Isa,
        pool: &Pool,
        parameters: &mut [Parameter<'_>],
        rates: Rates,
        scale: f64,
    ) -> Result<Report> {
        assert_eq!(parameters.len(), self.tensors.len(), "one parameter a tensor");
        let gradients: Vec<&[f32]> = parameters.iter().map(|p| p.gradient).collect();
        let sums = sums_of_squares(isa, pool, &gradients);
        if let Some(bad) = sums.iter().position(|s| !s.is_finite()) {
            return Err(Error::Gradient { name: self.tensors[bad].name.clone(), step: self.steps + 1 });
        }
        let norm = sums.iter().sum::<f64>().sqrt() * scale.abs();
        Ok(self.step_of_length(isa, pool, parameters, rates, scale, norm))
    }

    /// The same where the tensors are some of those whose gradients have the length `norm` together, and all are finite.
    pub(crate) fn step_of_length(
        &mut self,
        isa: Isa,
        pool: &Pool,
        parameters: &mut [Parameter<'_>],
        rates: Rates,
        scale: f64,
        norm: f64,
    ) -> Report {
        assert_eq!(parameters.len(), self.tensors.len(), "one parameter a tensor");
        let Settings { beta1, beta2, eps, clip } = self.settings;
        let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let t = self.steps;
        let tensors = self.tensors.iter_mut().zip(parameters);
        let mut tensors: Vec<Tensor<'_, f32>> = tensors
            .map(|(moments, parameter)| {
                let Group { rate, decays } = moments.group;
                let decay = if decays { rates.weight_decay } else { 0.0 };
                let step = Step::new(t, rates.lr * rate, decay, (beta1, beta2), eps, scale * factor);
                Tensor {
                    p: parameter.values,
                    m: &mut moments.m,
                    v: &mut moments.v,
                    g: parameter.gradient,
                    step,
                }
            })
            .collect();
        update_all(isa, pool, &mut tensors);
        Report { norm, factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["fast", "decaying", "plain"];
    const GROUPS: [Group; 3] = [
        Group { rate: 2.0, decays: false },
        Group { rate: 1.0, decays: true },
        Group { rate: 1.0, decays: false },
    ];
    const LEN: [usize; 3] = [5, 40, 7];

    fn optimiser(settings: Settings) -> AdamW {
        let list = (0..3).map(|i| (NAMES[i].to_owned(), LEN[i], GROUPS[i]));
        AdamW::new(settings, list)
    }

    fn start() -> Vec<Vec<f32>> {
        (0..3u32)
            .map(|t| (0..LEN[t as usize]).map(|i| ((i as f32 + 1.3) * (t as f32 + 0.7)).sin()).collect())
            .collect()
    }

    /// f = Σ w (x - c)⁴ / 4 with weights and centres of each element; its gradient. Element 3 of each tensor is not
    /// in it.
    fn gradient<T: Copy + Into<f64>>(tensor: usize, x: &[T]) -> Vec<f64> {
        let one = |(i, &x): (usize, &T)| {
            let (w, c) = (10f64.powi((i % 5) as i32 - 2), 0.1 * (i + tensor) as f64);
            if i == 3 { 0.0 } else { w * (x.into() - c).powi(3) }
        };
        x.iter().enumerate().map(one).collect()
    }

    /// Steps of the optimiser on f, in f32, and norms.
    fn run(opt: &mut AdamW, x: &mut [Vec<f32>], steps: u32, rates: Rates, threads: usize) -> Vec<Report> {
        let pool = Pool::new(threads);
        let mut reports = Vec::new();
        for _ in 0..steps {
            let g: Vec<Vec<f32>> = x
                .iter()
                .enumerate()
                .map(|(t, x)| gradient(t, x).iter().map(|&g| g as f32).collect())
                .collect();
            let mut parameters: Vec<Parameter> =
                x.iter_mut().zip(&g).map(|(x, g)| Parameter { values: x, gradient: g }).collect();
            reports.push(opt.step(Isa::best(), &pool, &mut parameters, rates, 1.0).unwrap());
        }
        reports
    }

    const RATES: Rates = Rates { lr: 2e-3, weight_decay: 0.1 };

    /// The same steps, written down again in f64.
    fn again(x: &mut [Vec<f64>], steps: i32, clip: f64) -> Vec<(f64, f64)> {
        let mut moments: Vec<Vec<[f64; 2]>> = x.iter().map(|x| vec![[0.0; 2]; x.len()]).collect();
        let mut reports = Vec::new();
        for t in 1..=steps {
            let g: Vec<Vec<f64>> = x.iter().enumerate().map(|(t, x)| gradient(t, x)).collect();
            let norm = g.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            let factor = f64::min(1.0, clip / (norm + 1e-6));
            reports.push((norm, factor));
            for (k, x) in x.iter_mut().enumerate() {
                for (i, p) in x.iter_mut().enumerate() {
                    let g = g[k][i] * factor;
                    let [m, v] = &mut moments[k][i];
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.99 * *v + 0.01 * g * g;
                    let (m, v) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.99f64.powi(t)));
                    let decay = if GROUPS[k].decays { RATES.weight_decay } else { 0.0 };
                    *p -= RATES.lr * GROUPS[k].rate * (m / (v.sqrt() + 1e-18) + decay * *p);
                }
            }
        }
        reports
    }

    /// Largest distance of two runs, in learning rates.
    fn distance(a: &[Vec<f32>], b: &[Vec<f64>]) -> f64 {
        let all = a.iter().flatten().zip(b.iter().flatten());
        all.map(|(a, b)| (f64::from(*a) - b).abs() / RATES.lr).fold(0.0, f64::max)
    }

    #[test]
    fn steps_on_a_function_are_those_of_the_definition() {
        for clip in [1.0, 1e9] {
            let mut x = start();
            let mut wide: Vec<Vec<f64>> =
                x.iter().map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
            let mut opt = optimiser(Settings { clip, ..Settings::default() });
            let got = run(&mut opt, &mut x, 30, RATES, 2);
            let want = again(&mut wide, 30, clip);
            // A step moves an element by about one rate; thirty of them in f32 stray by a thousandth of one.
            let far = distance(&x, &wide);
            assert!(far < 2e-3, "clip {clip}: {far}");
            for (got, (norm, factor)) in got.iter().zip(want) {
                assert!((got.norm / norm - 1.0).abs() < 1e-5 && (got.factor / factor - 1.0).abs() < 1e-5);
            }
            assert!(got[0].norm > 1.0 && (clip > 1.0) == (got[0].factor == 1.0), "clipping was tested");
            assert_eq!(opt.steps(), 30);
            // What has no gradient moves by weight decay alone.
            let s = start();
            assert_eq!((x[0][3], x[2][3]), (s[0][3], s[2][3]));
            assert!(x[1][3] != s[1][3]);
        }
    }

    /// The comparison sees another group, no clip and other constants. (Clips of 0.5 and 1 differ in what is reported
    /// alone as long as both shorten every gradient.)
    #[test]
    fn what_is_wrong_is_seen() {
        let mut wide: Vec<Vec<f64>> =
            start().iter().map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
        again(&mut wide, 30, 1.0);
        let right = Settings::default();
        let wrong = [
            (Settings { beta1: 0.91, ..right }, GROUPS),
            (Settings { beta2: 0.999, ..right }, GROUPS),
            (Settings { eps: 1e-2, ..right }, GROUPS),
            (Settings { clip: 0.0, ..right }, GROUPS),
            (right, [GROUPS[1], GROUPS[0], GROUPS[2]]),
            (right, [GROUPS[0], GROUPS[2], GROUPS[2]]),
        ];
        for (settings, groups) in wrong {
            let mut opt = AdamW::new(settings, (0..3).map(|i| (NAMES[i].to_owned(), LEN[i], groups[i])));
            let mut x = start();
            run(&mut opt, &mut x, 30, RATES, 1);
            assert!(distance(&x, &wide) > 2e-3, "{settings:?} {groups:?}");
        }
    }

    #[test]
    fn a_run_in_two_parts_is_the_run_in_one() {
        let (mut whole, mut parts) = (start(), start());
        run(&mut optimiser(Settings::default()), &mut whole, 20, RATES, 1);
        let mut first = optimiser(Settings::default());
        run(&mut first, &mut parts, 11, RATES, 3);
        let mut second = optimiser(Settings::default());
        let saved = first.moments().to_vec();
        let find = |name: &str| saved.iter().find(|t| t.name == name).map(|t| (t.m.clone(), t.v.clone()));
        second.restore(first.steps(), find).unwrap();
        run(&mut second, &mut parts, 9, RATES, 2);
        assert_eq!(whole, parts);

        let said = second.restore(1, |_| None).unwrap_err().to_string();
        assert!(said.contains("`fast`"), "{said}");
        let said = second.restore(1, |_| Some((vec![0.0; 5], vec![0.0; 5]))).unwrap_err().to_string();
        assert!(said.contains("40 numbers"), "{said}");
        assert_eq!(second.steps(), 20);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut opt = optimiser(Settings::default());
        let mut x = start();
        let g: Vec<Vec<f32>> = x.iter().map(|x| vec![1.0; x.len()]).collect();
        let mut bad = g.clone();
        bad[1][7] = f32::NAN;
        let mut parameters: Vec<Parameter> =
            x.iter_mut().zip(&bad).map(|(x, g)| Parameter { values: x, gradient: g }).collect();
        let said = opt.step(Isa::best(), &Pool::new(1), &mut parameters, RATES, 1.0).unwrap_err().to_string();
        assert!(said.contains("`decaying`") && said.contains("step 1"), "{said}");
        assert_eq!((opt.steps(), &x), (0, &start()));
        assert!(opt.moments().iter().all(|t| t.m.iter().chain(&t.v).all(|&v| v == 0.0)));
    }

    #[test]
    fn two_batches_added_up_and_halved_are_their_mean() {
        let step = |factor: f32, scale: f64| {
            let mut x = start();
            let g: Vec<Vec<f32>> = x
                .iter()
                .enumerate()
                .map(|(t, x)| gradient(t, x).iter().map(|&g| g as f32 * factor).collect())
                .collect();
            let mut parameters: Vec<Parameter> =
                x.iter_mut().zip(&g).map(|(x, g)| Parameter { values: x, gradient: g }).collect();
            let mut opt = optimiser(Settings::default());
            let report = opt.step(Isa::best(), &Pool::new(1), &mut parameters, RATES, scale).unwrap();
            (x, report)
        };
        assert_eq!(step(1.0, 1.0), step(2.0, 0.5));
    }

    #[test]
    fn settings_are_checked() {
        assert!(Settings::default().check().is_ok());
        let d = Settings::default();
        for bad in [
            Settings { beta1: 1.0, ..d },
            Settings { beta2: -0.1, ..d },
            Settings { eps: 0.0, ..d },
            Settings { eps: 1e-60, ..d },
            Settings { clip: f64::NAN, ..d },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let read: Settings = serde_json::from_str(r#"{"beta2": 0.95}"#).unwrap();
        assert_eq!(read, Settings { beta2: 0.95, ..d });
        assert!(serde_json::from_str::<Settings>(r#"{"beta3": 0.95}"#).is_err());
    }

    /// Also where what was lent is kept.
    #[test]
    fn lent_moments_come_back() {
        let group = Group { rate: 1.0, decays: false };
        let mut opt = AdamW::new(Settings::default(), [("a".to_string(), 3, group)]);
        let (values, gradient) = (&mut [1.0f32, 2.0, 3.0], &[0.5f32, -1.0, 0.25]);
        let rates = Rates { lr: 0.1, weight_decay: 0.0 };
        let pool = Pool::new(1);
        opt.step(Isa::best(), &pool, &mut [Parameter { values, gradient }], rates, 1.0).unwrap();
        let before = opt.moments().to_vec();
        let kept = opt.lend(|lent| lent);
        assert_eq!(opt.moments(), before);
        assert_eq!((kept[0][0].to_f32(), kept[0][1].to_f32()), (before[0].m.clone(), before[0].v.clone()));
    }
}
