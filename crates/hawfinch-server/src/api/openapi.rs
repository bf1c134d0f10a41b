//! `/openapi.json`: what each route takes and gives. The shapes of requests come from the types that read them.

use super::{chat, completions, embeddings, messages, models, rank, responses, states, tokens};
use crate::app::Shared;
use crate::reply::Usage;
use crate::saved::SavedState;
use axum::Json;
use axum::extract::State;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

/// A body of any object.
fn object(what: &str) -> Value {
    json!({"type": "object", "description": what})
}

struct Document {
    schemas: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    /// Adds a route. `takes` is the schema of its body; `gives` of its answer.
    fn add(&mut self, method: &str, path: &str, about: &str, takes: Option<Value>, gives: Value) {
        let stream = about.contains("tream");
        let mut content = json!({"application/json": {"schema": gives}});
        if stream {
            content["text/event-stream"] = json!({"schema": {"type": "string"}});
        }
        let mut operation = json!({
            "summary": about,
            "operationId": format!("{method}{}", path.replace(['/', '{', '}', '.'], "_")),
            "responses": {
                "200": {"description": "Done.", "content": content},
                "4XX": {"description": "What is wrong with the request, in one sentence.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
                "5XX": {"description": "What failed; Retry-After says when to try again, where that helps.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
            },
        });
        if let Some(schema) = takes {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        let named: Vec<Value> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        if !named.is_empty() {
            operation["parameters"] = json!(named);
        }
        let entry = self.paths.entry(path).or_insert_with(|| json!({}));
        entry[method] = operation;
    }

    fn of<T: schemars::JsonSchema>(&mut self) -> Value {
        self.schemas.subschema_for::<T>().into()
    }
}

/// The whole document but for the server's address.
pub fn build() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut d = Document { schemas: SchemaGenerator::new(settings), paths: Map::new() };
    let takes = Some(d.of::<chat::ChatRequest>());
    d.add(
        "post",
        "/v1/chat/completions",
        "A chat completion (OpenAI), whole or as a stream",
        takes,
        object("chat.completion"),
    );
    let takes = Some(d.of::<completions::CompletionRequest>());
    d.add(
        "post",
        "/v1/completions",
        "A completion (OpenAI), whole or as a stream",
        takes,
        object("text_completion"),
    );
    let takes = Some(d.of::<responses::ResponsesRequest>());
    d.add("post", "/v1/responses", "A response (OpenAI), whole or as a stream", takes, object("response"));
    d.add("get", "/v1/responses/{id}", "An earlier response", None, object("response"));
    d.add("delete", "/v1/responses/{id}", "Forgets an earlier response", None, object("id, deleted"));
    let takes = Some(d.of::<messages::MessagesRequest>());
    d.add(
        "post",
        "/v1/messages",
        "A message (Anthropic), whole or as a stream",
        takes.clone(),
        object("message"),
    );
    d.add("post", "/v1/messages/count_tokens", "Tokens of a message's prompt", takes, object("input_tokens"));
    let takes = Some(d.of::<embeddings::EmbeddingRequest>());
    d.add("post", "/v1/embeddings", "Vectors of texts", takes, object("list of embedding"));
    let takes = Some(d.of::<rank::RankRequest>());
    d.add("post", "/v1/rank", "Which continuation is most likely", takes, object("ranking"));
    d.add("get", "/v1/models", "The models, their adapters and tuned states", None, object("list of model"));
    d.add("get", "/v1/models/{id}", "One of them", None, object("model"));
    let takes = Some(d.of::<models::LoadRequest>());
    d.add(
        "post",
        "/v1/models/load",
        "Loads a model, adapter or tuned state (--allow-load)",
        takes,
        object("model"),
    );
    let takes = Some(d.of::<models::UnloadRequest>());
    d.add("post", "/v1/models/unload", "Takes one away (--allow-load)", takes, object("id, unloaded"));
    let gives = d.of::<SavedState>();
    d.add("get", "/v1/states", "The saved states", None, object("list of state"));
    let takes = Some(d.of::<states::StateRequest>());
    d.add("post", "/v1/states", "Saves or forks a state", takes, gives.clone());
    d.add("get", "/v1/states/{id}", "A saved state", None, gives.clone());
    d.add("delete", "/v1/states/{id}", "Deletes a saved state", None, object("id, deleted"));
    d.add("get", "/v1/states/{id}/content", "The file of a saved state", None, json!({}));
    d.paths["/v1/states/{id}/content"]["get"]["responses"]["200"]["content"] =
        json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}});
    d.add("post", "/v1/states/import", "Takes a state file in", None, gives);
    let import = &mut d.paths["/v1/states/import"]["post"];
    import["requestBody"] = json!({"required": true,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}});
    let text = json!({"type": "string"});
    import["parameters"] = json!([{"name": "model", "in": "query", "required": true, "schema": text},
                                  {"name": "name", "in": "query", "required": false, "schema": text}]);
    let takes = Some(d.of::<tokens::TokenizeRequest>());
    d.add("post", "/tokenize", "Text or conversation to tokens", takes, object("tokens, count"));
    let takes = Some(d.of::<tokens::DetokenizeRequest>());
    d.add("post", "/detokenize", "Tokens to text", takes, object("prompt"));
    d.add(
        "get",
        "/tokenizer_info",
        "What a client needs to work with the tokenizer",
        None,
        object("tokenizer"),
    );
    d.add("get", "/health", "That it runs, and how busy it is", None, object("status"));
    d.add("get", "/metrics", "Counts and times", None, json!({}));
    d.paths["/metrics"]["get"]["summary"] = json!("Counts and times for Prometheus");
    d.paths["/metrics"]["get"]["responses"]["200"]["content"] =
        json!({"text/plain": {"schema": {"type": "string"}}});
    d.add("get", "/openapi.json", "This document", None, object("OpenAPI"));
    let _ = d.of::<Usage>();
    let mut schemas = d.schemas.take_definitions(true);
    schemas.insert(
        "Error".into(),
        json!({"type": "object", "required": ["error"], "properties": {"error": {"type": "object",
            "required": ["message", "type"], "properties": {
                "message": {"type": "string"}, "type": {"type": "string"},
                "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}}),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "hawfinch",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "RWKV language models behind the APIs that clients speak. Requests carry their key, where the \
                            server asks for one, as `Authorization: Bearer KEY`.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": d.paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// The document.
pub async fn document(State(app): State<Shared>) -> Json<Value> {
    static BUILT: OnceLock<Value> = OnceLock::new();
    let mut document = BUILT.get_or_init(build).clone();
    if !app.settings.keys.is_empty() {
        document["security"] = json!([{"key": []}]);
    }
    Json(document)
}
