//! What a person sees of a run, and what it leaves for later: the live line, notes, sample texts.

use std::fs;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use hawfinch_engine::{Event, GenerateOptions, Sampler, SamplerConfig, Session, Uncounted};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::{Cpu, Lora, Model, OpenOptions};
use hawfinch_tokenizer::Tokenizer;
use hawfinch_train::checkpoint::Found;
use hawfinch_train::metrics::{self, Record};
use hawfinch_train::tensorboard::Events;
use hawfinch_train::trainer::{EvalReport, Observer, StepReport};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{note, printable};
#[cfg(feature = "plot")]
use crate::plot::live::LossPlot;
use crate::system::load::resident;

/// Between two lines where no terminal is: often enough to see that it goes on.
const LINES: Duration = Duration::from_secs(10);
/// Tokens of a sample text.
const SAMPLE: usize = 60;

/// Share of dead channels above which a person is told.
const MANY_DEAD: f64 = 0.5;

/// The view of a run.
pub struct View {
    bar: ProgressBar,
    live: bool,
    said: Option<Instant>,
    steps: u64,
    prompt: String,
    tokenizer: Tokenizer,
    /// Floating-point operations a token, and what the machine does of them a second at most.
    work: f64,
    peak: f64,
    record: Records,
    #[cfg(feature = "plot")]
    plot: LossPlot,
}

/// The files in which a run is written down: `metrics.jsonl` and TensorBoard's events.
struct Records {
    folder: PathBuf,
    metrics: Option<metrics::Writer>,
    events: Option<Events>,
    /// Whether it was said that they cannot be written.
    complained: bool,
}

impl Records {
    /// Of a run that begins. Metrics that lie there without a checkpoint to go on from are of a run that ended before its
    /// first: they are kept under another name.
    fn begin(folder: &Path) -> anyhow::Result<Records> {
        let path = folder.join(metrics::FILE);
        if path.metadata().is_ok_and(|m| m.len() > 0) {
            let kept = path.with_extension("jsonl.old");
            fs::rename(&path, &kept).with_context(|| format!("cannot rename {}", path.display()))?;
        }
        Records::open(folder, 0)
    }

    /// Of a run that stands at `step`: what is there of later steps is cut off.
    fn open(folder: &Path, step: u64) -> anyhow::Result<Records> {
        let metrics = metrics::Writer::resume(folder, step)?;
        let events = Events::resume(folder, step)?;
        Ok(Records { folder: folder.into(), metrics: Some(metrics), events: Some(events), complained: false })
    }

    /// Writes a record; what is wrong with the disk is said once, the run goes on.
    fn write(&mut self, record: &Record) -> Option<String> {
        let metrics = self.metrics.as_mut().map(|w| w.write(record)).transpose();
        let events = self.events.as_mut().map(|w| w.write(record)).transpose();
        let error = metrics.err().or(events.err())?;
        let first = !std::mem::replace(&mut self.complained, true);
        first.then(|| error.to_string())
    }

    /// Forgets what comes after a step.
    fn rewind(&mut self, to: u64) {
        (self.metrics, self.events) = (None, None);
        if let Ok(records) = Records::open(&self.folder, to) {
            *self = records;
        }
    }
}

impl View {
    /// Of a run of so many steps that stands at `step`.
    ///
    /// * `work`: floating-point operations of a token's training
    /// * `peak`: what the machine can do a second at most
    ///
    /// # Errors
    /// The records of the run in `out` cannot be written.
    pub fn new(
        out: &Path,
        (steps, step): (u64, u64),
        prompt: &str,
        tokenizer: &Tokenizer,
        (work, peak): (f64, f64),
    ) -> anyhow::Result<View> {
        let live = io::stderr().is_terminal();
        let target = if live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(step);
        let style = ProgressStyle::with_template("{bar:24} {human_pos}/{human_len} {msg}, {eta} left");
        bar.set_style(style.expect("a template of ours").progress_chars("=> "));
        let (prompt, tokenizer) = (prompt.to_string(), tokenizer.clone());
        let record = if step == 0 { Records::begin(out)? } else { Records::open(out, step)? };
        Ok(View {
            bar,
            live,
            said: None,
            steps,
            prompt,
            tokenizer,
            work,
            peak,
            record,
            #[cfg(feature = "plot")]
            plot: LossPlot::new(out),
        })
    }

    /// The run has ended: draws its plot a last time.
    pub fn finish(&mut self) {
        self.draw(true);
    }

    /// Draws the plot of the run.
    #[cfg(feature = "plot")]
    fn draw(&mut self, end: bool) {
        if let Some(error) = self.plot.draw(end) {
            self.say(&format!("the run goes on, but is not drawn: {error}"));
        }
    }

    /// This program cannot draw.
    #[cfg(not(feature = "plot"))]
    fn draw(&mut self, _end: bool) {}

    fn write(&mut self, record: &Record) {
        if let Some(error) = self.record.write(record) {
            self.say(&format!("the run goes on, but is not written down: {error}"));
        }
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| note(line));
    }

    /// A text by these weights, with this adapter.
    fn text(&self, weights: Checkpoint, adapter: Option<Lora>) -> anyhow::Result<String> {
        let options = OpenOptions { loras: adapter.into_iter().collect(), ..OpenOptions::default() };
        let model = Model::from_checkpoint(weights, options, Cpu::default())?;
        let config = SamplerConfig { seed: Some(1), ..SamplerConfig::default() };
        let uncounted =
            Uncounted::from_texts(self.tokenizer.vocab_size(), |id| self.tokenizer.token_bytes(id));
        let mut session = Session::new(&model, self.tokenizer.clone(), Sampler::new(config, uncounted)?);
        session.feed_text(if self.prompt.is_empty() { "\n" } else { &self.prompt })?;
        let mut text = self.prompt.clone();
        session.generate(&GenerateOptions::new(SAMPLE, &self.tokenizer), |event| {
            if let Event::Text(more) = event {
                text += more;
            }
            ControlFlow::Continue(())
        })?;
        Ok(text)
    }
}

impl Observer for View {
    fn step(&mut self, r: &StepReport) {
        let share = 100.0 * self.work * r.tokens_per_second / self.peak;
        let memory = resident().map_or(String::new(), |b| format!(", {:.1} GB", b.now as f64 / 1e9));
        let line = format!(
            "loss {:.4} ({:.4}), lr {:.2e}, |g| {:.2}, {:.0} tokens/s ({share:.0}% of the peak){memory}",
            r.smooth_loss, r.loss, r.lr, r.grad_norm, r.tokens_per_second
        );
        if r.skipped {
            self.say(&format!("step {}: its loss or gradient was not finite; it was left out", r.step));
        }
        self.write(&Record::Train(metrics::Train {
            step: r.step,
            tokens: r.tokens,
            loss: r.loss,
            lr: r.lr,
            weight_decay: r.weight_decay,
            grad_norm: r.grad_norm,
            seconds: r.seconds,
            tokens_per_second: r.tokens_per_second,
            skipped: r.skipped,
            communication: r.communication,
        }));
        self.bar.set_position(r.step);
        self.bar.set_message(line.clone());
        let due = self.said.is_none_or(|at| at.elapsed() >= LINES) || r.step == self.steps;
        if !self.live && due {
            self.said = Some(Instant::now());
            note(format_args!("step {}/{}: {line}", r.step, self.steps));
        }
    }

    fn evaluated(&mut self, r: &EvalReport) {
        let bits = r.bits_per_byte.map_or(String::new(), |b| format!(", {b:.4} bits a byte"));
        self.write(&Record::Eval(metrics::Eval {
            step: r.step,
            tokens: r.tokens,
            loss: r.loss,
            bits_per_byte: r.bits_per_byte,
            probe: r.probe,
            dead_channels: r.dead_channels,
            ..metrics::Eval::default()
        }));
        let best = if r.best { ", the best so far" } else { "" };
        let probe = r.probe.map_or(String::new(), |p| format!(", {:.1}% of last words", 100.0 * p));
        self.say(&format!("step {}: validation loss {:.4}{bits}{probe}{best}", r.step, r.loss));
        if let Some(dead) = r.dead_channels.filter(|share| r.step > 0 && *share > MANY_DEAD) {
            self.say(&format!(
                "step {}: {:.0}% of the channel mix's channels never fired: the learning rate is probably too high",
                r.step,
                100.0 * dead
            ));
        }
    }

    fn saved(&mut self, _found: &Found) {
        self.draw(false);
    }

    fn note(&mut self, step: u64, text: &str) {
        self.write(&Record::Note(metrics::Note { step, text: text.into() }));
        self.say(&format!("step {step}: {text}"));
    }

    fn rewound(&mut self, to: u64) {
        self.record.rewind(to);
        self.bar.set_position(to);
    }

    fn sample(&mut self, step: u64, model: Checkpoint, adapter: Option<Lora>) {
        let text = self.text(model, adapter).unwrap_or_else(|e| format!("(no sample: {e})"));
        self.write(&Record::Note(metrics::Note { step, text: format!("sample: {text}") }));
        self.say(&format!("step {step}: {}", printable(&text.replace('\n', "\u{21b5} "))));
    }
}
