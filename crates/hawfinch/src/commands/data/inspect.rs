//! `hawfinch data inspect`: what a data set is, and its documents as text.

use std::io::Write;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_data::binidx::Reader;
use hawfinch_data::sampler::{Sampler, magic_prime};
use hawfinch_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::watch::failed;
use crate::output::{self, Stream, size, thousands};
use crate::tokenizer_args::DataTokenizer;

/// Arguments of `data inspect`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The magic prime is what the reference's trainers want as --magic_prime, beside the number of tokens
as --my_exit_tokens: samples of --context tokens are read in an order that it decides.

Examples:
  hawfinch data inspect corpus
  hawfinch data inspect corpus.bin --context 4096
  hawfinch data inspect corpus --document 100 --count 3"
)]
pub struct Args {
    /// The data set: NAME, NAME.bin or NAME.idx
    #[arg(value_name = "NAME")]
    name: PathBuf,
    /// Print documents, from this one on, counted from 0
    #[arg(long, value_name = "N")]
    document: Option<u64>,
    /// Print so many documents [default: 1 with --document]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Tokens of a training sample, for the magic prime
    #[arg(long, value_name = "N", default_value = "512")]
    context: NonZeroU64,
    #[command(flatten)]
    tokenizer: DataTokenizer,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match show(args) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) => match e.downcast::<hawfinch_data::Error>() {
            Ok(e) => failed(e, None),
            Err(e) => Err(e),
        },
    }
}

fn show(args: &Args) -> anyhow::Result<()> {
    let reader = Reader::open(&args.name)?;
    if args.document.is_none() && args.count.is_none() {
        return facts(args, &reader);
    }
    let tokenizer = args.tokenizer.open()?;
    let first = args.document.unwrap_or(0);
    // The first one must be there; of the others as many as there are.
    reader.span(first)?;
    let last = first.saturating_add(args.count.unwrap_or(1)).min(reader.documents());
    if args.json {
        let all =
            (first..last).map(|n| document_json(&reader, &tokenizer, n)).collect::<Result<Value, _>>()?;
        return output::json(&all);
    }
    let mut out = Stream::new();
    for n in first..last {
        let ids = reader.document(n)?;
        out.write(&format!("── document {}, {} tokens\n", thousands(n), thousands(ids.len() as u64)))?;
        out.write(&text(&tokenizer, &ids))?;
        out.end_line()?;
    }
    Ok(())
}

/// A document's text without the token that ends it.
fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode_lossy(ids.strip_suffix(&[0]).unwrap_or(ids))
}

fn document_json(reader: &Reader, tokenizer: &Tokenizer, n: u64) -> hawfinch_data::Result<Value> {
    let ids = reader.document(n)?;
    Ok(json!({"document": n, "tokens": ids.len(), "text": text(tokenizer, &ids)}))
}

fn facts(args: &Args, reader: &Reader) -> anyhow::Result<()> {
    let (documents, tokens) = (reader.documents(), reader.tokens());
    let (mut shortest, mut longest) = (None::<u64>, 0);
    for n in 0..documents {
        let (_, len) = reader.span(n)?;
        shortest = Some(shortest.map_or(len, |s| s.min(len)));
        longest = longest.max(len);
    }
    let context = args.context.get();
    let prime = magic_prime(tokens, context);
    let fits = Sampler::magic_prime(tokens, context).is_ok();
    if args.json {
        return output::json(&json!({
            "file": reader.path().display().to_string(),
            "dtype": reader.dtype().name(),
            "documents": documents,
            "tokens": tokens,
            "shortest": shortest,
            "longest": longest,
            "context": context,
            "samples": tokens / context,
            "magic_prime": prime,
            "magic_prime_accepted": fits,
        }));
    }
    let mut out = output::stdout();
    let bytes = tokens * reader.dtype().width() as u64;
    writeln!(out, "{}", output::printable(&reader.path().display().to_string()))?;
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<13}{value}");
    line("tokens", format!("{} ({}, {})", thousands(tokens), reader.dtype().name(), size(bytes)))?;
    line("documents", thousands(documents))?;
    if let Some(shortest) = shortest {
        let mean = tokens as f64 / documents as f64;
        line("lengths", format!("{} to {}, mean {mean:.1}", thousands(shortest), thousands(longest)))?;
    }
    line("samples", format!("{} of {context} tokens", thousands(tokens / context)))?;
    let prime = match prime {
        Some(prime) if fits => prime.to_string(),
        Some(prime) => format!("{prime}, which the reference refuses: too few samples"),
        None => "none: too few samples".into(),
    };
    line("magic prime", prime)?;
    Ok(out.flush()?)
}
