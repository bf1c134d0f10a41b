//! The settings of a run, from a TOML file and from flags: every key is a flag of the same name, and a flag wins.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hawfinch_train::config::RunConfig;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::built_in;
use crate::fail::usage;

/// Every key of a run, none of them needed. What is not given stands in the file or has its default
/// ([`RunConfig`] says which).
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Keys {
    /// Folder of the run: checkpoints, metrics, plots [default: runs/ and the file's name]
    #[arg(long, short, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Start from this model; without it, from a new one
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    pub from: Option<PathBuf>,
    /// RWKV version of a new model: 4, 5.0, 5.1, 5.2, 6 or 7; attention: the transformer to compare them with
    #[arg(long, value_name = "VERSION", help_heading = "Model")]
    pub version: Option<String>,
    /// Its layers
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub layers: Option<usize>,
    /// Its width
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub width: Option<usize>,
    /// Its head size
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub head_size: Option<usize>,
    /// Inner width of its channel mix [default: the reference's]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub ffn_width: Option<usize>,
    /// Rows of its embedding [default: what the tokenizer needs]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub vocab: Option<usize>,
    /// `world`, `bytes`, or a vocabulary file [default: that of the model in `from`, else world]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Model")]
    pub tokenizer: Option<String>,

    /// What is trained: full (the model), lora (matrices of low rank beside it) or state (what texts begin with)
    #[arg(long, value_name = "METHOD", help_heading = "Fine-tuning")]
    pub method: Option<String>,
    /// LoRA: rank of the products
    #[arg(long, value_name = "N", help_heading = "Fine-tuning")]
    pub lora_rank: Option<usize>,
    /// LoRA: the product counts alpha / rank [default: the rank]
    #[arg(long, value_name = "ALPHA", help_heading = "Fine-tuning")]
    pub lora_alpha: Option<f64>,
    /// LoRA: what it begins as: zero, pissa (the base's largest singular values) or disha (shards, Bone)
    #[arg(long, value_name = "INIT", help_heading = "Fine-tuning")]
    pub lora_init: Option<String>,
    /// LoRA: which linear layers, such as att.key,ffn.value [default: all but the head]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', help_heading = "Fine-tuning")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_modules: Vec<String>,
    /// LoRA: what is trained whole beside it: ln, time, emb, head
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', help_heading = "Fine-tuning")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train_parts: Vec<String>,

    /// A data set: NAME of NAME.bin and NAME.idx, and of NAME.mask.bin and .idx if these say what is learned
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Texts to make one of, as `data build` takes them (repeatable)
    #[arg(long, value_name = "SOURCE", help_heading = "Data")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<String>,
    /// How conversations in `text` are written [default: as `chat` talks with the model in `from`, else world]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub template: Option<String>,
    /// What is learned of conversations in `text`: assistant or all [default: assistant]
    #[arg(long, value_name = "WHAT", help_heading = "Data")]
    pub loss_on: Option<String>,
    /// A data set to validate on [default: NAME.held-out beside the data]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub validation: Option<PathBuf>,
    /// Part of the documents of `text` held out for validation, such as 0.01
    #[arg(long, value_name = "PART", help_heading = "Data")]
    pub held_out: Option<f64>,
    /// Order of the samples: shuffle, magic-prime (the reference's) or packed (whole documents)
    #[arg(long, value_name = "ORDER", help_heading = "Data")]
    pub order: Option<String>,
    /// Tokens of a sample
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub ctx: Option<usize>,
    /// Samples of a micro-batch
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub batch: Option<usize>,
    /// Micro-batches whose gradients are added up for a step
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub accumulate: Option<usize>,
    /// Tokens that are computed at a time, for contexts longer than memory; gradients are carried back exactly (0: all)
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub segment: Option<usize>,
    /// No gradient goes back from segment to segment: an approximation, a quarter faster
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Data")]
    pub truncate: Option<bool>,
    /// Seed of the initialisation and of the order
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub seed: Option<u64>,

    /// Length of the run in steps
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    pub steps: Option<u64>,
    /// Length in tokens
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    pub tokens: Option<u64>,
    /// Length in passes over the data
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    pub epochs: Option<f64>,
    /// How the learning rate goes: cosine, exponential, linear, mixed, wsd or constant
    #[arg(long, value_name = "SHAPE", help_heading = "Optimiser")]
    pub schedule: Option<String>,
    /// Learning rate after warm-up
    #[arg(long, value_name = "RATE", help_heading = "Optimiser")]
    pub lr: Option<f64>,
    /// Learning rate at the end [default: a tenth]
    #[arg(long, value_name = "RATE", help_heading = "Optimiser")]
    pub lr_final: Option<f64>,
    /// Steps of warm-up
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    pub warmup_steps: Option<u64>,
    /// What the first step of warm-up is multiplied by
    #[arg(long, value_name = "FACTOR", help_heading = "Optimiser")]
    pub warmup_start: Option<f64>,
    /// Warm up again whenever the run goes on, as the references do
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimiser")]
    pub warmup_again: Option<bool>,
    /// For wsd: the part of the run in which the rate goes down
    #[arg(long, value_name = "PART", help_heading = "Optimiser")]
    pub decay_fraction: Option<f64>,
    /// Weight decay of the matrices
    #[arg(long, value_name = "RATE", help_heading = "Optimiser")]
    pub weight_decay: Option<f64>,
    /// Weight decay at the end [default: the same]
    #[arg(long, value_name = "RATE", help_heading = "Optimiser")]
    pub weight_decay_final: Option<f64>,
    /// Which parameters learn faster: on (the reference's groups), stage2 or off
    #[arg(long, value_name = "WHICH", help_heading = "Optimiser")]
    pub layerwise: Option<String>,
    /// Decay of the first moment
    #[arg(long, value_name = "RATE", help_heading = "Optimiser")]
    pub beta1: Option<f64>,
    /// Decay of the second moment
    #[arg(long, value_name = "RATE", help_heading = "Optimiser")]
    pub beta2: Option<f64>,
    /// Added to the root of the second moment
    #[arg(long, value_name = "EPS", help_heading = "Optimiser")]
    pub eps: Option<f64>,
    /// Longest gradient; longer ones are shortened to it (0: none are)
    #[arg(long, value_name = "LENGTH", help_heading = "Optimiser")]
    pub clip: Option<f64>,
    /// Factor of L2Wrap, which keeps the largest logits small (0: none)
    #[arg(long, value_name = "FACTOR", help_heading = "Optimiser")]
    pub l2wrap: Option<f64>,

    /// Operands of matrix products: bf16 or f32 (weights and moments are f32 in both)
    #[arg(long, value_name = "TYPE", help_heading = "Machine")]
    pub precision: Option<String>,
    /// Compute blocks again on the way back: slower, in far less memory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Machine")]
    pub recompute: Option<bool>,

    /// Ranks that share each micro-batch along its texts, with `segment`: for texts longer than one machine's memory
    #[arg(long, value_name = "N", help_heading = "Several machines")]
    pub sequence_ranks: Option<usize>,
    /// How gradients travel between machines: f32, or bf16 (half the bytes, rounded)
    #[arg(long, value_name = "TYPE", help_heading = "Several machines")]
    pub wire: Option<String>,
    /// 1 shares the optimiser's moments out among the ranks: each keeps its part of them; the same results
    #[arg(long, value_name = "0|1", help_heading = "Several machines")]
    pub zero: Option<u8>,
    /// Megabytes of gradients that are sent at a time, while the way back goes on
    #[arg(long, value_name = "MB", help_heading = "Several machines")]
    pub bucket: Option<f64>,

    /// Steps between checkpoints
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub save_every: Option<u64>,
    /// Checkpoints that are kept; the best one is kept beside them
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub keep: Option<usize>,
    /// Steps between validations (0: only after the last)
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub eval_every: Option<u64>,
    /// Tokens of a validation at most
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub eval_tokens: Option<u64>,
    /// Steps between sample texts (0: none)
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub sample_every: Option<u64>,
    /// What sample texts begin with
    #[arg(long, value_name = "TEXT", help_heading = "Run")]
    pub prompt: Option<String>,
    /// A JSONL file of texts whose last words are guessed at each validation
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub probe: Option<PathBuf>,
    /// End after so many validations without a better loss (0: never)
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub patience: Option<u32>,
    /// Go back to the last checkpoint after so many bad steps in a row (0: never)
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub rewind_after: Option<u32>,
    /// What the learning rate is multiplied by then
    #[arg(long, value_name = "FACTOR", help_heading = "Run")]
    pub rewind_rate: Option<f64>,
}

/// Keys that name files to read: in a TOML file they are relative to its folder.
const READ: [&str; 5] = ["from", "data", "validation", "probe", "tokenizer"];

/// All keys.
fn known() -> Vec<String> {
    let args = <Keys as clap::Args>::augment_args(clap::Command::new("keys"));
    args.get_arguments().filter_map(|a| a.get_long()).map(str::to_string).collect()
}

/// The settings of a run: the file's, with what the flags say in its place.
///
/// # Errors
/// A file that is no TOML; a key that there is not, or a value that does not fit it: wrong usage.
pub fn resolve(file: Option<&Path>, flags: &Keys) -> anyhow::Result<RunConfig> {
    let mut table = match file {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let default_out = || file.and_then(Path::file_stem).map(|stem| Path::new("runs").join(stem));
    table.extend(Table::try_from(flags).context("flags as settings")?);
    if !table.contains_key("out")
        && let Some(out) = default_out()
    {
        table.insert("out".into(), Value::String(out.to_string_lossy().into_owned()));
    }
    let place = file.map_or("the flags".into(), |f| f.display().to_string());
    // Key by key first: then the error can name the one it is of.
    for (key, value) in &table {
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        if let Err(e) = RunConfig::deserialize(alone) {
            let what = e.message().lines().next().unwrap_or_default();
            return Err(usage(format!("{place}: `{key}` is {value}: {what}")));
        }
    }
    Ok(RunConfig::deserialize(table)?)
}

fn read(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        usage(format!("{}, line {line}: {}", path.display(), e.message().trim()))
    })?;
    let known = known();
    if let Some(key) = table.keys().find(|k| !known.contains(k)) {
        return Err(usage(format!("{}: there is no key `{key}`{}", path.display(), suggestion(key, &known))));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    for (key, value) in &mut table {
        let is_name = match key.as_str() {
            "tokenizer" => matches!(value.as_str(), Some("world" | "bytes")),
            "from" => {
                value.as_str().is_some_and(|name| built_in::is_name(name) && !folder.join(name).exists())
            }
            _ => false,
        };
        match value {
            Value::String(name) if READ.contains(&key.as_str()) && !is_name => *name = beside(folder, name),
            Value::Array(names) if key == "text" => {
                for name in names.iter_mut() {
                    if let Value::String(source) = name {
                        *source = beside_source(folder, source);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(table)
}

/// A path as seen from a folder.
fn beside(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

/// A `[LABEL=]PATH[:WEIGHT]` with its path as seen from a folder.
fn beside_source(folder: &Path, source: &str) -> String {
    match source.split_once('=') {
        Some((label, path)) if !label.contains(['/', '\\']) => format!("{label}={}", beside(folder, path)),
        _ => beside(folder, source),
    }
}

/// `; did you mean …` if a known key is near.
fn suggestion(key: &str, known: &[String]) -> String {
    let near = known
        .iter()
        .map(|k| (strsim::jaro_winkler(key, k), k))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None => "; `hawfinch train --help` lists all".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_data::LossOn;

    #[test]
    fn every_key_is_a_flag_and_every_flag_a_key() {
        let table = Table::try_from(RunConfig {
            from: Some("a".into()),
            ffn_width: Some(1),
            vocab: Some(1),
            data: Some("a".into()),
            validation: Some("a".into()),
            steps: Some(1),
            tokens: Some(1),
            epochs: Some(1.0),
            lr_final: Some(1.0),
            weight_decay_final: Some(1.0),
            probe: Some("a".into()),
            tokenizer: Some("a".into()),
            lora_alpha: Some(1.0),
            template: Some("a".into()),
            loss_on: Some(LossOn::All),
            ..RunConfig::default()
        })
        .unwrap();
        let (mut keys, mut flags) = (table.keys().cloned().collect::<Vec<_>>(), known());
        keys.sort();
        flags.sort();
        assert_eq!(keys, flags);
    }

    #[test]
    fn flags_win_and_files_are_found_beside_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, "width = 128\nlayers = 3\ntext = [\"en=a/*.txt:2\"]\ntokenizer = \"bytes\"\n")
            .unwrap();
        let config = resolve(Some(&path), &Keys { width: Some(64), ..Keys::default() }).unwrap();
        assert_eq!((config.width, config.layers, config.tokenizer.as_deref()), (64, 3, Some("bytes")));
        assert_eq!(config.out, Path::new("runs/run"));
        assert_eq!(config.text, [format!("en={}", dir.path().join("a/*.txt:2").display())]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        for (text, said) in [
            ("wdith = 3", "did you mean `width`?"),
            ("zzz = 3", "lists all"),
            ("width = 'wide'", "width"),
            ("width = 1\nlayers =", "line 2"),
            ("order = 'random'", "random"),
        ] {
            std::fs::write(&path, text).unwrap();
            let e = resolve(Some(&path), &Keys::default()).unwrap_err().to_string();
            assert!(e.contains(said), "{text}: {e}");
        }
    }
}
