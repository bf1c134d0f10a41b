//! `hawfinch generate --input`: many prompts as one ragged batch.

use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Context, bail};
use hawfinch_engine::{
    BatchRequest, Event, GenerateOptions, Sampled, Sampler, SamplerConfig, StopRules, generate_batch,
};
use hawfinch_model::State;
use serde_json::{Value, json};

use super::generate::{Args, Setup, report};
use crate::input;
use crate::output::{self, Sink, note};
use crate::progress::Progress;
use crate::runner::Runner;

/// One line of the input.
struct Line {
    id: Value,
    prompt: String,
    prompt_tokens: usize,
    config: SamplerConfig,
    options: GenerateOptions,
}

/// Runs all lines and writes a result for each, in order.
pub fn run(args: &Args, setup: &Setup) -> anyhow::Result<ExitCode> {
    let path = args.input.as_ref().context("--input is given")?;
    let text = String::from_utf8(input::read(path)?).map_err(|e| {
        anyhow::anyhow!("{} is not UTF-8 at byte {}", path.display(), e.utf8_error().valid_up_to())
    })?;
    let mut lines = Vec::new();
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
    let mut out = Sink::open(args.output.as_deref())?;
    let start = args.state.load(&setup.model)?;
    let mut seeds = Vec::new();
    let mut requests: Vec<BatchRequest<State>> = Vec::new();
    for line in &mut lines {
        let sampler = Sampler::new(line.config.clone(), setup.uncounted.clone())?;
        seeds.push(sampler.seed());
        let tokens = setup.tokenizer.encode(line.prompt.as_bytes());
        line.prompt_tokens = tokens.len();
        requests.push(BatchRequest {
            tokens,
            state: Some(start.clone()),
            sampler,
            options: line.options.clone(),
        });
    }
    let runner = Runner::new(&setup.model);
    let at_most: u64 = lines.iter().map(|l| l.options.max_tokens as u64).sum();
    let mut bar = Progress::count("generating (tokens at most)", at_most);
    let mut sampled: Vec<Vec<Sampled>> = vec![Vec::new(); lines.len()];
    let results = generate_batch(&runner, &setup.tokenizer, requests, args.batch.into(), |i, event| {
        if let Event::Token(s) = event {
            bar.add(1);
            if args.logprobs.is_some() {
                sampled[i].push(s.clone());
            }
        }
        ControlFlow::Continue(())
    })?;
    drop(bar);
    let mut failed = 0;
    for (i, (line, result)) in lines.iter().zip(&results).enumerate() {
        let mut said = match result {
            Ok(g) => {
                let logprobs = args.logprobs.map(|_| &sampled[i][..]);
                report(&setup.tokenizer, g, line.prompt_tokens, seeds[i], logprobs)
            }
            Err(e) => {
                failed += 1;
                json!({"error": e.to_string()})
            }
        };
        said["index"] = json!(i);
        said["prompt"] = json!(line.prompt);
        if !line.id.is_null() {
            said["id"] = line.id.clone();
        }
        out.line(said)?;
    }
    out.complete()?;
    if args.stats {
        let t = runner.take_timing();
        note(format_args!("[read {}, wrote {}]", t.read.shown(), t.written.shown()));
    }
    if failed > 0 {
        bail!("{failed} of {} prompts failed: see \"error\" in their lines", results.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a line: its own keys, and sampling settings that take the place of the command line's.
fn parse(line: &str, args: &Args, setup: &Setup) -> anyhow::Result<Line> {
    let mut json: Value = serde_json::from_str(line).context("not valid JSON")?;
    let Some(object) = json.as_object_mut() else {
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
            stops.strings = serde_json::from_value(v).context("\"stop\" is a text or a list of texts")?
        }
    }
    if let Some(v) = object.remove("stop_tokens") {
        let ids: Vec<u32> = serde_json::from_value(v).context("\"stop_tokens\" is a list of ids")?;
        stops.tokens.extend(ids);
    }
    if object.remove("greedy") == Some(Value::Bool(true)) {
        let greedy = serde_json::to_value(SamplerConfig::greedy())?;
        for (key, value) in greedy.as_object().into_iter().flatten() {
            if key != "seed" && key != "top_logprobs" {
                object.entry(key).or_insert(value.clone());
            }
        }
    }
    let mut config = serde_json::to_value(&setup.config)?;
    for (key, value) in std::mem::take(object) {
        config[if key == "typical" { "typical_p" } else { &key }] = value;
    }
    let config: SamplerConfig = serde_json::from_value(config)?;
    config.validate()?;
    let options = GenerateOptions { max_tokens, stops };
    Ok(Line { id, prompt, prompt_tokens: 0, config, options })
}
