//! `hawfinch man`: manual pages, made from the same descriptions as `--help`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::Cli;
use crate::hub::make_folder;

/// Arguments of `man`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch man | man -l -                          read the page
  hawfinch man --dir ~/.local/share/man/man1       install it, a page a command")]
pub struct Args {
    /// Write one page a command into this folder, instead of printing the first
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Prints or writes the pages.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            std::io::stdout().lock().write_all(&page)?;
        }
        Some(dir) => {
            make_folder(dir)?;
            // `help` would get a page for each command again.
            let cli = Cli::command().disable_help_subcommand(true);
            let at = || format!("the pages cannot be written to {}", dir.display());
            clap_mangen::generate_to(cli, dir).with_context(at)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
