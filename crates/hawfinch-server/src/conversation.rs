//! Conversations: messages of any of the APIs to a prompt of the model's template, with what the reply must be.

use crate::error::{ApiError, ApiResult};
use crate::hosted::Hosted;
use crate::run::{aside, fresh_id};
use hawfinch_engine::schedule::{Constrained, Refused};
use hawfinch_engine::{Constraint, Grammar, Message, Role, Template};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Functions of a request at most.
const MAX_TOOLS: usize = 128;
/// Ends of messages where states are kept, besides the first.
const MARKS: usize = 6;
/// Grammars that are compiled at once, whoever asks: one can take a core for seconds.
static COMPILING: Semaphore = Semaphore::const_new(2);

/// A message as OpenAI's API has it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant`, `tool` or `function`.
    pub role: MessageRole,
    /// Its text, or parts of type `text`.
    #[serde(default)]
    pub content: Option<Content>,
    /// Name of the speaker or of the function.
    #[serde(default)]
    pub name: Option<String>,
    /// Calls of functions that the assistant made.
    #[serde(default)]
    pub tool_calls: Option<Vec<Value>>,
    /// The same under its older form: one call.
    #[serde(default)]
    pub function_call: Option<Value>,
    /// Which call a tool message answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// The assistant's reasoning; not read again.
    #[serde(default)]
    pub reasoning_content: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageRole {
    /// Instructions.
    System,
    /// The same under its newer name.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A function's result.
    Tool,
    /// The same under its older name.
    Function,
}

/// A text, or its parts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts, all of which must be text.
    Parts(Vec<Value>),
}

impl Content {
    /// The text, if it is nothing else.
    ///
    /// # Errors
    /// A part that is an image, a sound or a file.
    pub fn text(&self) -> ApiResult<String> {
        let parts = match self {
            Content::Text(text) => return Ok(text.clone()),
            Content::Parts(parts) => parts,
        };
        let mut all = String::new();
        for part in parts {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
            let text = part.get("text").or_else(|| part.get("refusal")).and_then(Value::as_str);
            match (kind, text) {
                ("text" | "input_text" | "output_text" | "refusal", Some(text)) => {
                    if !all.is_empty() {
                        all.push('\n');
                    }
                    all.push_str(text);
                }
                _ => {
                    let shown: String = kind.chars().take(40).collect();
                    let message =
                        format!("a part of type `{}`: this model reads text only", shown.escape_debug());
                    return Err(ApiError::unsupported("messages", message));
                }
            }
        }
        Ok(all)
    }
}

/// The engine's message.
///
/// # Errors
/// As [`Content::text`].
pub fn message(m: &ChatMessage) -> ApiResult<Message> {
    let role = match m.role {
        MessageRole::System | MessageRole::Developer => Role::System,
        MessageRole::User => Role::User,
        MessageRole::Assistant => Role::Assistant,
        MessageRole::Tool | MessageRole::Function => Role::Tool,
    };
    let content = m.content.as_ref().map_or(Ok(String::new()), Content::text)?;
    let mut calls = m.tool_calls.clone().unwrap_or_default();
    let older = m.function_call.iter().filter(|f| !f.is_null());
    calls.extend(older.map(|f| json!({"type": "function", "function": f})));
    Ok(Message {
        role,
        content,
        name: m.name.clone(),
        tool_calls: calls,
        tool_call_id: m.tool_call_id.clone(),
    })
}

/// Whether and which function the model must call.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// None.
    None,
    /// Some.
    Required,
    /// This one.
    Named(String),
}

impl ToolChoice {
    /// As OpenAI's APIs write it, with the functions that it leaves of those offered.
    ///
    /// # Errors
    /// Another word or form; a function that is not offered.
    pub fn from_openai(value: Option<&Value>, tools: Vec<Value>) -> ApiResult<(Self, Vec<Value>)> {
        let wrong = |message: &str| Err(ApiError::field("tool_choice", message));
        let object = match value {
            None | Some(Value::Null) => return Ok((Self::Auto, tools)),
            Some(Value::String(word)) => {
                let choice = match word.as_str() {
                    "auto" => Self::Auto,
                    "none" => Self::None,
                    "required" => Self::Required,
                    _ => return wrong("it must be `auto`, `none`, `required` or a function"),
                };
                return Ok((choice, tools));
            }
            Some(object) => object,
        };
        match object.get("type").and_then(Value::as_str) {
            None | Some("function") => match named(object) {
                Some(name) => Ok((Self::Named(name.into()), tools)),
                None => wrong("it names no function"),
            },
            Some("allowed_tools") => {
                // The chat API nests what `/v1/responses` has flat.
                let allowed = object.get("allowed_tools").unwrap_or(object);
                let choice = match allowed.get("mode").and_then(Value::as_str) {
                    None | Some("auto") => Self::Auto,
                    Some("required") => Self::Required,
                    Some(_) => return wrong("the mode of allowed_tools must be `auto` or `required`"),
                };
                let Some(list) = allowed.get("tools").and_then(Value::as_array).filter(|l| !l.is_empty())
                else {
                    return wrong("allowed_tools must list functions in `tools`");
                };
                let mut left = Vec::new();
                for one in list {
                    let Some(name) = named(one) else {
                        return wrong("allowed_tools can list functions only");
                    };
                    match tools.iter().find(|t| named(t) == Some(name)) {
                        Some(tool) if !left.contains(tool) => left.push(tool.clone()),
                        Some(_) => {}
                        None => return Err(not_offered(name)),
                    }
                }
                Ok((choice, left))
            }
            Some(_) => wrong("its type must be `function` or `allowed_tools`"),
        }
    }
}

/// The name of a function, in either API's form.
fn named(tool: &Value) -> Option<&str> {
    function(tool).get("name").and_then(Value::as_str).filter(|n| !n.is_empty())
}

fn not_offered(name: &str) -> ApiError {
    let shown: String = name.chars().take(100).collect();
    ApiError::field("tool_choice", format!("`{}` is not among the functions offered", shown.escape_debug()))
}

/// What a conversation asks for.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// What was said.
    pub messages: Vec<Message>,
    /// Functions as OpenAI's API defines them.
    pub tools: Vec<Value>,
    /// Whether they must be called.
    pub choice: ToolChoice,
    /// A reply may make several calls.
    pub parallel: bool,
    /// What the reply must be.
    pub grammar: Option<Grammar>,
    /// The last message is the beginning of the reply.
    pub goes_on: bool,
}

/// A conversation as the model reads it.
pub struct Rendered {
    /// The tokens.
    pub prompt: Vec<u32>,
    /// Where other conversations may go on.
    pub marks: Vec<usize>,
    /// What the reply must be, and the text after which it must be so.
    pub grammar: Option<(Grammar, Option<String>)>,
    /// Names of functions that the reply may call.
    pub callable: Vec<String>,
}

impl Rendered {
    /// Compiles the grammar, if there is one.
    ///
    /// # Errors
    /// As [`compiled`].
    pub async fn constrained(
        &mut self,
        hosted: &Arc<Hosted>,
        until: Instant,
    ) -> ApiResult<Option<Constrained>> {
        match self.grammar.take() {
            None => Ok(None),
            Some((grammar, after)) => {
                let constraint = compiled(hosted, grammar, true, until).await?;
                Ok(Some(Constrained { constraint, after }))
            }
        }
    }
}

/// Compiles a grammar in its turn; with `space` a reply may begin with one space.
///
/// # Errors
/// A grammar that is wrong; 429 where the scheduler would refuse the request afterwards; 503 when its turn did not come in time.
pub async fn compiled(
    hosted: &Arc<Hosted>,
    grammar: Grammar,
    space: bool,
    until: Instant,
) -> ApiResult<Constraint> {
    let room = || match hosted.scheduler.has_room() {
        true => Ok(()),
        false => Err(ApiError::from(Refused::Full(Duration::from_secs(1)))),
    };
    room()?;
    let place = tokio::time::timeout_at(until.into(), COMPILING.acquire()).await;
    let place = place.map_err(|_| ApiError::from(hawfinch_engine::Error::TimedOut))?;
    let place = place.map_err(|_| ApiError::closing())?;
    // Others came while it waited.
    room()?;
    let hosted = hosted.clone();
    aside(move || {
        // The place is taken until it is compiled, also when nobody waits for it any more.
        let _place = place;
        Ok(hosted.grammars()?.compile(&grammar, space)?)
    })
    .await
}

/// How messages are rendered, besides what they say; as a chat without options does, but for the reply's beginning.
#[derive(Debug, Clone, Default)]
pub struct Rendering<'a> {
    /// A built-in template in place of the model's own.
    pub template: Option<&'a str>,
    /// How much a model that can think shall think, in OpenAI's words.
    pub effort: Option<&'a str>,
    /// Functions as OpenAI's API defines them.
    pub tools: &'a [Value],
    /// It ends where the assistant's reply begins, not where the next message would.
    pub for_reply: bool,
}

/// The text that a model reads for messages: the same for every route, so that what one has read another goes on from.
///
/// # Errors
/// There is no message; one that is no text; a template that does not exist or cannot render them.
pub fn rendered(hosted: &Hosted, messages: &[ChatMessage], how: &Rendering<'_>) -> ApiResult<String> {
    let template = crate::generation::template(hosted, how.template, how.effort)?;
    let messages = messages.iter().map(message).collect::<ApiResult<Vec<_>>>()?;
    Ok(template.render(&as_read(&template, &messages)?, how.tools, how.for_reply)?)
}

/// Messages as the model read or wrote them.
fn as_read(template: &Template, messages: &[Message]) -> ApiResult<Vec<Message>> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there is no message"));
    }
    Ok(messages.iter().map(|m| as_written(template, m)).collect())
}

impl Conversation {
    /// Renders it.
    ///
    /// # Errors
    /// Messages or functions that are wrong.
    pub fn render(&self, hosted: &Hosted, template: &Template) -> ApiResult<Rendered> {
        let messages = as_read(template, &self.messages)?;
        let names = self.names()?;
        let tools = if self.choice == ToolChoice::None { &[][..] } else { &self.tools[..] };
        let text = match self.goes_on {
            false => template.render(&messages, tools, true)?,
            true if self.messages.last().is_some_and(|m| m.role == Role::Assistant) => {
                template.render(&messages, tools, false)?.trim_end().to_owned()
            }
            true => {
                let message = "only a last message of the assistant can be continued";
                return Err(ApiError::field("continue_final_message", message));
            }
        };
        let prompt = hosted.tokenizer.encode(text.as_bytes());
        // The end of the first message (instructions that many conversations share) and of the last ones.
        let from = messages.len().saturating_sub(MARKS).max(2);
        let ends = std::iter::once(1).chain(from..messages.len()).filter(|&n| n < messages.len());
        let mut at = Vec::new();
        for n in ends {
            let earlier = template.render(&messages[..n], tools, false)?;
            at.push(earlier.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count());
        }
        let marks = positions(hosted, &prompt, &mut at);
        let after = match template.opening() {
            _ if self.goes_on => None,
            "" => None,
            // The tag before the answer is closed already, but for its last letter.
            o if o.ends_with("</think") => Some(">".to_owned()),
            _ => Some("</think>".to_owned()),
        };
        let grammar = self.whole_grammar(tools)?.map(|grammar| (grammar, after));
        let callable = if tools.is_empty() { Vec::new() } else { names };
        Ok(Rendered { prompt, marks, grammar, callable })
    }

    fn names(&self) -> ApiResult<Vec<String>> {
        if self.tools.len() > MAX_TOOLS {
            let message = format!("there are {} functions: at most {MAX_TOOLS} are taken", self.tools.len());
            return Err(ApiError::field("tools", message));
        }
        let mut names = Vec::new();
        for tool in &self.tools {
            if tool.get("type").and_then(Value::as_str).is_some_and(|t| t != "function") {
                return Err(ApiError::unsupported("tools", "only tools of type `function` can be offered"));
            }
            names.push(
                named(tool).ok_or_else(|| ApiError::field("tools", "a function has no name"))?.to_owned(),
            );
        }
        match &self.choice {
            ToolChoice::Required if names.is_empty() => {
                Err(ApiError::field("tool_choice", "a call is required, but no function is offered"))
            }
            ToolChoice::Named(name) if !names.contains(name) => Err(not_offered(name)),
            _ => Ok(names),
        }
    }

    /// The grammar of the reply: what was asked for, or calls where they are required.
    fn whole_grammar(&self, tools: &[Value]) -> ApiResult<Option<Grammar>> {
        let wanted: Vec<&Value> = match &self.choice {
            ToolChoice::Required => tools.iter().collect(),
            ToolChoice::Named(name) => tools.iter().filter(|t| named(t) == Some(name)).collect(),
            _ => return Ok(self.grammar.clone()),
        };
        if self.grammar.is_some() {
            return Err(ApiError::field("response_format", "a required function call leaves no room for it"));
        }
        let call = |tool: &&Value| {
            let f = function(tool);
            let arguments = f.get("parameters").filter(|p| !p.is_null()).cloned();
            json!({
                "type": "object",
                "properties": {
                    "name": {"const": f.get("name")},
                    "arguments": arguments.unwrap_or_else(|| json!({"type": "object"})),
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = wanted.iter().map(call).collect();
        Ok(Some(Grammar::JsonSchema(match &calls[..] {
            [one] => one.clone(),
            many => json!({"anyOf": many}),
        })))
    }
}

/// A tool's function.
pub fn function(tool: &Value) -> &Value {
    tool.get("function").unwrap_or(tool)
}

/// A message as the model read or wrote it: clients send back the answer alone, the model had read a closed think tag before it.
fn as_written(template: &Template, m: &Message) -> Message {
    let opening = template.opening();
    if m.role == Role::Assistant
        && opening.ends_with("</think")
        && !m.content.trim_start().starts_with("<think")
    {
        return Message { content: format!("{opening}>\n{}", m.content), ..m.clone() };
    }
    if m.role == Role::User {
        // Some templates ask for more or less reasoning by words behind each question.
        return Message { content: template.user_message(&m.content).content, ..m.clone() };
    }
    m.clone()
}

/// The positions in a prompt whose tokens end at these bytes, or next before them.
fn positions(hosted: &Hosted, prompt: &[u32], at: &mut [usize]) -> Vec<usize> {
    at.sort_unstable();
    let (mut marks, mut bytes, mut next) = (Vec::new(), 0, at.iter().peekable());
    for (i, &id) in prompt.iter().enumerate() {
        bytes += hosted.tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
        while next.next_if(|&&end| end < bytes).is_some() {
            marks.push(i);
        }
        if next.peek().is_none() {
            break;
        }
    }
    marks.dedup();
    marks.retain(|&m| m > 0);
    marks
}

/// A call that a reply makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What tells it from others, made once; APIs put a prefix of theirs before it.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// Keys with which the object of a call begins.
const CALL_KEYS: [&str; 6] = ["name", "arguments", "parameters", "function", "type", "id"];

/// Whether a reply that begins so may still become calls of functions; what cannot is not held back.
pub fn may_be_call(text: &str) -> bool {
    let mut text = text.trim_start();
    if "```".starts_with(text) {
        return true;
    }
    if let Some(fenced) = text.strip_prefix("```") {
        if "json".starts_with(fenced) {
            return true;
        }
        text = fenced.strip_prefix("json").unwrap_or(fenced).trim_start();
    }
    let object = text.strip_prefix('[').unwrap_or(text).trim_start();
    let Some(inside) = object.strip_prefix('{') else { return object.is_empty() };
    let Some(key) = inside.trim_start().strip_prefix('"') else { return inside.trim_start().is_empty() };
    match key.split_once('"') {
        Some((key, _)) => CALL_KEYS.contains(&key),
        None => CALL_KEYS.iter().any(|k| k.starts_with(key)),
    }
}

/// The calls that a reply is, if it is nothing else and calls what was offered.
pub fn calls(text: &str, callable: &[String]) -> Option<Vec<Call>> {
    let mut text = text.trim();
    if let Some(fenced) = text.strip_prefix("```") {
        text = fenced.strip_prefix("json").unwrap_or(fenced).trim_start();
        text = text.strip_suffix("```").unwrap_or(text).trim_end();
    }
    let value: Value = serde_json::from_str(text).ok()?;
    let list = match value {
        Value::Array(list) if !list.is_empty() => list,
        one @ Value::Object(_) => vec![one],
        _ => return None,
    };
    list.iter()
        .map(|call| {
            let f = function(call);
            let name = f.get("name")?.as_str().filter(|n| callable.iter().any(|c| c == n))?;
            let arguments = match f.get("arguments").or_else(|| f.get("parameters")) {
                // A text must be JSON itself, or clients fail on it.
                Some(Value::String(text)) => {
                    serde_json::from_str::<Value>(text).ok().filter(Value::is_object)?;
                    text.clone()
                }
                Some(v) => v.to_string(),
                None => "{}".into(),
            };
            Some(Call { id: fresh_id(""), name: name.into(), arguments })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_text() {
        let names = vec!["weather".to_owned(), "time".to_owned()];
        let one = calls("{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}", &names).unwrap();
        assert_eq!((one[0].name.as_str(), one[0].arguments.as_str()), ("weather", "{\"city\":\"Oslo\"}"));
        let two =
            "```json\n[{\"name\":\"time\"}, {\"function\":{\"name\":\"weather\",\"arguments\":\"{}\"}}]\n```";
        assert_eq!(calls(two, &names).unwrap().len(), 2);
        for text in ["{\"name\": \"other\"}", "[]", "Hello", "{\"a\": 1}", "{\"name\": \"time\"} and more"] {
            assert_eq!(calls(text, &names), None, "{text}");
        }
    }

    #[test]
    fn only_what_may_become_a_call_is_held() {
        let called = [
            "```json\n[{\"name\": \"time\"}, {\"name\": \"time\"}]\n```",
            " {\"type\": \"function\", \"function\": {\"name\": \"time\"}}",
            "```\n{ \"arguments\": {}, \"name\": \"time\"}\n```",
            "[ {\n\"id\": \"x\", \"name\": \"time\"}]",
        ];
        for text in called {
            assert!(calls(text, &["time".to_owned()]).is_some(), "{text}");
            // Held from its first byte to its last, however it comes.
            assert!((0..=text.len()).all(|n| may_be_call(&text[..n])), "{text}");
        }
        for text in [
            "```python",
            "```p",
            "```jsonc",
            "```json5",
            "```json\nx",
            "``x",
            "[1] See",
            "[1",
            "[]",
            "[[",
            "{1",
        ] {
            assert!(!may_be_call(text), "{text}");
        }
        for text in ["He", "{\"names\"", "{\"city", "[{\"a\"", "{}", "{'name'", "```\n# a comment"] {
            assert!(!may_be_call(text), "{text}");
        }
    }

    #[test]
    fn allowed_tools_are_those_offered() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let tools = vec![tool("weather"), tool("time")];
        let listed = json!([{"type": "function", "function": {"name": "time"}}]);
        let chat = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": listed}});
        let (choice, left) = ToolChoice::from_openai(Some(&chat), tools.clone()).unwrap();
        assert_eq!((choice, left), (ToolChoice::Required, vec![tool("time")]));
        let flat = json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]});
        let (choice, left) = ToolChoice::from_openai(Some(&flat), tools.clone()).unwrap();
        assert_eq!((choice, left), (ToolChoice::Auto, vec![tool("weather")]));
        for wrong in [
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": []}),
            json!({"type": "allowed_tools", "mode": "always", "tools": listed}),
            json!({"type": "custom", "name": "time"}),
            json!("always"),
        ] {
            assert!(ToolChoice::from_openai(Some(&wrong), tools.clone()).is_err(), "{wrong}");
        }
    }
}
