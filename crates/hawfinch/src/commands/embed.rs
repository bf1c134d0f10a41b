//! `hawfinch embed`: a vector for a text, from the model's own activations.

use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_engine::Embedding;
use hawfinch_kernels::DType;
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::{Checkpoint, FileFormat, STEP_TOKENS, StoredTensor};
use serde_json::json;

use crate::fail::usage;
use crate::input;
use crate::model_args::ModelOptions;
use crate::output::{self, Sink};
use crate::progress::Progress;
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `embed`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The embedding is the mean over the text's tokens of the last layer's output after the final norm
(what the head multiplies), scaled to length 1: as many numbers as the model is wide. With
--state-layer it is that layer's state after the text, all fields one after the other, not scaled.

Prints one JSON object a text: its place, its tokens, the embedding. To a .safetensors file it
writes one tensor `embeddings` [texts, numbers] instead.

Examples:
  hawfinch embed model.pth 'The finch cracks the seed.'
  hawfinch embed model.pth --input sentences.txt -o vectors.safetensors
  hawfinch embed model.pth - --state-layer 0 < page.txt"
)]
pub struct Args {
    /// A model file or folder (`demo`: the built-in one)
    model: PathBuf,
    /// The text, or - to read it from standard input
    #[arg(required_unless_present = "input", conflicts_with = "input")]
    text: Option<String>,
    /// Read many texts, each line one; of a .jsonl file each line's "text"
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Give the state of this layer (from 0) in place of the mean
    #[arg(long, value_name = "L")]
    state_layer: Option<usize>,
    /// Print one JSON object a text, which is what is printed anyhow
    #[arg(long)]
    json: bool,
    /// Write to this file: JSON lines, or a tensor for .safetensors
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    #[command(flatten)]
    options: ModelOptions,
}

/// Texts that are run at once.
const BATCH: usize = 32;

/// Embeds every text and prints or writes the vectors.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let to_tensor =
        args.output.as_ref().filter(|p| SaveFormat::from_extension(p) == Some(SaveFormat::Safetensors));
    if let Some(path) = to_tensor.filter(|_| args.json) {
        return Err(usage(format!(
            "{} would hold a tensor, not JSON: leave --json out or name another file",
            path.display()
        )));
    }
    let texts = texts(args)?;
    let model = args.options.open_for(&args.model, texts.len().min(BATCH))?;
    if let Some(layer) = args.state_layer.filter(|&l| l >= model.config().layers) {
        return Err(usage(format!(
            "there is no layer {layer}: the model has {} (from 0)",
            model.config().layers
        )));
    }
    if let Some(out) = &args.output {
        output::not_over(out, model.checkpoint().files.iter().chain(&args.input))?;
    }
    let what = args.state_layer.map_or(Embedding::Mean, Embedding::State);
    let tokenizer = args.tokenizer.for_model(&model)?;
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t)).collect();
    let mut out = match to_tensor {
        Some(_) => None,
        None => Some(Sink::open(args.output.as_deref())?),
    };
    let mut all: Vec<f32> = Vec::new();
    let mut progress = Progress::count("embedding", ids.iter().map(|i| i.len() as u64).sum());
    for (n, batch) in ids.chunks(BATCH).enumerate() {
        let vectors = hawfinch_engine::embed(
            &model,
            batch,
            what,
            || STEP_TOKENS,
            |tokens| {
                progress.add(tokens as u64);
                Ok(())
            },
        )?;
        for (i, vector) in vectors.into_iter().enumerate() {
            let index = n * BATCH + i;
            match &mut out {
                Some(out) => {
                    out.line(json!({"index": index, "tokens": ids[index].len(), "embedding": vector}))?;
                }
                None => all.extend(vector),
            }
        }
    }
    drop(progress);
    if let Some(out) = out {
        out.complete()?;
    }
    if let Some(path) = to_tensor {
        let mut file = Checkpoint::new(path, FileFormat::Memory);
        file.insert("embeddings", StoredTensor::from_f32(&[ids.len(), all.len() / ids.len()], &all))?;
        let options = SaveOptions {
            format: SaveFormat::Safetensors,
            dtype: Some(DType::F32),
            vocabulary: None,
            progress: None,
        };
        format::save(path, &file, options)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The texts asked for; none is empty.
fn texts(args: &Args) -> anyhow::Result<Vec<Vec<u8>>> {
    let Some(file) = &args.input else {
        let text = args.text.clone().unwrap_or_default();
        let text = if text == "-" { input::stdin()? } else { text.into_bytes() };
        if text.is_empty() {
            return Err(usage("the text is empty: there is nothing to embed"));
        }
        return Ok(vec![text]);
    };
    input::texts(file)
}
