//! Opening a model as the command line asks for it: from a file, a folder or the one that is built in, with LoRA
//! files, threads and what else every command that runs a model takes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use hawfinch_engine::Error;
use hawfinch_kernels::Isa;
use hawfinch_model::lora::with_state;
use hawfinch_model::quantize::{Unquantized, held_bytes, unquantized};
use hawfinch_model::{
    Background, Checkpoint, Config, Cpu, Lora, Model, OpenOptions, Quant, State, format, hash, metadata,
};

use crate::built_in;
use crate::fail::usage;
use crate::hub;
use crate::output;
use crate::output::{note, printable};
use crate::progress::Progress;
use crate::system::cpu::threads_allowed;
use crate::system::memory::{self, Memory, Need};

/// Options of every command that runs a model.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Model options")]
pub struct ModelOptions {
    /// Apply a LoRA file (repeatable); its alpha is taken from here, the file or a JSON file beside it
    #[arg(long = "lora", value_name = "FILE[:alpha=N]")]
    loras: Vec<String>,
    /// Epsilon of the group norm after WKV, in place of what the file implies
    #[arg(long, value_name = "EPS")]
    group_norm_eps: Option<f64>,
    /// Threads to compute with (default: all that the machine runs at once); results do not depend on it
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = thread_count)]
    threads: Option<NonZeroUsize>,
    /// Quantise the weights while opening the model, where they are floats: int8 (8.5 bits a weight), int4 (about 4.8),
    /// mixed (int4, but what costs most in 8 bits: about 5.5), or bf16 (16, and activations too are rounded to bf16: for
    /// the machine's bf16 instructions)
    #[arg(long, value_name = "TYPE", value_parser = quant_parser(Quant::ALL))]
    quant: Option<Quant>,
    /// After the first token, copy the weights of a packed file from its mapping, whose memory processes share, into huge
    /// pages of this one, which some machines read a few percent faster
    #[arg(long)]
    huge_pages: bool,
    /// Run the model even if it does not fit in memory
    #[arg(long)]
    ignore_memory: bool,
}

/// More threads than this are a slip of the finger, and more than some systems can start.
const MAX_THREADS: usize = 4096;

/// Reads a number of threads.
fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= MAX_THREADS);
    number.ok_or_else(|| format!("give a number from 1 to {MAX_THREADS}"))
}

/// Reads the name of one of these ways to quantise.
pub fn quant_parser<const N: usize>(ways: [Quant; N]) -> impl TypedValueParser<Value = Quant> {
    PossibleValuesParser::new(ways.map(Quant::name)).try_map(|name| name.parse::<Quant>())
}

impl ModelOptions {
    /// Opens the model, refusing one that does not fit the memory before its weights are read.
    pub fn open(&self, path: &Path) -> anyhow::Result<Model> {
        self.open_for(path, 1)
    }

    /// As [`ModelOptions::open`], to run so many sequences at once.
    pub fn open_for(&self, path: &Path, sequences: usize) -> anyhow::Result<Model> {
        self.open_beginning(path, sequences, None)
    }

    /// As [`ModelOptions::open_for`], with all sequences beginning at a tuned state.
    pub fn open_beginning(
        &self,
        path: &Path,
        sequences: usize,
        state: Option<&Path>,
    ) -> anyhow::Result<Model> {
        self.check()?;
        self.note_threads();
        let mut checkpoint = open_checkpoint(path)?;
        if let Some(state) = state {
            let file = format::open_state(state)?;
            let own = hash::identity(&checkpoint, None)?;
            if let Some(of) = file.metadata.get(metadata::MODEL).filter(|of| **of != own) {
                anyhow::bail!(
                    "{} belongs to another model ({of:.19}…) than {} ({own:.19}…)",
                    state.display(),
                    path.display()
                );
            }
            let files = checkpoint.files.clone();
            checkpoint = with_state(&checkpoint, &file)?;
            checkpoint.files = files;
            checkpoint.files.push(state.into());
        }
        let need = memory_need(&checkpoint, &Config::infer(&checkpoint)?, sequences, self.quant);
        self.check_memory(&need)?;
        self.prepare(checkpoint)
    }

    /// Says so when more threads are to compute than the machine runs at once.
    fn note_threads(&self) {
        let asked = self.threads.or_else(|| std::env::var("HAWFINCH_THREADS").ok()?.parse().ok());
        if let (Some(n), Some(there)) = (asked, threads_allowed())
            && n.get() > there
        {
            note(format_args!(
                "warning: {n} threads where {there} can run at once: more than these make it slower"
            ));
        }
    }

    /// A draft model for `model`, which was opened with these options: with its threads, quantised as it is, without
    /// its LoRA files. Refused when its vocabulary is another, or when both do not fit the memory.
    pub fn open_draft(&self, path: &Path, model: &Model) -> anyhow::Result<Model> {
        let checkpoint = open_checkpoint(path)?;
        let config = Config::infer(&checkpoint)?;
        config.version.needs_state(&checkpoint.path)?;
        let (draft, target) = (config.vocab, model.config().vocab);
        if draft != target {
            return Err(Error::DraftVocab { draft, target }.into());
        }
        let mut need = memory_need(&checkpoint, &config, 1, self.quant);
        if self.quant.is_none() {
            // What is mapped is still counted as free.
            need.weights = need.weights.saturating_add(model.checkpoint().file_bytes);
        }
        self.check_memory(&need).context("the model and its draft model together")?;
        note_unused(&checkpoint, &config);
        let ops = Cpu::with(model.ops().pool().clone(), model.ops().isa());
        let ops = ops.quantizing(self.quant).in_background(self.background(&checkpoint));
        Ok(Model::from_checkpoint(checkpoint, OpenOptions::default(), ops)?)
    }

    /// Refuses options that would change a model, with the reason why not here.
    pub fn as_it_is(&self, why: &str) -> anyhow::Result<()> {
        let given = [
            (!self.loras.is_empty(), "--lora"),
            (self.group_norm_eps.is_some(), "--group-norm-eps"),
            (self.quant.is_some(), "--quant"),
        ];
        match given.iter().find(|(given, _)| *given) {
            Some((_, option)) => Err(usage(format!("{option} cannot be used here: {why}"))),
            None => Ok(()),
        }
    }

    /// Refuses options and settings of the environment that cannot be.
    pub fn check(&self) -> anyhow::Result<()> {
        self.group_norm_eps.map_or(Ok(()), check_eps)?;
        check_environment()
    }

    /// Refuses what does not fit the memory, unless that is wished.
    pub fn check_memory(&self, need: &Need) -> anyhow::Result<()> {
        if self.ignore_memory {
            return Ok(());
        }
        memory::check(need).map_err(|e| anyhow::anyhow!("{e} (--ignore-memory runs it all the same)"))
    }

    /// How the weights are quantised.
    pub fn quant(&self) -> Option<Quant> {
        self.quant
    }

    /// The model of a checkpoint that was found to fit.
    pub fn prepare(&self, mut checkpoint: Checkpoint) -> anyhow::Result<Model> {
        let config = Config::infer(&checkpoint)?;
        config.version.needs_state(&checkpoint.path)?;
        note_unused(&checkpoint, &config);
        // What is made up, and lies in no file, is made in the types asked for.
        if let Some(quant) = self.quant.filter(|_| !checkpoint.files.is_empty()) {
            note_not_quantized(quant, &checkpoint, &config);
        }
        if self.huge_pages && checkpoint.packed.is_none() {
            note("warning: --huge-pages changes nothing: the model is no packed file");
        }
        let loras = self.loras.iter().map(|s| Lora::from_spec(s)).collect::<Result<_, _>>()?;
        // They are read for the model as well: nothing may be written over them.
        let lora_file =
            |spec: &String| PathBuf::from(spec.rsplit_once(":alpha=").map_or(&**spec, |(f, _)| f));
        checkpoint.files.extend(self.loras.iter().map(lora_file));
        let options = OpenOptions { loras, group_norm_eps: self.group_norm_eps };
        let ops = self.ops().quantizing(self.quant).in_background(self.background(&checkpoint));
        Ok(Model::from_checkpoint(checkpoint, options, ops)?)
    }

    /// What is done with a packed file after the first token: checksums are compared, which would take longer than
    /// opening; copies are made where they fit, since the system can drop what is mapped, but no copies.
    fn background(&self, checkpoint: &Checkpoint) -> Background {
        let fits = |available: u64| available / 9 * 8 >= checkpoint.file_bytes;
        match self.huge_pages {
            true if Memory::now().available().is_none_or(fits) => Background::Copy,
            true => {
                note(
                    "warning: there is no memory for copies in huge pages: the weights stay where they are mapped",
                );
                Background::Check
            }
            false => Background::Check,
        }
    }

    /// What computes, with the threads asked for.
    pub fn ops(&self) -> Cpu {
        self.threads.map_or_else(Cpu::default, |n| Cpu::new(n.get()))
    }
}

/// Refuses settings of the environment that cannot be: threads, instruction set.
pub fn check_environment() -> anyhow::Result<()> {
    if let Ok(n) = std::env::var("HAWFINCH_THREADS")
        && !n.is_empty()
        && thread_count(&n).is_err()
    {
        return Err(usage(format!(
            "HAWFINCH_THREADS must be a number from 1 to {MAX_THREADS}, not `{}`",
            printable(&n)
        )));
    }
    Isa::chosen().map(|_| ()).map_err(|e| usage(format!("HAWFINCH_ISA: {e}")))
}

/// Refuses an epsilon that none can be.
pub fn check_eps(eps: f64) -> anyhow::Result<()> {
    if eps > 0.0 && eps < 1.0 {
        return Ok(());
    }
    Err(usage(format!("--group-norm-eps must lie between 0 and 1, not {eps}")))
}

/// Says so when a checkpoint holds tensors that nothing here uses: a variant nobody has told us of may look like
/// a model we know.
fn note_unused(checkpoint: &Checkpoint, config: &Config) {
    if let unused @ [first, ..] = &config.unused(checkpoint)[..] {
        note(format_args!(
            "warning: {} of its tensors are not part of {} and are not used (the first is `{}`)",
            unused.len(),
            config.version,
            printable(first)
        ));
    }
}

/// Says so when weights stay as they are that were to be quantised.
fn note_not_quantized(quant: Quant, checkpoint: &Checkpoint, config: &Config) {
    let Unquantized { linear, blocks, odd_rows } = unquantized(quant, checkpoint, config);
    let stay = match (blocks, odd_rows) {
        (0, 0) => return,
        (n, 0) if n == linear => "changes nothing: the weights are quantised already".into(),
        (0, n) if n == linear => "changes nothing: the weights' rows divide into no blocks of 32".into(),
        (n, 0) => format!("leaves {n} of {linear} weights as they are: they are quantised already"),
        (0, n) => {
            format!("leaves {n} of {linear} weights as they are: their rows divide into no blocks of 32")
        }
        (b, o) => format!(
            "leaves {} of {linear} weights as they are: {b} are quantised already, the rows of {o} divide into no \
             blocks of 32",
            b + o
        ),
    };
    note(format_args!("warning: --quant {quant} {stay}"));
}

/// The tensors of a model: a file, a folder, the name of a model in the models folder, or one that is built in.
pub fn open_checkpoint(path: &Path) -> anyhow::Result<Checkpoint> {
    match built_in::open(path) {
        Some(built_in) => Ok(built_in),
        None => Ok(format::open(&hub::resolve(path)?)?),
    }
}

/// What running the model takes with so many sequences at once, quantised while it is opened or not.
pub fn memory_need(checkpoint: &Checkpoint, config: &Config, sequences: usize, quant: Option<Quant>) -> Need {
    let weights = quant.map_or(checkpoint.file_bytes, |q| held_bytes(q, checkpoint, config));
    Need::of(config, weights, sequences)
}

/// Options of commands that can start from a saved state and keep the last one.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "State options")]
pub struct StateOptions {
    /// Start from this state: one saved by hawfinch, or a tuned one (.pth with time_state, ai00 .state)
    #[arg(long = "state", value_name = "FILE")]
    from: Option<PathBuf>,
    /// Save the state at the end
    #[arg(long = "state-out", value_name = "FILE")]
    to: Option<PathBuf>,
}

impl StateOptions {
    /// The state to start from; refuses a place for the last one where no file can be or the model is. (It
    /// may replace the state to start from.)
    pub fn load(&self, model: &Model) -> anyhow::Result<State> {
        if let Some(to) = &self.to {
            may_become_state(to, model)?;
        }
        match &self.from {
            Some(path) => load_state(model, path),
            None => Ok(model.new_state()),
        }
    }

    /// Refuses an output of the command that is also the state to start from or the place for the last one.
    pub fn apart_from(&self, out: &Path) -> anyhow::Result<()> {
        output::not_over(out, &self.from)?;
        match &self.to {
            Some(to) if output::same_place(to, out) => Err(usage(format!(
                "{} cannot hold both the state and the result: give them two names",
                out.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses to save the last state over another file that the command reads.
    pub fn not_to(&self, read: Option<&Path>) -> anyhow::Result<()> {
        self.to.as_ref().map_or(Ok(()), |to| output::not_over(to, read))
    }

    /// Whether a state to start from was given.
    pub fn is_given(&self) -> bool {
        self.from.is_some()
    }

    /// Whether the last state is to be saved.
    pub fn is_saved(&self) -> bool {
        self.to.is_some()
    }

    /// Saves the last state where that is asked for.
    pub fn save(&self, model: &Model, state: &State) -> anyhow::Result<()> {
        match &self.to {
            Some(path) => save_state(model, state, path),
            None => Ok(()),
        }
    }
}

/// Refuses a place for a state where no file can be, or another file is than a state: that one would be lost.
pub fn may_become_state(path: &Path, model: &Model) -> anyhow::Result<()> {
    output::can_be_file(path)?;
    output::not_over(path, &model.checkpoint().files)?;
    // A pipe or a device is written to, not replaced.
    let Some(there) = path.metadata().ok().filter(|m| m.is_file() && m.len() > 0) else { return Ok(()) };
    let is_state =
        |c: Checkpoint| c.tensors.keys().any(|k| k.starts_with("state.") || k.ends_with("time_state"));
    if format::open(path).is_ok_and(|c| Config::infer(&c).is_err() && is_state(c)) {
        return Ok(());
    }
    Err(usage(format!(
        "{} holds something else than a state ({}): give another name, or remove it first",
        path.display(),
        output::size(there.len())
    )))
}

/// Loads a state of any format.
pub fn load_state(model: &Model, path: &Path) -> anyhow::Result<State> {
    if !path.exists() {
        anyhow::bail!("there is no state file {}", path.display());
    }
    Ok(model.load_state(path)?)
}

/// Saves a state; the model's hash, computed when first needed, may take a while.
pub fn save_state(model: &Model, state: &State, path: &Path) -> anyhow::Result<()> {
    let identity = model_identity(model)?;
    Ok(state.save(path, model.config().version, &identity)?)
}

/// The model's identity, with a bar while it is computed.
pub fn model_identity(model: &Model) -> anyhow::Result<String> {
    let mut bar = None;
    let mut tell = |done, total| {
        bar.get_or_insert_with(|| Progress::bytes("hashing the model", total)).set(done);
    };
    Ok(model.identity(Some(&mut tell))?)
}
