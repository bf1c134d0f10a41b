//! A run: steps, validations, checkpoints, and what happens when something goes wrong.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_model::Lora;
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;

use crate::adamw::{self, AdamW};
use crate::batches::{Batch, Batches};
use crate::checkpoint::{self, Found, Loaded, Progress};
use crate::config::RunConfig;
use crate::groups::{self, Group};
use crate::schedule::{Length, Schedule};
use crate::tuning::{self, Method, Tuning};
use crate::{Error, Learner, Lesson, Result};

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
}

/// One validation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalReport {
    /// After which step.
    pub step: u64,
    /// Tokens learned from so far.
    pub tokens: u64,
    /// Mean loss, nats a token.
    pub loss: f64,
    /// The same in bits a byte of text, where tokens' bytes are known.
    pub bits_per_byte: Option<f64>,
    /// Share of the probe's last words that the model guesses, token by token.
    pub probe: Option<f64>,
    /// Share of the channel mix's channels that relu² left at zero for every token; `None` without relu².
    pub dead_channels: Option<f64>,
    /// Whether it is the best so far.
    pub best: bool,
}

/// What a model makes of the validation set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss, nats a token.
    pub loss: f64,
    /// As [`EvalReport::bits_per_byte`].
    pub bits_per_byte: Option<f64>,
    /// As [`EvalReport::dead_channels`].
    pub dead_channels: Option<f64>,
}

/// A text whose end is to be guessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// All of it.
    pub ids: Vec<u32>,
    /// Tokens of its end that are asked for; at least one, fewer than all.
    pub asked: usize,
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
/// Questions of a probe at a time.
const PROBED: usize = 16;
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
        config.check()?;
        let progress = Progress::new(data.fingerprint.clone(), config.seed);
        let tuning = match config.method {
            Method::Full => Tuning::default(),
            Method::Lora => Tuning::lora(weights, &config.lora())?,
            Method::State => Tuning::state(),
        };
        Self::with(config, weights, &tuning, cpu, data, progress)
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
        config.check()?;
        if from.progress.data != data.fingerprint {
            return Err(Error::request(
                "the run was trained on other data: give the same, or another folder to `out` with this model as `from`",
            ));
        }
        let tuning = Tuning::from_file(config.method, from.model.clone())?;
        let weights = base.filter(|_| config.method != Method::Full).unwrap_or(&from.model);
        let mut trainer = Self::with(config, weights, &tuning, cpu, data, from.progress.clone())?;
        from.restore(&mut trainer.optimizer)?;
        Ok(trainer)
    }

    fn with(
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
        let optimizer = AdamW::new(config.adamw(), tensors);
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
        let full = self.config.method == Method::Full;
        self.learner.tape().parameters().checkpoint(self.metadata.clone(), |p| full || p.is_trained())
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
            if stop.load(Ordering::Relaxed) {
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
            if due(self.config.sample_every) {
                let (model, adapter) = self.model()?;
                observer.sample(step, model, adapter);
            }
            if (due(self.config.eval_every) || step == self.length.steps) && self.bad == 0 {
                self.validate(observer)?;
            }
            // What a bad step left is not worth going back to. The last step is saved below.
            if due(self.config.save_every) && self.bad == 0 && step < self.length.steps {
                match self.save(observer) {
                    Ok(()) => saved = step,
                    // The disk may have room again by the next time; what is in memory goes on.
                    Err(e) => {
                        let text = format!("the checkpoint could not be written, the run goes on: {e}");
                        observer.note(step, &text);
                    }
                }
            }
            if self.config.patience > 0 && self.progress.since_best >= self.config.patience {
                break End::NoBetter;
            }
        };
        if saved != self.progress.step {
            self.save_or_end(observer)?;
        }
        Ok(end)
    }

    /// One step of the optimiser: micro-batches whose gradients are added up as if they were one.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn step(&mut self) -> Result<StepReport> {
        let began = Instant::now();
        let point = self.schedule.at(&self.length, self.progress.step, self.since_start);
        let micro = self.micro_batches()?;
        // Every token of the whole step that counts does so the same.
        let counted: usize = micro.iter().map(Batch::counted).sum();
        let weight = 1.0 / counted as f32;
        self.learner.tape().parameters_mut().clear_gradients();
        let mut loss = 0.0;
        for batch in micro.iter().filter(|b| b.counted() > 0) {
            let weights: Vec<f32> = batch.counts.iter().map(|c| if *c { weight } else { 0.0 }).collect();
            let targets = Targets { ids: &batch.targets, weights: &weights, l2wrap: self.config.l2wrap };
            let lengths = &batch.lengths;
            let lesson = Lesson { lengths, tokens: &batch.tokens, targets, initial: None, d_last: None };
            let learned = self.learner.learn_in_segments(&lesson, self.config.segments())?;
            let counting = learned.losses.each.iter().zip(&batch.counts).filter(|(_, c)| **c);
            loss += counting.map(|(l, _)| l).sum::<f64>() / counted as f64;
        }
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
            p.tokens += micro.iter().map(|b| b.tokens.len() as u64).sum::<u64>();
            let smooth = p.smooth_loss.map_or(loss, |s| s + (loss - s) / SMOOTH.min(p.updates as f64 + 1.0));
            p.smooth_loss = Some(smooth);
            p.updates += 1;
        }
        // Worse by half than knowing nothing: what was learned is lost.
        let lost = loss > 1.5 * (self.learner.config().vocab as f64).ln();
        self.bad = if skipped || lost { self.bad + 1 } else { 0 };
        let took = began.elapsed().as_secs_f64();
        self.progress.seconds += took;
        let tokens: usize = micro.iter().map(|b| b.tokens.len()).sum();
        Ok(StepReport {
            step: self.progress.step,
            tokens: self.progress.tokens,
            loss,
            smooth_loss: self.progress.smooth_loss.unwrap_or(loss),
            lr,
            weight_decay: point.weight_decay,
            grad_norm: norm,
            seconds: self.progress.seconds,
            tokens_per_second: tokens as f64 / took,
            skipped,
        })
    }

    /// The micro-batches of the next step. Where a mask leaves nothing to learn of all of them they are passed over, since a
    /// step without a gradient would change weights all the same (by their moments and decay).
    fn micro_batches(&mut self) -> Result<Vec<Batch>> {
        let per_step = (self.config.accumulate * self.config.batch) as u64;
        let pass = self.data.train.samples();
        // From a sample's place in one pass to that in the next it is less than two.
        for _ in 0..=2 * pass.div_ceil(per_step) {
            let first = |n| self.progress.sample + (n * self.config.batch) as u64;
            let micro =
                (0..self.config.accumulate).map(|n| self.data.train.batch(first(n), self.config.batch));
            let micro = micro.collect::<Result<Vec<Batch>>>()?;
            if micro.iter().any(|b| b.counted() > 0) {
                return Ok(micro);
            }
            self.progress.sample += per_step;
        }
        Err(Error::request(
            "two passes over the data have no token to learn: what its mask marks is no target of any sample (it is the first token, or stands behind the last whole sample); mark more, or shorten `ctx`",
        ))
    }

    /// Lets the optimiser make a step; the length of the gradient, or nothing if it was not finite.
    fn update(&mut self, lr: f64, weight_decay: f64) -> Result<Option<f64>> {
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

    /// What the model makes of the validation set; `None` without one.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn evaluate(&self) -> Result<Option<Evaluation>> {
        self.learner.tape().watch_channels();
        let losses = self.validation_loss();
        let dead_channels = self.learner.tape().channels().dead_share();
        Ok(losses?.map(|(loss, bits_per_byte)| Evaluation { loss, bits_per_byte, dead_channels }))
    }

    /// The mean loss over the validation set, and that in bits a byte.
    fn validation_loss(&self) -> Result<Option<(f64, Option<f64>)>> {
        let Some(set) = &self.data.validation else { return Ok(None) };
        let per = (self.config.ctx * self.config.batch) as u64;
        let (mut loss, mut counted, mut bytes, mut first, mut read) = (0.0, 0u64, 0u64, 0u64, 0u64);
        // Where a mask leaves nothing of what may be read, on until something counts.
        while (read < self.config.eval_tokens.max(per) || counted == 0) && first < set.samples() {
            let take = self.config.batch.min((set.samples() - first) as usize);
            let batch = set.batch(first, take)?;
            first += take as u64;
            read += batch.tokens.len() as u64;
            if batch.counted() == 0 {
                continue;
            }
            let weights = vec![0.0; batch.tokens.len()];
            let targets = Targets { ids: &batch.targets, weights: &weights, l2wrap: 0.0 };
            let lengths = &batch.lengths;
            let lesson = Lesson { lengths, tokens: &batch.tokens, targets, initial: None, d_last: None };
            let learned = self.learner.evaluate_in_segments(&lesson, self.config.segments())?;
            let rows = learned.losses.each.iter().zip(&batch.targets).zip(&batch.counts);
            for ((l, target), _) in rows.filter(|(_, c)| **c) {
                loss += l;
                counted += 1;
                bytes += self.data.token_bytes.as_ref().map_or(0, |b| u64::from(b[*target as usize]));
            }
        }
        if counted == 0 {
            return Ok(None);
        }
        let bits = (bytes > 0).then(|| loss / std::f64::consts::LN_2 / bytes as f64);
        Ok(Some((loss / counted as f64, bits)))
    }

    /// The share of the probe's questions that the model answers: each asked token is the likeliest after those before it.
    /// `None` without questions.
    ///
    /// # Errors
    /// Tokens that the model does not know.
    pub fn probe(&self) -> Result<Option<f64>> {
        let mut answered = 0;
        for questions in self.data.probe.chunks(PROBED) {
            let lengths: Vec<usize> = questions.iter().map(|q| q.ids.len() - 1).collect();
            let tokens: Vec<u32> = questions.iter().flat_map(|q| q.ids[..q.ids.len() - 1].to_vec()).collect();
            let ids: Vec<u32> = questions.iter().flat_map(|q| q.ids[1..].to_vec()).collect();
            let weights = vec![0.0; ids.len()];
            let targets = Targets { ids: &ids, weights: &weights, l2wrap: 0.0 };
            let lesson = Lesson { lengths: &lengths, tokens: &tokens, targets, initial: None, d_last: None };
            let right = self.learner.evaluate(&lesson)?.losses.right;
            let mut end = 0;
            for (question, len) in questions.iter().zip(&lengths) {
                end += len;
                answered += usize::from(right[end - question.asked..end].iter().all(|r| *r));
            }
        }
        let asked = self.data.probe.len();
        Ok((asked > 0).then(|| answered as f64 / asked as f64))
    }

    fn validate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(Evaluation { loss, bits_per_byte, dead_channels }) = self.evaluate()? else {
            return Ok(());
        };
        let probe = self.probe()?;
        let p = &mut self.progress;
        let best = loss.is_finite() && p.best.is_none_or(|(least, _)| loss < least);
        if best {
            (p.best, p.since_best) = (Some((loss, p.step)), 0);
        } else {
            p.since_best += 1;
        }
        let (step, tokens) = (p.step, p.tokens);
        observer.evaluated(&EvalReport { step, tokens, loss, bits_per_byte, probe, dead_channels, best });
        if best && !step.is_multiple_of(self.config.save_every) {
            // So that the best weights can be had.
            self.save(observer)?;
        }
        Ok(())
    }

    /// Writes a checkpoint and removes old ones.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let found = checkpoint::write(&self.config.out, &self.weights(), &self.optimizer, &self.progress)?;
        checkpoint::prune(&self.config.out, self.config.keep, self.progress.best.map(|(_, step)| step))?;
        observer.saved(&found);
        Ok(())
    }

    /// A checkpoint without which there is nothing to go on from, or what was learned last is lost.
    fn save_or_end(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let step = self.progress.step;
        self.save(observer).map_err(|e| Error::Checkpoint { step, source: e.into() })
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
        loaded.restore(&mut self.optimizer)?;
        self.put(&loaded)?;
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
