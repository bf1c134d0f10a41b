//! `hawfinch inspect`: what a model, state or LoRA file is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hawfinch_model::config::META_GROUP_NORM_EPS;
use hawfinch_model::{Checkpoint, Config, StoredTensor, Version, metadata};
use serde_json::{Value, json};

use crate::model_args::{memory_need, open_checkpoint};
use crate::output::{self, size, thousands};

/// Arguments of `inspect`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch inspect RWKV-x070-World-0.4B.pth
  hawfinch inspect model.gguf --tensors
  hawfinch inspect model.safetensors --json")]
pub struct Args {
    /// A model, state or LoRA file, or a model's folder, of any format (`demo`: the built-in one)
    file: PathBuf,
    /// List every tensor: name, shape, number type
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what the file is.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    show(&args.file, &open_checkpoint(&args.file)?, args.tensors, args.json)
}

/// Prints what a file is that was read.
pub fn show(file: &Path, ckpt: &Checkpoint, tensors: bool, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut said = match kind(ckpt) {
        Kind::State => state(ckpt),
        Kind::Lora => lora(ckpt),
        Kind::Model => model(ckpt, &Config::infer(ckpt)?),
    };
    if as_json {
        said.json["file"] = json!(file.display().to_string());
        said.json["format"] = json!(ckpt.format.name());
        said.json["file_bytes"] = json!(ckpt.file_bytes);
        said.json["dtypes"] = dtypes(ckpt)
            .iter()
            .map(|(name, d)| json!({"dtype": name, "tensors": d.tensors, "numbers": d.numbers, "bytes": d.bytes}))
            .collect();
        said.json["metadata"] = json!(ckpt.metadata);
        if tensors {
            said.json["tensors"] = ckpt.tensors.iter().map(|(name, t)| tensor_json(name, t)).collect();
        }
        output::json(&said.json)?;
    } else {
        let mut out = output::stdout();
        // Names come from a file that is not to be trusted.
        out.write_all(output::printable(&text(file, tensors, ckpt, &said)).as_bytes())?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be told of a file: lines for a person, the same for a program.
struct Said {
    title: String,
    lines: Vec<(&'static str, String)>,
    json: Value,
}

enum Kind {
    Model,
    State,
    Lora,
}

fn kind(ckpt: &Checkpoint) -> Kind {
    let any = |f: &dyn Fn(&str) -> bool| ckpt.tensors.keys().any(|k| f(k));
    if any(&|k| k.contains("lora_A") || k.contains("lora_B")) {
        Kind::Lora
    } else if !any(&|k| k == "emb.weight") && any(&|k| k.ends_with("att.time_state") || is_state_tensor(k)) {
        Kind::State
    } else {
        Kind::Model
    }
}

/// `state.0.wkv` and its like, as hawfinch's state files name them.
fn is_state_tensor(name: &str) -> bool {
    let layer = name.strip_prefix("state.").and_then(|n| n.split_once('.')).map(|(l, _)| l);
    layer.is_some_and(|l| l.parse::<u32>().is_ok())
}

/// Where a model's group-norm epsilon comes from.
fn epsilon_source(ckpt: &Checkpoint) -> &'static str {
    if ckpt.metadata.contains_key(META_GROUP_NORM_EPS) {
        "the file's metadata"
    } else if ckpt.group_norm_eps.is_some() {
        "implied by the file format"
    } else {
        "the reference's value, no file says it"
    }
}

fn model(ckpt: &Checkpoint, c: &Config) -> Said {
    let heads = c.version != Version::V4;
    let eps =
        (c.version != Version::V4 && c.version.has_state()).then(|| (c.group_norm_eps, epsilon_source(ckpt)));
    let (all, used) = (c.parameters(true), c.parameters(false));
    let held = ckpt.get("blocks.0.att.v0").is_some();
    let (state_bytes, need) = (4 * c.state_len() as u64, memory_need(ckpt, c, 1, None).total());
    let mut lines = vec![("layers L", c.layers.to_string()), ("width D", c.width.to_string())];
    if heads {
        lines.push(("heads H", format!("{} of size N = {}", c.heads, c.head_size)));
    }
    if c.att_width != c.width {
        lines.push(("attention", format!("width {}", c.att_width)));
    }
    lines.push(("channel mix F", c.ffn_width.to_string()));
    lines.push(("vocabulary V", format!("{}{}", thousands(c.vocab as u64), vocabulary_name(ckpt, c.vocab))));
    let ranks = ranks(c);
    if !ranks.is_empty() {
        let ranks: Vec<String> = ranks.iter().map(|(name, r)| format!("{name} {r}")).collect();
        lines.push(("ranks", ranks.join(", ")));
    }
    if all == used {
        lines.push(("parameters", thousands(all)));
    } else {
        let there = if held { "which this file holds" } else { "which this file leaves out" };
        let said = format!(
            "{} with layer 0's v0, v1, v2 ({there} and nothing uses), {} without",
            thousands(all),
            thousands(used)
        );
        lines.push(("parameters", said));
    }
    let unused = c.unused(ckpt);
    if let [first, ..] = unused[..] {
        let first = output::printable(first);
        lines.push((
            "not used",
            format!("{} tensors, the first `{first}`: a variant hawfinch does not know?", unused.len()),
        ));
    }
    if ckpt.tensors.keys().any(|k| k.ends_with(".att.time_state")) {
        lines.push(("initial state", "tuned, in this file (time_state)".into()));
    }
    if c.version.has_state() {
        lines.push(("state", format!("{} a sequence, at any length of text", size(state_bytes))));
        lines.push(("memory", format!("{} to run one sequence", size(need))));
    } else {
        lines.push(("state", "none: it is trained and evaluated only".into()));
    }
    if let Some((eps, source)) = eps {
        lines.push(("group-norm eps", format!("{eps} ({source})")));
    }
    let json = json!({
        "kind": "model",
        "version": c.version.number(),
        "nickname": c.version.nickname(),
        "layers": c.layers,
        "width": c.width,
        "attention_width": c.att_width,
        "heads": heads.then_some(c.heads),
        "head_size": heads.then_some(c.head_size),
        "ffn_width": c.ffn_width,
        "vocab": c.vocab,
        "vocabulary_in_file": ckpt.metadata.contains_key(metadata::TOKENIZER),
        "ranks": ranks.iter().map(|&(n, r)| (n.replace(' ', "_"), json!(r))).collect::<serde_json::Map<_, _>>(),
        "parameters": {
            "with_layer_0_v": all,
            "without_layer_0_v": used,
            "layer_0_v_in_file": c.version == Version::V7 && held,
        },
        "unused_tensors": unused,
        "state_bytes": state_bytes,
        "memory_bytes": need,
        "group_norm_eps": eps.map(|(value, source)| json!({"value": value, "source": source})),
    });
    Said { title: c.version.to_string(), lines, json }
}

/// Which family the vocabulary belongs to, by its size where the model does not carry it.
fn vocabulary_name(ckpt: &Checkpoint, vocab: usize) -> &'static str {
    match vocab {
        _ if ckpt.metadata.contains_key(metadata::TOKENIZER) => " (in this file)",
        65536 => " (World)",
        50277..=50304 => " (GPT-NeoX 20B, the Pile models')",
        256 => " (bytes)",
        _ => "",
    }
}

fn ranks(c: &Config) -> Vec<(&'static str, usize)> {
    let r = c.ranks;
    let all = [
        ("mix", r.mix),
        ("decay", r.decay),
        ("learning rate", r.learn),
        ("value", r.value),
        ("gate", r.gate),
    ];
    all.into_iter().filter(|&(_, rank)| rank > 0).collect()
}

fn state(ckpt: &Checkpoint) -> Said {
    let tuned = ckpt.tensors.keys().any(|k| k.ends_with("time_state"));
    let layer = |k: &str| k.split('.').nth(1).and_then(|l| l.parse::<usize>().ok());
    let layers = ckpt.tensors.keys().filter_map(|k| layer(k)).max().map_or(0, |l| l + 1);
    let matrix = ckpt.tensors.iter().find(|(k, _)| k.ends_with("time_state") || k.ends_with(".wkv"));
    let width = ckpt.tensors.iter().find(|(k, _)| k.ends_with(".att_x")).map(|(_, t)| t.len());
    let mut lines = vec![("layers L", layers.to_string())];
    if let Some(width) = width {
        lines.push(("width D", width.to_string()));
    }
    let shape = matrix.map(|(_, t)| t.shape.clone());
    if let Some(s) = &shape {
        lines.push(("matrices", format!("{s:?} a layer")));
    }
    let title = if tuned { "tuned initial state (time_state)" } else { "state of a sequence" };
    let json =
        json!({"kind": "state", "tuned": tuned, "layers": layers, "width": width, "matrix_shape": shape});
    Said { title: title.into(), lines, json }
}

fn lora(ckpt: &Checkpoint) -> Said {
    let halves: Vec<_> = ckpt.tensors.iter().filter(|(k, _)| k.contains("lora_A")).collect();
    let mut ranks: Vec<usize> = halves.iter().filter_map(|(_, t)| t.shape.first().copied()).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let others = ckpt.tensors.keys().filter(|k| !k.contains("lora_A") && !k.contains("lora_B")).count();
    // Whether the file, or one beside it, says its alpha.
    let alpha = hawfinch_model::Lora::from_checkpoint(ckpt.clone(), None).ok().map(|l| l.alpha);
    let shown: Vec<String> = ranks.iter().map(usize::to_string).collect();
    let lines = vec![
        ("modules", halves.len().to_string()),
        ("rank", shown.join(", ")),
        ("alpha", alpha.map_or("not said: give it as in --lora FILE:alpha=32".into(), |a| a.to_string())),
        ("whole tensors", others.to_string()),
    ];
    let json = json!({"kind": "lora", "modules": halves.len(), "ranks": ranks, "alpha": alpha, "whole_tensors": others});
    Said { title: "LoRA".into(), lines, json }
}

#[derive(Default)]
struct Share {
    tensors: usize,
    numbers: u64,
    bytes: u64,
}

/// What each number type has of the file.
fn dtypes(ckpt: &Checkpoint) -> BTreeMap<&'static str, Share> {
    let mut out: BTreeMap<&str, Share> = BTreeMap::new();
    for t in ckpt.tensors.values() {
        let share = out.entry(t.dtype.name()).or_default();
        share.tensors += 1;
        share.numbers += t.len() as u64;
        share.bytes += t.data.len() as u64;
    }
    out
}

fn tensor_json(name: &str, t: &StoredTensor) -> Value {
    json!({
        "name": name,
        "shape": t.shape,
        "dtype": t.dtype.name(),
        "layout": t.layout.name(),
        "bytes": t.data.len(),
    })
}

fn text(file: &Path, tensors: bool, ckpt: &Checkpoint, said: &Said) -> String {
    let mut out = format!("{}: {}\n", file.display(), said.title);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<15}{value}");
    };
    line("format", &format!("{}, {}", ckpt.format.name(), size(ckpt.file_bytes)));
    said.lines.iter().for_each(|(name, value)| line(name, value));
    for (i, (name, d)) in dtypes(ckpt).iter().enumerate() {
        let plural = if d.tensors == 1 { "" } else { "s" };
        let value = format!("{name}: {} tensor{plural}, {}", d.tensors, size(d.bytes));
        line(if i == 0 { "number types" } else { "" }, &value);
    }
    for (i, (key, value)) in ckpt.metadata.iter().enumerate() {
        // A vocabulary or a template within the metadata is for programs.
        let short: String = value.chars().take(60).flat_map(char::escape_debug).collect();
        let cut = if value.chars().count() > 60 { "…" } else { "" };
        line(if i == 0 { "metadata" } else { "" }, &format!("{key} = {short}{cut}"));
    }
    if tensors {
        out.push('\n');
        let longest = ckpt.tensors.keys().map(String::len).max().unwrap_or(0);
        for (name, t) in &ckpt.tensors {
            let layout =
                if ckpt.packed.is_some() { format!("{:<8}", t.layout.name()) } else { String::new() };
            let _ = writeln!(out, "  {name:<longest$}  {:<6}{layout}{:?}", t.dtype.name(), t.shape);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_model::synthetic::Shape;

    /// The totals that the papers publish, from the shapes alone.
    #[test]
    fn parameter_totals_of_released_sizes() {
        let total = |version, layers, width| {
            Shape { version, layers, width, vocab: 65536, head_size: 64 }.config().parameters(true)
        };
        assert_eq!(total(Version::V6, 24, 2048), 1_599_873_024);
        assert_eq!(total(Version::V6, 32, 2560), 3_099_863_040);
        assert_eq!(total(Version::V6, 32, 4096), 7_635_746_816);
        assert_eq!(total(Version::V7, 12, 768), 191_084_544);
        assert_eq!(total(Version::V7, 24, 1024), 450_834_432);
        assert_eq!(total(Version::V7, 24, 2048), 1_527_668_736);
        assert_eq!(total(Version::V7, 32, 2560), 2_948_065_280);
        assert_eq!(total(Version::V7, 32, 4096), 7_199_932_416);
    }

    #[test]
    fn kinds_are_told_apart() {
        let named = |names: &[&str]| {
            let mut c = Checkpoint::new("x", hawfinch_model::FileFormat::Memory);
            for n in names {
                c.tensors.insert((*n).into(), StoredTensor::from_f32(&[1], &[0.0]));
            }
            kind(&c)
        };
        assert!(matches!(named(&["state.0.att_x"]), Kind::State));
        assert!(matches!(named(&["blocks.0.att.time_state"]), Kind::State));
        assert!(matches!(named(&["emb.weight", "blocks.0.att.time_state"]), Kind::Model));
        assert!(matches!(named(&["blocks.0.att.key.lora_A"]), Kind::Lora));
        assert!(matches!(named(&["state_dict"]), Kind::Model));
    }
}
