//! `hawfinch logits`: the logits of given token ids, for comparing with other programs.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use hawfinch_model::{Rows, STEP_TOKENS, Sequence};

use crate::fail::usage;
use crate::ids;
use crate::model_args::ModelOptions;
use crate::output::{self, NewFile, note, size};
use crate::progress::Progress;

/// Arguments of `logits`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The file holds one tensor `logits` [T, V], f32: row t is what the model expects after id t.

Examples:
  hawfinch logits model.pth --ids 33155,40213 --out logits.safetensors
  hawfinch logits model.pth --ids-file ids.json --split 3,1,66 --out logits.safetensors"
)]
pub struct Args {
    /// A model file or folder (`demo`: the built-in one)
    model: PathBuf,
    /// Token ids, as in 1,2,3
    #[arg(long, required_unless_present = "ids_file", conflicts_with = "ids_file")]
    ids: Option<String>,
    /// A file of token ids: numbers, a JSON list, or what `tokenize --json` prints
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
    /// The safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Feed the ids in pieces of these lengths, the rest in one (the logits do not depend on it)
    #[arg(long, value_name = "N,N,…")]
    split: Option<String>,
    #[command(flatten)]
    options: ModelOptions,
    #[command(flatten)]
    state: crate::model_args::StateOptions,
}

/// Computes and writes, some rows at a time.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = match (&args.ids, &args.ids_file) {
        (Some(ids), _) => ids.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the ids of {}", file.display()))?,
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let ids = ids::parse(&text).map_err(|e| match args.ids {
        Some(_) => usage(e.to_string()),
        None => e,
    })?;
    if ids.is_empty() {
        return Err(usage("there are no ids: give at least one"));
    }
    let split = match &args.split {
        Some(s) => ids::parse_split(s, ids.len()).map_err(|e| usage(e.to_string()))?,
        None => vec![ids.len()],
    };
    let model = args.options.open(&args.model)?;
    let vocab = model.config().vocab;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(hawfinch_model::Error::TokenRange { id, vocab }.into());
    }
    output::not_over(&args.out, model.checkpoint().files.iter().chain(&args.ids_file))?;
    args.state.apart_from(&args.out)?;
    args.state.not_to(args.ids_file.as_deref())?;
    let mut state = args.state.load(&model)?;
    let bytes = 4 * ids.len() as u64 * vocab as u64;
    let header = format!(
        r#"{{"logits":{{"dtype":"F32","shape":[{},{vocab}],"data_offsets":[0,{bytes}]}}}}"#,
        ids.len()
    );
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut out = NewFile::create(&args.out)?;
    let mut write =
        |bytes: &[u8]| out.write_all(bytes).with_context(|| format!("cannot write {}", args.out.display()));
    write(&(header.len() as u64).to_le_bytes())?;
    write(header.as_bytes())?;
    let mut progress = Progress::count("computing logits", ids.len() as u64);
    let (mut at, mut fed, before) = (0, 0, state.tokens);
    for piece in split {
        // A model divides what it is given into steps of this size anyhow: the same bits, but less in memory.
        for part in ids[at..at + piece].chunks(STEP_TOKENS) {
            let sequence =
                Sequence { tokens: part, state: &mut state, logits: Rows::All, hidden: Rows::None };
            for output in model.forward(&mut [sequence])? {
                write(&output.logits.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
            }
            fed += part.len() as u64;
            progress.set(fed);
        }
        at += piece;
    }
    out.complete()?;
    drop(progress);
    state.tokens = before + fed;
    args.state.save(&model, &state)?;
    note(format_args!("wrote {}: logits [{}, {vocab}], {}", args.out.display(), ids.len(), size(bytes)));
    Ok(ExitCode::SUCCESS)
}
