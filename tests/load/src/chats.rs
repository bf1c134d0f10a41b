//! Many conversations at once, each of several turns, streamed.

use crate::Options;
use crate::http::{Client, Streamed};
use crate::process::{Watch, cores, mb, processor, resident};
use crate::words::{Random, first_model, only_words};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A pause in a stream that a reader notices.
const STALL: Duration = Duration::from_secs(2);
/// Errors kept in words.
const SHOWN: usize = 5;

const INSTRUCTIONS: &str = "You answer in plain words. Do not repeat the question, do not apologise, and say so when you do not know.";

#[derive(Debug, Default)]
struct Seen {
    streams: u64,
    conversations: u64,
    first: Vec<f64>,
    gaps: Vec<f64>,
    stalls: u64,
    /// Tokens of replies, all, and those that came before the end of the time.
    tokens: u64,
    in_time: f64,
    prompt: u64,
    cached: u64,
    computed: u64,
    errors: u64,
    messages: Vec<String>,
}

impl Seen {
    fn stream(&mut self, s: &Streamed, until: Instant) {
        self.streams += 1;
        let tokens = s.usage("completion_tokens");
        self.tokens += tokens;
        // Several tokens may come as one part: what came in time is counted by the share of parts.
        let parts = s.times.iter().filter(|t| **t <= until).count() as f64 / s.times.len().max(1) as f64;
        self.in_time += tokens as f64 * parts;
        self.prompt += s.usage("prompt_tokens");
        self.cached += s.cached();
        self.computed += s.computed();
        if let Some(first) = s.first() {
            self.first.push(first.as_secs_f64());
        }
        let gap = s.longest_gap();
        self.gaps.push(gap.as_secs_f64());
        self.stalls += s.times.windows(2).filter(|w| w[1] - w[0] > STALL).count() as u64;
    }

    fn error(&mut self, message: String) {
        self.errors += 1;
        if self.messages.len() < SHOWN {
            self.messages.push(message);
        }
    }
}

/// Runs it; false when a stream failed or stalled.
pub async fn run(o: &Options) -> Result<(bool, Value), String> {
    let server = o.server()?;
    let model = match &o.model {
        Some(model) => model.clone(),
        None => first_model(&server).await?,
    };
    let bias = if o.words { only_words(&server, &model).await? } else { Value::Null };
    let (at_start, watch) = match o.pid {
        Some(pid) => (resident(pid)?, Some(Watch::new(pid))),
        None => (0, None),
    };
    let server_before = o.pid.and_then(|pid| processor(&pid.to_string()));
    let own_before = processor("self").unwrap_or(0.0);
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(o.seconds);
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut tasks = Vec::new();
    for worker in 0..o.concurrency {
        let (o, server, model, bias, seen) =
            (o.clone(), server.clone(), model.clone(), bias.clone(), seen.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let mut client = Client::new(server);
            let mut number = worker;
            while Instant::now() < until {
                conversation(&o, &mut client, &model, &bias, number, until, &seen).await;
                number += o.concurrency;
            }
        }));
    }
    tokio::time::sleep_until(until.into()).await;
    // Until the end of the time: afterwards streams run out, one by one.
    let own = processor("self").unwrap_or(0.0) - own_before;
    let of_server = o.pid.and_then(|pid| Some(processor(&pid.to_string())? - server_before?));
    for task in tasks {
        task.await.map_err(|e| format!("a worker broke: {e}"))?;
    }
    let seen = Rc::into_inner(seen).ok_or("a worker still runs")?.into_inner();
    let ok = seen.errors == 0 && seen.stalls == 0 && seen.streams > 0;
    let wall = o.seconds * cores();
    let mut result = json!({
        "load": "chats", "ok": ok, "model": model, "concurrency": o.concurrency, "seconds": o.seconds,
        "conversations": seen.conversations, "streams": seen.streams, "errors": seen.errors, "error_messages": seen.messages,
        "tokens": seen.tokens, "tokens_per_second": round(seen.in_time / o.seconds, 10.0),
        "prompt_tokens": seen.prompt, "cached_tokens": seen.cached, "computed_prompt_tokens": seen.computed,
        "cached_share": round(seen.cached as f64 / (seen.prompt as f64).max(1.0), 1e4),
        "first_token_seconds": spread(seen.first), "longest_gap_seconds": spread(seen.gaps), "stalls_over_2_s": seen.stalls,
        "client_cpu_share": round(own / wall, 1e4),
    });
    if let (Some(pid), Some(watch)) = (o.pid, watch) {
        let end = resident(pid)?;
        result["server_rss_mb"] =
            json!({"start": mb(at_start), "max": mb(watch.most().max(end)), "end": mb(end)});
        result["server_cpu_share"] = json!(of_server.map(|s| round(s / wall, 1e4)));
    }
    Ok((ok, result))
}

async fn conversation(
    o: &Options,
    client: &mut Client,
    model: &str,
    bias: &Value,
    number: u64,
    until: Instant,
    seen: &RefCell<Seen>,
) {
    let mut random = Random::new(o.seed.wrapping_mul(1_000_003).wrapping_add(number));
    let mut messages = vec![json!({"role": "system", "content": INSTRUCTIONS})];
    let turns = random.between(3, 7);
    for turn in 0..turns {
        if Instant::now() >= until {
            return;
        }
        let words = random.between(8, 40);
        let text = format!("Conversation {number}, question {turn}: {}?", random.words(words));
        messages.push(json!({"role": "user", "content": text}));
        let mut body = json!({
            "model": model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
            // Of different lengths, or all would end and begin at the same times.
            "max_tokens": random.between(o.max_tokens.div_ceil(2), o.max_tokens), "seed": number,
        });
        if !bias.is_null() {
            body["logit_bias"] = bias.clone();
        }
        match client.chat(&body).await {
            Ok(streamed) => {
                seen.borrow_mut().stream(&streamed, until);
                messages.push(json!({"role": "assistant", "content": streamed.text}));
            }
            Err(e) => {
                seen.borrow_mut().error(e);
                // A server that is gone is not asked a thousand times a second.
                tokio::time::sleep(Duration::from_millis(500)).await;
                return;
            }
        }
    }
    seen.borrow_mut().conversations += 1;
}

/// Rounded to one part in `parts`.
pub fn round(x: f64, parts: f64) -> f64 {
    (x * parts).round() / parts
}

/// Median, 95th percentile and greatest.
pub fn spread(mut all: Vec<f64>) -> Value {
    all.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (share * all.len() as f64).ceil() as usize;
        all.get(rank.saturating_sub(1)).map(|x| round(*x, 1e4))
    };
    json!({"p50": at(0.5), "p95": at(0.95), "max": at(1.0)})
}
