//! `hawfinch convert`: a checkpoint in another file format or number type.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;
use hawfinch_kernels::DType;
use hawfinch_model::config::META_GROUP_NORM_EPS;
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::{Checkpoint, Config, metadata};
use hawfinch_tokenizer::Tokenizer;

use crate::fail::usage;
use crate::model_args::open_checkpoint;
use crate::output::{self, note, size};
use crate::progress::Progress;
use crate::signal;
use crate::tokenizer_args::{TokenizerOption, of_checkpoint};

/// Arguments of `convert`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Files of rwkv.cpp (ggml .bin) can be read, not written: they hold the decays already
exponentiated. At equal number types .pth, .safetensors, .gguf and packed files convert into each
other without losing a bit.

A packed file holds the weights as they are computed with: it is mapped, not loaded, and gives its
first token at once. Only hawfinch reads it; docs/quantization.md says more.

Examples:
  hawfinch convert model.pth model.safetensors
  hawfinch convert model.safetensors model.gguf --dtype q8_0
  hawfinch convert model.gguf model.packed.safetensors
  hawfinch convert hf-folder/ model.out --to pth --dtype bf16")]
pub struct Args {
    /// The checkpoint to read: a file or folder of any format (`demo`: the built-in one)
    from: PathBuf,
    /// The file to write: .pth, .safetensors, .gguf or .packed.safetensors
    to: PathBuf,
    /// Format to write [default: by the extension]
    #[arg(long = "to", value_name = "FORMAT", id = "format")]
    format: Option<Format>,
    /// Number type of the weights: f32, f16, bf16, in GGUF and packed files q8_0, q6_k, q4_0, q4_k, in GGUF some more
    /// [default: as they are]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Epsilon of the group norm after WKV to note in the file, in place of what the source implies
    #[arg(long, value_name = "EPS")]
    group_norm_eps: Option<f64>,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Replace the file if it exists
    #[arg(long, short)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Format {
    Pth,
    Safetensors,
    Gguf,
    Packed,
}

/// A number type that may be asked for by name in a format.
pub fn parse_dtype(name: &str, format: SaveFormat) -> anyhow::Result<DType> {
    let known = DType::from_name(name);
    known.filter(|d| format.writes(*d)).ok_or_else(|| {
        let all: Vec<&str> = DType::ALL.into_iter().filter(|d| format.writes(*d)).map(DType::name).collect();
        let gguf_only = known.is_some_and(|d| SaveFormat::Gguf.writes(d));
        let but = if gguf_only { " (GGUF holds it)" } else { "" };
        usage(format!(
            "`{name}` is no number type that is written into this format{but}: choose one of {}",
            all.join(", ")
        ))
    })
}

/// Converts.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    output::may_write(&args.to, args.force)?;
    let format = match args.format {
        Some(Format::Pth) => SaveFormat::Pth,
        Some(Format::Safetensors) => SaveFormat::Safetensors,
        Some(Format::Gguf) => SaveFormat::Gguf,
        Some(Format::Packed) => SaveFormat::Packed,
        None => SaveFormat::from_extension(&args.to).ok_or_else(|| {
            usage(format!(
                "{} names no format that hawfinch writes: end it in .pth, .safetensors, .gguf or .packed.safetensors, or \
                 give --to FORMAT",
                args.to.display()
            ))
        })?,
    };
    let dtype = args.dtype.as_deref().map(|name| parse_dtype(name, format)).transpose()?;
    let mut ckpt = open_checkpoint(&args.from)?;
    output::not_over(&args.to, &ckpt.files)?;
    if let Some(eps) = args.group_norm_eps {
        crate::model_args::check_eps(eps)?;
        ckpt.metadata.insert(META_GROUP_NORM_EPS.into(), eps.to_string());
    }
    // Tuned states and LoRA files are converted too, but no file that is none of these.
    if let Err(e) = Config::infer(&ckpt)
        && !ckpt
            .tensors
            .keys()
            .any(|k| k.ends_with("time_state") || k.contains("lora_A") || k.starts_with("state."))
    {
        return Err(e.into());
    }
    let vocabulary = if format == SaveFormat::Gguf { world_tokens(&args.tokenizer, &ckpt)? } else { None };
    signal::end_cleanly();
    let began = Instant::now();
    let mut bar = None;
    let mut tell = |done, total| {
        bar.get_or_insert_with(|| Progress::bytes("writing", total)).set(done);
    };
    format::save(
        &args.to,
        &ckpt,
        SaveOptions { format, dtype, vocabulary: vocabulary.as_deref(), progress: Some(&mut tell) },
    )?;
    drop(bar);
    let bytes =
        std::fs::metadata(&args.to).with_context(|| format!("cannot read {} back", args.to.display()))?.len();
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        output::json(&serde_json::json!({
            "from": args.from.display().to_string(),
            "to": args.to.display().to_string(),
            "tensors": ckpt.tensors.len(),
            "bytes": bytes,
            "seconds": seconds,
        }))?;
    } else {
        note(format_args!(
            "wrote {}: {} tensors, {} in {seconds:.1} s",
            args.to.display(),
            ckpt.tensors.len(),
            size(bytes),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The World vocabulary, for a model that was trained with it: GGUF files carry theirs.
pub fn world_tokens(asked: &TokenizerOption, ckpt: &Checkpoint) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
    let Ok(config) = Config::infer(ckpt) else { return Ok(None) };
    let tokenizer = match asked.asked()? {
        Some(t) => t,
        None if ckpt.metadata.contains_key(metadata::TOKENIZER)
            || (65_529..=65_536).contains(&config.vocab) =>
        {
            of_checkpoint(ckpt, config.vocab)?
        }
        None => return Ok(None),
    };
    let bytes = |id| tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    Ok(matches!(tokenizer, Tokenizer::World(_))
        .then(|| (0..tokenizer.vocab_size() as u32).map(bytes).collect()))
}
