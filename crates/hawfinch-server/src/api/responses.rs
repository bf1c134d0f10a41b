//! `/v1/responses`: OpenAI's newer shape of a chat; a response can go on from an earlier one by its id.

use super::chat::{call_id, tool_calls};
use crate::app::{Client, Shared};
use crate::body::Body;
use crate::conversation::{Call, Content, Conversation, ToolChoice};
use crate::error::{ApiError, ApiResult};
use crate::generation::{Front, Generation, Whole, Wish, streamed};
use crate::hosted::now;
use crate::reply::{Delta, Growth};
use crate::run::fresh_id;
use crate::sampling::{ResponseFormat, Sampling, grammar, refuse};
use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use hawfinch_engine::{Message, Role};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};

/// Responses kept, and bytes of their conversations together.
const KEPT: usize = 4096;
const KEPT_BYTES: usize = 64 << 20;

/// A response that later ones may go on from.
#[derive(Debug, Clone)]
struct Past {
    body: Value,
    messages: Vec<Message>,
    bytes: usize,
}

/// Responses of this server that later ones may go on from; the oldest are forgotten, all when it ends.
#[derive(Debug, Default)]
pub struct Kept(Mutex<IndexMap<String, Past>>);

impl Kept {
    fn get(&self, id: &str) -> ApiResult<Past> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(id).cloned().ok_or_else(|| {
            let shown: String = id.chars().take(60).collect();
            let message = format!("there is no response `{}` (any more)", shown.escape_debug());
            ApiError {
                param: Some("previous_response_id".into()),
                ..ApiError::missing(message, "response_not_found")
            }
        })
    }

    fn put(&self, id: &str, body: Value, messages: Vec<Message>) {
        let bytes = body.to_string().len() + serde_json::to_string(&messages).map_or(0, |t| t.len());
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(id.into(), Past { body, messages, bytes });
        let mut total: usize = kept.values().map(|p| p.bytes).sum();
        while kept.len() > KEPT || (total > KEPT_BYTES && kept.len() > 1) {
            total -= kept.shift_remove_index(0).map_or(0, |(_, p)| p.bytes);
        }
    }

    fn remove(&self, id: &str) -> ApiResult<()> {
        self.get(id)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shift_remove(id);
        Ok(())
    }
}

/// A text, or items.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Input {
    /// What the person says.
    Text(String),
    /// Messages, calls of functions and their results.
    Items(Vec<Value>),
}

/// A request of a response.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ResponsesRequest {
    /// The model, or `model+adapter`.
    pub model: String,
    /// What is said.
    pub input: Input,
    /// Instructions, for this response alone.
    pub instructions: Option<String>,
    /// An earlier response to go on from.
    pub previous_response_id: Option<String>,
    /// How tokens are drawn.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Tokens of the reply at most.
    pub max_output_tokens: Option<u64>,
    /// Send it as it grows.
    pub stream: Option<bool>,
    /// Whether later responses may go on from it (default true).
    pub store: Option<bool>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Whether it must.
    pub tool_choice: Option<Value>,
    /// Whether it may call several in one reply (default true).
    pub parallel_tool_calls: Option<bool>,
    /// `format`: what the reply must be.
    pub text: Option<Value>,
    /// `effort`: how much a model that can think shall think.
    pub reasoning: Option<Value>,
    /// Words of the asker, given back.
    pub metadata: Option<Value>,
    /// Who asks.
    pub user: Option<String>,
    /// Not here.
    #[schemars(skip)]
    pub background: Option<bool>,
    /// Not here.
    #[schemars(skip)]
    pub conversation: Option<Value>,
    /// Not here.
    #[schemars(skip)]
    pub top_logprobs: Option<Value>,
    /// More to tell; what is not here is left out, but for log-probabilities, which are refused.
    #[schemars(skip)]
    pub include: Option<Vec<String>>,
}

/// An item as the engine's message.
fn item(v: &Value) -> ApiResult<Option<Message>> {
    let str_of = |key: &str| v.get(key).and_then(Value::as_str);
    match str_of("type").unwrap_or("message") {
        "message" => {
            let role = match str_of("role").unwrap_or("user") {
                "system" | "developer" => Role::System,
                "user" => Role::User,
                "assistant" => Role::Assistant,
                _ => {
                    return Err(ApiError::field(
                        "input",
                        "a role must be system, developer, user or assistant",
                    ));
                }
            };
            let content = v.get("content").cloned().unwrap_or_default();
            let content: Content = serde_json::from_value(content)
                .map_err(|_| ApiError::field("input", "a message's content is neither text nor parts"))?;
            Ok(Some(Message::new(role, content.text()?)))
        }
        "reasoning" => Ok(None),
        "function_call" => {
            let call = json!({"id": v.get("call_id"), "type": "function",
                "function": {"name": v.get("name"), "arguments": v.get("arguments")}});
            Ok(Some(Message { tool_calls: vec![call], ..Message::assistant("") }))
        }
        "function_call_output" => {
            let output = v.get("output").cloned().unwrap_or_default();
            let text = match serde_json::from_value::<Content>(output.clone()) {
                Ok(content) => content.text()?,
                Err(_) => output.to_string(),
            };
            let mut result = Message::tool(text);
            result.tool_call_id = str_of("call_id").map(str::to_owned);
            Ok(Some(result))
        }
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("an item of type `{}` is not read here", shown.escape_debug());
            Err(ApiError::unsupported("input", message))
        }
    }
}

/// `text.format`, which is flatter than the chat API's.
fn format(text: Option<&Value>) -> ApiResult<Option<ResponseFormat>> {
    let Some(format) = text.and_then(|t| t.get("format")).filter(|f| !f.is_null()) else { return Ok(None) };
    let mut format = format.clone();
    if format.get("type").and_then(Value::as_str) == Some("json_schema")
        && format.get("json_schema").is_none()
    {
        format = json!({"type": "json_schema", "json_schema": format});
    }
    let parsed = serde_json::from_value(format);
    parsed
        .map(Some)
        .map_err(|e| ApiError::field("text.format", format!("it is not a format known here: {e}")))
}

/// The handler.
pub async fn create(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    Body(r): Body<ResponsesRequest>,
) -> ApiResult<Response> {
    let logprobs = "ask /v1/chat/completions for log-probabilities";
    let told = r.include.iter().flatten().any(|what| what == "message.output_text.logprobs");
    refuse(&[
        ("top_logprobs", r.top_logprobs.as_ref().is_some_and(|v| !v.is_null() && *v != 0), logprobs),
        ("include", told, logprobs),
        ("background", r.background == Some(true), "wait for the response, or stream it"),
        ("conversation", r.conversation.as_ref().is_some_and(|v| !v.is_null()), "use previous_response_id"),
    ])?;
    let mut said = match &r.previous_response_id {
        Some(id) => app.responses.get(id)?.messages,
        None => Vec::new(),
    };
    match &r.input {
        Input::Text(text) => said.push(Message::user(text.clone())),
        Input::Items(items) => {
            for v in items {
                said.extend(item(v)?);
            }
        }
    }
    let mut messages: Vec<Message> = r.instructions.iter().map(|i| Message::system(i.clone())).collect();
    messages.extend(said.clone());
    let effort = r.reasoning.as_ref().and_then(|v| v.get("effort")).and_then(Value::as_str);
    let (choice, tools) =
        ToolChoice::from_openai(r.tool_choice.as_ref(), r.tools.clone().unwrap_or_default())?;
    let wish = Wish {
        chosen: app.models.find(&r.model)?,
        conversation: Conversation {
            messages,
            tools,
            choice,
            parallel: r.parallel_tool_calls.unwrap_or(true),
            grammar: grammar(format(r.text.as_ref())?.as_ref(), &Default::default())?,
            goes_on: false,
        },
        template: None,
        effort: effort.map(str::to_owned),
        who: client.with_user(r.user.as_deref()),
        sampling: r.sampling.clone(),
        max_tokens: app.max_tokens(r.max_output_tokens),
        stops: Vec::new(),
        stop_tokens: Vec::new(),
        n: 1,
        top_logprobs: 0,
        state: None,
        cached: true,
    };
    let stream = r.stream.unwrap_or(false);
    let generation = Generation::start(&app, wish).await?;
    let mut front = Events {
        app,
        id: fresh_id("resp_"),
        created: now(),
        said,
        request: r,
        number: 0,
        items: Vec::new(),
        open: None,
        whole: Whole::default(),
    };
    if stream {
        return Ok(streamed(generation, front));
    }
    let (generation, mut all) = generation.whole().await?;
    front.whole = all.pop().unwrap_or_default();
    front.items_of_whole();
    front.mark(front.status(&generation));
    let body = front.body(&generation, front.status(&generation));
    front.keep(&body);
    Ok(Json(body).into_response())
}

/// One that was kept.
pub async fn get(State(app): State<Shared>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(app.responses.get(&id)?.body))
}

/// Forgets one.
pub async fn delete(State(app): State<Shared>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    app.responses.remove(&id)?;
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// A response as it grows; the stream.
struct Events {
    app: Shared,
    id: String,
    created: u64,
    /// The conversation without instructions.
    said: Vec<Message>,
    request: ResponsesRequest,
    /// The number of the next event.
    number: u64,
    /// Output items that are done.
    items: Vec<Value>,
    /// The item that grows: what it is, its id, its text.
    open: Option<(&'static str, String, String)>,
    whole: Whole,
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Events {
    fn status(&self, of: &Generation) -> &'static str {
        if of.choices[0].finish == Some("length") { "incomplete" } else { "completed" }
    }

    fn body(&self, of: &Generation, status: &str) -> Value {
        let r = &self.request;
        let usage = of.usage();
        let over = status == "completed" || status == "incomplete";
        let usage = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": usage.prompt_tokens_details,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": usage.completion_tokens_details,
            "total_tokens": usage.total_tokens,
        });
        let incomplete =
            if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { Value::Null };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": r.instructions,
            "max_output_tokens": r.max_output_tokens,
            "metadata": r.metadata.clone().unwrap_or_else(|| json!({})),
            "model": of.chosen.id,
            "output": self.items,
            "parallel_tool_calls": r.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": r.previous_response_id,
            "reasoning": {"effort": r.reasoning.as_ref().and_then(|v| v.get("effort")), "summary": null},
            "service_tier": "default",
            "store": r.store.unwrap_or(true),
            "temperature": r.sampling.temperature,
            "text": {"format": r.text.as_ref().and_then(|t| t.get("format")).cloned().unwrap_or_else(|| json!({"type": "text"}))},
            "tool_choice": r.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": r.tools.clone().unwrap_or_default(),
            "top_p": r.sampling.top_p,
            "truncation": "disabled",
            "usage": if over { usage } else { Value::Null },
            "user": r.user,
        })
    }

    /// A message that was cut off says so.
    fn mark(&mut self, status: &str) {
        if let Some(last) = self.items.last_mut().filter(|i| i["type"] == "message" && status == "incomplete")
        {
            last["status"] = json!(status);
        }
    }

    fn keep(&mut self, body: &Value) {
        if !self.request.store.unwrap_or(true) {
            return;
        }
        let mut messages = self.said.clone();
        let calls = tool_calls(&self.whole.calls, false);
        messages.push(Message { tool_calls: calls, ..Message::assistant(self.whole.text.clone()) });
        self.app.responses.put(&self.id, body.clone(), messages);
    }

    fn items_of_whole(&mut self) {
        if !self.whole.reasoning.is_empty() {
            let reasoning = self.whole.reasoning.clone();
            self.items.push(done_item("reasoning", &fresh_id("rs_"), &reasoning));
        }
        if !self.whole.text.is_empty() || self.whole.calls.is_empty() {
            let text = self.whole.text.clone();
            self.items.push(done_item("message", &fresh_id("msg_"), &text));
        }
        self.items.extend(self.whole.calls.iter().map(call_item));
    }

    fn event(&mut self, kind: &str, mut data: Value) -> Frame {
        data["type"] = json!(kind);
        data["sequence_number"] = json!(self.number);
        self.number += 1;
        Frame::default().event(kind).data(data.to_string())
    }

    /// Opens an item of this kind, unless it is open.
    fn open(&mut self, kind: &'static str, frames: &mut Vec<Frame>) {
        if self.open.as_ref().is_some_and(|o| o.0 == kind) {
            return;
        }
        self.close("completed", frames);
        let id = fresh_id(if kind == "reasoning" { "rs_" } else { "msg_" });
        let at = self.items.len();
        let mut item = done_item(kind, &id, "");
        if kind == "message" {
            item["content"] = json!([]);
            item["status"] = json!("in_progress");
        }
        frames.push(self.event("response.output_item.added", json!({"output_index": at, "item": item})));
        if kind == "message" {
            let part = json!({"item_id": id, "output_index": at, "content_index": 0, "part": text_part("")});
            frames.push(self.event("response.content_part.added", part));
        }
        self.open = Some((kind, id, String::new()));
    }

    /// Closes the item that is open; a message says whether it came to its end.
    fn close(&mut self, status: &str, frames: &mut Vec<Frame>) {
        let Some((kind, id, text)) = self.open.take() else { return };
        let at = self.items.len();
        let place = json!({"item_id": id, "output_index": at, "content_index": 0});
        let with = |key: &str, v: Value| {
            let mut data = place.clone();
            data[key] = v;
            data
        };
        if kind == "message" {
            let mut done = with("text", json!(text));
            done["logprobs"] = json!([]);
            frames.push(self.event("response.output_text.done", done));
            frames.push(self.event("response.content_part.done", with("part", text_part(&text))));
        } else {
            frames.push(self.event("response.reasoning_text.done", with("text", json!(text))));
        }
        let mut item = done_item(kind, &id, &text);
        if kind == "message" {
            item["status"] = json!(status);
        }
        frames.push(self.event("response.output_item.done", json!({"output_index": at, "item": item})));
        self.items.push(item);
    }

    fn add(&mut self, text: &str, frames: &mut Vec<Frame>) {
        let at = self.items.len();
        let Some((kind, id, whole)) = &mut self.open else { return };
        whole.push_str(text);
        let mut data = json!({"item_id": id, "output_index": at, "content_index": 0, "delta": text});
        let name = match *kind {
            "message" => {
                data["logprobs"] = json!([]);
                "response.output_text.delta"
            }
            _ => "response.reasoning_text.delta",
        };
        frames.push(self.event(name, data));
    }
}

fn done_item(kind: &str, id: &str, text: &str) -> Value {
    match kind {
        "reasoning" => {
            let content = json!([{"type": "reasoning_text", "text": text}]);
            json!({"id": id, "type": "reasoning", "summary": [], "content": content})
        }
        _ => json!({"id": id, "type": "message", "status": "completed", "role": "assistant",
                    "content": [text_part(text)]}),
    }
}

fn call_item(call: &Call) -> Value {
    json!({"id": fresh_id("fc_"), "type": "function_call", "status": "completed", "call_id": call_id(call),
           "name": call.name, "arguments": call.arguments})
}

impl Front for Events {
    fn begin(&mut self, of: &Generation) -> Vec<Frame> {
        let body = self.body(of, "in_progress");
        let created = self.event("response.created", json!({"response": body}));
        let progress = self.event("response.in_progress", json!({"response": body}));
        vec![created, progress]
    }

    fn grew(&mut self, _of: &Generation, _choice: usize, growth: Growth) -> Vec<Frame> {
        let mut frames = Vec::new();
        for delta in growth.deltas {
            match delta {
                Delta::Reasoning(text) => {
                    self.whole.reasoning.push_str(&text);
                    self.open("reasoning", &mut frames);
                    self.add(&text, &mut frames);
                }
                Delta::Text(text) => {
                    self.whole.text.push_str(&text);
                    self.open("message", &mut frames);
                    self.add(&text, &mut frames);
                }
                Delta::Calls(calls) => {
                    self.close("completed", &mut frames);
                    for call in calls {
                        let (item, at) = (call_item(&call), self.items.len());
                        let mut begun = item.clone();
                        begun["arguments"] = json!("");
                        begun["status"] = json!("in_progress");
                        let added = json!({"output_index": at, "item": begun});
                        frames.push(self.event("response.output_item.added", added));
                        let place = json!({"item_id": item["id"], "output_index": at});
                        let mut grown = place.clone();
                        grown["delta"] = json!(call.arguments);
                        frames.push(self.event("response.function_call_arguments.delta", grown));
                        let mut done = place;
                        done["arguments"] = json!(call.arguments);
                        done["name"] = json!(call.name);
                        frames.push(self.event("response.function_call_arguments.done", done));
                        let done = json!({"output_index": at, "item": item});
                        frames.push(self.event("response.output_item.done", done));
                        self.items.push(item);
                        self.whole.calls.push(call);
                    }
                }
            }
        }
        frames
    }

    fn end(&mut self, of: &Generation) -> Vec<Frame> {
        let mut frames = Vec::new();
        let status = self.status(of);
        if self.items.is_empty() {
            self.open("message", &mut frames);
        }
        self.close(status, &mut frames);
        let body = self.body(of, status);
        self.keep(&body);
        let name = format!("response.{status}");
        frames.push(self.event(&name, json!({"response": body})));
        frames
    }

    fn failed(&mut self, of: &Generation, e: &ApiError) -> Vec<Frame> {
        let data = json!({"code": e.code, "message": e.message, "param": e.param});
        let mut body = self.body(of, "failed");
        body["error"] = json!({"code": e.code.unwrap_or("server_error"), "message": e.message});
        vec![self.event("error", data), self.event("response.failed", json!({"response": body}))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_has_the_ids_that_were_told() {
        let call = Call { id: fresh_id(""), name: "f".into(), arguments: "{}".into() };
        assert_eq!(call_item(&call)["call_id"], tool_calls(std::slice::from_ref(&call), false)[0]["id"]);
    }
}
