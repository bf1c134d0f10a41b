//! `/v1/rank`: which of several continuations the model finds most likely.

use crate::app::{Client, Shared};
use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::hosted::Chosen;
use crate::reply::Ending;
use crate::run::{Events, Job, aside, submit_all};
use axum::Json;
use axum::extract::{Extension, State};
use hawfinch_engine::schedule::Event;
use hawfinch_engine::{Sampled, SamplerConfig, StopRules};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Choices of a request at most.
const MAX_CHOICES: usize = 256;

/// A request of a ranking.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct RankRequest {
    /// The model, or `model+adapter`.
    pub model: String,
    /// What stands before.
    #[serde(default)]
    pub prompt: String,
    /// What may follow.
    pub choices: Vec<String>,
    /// Who asks.
    pub user: Option<String>,
}

/// The handler.
pub async fn rank(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    Body(r): Body<RankRequest>,
) -> ApiResult<Json<Value>> {
    let chosen = app.models.find(&r.model)?;
    if r.choices.is_empty() || r.choices.len() > MAX_CHOICES {
        let message = format!("there are {} choices: between 1 and {MAX_CHOICES} are taken", r.choices.len());
        return Err(ApiError::field("choices", message));
    }
    let (hosted, prompt, texts) = (chosen.hosted.clone(), r.prompt, r.choices.clone());
    let encode = move || {
        let mut prompt = hosted.tokenizer.encode(prompt.as_bytes());
        if prompt.is_empty() {
            // Something must foretell the first token.
            prompt.push(hawfinch_engine::EMPTY_CONTEXT);
        }
        let choices = texts.iter().map(|c| hosted.tokenizer.encode(c.as_bytes())).collect();
        Ok((prompt, choices))
    };
    let (prompt, choices): (Vec<u32>, Vec<Vec<u32>>) = aside(encode).await?;
    app.log_text(|| chosen.hosted.tokenizer.decode_lossy(&prompt));
    let who = client.with_user(r.user.as_deref());
    let deadline = app.deadline();
    let job = |tokens: Vec<u32>, from: Option<usize>, chosen: &Chosen| Job {
        chosen: chosen.clone(),
        prompt: tokens,
        marks: Vec::new(),
        sampler: SamplerConfig { top_logprobs: 1, ..SamplerConfig::greedy() },
        n: 1,
        max_tokens: 0,
        stops: StopRules::none(),
        constrained: None,
        prompt_logprobs: from,
        who: who.clone(),
        deadline,
        cached: true,
    };
    if let Some(empty) = choices.iter().position(Vec::is_empty) {
        return Err(ApiError::field("choices", format!("choice {empty} is empty")));
    }
    // What all share is read once, but for its last token, whose logits foretell the first of each choice.
    let mut shared = Ending::default();
    if prompt.len() > 1 {
        let events = job(prompt[..prompt.len() - 1].to_vec(), None, &chosen).submit().await?;
        shared = told(events).await?.1;
    }
    let mut results = Vec::new();
    // Not more at once than others have places beside.
    let at_once = (app.models.limits().queue / 4).clamp(1, app.models.limits().width);
    for (start, part) in (0..).step_by(at_once).zip(choices.chunks(at_once)) {
        let jobs = part.iter().map(|choice| job([&prompt[..], choice].concat(), Some(prompt.len()), &chosen));
        let running = submit_all(jobs.collect()).await?;
        for ((index, events), choice) in (start..).zip(running).zip(part) {
            let (tokens, _) = told(events).await?;
            let sum: f64 = tokens.iter().map(|t| f64::from(t.logprob)).sum();
            let greedy = tokens.iter().all(|t| t.top.first().is_some_and(|best| best.0 == t.id));
            results.push(json!({
                "index": index,
                "choice": r.choices[index],
                "tokens": choice.len(),
                "logprob": sum,
                "logprob_per_token": sum / choice.len() as f64,
                "greedy": greedy,
            }));
        }
    }
    let best = |by: &str| {
        let value = |r: &&Value| r[by].as_f64().unwrap_or(f64::NEG_INFINITY);
        // Of equal ones the first.
        let best = results.iter().rev().max_by(|a, b| value(a).total_cmp(&value(b)));
        best.map_or(Value::Null, |r| r["index"].clone())
    };
    let read: usize = choices.iter().map(Vec::len).sum();
    let usage = json!({
        "prompt_tokens": prompt.len() + read,
        "total_tokens": prompt.len() + read,
        "prompt_tokens_details": {"cached_tokens": shared.cached},
    });
    Ok(Json(json!({
        "object": "ranking",
        "model": chosen.id,
        "best": best("logprob"),
        "best_per_token": best("logprob_per_token"),
        "results": results,
        "usage": usage,
    })))
}

/// The log-probabilities that a request without reply tells.
async fn told(mut events: Events) -> ApiResult<(Vec<Sampled>, Ending)> {
    let (mut tokens, mut ending) = (Vec::new(), Ending::default());
    loop {
        let event = events.recv().await;
        let event = event.ok_or_else(|| ApiError::internal("it broke off: the model was taken away"))?;
        if ending.note(&event) {
            return Ok((tokens, ending));
        }
        match event {
            Event::Prompt(more) => tokens.extend(more),
            Event::Failed(e) => return Err(e.into()),
            _ => {}
        }
    }
}
