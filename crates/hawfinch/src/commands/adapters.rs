//! `hawfinch adapters`: what was trained beside models.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hawfinch_model::{Checkpoint, Cpu, Lora, Model, OpenOptions, format, metadata};
use serde_json::{Value, json};

use super::inspect;
use crate::model_args::open_checkpoint;
use crate::output::{self, note, size};

/// Arguments of `adapters`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the adapters and tuned states in folders
    #[command(after_help = "Examples:
  hawfinch adapters list
  hawfinch adapters list runs/ downloads/ --json")]
    List {
        /// Folders to look into, with what lies in them
        #[arg(default_value = ".")]
        folders: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what an adapter or a tuned state is, and whether it fits a model
    #[command(after_help = "Examples:
  hawfinch adapters inspect adapter.safetensors
  hawfinch adapters inspect tuned.pth --model model.pth")]
    Inspect {
        /// The file
        file: PathBuf,
        /// A model that it is to fit
        #[arg(long)]
        model: Option<PathBuf>,
        /// List every tensor
        #[arg(long)]
        tensors: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Lists or shows.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List { folders, json } => list(folders, *json),
        Command::Inspect { file, model, tensors, json } => {
            let ckpt = open_checkpoint(file)?;
            if what(&ckpt).is_none() {
                anyhow::bail!(
                    "{} holds neither a LoRA (`….lora_A`) nor a tuned state (`….time_state`)",
                    file.display()
                );
            }
            if let Some(model) = model {
                fits(model, file, &ckpt)?;
                note(format_args!("it fits {}", model.display()));
            }
            inspect::show(file, &ckpt, *tensors, *json)
        }
    }
}

/// Refuses a file that does not fit a model.
fn fits(model: &Path, file: &Path, ckpt: &Checkpoint) -> anyhow::Result<()> {
    let base = open_checkpoint(model)?;
    let lora = what(ckpt) == Some("lora");
    // Without its alpha a LoRA fits all the same.
    let alpha = if Lora::open(file, None).is_ok() { None } else { Some(1.0) };
    let loras = if lora { vec![Lora::open(file, alpha)?] } else { Vec::new() };
    let opened: Model =
        Model::from_checkpoint(base, OpenOptions { loras, ..OpenOptions::default() }, Cpu::default())?;
    if !lora {
        opened.state_from(ckpt)?;
    }
    Ok(())
}

/// `lora` or `state`, if it is one of these.
fn what(ckpt: &Checkpoint) -> Option<&'static str> {
    // An optimiser's moments of an adapter are named after it, with something in front.
    let own =
        |k: &str| ["blocks.", "head.", "emb.", "model.", "base_model."].iter().any(|p| k.starts_with(p));
    let any = |part: &str| ckpt.tensors.keys().any(|k| own(k) && k.contains(part));
    match () {
        () if any("emb.weight") && any("blocks.0.ln0") => None,
        () if any(".lora_A") => Some("lora"),
        () if any(".att.time_state") => Some("state"),
        () => None,
    }
}

/// Folders within folders that are looked into.
const DEPTH: usize = 6;

/// Files that may be adapters.
fn candidates(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let link = path.is_symlink();
        if path.is_dir() && depth > 0 && !hidden && !link {
            // What cannot be read is passed over.
            let _ = candidates(&path, depth - 1, found);
        } else if path.is_file()
            && path
                .extension()
                .is_some_and(|e| ["pth", "pt", "safetensors", "st", "state"].iter().any(|k| e == *k))
        {
            found.push(path);
        }
    }
    Ok(())
}

fn list(folders: &[PathBuf], as_json: bool) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for folder in folders {
        candidates(folder, DEPTH, &mut files)
            .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", folder.display()))?;
    }
    let mut rows: Vec<Value> = Vec::new();
    for file in files {
        let Ok(ckpt) = format::open(&file) else { continue };
        let Some(kind) = what(&ckpt) else { continue };
        let said = |key: &str| ckpt.metadata.get(key).cloned();
        rows.push(json!({
            "file": file.display().to_string(),
            "kind": kind,
            "version": said(metadata::VERSION),
            "rank": said(metadata::LORA_RANK),
            "alpha": said(metadata::LORA_ALPHA),
            "model": said(metadata::MODEL),
            "trained_on": said(metadata::DATA),
            "bytes": ckpt.file_bytes,
        }));
    }
    if as_json {
        output::json(&Value::Array(rows))?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        note("no adapter and no tuned state there");
        return Ok(ExitCode::SUCCESS);
    }
    let text = |v: &Value| v.as_str().unwrap_or("not said").to_string();
    let longest = rows.iter().map(|r| text(&r["file"]).chars().count()).max().unwrap_or(0).max(4);
    let mut out = output::stdout();
    writeln!(out, "{:<longest$}  kind   RWKV      rank      alpha     size       beside the model", "file")?;
    for r in &rows {
        let of_lora = |key: &str| if r["kind"] == "lora" { text(&r[key]) } else { "-".into() };
        let model: String = text(&r["model"]).chars().take(19).collect();
        let line = format!(
            "{:<longest$}  {:<5}  {:<8}  {:<8}  {:<8}  {:<9}  {model}\n",
            text(&r["file"]),
            text(&r["kind"]),
            text(&r["version"]),
            of_lora("rank"),
            of_lora("alpha"),
            size(r["bytes"].as_u64().unwrap_or(0)),
        );
        out.write_all(output::printable(&line).as_bytes())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
