//! `hawfinch data build`: sources to a data set.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;
use hawfinch_data::{
    BadLines, HeldOut, Inputs, Invalid, Kind, LossOn, Mixing, Plan, Policy, Reading, Shard, Source, Split,
    build,
};

use super::report;
use super::watch::{failed, watched};
use crate::fail::usage;
use crate::model_args::check_environment;
use crate::output::{self, note};
use crate::tokenizer_args::DataTokenizer;

/// Arguments of `data build`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "A SOURCE is [LABEL=]PATH[:WEIGHT]. PATH is a file, a folder with all files below it, a pattern
such as 'wiki/*.jsonl.gz', or - for standard input. LABEL is what its documents count as in the
summary, for example a language [default: each file's name up to its first dot]. With a WEIGHT for
each source, whole documents are repeated or left out until the shares of tokens are the weights'.

Files named .jsonl and .ndjson hold a JSON object a line: `text`, chat `messages` (`conversations`),
or instruction fields, written as --template says, by default `User: …`, a blank line,
`Assistant: …`. So do rows of Parquet files. Others are text. gzip and Zstandard are unpacked,
whatever the name. Each document is followed by token 0.

Of conversations and instructions a model is to learn what the assistant says and where it stops, no
word of the others: NAME.mask.bin and .idx say so for each token, and `train` heeds them. Plain text
is learned whole. --loss-on all learns everything; then there is no mask.

Work is done in parts, kept in NAME.parts until the data set is complete: what was stopped goes on
where it ended when the same command is given again. With --shard only that share is done, and
`hawfinch data merge` makes the data set of all. Threads, shards and interruptions change no byte.

Examples:
  hawfinch data build corpus.jsonl -o corpus
  hawfinch data build chats.jsonl -o chats --template g1-think --held-out 1%
  hawfinch data build en=wiki/en:70% world=wiki/other:15% code='src/**/*.rs':15% -o mixed --dedup
  zstdcat pile.jsonl.zst | hawfinch data build - -o pile --held-out 0.1%
  hawfinch data build 'web/*.jsonl.zst' -o web --shard 2/8
  srun -n 64 hawfinch data build 'web/*.jsonl.zst' -o web --shard auto"
)]
pub struct Args {
    // (As a doc comment this would be a link.)
    #[arg(
        value_name = "SOURCE",
        required_unless_present = "sources",
        help = "What to read: [LABEL=]PATH[:WEIGHT]"
    )]
    source: Vec<String>,
    /// A file with a SOURCE a line; lines that begin with # are left out
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,
    /// The data set to write: NAME.bin and NAME.idx, with NAME.mask.bin and .idx if not all is learned
    #[arg(long, short, value_name = "NAME")]
    out: PathBuf,
    /// What the files hold [default: by their names, and .json and standard input by their first line]
    #[arg(long, value_name = "KIND")]
    format: Option<Format>,
    /// How text is divided into documents: a file is one, a line is one, or blank lines divide them
    #[arg(long, value_name = "HOW", default_value = "none")]
    split: SplitBy,
    /// Take this field of each JSON object and no other
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// How conversations are written: world, g1, g1-think, raven, pile, instruct, completion …, as `chat --template` reads them
    #[arg(long, value_name = "NAME", default_value = "world")]
    template: String,
    /// What is learned of conversations: the assistant's words, or all
    #[arg(long, value_name = "WHAT", default_value = "assistant")]
    loss_on: Loss,
    #[command(flatten)]
    tokenizer: DataTokenizer,
    /// Leave out documents of fewer tokens
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_tokens: u64,
    /// Leave out documents of more tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Leave out all but the first of documents with the same text
    #[arg(long)]
    dedup: bool,
    /// Put some documents, chosen by their text alone, into NAME.held-out: a share such as 1%, or so many texts
    #[arg(long, value_name = "N%|N", value_parser = held_out)]
    held_out: Option<HeldOut>,
    /// Tokens to write, about: sources are repeated or cut, each by its share [default: as many as there are]
    #[arg(long, value_name = "N")]
    tokens: Option<NonZeroU64>,
    /// Shuffle the documents [seed if none is given: 0]
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "0", require_equals = true)]
    shuffle: Option<u64>,
    /// Text that is not UTF-8: put U+FFFD in its place, leave the document out, or end with an error
    #[arg(long, value_name = "WHAT", default_value = "replace")]
    invalid_utf8: InvalidText,
    /// Lines that are no JSON document: end with an error, or leave them out
    #[arg(long, value_name = "WHAT", default_value = "fail")]
    bad_lines: Bad,
    /// Do only this share of the work, I of N; auto: that of this task of Slurm or rank of mpirun
    #[arg(long, value_name = "I/N|auto", value_parser = shard)]
    shard: Option<Shard>,
    /// Threads that tokenise [default: HAWFINCH_THREADS, or as many as the machine has]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace the data set if it exists, and begin anew where NAME.parts is of other files or settings
    #[arg(long, short)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Bytes of a part
    #[arg(long, hide = true, value_name = "BYTES")]
    part_bytes: Option<u64>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Format {
    Text,
    Jsonl,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum SplitBy {
    None,
    Lines,
    BlankLines,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Loss {
    Assistant,
    All,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum InvalidText {
    Replace,
    Skip,
    Fail,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Bad {
    Fail,
    Skip,
}

fn shard(text: &str) -> hawfinch_data::Result<Shard> {
    match text {
        "auto" => Shard::of_environment(|name| std::env::var(name).ok()),
        _ => Shard::parse(text),
    }
}

fn held_out(text: &str) -> Result<HeldOut, String> {
    let share = text.strip_suffix('%').map(|p| p.parse().map(|p: f64| HeldOut::Share(p / 100.0)).ok());
    let parsed = share.unwrap_or_else(|| text.parse().ok().map(HeldOut::Texts));
    parsed.ok_or_else(|| "write a share such as 1%, or a number of texts".into())
}

impl Args {
    fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let mut texts = self.source.clone();
        if let Some(path) = &self.sources {
            let list = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the list of sources {}", path.display()))?;
            let lines = list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
            texts.extend(lines.map(str::to_owned));
        }
        texts.iter().map(|text| Source::parse(text).map_err(|e| usage(e.to_string()))).collect()
    }

    fn reading(&self) -> Reading {
        let split = match self.split {
            SplitBy::None => Split::None,
            SplitBy::Lines => Split::Lines,
            SplitBy::BlankLines => Split::BlankLines,
        };
        let default = Reading::default();
        Reading {
            split,
            field: self.field.clone(),
            min_tokens: self.min_tokens,
            max_tokens: self.max_tokens,
            template: self.template.clone(),
            loss_on: match self.loss_on {
                Loss::Assistant => LossOn::Assistant,
                Loss::All => LossOn::All,
            },
            part_bytes: self.part_bytes.unwrap_or(default.part_bytes),
        }
    }

    fn policy(&self) -> Policy {
        let invalid = match self.invalid_utf8 {
            InvalidText::Replace => Invalid::Replace,
            InvalidText::Skip => Invalid::Skip,
            InvalidText::Fail => Invalid::Fail,
        };
        let bad_lines = match self.bad_lines {
            Bad::Fail => BadLines::Fail,
            Bad::Skip => BadLines::Skip,
        };
        Policy { invalid, bad_lines }
    }
}

/// Builds, or does a shard's share.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_environment()?;
    let kind = args.format.map(|format| match format {
        Format::Text => Kind::Text,
        Format::Jsonl => Kind::Jsonl,
    });
    let tokenizer = args.tokenizer.open()?;
    let mixing = Mixing {
        dedup: args.dedup,
        held_out: args.held_out,
        tokens: args.tokens.map(NonZeroU64::get),
        shuffle: args.shuffle,
    };
    let plan = Inputs::find(&args.sources()?, kind)
        .and_then(|inputs| Plan::new(inputs, &tokenizer, args.reading(), mixing));
    let plan = match plan {
        Ok(plan) => plan,
        Err(e) => return failed(e, None),
    };
    let files = build::files(&plan, &args.out);
    for file in &files {
        output::not_over(file, plan.inputs.files.iter().map(|f| &f.path))?;
        match args.shard {
            Some(_) => output::can_be_file(file)?,
            None => output::may_write(file, args.force)?,
        }
    }
    let work = build::work_folder(&args.out);
    let kept = (!plan.inputs.reads_stdin()).then_some(work.as_path());
    let (shard, began) = (args.shard.unwrap_or(Shard::WHOLE), Instant::now());
    let done = watched(args.threads, |control| {
        build::tokenise_shard(&plan, &args.out, shard, args.policy(), args.force, &tokenizer, control)?;
        if args.shard.is_some() { Ok(None) } else { build::finish(&plan, &args.out, control).map(Some) }
    });
    let seconds = began.elapsed().as_secs_f64();
    match done {
        Ok(Some(summary)) if args.json => output::json(&report::json(&summary, &args.out, seconds))?,
        Ok(Some(summary)) => note(report::text(&summary, &args.out, seconds).trim_end()),
        Ok(None) if args.json => output::json(&serde_json::json!({
            "shard": shard.number,
            "of": shard.of,
            "parts": work.display().to_string(),
            "seconds": seconds,
        }))?,
        Ok(None) => note(format_args!(
            "shard {} of {} is done, in {}: when all are, `hawfinch data merge {} … -o NAME` makes the data set",
            shard.number,
            shard.of,
            work.display(),
            work.display()
        )),
        Err(e) => return failed(e, kept),
    }
    Ok(ExitCode::SUCCESS)
}
