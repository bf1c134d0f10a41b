//! The arguments of the program and the table of its commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands;

/// Trains, runs, serves and measures RWKV language models.
#[derive(Parser, Debug)]
#[command(name = "hawfinch", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show what a checkpoint is: version, sizes, parameters, state, memory, tensors
    Inspect(commands::inspect::Args),
    /// Write a checkpoint in another format or number type
    Convert(commands::convert::Args),
    /// Compute the logits of given token ids and write them to a file
    Logits(commands::logits::Args),
    /// Turn text into token ids
    Tokenize(commands::tokenize::Args),
    /// Turn token ids into text
    Detokenize(commands::detokenize::Args),
    /// Prove that a model is computed right: against itself, or against given results
    Verify(commands::verify::Args),
    /// Make a checkpoint of random weights, for tests and benchmarks
    Synthesize(commands::synthesize::Args),
}

/// Parses the command line and runs its command; with no argument, generates from the built-in model.
pub fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        None => Ok(ExitCode::SUCCESS),
        Some(Command::Inspect(args)) => commands::inspect::run(&args),
        Some(Command::Convert(args)) => commands::convert::run(&args),
        Some(Command::Logits(args)) => commands::logits::run(&args),
        Some(Command::Tokenize(args)) => commands::tokenize::run(&args),
        Some(Command::Detokenize(args)) => commands::detokenize::run(&args),
        Some(Command::Verify(args)) => commands::verify::run(&args),
        Some(Command::Synthesize(args)) => commands::synthesize::run(&args),
    }
}
