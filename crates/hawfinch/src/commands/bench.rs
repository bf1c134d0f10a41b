//! `hawfinch bench`: how fast a model runs on this machine, beside what the machine can do at most.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hawfinch_kernels::DType;
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Checkpoint, Config, Model, Rng};

use crate::bench::report::{
    FirstToken, Limits, MemoryReport, ModelReport, PackedReport, Report, Speed, Spread,
};
use crate::bench::{self, Bench, Plan, made, table};
use crate::built_in::DEMO;
use crate::fail::usage;
use crate::measure::Gauge;
use crate::model_args::{ModelOptions, memory_need, open_checkpoint};
use crate::output::{self, note, printable};
use crate::progress::Progress;
use crate::shapes::{self, Published};
use crate::signal;
use crate::system::cpu::{Cpu, threads_allowed};
use crate::system::load::{self, Ticks};
use crate::system::memory::{self, Memory, Need};

/// Arguments of `bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch bench model.pth
  hawfinch bench --shape goose-1.5b --quant int8
  hawfinch bench --shape finch-1.6b --quant int4 --batch 1,16 --prefill 512 --json
  hawfinch bench model.gguf --plot speed.svg --context 65536
  hawfinch bench demo --quick

Shapes: goose-0.1b 0.4b 1.5b 2.9b 7.2b (RWKV-7), finch-1.6b 3b 7b (6), eagle-0.4b 1.5b 3b 7b (5.2), raven-0.1b 0.4b \
1.5b 3b 7b 14b (4): random weights of the published sizes, made up in memory, so that anybody can repeat a measurement \
without a download. With --quant they are made up quantised: opening does not include quantising them.

A token is counted when its logits are there; choosing among them is not measured. Weights are counted as a reader of \
all of them would read them: every matrix once a step, of the embedding one row.")]
pub struct Args {
    /// Checkpoint file or folder, name of a model in the models folder, or `demo`
    #[arg(conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Random weights of a published size in place of a model
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// Sequences that decode at once, divided by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    batch: Option<Vec<usize>>,
    /// Lengths of prompts in tokens, divided by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    prefill: Option<Vec<usize>>,
    /// Rounds of each measurement (fewer where one takes minutes)
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Decode also along one text of N tokens, at powers of two [with --plot: 8192]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Draw decode speed and memory against the length of the text: a file that ends in .svg or .png
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// A smoke run of seconds: less of everything
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: ModelOptions,
}

/// Tokens of the prompt before the very first token, and before decoding.
const FIRST_PROMPT: usize = 64;
/// More sequences or tokens than anybody means.
const MOST: usize = 1 << 30;

/// Measures and reports.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.model.is_none() && args.shape.is_none() {
        return Err(usage("name a model to measure, or give --shape NAME for one of random weights"));
    }
    let (plan, context) = plan(args)?;
    args.options.check()?;
    let shape = args.shape.as_deref().map(find).transpose()?;
    let plot = args.plot.as_ref().map(|path| begin(path)).transpose()?;
    let (load_average, ticks) = (load::average(), Ticks::now());
    let mut warnings = Vec::new();
    signal::end_cleanly_unless_caught();

    let sequences = plan.batches.iter().copied().max().unwrap_or(1);
    let opened = open(args, shape.as_ref(), sequences)?;
    let model = &opened.model;
    if let Some(plot) = &plot {
        output::not_over(plot.path(), &model.checkpoint().files)?;
    }
    let threads = model.ops().threads();
    warnings.extend(busy(load_average));
    if let Some(there) = threads_allowed().filter(|there| threads > *there) {
        warnings.push(format!("{threads} threads share {there} processors"));
    }
    warnings.iter().for_each(|w| note(format_args!("warning: {w}")));

    let mut random = Rng::new(3);
    let vocab = model.config().vocab as u64;
    let prompt: Vec<u32> = (0..FIRST_PROMPT).map(|_| (random.next_u64() % vocab) as u32).collect();
    let mut warm = model.new_state();
    let first = bench::first_token(model, &prompt, &mut warm)?;
    let checked = {
        let _bar = Progress::time("checking the file");
        model.ops().checked()?
    };
    let packed = checked.map(|checked| PackedReport {
        checked_seconds: checked.time.as_secs_f64(),
        copied_bytes: checked.copied,
        since_opening_seconds: opened.began.elapsed().as_secs_f64(),
        resident_bytes: load::resident().map(|r| r.now),
    });
    let (cpu, memory) = (Cpu::now(), Memory::now());
    let budget = Duration::from_millis(if args.quick { 10 } else { 120 });
    let gauge = Gauge::new(model.ops().isa(), model.ops().pool().clone(), &cpu, &memory, budget);
    let before_gauge = opened.resident.map(|r| r.peak);

    let state_bytes = bench::state_bytes(&warm);
    let mut bench = Bench::new(model, gauge, &plan, warm);
    let decode = plan.batches.iter().map(|&n| bench.decode(n)).collect::<Result<Vec<_>, _>>()?;
    let prefill = plan.prompts.iter().map(|&n| bench.prefill(n)).collect::<Result<Vec<_>, _>>()?;
    let context = context.map(|n| bench.along(n)).transpose()?.unwrap_or_default();

    let peak = load::resident().map(|r| r.peak.saturating_sub(bench.gauge().bytes()));
    let others = ticks.and_then(|t| Ticks::now()?.others_since(&t));
    if let Some((took, processors)) = others.filter(|(took, _)| *took > 0.1) {
        warnings.push(format!("other programs took {took:.2} of {processors} processors meanwhile"));
    }
    let report = Report {
        hawfinch: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu,
        isa: model.ops().isa().level().name(),
        threads,
        load_average,
        others_used_processors: others.map(|o| o.0),
        warnings,
        model: describe(model, &opened, args, state_bytes),
        limits: limits(&decode, &prefill, bench.gauge()),
        load_seconds: opened.seconds,
        first_token: FirstToken { prompt_tokens: FIRST_PROMPT, seconds: opened.seconds + first },
        packed,
        memory: MemoryReport {
            opened_bytes: opened.resident.map(|r| r.now),
            // What measures the machine came after the model was opened.
            peak_bytes: peak.max(before_gauge),
            made_up_bytes: if opened.made_up { model.checkpoint().file_bytes } else { 0 },
        },
        decode,
        prefill,
        context,
    };
    if let Some(plot) = plot {
        draw(plot, &report)?;
    }
    if args.json {
        output::json(&report)?;
    } else {
        let mut out = output::stdout();
        out.write_all(table::text(&report).as_bytes())?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What to measure, and along how long a text.
fn plan(args: &Args) -> anyhow::Result<(Plan, Option<usize>)> {
    let quick = args.quick;
    let list = |given: &Option<Vec<usize>>, usual: &[usize], name: &str| match given {
        Some(all) if all.iter().any(|n| !(1..=MOST).contains(n)) => {
            Err(usage(format!("--{name} takes numbers from 1 to {MOST}, divided by commas")))
        }
        Some(all) => Ok(all.clone()),
        None => Ok(usual.to_vec()),
    };
    let batches = list(&args.batch, if quick { &[1, 4] } else { &[1, 4, 16, 64] }, "batch")?;
    let prompts = list(&args.prefill, if quick { &[64] } else { &[64, 512, 2048] }, "prefill")?;
    let usual = if quick { 256 } else { 8192 };
    let context = args.context.or(args.plot.as_ref().map(|_| usual));
    if context.is_some_and(|n| !(1..=MOST).contains(&n)) {
        return Err(usage(format!("--context takes a number of tokens from 1 to {MOST}")));
    }
    if args.rounds == 0 {
        return Err(usage("--rounds must be at least 1"));
    }
    let plan = Plan {
        batches,
        prompts,
        rounds: if quick { args.rounds.min(2) } else { args.rounds },
        slice: Duration::from_millis(if quick { 20 } else { 300 }),
        patience: Duration::from_secs(if quick { 1 } else { 40 }),
    };
    Ok((plan, context))
}

fn find(name: &str) -> anyhow::Result<Published> {
    shapes::find(name).ok_or_else(|| {
        let names: Vec<&str> = shapes::PUBLISHED.iter().map(|p| p.name).collect();
        usage(format!("there is no shape `{}`; choose one of {}", printable(name), names.join(", ")))
    })
}

/// A model that is open, and what opening it took.
struct Opened {
    model: Model,
    made_up: bool,
    began: Instant,
    seconds: f64,
    resident: Option<load::Resident>,
}

fn open(args: &Args, shape: Option<&Published>, sequences: usize) -> anyhow::Result<Opened> {
    let checkpoint = match shape {
        Some(shape) => {
            let _bar = Progress::time("making up a model");
            Some(make(args, shape, sequences)?)
        }
        None => None,
    };
    let made_up = checkpoint.is_some();
    let _bar = Progress::time("opening");
    let began = Instant::now();
    let checkpoint: Checkpoint = match (checkpoint, &args.model) {
        (Some(made), _) => made,
        (None, path) => {
            let found = open_checkpoint(path.as_deref().unwrap_or(Path::new(DEMO)))?;
            args.options.check_memory(&memory_need(
                &found,
                &Config::infer(&found)?,
                sequences,
                args.options.quant(),
            ))?;
            found
        }
    };
    let model = args.options.prepare(checkpoint)?;
    Ok(Opened { model, made_up, began, seconds: began.elapsed().as_secs_f64(), resident: load::resident() })
}

/// Random weights, if they fit: as they are made and, quantised, once more as they are repacked.
fn make(args: &Args, shape: &Published, sequences: usize) -> anyhow::Result<Checkpoint> {
    let config = shape.shape.config();
    let quant = args.options.quant();
    let repacked = quant.map_or(0, |q| {
        let other = q.type_for("blocks", DType::BF16, config.width);
        other.map_or(0, |d| memory::weight_bytes(&config, d))
    });
    args.options.check_memory(&Need::of(&config, made::held(&config, quant) + repacked, sequences))?;
    Ok(made::checkpoint(shape, &config, quant))
}

/// Says so when others are using the machine.
fn busy(load: Option<[f64; 3]>) -> Option<String> {
    let [now, ..] = load.filter(|l| l[0] >= 0.5)?;
    Some(format!("the machine was busy before this began (load {now:.2}): speeds are what others leave"))
}

/// What bench calls weights whose activations are rounded to bf16, too.
const BF16: &str = "bf16 with activations in bf16";

fn describe(model: &Model, opened: &Opened, args: &Args, state_bytes: u64) -> ModelReport {
    let (config, checkpoint) = (model.config(), model.checkpoint());
    let name = match (&args.shape, &args.model) {
        (None, Some(path)) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        _ => checkpoint.path.display().to_string(),
    };
    let types: BTreeSet<&str> = names::all_params(config.version, config.layers)
        .iter()
        .filter(|(name, p)| p.role == Role::Matrix && name != "emb.weight")
        .filter_map(|(name, _)| checkpoint.get(name))
        .map(|t| if t.is_bf16_panels() { BF16 } else { t.dtype.name() })
        .collect();
    let types = types.into_iter().collect::<Vec<_>>().join(" and ");
    ModelReport {
        name,
        made_up: opened.made_up,
        version: config.version.to_string(),
        layers: config.layers,
        width: config.width,
        vocab: config.vocab,
        parameters: config.parameters(true),
        weights: match args.options.quant() {
            Some(hawfinch_model::Quant::Bf16) => BF16.to_owned(),
            quant => quant.map_or(types, |q| q.name().to_owned()),
        },
        weight_bytes_per_token: model.weight_bytes(true),
        multiply_adds_per_token: model.multiply_adds(true),
        state_bytes,
    }
}

/// Of all measurements the middle and the best.
fn limits(decode: &[Speed], prefill: &[Speed], gauge: &Gauge) -> Limits {
    let all = |f: &dyn Fn(&Speed) -> Spread, ask: &dyn Fn() -> f64| {
        let mut medians: Vec<f64> = decode.iter().chain(prefill).map(|s| f(s).median).collect();
        if medians.is_empty() {
            medians.push(ask());
        }
        (Spread::of(&medians).median, medians.into_iter().fold(0.0, f64::max))
    };
    let (read, best_read) = all(&|s| s.limit_read_bytes_per_second, &|| gauge.read());
    let (multiply, best_multiply) = all(&|s| s.limit_multiply_adds_per_second, &|| gauge.multiply());
    Limits {
        read_bytes_per_second: read,
        read_streams_per_thread: gauge.streams(),
        multiply_adds_per_second: multiply,
        best_read_bytes_per_second: best_read,
        best_multiply_adds_per_second: best_multiply,
    }
}

#[cfg(feature = "plot")]
use crate::plot::PlotFile;

/// Begins the plot, before anything is measured.
#[cfg(feature = "plot")]
fn begin(path: &Path) -> anyhow::Result<PlotFile> {
    PlotFile::begin(path)
}

#[cfg(feature = "plot")]
fn draw(plot: PlotFile, report: &Report) -> anyhow::Result<()> {
    let path = plot.path().to_path_buf();
    plot.draw(bench::plot::SIZE, report)?;
    note(format_args!("wrote {}", path.display()));
    Ok(())
}

/// Stands for what this program cannot draw.
#[cfg(not(feature = "plot"))]
struct PlotFile(PathBuf);

#[cfg(not(feature = "plot"))]
impl PlotFile {
    fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(not(feature = "plot"))]
fn begin(path: &Path) -> anyhow::Result<PlotFile> {
    let path = path.display();
    Err(usage(format!("cannot draw {path}: this hawfinch was built without the feature `plot`")))
}

#[cfg(not(feature = "plot"))]
fn draw(plot: PlotFile, _report: &Report) -> anyhow::Result<()> {
    begin(plot.path()).map(|_| ())
}
