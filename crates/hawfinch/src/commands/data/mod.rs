//! `hawfinch data`: text to data sets of tokens, and what is in them.

mod build;
mod inspect;
mod merge;
pub mod report;
mod vocab;
pub mod watch;

use std::process::ExitCode;

/// Arguments of `data`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "A data set is two files, NAME.bin and NAME.idx, as the reference's make_data.py writes them and
its trainers read them; of conversations NAME.mask.bin and .idx say which tokens are learned.
docs/data.md says more.

Examples:
  hawfinch data build corpus.jsonl -o corpus
  hawfinch data inspect corpus --document 0"
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Make a data set of text, JSONL and compressed files
    Build(Box<build::Args>),
    /// Make one data set of what the shards of a build have done
    Merge(merge::Args),
    /// Show what a data set is and print documents back
    Inspect(inspect::Args),
    /// Make a smaller vocabulary, of the entries that a data set needs most
    Vocab(vocab::Args),
}

/// Runs the action.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Build(args) => build::run(args),
        Action::Merge(args) => merge::run(args),
        Action::Inspect(args) => inspect::run(args),
        Action::Vocab(args) => vocab::run(args),
    }
}
