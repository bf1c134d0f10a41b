//! `hawfinch doctor`: what this machine is, and what would run on it how fast.
//!
//! Measured are how fast memory is read, how fast the processor multiplies, and how fast hawfinch's own matrix product
//! is on a matrix as large as a released model's. Everything said about models is computed from these and says so.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_model::Cpu as CpuOps;

use crate::hub::folder;
use crate::measure::{self, Gauge, Product};
use crate::model_args::check_environment;
use crate::output::{self, size};
use crate::progress::Progress;
use crate::system::memory::{self, Memory, Need, WIDTHS};
use crate::system::{cpu, disk};

/// Arguments of `doctor`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch doctor
  hawfinch doctor --network
  HAWFINCH_THREADS=4 hawfinch doctor --json

The estimates count only the weights, which every token reads once: a real model is a little slower.")]
pub struct Args {
    /// Say what the machine is, without measuring (a second saved)
    #[arg(long)]
    quick: bool,
    /// Ask the model hub whether it answers
    #[arg(long)]
    network: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything found.
#[derive(serde::Serialize)]
struct Report {
    hawfinch: &'static str,
    system: String,
    cpu: cpu::Cpu,
    /// The instruction set that hawfinch computes with.
    isa: &'static str,
    threads: usize,
    memory: MemoryReport,
    models_folder: Option<PathBuf>,
    models_folder_free_bytes: Option<u64>,
    /// Whether the hub answers; absent when not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
    estimated: Vec<Estimate>,
}

#[derive(serde::Serialize)]
struct MemoryReport {
    machine_total_bytes: Option<u64>,
    machine_available_bytes: Option<u64>,
    limit_bytes: Option<u64>,
    limit_left_bytes: Option<u64>,
    limit_group: Option<PathBuf>,
    /// Of machine and limit the smaller.
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
}

#[derive(serde::Serialize)]
struct Network {
    hub: String,
    answers: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(serde::Serialize)]
struct Measured {
    read_one_thread_bytes_per_second: f64,
    read_all_threads_bytes_per_second: f64,
    /// In which each thread read fastest.
    read_streams: usize,
    /// Of f32, operands in registers, all threads.
    multiply_adds_per_second: f64,
    products: Vec<Product>,
}

/// One released size at one width.
#[derive(serde::Serialize)]
struct Estimate {
    model: String,
    weights: &'static str,
    need_bytes: u64,
    /// Absent when the memory is not known.
    fits: Option<bool>,
    /// At the speed that memory was read with: no program can be faster on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_tokens_per_second: Option<f64>,
    /// With hawfinch's kernel as measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
}

/// Reports.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_environment()?;
    let memory = Memory::now();
    let cpu = cpu::Cpu::now();
    let ops = CpuOps::<f32>::default();
    let measured = (!args.quick).then(|| {
        let _bar = Progress::time("measuring for about three seconds");
        measure(&cpu, &memory, &ops)
    });
    let models_folder = folder::models().ok();
    let nearest = models_folder.as_deref().and_then(|f| f.ancestors().find(|a| a.is_dir()));
    let report = Report {
        hawfinch: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        isa: ops.isa().name(),
        threads: ops.threads(),
        network: args.network.then(network),
        estimated: estimates(&memory, measured.as_ref()),
        measured,
        models_folder_free_bytes: nearest.and_then(disk::free),
        models_folder,
        memory: MemoryReport {
            machine_total_bytes: memory.machine_total,
            machine_available_bytes: memory.machine_available,
            limit_bytes: memory.limit.as_ref().map(|l| l.bytes),
            limit_left_bytes: memory.limit.as_ref().map(|l| l.left),
            limit_group: memory.limit.as_ref().map(|l| l.group.clone()),
            total_bytes: memory.total(),
            available_bytes: memory.available(),
        },
        cpu,
    };
    if args.json {
        output::json(&report)?;
    } else {
        let mut out = output::stdout();
        out.write_all(text(&report).as_bytes())?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "hub")]
fn network() -> Network {
    let _bar = Progress::time("asking the hub");
    let hub = match crate::hub::download::Hub::from_env() {
        Ok(hub) => hub,
        Err(e) => return Network { hub: String::new(), answers: false, error: Some(format!("{e:#}")) },
    };
    let error = hub.ping().err().map(|e| format!("{e:#}"));
    Network { hub: hub.endpoint().into(), answers: error.is_none(), error }
}

#[cfg(not(feature = "hub"))]
fn network() -> Network {
    let error = Some("this hawfinch was built without the feature `hub`".into());
    Network { hub: String::new(), answers: false, error }
}

fn measure(cpu: &cpu::Cpu, memory: &Memory, ops: &CpuOps<f32>) -> Measured {
    let gauge = Gauge::new(ops.isa(), ops.pool().clone(), cpu, memory, measure::BUDGET);
    let one = gauge.read_alone();
    let size = gauge.bytes() as usize / 4;
    Measured {
        read_one_thread_bytes_per_second: one,
        read_all_threads_bytes_per_second: gauge.read().max(one),
        read_streams: gauge.streams(),
        multiply_adds_per_second: gauge.multiply(),
        products: WIDTHS.iter().filter_map(|&(_, dtype)| measure::product(dtype, size)).collect(),
    }
}

fn estimates(memory: &Memory, measured: Option<&Measured>) -> Vec<Estimate> {
    let mut all = Vec::new();
    for r in memory::released() {
        for (i, (words, dtype)) in WIDTHS.into_iter().enumerate() {
            let weights = memory::weight_bytes(&r.config, dtype);
            let need = Need::of(&r.config, weights, 1).total();
            // A token reads every matrix but the embedding, of which it reads one row.
            let embedding = (r.config.vocab * r.config.width) as f64 * dtype.bits() / 8.0;
            let read = weights as f64 - embedding;
            let product = measured.and_then(|m| m.products.get(i)).filter(|p| p.dtype == dtype.name());
            let limit = measured.map(|m| m.read_all_threads_bytes_per_second / read);
            let kernel = product.map(|p| p.bytes_per_second / read);
            all.push(Estimate {
                model: r.name.clone(),
                weights: words,
                need_bytes: need,
                fits: memory.available().map(|a| need <= a),
                limit_tokens_per_second: limit,
                tokens_per_second: kernel.zip(limit).map(|(k, l)| k.min(l)),
            });
        }
    }
    all
}

fn text(r: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    let known = |n: Option<u64>| n.map_or_else(|| "unknown".into(), size);
    line("hawfinch", format!("{} on {}", r.hawfinch, r.system));
    line("processor", r.cpu.name.clone().unwrap_or_else(|| "unknown".into()));
    line("cores", cores(&r.cpu));
    if !r.cpu.caches.is_empty() {
        let caches = r.cpu.caches.iter().map(|c| {
            let kib = c.bytes >> 10;
            let amount = if kib >= 1024 { format!("{} MiB", kib >> 10) } else { format!("{kib} KiB") };
            match c.shared_by {
                Some(n) if n > 1 => format!("{} {amount} shared by {n}", c.name),
                _ => format!("{} {amount}", c.name),
            }
        });
        line("caches", caches.collect::<Vec<_>>().join(", "));
    }
    let sets = &r.cpu.instruction_sets;
    line("instructions", if sets.is_empty() { "none that matter here".into() } else { sets.join(" ") });
    line("in use", format!("{} (HAWFINCH_ISA changes it)", r.isa));
    line("threads", format!("{} that hawfinch would use (HAWFINCH_THREADS changes it)", r.threads));
    let m = &r.memory;
    line(
        "memory",
        format!(
            "{} in the machine, {} of it available",
            known(m.machine_total_bytes),
            known(m.machine_available_bytes)
        ),
    );
    match (&m.limit_group, m.limit_bytes) {
        (Some(group), Some(limit)) => line(
            "limit",
            format!(
                "{} by the control group {}, {} of it left",
                size(limit),
                group.display(),
                known(m.limit_left_bytes)
            ),
        ),
        _ => line("limit", "no control group limits the memory".into()),
    }
    match &r.models_folder {
        Some(f) => {
            line("models folder", format!("{} ({} free)", f.display(), known(r.models_folder_free_bytes)))
        }
        None => line("models folder", "none: set HAWFINCH_MODELS".into()),
    }
    match &r.network {
        None => line("network", "not asked (--network asks)".into()),
        Some(n) if n.answers => line("network", format!("{} answers", n.hub)),
        Some(n) => line("network", n.error.clone().unwrap_or_default()),
    }
    if let Some(m) = &r.measured {
        let gb = |b: f64| format!("{:.1} GB/s", b / 1e9);
        out.push_str("\nMeasured now\n");
        let _ = writeln!(
            out,
            "  reading memory: {} with one thread, {} with {}, {} {} each",
            gb(m.read_one_thread_bytes_per_second),
            gb(m.read_all_threads_bytes_per_second),
            r.threads,
            m.read_streams,
            if m.read_streams == 1 { "stream" } else { "streams" }
        );
        let _ = writeln!(
            out,
            "  multiplying f32 in registers: {:.1} G multiply-adds/s",
            m.multiply_adds_per_second / 1e9
        );
        for p in &m.products {
            let _ = writeln!(
                out,
                "  matrix × vector, {:<5} {} of weights, {:.2} G multiply-adds/s",
                p.dtype,
                gb(p.bytes_per_second),
                p.weights_per_second / 1e9
            );
        }
    }
    out.push_str("\nRWKV-7 as released: memory needed, and estimated tokens/s of one sequence\n");
    let _ = writeln!(
        out,
        "  {:<6} {:<8} {:>10}  {:<5} {:>10} {:>12}",
        "MODEL", "WEIGHTS", "NEEDS", "FITS", "ESTIMATE", "MEMORY LIMIT"
    );
    let rate = |n: Option<f64>| match n {
        None => "-".into(),
        Some(n) if n < 10.0 => format!("{n:.2}"),
        Some(n) => format!("{n:.0}"),
    };
    for e in &r.estimated {
        let fits = e.fits.map_or("?", |f| if f { "yes" } else { "no" });
        let _ = writeln!(
            out,
            "  {:<6} {:<8} {:>10}  {fits:<5} {:>10} {:>12}",
            e.model,
            e.weights,
            size(e.need_bytes),
            rate(e.tokens_per_second),
            rate(e.limit_tokens_per_second)
        );
    }
    if r.measured.is_some() {
        out.push_str(
            "Estimates, not measurements: the time to read the weights once a token, at the measured speed of hawfinch's\n\
             matrix product (ESTIMATE) and of memory itself (MEMORY LIMIT: no program can be faster here).\n",
        );
    }
    out
}

fn cores(cpu: &cpu::Cpu) -> String {
    let count = |n: Option<usize>| n.map_or_else(|| "an unknown number of".into(), |n| n.to_string());
    let mut said = match (cpu.physical_cores, cpu.logical_cores) {
        (Some(p), Some(l)) if p != l => format!("{p} cores with {l} hardware threads"),
        (_, l) => format!("{} hardware threads", count(l)),
    };
    if let Some(a) = cpu.allowed.filter(|a| Some(*a) != cpu.logical_cores) {
        let _ = write!(said, ", {a} of which this process may use");
    }
    if let Some(q) = cpu.quota {
        let _ = write!(said, ", a control group grants the time of {q:.1}");
    }
    if let Some(n) = cpu.numa_nodes.filter(|n| *n > 1) {
        let _ = write!(said, ", {n} memory nodes");
    }
    said
}
