//! `/v1/chat/completions`.

use crate::app::{Client, Shared};
use crate::body::Body;
use crate::conversation::{Call, ChatMessage, Conversation, ToolChoice, message};
use crate::error::{ApiError, ApiResult};
use crate::generation::{Front, Generation, Whole, Wish, frame, streamed};
use crate::hosted::now;
use crate::reply::{Delta, Growth, chat_logprobs, timings};
use crate::run::fresh_id;
use crate::sampling::{
    Guided, OfVllm, OneOrMany, ResponseFormat, Sampling, StreamOptions, choices, grammar, include_usage,
    refuse, stops,
};
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// A request of a chat completion, as OpenAI's API has it, and hawfinch's own fields.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ChatRequest {
    /// The model, or `model+adapter`.
    pub model: String,
    /// What was said.
    pub messages: Vec<ChatMessage>,
    /// How tokens are drawn.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Grammars as vLLM's API names them.
    #[serde(flatten)]
    pub guided: Guided,
    /// Other fields of vLLM's API.
    #[serde(flatten)]
    pub of_vllm: OfVllm,
    /// Send it as it grows.
    pub stream: Option<bool>,
    /// What a stream tells besides.
    pub stream_options: Option<StreamOptions>,
    /// Tokens of a choice at most (the older name).
    pub max_tokens: Option<u64>,
    /// Tokens of a choice at most.
    pub max_completion_tokens: Option<u64>,
    /// Choices.
    #[schemars(range(min = 1, max = 64))]
    pub n: Option<u32>,
    /// Texts that end a reply.
    pub stop: Option<OneOrMany>,
    /// Tell log-probabilities.
    pub logprobs: Option<bool>,
    /// And those of so many other tokens.
    #[schemars(range(min = 0, max = 20))]
    pub top_logprobs: Option<u32>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Whether it must.
    pub tool_choice: Option<Value>,
    /// Whether it may call several in one reply (default true).
    pub parallel_tool_calls: Option<bool>,
    /// What the reply must be.
    pub response_format: Option<ResponseFormat>,
    /// Who asks: users take turns.
    pub user: Option<String>,
    /// How much a model that can think shall think.
    pub reasoning_effort: Option<String>,
    /// A built-in chat template in place of the model's own.
    pub template: Option<String>,
    /// A saved state to go on from.
    pub state: Option<String>,
    /// Whether known states are used and new ones kept (default true).
    pub cache: Option<bool>,
    /// Go on with the last message, which is the assistant's (vLLM's name).
    pub continue_final_message: Option<bool>,
    /// Not here.
    #[schemars(skip)]
    pub functions: Option<Value>,
    /// Not here.
    #[schemars(skip)]
    pub function_call: Option<Value>,
    /// Not here.
    #[schemars(skip)]
    pub audio: Option<Value>,
    /// Text alone.
    #[schemars(skip)]
    pub modalities: Option<Vec<String>>,
    /// Not here.
    #[schemars(skip)]
    pub web_search_options: Option<Value>,
}

/// The handler.
pub async fn chat(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    Body(r): Body<ChatRequest>,
) -> ApiResult<Response> {
    let given = |v: &Option<Value>| v.as_ref().is_some_and(|v| !v.is_null());
    let speaks = r.modalities.iter().flatten().any(|m| m != "text");
    refuse(&[
        ("functions", given(&r.functions), "it is the older form of `tools`: use that"),
        ("function_call", given(&r.function_call), "it is the older form of `tool_choice`: use that"),
        ("audio", given(&r.audio) || speaks, "this model reads and writes text"),
        ("web_search_options", given(&r.web_search_options), "there is no search here"),
    ])?;
    let top = r.top_logprobs.unwrap_or(0);
    if top > 20 {
        return Err(ApiError::field(
            "top_logprobs",
            format!("top_logprobs is {top}: it must be between 0 and 20"),
        ));
    }
    let logprobs = r.logprobs.unwrap_or(false);
    if top > 0 && !logprobs {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs `logprobs` to be true"));
    }
    let stream = r.stream.unwrap_or(false);
    let include_usage = include_usage(r.stream_options.as_ref(), stream)?;
    let chosen = app.models.find(&r.model)?;
    let (choice, tools) =
        ToolChoice::from_openai(r.tool_choice.as_ref(), r.tools.clone().unwrap_or_default())?;
    let conversation = Conversation {
        messages: r.messages.iter().map(message).collect::<ApiResult<_>>()?,
        tools,
        choice,
        parallel: r.parallel_tool_calls.unwrap_or(true),
        grammar: grammar(r.response_format.as_ref(), &r.guided)?,
        goes_on: r.continue_final_message.unwrap_or(false),
    };
    let wish = Wish {
        stop_tokens: r.of_vllm.stop_tokens(chosen.hosted.model.config().vocab)?,
        chosen,
        conversation,
        template: r.template,
        effort: r.reasoning_effort,
        sampling: r.sampling,
        max_tokens: app.max_tokens(r.max_completion_tokens.or(r.max_tokens)),
        stops: stops(r.stop)?,
        n: choices(r.n, "n")? as usize,
        top_logprobs: top,
        state: r.state,
        cached: r.cache.unwrap_or(true),
        who: client.with_user(r.user.as_deref()),
    };
    let generation = Generation::start(&app, wish).await?;
    let head = Head::new(&generation);
    if stream {
        return Ok(streamed(generation, Chunks { head, logprobs, include_usage }));
    }
    let (generation, all) = generation.whole().await?;
    let choices = all.into_iter().enumerate().map(|(i, whole)| whole_choice(&generation, i, whole, logprobs));
    Ok(Json(json!({
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
        "choices": choices.collect::<Vec<_>>(),
        "usage": generation.usage(),
        "timings": timings(&generation.ending.timings),
    }))
    .into_response())
}

/// What every chunk says.
pub struct Head {
    /// The reply's id.
    pub id: String,
    /// When it began.
    pub created: u64,
    /// The model's name as asked for.
    pub model: String,
    /// Tells whether the same seed can give the same text.
    pub fingerprint: String,
}

impl Head {
    fn new(of: &Generation) -> Self {
        Self {
            id: fresh_id("chatcmpl-"),
            created: now(),
            model: of.chosen.id.clone(),
            fingerprint: fingerprint(&of.chosen.base.root),
        }
    }
}

/// Of everything that a result depends on but the request.
pub fn fingerprint(root: &str) -> String {
    let tail: String = root.chars().rev().filter(char::is_ascii_hexdigit).take(12).collect();
    format!("fp_{tail}")
}

/// A call's id as OpenAI's APIs write it.
pub fn call_id(call: &Call) -> String {
    format!("call_{}", call.id)
}

/// Calls as OpenAI's API writes them.
pub fn tool_calls(calls: &[Call], indexed: bool) -> Vec<Value> {
    let one = |(i, call): (usize, &Call)| {
        let function = json!({"name": call.name, "arguments": call.arguments});
        let mut value = json!({"id": call_id(call), "type": "function", "function": function});
        if indexed {
            value["index"] = json!(i);
        }
        value
    };
    calls.iter().enumerate().map(one).collect()
}

fn whole_choice(of: &Generation, index: usize, whole: Whole, logprobs: bool) -> Value {
    let mut message = json!({"role": "assistant", "content": whole.text, "refusal": null});
    if !whole.reasoning.is_empty() {
        message["reasoning_content"] = json!(whole.reasoning);
    }
    if !whole.calls.is_empty() {
        message["content"] = Value::Null;
        message["tool_calls"] = json!(tool_calls(&whole.calls, false));
    }
    let tokens = &of.chosen.hosted.tokenizer;
    let logprobs =
        if logprobs { chat_logprobs(tokens, &whole.tokens, of.top_logprobs as usize) } else { Value::Null };
    let finish = of.choices[index].finish.unwrap_or("stop");
    json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
}

/// The stream.
struct Chunks {
    head: Head,
    logprobs: bool,
    include_usage: bool,
}

impl Chunks {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "system_fingerprint": self.head.fingerprint,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Frame {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        frame(&self.chunk(json!([choice])))
    }
}

impl Front for Chunks {
    fn begin(&mut self, of: &Generation) -> Vec<Frame> {
        let role = |i| self.delta(i, json!({"role": "assistant", "content": ""}), Value::Null, None);
        (0..of.choices.len()).map(role).collect()
    }

    fn grew(&mut self, of: &Generation, choice: usize, growth: Growth) -> Vec<Frame> {
        let Growth { deltas, tokens } = growth;
        let mut frames = Vec::new();
        let mut logprobs = match self.logprobs && !tokens.is_empty() {
            true => chat_logprobs(&of.chosen.hosted.tokenizer, &tokens, of.top_logprobs as usize),
            false => Value::Null,
        };
        for delta in deltas {
            let delta = match delta {
                Delta::Reasoning(text) => json!({"reasoning_content": text}),
                Delta::Text(text) => json!({"content": text}),
                Delta::Calls(calls) => json!({"tool_calls": tool_calls(&calls, true)}),
            };
            frames.push(self.delta(choice, delta, logprobs.take(), None));
        }
        if !logprobs.is_null() {
            frames.push(self.delta(choice, json!({"content": ""}), logprobs, None));
        }
        if let Some(finish) = of.choices[choice].finish {
            frames.push(self.delta(choice, json!({}), Value::Null, Some(finish)));
        }
        frames
    }

    fn end(&mut self, of: &Generation) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.include_usage {
            let mut last = self.chunk(json!([]));
            last["usage"] = json!(of.usage());
            last["timings"] = timings(&of.ending.timings);
            frames.push(frame(&last));
        }
        frames.push(Frame::default().data("[DONE]"));
        frames
    }

    fn failed(&mut self, _of: &Generation, e: &ApiError) -> Vec<Frame> {
        vec![frame(&e.body())]
    }
}
