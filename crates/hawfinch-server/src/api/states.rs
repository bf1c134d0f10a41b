//! `/v1/states`: states that are saved under an id, forked, exported, imported and gone on from.

use crate::app::{Client, Shared};
use crate::body::{self, Body};
use crate::conversation::{ChatMessage, Rendering, rendered};
use crate::error::{ApiError, ApiResult};
use crate::hosted::{Chosen, Hosted, state_root};
use crate::run::{Job, aside};
use crate::saved::{Owner, SavedState};
use axum::Json;
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hawfinch_engine::schedule::{Base, Event};
use hawfinch_engine::{SamplerConfig, StopRules};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a state's file may have beside its numbers.
const SLACK: usize = 4 << 20;
/// A name for people at most.
const MAX_NAME: usize = 200;

/// What to save.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct StateRequest {
    /// The model, or `model+adapter`.
    pub model: String,
    /// A name for people.
    pub name: Option<String>,
    /// The state after this text,
    pub prompt: Option<String>,
    /// or after this conversation,
    pub messages: Option<Vec<ChatMessage>>,
    /// or a copy of this saved state; with `prompt` or `messages`, the state after them behind it.
    pub from: Option<String>,
}

/// All saved states, of all models.
pub async fn list(State(app): State<Shared>) -> ApiResult<Json<Value>> {
    aside(move || {
        let mut data: Vec<SavedState> = app.models.all().iter().flat_map(|h| h.saved.list()).collect();
        // Models of the same weights have the same folder.
        let mut seen = std::collections::HashSet::new();
        data.retain(|s| seen.insert(s.id.clone()));
        Ok(Json(json!({"object": "list", "data": data})))
    })
    .await
}

/// The model that has a saved state.
fn owner(app: &Shared, id: &str) -> ApiResult<Arc<Hosted>> {
    let all = app.models.all();
    match all.iter().find(|h| h.saved.get(id).is_ok()) {
        Some(hosted) => Ok(hosted.clone()),
        None => {
            let shown: String = id.chars().take(60).collect();
            let message = format!("there is no saved state `{}`", shown.escape_debug());
            Err(ApiError::missing(message, "state_not_found"))
        }
    }
}

/// What is told of one.
pub async fn get(State(app): State<Shared>, Path(id): Path<String>) -> ApiResult<Json<SavedState>> {
    aside(move || owner(&app, &id)?.saved.get(&id).map(Json)).await
}

/// Deletes one.
pub async fn delete(State(app): State<Shared>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    aside(move || {
        owner(&app, &id)?.saved.delete(&id)?;
        Ok(Json(json!({"id": id, "object": "state.deleted", "deleted": true})))
    })
    .await
}

/// The file of one.
pub async fn export(State(app): State<Shared>, Path(id): Path<String>) -> ApiResult<Response> {
    let of = id.clone();
    let bytes = aside(move || owner(&app, &of)?.saved.export(&of)).await?;
    let mut response = bytes.into_response();
    let name = format!("attachment; filename=\"{id}.safetensors\"");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// Whose and under which name.
#[derive(Debug, Clone, Deserialize)]
pub struct ImportQuery {
    /// The model, or `model+adapter`.
    pub model: String,
    /// A name for people.
    pub name: Option<String>,
}

/// Takes a state file in.
pub async fn import(
    State(app): State<Shared>,
    Query(q): Query<ImportQuery>,
    mut request: Request,
) -> ApiResult<Json<SavedState>> {
    // What can be said before the state is taken in; and not many are held at once.
    let chosen = app.models.find(&q.model)?;
    let name = checked_name(q.name)?;
    chosen.hosted.saved.check()?;
    let place = tokio::time::timeout(app.settings.timeout, app.importing.acquire()).await;
    let place = place.map_err(|_| ApiError::from(hawfinch_engine::Error::TimedOut))?;
    let _place = place.map_err(|_| ApiError::closing())?;
    // Twice what a state of this model has: its file may say more, but not much more.
    let most = 2 * size_of::<f32>() * chosen.hosted.model.state_layout().len() + SLACK;
    DefaultBodyLimit::max(most).apply(&mut request);
    let bytes = body::read(request, &app).await?;
    aside(move || {
        let hosted = &chosen.hosted;
        let adapter = chosen.base.adapter.as_deref();
        let identity = identity(&chosen)?;
        hosted.saved.import(&hosted.model, adapter, owner_of(&chosen, &identity), name.as_deref(), &bytes)
    })
    .await
    .map(Json)
}

fn owner_of<'a>(chosen: &'a Chosen, identity: &'a str) -> Owner<'a> {
    Owner { model: &chosen.id, identity, root: &chosen.base.root }
}

fn checked_name(name: Option<String>) -> ApiResult<Option<String>> {
    if name.as_ref().is_some_and(|n| n.len() > MAX_NAME) {
        return Err(ApiError::field("name", format!("the name is longer than {MAX_NAME} bytes")));
    }
    Ok(name)
}

/// Computes a state, or copies one, and saves it.
pub async fn create(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    Body(r): Body<StateRequest>,
) -> ApiResult<Json<SavedState>> {
    let mut chosen = app.models.find(&r.model)?;
    let name = checked_name(r.name)?;
    let hosted = chosen.hosted.clone();
    let (prompt, messages, forked) = (r.prompt, r.messages, r.from.is_some());
    let encode = move || match (prompt, messages) {
        (Some(_), Some(_)) => Err(ApiError::field("prompt", "give either `prompt` or `messages`")),
        (Some(text), None) => Ok(hosted.tokenizer.encode(text.as_bytes())),
        (None, Some(messages)) => {
            // Where the next message would begin, not where a reply would.
            let text = rendered(&hosted, &messages, &Rendering::default())?;
            Ok(hosted.tokenizer.encode(text.as_bytes()))
        }
        (None, None) if forked => Ok(Vec::new()),
        (None, None) => Err(ApiError::field("prompt", "give `prompt`, `messages` or `from`")),
    };
    chosen.hosted.saved.check()?;
    let mut prompt = aside(encode).await?;
    if let Some(id) = &r.from {
        go_on_from(&mut chosen, id, &mut prompt, &mut []).await?;
    }
    // Reading it leaves the state in the tree, from where it is saved.
    if !prompt.is_empty() {
        let job = Job {
            chosen: chosen.clone(),
            prompt: prompt.clone(),
            marks: Vec::new(),
            sampler: SamplerConfig::greedy(),
            n: 1,
            max_tokens: 0,
            stops: StopRules::none(),
            constrained: None,
            prompt_logprobs: None,
            who: client.with_user(None),
            deadline: app.deadline(),
            cached: true,
        };
        let mut events = job.submit().await?;
        loop {
            match events.recv().await {
                Some(Event::End(_)) => break,
                Some(Event::Failed(e)) => return Err(e.into()),
                Some(_) => {}
                None => return Err(ApiError::internal("it broke off: the model was taken away")),
            }
        }
    }
    aside(move || {
        let hosted = &chosen.hosted;
        let start = hosted.scheduler.cache().find(&chosen.base.root, &prompt);
        let state = match start.from {
            Some((at, snapshot)) if at == prompt.len() => Arc::new(snapshot.state.clone()),
            _ if prompt.is_empty() => {
                chosen.base.state.clone().unwrap_or_else(|| Arc::new(hosted.model.new_state()))
            }
            _ => return Err(ApiError::internal("the state was not kept: there is no memory for it")),
        };
        // Behind a state that nobody knows the tokens of, nobody knows them either.
        let known = chosen.base.state.is_none().then_some(&prompt[..]);
        let identity = identity(&chosen)?;
        hosted.saved.save(&hosted.model, owner_of(&chosen, &identity), name.as_deref(), &state, known)
    })
    .await
    .map(Json)
}

/// The identity of what computes: what a state file belongs to.
fn identity(chosen: &Chosen) -> ApiResult<String> {
    let identity = chosen.hosted.model.identity_with(chosen.base.adapter.as_deref(), None);
    identity.map_err(|e| ApiError::internal(e.to_string()))
}

/// Puts a saved state before a prompt: by its tokens where they are known, so that the tree knows it like any other text, else as
/// where texts begin.
///
/// # Errors
/// 404; a state of another model.
pub async fn go_on_from(
    chosen: &mut Chosen,
    id: &str,
    prompt: &mut Vec<u32>,
    marks: &mut [usize],
) -> ApiResult<()> {
    let (of, wanted, adapter) = (chosen.hosted.clone(), id.to_owned(), chosen.base.adapter.clone());
    let root = chosen.base.root.clone();
    let loaded = aside(move || of.saved.load(&of.model, adapter.as_deref(), &root, &wanted)).await?;
    match loaded.tokens {
        Some(tokens) => {
            let snapshot =
                hawfinch_engine::tree::Snapshot { state: (*loaded.state).clone(), logits: Vec::new() };
            chosen.hosted.scheduler.cache().put(&chosen.base.root, &tokens, Arc::new(snapshot));
            marks.iter_mut().for_each(|m| *m += tokens.len());
            prompt.splice(0..0, tokens);
        }
        None => {
            let root = chosen.base.root.split("+state:").next().unwrap_or_default();
            let root: Arc<str> = state_root(root, &loaded.state).into();
            let adapter = chosen.base.adapter.clone();
            chosen.base = Base { root, state: Some(loaded.state), adapter };
        }
    }
    Ok(())
}
