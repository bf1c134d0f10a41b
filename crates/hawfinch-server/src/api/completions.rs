//! `/v1/completions`: texts that go on, their log-probabilities, prompts included.

use crate::app::{Client, Shared};
use crate::body::Body;
use crate::conversation::compiled;
use crate::error::{ApiError, ApiResult};
use crate::generation::{Starting, frame, in_parts, sse};
use crate::hosted::{Chosen, now};
use crate::reply::{Ending, Usage, finish_reason, finite, timings, token_text};
use crate::run::{Job, aside, fresh_id};
use crate::sampling::{
    Guided, OfVllm, OneOrMany, ResponseFormat, Sampling, StreamOptions, choices, grammar, include_usage,
    refuse, stops,
};
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt};
use hawfinch_engine::schedule::{Constrained, Event};
use hawfinch_engine::{Sampled, SamplerConfig, StopReason, StopRules};
use hawfinch_tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;

use super::chat::fingerprint;

/// Tokens and log-probabilities of prompts that are given back at most.
const MAX_ECHO: usize = 4 << 20;
/// Prompts of a request at most.
const MAX_PROMPTS: usize = 256;

/// One prompt or several, as text or as tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Prompts {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// The tokens of one prompt.
    Tokens(Vec<u32>),
    /// The tokens of several.
    TokenLists(Vec<Vec<u32>>),
}

impl Prompts {
    /// The tokens of each.
    pub fn encoded(&self, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
        match self {
            Prompts::Text(text) => vec![tokenizer.encode(text.as_bytes())],
            Prompts::Texts(texts) => texts.iter().map(|t| tokenizer.encode(t.as_bytes())).collect(),
            Prompts::Tokens(tokens) => vec![tokens.clone()],
            Prompts::TokenLists(lists) => lists.clone(),
        }
    }
}

/// A request of a completion.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct CompletionRequest {
    /// The model, or `model+adapter`.
    pub model: String,
    /// What goes on; the empty text without one.
    pub prompt: Option<Prompts>,
    /// How tokens are drawn.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Grammars as vLLM's API names them.
    #[serde(flatten)]
    pub guided: Guided,
    /// Other fields of vLLM's API.
    #[serde(flatten)]
    pub of_vllm: OfVllm,
    /// What the completion must be (beyond OpenAI's).
    pub response_format: Option<ResponseFormat>,
    /// Send it as it grows.
    pub stream: Option<bool>,
    /// What a stream tells besides.
    pub stream_options: Option<StreamOptions>,
    /// Tokens of a choice at most (default 16).
    pub max_tokens: Option<u64>,
    /// Choices of each prompt.
    #[schemars(range(min = 1, max = 64))]
    pub n: Option<u32>,
    /// Choices that are made, of which the `n` most probable (a token) are given.
    #[schemars(range(min = 1, max = 64))]
    pub best_of: Option<u32>,
    /// Texts that end a completion.
    pub stop: Option<OneOrMany>,
    /// Tell log-probabilities, and those of so many tokens beside each.
    #[schemars(range(min = 0, max = 20))]
    pub logprobs: Option<u32>,
    /// Give the prompt, too.
    pub echo: Option<bool>,
    /// Who asks: users take turns.
    pub user: Option<String>,
    /// A saved state to go on from.
    pub state: Option<String>,
    /// Whether known states are used and new ones kept (default true).
    pub cache: Option<bool>,
    /// Not here.
    pub suffix: Option<String>,
}

/// One prompt's choices under way.
struct Running {
    starting: Starting,
    /// Its tokens, and whether they are given back.
    prompt: Vec<u32>,
    prompt_logprobs: Vec<Sampled>,
    ending: Ending,
    choices: Vec<Text>,
    over: bool,
}

/// A choice.
#[derive(Debug, Clone, Default)]
struct Text {
    text: String,
    tokens: VecDeque<Sampled>,
    /// Bytes of tokens that were told already.
    bytes: usize,
    completion_tokens: usize,
    finish: Option<&'static str>,
    /// The token that ended it.
    last: Option<Sampled>,
    sum: f64,
}

impl Text {
    /// Takes the tokens whose text is certain, all at the end.
    fn certain(&mut self, tokenizer: &Tokenizer, certain: usize) -> Vec<Sampled> {
        let mut out = Vec::new();
        while let Some(t) = self.tokens.front() {
            let end = self.bytes + tokenizer.token_bytes(t.id).map_or(0, <[u8]>::len);
            if end > certain {
                break;
            }
            self.bytes = end;
            out.extend(self.tokens.pop_front());
        }
        out
    }
}

/// What a prompt's choices make known.
enum Told {
    /// A choice's text and its tokens.
    More(usize, String, Vec<Sampled>),
    /// It ended, with the stop token if there was one.
    Ended(usize),
    /// All of the prompt's choices did.
    Over,
}

impl Running {
    async fn next(&mut self, tokenizer: &Tokenizer) -> ApiResult<Told> {
        loop {
            let event = self.starting.next().await?;
            if self.ending.note(&event) {
                self.over = true;
                return Ok(Told::Over);
            }
            match event {
                Event::Prompt(told) => self.prompt_logprobs.extend(told),
                Event::Piece { choice, tokens, text, certain } => {
                    let c = &mut self.choices[choice];
                    c.completion_tokens += tokens.len();
                    c.sum += tokens.iter().map(|t| f64::from(t.logprob)).sum::<f64>();
                    c.tokens.extend(tokens);
                    return Ok(Told::More(choice, text, c.certain(tokenizer, certain)));
                }
                Event::Done { choice, stop, stop_token, .. } => {
                    let c = &mut self.choices[choice];
                    c.finish = Some(finish_reason(&stop));
                    c.sum += stop_token.as_ref().map_or(0.0, |t| f64::from(t.logprob));
                    c.last = stop_token;
                    if !matches!(stop, StopReason::StopString(_)) {
                        // What was held back is text after all; it came with the last piece.
                        c.bytes = usize::MAX / 2;
                    }
                    return Ok(Told::Ended(choice));
                }
                Event::Failed(e) => return Err(e.into()),
                Event::Begun { .. } | Event::End(_) => {}
            }
        }
    }
}

/// What is asked for, checked.
struct Wanted {
    id: String,
    created: u64,
    chosen: Chosen,
    n: usize,
    echo: bool,
    logprobs: Option<usize>,
    include_usage: bool,
}

/// The handler.
pub async fn complete(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    Body(r): Body<CompletionRequest>,
) -> ApiResult<Response> {
    let suffix = r.suffix.as_ref().is_some_and(|s| !s.is_empty());
    refuse(&[("suffix", suffix, "the model writes forward only, so it cannot fill in before a given end")])?;
    let n = choices(r.n, "n")? as usize;
    let best_of = choices(r.best_of.or(r.n), "best_of")? as usize;
    let stream = r.stream.unwrap_or(false);
    let include_usage = include_usage(r.stream_options.as_ref(), stream)?;
    if best_of < n {
        return Err(ApiError::field(
            "best_of",
            format!("best_of is {best_of}: it must not be below n ({n})"),
        ));
    }
    if best_of > n && stream {
        return Err(ApiError::field(
            "best_of",
            "the best are known at the end only: best_of cannot be streamed",
        ));
    }
    let top = r.logprobs.unwrap_or(0);
    if top > 20 {
        return Err(ApiError::field("logprobs", format!("logprobs is {top}: it must be between 0 and 20")));
    }
    let mut chosen = app.models.find(&r.model)?;
    let vocab = chosen.hosted.model.config().vocab;
    let mut stop_tokens = r.of_vllm.stop_tokens(vocab)?;
    let tokenizer = chosen.hosted.tokenizer.clone();
    let prompts = r.prompt.unwrap_or_else(|| Prompts::Text(String::new()));
    let mut prompts = aside(move || Ok(prompts.encoded(&tokenizer))).await?;
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let message = format!("there are {} prompts: between 1 and {MAX_PROMPTS} are taken", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    // All are right before the first is computed.
    if let Some(&id) = prompts.iter().flatten().find(|&&id| id as usize >= vocab) {
        return Err(hawfinch_engine::Error::TokenRange { id, vocab }.into());
    }
    if best_of * prompts.len() > 4 * app.models.limits().width.max(64) {
        return Err(ApiError::field(
            "n",
            "prompts times choices are more than this server runs for one request",
        ));
    }
    if let Some(id) = &r.state {
        for prompt in &mut prompts {
            super::states::go_on_from(&mut chosen, id, prompt, &mut []).await?;
        }
    }
    let echo = r.echo.unwrap_or(false);
    prompts.iter().for_each(|p| app.log_text(|| chosen.hosted.tokenizer.decode_lossy(p)));
    // What is given back of the prompts is given with each choice.
    let told =
        prompts.iter().map(Vec::len).sum::<usize>() * n * (1 + r.logprobs.map_or(0, |top| 1 + top as usize));
    if echo && told > MAX_ECHO {
        let message = "the prompts times the choices and log-probabilities are more than one answer can hold";
        return Err(ApiError::field("echo", message));
    }
    let mut sampler = r.sampling.over(&SamplerConfig::default(), vocab)?;
    sampler.top_logprobs = if r.logprobs.is_some() { top } else { 0 };
    let deadline = app.deadline();
    let constrained = match grammar(r.response_format.as_ref(), &r.guided)? {
        None => None,
        Some(grammar) => {
            let constraint = compiled(&chosen.hosted, grammar, false, deadline).await?;
            Some(Constrained { constraint, after: None })
        }
    };
    stop_tokens.extend(chosen.hosted.tokenizer.eos());
    let stops = StopRules { strings: stops(r.stop)?, tokens: stop_tokens };
    let who = client.with_user(r.user.as_deref());
    let kept = prompts.clone();
    let mut jobs = Vec::new();
    for (i, prompt) in prompts.into_iter().enumerate() {
        // Each prompt has its own random numbers, the same as it would have alone and first.
        let sampler = match sampler.seed {
            Some(seed) => {
                SamplerConfig { seed: Some(seed.wrapping_add((i * best_of) as u64)), ..sampler.clone() }
            }
            None => sampler.clone(),
        };
        jobs.push(Job {
            chosen: chosen.clone(),
            prompt,
            marks: Vec::new(),
            sampler,
            n: best_of,
            max_tokens: app.max_tokens(r.max_tokens.or(Some(16))),
            stops: stops.clone(),
            constrained: constrained.clone(),
            prompt_logprobs: (echo && r.logprobs.is_some()).then_some(1),
            who: who.clone(),
            deadline,
            cached: r.cache.unwrap_or(true),
        });
    }
    let all = in_parts(jobs, app.models.limits()).await?;
    let running = all.into_iter().zip(kept).map(|(starting, prompt)| Running {
        starting,
        prompt,
        prompt_logprobs: Vec::new(),
        ending: Ending::default(),
        choices: vec![Text::default(); best_of],
        over: false,
    });
    let running: Vec<Running> = running.collect();
    let wanted = Wanted {
        id: fresh_id("cmpl-"),
        created: now(),
        n,
        echo,
        logprobs: r.logprobs.map(|n| n as usize),
        include_usage,
        chosen,
    };
    if stream { Ok(streamed(wanted, running)) } else { whole(wanted, running).await }
}

impl Wanted {
    fn tokenizer(&self) -> &Tokenizer {
        &self.chosen.hosted.tokenizer
    }

    /// The prompt's text and entries of its log-probabilities, where it is given back.
    fn echoed(&self, run: &Running) -> (String, LogProbs) {
        let mut entries = LogProbs::default();
        if !self.echo {
            return (String::new(), entries);
        }
        if self.logprobs.is_some() {
            for (i, &id) in run.prompt.iter().enumerate() {
                // Nothing foretells the first.
                let told = i.checked_sub(1).and_then(|i| run.prompt_logprobs.get(i));
                entries.push(self.tokenizer(), id, told, self.logprobs.unwrap_or(0));
            }
        }
        (self.tokenizer().decode_lossy(&run.prompt), entries)
    }

    fn head(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.chosen.id,
            "system_fingerprint": fingerprint(&self.chosen.base.root),
            "choices": choices,
        })
    }

    fn usage(&self, running: &[Running]) -> Usage {
        let sum = |f: &dyn Fn(&Running) -> usize| running.iter().map(f).sum();
        let written = |r: &Running| r.choices.iter().map(|c| c.completion_tokens).sum();
        Usage::new(sum(&|r| r.ending.prompt), sum(&|r| r.ending.cached), sum(&written), 0)
    }
}

/// Columns of `logprobs` in completions.
#[derive(Debug, Default)]
struct LogProbs {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
    /// Characters so far.
    chars: usize,
}

impl LogProbs {
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, told: Option<&Sampled>, top: usize) {
        let text = token_text(tokenizer, id);
        self.offsets.push(self.chars);
        // Characters that begin in it: one that spans tokens counts once.
        let begins = |b: &&u8| **b & 0xc0 != 0x80;
        self.chars += tokenizer.token_bytes(id).unwrap_or_default().iter().filter(begins).count();
        self.logprobs.push(told.map_or(Value::Null, |t| json!(finite(t.logprob))));
        let best = |t: &Sampled| -> Value {
            let mut map = serde_json::Map::new();
            for &(id, logprob) in t.top.iter().take(top) {
                map.entry(token_text(tokenizer, id)).or_insert_with(|| json!(finite(logprob)));
            }
            // The token itself, also when it is not among the best.
            map.entry(text.clone()).or_insert_with(|| json!(finite(t.logprob)));
            map.into()
        };
        self.top.push(told.map_or(Value::Null, best));
        self.tokens.push(text);
    }

    fn value(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}

/// Reads a prompt's choices to their end; gives their tokens.
async fn read(run: &mut Running, tokenizer: &Tokenizer) -> ApiResult<Vec<Vec<Sampled>>> {
    let mut kept: Vec<Vec<Sampled>> = vec![Vec::new(); run.choices.len()];
    while !run.over {
        match run.next(tokenizer).await? {
            Told::More(i, text, tokens) => {
                run.choices[i].text.push_str(&text);
                kept[i].extend(tokens);
            }
            Told::Ended(i) => {
                if run.choices[i].bytes == usize::MAX / 2 {
                    kept[i].extend(run.choices[i].tokens.drain(..));
                }
                kept[i].extend(run.choices[i].last.clone());
            }
            Told::Over => {}
        }
    }
    Ok(kept)
}

async fn whole(wanted: Wanted, mut running: Vec<Running>) -> ApiResult<Response> {
    let (mut all, mut index) = (Vec::new(), 0);
    // All at once: those that wait for a place are submitted when another is seen to leave the queue.
    let kept = try_join_all(running.iter_mut().map(|run| read(run, wanted.tokenizer()))).await?;
    for (run, kept) in running.iter_mut().zip(kept) {
        let mut order: Vec<usize> = (0..run.choices.len()).collect();
        if order.len() > wanted.n {
            // The token that ended it counts: an ending at once is no certain thing.
            let count = |c: &Text| c.completion_tokens + usize::from(c.last.is_some());
            let mean = |i: &usize| run.choices[*i].sum / count(&run.choices[*i]).max(1) as f64;
            order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            order.truncate(wanted.n);
        }
        for i in order {
            let (mut text, mut entries) = wanted.echoed(run);
            text.push_str(&run.choices[i].text);
            for t in &kept[i] {
                entries.push(wanted.tokenizer(), t.id, Some(t), wanted.logprobs.unwrap_or(0));
            }
            all.push(json!({
                "text": text,
                "index": index,
                "logprobs": wanted.logprobs.map(|_| entries.value()),
                "finish_reason": run.choices[i].finish,
            }));
            index += 1;
        }
    }
    let mut body = wanted.head(all);
    body["usage"] = json!(wanted.usage(&running));
    if let [one] = &running[..] {
        body["timings"] = timings(&one.ending.timings);
    }
    Ok(Json(body).into_response())
}

fn streamed(wanted: Wanted, running: Vec<Running>) -> Response {
    struct Streaming {
        wanted: Wanted,
        running: Vec<Running>,
        /// Characters told of each choice, for offsets; the prompt was given back.
        told: Vec<Vec<(usize, bool)>>,
        ready: VecDeque<Frame>,
        over: bool,
    }
    let told = running.iter().map(|r| vec![(0, false); r.choices.len()]).collect();
    let state = Streaming { wanted, running, told, ready: VecDeque::new(), over: false };
    let frames = stream::unfold(state, |mut s| async move {
        loop {
            if let Some(frame) = s.ready.pop_front() {
                return Some((Ok(frame), s));
            }
            if s.over {
                return None;
            }
            if s.running.iter().all(|r| r.over) {
                s.over = true;
                if s.wanted.include_usage {
                    let mut last = s.wanted.head(Vec::new());
                    last["usage"] = json!(s.wanted.usage(&s.running));
                    if let [one] = &s.running[..] {
                        last["timings"] = timings(&one.ending.timings);
                    }
                    s.ready.push_back(frame(&last));
                }
                s.ready.push_back(Frame::default().data("[DONE]"));
                continue;
            }
            let tokenizer = s.wanted.tokenizer().clone();
            let mut next: stream::FuturesUnordered<_> = s
                .running
                .iter_mut()
                .enumerate()
                .filter(|(_, r)| !r.over)
                .map(|(i, r)| {
                    let tokenizer = &tokenizer;
                    async move { (i, r.next(tokenizer).await) }
                })
                .collect();
            let Some((p, told)) = next.next().await else { continue };
            drop(next);
            let (i, mut text, tokens, finish) = match told {
                Err(e) => {
                    s.over = true;
                    s.ready.push_back(frame(&e.body()));
                    continue;
                }
                Ok(Told::Over) => continue,
                Ok(Told::More(i, text, tokens)) => (i, text, tokens, None),
                Ok(Told::Ended(i)) => {
                    let c = &mut s.running[p].choices[i];
                    let mut rest: Vec<Sampled> = Vec::new();
                    if c.bytes == usize::MAX / 2 {
                        rest.extend(c.tokens.drain(..));
                    }
                    rest.extend(c.last.clone());
                    (i, String::new(), rest, c.finish)
                }
            };
            let mut entries = LogProbs::default();
            if !std::mem::replace(&mut s.told[p][i].1, true) {
                let (prompt, before) = s.wanted.echoed(&s.running[p]);
                text.insert_str(0, &prompt);
                entries = before;
            }
            entries.chars += s.told[p][i].0;
            for t in &tokens {
                entries.push(s.wanted.tokenizer(), t.id, Some(t), s.wanted.logprobs.unwrap_or(0));
            }
            s.told[p][i].0 = entries.chars;
            if text.is_empty() && tokens.is_empty() && finish.is_none() {
                continue;
            }
            let n = s.running[p].choices.len();
            let choice = json!({
                "text": text,
                "index": p * n + i,
                "logprobs": s.wanted.logprobs.map(|_| entries.value()),
                "finish_reason": finish,
            });
            let mut chunk = s.wanted.head(vec![choice]);
            if s.wanted.include_usage {
                chunk["usage"] = Value::Null;
            }
            s.ready.push_back(frame(&chunk));
        }
    });
    sse(frames)
}
