//! `/v1/models`: what there is, loading and unloading.

use crate::app::Shared;
use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::hosted::{Hosted, Variant};
use crate::run::aside;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

fn entry(app: &Shared, hosted: &Hosted, variant: Option<(&str, &Variant)>) -> Value {
    let config = hosted.model.config();
    let kind = match variant {
        None => "model",
        Some((_, Variant::Adapter(_))) => "adapter",
        Some((_, Variant::State(_))) => "state",
    };
    let id = variant.map_or(hosted.name.clone(), |(name, _)| format!("{}+{name}", hosted.name));
    let parameters: u64 = hosted
        .model
        .checkpoint()
        .tensors
        .values()
        .map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>())
        .sum();
    json!({
        "id": id,
        "object": "model",
        "created": hosted.created,
        "owned_by": "hawfinch",
        "hawfinch": {
            "kind": kind,
            "base": hosted.name,
            "version": config.version.number(),
            "parameters": parameters,
            "layers": config.layers,
            "width": config.width,
            "vocab": config.vocab,
            "template": hosted.template.name(),
            "reasoning": hosted.template.name().starts_with("g1"),
            "sampler": short(json!(hosted.template.sampler)),
            "max_tokens": app.settings.max_tokens,
        },
    })
}

/// Numbers as people wrote them: 0.3, not the f32 nearest to it in all its digits.
fn short(mut settings: Value) -> Value {
    for v in settings.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        if let Some(x) = v.as_f64().filter(|_| v.is_f64())
            && let Ok(written) = (x as f32).to_string().parse::<f64>()
        {
            *v = json!(written);
        }
    }
    settings
}

/// All models, each followed by its adapters and tuned states.
pub async fn list(State(app): State<Shared>) -> Json<Value> {
    let mut data = Vec::new();
    for hosted in app.models.all() {
        data.push(entry(&app, &hosted, None));
        for (name, variant) in hosted.variants() {
            data.push(entry(&app, &hosted, Some((&name, &variant))));
        }
    }
    Json(json!({"object": "list", "data": data}))
}

/// One of them.
pub async fn get(State(app): State<Shared>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let chosen = app.models.find(&id)?;
    let variants = chosen.hosted.variants();
    let name = id.strip_prefix(&chosen.hosted.name).and_then(|rest| rest.strip_prefix('+'));
    let variant = variants.iter().find(|(v, _)| Some(v.as_str()) == name).map(|(name, v)| (name.as_str(), v));
    Ok(Json(entry(&app, &chosen.hosted, variant)))
}

/// What to load.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct LoadRequest {
    /// A file, a folder, or the name of a model in the models folder; with `model`, an adapter or a tuned state.
    pub path: PathBuf,
    /// What requests shall call it; the file's name without one.
    pub name: Option<String>,
    /// The model that an adapter or tuned state is for.
    pub model: Option<String>,
}

fn allowed(app: &Shared) -> ApiResult<()> {
    if app.settings.allow_load {
        return Ok(());
    }
    let message = "requests may not load or unload models here: start the server with --allow-load";
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

/// Loads a model, or an adapter or tuned state of one.
pub async fn load(State(app): State<Shared>, Body(r): Body<LoadRequest>) -> ApiResult<Json<Value>> {
    allowed(&app)?;
    let of = app.clone();
    aside(move || match &r.model {
        None => {
            of.models.load(&r.path, r.name.as_deref()).map(|h| entry(&of, &h, None)).map_err(ApiError::bad)
        }
        Some(model) => {
            let chosen = of.models.find(model)?;
            let stem = r.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let name = r.name.unwrap_or(stem);
            chosen.hosted.add_variant(&name, &r.path).map_err(ApiError::bad)?;
            let variants = chosen.hosted.variants();
            let variant = variants.iter().find(|(n, _)| *n == name).map(|(n, v)| (n.as_str(), v));
            Ok(entry(&of, &chosen.hosted, variant))
        }
    })
    .await
    .map(Json)
}

/// What to unload.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct UnloadRequest {
    /// The model, or `model+adapter`.
    pub model: String,
}

/// Takes a model, or an adapter or tuned state, away.
pub async fn unload(State(app): State<Shared>, Body(r): Body<UnloadRequest>) -> ApiResult<Json<Value>> {
    allowed(&app)?;
    let chosen = app.models.find(&r.model)?;
    let variant = r.model.strip_prefix(&chosen.hosted.name).and_then(|rest| rest.strip_prefix('+'));
    if let Some(name) = variant {
        chosen.hosted.remove_variant(name);
    } else {
        let name = chosen.hosted.name.clone();
        drop(chosen);
        let of = app.clone();
        aside(move || Ok(of.models.unload(&name))).await?;
    }
    Ok(Json(json!({"id": r.model, "object": "model.unloaded", "unloaded": true})))
}
