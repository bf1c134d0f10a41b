//! `hawfinch convert`: a checkpoint in another file format or number type.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;
use hawfinch_model::Config;
use hawfinch_model::config::META_GROUP_NORM_EPS;
use hawfinch_model::format::SaveFormat;

use crate::model_args::open_checkpoint;
use crate::model_file::ModelFile;
use crate::output::{self, note, size};
use crate::signal;
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `convert`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Files of rwkv.cpp (ggml .bin) can be read, not written: they hold the decays already
exponentiated. At equal number types .pth, .safetensors, .gguf and packed files convert into each
other without losing a bit.

A packed file holds the weights as they are computed with: it is mapped, not loaded, and gives its
first token at once. Only hawfinch reads it; docs/quantization.md says more. With --to packed-bf16
weights in floats are laid out as `--quant bf16` does: in bf16, for activations in bf16.

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
    /// Format to write (packed-bf16: below) [default: by the extension]
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
    // (Words for clap here would put every option's help on lines of its own.)
    #[value(name = "packed-bf16")]
    PackedBf16,
}

/// Converts.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let asked = args.format.map(|format| match format {
        Format::Pth => SaveFormat::Pth,
        Format::Safetensors => SaveFormat::Safetensors,
        Format::Gguf => SaveFormat::Gguf,
        Format::Packed => SaveFormat::Packed,
        Format::PackedBf16 => SaveFormat::PackedBf16,
    });
    let to = ModelFile::new(&args.to, args.force, asked, args.dtype.as_deref(), ", or give --to FORMAT")?;
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
    signal::end_cleanly();
    let began = Instant::now();
    let bytes = to.write(&ckpt, &args.tokenizer)?;
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
