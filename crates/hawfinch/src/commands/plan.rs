//! `hawfinch plan`: what a training run will need, before it is begun.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_model::Config;
use hawfinch_train::plan::{Job, Plan};
use hawfinch_train::tuning::{LoraInit, LoraSettings, Method};
use serde_json::json;

use crate::fail::usage;
use crate::model_args::open_checkpoint;
use crate::output::{self, size, thousands};
use crate::shapes;

/// Arguments of `plan`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Weights, gradients, moments and traffic are counted; what a step keeps of its tokens is measured
on small models of the same proportions. Memory is that of one rank, of which a machine may hold
several.

Examples:
  hawfinch plan --shape goose-1.5b --method lora --ctx 1024
  hawfinch plan model.gguf --method state --ctx 512 --recompute
  hawfinch plan --shape goose-7.2b --ctx 4096 --batch 4 --accumulate 64 --ranks 64 --zero \\
      --wire bf16 --recompute --flops 400 --bandwidth 25 --memory 80

Shapes: those of `bench --shape`."
)]
pub struct Args {
    /// The model
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// A published size in place of a model (its file in bf16)
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// What is trained: full, lora or state
    #[arg(long, default_value = "full", value_parser = ["full", "lora", "state"])]
    method: String,
    /// LoRA: rank
    #[arg(long, value_name = "N", default_value_t = 32)]
    lora_rank: usize,
    /// LoRA: what it begins as: zero, pissa or disha
    #[arg(long, value_name = "INIT", default_value = "zero", value_parser = ["zero", "pissa", "disha"])]
    lora_init: String,
    /// LoRA: which linear layers [default: all but the head]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    lora_modules: Vec<String>,
    /// Tokens of a sample
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
    /// Samples of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Micro-batches of a step, over all ranks
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Tokens that are computed at a time (0: a micro-batch)
    #[arg(long, value_name = "N", default_value_t = 0)]
    segment: usize,
    /// Blocks are computed again on the way back
    #[arg(long)]
    recompute: bool,
    /// Processes that share a step
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks: usize,
    /// Each rank holds only its part of the moments (ZeRO-1)
    #[arg(long)]
    zero: bool,
    /// Gradients between ranks: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    wire: String,
    /// TFLOP/s that a rank sustains: gives the time of a step
    #[arg(long, value_name = "TFLOPS")]
    flops: Option<f64>,
    /// GB/s that a rank sends: gives the time of the traffic
    #[arg(long, value_name = "GB/S")]
    bandwidth: Option<f64>,
    /// GB of memory that a rank has: says whether it fits
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Works out and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for (flag, value) in [("flops", args.flops), ("bandwidth", args.bandwidth), ("memory", args.memory)] {
        if value.is_some_and(|v| !(v > 0.0 && v.is_finite())) {
            return Err(usage(format!("--{flag} takes a number above 0")));
        }
    }
    let (config, base_bytes, name) = match (&args.model, &args.shape) {
        (Some(path), _) => {
            let checkpoint = open_checkpoint(path)?;
            (Config::infer(&checkpoint)?, checkpoint.file_bytes, path.display().to_string())
        }
        (None, Some(name)) => {
            let published = shapes::find(name).ok_or_else(|| {
                let all: Vec<&str> = shapes::PUBLISHED.iter().map(|p| p.name).collect();
                usage(format!("there is no shape `{name}`; there are {}", all.join(", ")))
            })?;
            let config = published.shape.config();
            let bytes = 2 * config.parameters(true);
            (config, bytes, published.name.to_string())
        }
        (None, None) => unreachable!("clap asks for one"),
    };
    let method = match &*args.method {
        "lora" => Method::Lora,
        "state" => Method::State,
        _ => Method::Full,
    };
    let job = Job {
        config,
        base_bytes,
        method,
        lora: LoraSettings {
            rank: args.lora_rank,
            alpha: args.lora_rank as f64,
            init: LoraInit::from_name(&args.lora_init).unwrap_or_default(),
            modules: args.lora_modules.clone(),
            parts: Vec::new(),
            seed: 1,
        },
        ctx: args.ctx,
        batch: args.batch,
        accumulate: args.accumulate,
        segment: args.segment,
        recompute: args.recompute,
        ranks: args.ranks,
        zero: args.zero,
        wire: if args.wire == "bf16" { 2 } else { 4 },
    };
    let plan = job.plan().map_err(|e| usage(e.to_string()))?;
    let times = Times::of(args, &plan);
    if args.json {
        let mut said = serde_json::to_value(plan)?;
        said["model"] = json!(name);
        said["compute_seconds"] = json!(times.compute);
        said["wire_seconds"] = json!(times.wire);
        said["tokens_per_second"] = json!(times.tokens_per_second);
        said["fits"] = json!(times.fits);
        output::json(&said)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = output::stdout();
    out.write_all(text(&name, &job, &plan, &times).as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What follows from the machine's speeds, where they were given.
struct Times {
    compute: Option<f64>,
    wire: Option<f64>,
    tokens_per_second: Option<f64>,
    fits: Option<bool>,
}

impl Times {
    fn of(args: &Args, plan: &Plan) -> Times {
        let compute = args.flops.map(|f| plan.operations / (f * 1e12));
        let wire = args.bandwidth.map(|b| plan.wire_bytes / (b * 1e9));
        // Gradients travel behind the last micro-batch's way back, two thirds of its computing; new values after it.
        let step = compute.map(|c| {
            let hidden = wire.map_or(0.0, |w| {
                let gradients = w * plan.gradient_bytes / plan.wire_bytes.max(1.0);
                gradients.min(c * 2.0 / 3.0 / plan.micro_batches as f64)
            });
            c + wire.unwrap_or(0.0) - hidden
        });
        Times {
            compute,
            wire,
            tokens_per_second: step.map(|s| plan.tokens as f64 / s),
            fits: args.memory.map(|m| plan.memory as f64 <= m * 1e9),
        }
    }
}

fn text(name: &str, job: &Job, plan: &Plan, times: &Times) -> String {
    let mut out = format!("{name}: {}, {}\n", job.config.version, job.method.name());
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "  {what:<24}{value}");
    };
    line("trained", format!("{} of {} numbers", thousands(plan.trained), thousands(plan.parameters)));
    line("a step", format!("{} tokens, {:.3e} operations a rank", thousands(plan.tokens), plan.operations));
    for (what, bytes) in [
        ("weights, f32", plan.weights),
        ("model as in its file", plan.base),
        ("gradients", plan.gradients),
        ("moments", plan.moments),
        ("all moments, at a save", plan.gathered),
        ("activations", plan.activations),
        ("logits", plan.logits),
        ("states", plan.states),
    ] {
        if bytes > 0 {
            line(what, size(bytes));
        }
    }
    let fits = match times.fits {
        Some(true) => ", which fits",
        Some(false) => ", which does NOT fit",
        None => "",
    };
    line("memory of a rank", format!("{}{fits}", size(plan.memory)));
    line("of it a token", format!("{} of activations", size(plan.bytes_per_token as u64)));
    if job.ranks > 1 {
        line("sent by a rank a step", size(plan.wire_bytes as u64));
        let ratio = plan.operations / plan.wire_bytes.max(1.0);
        line("operations a byte sent", thousands(ratio as u64));
    }
    if let Some(seconds) = times.compute {
        line("computing a step", format!("{seconds:.3} s"));
    }
    if let (Some(seconds), true) = (times.wire, job.ranks > 1) {
        line("traffic a step", format!("{seconds:.3} s"));
    }
    if let Some(speed) = times.tokens_per_second {
        line("tokens a second", thousands(speed as u64));
    }
    out
}
