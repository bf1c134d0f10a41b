//! `hawfinch detokenize`: token ids to text, byte for byte.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::tokenize::choose;
use crate::fail::usage;
use crate::tokenizer_args::TokenizerOption;
use crate::{ids, input, output};

/// Arguments of `detokenize`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Ids are numbers apart by commas or blanks, a JSON list, or what `tokenize --json` prints.
The bytes come out exactly as they are, without a line break at the end; they need not be UTF-8.

Examples:
  hawfinch detokenize 33155 40213
  hawfinch tokenize book.txt --json | hawfinch detokenize > same.txt"
)]
pub struct Args {
    /// Token ids; without any they are read from standard input
    ids: Vec<String>,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Use the tokenizer that belongs to this model [default: World]
    #[arg(long, value_name = "MODEL", conflicts_with = "tokenizer")]
    model: Option<PathBuf>,
}

/// Decodes and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let from_stdin = args.ids.is_empty() || args.ids == ["-"];
    let ids = if from_stdin {
        let text =
            String::from_utf8(input::stdin()?).ok().context("the ids on standard input are not text")?;
        ids::parse(&text)?
    } else {
        ids::parse(&args.ids.join(" ")).map_err(|e| usage(e.to_string()))?
    };
    let bytes = choose(&args.tokenizer, args.model.as_ref())?.decode(&ids)?;
    let mut out = output::stdout();
    out.write_all(&bytes)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
