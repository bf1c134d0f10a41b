//! `hawfinch inspect`: what a checkpoint is.

use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_model::{Config, format};

/// Arguments of `inspect`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A model file or folder, of any format
    model: PathBuf,
}

/// Prints version and sizes.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::infer(&format::open(&args.model)?)?;
    println!("{}: {} layers of width {}", config.version, config.layers, config.width);
    Ok(ExitCode::SUCCESS)
}
