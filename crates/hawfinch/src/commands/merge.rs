//! `hawfinch merge`: adapters and a first state into the weights of their model.

use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_kernels::DType;
use hawfinch_model::format;
use hawfinch_model::lora::{merge, with_state};
use hawfinch_model::names::{self, Role};
use hawfinch_model::quantize::quality::{Quality, Reference};
use hawfinch_model::{Config, Cpu, Lora, Model, OpenOptions, metadata};
use serde_json::json;

use crate::fail::usage;
use crate::model_args::{check_environment, open_checkpoint};
use crate::model_file::ModelFile;
use crate::output::{self, note, size};
use crate::progress::Progress;
use crate::quantize::{measure, sample};
use crate::signal;
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `merge`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Before anything is written, the merged model's distributions of the next token are compared with those of
the model with its adapters beside it; a merge that changes them by more than rounding does is refused.

Of a quantised model the matrices that an adapter changes are decoded, changed and quantised again,
which costs what the report says. An adapter that was trained beside a quantised model can be merged
into the model in full precision, too: give that one.

Examples:
  hawfinch merge model.pth --lora runs/mine/step-00000500/adapter.safetensors -o mine.pth
  hawfinch merge model.pth --lora a.pth:alpha=32 --state tuned.pth -o mine.safetensors --dtype bf16
  hawfinch merge model.gguf --lora adapter.safetensors -o mine.gguf"
)]
pub struct Args {
    /// The model that the adapters were trained beside, quantised or not (`demo`: the built-in one)
    model: PathBuf,
    /// A LoRA to merge (repeatable); its alpha is taken from here, the file or a JSON file beside it
    #[arg(long = "lora", value_name = "FILE[:alpha=N]")]
    loras: Vec<String>,
    /// A tuned state that every text is to begin with (time_state)
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// The file to write: .pth, .safetensors, .gguf or .packed.safetensors
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Number type of the weights, as `convert` takes it [default: as they are in the model]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// A text to compare on (repeatable) [default: a built-in one, in a dozen languages and some code]
    #[arg(long = "text", value_name = "FILE")]
    texts: Vec<PathBuf>,
    /// Write the model even if it says something else than the model with its adapters beside it
    #[arg(long)]
    ignore_quality: bool,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Replace the file if it exists
    #[arg(long, short)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tokens that are compared.
const TOKENS: usize = 512;
/// Mean KL in nats up to which a merge into floats is taken for rounding.
const ROUNDING: f64 = 1e-3;

/// Merges, compares, writes.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_environment()?;
    if args.loras.is_empty() && args.state.is_none() {
        return Err(usage("there is nothing to merge: give --lora or --state"));
    }
    let to = ModelFile::new(&args.out, args.force, None, args.dtype.as_deref(), "")?;
    let mut base = open_checkpoint(&args.model)?.with_floats_in_rows();
    let loras = args.loras.iter().map(|s| Lora::from_spec(s)).collect::<Result<Vec<_>, _>>()?;
    let files = args.loras.iter().map(|s| PathBuf::from(s.rsplit_once(":alpha=").map_or(&**s, |(f, _)| f)));
    output::not_over(&args.out, base.files.iter().cloned().chain(files).chain(args.state.clone()))?;
    let config = Config::infer(&base)?;
    config.version.needs_state(&base.path)?;
    let tokenizer = args.tokenizer.for_checkpoint(&base, config.vocab)?;
    let sample = sample::sample(&args.texts, &tokenizer, config.vocab, TOKENS)?;
    signal::end_cleanly();

    let cpu = Cpu::<f32>::default();
    let (isa, pool) = (cpu.isa(), cpu.pool().clone());
    let on = || Cpu::with(pool.clone(), isa);
    let plain = Model::from_checkpoint(base.clone(), OpenOptions::default(), on())?;
    if let Some(path) = &args.state {
        let file = format::open_state(path)?;
        // Refuses one of another model.
        plain.state_from(&file)?;
        base = with_state(&base, &file)?;
    }
    let merging = Progress::time("merging");
    let types = |name: &str, was: DType| match to.dtype {
        Some(dtype) if is_matrix(&config, name) => dtype,
        _ => was,
    };
    let mut merged = merge(&base, &loras, &types, (isa, &pool))?;
    drop(merging);
    let options = OpenOptions { loras, ..OpenOptions::default() };
    let beside = Model::from_checkpoint(base.clone(), options, on())?;
    let into = Model::from_checkpoint(merged.clone(), OpenOptions::default(), on())?;
    let comparing = Progress::time("comparing");
    let trace = measure::trace(&beside, &sample.judging)?;
    let reference = Reference::new(&trace)?;
    let quality = reference.compare_model(&pool, &into)?;
    let effect = reference.compare_model(&pool, &plain)?;
    drop(comparing);
    if effect.largest_kl == 0.0 {
        note("warning: what is merged changes nothing that the model says: was it trained at all?");
    }
    let quantised = merged.tensors.iter().any(|(n, t)| is_matrix(&config, n) && t.dtype.is_quantized());
    if quality.kl > ROUNDING && !quantised && !args.ignore_quality {
        anyhow::bail!(
            "the merged model says something else than the model with its adapters beside it (mean KL {:.1e} nats, rounding \
             makes less than {ROUNDING:.0e}): nothing was written; --ignore-quality writes it all the same",
            quality.kl
        );
    }
    merged.metadata.insert(metadata::MERGED.into(), said(args));
    let bytes = to.write(&merged, &args.tokenizer)?;
    report(args, &quality, &effect, bytes)
}

fn is_matrix(config: &Config, name: &str) -> bool {
    names::find(config.version, name).is_some_and(|(_, param)| param.role == Role::Matrix)
}

/// What was merged, for the file's metadata.
fn said(args: &Args) -> String {
    let name = |path: &str| {
        std::path::Path::new(path).file_name().map_or(path.into(), |n| n.to_string_lossy().into_owned())
    };
    let state = args.state.as_ref().map(|s| format!("state {}", name(&s.to_string_lossy())));
    let loras = args.loras.iter().map(|l| format!("lora {}", name(l)));
    loras.chain(state).collect::<Vec<_>>().join(", ")
}

fn report(args: &Args, quality: &Quality, effect: &Quality, bytes: u64) -> anyhow::Result<ExitCode> {
    if args.json {
        output::json(&json!({
            "out": args.out.display().to_string(),
            "file_bytes": bytes,
            "quality": quality,
            "effect": {"kl": effect.kl, "same_top": effect.same_top},
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    note(format_args!(
        "merged and beside: mean KL {:.2e} nats, largest {:.2e}, the same likeliest token {:.1}% of {} times",
        quality.kl,
        quality.largest_kl,
        100.0 * quality.same_top,
        quality.tokens
    ));
    note(format_args!(
        "with and without: mean KL {:.2e} nats, the same likeliest token {:.1}%; perplexity {:.2}, without {:.2}",
        effect.kl,
        100.0 * effect.same_top,
        effect.perplexity,
        effect.rounded_perplexity
    ));
    note(format_args!("wrote {}: {}", args.out.display(), size(bytes)));
    Ok(ExitCode::SUCCESS)
}
