//! `hawfinch data vocab`: a vocabulary cut to what a data set needs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use hawfinch_data::binidx::Reader;
use hawfinch_tokenizer::{Tokenizer, World};

use super::watch::failed;
use crate::fail::usage;
use crate::output::{self, note, thousands};
use crate::progress::Progress;
use crate::tokenizer_args::DataTokenizer;

/// Arguments of `data vocab`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "A small model spends most of its weights on a large vocabulary. The new one holds the 256 single bytes
and the entries that save most tokens in the data set, in a file of the World vocabulary's form. Give
it to `data build` and `train` as --tokenizer FILE: models trained with it carry it, so that no other
command needs the file.

Examples:
  hawfinch data build corpus.jsonl -o corpus
  hawfinch data vocab corpus --size 8192 -o vocab.txt
  hawfinch data build corpus.jsonl --tokenizer vocab.txt -o small"
)]
pub struct Args {
    /// The data set: NAME, NAME.bin or NAME.idx
    #[arg(value_name = "NAME")]
    name: PathBuf,
    /// Ids of the new vocabulary, with 0 (end of text): at least 257
    #[arg(long, value_name = "N")]
    size: usize,
    /// The vocabulary file to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    tokenizer: DataTokenizer,
    /// Threads that count [default: as many as the machine has]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Replace the file if it exists
    #[arg(long, short)]
    force: bool,
}

/// Why no vocabulary was made.
enum Problem {
    Tokenizer(hawfinch_tokenizer::Error),
    Data(hawfinch_data::Error),
    Ids(anyhow::Error),
}

impl From<hawfinch_tokenizer::Error> for Problem {
    fn from(e: hawfinch_tokenizer::Error) -> Self {
        Problem::Tokenizer(e)
    }
}

/// Cuts and writes.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    output::may_write(&args.out, args.force)?;
    let reader = match Reader::open(&args.name) {
        Ok(reader) => reader,
        Err(e) => return failed(e, None),
    };
    let Tokenizer::World(world) = args.tokenizer.open()? else {
        return Err(usage("only a World vocabulary can be cut"));
    };
    let (mut bytes, mut rounds) = (0u64, 0);
    let cut = world.cut(args.size, args.threads.map_or(0, |n| n.get()), |text| {
        rounds += 1;
        bytes = 0;
        let mut bar = Progress::count(&format!("round {rounds}"), reader.documents());
        each_document(&reader, &world, |n, document| {
            bytes += document.len() as u64;
            text(document);
            bar.set(n);
        })
    });
    let cut = match cut {
        Ok(cut) => cut,
        Err(Problem::Tokenizer(e)) => return Err(usage(e.to_string())),
        Err(Problem::Data(e)) => return failed(e, None),
        Err(Problem::Ids(e)) => return Err(e),
    };
    std::fs::write(&args.out, cut.to_vocabulary())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let mut tokens = 0;
    let counted = each_document(&reader, &world, |_, document| tokens += cut.encode(&document).len() as u64);
    counted.unwrap_or_else(|_: Problem| unreachable!("every document was read before"));
    let per = |tokens: u64| bytes as f64 / tokens.max(1) as f64;
    let before = reader.tokens() - reader.documents();
    note(format_args!(
        "wrote {}: {} ids where {} had {}; {:.2} bytes a token where it had {:.2}",
        args.out.display(),
        thousands(cut.vocab_size() as u64),
        args.name.display(),
        thousands(world.vocab_size() as u64),
        per(tokens),
        per(before),
    ));
    Ok(ExitCode::SUCCESS)
}

/// Calls `each` with the number of a document, counted from 1, and its bytes.
fn each_document(reader: &Reader, world: &World, mut each: impl FnMut(u64, Vec<u8>)) -> Result<(), Problem> {
    for n in 0..reader.documents() {
        let mut ids = reader.document(n).map_err(Problem::Data)?;
        ids.retain(|&id| id != 0);
        let bytes = world.decode(&ids).map_err(|e| {
            Problem::Ids(anyhow::anyhow!(
                "{}, document {n}: {e}: it was made with another vocabulary",
                reader.path().display()
            ))
        })?;
        each(n + 1, bytes);
    }
    Ok(())
}
