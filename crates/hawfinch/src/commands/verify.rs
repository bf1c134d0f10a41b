//! `hawfinch verify`: proof that a model is computed right.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hawfinch_model::quantize::quality::Reference;
use hawfinch_model::verify::{self, Report, parity, pth};
use hawfinch_model::{Config, Cpu, Model, OpenOptions};
use hawfinch_train::verify as training;

use crate::fail::usage;
use crate::ids;
use crate::model_args::{ModelOptions, open_checkpoint};
use crate::output::{self, note};
use crate::progress::Progress;
use crate::quantize::{measure, sample};
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `verify`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  hawfinch verify model.pth
  hawfinch verify --against fixtures/parity --training
  hawfinch verify model.gguf --against model.pth
  hawfinch verify model.bin --ids 34,105,110 --expect logits.bin --tolerance 1e-5

Exit code: 0 when every check passed, 1 when one failed, 2 when there was nothing to check.")]
pub struct Args {
    /// A model file or folder to check against itself: every weight finite; one token at a time, all at
    /// once and in pieces give the same bits; the state survives a round trip through its file
    #[arg(required_unless_present = "against")]
    model: Option<PathBuf>,
    /// A folder of results of an independent implementation (meta.json, model.pth, case.safetensors …), or
    /// any folder above some: compares logits, states, losses within the tolerances of each meta.json, and .pth
    /// files with the expected.safetensors beside them. What is not there to compare is listed. With a model before
    /// it, another model: the one that it was converted or quantised from
    #[arg(long, value_name = "DIR|MODEL", conflicts_with_all = ["tokens", "expect", "ids", "tolerance"])]
    against: Option<PathBuf>,
    /// With --against: also compute the logits in double precision and compare them within the folders'
    /// tolerance for that, about 5e-6
    #[arg(long)]
    double: bool,
    /// With --against DIR: also compare how it trains: gradients of every parameter and state in f32 and f64, L2Wrap,
    /// three steps of AdamW; and what files below DIR say of new models (init.json: numbers, first loss), schedules
    /// (schedule.json), the reference's order of samples (sampler.json) and data sets (NAME.jsonl with NAME.bin and NAME.idx)
    #[arg(long)]
    training: bool,
    /// Tokens to feed a model that is checked against itself
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(2..=4096))]
    tokens: u32,
    /// Compare with logits that another program computed: raw little-endian f32 of the last token, or a
    /// safetensors file with a tensor `logits` of all tokens
    #[arg(long, value_name = "FILE", requires = "ids", requires = "model")]
    expect: Option<PathBuf>,
    /// The token ids that `--expect` belongs to, as in 1,2,3
    #[arg(long, requires = "expect")]
    ids: Option<String>,
    /// The largest absolute error allowed with `--expect`
    #[arg(long, default_value_t = 1e-4, requires = "expect", value_parser = error_bound)]
    tolerance: f64,
    #[command(flatten)]
    options: ModelOptions,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// A largest error allowed.
fn error_bound(text: &str) -> Result<f64, String> {
    let bound = text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0);
    bound.ok_or_else(|| "a tolerance is a number from 0 up, as 1e-4".into())
}

/// Runs the checks and prints the report.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.double && (args.against.is_none() || args.model.is_some()) {
        return Err(usage("--double needs --against DIR: only such folders say how near it must come"));
    }
    if args.training && (args.against.is_none() || args.model.is_some()) {
        return Err(usage("--training needs --against DIR: a folder of gradients to compare with"));
    }
    let reports = match (&args.model, &args.against) {
        (Some(path), Some(other)) => vec![(path.display().to_string(), against_model(args, path, other)?)],
        (None, Some(dir)) => against_folder(args, dir)?,
        (Some(path), None) => {
            let model = args.options.open(path)?;
            let report = match (&args.expect, &args.ids) {
                (Some(file), Some(ids)) => {
                    let ids = ids::parse(ids).map_err(|e| usage(e.to_string()))?;
                    let _bar = Progress::time("computing");
                    verify::against_logits(&model, &ids, file, args.tolerance)?
                }
                _ => {
                    note(format_args!("verifying {} ({})", path.display(), model.config().version));
                    let mut step = None;
                    verify::against_itself(&model, args.tokens as usize, |what| {
                        step = None;
                        note(format_args!("  {what} …"));
                        step = Some(Progress::time(what));
                    })?
                }
            };
            vec![(path.display().to_string(), report)]
        }
        (None, None) => return Err(usage("give a model, or --against DIR")),
    };
    if args.json {
        let all: Vec<_> = reports
            .iter()
            .map(|(name, r)| {
                // null: nothing was there to compare.
                let passed = (!r.checks.is_empty()).then(|| r.passed());
                serde_json::json!({ "name": name, "passed": passed, "report": r })
            })
            .collect();
        output::json(&all)?;
    } else {
        for (name, report) in &reports {
            print(&format!("{name}\n{}", table(report)))?;
        }
    }
    let nothing = reports.iter().all(|(_, r)| r.checks.is_empty());
    if nothing {
        return Err(usage(
            "nothing was compared: none of the folders holds a model, results to compare it with, and tolerances",
        ));
    }
    let failed: usize = reports.iter().map(|(_, r)| r.checks.iter().filter(|c| !c.passed()).count()).sum();
    let checks: usize = reports.iter().map(|(_, r)| r.checks.len()).sum();
    if !args.json {
        let places = match reports.iter().filter(|(_, r)| !r.checks.is_empty()).count() {
            0 | 1 => String::new(),
            n => format!(" in {n} places"),
        };
        // Silence is no pass.
        let mut rest = match reports.iter().map(|(_, r)| r.absent.len()).sum::<usize>() {
            0 => String::new(),
            n => format!("; {n} more could not be made (above: not there)"),
        };
        if args.model.is_none() && !args.training {
            rest += "; how models train was not compared (--training)";
        }
        print(&format!("{} of {checks} checks passed{places}{rest}\n", checks - failed))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Everything at or below a folder that can be compared, and in the end the kinds of which there is nothing.
fn against_folder(args: &Args, dir: &Path) -> anyhow::Result<Vec<(String, Report)>> {
    if !dir.is_dir() {
        return Err(usage(format!("nothing to verify: there is no folder {}", dir.display())));
    }
    let folders = parity::find(dir)?;
    let variants = pth::find(dir)?;
    let files = if args.training { training::find_files(dir)? } else { Vec::new() };
    if folders.is_empty() && variants.is_empty() && files.is_empty() {
        let also = if args.training { " nor a file of expected values" } else { "" };
        return Err(usage(format!(
            "nothing to verify in {}: no folder there holds a model's results (meta.json, case.safetensors) or .pth files beside an expected.safetensors{also}",
            dir.display()
        )));
    }
    args.options.as_it_is("the models of a folder are compared as they are")?;
    args.options.check()?;
    let ops = args.options.ops();
    let mut reports = Vec::new();
    let mut add = |path: &Path, report: &mut dyn FnMut() -> Report| {
        note(format_args!("verifying {}", path.display()));
        let _bar = Progress::time("comparing");
        reports.push((path.display().to_string(), report()));
    };
    for folder in &folders {
        add(folder, &mut || {
            let report = parity::check_on(ops.pool(), folder, args.double);
            let mut report = report.unwrap_or_else(|e| Report::unreadable(&e));
            if args.training {
                let more = training::check(ops.pool(), folder);
                report.join(more.unwrap_or_else(|e| Report::unreadable(&e)));
            }
            report
        });
    }
    for folder in &variants {
        add(folder, &mut || pth::check(folder).unwrap_or_else(|e| Report::unreadable(&e)));
    }
    for file in &files {
        add(file, &mut || training::check_file(ops.pool(), file).unwrap_or_else(|e| Report::unreadable(&e)));
    }
    let mut absent = if args.training { training::kinds_absent(&files) } else { Vec::new() };
    if folders.is_empty() {
        absent.push("a model's results (model.pth, case.safetensors, meta.json)".into());
    }
    if variants.is_empty() {
        absent.push("pth-variants (.pth files beside an expected.safetensors)".into());
    }
    if !absent.is_empty() {
        reports.push((dir.display().to_string(), Report { absent, ..Report::default() }));
    }
    Ok(reports)
}

/// The model compared with another, over a text that both read.
fn against_model(args: &Args, path: &Path, other: &Path) -> anyhow::Result<Report> {
    // Before it is opened: a wrong pair should not take a minute.
    let configs = [path, other].map(|p| Ok(Config::infer(&open_checkpoint(p)?)?));
    let [config, of_other]: [anyhow::Result<Config>; 2] = configs;
    let (config, of_other) = (config?, of_other?);
    if config.vocab != of_other.vocab {
        return Err(usage(format!(
            "{} knows {} tokens and {} {}: only models of one vocabulary can be compared",
            path.display(),
            config.vocab,
            other.display(),
            of_other.vocab
        )));
    }
    let model = args.options.open(path)?;
    let full = Model::from_checkpoint(open_checkpoint(other)?, OpenOptions::default(), Cpu::default())?;
    note(format_args!("comparing {} with {}", path.display(), other.display()));
    let tokenizer = args.tokenizer.for_model(&model)?;
    let sample = sample::sample(&[], &tokenizer, config.vocab, COMPARED)?;
    let _bar = Progress::time("comparing");
    let trace = measure::trace(&full, &sample.judging)?;
    let quality = Reference::new(&trace)?.compare_model(full.ops().pool(), &model)?;
    Ok(verify::against_model(&model, &quality))
}

/// Tokens that two models are compared on.
const COMPARED: usize = 512;

/// A line a check: verdict, error, tolerance, what, note.
fn table(report: &Report) -> String {
    let mut out = String::new();
    for c in &report.checks {
        let verdict = if c.passed() { "ok  " } else { "FAIL" };
        let note = if c.note.is_empty() { String::new() } else { format!(" ({})", c.note) };
        out += &format!("  {verdict} {:>9.2e} of {:>7.0e}  {}{note}\n", c.error, c.tolerance, c.what);
    }
    for a in &report.absent {
        out += &format!("  not there: {a}\n");
    }
    out
}

fn print(text: &str) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes())
}
