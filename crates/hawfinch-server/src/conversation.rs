//! Conversations: messages of any of the APIs to a prompt of the model's template, with what the reply must be.

use crate::error::{ApiError, ApiResult};
use crate::hosted::Hosted;
use hawfinch_engine::schedule::Constrained;
use hawfinch_engine::{Grammar, Message, Role, Template};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// Functions of a request at most.
const MAX_TOOLS: usize = 128;
/// Ends of messages where states are kept, besides the first.
const MARKS: usize = 6;

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
    Ok(Message {
        role,
        content,
        name: m.name.clone(),
        tool_calls: m.tool_calls.clone().unwrap_or_default(),
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
    /// As OpenAI's chat API writes it.
    ///
    /// # Errors
    /// Another word or form.
    pub fn from_openai(value: Option<&Value>) -> ApiResult<Self> {
        match value {
            None | Some(Value::Null) => Ok(Self::Auto),
            Some(Value::String(word)) => match word.as_str() {
                "auto" => Ok(Self::Auto),
                "none" => Ok(Self::None),
                "required" => Ok(Self::Required),
                _ => {
                    Err(ApiError::field("tool_choice", "it must be `auto`, `none`, `required` or a function"))
                }
            },
            Some(object) => {
                let name =
                    object.pointer("/function/name").or_else(|| object.get("name")).and_then(Value::as_str);
                let name = name.ok_or_else(|| ApiError::field("tool_choice", "it names no function"))?;
                Ok(Self::Named(name.into()))
            }
        }
    }
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
    /// The compiled grammar.
    pub constrained: Option<Constrained>,
    /// Names of functions that the reply may call.
    pub callable: Vec<String>,
}

impl Conversation {
    /// Renders it.
    ///
    /// # Errors
    /// Messages, functions or a grammar that are wrong.
    pub fn render(&self, hosted: &Hosted, template: &Template) -> ApiResult<Rendered> {
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "there is no message"));
        }
        let names = self.names()?;
        let tools = if self.choice == ToolChoice::None { &[][..] } else { &self.tools[..] };
        let messages: Vec<Message> = self.messages.iter().map(|m| as_written(template, m)).collect();
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
        let constrained = match self.whole_grammar(tools)? {
            None => None,
            Some(grammar) => {
                let constraint = hosted.grammars()?.compile(&grammar, true)?;
                let after = match template.opening() {
                    _ if self.goes_on => None,
                    "" => None,
                    // The tag before the answer is closed already, but for its last letter.
                    o if o.ends_with("</think") => Some(">".to_owned()),
                    _ => Some("</think>".to_owned()),
                };
                Some(Constrained { constraint, after })
            }
        };
        let callable = if tools.is_empty() { Vec::new() } else { names };
        Ok(Rendered { prompt, marks, constrained, callable })
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
            let name = function(tool).get("name").and_then(Value::as_str).filter(|n| !n.is_empty());
            names.push(name.ok_or_else(|| ApiError::field("tools", "a function has no name"))?.to_owned());
        }
        match &self.choice {
            ToolChoice::Required if names.is_empty() => {
                Err(ApiError::field("tool_choice", "a call is required, but no function is offered"))
            }
            ToolChoice::Named(name) if !names.contains(name) => {
                let message = format!("`{}` is not among the functions offered", name.escape_debug());
                Err(ApiError::field("tool_choice", message))
            }
            _ => Ok(names),
        }
    }

    /// The grammar of the reply: what was asked for, or calls where they are required.
    fn whole_grammar(&self, tools: &[Value]) -> ApiResult<Option<Grammar>> {
        let wanted: Vec<&Value> = match &self.choice {
            ToolChoice::Required => tools.iter().collect(),
            ToolChoice::Named(name) => tools
                .iter()
                .filter(|t| function(t).get("name").and_then(Value::as_str) == Some(name))
                .collect(),
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
    /// The function.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// Whether a reply that begins so may be a call of functions.
pub fn may_be_call(text: &str) -> bool {
    let text = text.trim_start();
    text.is_empty() || text.starts_with(['{', '[']) || "```json".starts_with(text) || text.starts_with("```")
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
            Some(Call { name: name.into(), arguments })
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
        assert!(may_be_call("  ") && may_be_call("{\"na") && may_be_call("``") && !may_be_call("He"));
    }
}
