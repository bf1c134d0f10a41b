//! Runs as their `metrics.jsonl` tells them.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Config, format};
use hawfinch_train::checkpoint;
use hawfinch_train::metrics::{self, Eval, Record, Train};

use crate::fail::usage;
use crate::output::printable;

/// What lies along the horizontal axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum X {
    /// Tokens trained
    Tokens,
    /// Steps
    Steps,
    /// Time of training, pauses left out
    Time,
    /// Floating-point operations of training, by the size of the run's last checkpoint
    Flops,
}

impl X {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            X::Tokens => "tokens",
            X::Steps => "steps",
            X::Time => "time",
            X::Flops => "computing",
        }
    }
}

/// What lies along the vertical axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Y {
    /// Cross entropy, nats a token: training and validation
    Loss,
    /// Validation loss in bits a byte of text
    BitsPerByte,
    /// Share of the probe's last words that the model guesses
    Probe,
    /// Learning rate
    Lr,
    /// Length of the gradient before clipping
    GradNorm,
    /// Tokens a second of each step
    Speed,
}

impl Y {
    /// Of a step; `None` if steps have no such number.
    pub fn of_step(self, r: &Train) -> Option<f64> {
        match self {
            Y::Loss => Some(r.loss),
            Y::BitsPerByte | Y::Probe => None,
            Y::Lr => Some(r.lr),
            Y::GradNorm => Some(r.grad_norm),
            Y::Speed => Some(r.tokens_per_second),
        }
    }

    /// Of a validation; `None` if this one has no such number.
    pub fn of_eval(self, r: &Eval) -> Option<f64> {
        match self {
            Y::Loss => Some(r.loss),
            Y::BitsPerByte => r.bits_per_byte,
            Y::Probe => r.probe,
            Y::Lr | Y::GradNorm | Y::Speed => None,
        }
    }

    /// Whether less is better; `None` where neither is.
    pub fn less_is_better(self) -> Option<bool> {
        match self {
            Y::Loss | Y::BitsPerByte => Some(true),
            Y::Probe => Some(false),
            Y::Lr | Y::GradNorm | Y::Speed => None,
        }
    }

    /// What stands above the axis.
    pub fn words(self) -> &'static str {
        match self {
            Y::Loss => "loss, nats a token",
            Y::BitsPerByte => "validation loss, bits a byte",
            Y::Probe => "share of last words guessed",
            Y::Lr => "learning rate",
            Y::GradNorm => "length of the gradient",
            Y::Speed => "tokens a second",
        }
    }

    /// What it is, short.
    pub fn short(self) -> &'static str {
        match self {
            Y::Loss => "loss",
            Y::BitsPerByte => "bits a byte",
            Y::Probe => "last words guessed",
            Y::Lr | Y::GradNorm | Y::Speed => self.words(),
        }
    }

    /// As it is given on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned())
    }
}

/// A run that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The label, if one was given: runs of one label are one curve.
    pub label: Option<String>,
    /// Its folder, or its file of metrics.
    pub path: PathBuf,
}

impl Asked {
    /// From `RUN` or `NAME=RUN`. A name may hold `=` (`lr=1e-3=runs/a`): what follows must be there.
    ///
    /// # Errors
    /// An empty name.
    pub fn parse(argument: &str) -> anyhow::Result<Asked> {
        let whole = Asked { label: None, path: argument.into() };
        if whole.path.exists() {
            return Ok(whole);
        }
        let parts: Vec<(&str, &str)> =
            argument.match_indices('=').map(|(at, _)| (&argument[..at], &argument[at + 1..])).collect();
        let Some(last) = parts.last().copied() else { return Ok(whole) };
        let there = parts.into_iter().find(|(_, path)| !path.is_empty() && Path::new(path).exists());
        let (label, path) = there.unwrap_or(last);
        match (label.trim(), path) {
            ("", _) => Err(usage(format!("`{argument}` has no name before `=`: give NAME=RUN or RUN alone"))),
            (_, "") => Err(usage(format!("`{argument}` has no run after `=`: give NAME=RUN"))),
            (label, path) => Ok(Asked { label: Some(label.into()), path: path.into() }),
        }
    }
}

/// A run that was read.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called: its label, or its folder's name.
    pub name: String,
    /// Whether that was given, and so may be another run's too.
    pub labelled: bool,
    /// Its folder.
    pub folder: PathBuf,
    /// Its steps, in their order.
    pub steps: Vec<Train>,
    /// Its validations, in their order.
    pub evals: Vec<Eval>,
}

impl Run {
    /// Reads a run. A last line that is being written is left out.
    ///
    /// # Errors
    /// There is no run, or its metrics are damaged.
    pub fn read(asked: &Asked) -> anyhow::Result<Run> {
        let path = &asked.path;
        if !path.exists() {
            bail!("there is no run {}", path.display());
        }
        let file = metrics::path_of(path);
        if path.is_dir() && !file.is_file() {
            let inside = inside(path);
            let advice =
                if inside.is_empty() { String::new() } else { format!(": name the runs in it ({inside})") };
            bail!("{} is no run: there is no {} in it{advice}", path.display(), metrics::FILE);
        }
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => ".".into(),
        };
        let name = asked.label.clone().unwrap_or_else(|| name_of(&folder));
        let (mut steps, mut evals) = (Vec::new(), Vec::new());
        for record in metrics::read(&file)? {
            match record {
                Record::Train(r) => steps.push(r),
                Record::Eval(r) => evals.push(r),
                Record::Note(_) => {}
            }
        }
        let name = printable(&name).replace(['\n', '\t'], " ");
        Ok(Run { name, labelled: asked.label.is_some(), folder, steps, evals })
    }

    /// Where a step lies on the axis.
    pub fn x_of_step(&self, x: X, r: &Train, flops: f64) -> f64 {
        match x {
            X::Tokens => r.tokens as f64,
            X::Steps => r.step as f64,
            X::Time => r.seconds,
            X::Flops => r.tokens as f64 * flops,
        }
    }

    /// Where a validation lies on the axis: in time, at the end of the step before it.
    pub fn x_of_eval(&self, x: X, r: &Eval, flops: f64) -> f64 {
        match x {
            X::Tokens => r.tokens as f64,
            X::Steps => r.step as f64,
            X::Time => match self.steps.partition_point(|s| s.step <= r.step) {
                0 => 0.0,
                n => self.steps[n - 1].seconds,
            },
            X::Flops => r.tokens as f64 * flops,
        }
    }

    /// Floating-point operations of a token's training: three products a weight (forward, to what went in, to the
    /// weight), each a multiplication and an addition.
    ///
    /// # Errors
    /// The run keeps no checkpoint, which alone knows the model's sizes; it cannot be read.
    pub fn flops_per_token(&self) -> anyhow::Result<f64> {
        let shown = self.folder.display();
        let Some(found) = checkpoint::list(&self.folder)?.pop() else {
            bail!(
                "{shown} holds no checkpoint, from whose sizes operations are counted: give --x tokens, steps or time"
            );
        };
        let model = format::open(&found.model()).context("cannot count operations")?;
        Ok(6.0 * multiply_adds(&Config::infer(&model)?) as f64)
    }
}

/// Multiply-adds of a token with all weights, the head's too.
fn multiply_adds(config: &Config) -> u64 {
    names::all_params(config.version, config.layers)
        .iter()
        .filter(|(name, p)| p.role != Role::Vector && name != "emb.weight")
        .filter(|(name, p)| !(p.optional_in_layer_0 && name.starts_with("blocks.0.")))
        .map(|(_, p)| config.shape(p).iter().map(|&d| d as u64).product::<u64>())
        .sum()
}

/// The name of a folder, also of `.` and `..`.
fn name_of(folder: &Path) -> String {
    let named = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let whole = || named(&folder.canonicalize().ok()?);
    named(folder).or_else(whole).unwrap_or_else(|| folder.display().to_string())
}

/// Some of the runs in a folder, for a person who named the folder.
fn inside(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut runs: Vec<String> = entries
        .map(|e| e.path())
        .filter(|p| p.join(metrics::FILE).is_file())
        .map(|p| p.display().to_string())
        .collect();
    runs.sort();
    let more = if runs.len() > 3 { " …" } else { "" };
    runs.truncate(3);
    runs.join(" ") + more
}

/// Reads all; names that were not given are made to differ.
///
/// # Errors
/// As [`Run::read`], of the first that fails.
pub fn read_all(asked: &[Asked]) -> anyhow::Result<Vec<Run>> {
    let mut runs = asked.iter().map(Run::read).collect::<anyhow::Result<Vec<_>>>()?;
    let names: Vec<String> = runs.iter().map(|r| r.name.clone()).collect();
    for (run, name) in runs.iter_mut().zip(&names) {
        if !run.labelled && names.iter().filter(|n| *n == name).count() > 1 {
            run.name = printable(&run.folder.display().to_string());
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_kernels::DType;
    use hawfinch_model::synthetic::{self, Shape};
    use hawfinch_model::{Model, Version};

    #[test]
    fn names_may_hold_what_parts_them() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("a=b");
        std::fs::create_dir(&run).unwrap();
        let run = run.display().to_string();
        let asked = |argument: &str| Asked::parse(argument).unwrap();
        let of = |label: Option<&str>, path: &str| Asked { label: label.map(Into::into), path: path.into() };
        assert_eq!(asked(&run), of(None, &run));
        assert_eq!(asked(&format!("small={run}")), of(Some("small"), &run));
        assert_eq!(asked(&format!("lr=1e-3={run}")), of(Some("lr=1e-3"), &run));
        assert_eq!(asked("lr=1e-3=absent"), of(Some("lr=1e-3"), "absent"));
        assert_eq!(asked("absent"), of(None, "absent"));
        assert!(Asked::parse("=absent").is_err() && Asked::parse("name=").is_err());
    }

    #[test]
    fn work_is_that_of_the_model() {
        for version in [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7] {
            let shape = Shape { version, layers: 2, width: 128, vocab: 256, head_size: 64 };
            let weights = synthetic::checkpoint(&shape.config(), DType::F32, 1);
            let config = Config::infer(&weights).unwrap();
            let model: Model =
                Model::from_checkpoint(weights, Default::default(), Default::default()).unwrap();
            assert_eq!(multiply_adds(&config), model.multiply_adds(true), "{version}");
        }
    }
}
