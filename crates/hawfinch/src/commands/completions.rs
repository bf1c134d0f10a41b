//! `hawfinch completions`: scripts that let a shell complete our commands.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::Cli;

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch completions bash > ~/.local/share/bash-completion/completions/hawfinch
  hawfinch completions zsh > ~/.zfunc/_hawfinch
  hawfinch completions fish > ~/.config/fish/completions/hawfinch.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Into memory first: the generator panics when a reader closes the pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hawfinch", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
