//! Chat templates: a conversation to the text the model reads, and the model's reply to the text a person reads.
//!
//! A [`Template`] is a Jinja source with everything that belongs to it: how content is normalised, where replies
//! stop, how a reply is cleaned, the sampler settings of the model family. Built-in ones ([`Template::builtin`]) are
//! in `builtin.rs`, the choice for a model in `choose.rs`, reply cleaning in `reply.rs`. Any other template, such as
//! the one a checkpoint carries, is untrusted text: it runs without access to files, with bounded steps, depth and
//! output. (What a template can still do is build one huge value, by doubling, repetition or nesting it: neither its size
//! nor its depth is bounded, so that a hostile template can end the program, though nothing else.)

mod builtin;
mod choose;
mod limits;
mod python;
mod reply;
#[cfg(test)]
mod tests;

pub use choose::{ModelFacts, VocabKind, choose};
pub use hawfinch_tokenizer::chat::{Role, normalise};
pub use reply::{Reply, ReplyStream, Segment, SegmentKind};

use crate::{Error, Result, SamplerConfig, StopRules};
use hawfinch_tokenizer::chat::tool_calls;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::{Deserialize, Deserializer, Serialize};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

/// Instructions one rendering may take; a thousand messages through a long template take about a hundredth.
/// (While fuzzing fewer: as many inputs as possible.)
const FUEL: u64 = if cfg!(fuzzing) { 200_000 } else { 20_000_000 };
/// Depth of macros and recursive loops.
const RECURSION: usize = 64;
/// Bytes of output.
const MAX_OUTPUT: usize = 64 << 20;
/// How Hugging Face templates of World models write token 0 before the conversation. As text it would be read letter
/// by letter, and the reference's programs begin without the token, so it is dropped.
const END_OF_TEXT: &str = "<|rwkv_tokenizer_end_of_text|>";
/// Stands in for a reply to find where in a rendering it lies; private-use characters, which no text uses.
const MARK: &str = "\u{f8f0}\u{f8f3}\u{f8f1}reply\u{f8f1}\u{f8f3}\u{f8f0}";

/// One message, in the JSON form that Hugging Face templates and the OpenAI API share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text; null reads as empty.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub content: String,
    /// Name of the speaker or of the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Function calls of the assistant, as the OpenAI API writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_none")]
    pub tool_calls: Vec<serde_json::Value>,
    /// Which call a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

fn null_as_empty<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<String, D::Error> {
    Ok(Option::<String>::deserialize(d)?.unwrap_or_default())
}

fn null_as_none<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<serde_json::Value>, D::Error> {
    Ok(Option::<Vec<serde_json::Value>>::deserialize(d)?.unwrap_or_default())
}

impl Message {
    /// A message of plain text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }
    /// A user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }
    /// An assistant message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
    /// A function's result.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
    }
}

/// Texts that a template may name, as Hugging Face passes them; empty for RWKV's own vocabularies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: String,
    /// `eos_token`.
    pub eos: String,
}

/// A chat template and what belongs to it.
#[derive(Debug, Clone)]
pub struct Template {
    name: String,
    source: String,
    environment: Arc<Environment<'static>>,
    /// Where replies stop.
    pub stops: StopRules,
    /// The sampler settings of the family, used where the person set none.
    pub sampler: SamplerConfig,
    /// Values of `bos_token` and `eos_token`.
    pub special: SpecialTokens,
    /// Whether message contents are normalised before rendering: [`normalise`].
    normalise: bool,
    /// Whether replies are left as the model wrote them, all the same.
    keeps_replies: bool,
    /// How replies are cleaned.
    rule: reply::Rule,
    /// What the rendering puts after the assistant's name, which the reply continues: `<think` and the like.
    opening: &'static str,
    /// Appended to user messages made by [`Template::user_message`].
    suffix: &'static str,
}

impl Template {
    /// A Jinja template in the Hugging Face form: it sees `messages`, `tools`, `add_generation_prompt`,
    /// `bos_token`, `eos_token`, and may call `raise_exception`. Contents are passed as they are.
    ///
    /// Replies stop at token 0 and at whatever `stops` is set to say later. Errors when it does not parse.
    pub fn from_source(name: &str, source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // Hugging Face's settings: a block's line break and indentation are not text.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.add_filter("tojson", python::tojson);
        limits::add(&mut environment);
        environment.add_function("raise_exception", |words: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, words))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| Error::TemplateSyntax { name: name.to_owned(), reason: in_one_line(&e) })?;
        Ok(Self {
            name: name.to_owned(),
            source: source.to_owned(),
            environment: Arc::new(environment),
            stops: StopRules { strings: Vec::new(), tokens: vec![0] },
            sampler: SamplerConfig::default(),
            special: SpecialTokens::default(),
            normalise: false,
            keeps_replies: false,
            rule: reply::Rule { trim: true, reasoning: true },
            opening: "",
            suffix: "",
        })
    }

    /// Reads a template file (`--template FILE`).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let source = std::fs::read_to_string(path)
            .map_err(|e| Error::TemplateFile { path: shown.clone(), reason: e.to_string() })?;
        Self::from_source(&shown, &source)
    }

    /// Leaves replies in the history as they are, blank lines and all: then what is rendered is what the state has read when
    /// the model wrote them.
    pub fn keeping_replies(mut self) -> Self {
        self.keeps_replies = true;
        self
    }

    /// The name of a built-in template, or the name or path it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the rendering puts after the assistant's name for the reply to continue, such as `<think`.
    pub fn opening(&self) -> &str {
        self.opening
    }

    /// A user message as this template wants it: for the G1 length settings the suffix is added.
    pub fn user_message(&self, text: &str) -> Message {
        match self.suffix {
            "" => Message::user(text),
            suffix => Message::user(format!("{}{suffix}", text.trim_end())),
        }
    }

    /// The assistant message to keep in the history for what the model generated: opening and reply, trimmed.
    pub fn reply_message(&self, raw: &str) -> Message {
        let whole = format!("{}{raw}", self.opening);
        Message::assistant(if self.rule.trim { whole.trim() } else { &whole[..] })
    }

    /// Cleans a reply as it streams.
    pub fn reply_stream(&self) -> ReplyStream {
        ReplyStream::new(self.rule, self.opening)
    }

    /// Cleans what goes on behind an answer that was begun.
    pub fn continued_stream(&self) -> ReplyStream {
        ReplyStream::within_answer(self.rule)
    }

    /// Cleans a whole reply (the text after the rendering) or a stored assistant message's content.
    pub fn clean(&self, raw: &str) -> Reply {
        let already_open = self.opening.is_empty() || raw.starts_with(self.opening);
        let mut stream = ReplyStream::new(self.rule, if already_open { "" } else { self.opening });
        let mut segments = Vec::new();
        stream.push(raw, &mut segments);
        stream.finish(&mut segments);
        Reply::from_segments(&segments)
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant's reply begins.
    ///
    /// `tools` are function definitions as in the OpenAI API (or their inner `function` objects alone).
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let failed = |reason: String| Error::TemplateRender { name: self.name.clone(), reason };
        let messages: Vec<Message> = messages.iter().map(|m| self.prepare(m)).collect();
        let tool_lines: Vec<String> = tools.iter().map(builtin::tool_line).collect();
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) },
            tool_lines => tool_lines,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.special.bos.clone(),
            eos_token => self.special.eos.clone(),
        };
        let template = self.environment.get_template("chat").map_err(|e| failed(in_one_line(&e)))?;
        let mut out = Bounded::default();
        // The engine has places that panic (3.0.5: an empty string reversed by a slice). What unwinds here is
        // dropped with the call: nothing is left half done.
        let render = AssertUnwindSafe(|| template.render_captured_to(context, &mut out));
        let rendered = std::panic::catch_unwind(render)
            .map_err(|_| failed("it asks for something on which the template engine breaks".to_owned()))?;
        if out.full {
            return Err(failed(format!("it writes more than {} MiB", MAX_OUTPUT >> 20)));
        }
        rendered.map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => failed("it does not come to an end within the steps allowed".to_owned()),
            _ => failed(in_one_line(&e)),
        })?;
        let text = String::from_utf8(out.bytes).map_err(|e| failed(e.to_string()))?;
        Ok(text.strip_prefix(END_OF_TEXT).map_or_else(|| text.clone(), str::to_owned))
    }

    /// The text to append to a state that has read `render(earlier, tools, true)` and then generated `reply`, so
    /// that it goes on with `new`: it ends the reply's turn, adds the new messages and opens the next reply.
    ///
    /// `None` where appending would not give what rendering everything gives (a template that rewrites earlier
    /// turns): render everything and start over. `reply` is what [`Template::reply_message`] made. White space
    /// between the assistant's name and the reply belongs to the reply, since the model generates it.
    pub fn continuation(
        &self,
        earlier: &[Message],
        reply: &Message,
        new: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<Option<String>> {
        let whole = |reply: Message| {
            let all: Vec<Message> = earlier.iter().chain([&reply]).chain(new).cloned().collect();
            self.render(&all, tools, true)
        };
        let before = self.render(earlier, tools, true)?;
        let marked = whole(Message { content: format!("{}{MARK}", self.opening), ..reply.clone() })?;
        let Some((start, after)) = marked.split_once(MARK) else {
            return Ok(None);
        };
        let glued = start.strip_prefix(before.as_str()).is_some_and(|glue| glue.trim().is_empty());
        if !glued || after.contains(MARK) {
            return Ok(None);
        }
        let content = self.prepare(reply).content;
        let Some(said) = content.strip_prefix(self.opening) else {
            // A reply from elsewhere, without the opening that the state has read.
            return Ok(None);
        };
        let same = whole(reply.clone())? == format!("{start}{said}{after}");
        Ok(same.then(|| after.to_owned()))
    }

    /// A message as the template sees it.
    fn prepare(&self, message: &Message) -> Message {
        let mut m = message.clone();
        if self.normalise {
            if m.content.is_empty() && !m.tool_calls.is_empty() {
                m.content = tool_calls(&m.tool_calls);
            }
            let own = self.keeps_replies && m.role == Role::Assistant;
            if !own {
                m.content = normalise(&m.content);
            }
        }
        m
    }
}

/// An error's words, its causes and its line, without line breaks.
fn in_one_line(e: &minijinja::Error) -> String {
    let mut words = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        words = format!("{words}: {c}");
        cause = c.source();
    }
    if let Some(line) = e.line() {
        words = format!("{words} (line {line})");
    }
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Collects output up to [`MAX_OUTPUT`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if data.len() > MAX_OUTPUT - self.bytes.len() {
            self.full = true;
            return Err(std::io::Error::other("too much output"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
