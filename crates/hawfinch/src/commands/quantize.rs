//! `hawfinch quantize`: a checkpoint in blocks of 8 and 4 bits, chosen weight by weight.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use hawfinch_model::format::SaveFormat;
use hawfinch_model::names::{self, Role};
use hawfinch_model::quantize::quality::Reference;
use hawfinch_model::quantize::weights::{Weight, weights};
use hawfinch_model::verify::first_bad_tensor;
use hawfinch_model::{Checkpoint, Config, Cpu, DecayForm, Model, OpenOptions, Quant, StoredTensor, metadata};

use crate::fail::usage;
use crate::model_args::{check_environment, open_checkpoint, quant_parser};
use crate::model_file::ModelFile;
use crate::output::{self, note, size};
use crate::progress::Progress;
use crate::quantize::evidence;
use crate::quantize::measure::{self, Target};
use crate::quantize::report::Report;
use crate::quantize::sample::{self, Sample};
use crate::signal;
use crate::system::memory::{self, Need};
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `quantize`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Every weight is quantised to 4 bits alone and the next token's distribution compared with the full
model's; those that cost most for their size get 8 bits, until the size is reached. The result is
judged on text that was not used to choose. Norms, mixes, decays and low-rank weights stay as they
are: docs/quantization.md says why, and --evidence measures it for your model.

Examples:
  hawfinch quantize model.pth -o model.gguf
  hawfinch quantize model.pth -o model.packed.safetensors --to int4
  hawfinch quantize model.pth -o model.gguf --bits 5.5 --text my-texts.txt
  hawfinch quantize model.pth --to int4 --json"
)]
pub struct Args {
    /// The model to quantise, in floating-point numbers (`demo`: the built-in one)
    model: PathBuf,
    /// The file to write: .gguf, or .packed.safetensors for one that opens at once, in hawfinch alone [default:
    /// none, only the report]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// int8: all in 8 bits; int4: head and embedding in 8, all else in 4; mixed: each weight in 4 or 8
    /// bits, as measured
    #[arg(long, value_name = "TYPE", default_value = "mixed", value_parser = quant_parser(Quant::BLOCKS))]
    to: Quant,
    /// With mixed: mean bits of a weight, from 4.5 to 8.5 [default: 5]
    #[arg(long, value_name = "BITS", value_parser = number, conflicts_with = "kl")]
    bits: Option<f64>,
    /// With mixed: as few bits as keep the sum of the weights' single KLs within so many nats
    #[arg(long, value_name = "NATS", value_parser = number)]
    kl: Option<f64>,
    /// A text to measure on (repeatable) [default: a built-in one, in a dozen languages and some code]
    #[arg(long = "text", value_name = "FILE")]
    texts: Vec<PathBuf>,
    /// Tokens to measure on, and as many others to judge the result on, evenly from all of the text
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    tokens: u32,
    /// With int8 and int4: measure what each weight costs alone, too
    #[arg(long)]
    each: bool,
    /// Write nothing; show what rounding each kind of parameter would cost, those too that are never quantised
    #[arg(long, conflicts_with_all = ["out", "bits", "kl", "each"])]
    evidence: bool,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Threads to compute with (default: all that the machine runs at once); results do not depend on it
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Begin even if it does not fit in memory
    #[arg(long)]
    ignore_memory: bool,
    /// Replace the file if it exists
    #[arg(long, short)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A number from 0 up.
fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "this takes a number from 0 up, as in 5.5".into())
}

/// Measures, chooses, writes, reports.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_environment()?;
    if args.to != Quant::Mixed && (args.bits.is_some() || args.kl.is_some()) {
        return Err(usage(format!(
            "--bits and --kl choose between 4 and 8 bits, which --to {} does not",
            args.to
        )));
    }
    let to = args.out.as_deref().map(|out| file(out, args.force)).transpose()?;
    // Measured is what blocks cost beside activations in full.
    let mut ckpt = open_checkpoint(&args.model)?.with_floats_in_rows();
    if let Some(out) = &args.out {
        output::not_over(out, ckpt.files.iter().chain(&args.texts))?;
        can_be_written(&ckpt)?;
    }
    let config = Config::infer(&ckpt)?;
    config.version.needs_state(&ckpt.path)?;
    not_quantised_yet(&ckpt, &config)?;
    let found = weights(&ckpt, &config);
    if found.is_empty() && !args.evidence {
        anyhow::bail!(
            "{}: none of its weights can be quantised: their rows ({} numbers) are no whole blocks of 32",
            ckpt.path.display(),
            config.width
        );
    }
    let tokenizer = args.tokenizer.for_checkpoint(&ckpt, config.vocab)?;
    let sample = sample::sample(&args.texts, &tokenizer, config.vocab, args.tokens as usize)?;
    if !args.ignore_memory {
        let need = memory_need(&ckpt, &config, &found, &sample);
        memory::check(&need).map_err(|e| anyhow::anyhow!("{e} (--ignore-memory begins all the same)"))?;
    }
    signal::end_cleanly();
    all_finite(&ckpt)?;
    // Computed from the tensors as they are now: what is written is this model still.
    let hash = args.out.as_ref().map(|_| identity(&ckpt)).transpose()?;
    ckpt.metadata.extend(hash.map(|hash| (metadata::SOURCE_HASH.to_string(), hash)));
    let ops = args.threads.map_or_else(Cpu::default, |n| Cpu::new(n.get()));
    let model = Model::from_checkpoint(ckpt, OpenOptions::default(), ops)?;
    if args.evidence {
        return show_evidence(args, &model, &sample);
    }
    let began = Instant::now();
    let measured = measured(args, &model, found, &sample)?;
    let made = measure::encode_all(&model, &measured)?;
    let trace = measure::trace(&model, &sample.judging)?;
    let quality = measure::together(&Reference::new(&trace)?, &made)?;
    drop(trace);
    let kept = kept(model.checkpoint(), &config, &measured);
    let report = Report { weights: &measured, kept, sample: &sample, quality };
    let written = match &to {
        Some(to) => Some(write(args, to, &model, made)?),
        None => None,
    };
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        let mut json = report.json();
        json["from"] = args.model.display().to_string().into();
        json["out"] = args.out.as_ref().map(|o| o.display().to_string()).into();
        json["to"] = args.to.name().into();
        json["file_bytes"] = written.into();
        json["seconds"] = seconds.into();
        output::json(&json)?;
    } else {
        use std::io::Write;
        let mut out = output::stdout();
        out.write_all(report.text().as_bytes())?;
        out.flush()?;
    }
    if let (Some(out), Some(bytes)) = (&args.out, written) {
        note(format_args!("wrote {}: {} in {seconds:.1} s", out.display(), size(bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The file to write, in a format that holds quantised weights.
fn file(out: &Path, force: bool) -> anyhow::Result<ModelFile> {
    output::may_write(out, force)?;
    let format = SaveFormat::from_extension(out);
    let format = format.filter(|f| matches!(f, SaveFormat::Gguf | SaveFormat::Packed)).ok_or_else(|| {
        usage(format!(
            "{} must end in .gguf or .packed.safetensors: these are the formats that hold quantised weights",
            out.display()
        ))
    })?;
    ModelFile::new(out, force, Some(format), None, "")
}

/// The weights with their types, by measurement or by rule.
fn measured(
    args: &Args,
    model: &Model,
    found: Vec<Weight>,
    sample: &Sample,
) -> anyhow::Result<Vec<measure::Measured>> {
    let mixed = args.to == Quant::Mixed;
    let tried = |w: &Weight| if mixed { w.narrow } else { w.by_rule(args.to) };
    if !mixed && !args.each {
        return measure::each(model, None, found, tried);
    }
    measure::note_time(model, &sample.choosing, found.len())?;
    let trace = measure::trace(model, &sample.choosing)?;
    let reference = Reference::new(&trace)?;
    let mut measured = measure::each(model, Some(&reference), found, tried)?;
    if mixed {
        let target = args.kl.map_or(Target::Bits(args.bits), Target::Kl);
        measure::choose_types(&mut measured, target)?;
    }
    Ok(measured)
}

fn show_evidence(args: &Args, model: &Model, sample: &Sample) -> anyhow::Result<ExitCode> {
    let trace = measure::trace(model, &sample.choosing)?;
    let rows = evidence::evidence(model, &Reference::new(&trace)?)?;
    if args.json {
        output::json(&evidence::json(&rows))?;
    } else {
        use std::io::Write;
        let mut out = output::stdout();
        out.write_all(evidence::text(&rows).as_bytes())?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn identity(ckpt: &Checkpoint) -> anyhow::Result<String> {
    let mut bar = None;
    let mut tell = |done, total| {
        bar.get_or_insert_with(|| Progress::bytes("hashing the model", total)).set(done);
    };
    Ok(hawfinch_model::hash::identity(ckpt, Some(&mut tell))?)
}

/// Refuses before the measurement what the writer would refuse after it.
fn can_be_written(ckpt: &Checkpoint) -> anyhow::Result<()> {
    if ckpt.decay_form == DecayForm::Exponentiated {
        anyhow::bail!(
            "{}: rwkv.cpp's .bin files of versions 4 and 5 hold the decays exponentiated, which cannot be written back \
             exactly: quantise the original model, or leave out --out for the report alone",
            ckpt.path.display()
        );
    }
    Ok(())
}

/// Refuses a damaged model: its logits would say nothing, and blocks have no number for NaN.
fn all_finite(ckpt: &Checkpoint) -> anyhow::Result<()> {
    let _bar = Progress::time("reading every weight");
    match first_bad_tensor(ckpt).first() {
        None => Ok(()),
        Some(bad) => anyhow::bail!("{}: {bad}: the model is damaged", ckpt.path.display()),
    }
}

/// Refuses a model that lost precision already.
fn not_quantised_yet(ckpt: &Checkpoint, config: &Config) -> anyhow::Result<()> {
    let is_matrix =
        |name: &str| names::find(config.version, name).is_some_and(|(_, p)| p.role == Role::Matrix);
    match ckpt.tensors.iter().find(|(name, t)| t.dtype.is_quantized() && is_matrix(name)) {
        None => Ok(()),
        Some((name, t)) => anyhow::bail!(
            "{} is quantised already (`{name}` is {}): quantise the full-precision model it was made from, or make \
             floats of it first (`hawfinch convert … --dtype f16`)",
            ckpt.path.display(),
            t.dtype
        ),
    }
}

/// Matrices that are in no list, with the reason.
fn kept(ckpt: &Checkpoint, config: &Config, measured: &[measure::Measured]) -> Vec<String> {
    let all = names::all_params(config.version, config.layers).into_iter();
    let others =
        all.filter(|(name, p)| p.role == Role::Matrix && !measured.iter().any(|m| m.weight.name == *name));
    let said = |(name, _): (String, _)| {
        let t = ckpt.get(&name)?;
        let row = t.shape.last().copied().unwrap_or(1);
        Some(format!("{name} ({}): its rows of {row} numbers are no whole blocks of 32", t.dtype))
    };
    others.filter_map(said).collect()
}

/// The model, its weights in blocks, the reference logits, every layer's input.
fn memory_need(ckpt: &Checkpoint, config: &Config, found: &[Weight], sample: &Sample) -> Need {
    let tokens: usize = [&sample.choosing, &sample.judging]
        .map(|s| s.iter().map(Vec::len).sum())
        .into_iter()
        .max()
        .unwrap_or(0);
    let blocks: u64 = found.iter().map(|w| w.bytes(w.wide)).sum();
    let mut need = Need::of(config, ckpt.file_bytes.saturating_add(blocks), sample.judging.len());
    let row = config.vocab + (config.layers + 24) * config.width + 2 * config.ffn_width;
    need.activations += 4 * (tokens * row) as u64;
    need
}

/// Writes the file; its size.
fn write(
    args: &Args,
    to: &ModelFile,
    model: &Model,
    made: Vec<(String, StoredTensor)>,
) -> anyhow::Result<u64> {
    let mut ckpt = model.checkpoint().clone();
    let mut types: Vec<&str> = made.iter().map(|(_, t)| t.dtype.name()).collect();
    types.sort_unstable();
    types.dedup();
    let scheme = match (args.to, &types[..]) {
        (_, [one]) => (*one).to_string(),
        (to, several) => format!("{to} of {}", several.join("/")),
    };
    ckpt.metadata.insert(metadata::QUANTIZED.into(), scheme);
    ckpt.tensors.extend(made);
    to.write(&ckpt, &args.tokenizer)
}
