//! `hawfinch perplexity`: how well a model foretells texts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hawfinch_engine::{Score, score};
use serde_json::json;

use crate::input;
use crate::model_args::ModelOptions;
use crate::output::{self, thousands};
use crate::progress::Progress;
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `perplexity`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each text is read from a fresh state. Of a .jsonl file every line's \"text\" is one, of other files
the whole file, or each line with --lines.

Bits a byte can be compared between models and with compressors (8 is nothing saved); perplexity
and nats a token only between models of one tokenizer. The first token of a text is foretold
after token 0, the end of the text before; with tokenizers that have no such token it is not
counted.

Zeros: the share of the channel mixes' inner values that relu² made zero, for which no weights
need be read.

Examples:
  hawfinch perplexity model.pth book.txt
  hawfinch perplexity demo held-out/*.jsonl
  hawfinch perplexity model.pth --lines sentences.txt --json
  hawfinch perplexity model.pth book.txt --lora adapter.safetensors"
)]
pub struct Args {
    /// A model file or folder (`demo`: the built-in model)
    model: PathBuf,
    /// The texts: files, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Each line is a text
    #[arg(long)]
    lines: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Begin every text at this tuned state (time_state)
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    #[command(flatten)]
    options: ModelOptions,
}

/// Sums over the texts of a file.
#[derive(Clone, Copy, Default)]
struct Sum {
    texts: usize,
    bytes: usize,
    tokens: usize,
    nats: f64,
}

impl Sum {
    fn bits_a_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes.max(1) as f64
    }

    fn nats_a_token(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    fn json(&self, name: &str) -> serde_json::Value {
        json!({
            "file": name,
            "texts": self.texts,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bits_per_byte": self.bits_a_byte(),
            "nats_per_token": self.nats_a_token(),
            "perplexity": self.nats_a_token().exp(),
        })
    }

    fn row(&self, name: &str, longest: usize) -> String {
        format!(
            "{name:<longest$}  {:>7}  {:>12}  {:>12}  {:>9.4}  {:>10.2}\n",
            thousands(self.texts as u64),
            thousands(self.bytes as u64),
            thousands(self.tokens as u64),
            self.bits_a_byte(),
            self.nats_a_token().exp(),
        )
    }
}

/// Texts of a file.
fn texts(path: &Path, lines: bool) -> anyhow::Result<Vec<Vec<u8>>> {
    if lines || path.extension().is_some_and(|e| e == "jsonl") {
        return input::texts(path);
    }
    let text = input::read(path)?;
    anyhow::ensure!(!text.is_empty(), "{} is empty: there is nothing to foretell", path.display());
    Ok(vec![text])
}

/// Scores and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let model = args.options.open_beginning(&args.model, 1, args.state.as_deref())?;
    let tokenizer = args.tokenizer.for_model(&model)?;
    let begin = tokenizer.eos();
    model.ops().count_zeros();
    let mut sums = Vec::new();
    for path in &args.files {
        let name = path.display().to_string();
        let texts = texts(path, args.lines)?;
        let mut sum = Sum { texts: texts.len(), ..Sum::default() };
        let mut ids = Vec::with_capacity(texts.len());
        for text in &texts {
            let mut of: Vec<u32> = begin.into_iter().collect();
            tokenizer.encode_into(text, &mut of);
            // Without a token before it, the first one is not foretold.
            let first =
                if begin.is_none() { of.first().and_then(|&id| tokenizer.token_bytes(id)) } else { None };
            sum.bytes += text.len() - first.map_or(0, <[u8]>::len);
            ids.push(of);
        }
        let mut bar = Progress::count(&name, ids.iter().map(|i| i.len() as u64).sum());
        for Score { tokens, nats } in score(&model, &ids, |tokens| bar.add(tokens as u64))? {
            sum.tokens += tokens;
            sum.nats += nats;
        }
        sums.push((name, sum));
    }
    let mut all = Sum::default();
    for (_, sum) in &sums {
        all.texts += sum.texts;
        all.bytes += sum.bytes;
        all.tokens += sum.tokens;
        all.nats += sum.nats;
    }
    if args.json {
        let files: Vec<_> = sums.iter().map(|(name, sum)| sum.json(name)).collect();
        output::json(&json!({"files": files, "all": all.json("all"), "zeros": model.ops().zeros()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let longest = sums.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(4);
    let mut out = output::stdout();
    let head = format!(
        "{:<longest$}  {:>7}  {:>12}  {:>12}  {:>9}  {:>10}\n",
        "file", "texts", "bytes", "tokens", "bits/byte", "perplexity"
    );
    out.write_all(head.as_bytes())?;
    for (name, sum) in &sums {
        out.write_all(sum.row(name, longest).as_bytes())?;
    }
    if sums.len() > 1 {
        out.write_all(all.row("all", longest).as_bytes())?;
    }
    if let Some(zeros) = model.ops().zeros() {
        writeln!(out, "zeros of the channel mixes: {:.1}%", 100.0 * zeros)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
