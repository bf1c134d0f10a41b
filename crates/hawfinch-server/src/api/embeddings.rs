//! `/v1/embeddings`: a vector for a text, from what the model's last layer makes of it.

use super::completions::Prompts;
use crate::app::Shared;
use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::run::aside;
use axum::Json;
use axum::extract::State;
use base64::Engine;
use hawfinch_engine::schedule::Refused;
use hawfinch_engine::{Embedding, embed as embed_texts};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Texts that are read side by side.
const AT_ONCE: usize = 4;
/// Tokens of a step where somebody writes replies, who wait for it.
const BESIDE: usize = 32;
/// Texts of a request at most.
const MAX_TEXTS: usize = 2048;

/// A request of embeddings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct EmbeddingRequest {
    /// The model.
    pub model: String,
    /// One text or several, as text or as tokens.
    pub input: Prompts,
    /// `float` or `base64` (little-endian f32).
    pub encoding_format: Option<String>,
    /// Not here: vectors are as long as the model is wide.
    pub dimensions: Option<u64>,
    /// Who asks.
    pub user: Option<String>,
}

/// The handler.
pub async fn embed(State(app): State<Shared>, Body(r): Body<EmbeddingRequest>) -> ApiResult<Json<Value>> {
    let chosen = app.models.find(&r.model)?;
    if chosen.base.adapter.is_some() || chosen.base.state.is_some() {
        return Err(ApiError::field(
            "model",
            "embeddings are made by the plain model, without adapter or state",
        ));
    }
    let width = chosen.hosted.model.config().width;
    if r.dimensions.is_some_and(|d| d != width as u64) {
        let message = format!("vectors of this model have {width} numbers, no fewer and no more");
        return Err(ApiError::unsupported("dimensions", message));
    }
    let base64 = match r.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "it must be `float` or `base64`")),
    };
    // Some at once; others wait, not for ever, and not more than of other requests.
    let deadline = app.deadline();
    let full = |_| ApiError::from(Refused::Full(Duration::from_secs(5)));
    let waiting = app.embedding_queue.try_acquire().map_err(full)?;
    let place = tokio::time::timeout(app.settings.timeout, app.embedding.clone().acquire_owned()).await;
    let place = place.map_err(|_| ApiError::from(hawfinch_engine::Error::TimedOut))?;
    let place = place.map_err(|_| ApiError::closing())?;
    drop(waiting);
    let turns = app.models.turns().clone();
    // Dropped with this request: what nobody waits for ends.
    let (wanted, listening) = tokio::sync::oneshot::channel::<()>();
    let work = aside(move || {
        // For as long as it computes, whoever still listens.
        let _place = place;
        let texts = r.input.encoded(&chosen.hosted.tokenizer);
        if texts.is_empty() || texts.len() > MAX_TEXTS {
            let message = format!("there are {} texts: between 1 and {MAX_TEXTS} are taken", texts.len());
            return Err(ApiError::field("input", message));
        }
        let vocab = chosen.hosted.model.config().vocab;
        if texts.iter().any(Vec::is_empty) {
            return Err(ApiError::field("input", "a text is empty: it has no vector"));
        }
        if let Some(id) = texts.iter().flatten().find(|&&id| id as usize >= vocab) {
            let message = format!("token id {id} is outside the model's vocabulary of {vocab}");
            return Err(ApiError::field("input", message));
        }
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let mut vectors = Vec::new();
        // Replies beside it go on between its steps.
        for group in texts.chunks(AT_ONCE) {
            let mut turn = turns.take();
            let step = || if turns.writers() > 0 { BESIDE } else { hawfinch_model::STEP_TOKENS };
            let pass = |_| {
                if wanted.is_closed() || Instant::now() > deadline {
                    return Err(hawfinch_engine::Error::TimedOut);
                }
                turn.pass();
                Ok(())
            };
            vectors.extend(embed_texts(&chosen.hosted.model, group, Embedding::Mean, step, pass)?);
        }
        Ok((tokens, vectors))
    });
    let (tokens, vectors) = work.await?;
    drop(listening);
    let one = |(index, vector): (usize, Vec<f32>)| {
        let embedding = if base64 { json!(encode_base64(&vector)) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.into_iter().enumerate().map(one).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"object": "list", "data": data, "model": r.model, "usage": usage})))
}

/// Little-endian bytes of the numbers in base64, as the OpenAI clients ask for them.
fn encode_base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
