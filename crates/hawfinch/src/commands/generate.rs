//! `hawfinch generate`: text that goes on from a prompt; many prompts as one batch.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use hawfinch_engine::{
    Event, GenerateOptions, Generation, Sampled, Sampler, SamplerConfig, Session, Speculation, StopReason,
};
use hawfinch_engine::{StopRules, Uncounted};
use hawfinch_model::Model;
use hawfinch_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::generate_batch;
use crate::built_in::{self, DEMO};
use crate::fail::usage;
use crate::input;
use crate::model_args::{ModelOptions, StateOptions};
use crate::output::{self, Stream, note};
use crate::runner::{Runner, catch_up};
use crate::sampler_args::SamplerOptions;
use crate::signal;
use crate::speculate_args::SpeculateOptions;
use crate::system::stdout;
use crate::tokenizer_args::TokenizerOption;

/// Arguments of `generate`.
#[derive(clap::Args, Debug, Default)]
#[command(
    after_help = "Without a prompt the text begins at nothing: the model reads token 0, the end of a document, after
which any text may begin. A prompt is taken as it is, byte for byte; it need not be UTF-8.

--input takes one JSON object a line: \"prompt\" (an empty one begins at nothing), and optionally
\"id\", \"max_tokens\", \"stop\", \"stop_tokens\" and any sampling option by its name with _ for -
(\"seed\", \"top_p\" …; \"logit_bias\" as in {\"261\": -1.5, \"0\": \"-inf\"}). All run as one batch;
results come in the order of the lines, each the same as it would be alone, as soon as those before
it are finished. Ctrl-C ends the batch and keeps all that is finished (\"index\" names the line).

Examples:
  hawfinch generate model.pth 'The Eiffel tower is'
  hawfinch generate model.pth --prompt-file story.txt --max-tokens 500 --seed 1
  hawfinch generate model.pth --prompt-file code.py --speculate ngram
  git diff | hawfinch generate model.pth - --temperature 0
  hawfinch generate model.pth --input prompts.jsonl -o answers.jsonl"
)]
pub struct Args {
    /// A model file or folder; without one, or for `demo`, the built-in one
    model: Option<PathBuf>,
    /// The prompt, or - to read it from standard input
    #[arg(conflicts_with_all = ["prompt_file", "input"])]
    prompt: Option<OsString>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    prompt_file: Option<PathBuf>,
    /// Read many prompts, one JSON object a line, and run them as one batch
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["echo", "to"])]
    pub(super) input: Option<PathBuf>,
    /// With --input: write the results to this file
    #[arg(long, short, value_name = "FILE", requires = "input")]
    pub(super) output: Option<PathBuf>,
    /// With --input: sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) batch: u16,
    /// Stop after so many tokens
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    pub(super) max_tokens: usize,
    /// Stop before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Stop at this token besides the end of the document (repeatable)
    #[arg(long, value_name = "ID")]
    stop_token: Vec<u32>,
    /// Do not stop where the model ends the document
    #[arg(long)]
    ignore_eos: bool,
    /// Print the prompt before the text
    #[arg(long, conflicts_with = "json")]
    echo: bool,
    /// Print one JSON object: text, tokens, why it stopped
    #[arg(long)]
    json: bool,
    /// With --json or --input: log-probability of each token, and of the N most probable ones at its place
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=128))]
    pub(super) logprobs: Option<u32>,
    /// Print token counts and speed on standard error
    #[arg(long)]
    pub(super) stats: bool,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    #[command(flatten)]
    pub(super) sampler: SamplerOptions,
    #[command(flatten)]
    speculate: SpeculateOptions,
    #[command(flatten)]
    options: ModelOptions,
    #[command(flatten)]
    pub(super) state: StateOptions,
}

/// What a command that generates works with.
pub(super) struct Setup {
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub config: SamplerConfig,
    pub uncounted: Uncounted,
    pub stops: StopRules,
}

impl Setup {
    /// Refuses ids that the model has no row for.
    pub fn check_ids<'a>(&self, option: &str, ids: impl IntoIterator<Item = &'a u32>) -> anyhow::Result<()> {
        let vocab = self.model.config().vocab;
        match ids.into_iter().find(|&&id| id as usize >= vocab) {
            Some(id) => bail!("{option} {id} is out of range: the model's vocabulary has {vocab} entries"),
            None => Ok(()),
        }
    }
}

impl Args {
    fn setup(&self) -> anyhow::Result<Setup> {
        let defaults = SamplerConfig { top_logprobs: self.logprobs.unwrap_or(0), ..SamplerConfig::default() };
        let config = self.sampler.over(defaults)?;
        // clap would ask for it, but not beside a prompt, which --input excludes.
        if self.output.is_some() && self.input.is_none() {
            return Err(usage("--output is for the results of --input: send the text to a file with > FILE"));
        }
        if self.logprobs.is_some() && !self.json && self.input.is_none() {
            return Err(usage("--logprobs needs --json (or --input, which always writes JSON)"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(usage("--stop must not be empty: it would stop before the first character"));
        }
        let sequences = if self.input.is_some() { usize::from(self.batch) } else { 1 };
        let model = self.options.open_for(self.model.as_deref().unwrap_or(Path::new(DEMO)), sequences)?;
        let tokenizer = self.tokenizer.for_model(&model)?;
        let uncounted = Uncounted::from_texts(tokenizer.vocab_size(), |id| tokenizer.token_bytes(id));
        let mut stops = GenerateOptions::new(self.max_tokens, &tokenizer).stops;
        if self.ignore_eos {
            stops.tokens.clear();
        }
        stops.tokens.extend(&self.stop_token);
        stops.strings.clone_from(&self.stop);
        let setup = Setup { model, tokenizer, config, uncounted, stops };
        setup.check_ids("--stop-token", &self.stop_token).map_err(|e| usage(e.to_string()))?;
        setup.check_ids("--logit-bias", setup.config.logit_bias.keys()).map_err(|e| usage(e.to_string()))?;
        Ok(setup)
    }

    /// The prompt's bytes; `None` when there is none.
    fn prompt(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let bytes = match (&self.prompt, &self.prompt_file) {
            (Some(p), _) if p == "-" => input::stdin()?,
            (Some(p), _) => p.clone().into_encoded_bytes(),
            (None, Some(file)) => input::read(file)?,
            (None, None) => return Ok(None),
        };
        if bytes.is_empty() {
            return Err(usage(
                "the prompt is empty: give some text, or no prompt at all to begin at nothing",
            ));
        }
        Ok(Some(bytes))
    }
}

/// Generates.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let prompt = args.prompt()?;
    if prompt.is_none() && args.input.is_none() && args.state.is_given() {
        return Err(usage("--state needs a prompt to go on with"));
    }
    if args.input.is_some() && args.speculate.is_given() {
        return Err(usage(
            "--speculate is for one text: with --input many texts share a step, which reads the weights once already",
        ));
    }
    let setup = args.setup()?;
    if args.model.is_none() {
        note(DEMO_NOTE);
    }
    if args.input.is_some() {
        return generate_batch::run(args, &setup);
    }
    one(args, &setup, prompt)
}

/// `hawfinch` with no argument: what a new user sees first.
pub fn first_run() -> anyhow::Result<ExitCode> {
    note(DEMO_NOTE);
    let args = Args { max_tokens: 40, batch: 1, echo: true, ..Args::default() };
    let mut setup = args.setup()?;
    // A model of this size is surest near what it finds most probable.
    (setup.config.temperature, setup.config.top_p) = (0.8, 0.7);
    for beginning in built_in::BEGINNINGS {
        note("");
        let code = one(&args, &setup, Some(beginning.as_bytes().to_vec()))?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    note(
        "\nNext: `hawfinch chat` and `hawfinch generate \"Your text\"` use this model too; `hawfinch pull --list` shows\nlarger ones to fetch, `hawfinch train recipes/tiny.toml` trains one, `hawfinch --help` lists all commands.",
    );
    Ok(ExitCode::SUCCESS)
}

pub(super) const DEMO_NOTE: &str = "This is the built-in model: a few million parameters, trained on two cores to continue texts, not to answer.";

fn one(args: &Args, setup: &Setup, prompt: Option<Vec<u8>>) -> anyhow::Result<ExitCode> {
    signal::catch(1);
    let Setup { model, tokenizer, .. } = setup;
    let runner = Runner::new(model);
    let sampler = Sampler::new(setup.config.clone(), setup.uncounted.clone())?;
    let seed = sampler.seed();
    let mut session = Session::with_state(&runner, tokenizer.clone(), sampler, args.state.load(model)?);
    if let Some(guessing) = args.speculate.open(&args.options, model)? {
        guessing.files.iter().try_for_each(|f| args.state.not_to(Some(f)))?;
        session.speculation = Some(guessing.speculation);
    }
    let speculates = session.speculation.is_some();
    let tokens = prompt.as_ref().map_or_else(Vec::new, |p| tokenizer.encode(p));
    let mut stream = Stream::new();
    if args.echo
        && let Some(p) = &prompt
    {
        stream.write(&String::from_utf8_lossy(p))?;
    }
    if let Err(e) = session.feed_tokens(&tokens) {
        if signal::pressed() {
            return Ok(ExitCode::from(signal::INTERRUPTED));
        }
        return Err(e.into());
    }
    let options = GenerateOptions { max_tokens: args.max_tokens, stops: setup.stops.clone() };
    if args.json || stdout::is_file() {
        // Nobody sees the text grow.
        runner.begin_bar("writing (tokens at most)", args.max_tokens as u64);
    }
    let mut failed = None;
    let mut top = Vec::new();
    let generation = session.generate(&options, |event| {
        if speculates && matches!(event, Event::Token(_)) {
            runner.count_written(1);
        }
        match event {
            Event::Token(sampled) if args.logprobs.is_some() => top.push(sampled.clone()),
            Event::Text(text) if !args.json => {
                if let Err(e) = stream.write(text) {
                    failed = Some(e);
                    return ControlFlow::Break(());
                }
            }
            _ => {}
        }
        if signal::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    runner.end_bar();
    if let Some(e) = failed {
        return Err(e.into());
    }
    if args.json {
        let logprobs = args.logprobs.map(|_| &top[..]);
        let mut said = report(tokenizer, &generation, tokens.len(), seed, logprobs);
        said["prompt"] = json!(String::from_utf8_lossy(&prompt.unwrap_or_default()));
        output::json(&said)?;
    } else {
        stream.end_line()?;
    }
    if args.stats {
        let guesses = session.speculation.as_mut().map(Speculation::take_statistics);
        let timing = runner.take_timing().speculated(guesses);
        note(format_args!("[{}, {}, seed {seed}]", timing.shown(), stop_words(&generation.stop)));
    }
    let interrupted = signal::pressed();
    if args.state.is_saved() {
        signal::clear();
        catch_up(&mut session)?;
        args.state.save(model, &session.position().state)?;
    }
    Ok(if interrupted { ExitCode::from(signal::INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Why a reply ended, for a person.
pub(super) fn stop_words(stop: &StopReason) -> String {
    match stop {
        StopReason::StopString(s) => format!("stopped before {}", input::escaped(s.as_bytes())),
        StopReason::StopToken(id) => format!("stopped at token {id}"),
        StopReason::EndOfDocument => "the document ended".into(),
        StopReason::MaxTokens => "as many tokens as asked for".into(),
        StopReason::Cancelled => "interrupted".into(),
        StopReason::Complete => "its grammar is complete".into(),
        StopReason::TimedOut => "its time was over".into(),
    }
}

/// What was generated, for a program.
pub(super) fn report(
    tokenizer: &Tokenizer,
    generation: &Generation,
    prompt_tokens: usize,
    seed: u64,
    logprobs: Option<&[Sampled]>,
) -> Value {
    let by = match &generation.stop {
        StopReason::StopString(s) => json!(s),
        StopReason::StopToken(id) => json!(id),
        _ => Value::Null,
    };
    let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
    let mut said = json!({
        "prompt": Value::Null,
        "text": generation.text,
        "tokens": generation.tokens,
        "finish": generation.stop.name(),
        "stopped_by": by,
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generation.tokens.len(),
        "seed": seed,
    });
    if let Some(all) = logprobs {
        said["logprobs"] = all
            .iter()
            .map(|s| {
                let top: Vec<Value> =
                    s.top.iter().map(|&(id, p)| json!({"id": id, "text": text(id), "logprob": p})).collect();
                json!({"id": s.id, "text": text(s.id), "logprob": s.logprob, "top": top})
            })
            .collect();
    }
    said
}
