//! The next turn of a long conversation, with its state known and without.

use crate::Options;
use crate::chats::round;
use crate::http::Client;
use crate::words::{Random, first_model, only_words};
use serde_json::{Value, json};

/// Tokens that the conversation has at least.
const TOKENS: u64 = 2000;
/// How much sooner the first token must come.
const RATIO: f64 = 20.0;

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Runs it; false when the ratio is too small or a text differs.
pub async fn run(o: &Options) -> Result<(bool, Value), String> {
    let server = o.server()?;
    let mut client = Client::new(server.clone());
    let model = match &o.model {
        Some(model) => model.clone(),
        None => first_model(&server).await?,
    };
    let bias = if o.words { only_words(&server, &model).await? } else { Value::Null };
    let mut random = Random::new(o.seed);
    let mut messages = Vec::new();
    let tokens = loop {
        messages.push(json!({"role": "user", "content": random.words(60)}));
        let request = json!({"model": model, "messages": messages});
        let count = client.json("POST", "/tokenize", Some(&request)).await?["count"].as_u64().unwrap_or(0);
        if count >= TOKENS {
            break count;
        }
        messages.push(json!({"role": "assistant", "content": random.words(60)}));
    };
    let body = |messages: &[Value], cache: bool| {
        let mut body = json!({
            "model": model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": 8, "seed": 1, "cache": cache,
        });
        if !bias.is_null() {
            body["logit_bias"] = bias.clone();
        }
        body
    };
    let reply = client.chat(&body(&messages, true)).await?;
    messages.push(json!({"role": "assistant", "content": reply.text}));
    let (mut known, mut unknown, mut of_known, mut of_unknown) = (vec![], vec![], vec![], vec![]);
    let mut same = true;
    for round in 0..o.rounds {
        // Another question each time, or the whole prompt would be known.
        let question =
            json!({"role": "user", "content": format!("And then? {}", random.words(3 + round % 2))});
        let with: Vec<Value> = messages.iter().cloned().chain([question]).collect();
        let mut texts = Vec::new();
        for cache in [true, false] {
            let streamed = client.chat(&body(&with, cache)).await?;
            let first = streamed.first().ok_or("a reply had no text")?.as_secs_f64();
            let (times, computed) =
                if cache { (&mut known, &mut of_known) } else { (&mut unknown, &mut of_unknown) };
            times.push(first);
            computed.push(streamed.computed());
            texts.push(streamed.text);
        }
        same &= texts[0] == texts[1];
    }
    let ratio = median(&unknown) / median(&known);
    let ok = ratio >= RATIO && same;
    let ms = |all: &[f64]| all.iter().map(|s| round(s * 1e3, 100.0)).collect::<Vec<_>>();
    Ok((
        ok,
        json!({
            "load": "turn", "ok": ok, "model": model, "conversation_tokens": tokens, "rounds": o.rounds,
            "known": {"computed_tokens": of_known, "first_token_ms": ms(&known)},
            "unknown": {"computed_tokens": of_unknown, "first_token_ms": ms(&unknown)},
            "ratio": round(ratio, 10.0), "wanted": RATIO, "texts_are_the_same": same,
        }),
    ))
}
