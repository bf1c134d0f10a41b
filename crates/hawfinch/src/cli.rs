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
}

/// Parses the command line and runs its command; with no argument, generates from the built-in model.
pub fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        None => Ok(ExitCode::SUCCESS),
        Some(Command::Inspect(args)) => commands::inspect::run(&args),
    }
}
