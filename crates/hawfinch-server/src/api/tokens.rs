//! `/tokenize`, `/detokenize`, `/tokenizer_info`, as vLLM's API has them.

use crate::app::Shared;
use crate::body::Body;
use crate::conversation::{ChatMessage, Rendering, rendered};
use crate::error::{ApiError, ApiResult};
use crate::reply::token_text;
use crate::run::aside;
use axum::Json;
use axum::extract::{Query, State};
use hawfinch_tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// How the token that ends a text is written where it must be written; its own text is empty.
const END_OF_TEXT: &str = "<|rwkv_tokenizer_end_of_text|>";

/// What to tokenise.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct TokenizeRequest {
    /// The model; the first one without.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// Or a conversation, through the model's template.
    pub messages: Option<Vec<ChatMessage>>,
    /// Whether a conversation ends where the reply begins (default true).
    pub add_generation_prompt: Option<bool>,
    /// Functions that the conversation offers.
    pub tools: Option<Vec<Value>>,
    /// How much a model that can think shall think.
    pub reasoning_effort: Option<String>,
    /// A built-in chat template in place of the model's own.
    pub template: Option<String>,
    /// Also tell the tokens' texts.
    pub return_token_strs: Option<bool>,
}

fn end_name(tokenizer: &Tokenizer) -> Option<(u32, String)> {
    let id = tokenizer.eos()?;
    let own = String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
    Some((id, if own.is_empty() { END_OF_TEXT.into() } else { own }))
}

/// Text or conversation to tokens.
pub async fn tokenize(State(app): State<Shared>, Body(r): Body<TokenizeRequest>) -> ApiResult<Json<Value>> {
    let chosen = app.models.or_first(r.model.as_deref())?;
    let run = move || -> ApiResult<Json<Value>> {
        let hosted = &chosen.hosted;
        let text = match (r.prompt, r.messages) {
            (Some(text), None) => text,
            (None, Some(messages)) => {
                let how = Rendering {
                    template: r.template.as_deref(),
                    effort: r.reasoning_effort.as_deref(),
                    tools: r.tools.as_deref().unwrap_or_default(),
                    for_reply: r.add_generation_prompt.unwrap_or(true),
                };
                rendered(hosted, &messages, &how)?
            }
            _ => return Err(ApiError::field("prompt", "give either `prompt` or `messages`")),
        };
        let tokens = match end_name(&hosted.tokenizer) {
            Some((id, name)) if name == text => vec![id],
            _ => hosted.tokenizer.encode(text.as_bytes()),
        };
        let texts = r
            .return_token_strs
            .unwrap_or(false)
            .then(|| tokens.iter().map(|&id| token_text(&hosted.tokenizer, id)).collect::<Vec<_>>());
        // A state has no length: nothing but patience limits a text.
        Ok(Json(
            json!({"count": tokens.len(), "max_model_len": i32::MAX, "tokens": tokens, "token_strs": texts}),
        ))
    };
    aside(run).await
}

/// What to make a text of.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DetokenizeRequest {
    /// The model; the first one without.
    pub model: Option<String>,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

/// Tokens to text.
pub async fn detokenize(
    State(app): State<Shared>,
    Body(r): Body<DetokenizeRequest>,
) -> ApiResult<Json<Value>> {
    let chosen = app.models.or_first(r.model.as_deref())?;
    let tokenizer = &chosen.hosted.tokenizer;
    let vocab = chosen.hosted.model.config().vocab;
    if let Some(id) = r.tokens.iter().find(|&&id| id as usize >= vocab) {
        let message = format!("token id {id} is outside the model's vocabulary of {vocab}");
        return Err(ApiError::field("tokens", message));
    }
    let end = end_name(tokenizer);
    let mut text = String::new();
    for part in r.tokens.split_inclusive(|&id| end.as_ref().is_some_and(|(e, _)| *e == id)) {
        match &end {
            Some((e, name)) if part.last() == Some(e) => {
                text.push_str(&tokenizer.decode_lossy(&part[..part.len() - 1]));
                text.push_str(name);
            }
            _ => text.push_str(&tokenizer.decode_lossy(part)),
        }
    }
    Ok(Json(json!({"prompt": text})))
}

/// Which model.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct OfModel {
    /// The model; the first one without.
    pub model: Option<String>,
}

/// What a client needs to work with the tokenizer.
pub async fn info(State(app): State<Shared>, Query(r): Query<OfModel>) -> ApiResult<Json<Value>> {
    let chosen = app.models.or_first(r.model.as_deref())?;
    let hosted = &chosen.hosted;
    let end = end_name(&hosted.tokenizer).map(|(_, name)| name);
    Ok(Json(json!({
        "model": hosted.name,
        "tokenizer_class": hosted.tokenizer.name(),
        "vocab_size": hosted.model.config().vocab,
        "bos_token": null,
        "eos_token": end,
        "pad_token": end,
        "eos_token_id": hosted.tokenizer.eos(),
        "add_bos_token": false,
        "model_max_length": i32::MAX,
        "chat_template": hosted.template.source(),
    })))
}
