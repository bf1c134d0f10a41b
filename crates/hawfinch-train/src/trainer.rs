//! A run: steps, validations, checkpoints, and what happens when something goes wrong.

mod ranks;
mod validation;
mod zero;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hawfinch_model::Lora;
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;

use crate::adamw::{self, AdamW};
use crate::batches::{Batch, Batches};
use crate::checkpoint::{self, Found, Loaded, Progress};
use crate::collective::{Alone, Collective, Communication};
use crate::config::RunConfig;
use crate::groups::{self, Group};
use crate::schedule::{Length, Schedule};
use crate::tuning::{self, Method, Tuning};
use crate::{Error, Learner, Parameter, Result};
use ranks::{Ranks, Share};

pub use validation::{EvalReport, Evaluation, Question};

/// One step, as it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Tokens learned from so far.
    pub tokens: u64,
    /// Mean loss of its tokens, nats.
    pub loss: f64,
    /// Smoothed over some hundred steps.
    pub smooth_loss: f64,
    /// Learning rate, before the groups' factors.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Tokens a second of this step.
    pub tokens_per_second: f64,
    /// Whether it was left out: its loss or gradient was not finite.
    pub skipped: bool,
    /// What this rank said to others in it, if there are any.
    pub communication: Option<Communication>,
}

/// What is told of a run while it goes.
pub trait Observer {
    /// A step was made.
    fn step(&mut self, _report: &StepReport) {}
    /// It was validated.
    fn evaluated(&mut self, _report: &EvalReport) {}
    /// A checkpoint was written.
    fn saved(&mut self, _found: &Found) {}
    /// Something a person should know.
    fn note(&mut self, _step: u64, _text: &str) {}
    /// The run went back to a checkpoint: what was told of later steps does not count.
    fn rewound(&mut self, _to: u64) {}
    /// It is time for samples of the model as it is now; `adapter` is to be applied to it.
    fn sample(&mut self, _step: u64, _model: Checkpoint, _adapter: Option<Lora>) {}
}

/// Nobody is told.
impl Observer for () {}

/// What is in a step of all ranks.
struct Sum {
    /// Tokens that are learned.
    counted: f64,
    /// Tokens that are read.
    tokens: f64,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are made.
    Done,
    /// Validation did not get better for long enough.
    NoBetter,
    /// It was asked to stop.
    Stopped,
}

/// Loss is smoothed by 1 - 1/this a step.
const SMOOTH: f64 = 50.0;
/// Rewinds after which a run gives up.
const REWINDS: u32 = 5;

/// What a run reads.
pub struct Data {
    /// Samples to learn from.
    pub train: Batches,
    /// Samples to validate on.
    pub validation: Option<Batches>,
    /// Bytes of each token, for bits a byte.
    pub token_bytes: Option<Vec<u32>>,
    /// Texts whose last words are guessed at each validation.
    pub probe: Vec<Question>,
    /// What tells this data from other data.
    pub fingerprint: String,
}

/// A run.
pub struct Trainer {
    config: RunConfig,
    learner: Learner<f32>,
    optimizer: AdamW,
    schedule: Schedule,
    length: Length,
    data: Data,
    progress: Progress,
    /// Steps of this process.
    since_start: u64,
    /// Seconds of these.
    seconds: f64,
    ranks: Ranks,
    /// Bad steps in a row.
    bad: u32,
    metadata: std::collections::BTreeMap<String, String>,
}

impl Trainer {
    /// A run from its first step, from these weights.
    ///
    /// # Errors
    /// Settings that make no sense, weights that cannot be trained.
    pub fn new(config: RunConfig, weights: &Checkpoint, cpu: Cpu<f32>, data: Data) -> Result<Trainer> {
        Self::new_among(Arc::new(Alone), config, weights, cpu, data)
    }

    /// The same as one of several ranks, which all make the same trainer.
    ///
    /// # Errors
    /// As [`Trainer::new`]; ranks whose settings, data, model or program differ; a step that they cannot share.
    pub fn new_among(
        ranks: Arc<dyn Collective>,
        config: RunConfig,
        weights: &Checkpoint,
        cpu: Cpu<f32>,
        data: Data,
    ) -> Result<Trainer> {
        config.check()?;
        let progress = Progress::new(data.fingerprint.clone(), config.seed);
        let tuning = match config.method {
            Method::Full => Tuning::default(),
            Method::Lora => Tuning::lora(weights, &config.lora(), &cpu)?,
            Method::State => Tuning::state(),
        };
        let trainer = Self::with(ranks, config, weights, &tuning, cpu, data, progress)?;
        trainer.agree()?;
        Ok(trainer)
    }

    /// A run from where a checkpoint says it stood. `base` is the model beside which it trains, when it does not train the
    /// model itself.
    ///
    /// # Errors
    /// As [`Trainer::new`]; a checkpoint of another shape, of another base or of other data.
    pub fn resume(
        config: RunConfig,
        base: Option<&Checkpoint>,
        from: &Loaded,
        cpu: Cpu<f32>,
        data: Data,
    ) -> Result<Trainer> {
        Self::resume_among(Arc::new(Alone), config, base, from, cpu, data)
    }

    /// The same as one of several ranks; there may be more or fewer than before.
    ///
    /// # Errors
    /// As [`Trainer::resume`] and [`Trainer::new_among`].
    pub fn resume_among(
        ranks: Arc<dyn Collective>,
        config: RunConfig,
        base: Option<&Checkpoint>,
        from: &Loaded,
        cpu: Cpu<f32>,
        data: Data,
    ) -> Result<Trainer> {
        config.check()?;
        if from.progress.data != data.fingerprint {
            return Err(Error::request(
                "the run was trained on other data: give the same, or another folder to `out` with this model as `from`",
            ));
        }
        let tuning = Tuning::from_file(config.method, from.model.clone())?;
        let weights = base.filter(|_| config.method != Method::Full).unwrap_or(&from.model);
        let mut trainer = Self::with(ranks, config, weights, &tuning, cpu, data, from.progress.clone())?;
        trainer.agree()?;
        trainer.restore(from)?;
        Ok(trainer)
    }

    fn with(
        ranks: Arc<dyn Collective>,
        config: RunConfig,
        weights: &Checkpoint,
        tuning: &Tuning,
        cpu: Cpu<f32>,
        data: Data,
        progress: Progress,
    ) -> Result<Trainer> {
        let mut learner = Learner::tuned(weights, tuning, cpu, config.precision.into())?;
        learner.set_recomputing(config.recompute);
        let length = config.length(data.train.tokens())?;
        let schedule = config.schedule();
        schedule.check(&length)?;
        let version = learner.config().version;
        let tensors: Vec<_> = learner
            .tape()
            .parameters()
            .list()
            .iter()
            .filter(|p| p.is_trained())
            .map(|p| {
                let group = match config.method {
                    Method::Full => groups::group(version, config.layerwise, &p.name, &p.shape),
                    // Beside a model all learn alike, and nothing draws them to zero.
                    _ => Group { rate: 1.0, decays: false },
                };
                (p.name.clone(), p.len(), group)
            })
            .collect();
        let ranks = Ranks::new(ranks, &config, &learner.tape().parameters(), tensors)?;
        let optimizer = ranks.optimizer(config.adamw());
        let metadata = if config.method == Method::Full {
            // Each checkpoint is a model of its own: what hash the one before it had does not count.
            let mut metadata = weights.metadata.clone();
            metadata.remove(hawfinch_model::metadata::SOURCE_HASH);
            metadata.remove(hawfinch_model::metadata::QUANTIZED);
            metadata
        } else {
            tuning.metadata(weights, &data.fingerprint)?
        };
        Ok(Trainer {
            config,
            learner,
            optimizer,
            schedule,
            length,
            data,
            progress,
            since_start: 0,
            seconds: 0.0,
            ranks,
            bad: 0,
            metadata,
        })
    }

    /// The settings.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Where it stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How long it is.
    pub fn length(&self) -> &Length {
        &self.length
    }

    /// The model in training.
    pub fn learner(&self) -> &Learner<f32> {
        &self.learner
    }

    /// What is trained, as it is now: the weights, or an adapter or a state alone.
    pub fn weights(&self) -> Checkpoint {
        let saved = |p: &Parameter<f32>| tuning::is_saved(self.config.method, p);
        self.learner.tape().parameters().checkpoint(self.metadata.clone(), saved)
    }

    /// The model as it is now, and the adapter to be applied to it.
    fn model(&self) -> Result<(Checkpoint, Option<Lora>)> {
        let weights = self.weights();
        let base = || self.learner.model().checkpoint().clone();
        Ok(match self.config.method {
            Method::Full => (weights, None),
            Method::Lora => (base(), Some(Lora::from_checkpoint(weights, None)?)),
            Method::State => {
                let mut model = base();
                model.tensors.extend(weights.tensors);
                (model, None)
            }
        })
    }

    /// Runs until the end, or until `stop` is set; then what was learned is saved.
    ///
    /// # Errors
    /// Data that cannot be read; a run that diverges again and again; the last checkpoint cannot be written.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<End> {
        let mut saved = self.progress.step;
        // How good the model is that it begins with.
        if self.progress.step == 0 && self.config.from.is_some() {
            self.validate(observer)?;
        }
        // A run that diverges before its first checkpoint has its beginning to go back to.
        if self.progress.step == 0 && self.config.rewind_after > 0 {
            self.save_or_end(observer)?;
        }
        let end = loop {
            if self.progress.step >= self.length.steps {
                break End::Done;
            }
            // One that is to stop stops all, at the same step.
            if self.ranks.any(stop.load(Ordering::Relaxed))? {
                break End::Stopped;
            }
            let report = self.step()?;
            observer.step(&report);
            if self.bad > 0 && self.bad == self.config.rewind_after {
                self.rewind(observer)?;
                saved = self.progress.step;
                continue;
            }
            let step = self.progress.step;
            let due = |every: u64| every > 0 && step.is_multiple_of(every);
            if due(self.config.sample_every) && self.ranks.first() {
                let (model, adapter) = self.model()?;
                observer.sample(step, model, adapter);
            }
            if (due(self.config.eval_every) || step == self.length.steps) && self.bad == 0 {
                self.validate(observer)?;
            }
            // What a bad step left is not worth going back to. The last step is saved below.
            let save = due(self.config.save_every) && self.bad == 0 && step < self.length.steps;
            if save && self.save_or_go_on(observer)? {
                saved = step;
            }
            if self.config.patience > 0 && self.progress.since_best >= self.config.patience {
                break End::NoBetter;
            }
        };
        if saved != self.progress.step {
            self.save_or_end(observer)?;
        }
        if let Some(said) = self.ranks.summary(self.seconds) {
            observer.note(self.progress.step, &said);
        }
        Ok(end)
    }

    /// One step of the optimiser: micro-batches whose gradients are added up as if they were one, by all ranks.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn step(&mut self) -> Result<StepReport> {
        let began = Instant::now();
        let point = self.schedule.at(&self.length, self.progress.step, self.since_start);
        let (micro, Sum { counted, tokens }) = self.micro_batches()?;
        // Every token of the whole step that counts does so the same.
        let weight = 1.0 / counted as f32;
        // Those of all ranks in the order in which one would add them.
        let (groups, group) = self.ranks.groups();
        let mut losses = vec![0.0; micro.len() * groups];
        let own = self.learn(&micro, weight)?;
        losses[group..].iter_mut().step_by(groups).zip(own).for_each(|(to, loss)| *to = loss);
        self.ranks.fill(&mut losses)?;
        let loss = losses.iter().fold(0.0, |sum, loss| sum + loss / counted);
        let lr = point.lr * self.progress.rate_factor;
        let updated = if loss.is_finite() { self.update(lr, point.weight_decay)? } else { None };
        let p = &mut self.progress;
        let (norm, skipped) = (updated.unwrap_or(f64::NAN), updated.is_none());
        p.step += 1;
        self.since_start += 1;
        p.sample += (self.config.accumulate * self.config.batch) as u64;
        if skipped {
            p.skipped += 1;
        } else {
            p.tokens += tokens as u64;
            let smooth = p.smooth_loss.map_or(loss, |s| s + (loss - s) / SMOOTH.min(p.updates as f64 + 1.0));
            p.smooth_loss = Some(smooth);
            p.updates += 1;
        }
        // Worse by half than knowing nothing: what was learned is lost.
        let lost = loss > 1.5 * (self.learner.config().vocab as f64).ln();
        self.bad = if skipped || lost { self.bad + 1 } else { 0 };
        let took = began.elapsed().as_secs_f64();
        self.progress.seconds += took;
        self.seconds += took;
        let communication = self.ranks.step_done();
        Ok(StepReport {
            step: self.progress.step,
            tokens: self.progress.tokens,
            loss,
            smooth_loss: self.progress.smooth_loss.unwrap_or(loss),
            lr,
            weight_decay: point.weight_decay,
            grad_norm: norm,
            seconds: self.progress.seconds,
            tokens_per_second: tokens / took,
            skipped,
            communication,
        })
    }

    /// This rank's micro-batches of the next step, and what is in those of all ranks. Where a mask leaves nothing to learn of
    /// all of them they are passed over, since a step without a gradient would change weights all the same (by their moments
    /// and decay).
    fn micro_batches(&mut self) -> Result<(Vec<Batch>, Sum)> {
        let per_step = (self.config.accumulate * self.config.batch) as u64;
        let pass = self.data.train.samples();
        // From a sample's place in one pass to that in the next it is less than two.
        for _ in 0..=2 * pass.div_ceil(per_step) {
            let of = |s: &Share| self.data.train.batch(self.progress.sample + s.from, s.count);
            let micro = self.ranks.shares.iter().map(of).collect::<Result<Vec<Batch>>>()?;
            let once = || micro.iter().filter(|_| self.ranks.counts());
            let counted: usize = once().map(Batch::counted).sum();
            let tokens: usize = once().map(|b| b.tokens.len()).sum();
            let [counted, tokens] = self.ranks.sums([counted as f64, tokens as f64])?;
            if counted > 0.0 {
                return Ok((micro, Sum { counted, tokens }));
            }
            self.progress.sample += per_step;
        }
        Err(Error::request(
            "two passes over the data have no token to learn: what its mask marks is no target of any sample (it is the first token, or stands behind the last whole sample); mark more, or shorten `ctx`",
        ))
    }

    /// Lets the optimiser make a step; the length of the gradient, or nothing if it was not finite.
    fn update(&mut self, lr: f64, weight_decay: f64) -> Result<Option<f64>> {
        if self.is_sharded() {
            return self.update_shards(adamw::Rates { lr, weight_decay });
        }
        let tape = self.learner.tape();
        let (isa, pool) = (tape.cpu().isa(), tape.cpu().pool().clone());
        let mut parameters = tape.parameters_mut();
        let mut list: Vec<adamw::Parameter<'_>> = parameters
            .list_mut()
            .iter_mut()
            .filter(|p| p.is_trained())
            .map(|p| {
                let (values, gradient) = p.both_mut();
                adamw::Parameter { values, gradient }
            })
            .collect();
        let step = self.optimizer.step(isa, &pool, &mut list, adamw::Rates { lr, weight_decay }, 1.0);
        for p in parameters.list_mut().iter_mut().filter(|p| tuning::is_tuned_state(&p.name)) {
            let shape = p.shape.clone();
            tuning::mend(p.both_mut().0, &shape);
        }
        match step {
            Ok(report) => Ok(Some(report.norm)),
            Err(Error::Gradient { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a checkpoint and removes old ones.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if let Some(found) = self.write()? {
            observer.saved(&found);
        }
        Ok(())
    }

    /// A checkpoint that another may follow: whether it was written. The disk may have room again by the next time; what is in
    /// memory goes on.
    fn save_or_go_on(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        match self.save(observer) {
            Ok(()) => Ok(true),
            Err(e @ Error::Ranks(_)) => Err(e),
            Err(e) => {
                let text = format!("the checkpoint could not be written, the run goes on: {e}");
                observer.note(self.progress.step, &text);
                Ok(false)
            }
        }
    }

    /// A checkpoint without which there is nothing to go on from, or what was learned last is lost.
    fn save_or_end(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let step = self.progress.step;
        self.save(observer).map_err(|e| match e {
            Error::Ranks(_) => e,
            e => Error::Checkpoint { step, source: e.into() },
        })
    }

    /// Goes back to the last checkpoint, with a lower learning rate and past the samples that went wrong.
    fn rewind(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let (step, sample, skipped) = (self.progress.step, self.progress.sample, self.progress.skipped);
        let rewinds = self.progress.rewinds + 1;
        if rewinds > REWINDS {
            return Err(Error::request(format!(
                "the run diverged again at step {step}, after going back {REWINDS} times: begin with a lower learning rate or a longer warm-up"
            )));
        }
        let found = checkpoint::list(&self.config.out)?.pop();
        let Some(found) = found else {
            return Err(Error::request(format!(
                "the run diverged at step {step} and there is no checkpoint to go back to: begin with a lower learning rate"
            )));
        };
        let loaded = checkpoint::load(&found)?;
        let factor = self.progress.rate_factor * self.config.rewind_rate;
        self.restore(&loaded)?;
        self.put(&loaded)?;
        self.agree_on_values()?;
        let seconds = self.progress.seconds;
        self.progress =
            Progress { sample, skipped, rewinds, rate_factor: factor, seconds, ..loaded.progress };
        self.bad = 0;
        observer.rewound(found.step);
        observer.note(
            found.step,
            &format!(
                "the run diverged at step {step}: it goes on from step {}, at {} of its learning rate",
                found.step,
                short(factor)
            ),
        );
        Ok(())
    }

    /// Puts a checkpoint's weights in the place of those in training.
    fn put(&self, loaded: &Loaded) -> Result<()> {
        let mut parameters = self.learner.tape().parameters_mut();
        for p in parameters.list_mut().iter_mut().filter(|p| p.is_trained()) {
            let values = loaded.model.get(&p.name).map(|t| t.to_f32()).filter(|v| v.len() == p.len());
            let Some(values) = values else {
                return Err(Error::request(format!("the checkpoint has no `{}` of this shape", p.name)));
            };
            p.set(&values);
        }
        Ok(())
    }
}

/// The last checkpoint of a run, if it has any.
///
/// # Errors
/// As [`checkpoint::list`].
pub fn last(run: &Path) -> Result<Option<Found>> {
    Ok(checkpoint::list(run)?.pop())
}

/// A number in three significant digits at most.
fn short(number: f64) -> String {
    let rounded: f64 = format!("{number:.2e}").parse().unwrap_or(number);
    if rounded.abs() >= 1e-3 { rounded.to_string() } else { format!("{rounded:e}") }
}

#[cfg(test)]
mod tests {
    use super::short;

    /// Of repeated rewinds: 1e-17 twice would be a zero, a point and 34 digits, 0.9 five times 0.5904900000000001.
    #[test]
    fn factors_are_short() {
        let factors =
            [0.5, 0.0625, 0.9f64.powi(5), 0.1f64.powi(3), 1.0 / 3.0, 0.5f64.powi(11), 1e-17 * 1e-17];
        let want = ["0.5", "0.0625", "0.59", "0.001", "0.333", "4.88e-4", "1e-34"];
        assert_eq!(factors.map(short), want);
    }
}
