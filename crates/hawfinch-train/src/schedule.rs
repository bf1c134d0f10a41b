//! Learning rate and weight decay of every step.
//!
//! Source: the training spec, section 3, from `on_train_batch_start` of the reference trainers. With `W` the
//! steps of warm-up and `s` the step, from 0, that is about to be made:
//!
//! * `cosine`: `p = (s n - W n)/(E - W n)` with `n` tokens a step and `E` tokens in all;
//!   `lr_init ((0.5 + f/2) + (0.5 - f/2) cos π p)`, `f = lr_final/lr_init`.
//! * `exponential`: `p = (s - W + 1)/(S - W)` with `S` steps in all (the cosine has no `+ 1`);
//!   `lr_init (lr_final/lr_init)^p`; as `linear` if either is 0.
//! * `linear`: that `p`; `lr_init + (lr_final - lr_init) p`.
//! * `mixed`: the mean of `exponential` and `cosine`, each with its own `p` (the reference's negative `my_exit_tokens`).
//! * `wsd` (warm-up, stable, decay): `lr_init` until the last `decay-fraction` of the cosine's `p`, then linearly to
//!   `lr_final` (Hu et al. 2024, Hägele et al. 2024). What RWKV-PEFT calls `wsd` is warm-up and then a cosine: it is
//!   had by `cosine`.
//! * `constant`: `lr_init`.
//!
//! `p` is held in 0..1. All are multiplied by `a + (1 - a) s/W` while `s < W`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::adamw::Rates;
use crate::{Error, Result};

/// How the learning rate goes from its first to its last value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Half a cosine, by tokens.
    #[default]
    Cosine,
    /// By the same factor every step; a straight line if either end is 0.
    Exponential,
    /// A straight line, by steps.
    Linear,
    /// The mean of `exponential` and `cosine`.
    Mixed,
    /// Held, then a straight line down over the last part.
    Wsd,
    /// Held.
    Constant,
}

/// Learning rate and weight decay over a run; the defaults are the reference's script for L12-D768 on MiniPile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Schedule {
    /// Its shape.
    pub shape: Shape,
    /// Learning rate after warm-up, before the groups' factors ([`crate::groups`]).
    pub lr_init: f64,
    /// Learning rate at the end; `constant` does not use it.
    pub lr_final: f64,
    /// Steps of warm-up; 0 for none.
    pub warmup_steps: u64,
    /// What the first step of warm-up is multiplied by: 0.01, or 0.2 as in v4neo and the papers.
    pub warmup_start: f64,
    /// Whether a run that goes on from a checkpoint warms up again, as the references do (their moments start from zero
    /// then). Ours are kept: false.
    pub warmup_again: bool,
    /// `wsd`: the part of the run, 0..1, in which the rate goes down.
    pub decay_fraction: f64,
    /// Weight decay, for the groups that decay.
    pub weight_decay: f64,
    /// Where weight decay goes, by the same factor every step of progress; absent, it stays.
    pub weight_decay_final: Option<f64>,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            shape: Shape::Cosine,
            lr_init: 6e-4,
            lr_final: 6e-5,
            warmup_steps: 10,
            warmup_start: 0.01,
            warmup_again: false,
            decay_fraction: 0.1,
            weight_decay: 1e-3,
            weight_decay_final: None,
        }
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Tokens of one step: context × sequences, over all ranks and added-up batches.
    pub tokens_per_step: u64,
    /// Steps in all: the end of `exponential` and `linear`.
    pub steps: u64,
    /// Tokens in all: the end of the others. Need not be whole steps.
    pub tokens: u64,
}

impl Length {
    /// So many steps.
    pub fn of_steps(steps: u64, tokens_per_step: u64) -> Length {
        Length { tokens_per_step, steps, tokens: steps.saturating_mul(tokens_per_step) }
    }

    /// So many tokens; the last step may be a part of one.
    pub fn of_tokens(tokens: u64, tokens_per_step: u64) -> Length {
        Length { tokens_per_step, steps: tokens.div_ceil(tokens_per_step.max(1)), tokens }
    }
}

/// One step's values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// How far the run is, 0..1, without warm-up. The references end a `cosine` run when it reaches 1.
    pub progress: f64,
    /// Learning rate, before the groups' factors.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl From<Point> for Rates {
    fn from(point: Point) -> Rates {
        Rates { lr: point.lr, weight_decay: point.weight_decay }
    }
}

impl Schedule {
    /// Checks that it makes sense for a run of that length.
    ///
    /// # Errors
    /// One sentence: what does not.
    pub fn check(&self, length: &Length) -> Result<()> {
        let named = [
            ("lr-init", self.lr_init),
            ("lr-final", self.lr_final),
            ("warmup-start", self.warmup_start),
            ("weight-decay", self.weight_decay),
            ("weight-decay-final", self.weight_decay_final.unwrap_or(0.0)),
        ];
        if let Some((name, value)) = named.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::request(format!("{name} is {value}: it must be a number, 0 or more")));
        }
        if self.shape == Shape::Wsd && !(self.decay_fraction > 0.0 && self.decay_fraction <= 1.0) {
            return Err(Error::request(format!(
                "decay-fraction is {}: it must be above 0 and at most 1",
                self.decay_fraction
            )));
        }
        if self.weight_decay_final.is_some_and(|f| f > 0.0) && self.weight_decay == 0.0 {
            return Err(Error::request(
                "weight-decay is 0 and weight-decay-final is not: a factor cannot lead from 0; give a first value above 0",
            ));
        }
        if self.weight_decay_final == Some(0.0) {
            return Err(Error::request(
                "weight-decay-final is 0: a factor cannot lead to 0; leave it out, or give a small value",
            ));
        }
        if length.tokens_per_step == 0 || length.steps == 0 || length.tokens == 0 {
            return Err(Error::request("the run has no steps: give it a number of steps or tokens above 0"));
        }
        let warm = self.warmup_steps.saturating_mul(length.tokens_per_step);
        if self.shape != Shape::Constant && (warm >= length.tokens || self.warmup_steps >= length.steps) {
            return Err(Error::request(format!(
                "warm-up takes {} steps and the run has {}: shorten warm-up, lengthen the run, or take the shape \
                 `constant`",
                self.warmup_steps, length.steps
            )));
        }
        Ok(())
    }

    /// The values for step `step` of the run, from 0 and over all parts of it; `since_start` counts those since this
    /// process began (the same in a run without interruption).
    pub fn at(&self, length: &Length, step: u64, since_start: u64) -> Point {
        let (init, end) = (self.lr_init, self.lr_final);
        let by_tokens = {
            let n = length.tokens_per_step as f64;
            let warm = self.warmup_steps as f64 * n;
            part(step as f64 * n - warm, length.tokens as f64 - warm)
        };
        let by_steps = {
            let warm = self.warmup_steps as f64;
            part(step as f64 - warm + 1.0, length.steps as f64 - warm)
        };
        let cosine = || {
            let f = if init == 0.0 { 0.0 } else { end / init };
            init * ((0.5 + f / 2.0) + (0.5 - f / 2.0) * (PI * by_tokens).cos())
        };
        let line = |p: f64| init + (end - init) * p;
        let exponential = || match init == 0.0 || end == 0.0 {
            true => line(by_steps),
            false => init * ((end / init).ln() * by_steps).exp(),
        };
        let (progress, mut lr) = match self.shape {
            Shape::Cosine => (by_tokens, cosine()),
            Shape::Exponential => (by_steps, exponential()),
            Shape::Linear => (by_steps, line(by_steps)),
            Shape::Mixed => (by_tokens, (exponential() + cosine()) / 2.0),
            Shape::Wsd => {
                let last = self.decay_fraction;
                (by_tokens, line(part(by_tokens - (1.0 - last), last)))
            }
            Shape::Constant => (by_tokens, init),
        };
        let warm = if self.warmup_again { since_start } else { step };
        if warm < self.warmup_steps {
            let a = self.warmup_start;
            lr *= a + (1.0 - a) * warm as f64 / self.warmup_steps as f64;
        }
        let weight_decay = match self.weight_decay_final {
            Some(end) if end > 0.0 && self.weight_decay > 0.0 => {
                self.weight_decay * ((end / self.weight_decay).ln() * progress).exp()
            }
            _ => self.weight_decay,
        };
        Point { progress, lr, weight_decay }
    }
}

/// `done / all`, held in 0..1; 1 where there is nothing to do.
fn part(done: f64, all: f64) -> f64 {
    if all > 0.0 { (done / all).clamp(0.0, 1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_shapes() {
        let length = Length::of_steps(110, 8);
        let base = Schedule {
            lr_init: 1.0,
            lr_final: 0.1,
            warmup_steps: 10,
            decay_fraction: 0.2,
            ..Schedule::default()
        };
        let lr = |shape, step| Schedule { shape, ..base }.at(&length, step, step).lr;
        assert_eq!(lr(Shape::Constant, 0), 0.01);
        assert_eq!([10, 60, 500].map(|s| lr(Shape::Constant, s)), [1.0; 3]);
        assert_eq!(lr(Shape::Wsd, 5), 0.01 + 0.99 * 5.0 / 10.0);
        assert_eq!([10, 50, 90].map(|s| lr(Shape::Wsd, s)), [1.0; 3]);
        assert!((lr(Shape::Wsd, 100) - 0.55).abs() < 1e-12);
        assert!((lr(Shape::Wsd, 110) - 0.1).abs() < 1e-12 && (lr(Shape::Wsd, 999) - 0.1).abs() < 1e-12);
        assert!((lr(Shape::Linear, 59) - 0.55).abs() < 1e-12);
        assert_eq!(Length::of_tokens(881, 8).steps, 111);
        // A resumed run: the warm-up is over, or comes again.
        let again = |warmup_again| Schedule { warmup_again, ..base }.at(&length, 60, 0).lr;
        assert!((again(true) / again(false) - 0.01).abs() < 1e-12);
    }

    /// Whatever the numbers, the values are numbers.
    #[test]
    fn extremes_and_checks() {
        let good = Schedule::default();
        let length = Length::of_steps(100, 512);
        assert!(good.check(&length).is_ok());
        let shapes =
            [Shape::Cosine, Shape::Exponential, Shape::Linear, Shape::Mixed, Shape::Wsd, Shape::Constant];
        for shape in shapes {
            for (lr_init, lr_final, warmup_steps) in [(0.0, 0.0, 0), (0.0, 1.0, 5), (1.0, 0.0, u64::MAX)] {
                let s = Schedule { shape, lr_init, lr_final, warmup_steps, ..good };
                for length in [length, Length::of_steps(0, 0), Length::of_tokens(u64::MAX, 1)] {
                    for step in [0, 1, 99, u64::MAX] {
                        let p = s.at(&length, step, step);
                        assert!(p.lr.is_finite() && (0.0..=1.0).contains(&p.progress), "{s:?} {step} {p:?}");
                    }
                }
            }
        }
        for (bad, words) in [
            (Schedule { lr_init: -1.0, ..good }, "lr-init"),
            (Schedule { lr_final: f64::NAN, ..good }, "lr-final"),
            (Schedule { warmup_steps: 100, ..good }, "warm-up takes 100 steps"),
            (Schedule { shape: Shape::Wsd, decay_fraction: 0.0, ..good }, "decay-fraction"),
            (Schedule { weight_decay: 0.0, weight_decay_final: Some(0.1), ..good }, "weight-decay"),
            (Schedule { weight_decay_final: Some(0.0), ..good }, "weight-decay-final"),
        ] {
            let said = bad.check(&length).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        let never = Schedule { shape: Shape::Constant, warmup_steps: 100, ..good };
        assert!(never.check(&length).is_ok());
        assert!(good.check(&Length::of_steps(0, 512)).unwrap_err().to_string().contains("no steps"));
    }

    #[test]
    fn it_can_be_written_down_and_read() {
        let text = r#"{"shape": "wsd", "lr-init": 1e-3, "warmup-again": true, "decay-fraction": 0.2}"#;
        let read: Schedule = serde_json::from_str(text).unwrap();
        let want = Schedule {
            shape: Shape::Wsd,
            lr_init: 1e-3,
            warmup_again: true,
            decay_fraction: 0.2,
            ..Schedule::default()
        };
        assert_eq!(read, want);
        let again: Schedule = serde_json::from_str(&serde_json::to_string(&want).unwrap()).unwrap();
        assert_eq!(again, want);
        assert!(
            serde_json::from_str::<Schedule>(r#"{"lr_init": 1e-3}"#).is_err(),
            "underscores are no names"
        );
    }
}
