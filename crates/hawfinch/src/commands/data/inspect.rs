//! `hawfinch data inspect`: what a data set is, and its documents as text.

use std::io::Write;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_data::Mask;
use hawfinch_data::binidx::Reader;
use hawfinch_data::sampler::{Sampler, magic_prime};
use hawfinch_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::report::share;
use super::watch::failed;
use crate::output::{self, Stream, size, thousands};
use crate::tokenizer_args::DataTokenizer;

/// Arguments of `data inspect`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The magic prime is what the reference's trainers want as --magic_prime, beside the number of tokens
as --my_exit_tokens: samples of --context tokens are read in an order that it decides.

With a mask beside the data set, what is not learned is dim in a terminal; elsewhere, and with
--marks, what is learned stands between ⟦ and ⟧.

Examples:
  hawfinch data inspect corpus
  hawfinch data inspect corpus.bin --context 4096
  hawfinch data inspect corpus --document 100 --count 3
  hawfinch data inspect chats --document 0 --marks"
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
    /// Put ⟦ and ⟧ around what is learned, in a terminal too
    #[arg(long)]
    marks: bool,
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
    let mask = Mask::open(&reader)?;
    if args.document.is_none() && args.count.is_none() {
        return facts(args, &reader, mask.as_ref());
    }
    let tokenizer = args.tokenizer.open()?;
    let first = args.document.unwrap_or(0);
    // The first one must be there; of the others as many as there are.
    reader.span(first)?;
    let last = first.saturating_add(args.count.unwrap_or(1)).min(reader.documents());
    let documents = (first..last).map(|n| Document::read(&reader, mask.as_ref(), &tokenizer, n));
    if args.json {
        let all = documents.map(|d| d.map(|d| d.json())).collect::<Result<Value, _>>()?;
        return output::json(&all);
    }
    let mut out = Stream::new();
    let dim = output::colors() && !args.marks;
    for document in documents {
        let document = document?;
        let (n, tokens) = (thousands(document.number), thousands(document.tokens));
        out.write(&format!("── document {n}, {tokens} tokens{}\n", document.learned()))?;
        for (learned, text) in &document.parts {
            match learned {
                Some(false) if dim => {
                    out.control("\x1b[2m")?;
                    out.write(text)?;
                    out.control("\x1b[22m")?;
                }
                Some(true) if !dim => out.write(&format!("⟦{text}⟧"))?,
                _ => out.write(text)?,
            }
        }
        out.end_line()?;
    }
    Ok(())
}

/// A document without the token that ends it, in parts that are learned and parts that are not.
struct Document {
    number: u64,
    tokens: u64,
    /// Whether a part is learned, where there is a mask, and its text.
    parts: Vec<(Option<bool>, String)>,
    /// Tokens that are learned, and whether the one that ends the document is among them.
    mask: Option<(u64, bool)>,
}

impl Document {
    fn read(
        reader: &Reader,
        mask: Option<&Mask>,
        tokenizer: &Tokenizer,
        number: u64,
    ) -> hawfinch_data::Result<Document> {
        let (start, tokens) = reader.span(number)?;
        let ids = reader.document(number)?;
        let text = ids.strip_suffix(&[0]).unwrap_or(&ids);
        let Some(mask) = mask else {
            let parts = vec![(None, tokenizer.decode_lossy(text))];
            return Ok(Document { number, tokens, parts, mask: None });
        };
        let mut learned = Vec::new();
        mask.read(start, tokens, &mut learned)?;
        let mut parts = Vec::new();
        let mut at = 0;
        for run in learned[..text.len()].chunk_by(|a, b| a == b) {
            parts.push((Some(run[0]), tokenizer.decode_lossy(&text[at..at + run.len()])));
            at += run.len();
        }
        let end = learned.len() > text.len() && learned[text.len()];
        let count = learned.iter().filter(|l| **l).count() as u64;
        Ok(Document { number, tokens, parts, mask: Some((count, end)) })
    }

    /// What of it is learned, as the end of a sentence.
    fn learned(&self) -> String {
        match self.mask {
            None => String::new(),
            Some((n, true)) => format!(", {} learned, with the end", thousands(n)),
            Some((n, false)) => format!(", {} learned", thousands(n)),
        }
    }

    fn json(&self) -> Value {
        let text: String = self.parts.iter().map(|(_, text)| &**text).collect();
        let mut json = json!({"document": self.number, "tokens": self.tokens, "text": text});
        if let Some((learned, end)) = self.mask {
            let part = |(learned, text): &(Option<bool>, String)| json!({"learned": learned, "text": text});
            json["learned"] = json!(learned);
            json["learned_end"] = json!(end);
            json["parts"] = self.parts.iter().map(part).collect();
        }
        json
    }
}

fn facts(args: &Args, reader: &Reader, mask: Option<&Mask>) -> anyhow::Result<()> {
    let (documents, tokens) = (reader.documents(), reader.tokens());
    let (mut shortest, mut longest) = (None::<u64>, 0);
    for n in 0..documents {
        let (_, len) = reader.span(n)?;
        shortest = Some(shortest.map_or(len, |s| s.min(len)));
        longest = longest.max(len);
    }
    let learned = mask.map(Mask::count).transpose()?;
    let context = args.context.get();
    let prime = magic_prime(tokens, context);
    let fits = Sampler::magic_prime(tokens, context).is_ok();
    if args.json {
        return output::json(&json!({
            "file": reader.path().display().to_string(),
            "dtype": reader.dtype().name(),
            "documents": documents,
            "tokens": tokens,
            "learned": learned,
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
    if let Some(learned) = learned {
        line("learned", format!("{} ({})", thousands(learned), share(learned, tokens)))?;
    }
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
