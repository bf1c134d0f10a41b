//! The command line of hawfinch: one file a subcommand in [`commands`].
//!
//! Exit codes: 0 done, 1 it failed (one sentence on standard error says what and what to do), 2 the
//! command was given wrongly. A reader that closes the pipe ends the program quietly.
//!
//! Results go to standard output, everything else (progress, notes, errors) to standard error.

mod bench;
mod built_in;
mod chat;
mod cli;
mod commands;
mod fail;
mod family;
mod hub;
mod ids;
mod input;
mod measure;
mod model_args;
mod model_file;
mod output;
#[cfg(feature = "plot")]
mod plot;
mod progress;
mod quantize;
mod runner;
mod sampler_args;
mod shapes;
mod signal;
mod speculate_args;
mod system;
mod tokenizer_args;
mod train;

use std::process::ExitCode;

fn main() -> ExitCode {
    fail::report(cli::run())
}
