//! `hawfinch generate --input`: many prompts as one ragged batch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Context, bail};
use hawfinch_engine::{
    BatchRequest, Event, GenerateOptions, Generation, Sampled, Sampler, SamplerConfig, StopReason, StopRules,
    generate_batch_each,
};
use serde_json::{Value, json};

use super::generate::{Args, Setup, report};
use crate::input;
use crate::output::{self, Sink, note};
use crate::runner::Runner;
use crate::sampler_args::SETTINGS;
use crate::signal;

/// One line of the input.
struct Line {
    id: Value,
    prompt: String,
    prompt_tokens: usize,
    config: SamplerConfig,
    options: GenerateOptions,
}

/// Runs all lines and writes a result for each, in order, as soon as it and those before it are finished. Ctrl-C ends
/// it with all that are finished written.
pub fn run(args: &Args, setup: &Setup) -> anyhow::Result<ExitCode> {
    let path = args.input.as_ref().context("--input is given")?;
    let text = String::from_utf8(input::read(path)?).map_err(|e| {
        anyhow::anyhow!("{} is not UTF-8 at byte {}", path.display(), e.utf8_error().valid_up_to())
    })?;
    let mut lines = Vec::new();
    // Some editors begin a file with a mark of its encoding.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let read = parse(line, args, setup).with_context(|| format!("{} line {}", path.display(), n + 1))?;
        lines.push(read);
    }
    // Before the work, so that a place that cannot be written is known at once.
    if let Some(out) = &args.output {
        output::not_over(out, setup.model.checkpoint().files.iter().chain(&args.input))?;
        args.state.apart_from(out)?;
    }
    args.state.not_to(args.input.as_deref())?;
    if lines.is_empty() {
        note(format_args!("{} holds no prompts: there is nothing to generate", path.display()));
    }
    // Looked at after every token: what is finished is then written. The next press ends the program.
    signal::catch(1);
    let out = Sink::open(args.output.as_deref())?;
    let start = args.state.load(&setup.model)?;
    let (mut seeds, mut waiting) = (Vec::new(), Vec::new());
    for line in &mut lines {
        let sampler = Sampler::new(line.config.clone(), setup.uncounted.clone())?;
        seeds.push(sampler.seed());
        let tokens = setup.tokenizer.encode(line.prompt.as_bytes());
        line.prompt_tokens = tokens.len();
        waiting.push((tokens, sampler, line.options.clone()));
    }
    // Each state is made when its sequence begins: there may be many more lines than run at once.
    let requests = waiting.into_iter().map(|(tokens, sampler, options)| BatchRequest {
        tokens,
        state: Some(start.clone()),
        sampler,
        options,
    });
    let runner = Runner::new(&setup.model);
    let tokens = |l: &Line| (l.prompt_tokens as u64).saturating_add(l.options.max_tokens as u64);
    let at_most = lines.iter().map(tokens).fold(0, u64::saturating_add);
    runner.begin_bar("reading and writing (tokens at most)", at_most);
    let mut sampled: Vec<Vec<Sampled>> = vec![Vec::new(); lines.len()];
    let mut results = Results::new(out);
    let mut unwritten = None;
    let sampled = RefCell::new(&mut sampled);
    let ended = generate_batch_each(
        &runner,
        &setup.tokenizer,
        requests,
        args.batch.into(),
        |i, event| {
            if let Event::Token(s) = event
                && args.logprobs.is_some()
            {
                sampled.borrow_mut()[i].push(s.clone());
            }
            if signal::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
        |i, result| {
            if let Ok(Generation { stop: StopReason::Cancelled, .. }) = result {
                return ControlFlow::Break(());
            }
            let line = &lines[i];
            let top = std::mem::take(&mut sampled.borrow_mut()[i]);
            let mut said = match &result {
                Ok(g) => {
                    let logprobs = args.logprobs.map(|_| &top[..]);
                    report(&setup.tokenizer, g, line.prompt_tokens, seeds[i], logprobs)
                }
                Err(e) => json!({"error": e.to_string()}),
            };
            said["index"] = json!(i);
            said["prompt"] = json!(line.prompt);
            if !line.id.is_null() {
                said["id"] = line.id.clone();
            }
            match runner.aside(|| results.add(i, said, result.is_err())) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    unwritten = Some(e);
                    ControlFlow::Break(())
                }
            }
        },
    );
    runner.end_bar();
    if let Some(e) = unwritten {
        return Err(results.kept_at(e));
    }
    let (written, failed) = results.complete()?;
    if args.stats {
        note(format_args!("[{}]", runner.take_timing().shown()));
    }
    let total = lines.len();
    if signal::pressed() && written < total {
        note(format_args!(
            "interrupted: {written} of {total} results are written, \"index\" tells of which lines"
        ));
        return Ok(ExitCode::from(signal::INTERRUPTED));
    }
    ended.with_context(|| format!("{written} of {total} results are written, then it failed"))?;
    if failed > 0 {
        bail!("{failed} of {total} prompts failed: see \"error\" in their lines");
    }
    Ok(ExitCode::SUCCESS)
}

/// Where results go: in the order of their lines, each as soon as those before it are there.
struct Results {
    out: Sink,
    /// The line whose result comes next.
    next: usize,
    /// Results that wait for those before them.
    waiting: BTreeMap<usize, Value>,
    written: usize,
    failed: usize,
}

impl Results {
    fn new(mut out: Sink) -> Results {
        if let Sink::File(file) = &mut out {
            // Hours of work, perhaps: what is there outlives whatever happens.
            file.keep();
        }
        Results { out, next: 0, waiting: BTreeMap::new(), written: 0, failed: 0 }
    }

    fn add(&mut self, index: usize, said: Value, failed: bool) -> std::io::Result<()> {
        self.failed += usize::from(failed);
        self.waiting.insert(index, said);
        if index != self.next {
            return Ok(());
        }
        while let Some(said) = self.waiting.remove(&self.next) {
            self.out.line(said)?;
            self.next += 1;
            self.written += 1;
        }
        self.out.flush()
    }

    /// Writes what still waits and ends the output: how many results were written and how many of them are errors.
    fn complete(mut self) -> anyhow::Result<(usize, usize)> {
        let rest = std::mem::take(&mut self.waiting);
        for (_, said) in rest {
            if let Err(e) = self.out.line(said) {
                return Err(self.kept_at(e));
            }
            self.written += 1;
        }
        let counts = (self.written, self.failed);
        self.out.complete()?;
        Ok(counts)
    }

    /// Why writing ended, and where the results are that were written.
    fn kept_at(&self, e: std::io::Error) -> anyhow::Error {
        match &self.out {
            Sink::Stdout(_) => e.into(),
            Sink::File(file) => {
                let place = file.beside().map_or_else(String::new, |p| {
                    format!(" (the {} results before are in {})", self.next, p.display())
                });
                anyhow::Error::from(e).context(format!("cannot write the results{place}"))
            }
        }
    }
}

/// Reads a line: its own keys, and sampling settings that take the place of the command line's.
fn parse(line: &str, args: &Args, setup: &Setup) -> anyhow::Result<Line> {
    let json: Value = serde_json::from_str(line).context("not valid JSON")?;
    let Value::Object(mut object) = json else {
        bail!("a line is a JSON object with \"prompt\"");
    };
    let Some(Value::String(prompt)) = object.remove("prompt") else {
        bail!("there is no \"prompt\" that is a text");
    };
    let id = object.remove("id").unwrap_or_default();
    let max_tokens = match object.remove("max_tokens") {
        None => args.max_tokens,
        Some(v) => {
            v.as_u64().and_then(|n| usize::try_from(n).ok()).context("\"max_tokens\" is no whole number")?
        }
    };
    let mut stops: StopRules = setup.stops.clone();
    match object.remove("stop") {
        None => {}
        Some(Value::String(s)) => stops.strings = vec![s],
        Some(v) => {
            stops.strings = serde_json::from_value(v).ok().context("\"stop\" is a text or a list of texts")?
        }
    }
    if stops.strings.iter().any(String::is_empty) {
        bail!("\"stop\" must not be empty: it would stop before the first character");
    }
    if let Some(v) = object.remove("stop_tokens") {
        let ids: Vec<u32> =
            serde_json::from_value(v).ok().context("\"stop_tokens\" is a list of token ids")?;
        setup.check_ids("\"stop_tokens\"", &ids)?;
        stops.tokens.extend(ids);
    }
    let greedy = match object.remove("greedy") {
        None => false,
        Some(v) => v.as_bool().context("\"greedy\" is true or false")?,
    };
    let config = settings(&setup.config, greedy, object)?;
    config.validate()?;
    setup.check_ids("\"logit_bias\"", config.logit_bias.keys())?;
    let options = GenerateOptions { max_tokens, stops };
    Ok(Line { id, prompt, prompt_tokens: 0, config, options })
}

/// The command line's settings with those of a line in their place.
fn settings(
    base: &SamplerConfig,
    greedy: bool,
    object: serde_json::Map<String, Value>,
) -> anyhow::Result<SamplerConfig> {
    let mut config = base.clone();
    if greedy {
        let SamplerConfig { logit_bias, top_logprobs, seed, .. } = config;
        config = SamplerConfig { logit_bias, top_logprobs, seed, ..SamplerConfig::greedy() };
    }
    for (key, value) in object {
        // As the command line has it, and as the library has it.
        let parts = match key.as_str() {
            "typical" => ("typical_p", None),
            "mirostat_tau" => ("mirostat", Some("tau")),
            "mirostat_eta" => ("mirostat", Some("eta")),
            other => (other, None),
        };
        let mut json = serde_json::to_value(&config)?;
        match parts {
            (name, _) if json.get(name).is_none() => bail!(
                "there is no setting {key:?}: a line takes prompt, id, max_tokens, stop, stop_tokens, greedy, \
                 logit_bias, {}",
                SETTINGS.replace('-', "_")
            ),
            (name, None) => json[name] = value,
            (name, Some(part)) => {
                if json[name].is_null() {
                    json[name] = serde_json::json!({});
                }
                json[name][part] = value;
            }
        }
        // serde does not say which setting it read; its words are of the kind `invalid type: string "x", expected f32`.
        config = serde_json::from_value(json).map_err(|e| anyhow::anyhow!("{key:?} cannot be that: {e}"))?;
    }
    Ok(config)
}
