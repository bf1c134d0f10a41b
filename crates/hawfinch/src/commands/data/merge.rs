//! `hawfinch data merge`: the shards of a build to one data set.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use hawfinch_data::build;

use super::report;
use super::watch::{failed, watched};
use crate::output::{self, note};

/// Arguments of `data merge`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Give the NAME.parts of every shard, or the one folder if all wrote into it. The data set is byte
for byte what one build without --shard makes. The folders are kept: delete them when it is there.

Examples:
  hawfinch data merge web.parts -o web
  hawfinch data merge a/web.parts b/web.parts c/web.parts -o web"
)]
pub struct Args {
    /// The work folders of all shards
    #[arg(value_name = "PARTS", required = true)]
    folders: Vec<PathBuf>,
    /// The data set to write: NAME.bin and NAME.idx, with NAME.mask.bin and .idx if not all is learned
    #[arg(long, short, value_name = "NAME")]
    out: PathBuf,
    /// Replace the data set if it exists
    #[arg(long, short)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Merges.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = match build::plan_of(&args.folders) {
        Ok(plan) => plan,
        Err(e) => return failed(e, None),
    };
    for file in build::files(&plan, &args.out) {
        output::may_write(&file, args.force)?;
    }
    let began = Instant::now();
    let merged = watched(None, |control| build::merge(&plan, &args.folders, &args.out, control));
    let seconds = began.elapsed().as_secs_f64();
    match merged {
        Ok(summary) if args.json => output::json(&report::json(&summary, &args.out, seconds))?,
        Ok(summary) => note(report::text(&summary, &args.out, seconds).trim_end()),
        Err(e) => return failed(e, None),
    }
    Ok(ExitCode::SUCCESS)
}
