//! `/v1/messages`, as Anthropic's API has it.

use crate::app::{Client, Shared};
use crate::body::{Body, parse};
use crate::conversation::{Call, Content, Conversation, ToolChoice};
use crate::error::{ApiError, ApiResult};
use crate::generation::{Front, Generation, Wish, streamed};
use crate::hosted::Chosen;
use crate::reply::{Choice, Delta, Growth};
use crate::run::{aside, fresh_id};
use crate::sampling::{OneOrMany, Sampling, refuse, stops};
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use hawfinch_engine::{Grammar, Message, Role};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// A request of a message.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct MessagesRequest {
    /// The model, or `model+adapter`.
    pub model: String,
    /// What was said.
    pub messages: Vec<AnthropicMessage>,
    /// Tokens of the reply at most.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Instructions: a text or blocks of text.
    pub system: Option<Content>,
    /// How tokens are drawn.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Texts that end the reply.
    pub stop_sequences: Option<Vec<String>>,
    /// Send it as it grows.
    pub stream: Option<bool>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Whether it must.
    pub tool_choice: Option<Value>,
    /// Whether a model that can think shall.
    pub thinking: Option<Value>,
    /// `format`: what the reply must be; `effort`: how much a model that can think shall think.
    pub output_config: Option<Value>,
    /// The older name of its format.
    pub output_format: Option<Value>,
    /// `user_id`: who asks.
    pub metadata: Option<Value>,
    /// Not here.
    #[schemars(skip)]
    pub mcp_servers: Option<Value>,
}

/// A message.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct AnthropicMessage {
    /// `user` or `assistant`.
    pub role: AnthropicRole,
    /// A text, or blocks: `text`, `tool_use`, `tool_result`, `thinking`.
    pub content: Content,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AnthropicRole {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// A message's blocks as the engine's messages: results of functions are messages of their own.
fn messages(m: &AnthropicMessage, out: &mut Vec<Message>) -> ApiResult<()> {
    let role = if m.role == AnthropicRole::User { Role::User } else { Role::Assistant };
    let blocks = match &m.content {
        Content::Text(text) => {
            out.push(Message::new(role, text.clone()));
            return Ok(());
        }
        Content::Parts(blocks) => blocks,
    };
    let (mut text, mut calls) = (Vec::new(), Vec::new());
    for block in blocks {
        let str_of = |key: &str| block.get(key).and_then(Value::as_str);
        match str_of("type").unwrap_or_default() {
            "text" => text.push(str_of("text").unwrap_or_default().to_owned()),
            "thinking" | "redacted_thinking" => {}
            "tool_use" => calls.push(json!({
                "id": block.get("id"),
                "type": "function",
                "function": {"name": block.get("name"), "arguments": block.get("input").unwrap_or(&Value::Null).to_string()},
            })),
            "tool_result" => {
                let content = match block.get("content") {
                    None | Some(Value::Null) => String::new(),
                    Some(v) => serde_json::from_value::<Content>(v.clone())
                        .map_err(|_| ApiError::field("messages", "a tool_result has neither text nor blocks"))?
                        .text()?,
                };
                let mut result = Message::tool(content);
                result.tool_call_id = str_of("tool_use_id").map(str::to_owned);
                out.push(result);
            }
            other => {
                let shown: String = other.chars().take(40).collect();
                let message = format!("a block of type `{}`: this model reads text only", shown.escape_debug());
                return Err(ApiError::unsupported("messages", message));
            }
        }
    }
    if !text.is_empty() || !calls.is_empty() {
        out.push(Message { tool_calls: calls, ..Message::new(role, text.join("\n")) });
    }
    Ok(())
}

fn conversation(r: &MessagesRequest) -> ApiResult<Conversation> {
    let mut all = Vec::new();
    if let Some(system) = &r.system {
        all.push(Message::system(system.text()?));
    }
    for m in &r.messages {
        messages(m, &mut all)?;
    }
    let tool = |t: &Value| match t.get("type") {
        None | Some(Value::Null) => Ok(as_function(t)),
        Some(kind) if kind == "custom" => Ok(as_function(t)),
        Some(kind) => {
            let shown: String = kind.as_str().unwrap_or("not a text").chars().take(40).collect();
            let message = format!(
                "a tool of type `{}` is not run here: give tools of type `custom`",
                shown.escape_debug()
            );
            Err(ApiError::unsupported("tools", message))
        }
    };
    let choice = match r.tool_choice.as_ref().and_then(|c| c.get("type")).and_then(Value::as_str) {
        None | Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => {
            let name = r.tool_choice.as_ref().and_then(|c| c.get("name")).and_then(Value::as_str);
            ToolChoice::Named(name.ok_or_else(|| ApiError::field("tool_choice", "it names no tool"))?.into())
        }
        Some(_) => return Err(ApiError::field("tool_choice", "its type must be auto, any, tool or none")),
    };
    // A last message of the assistant is the beginning of the reply.
    let goes_on = all.last().is_some_and(|m| m.role == Role::Assistant && m.tool_calls.is_empty());
    let tools = r.tools.iter().flatten().map(tool).collect::<ApiResult<_>>()?;
    let one = match r.tool_choice.as_ref().and_then(|c| c.get("disable_parallel_tool_use")) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(one)) => *one,
        Some(_) => {
            let message = "its disable_parallel_tool_use must be true or false";
            return Err(ApiError::field("tool_choice", message));
        }
    };
    Ok(Conversation { messages: all, tools, choice, parallel: !one, grammar: format(r)?, goes_on })
}

/// A tool as OpenAI's API defines functions.
fn as_function(t: &Value) -> Value {
    json!({"type": "function", "function": {
        "name": t.get("name"), "description": t.get("description"), "parameters": t.get("input_schema"),
    }})
}

/// How much a model that can think shall think.
fn effort(r: &MessagesRequest) -> Option<String> {
    let told = r.output_config.as_ref().and_then(|c| c.get("effort")).and_then(Value::as_str);
    let thinks = r.thinking.as_ref().and_then(|t| t.get("type")).and_then(Value::as_str);
    match (told, thinks) {
        (_, Some("disabled")) => Some("none".into()),
        (Some("max"), _) => Some("high".into()),
        (Some(effort), _) => Some(effort.into()),
        (None, Some(_)) => Some("medium".into()),
        (None, None) => None,
    }
}

/// What the reply must be, by either name of it.
fn format(r: &MessagesRequest) -> ApiResult<Option<Grammar>> {
    let of_config = r.output_config.as_ref().and_then(|c| c.get("format"));
    let Some(format) = of_config.or(r.output_format.as_ref()).filter(|f| !f.is_null()) else {
        return Ok(None);
    };
    match (format.get("type").and_then(Value::as_str), format.get("schema")) {
        (Some("json_schema"), Some(schema)) => Ok(Some(Grammar::JsonSchema(schema.clone()))),
        _ => Err(ApiError::field(
            "output_config",
            "its format must be of type `json_schema` and have a `schema`",
        )),
    }
}

/// The handler: its errors have Anthropic's shape.
pub async fn create(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    body: ApiResult<Body<MessagesRequest>>,
) -> Response {
    match answer(app, client, body).await {
        Ok(response) => response,
        Err(e) => e.response(e.anthropic()),
    }
}

async fn answer(app: Shared, client: Client, body: ApiResult<Body<MessagesRequest>>) -> ApiResult<Response> {
    let Body(r) = body?;
    refuse(&[("mcp_servers", r.mcp_servers.as_ref().is_some_and(|v| !v.is_null()), "give `tools`")])?;
    let Some(max_tokens) = r.max_tokens else {
        return Err(ApiError::field("max_tokens", "max_tokens is missing"));
    };
    let own = r.stop_sequences.clone().unwrap_or_default();
    let effort = effort(&r);
    let user = r.metadata.as_ref().and_then(|m| m.get("user_id")).and_then(Value::as_str);
    let wish = Wish {
        chosen: app.models.find(&r.model)?,
        conversation: conversation(&r)?,
        template: None,
        effort,
        who: client.with_user(user),
        sampling: r.sampling,
        max_tokens: app.max_tokens(Some(max_tokens)),
        stops: stops(r.stop_sequences.map(OneOrMany::Many))?,
        stop_tokens: Vec::new(),
        n: 1,
        top_logprobs: 0,
        state: None,
        cached: true,
    };
    let generation = Generation::start(&app, wish).await?;
    let id = fresh_id("msg_");
    if r.stream.unwrap_or(false) {
        return Ok(streamed(generation, Events { id, own, open: None, next: 0 }));
    }
    let (generation, mut all) = generation.whole().await?;
    let whole = all.pop().unwrap_or_default();
    let mut content = Vec::new();
    if !whole.reasoning.is_empty() {
        content.push(json!({"type": "thinking", "thinking": whole.reasoning, "signature": ""}));
    }
    if !whole.text.is_empty() || whole.calls.is_empty() {
        content.push(json!({"type": "text", "text": whole.text}));
    }
    content.extend(whole.calls.iter().map(tool_use));
    let mut body = head(&id, &generation.chosen);
    body["content"] = json!(content);
    let (reason, sequence) = stop_reason(&generation.choices[0], &own);
    body["stop_reason"] = json!(reason);
    body["stop_sequence"] = sequence;
    body["usage"] = usage(&generation);
    Ok(Json(body).into_response())
}

fn head(id: &str, chosen: &Chosen) -> Value {
    json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": chosen.id,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
    })
}

fn tool_use(call: &Call) -> Value {
    let input: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    json!({"type": "tool_use", "id": format!("toolu_{}", call.id), "name": call.name, "input": input})
}

fn usage(of: &Generation) -> Value {
    let u = of.usage();
    json!({
        "input_tokens": u.prompt_tokens - u.prompt_tokens_details.cached_tokens,
        "cache_read_input_tokens": u.prompt_tokens_details.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": u.completion_tokens,
    })
}

/// Why it ended; stop strings that are not the request's own are the model's end.
fn stop_reason(choice: &Choice, own: &[String]) -> (&'static str, Value) {
    match choice.finish {
        Some("length") => ("max_tokens", Value::Null),
        Some("tool_calls") => ("tool_use", Value::Null),
        _ => match &choice.stop_string {
            Some(s) if own.contains(s) => ("stop_sequence", json!(s)),
            _ => ("end_turn", Value::Null),
        },
    }
}

/// The stream.
struct Events {
    id: String,
    /// The request's own stop strings.
    own: Vec<String>,
    /// The block that is open.
    open: Option<&'static str>,
    /// The next block's index.
    next: usize,
}

fn event(name: &str, data: Value) -> Frame {
    Frame::default().event(name).data(data.to_string())
}

impl Events {
    fn close(&mut self, frames: &mut Vec<Frame>) {
        if self.open.take().is_some() {
            let data = json!({"type": "content_block_stop", "index": self.next - 1});
            frames.push(event("content_block_stop", data));
        }
    }

    fn block(&mut self, kind: &'static str, start: Value, frames: &mut Vec<Frame>) {
        if self.open != Some(kind) || kind == "tool_use" {
            self.close(frames);
            let data = json!({"type": "content_block_start", "index": self.next, "content_block": start});
            frames.push(event("content_block_start", data));
            (self.open, self.next) = (Some(kind), self.next + 1);
        }
    }

    fn delta(&self, delta: Value, frames: &mut Vec<Frame>) {
        let data = json!({"type": "content_block_delta", "index": self.next - 1, "delta": delta});
        frames.push(event("content_block_delta", data));
    }
}

impl Front for Events {
    fn begin(&mut self, of: &Generation) -> Vec<Frame> {
        let mut message = head(&self.id, &of.chosen);
        // How much of the prompt is known already is told at the end.
        message["usage"] = usage(of);
        vec![
            event("message_start", json!({"type": "message_start", "message": message})),
            event("ping", json!({"type": "ping"})),
        ]
    }

    fn grew(&mut self, _of: &Generation, _choice: usize, growth: Growth) -> Vec<Frame> {
        let mut frames = Vec::new();
        for delta in growth.deltas {
            match delta {
                Delta::Reasoning(text) => {
                    self.block(
                        "thinking",
                        json!({"type": "thinking", "thinking": "", "signature": ""}),
                        &mut frames,
                    );
                    self.delta(json!({"type": "thinking_delta", "thinking": text}), &mut frames);
                }
                Delta::Text(text) => {
                    self.block("text", json!({"type": "text", "text": ""}), &mut frames);
                    self.delta(json!({"type": "text_delta", "text": text}), &mut frames);
                }
                Delta::Calls(calls) => {
                    for call in &calls {
                        let mut start = tool_use(call);
                        start["input"] = json!({});
                        self.block("tool_use", start, &mut frames);
                        let delta = json!({"type": "input_json_delta", "partial_json": call.arguments});
                        self.delta(delta, &mut frames);
                    }
                }
            }
        }
        frames
    }

    fn end(&mut self, of: &Generation) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.close(&mut frames);
        let (reason, sequence) = stop_reason(&of.choices[0], &self.own);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let data = json!({"type": "message_delta", "delta": delta, "usage": usage(of)});
        frames.push(event("message_delta", data));
        frames.push(event("message_stop", json!({"type": "message_stop"})));
        frames
    }

    fn failed(&mut self, _of: &Generation, e: &ApiError) -> Vec<Frame> {
        vec![event("error", e.anthropic())]
    }
}

/// How many tokens a request's prompt has.
pub async fn count(State(app): State<Shared>, request: Request) -> Response {
    let counted = async {
        let bytes = crate::body::read(request, &app).await?;
        let r: MessagesRequest = parse(&bytes)?;
        let chosen = app.models.find(&r.model)?;
        aside(move || {
            let template = crate::generation::template(&chosen.hosted, None, effort(&r).as_deref())?;
            Ok(conversation(&r)?.render(&chosen.hosted, &template)?.prompt.len())
        })
        .await
    };
    match counted.await {
        Ok(tokens) => Json(json!({"input_tokens": tokens})).into_response(),
        Err(e) => ApiError::response(&e, e.anthropic()),
    }
}
