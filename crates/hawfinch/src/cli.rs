//! The arguments of the program and the table of its commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands;

/// Trains, runs, serves, converts and verifies RWKV language models of every version.
#[derive(Parser, Debug)]
#[command(
    name = "hawfinch",
    version,
    max_term_width = 100,
    after_help = "Begin with `hawfinch pull --list` for models to fetch, then `hawfinch chat MODEL`. Without \
arguments the built-in model writes some lines. Every command has --help with examples.

Environment: HAWFINCH_THREADS says how many threads compute; HAWFINCH_ISA (scalar, avx2, avx512, amx, neon, \
neon-dotprod, neon-i8mm) forces an instruction set. Results depend on neither. The code for Arm and that for AMX are \
tested under emulators; their speed was never measured.

Exit codes: 0 done, 1 it failed, 2 it was called wrongly."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Generate text that goes on from a prompt; many prompts as one batch
    Generate(commands::generate::Args),
    /// Talk with a model in the terminal
    Chat(commands::chat::Args),
    /// Serve models over HTTP: the APIs of OpenAI and Anthropic, and a chat page
    #[cfg(feature = "serve")]
    Serve(Box<commands::serve::Args>),
    /// Show what a checkpoint is: version, sizes, parameters, state, memory, tensors
    Inspect(commands::inspect::Args),
    /// Write a checkpoint in another format or number type
    Convert(commands::convert::Args),
    /// Quantise a model weight by weight, as each can bear, and report what it costs
    Quantize(commands::quantize::Args),
    /// Compute the logits of given token ids and write them to a file
    Logits(commands::logits::Args),
    /// Turn text into token ids
    Tokenize(commands::tokenize::Args),
    /// Turn token ids into text
    Detokenize(commands::detokenize::Args),
    /// Turn a corpus into a data set of tokens (.bin and .idx), and look into data sets
    Data(commands::data::Args),
    /// Train a model, from nothing or from another model
    Train(Box<commands::train::Args>),
    /// Work out what a training run will need: memory, operations, traffic between machines
    Plan(commands::plan::Args),
    /// Merge adapters and a tuned state into a model, and prove that it says the same
    Merge(commands::merge::Args),
    /// List adapters and tuned states, show what one is
    Adapters(commands::adapters::Args),
    /// Draw the curves of training runs, beside each other
    Plot(commands::plot::Args),
    /// Give a text a vector from the model's activations
    Embed(commands::embed::Args),
    /// Tell how well a model foretells texts: bits a byte and perplexity
    Perplexity(commands::perplexity::Args),
    /// Prove that a model is computed right: against itself, or against given results
    Verify(commands::verify::Args),
    /// Make a checkpoint of random weights, for tests and benchmarks
    Synthesize(commands::synthesize::Args),
    /// Fetch models from the Hugging Face hub
    Pull(commands::pull::Args),
    /// List or remove the models on this machine
    Models(commands::models::Args),
    /// Say what this machine is and which models would run on it how fast
    Doctor(commands::doctor::Args),
    /// Measure how fast a model runs here, beside what the machine can do at most
    Bench(commands::bench::Args),
    /// Print a script that completes these commands in a shell
    Completions(commands::completions::Args),
    /// Print the manual page, or write one page a command
    Man(commands::man::Args),
}

/// Parses the command line and runs its command; with no argument, generates from the built-in model.
pub fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        None => commands::generate::first_run(),
        Some(Command::Generate(args)) => commands::generate::run(&args),
        Some(Command::Chat(args)) => commands::chat::run(&args),
        #[cfg(feature = "serve")]
        Some(Command::Serve(args)) => commands::serve::run(&args),
        Some(Command::Inspect(args)) => commands::inspect::run(&args),
        Some(Command::Convert(args)) => commands::convert::run(&args),
        Some(Command::Plan(args)) => commands::plan::run(&args),
        Some(Command::Merge(args)) => commands::merge::run(&args),
        Some(Command::Adapters(args)) => commands::adapters::run(&args),
        Some(Command::Quantize(args)) => commands::quantize::run(&args),
        Some(Command::Logits(args)) => commands::logits::run(&args),
        Some(Command::Tokenize(args)) => commands::tokenize::run(&args),
        Some(Command::Detokenize(args)) => commands::detokenize::run(&args),
        Some(Command::Data(args)) => commands::data::run(&args),
        Some(Command::Train(args)) => commands::train::run(&args),
        Some(Command::Plot(args)) => commands::plot::run(&args),
        Some(Command::Embed(args)) => commands::embed::run(&args),
        Some(Command::Perplexity(args)) => commands::perplexity::run(&args),
        Some(Command::Verify(args)) => commands::verify::run(&args),
        Some(Command::Synthesize(args)) => commands::synthesize::run(&args),
        Some(Command::Pull(args)) => commands::pull::run(&args),
        Some(Command::Models(args)) => commands::models::run(&args),
        Some(Command::Doctor(args)) => commands::doctor::run(&args),
        Some(Command::Bench(args)) => commands::bench::run(&args),
        Some(Command::Completions(args)) => commands::completions::run(&args),
        Some(Command::Man(args)) => commands::man::run(&args),
    }
}
