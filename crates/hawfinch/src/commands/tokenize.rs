//! `hawfinch tokenize`: text to token ids.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_model::Config;
use hawfinch_tokenizer::Tokenizer;

use crate::input::{self, escaped};
use crate::model_args::open_checkpoint;
use crate::output::{self, size, thousands};
use crate::progress::Progress;
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `tokenize`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Any bytes can be encoded; they need not be UTF-8. Nothing is stripped or added, a last line
break is part of the text.

Examples:
  hawfinch tokenize --text 'The Eiffel tower'
  hawfinch tokenize book.txt --count
  printf 'a b' | hawfinch tokenize - --json"
)]
pub struct Args {
    /// The text file, or - for standard input
    #[arg(required_unless_present = "text", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// The text itself
    #[arg(long, value_name = "S")]
    text: Option<OsString>,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Use the tokenizer that belongs to this model [default: World]
    #[arg(long, value_name = "MODEL", conflicts_with = "tokenizer")]
    model: Option<PathBuf>,
    /// Print {"ids": [...]}
    #[arg(long)]
    json: bool,
    /// Print only how many ids there are
    #[arg(long, conflicts_with = "json")]
    count: bool,
    /// Print a line for each id: the id and its text
    #[arg(long, conflicts_with_all = ["json", "count"])]
    pieces: bool,
}

/// The tokenizer of `--tokenizer` or `--model`, else World.
pub fn choose(option: &TokenizerOption, model: Option<&PathBuf>) -> anyhow::Result<Tokenizer> {
    if let Some(path) = model {
        let ckpt = open_checkpoint(path)?;
        let vocab = Config::infer(&ckpt)?.vocab;
        return option.for_checkpoint(&ckpt, vocab);
    }
    Ok(option.asked()?.unwrap_or_else(Tokenizer::world))
}

/// Encodes and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tokenizer = choose(&args.tokenizer, args.model.as_ref())?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone().into_encoded_bytes(),
        (None, Some(file)) => input::read(file)?,
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let bar = Progress::time(&format!("encoding {}", size(text.len() as u64)));
    let ids = tokenizer.encode_parallel(&text, 0);
    drop(bar);
    let mut out = output::stdout();
    if args.count {
        writeln!(out, "{}", ids.len())?;
    } else if args.json {
        write!(out, "{{\"ids\": [")?;
        separated(&mut out, &ids, ", ")?;
        writeln!(out, "]}}")?;
    } else if args.pieces {
        for &id in &ids {
            writeln!(out, "{id:>6}  {}", escaped(tokenizer.token_bytes(id).unwrap_or_default()))?;
        }
        writeln!(out, "{} ids, {} bytes", thousands(ids.len() as u64), thousands(text.len() as u64))?;
    } else {
        separated(&mut out, &ids, " ")?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes ids with something between them.
fn separated(out: &mut impl Write, ids: &[u32], between: &str) -> std::io::Result<()> {
    for (i, id) in ids.iter().enumerate() {
        let between = if i == 0 { "" } else { between };
        write!(out, "{between}{id}")?;
    }
    Ok(())
}
