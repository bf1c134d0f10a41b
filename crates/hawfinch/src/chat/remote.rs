//! A conversation with a server: what `chat --connect` talks through. Any server that speaks OpenAI's chat API will do; the
//! state of the conversation is the server's business, the messages are kept here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hawfinch_engine::template::{Segment, SegmentKind};
use serde_json::{Map, Value, json};

use super::commands::{self, Command, Line};
use super::talk::Printer;
use crate::fail::usage;
use crate::output::{self, Stream, note, thousands};
use crate::sampler_args::{SETTINGS, given, set_one};
use crate::signal;

/// Bytes of a line of a stream at most.
const LINE: u64 = 16 << 20;

/// The conversation.
pub struct Remote {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    model: String,
    messages: Vec<Value>,
    branches: BTreeMap<String, Vec<Value>>,
    branch: String,
    settings: Map<String, Value>,
    max_tokens: usize,
    last: Option<Value>,
    json: bool,
    stats: bool,
}

const MAIN: &str = "main";

impl Remote {
    /// Reaches the server and takes the model that is named, or its first.
    pub fn open(url: &str, model: Option<&str>, max_tokens: usize) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(usage(format!(
                "--connect takes an address such as http://127.0.0.1:8080, not `{url}`"
            )));
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("hawfinch/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10)));
        let key = std::env::var("HAWFINCH_API_KEY").ok().filter(|k| !k.trim().is_empty());
        let mut remote = Remote {
            agent: config.build().into(),
            url,
            key: key.map(|k| k.trim().to_owned()),
            model: String::new(),
            messages: Vec::new(),
            branches: BTreeMap::new(),
            branch: MAIN.into(),
            settings: Map::new(),
            max_tokens,
            last: None,
            json: false,
            stats: false,
        };
        let listed = remote.get("/v1/models")?;
        let ids: Vec<&str> =
            listed["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
        remote.model = match (model, ids.first()) {
            (Some(model), _) if ids.contains(&model) => model.to_owned(),
            (Some(model), _) => bail!("{} has no model `{model}`: it has {}", remote.url, ids.join(", ")),
            (None, Some(first)) => (*first).to_owned(),
            (None, None) => bail!("{} has no model", remote.url),
        };
        Ok(remote)
    }

    /// How replies are printed.
    pub fn printing(mut self, json: bool, stats: bool) -> Self {
        (self.json, self.stats) = (json, stats);
        self
    }

    /// Settings in place of the server's.
    pub fn sampling(mut self, settings: Map<String, Value>) -> Self {
        self.settings = settings;
        self
    }

    /// The first line of a chat.
    pub fn title(&self) -> String {
        format!("{} at {}", self.model, self.url)
    }

    /// The branch's name for the prompt; empty for the first.
    pub fn branch(&self) -> &str {
        if self.branch == MAIN { "" } else { &self.branch }
    }

    fn checked(
        &self,
        response: ureq::http::Response<ureq::Body>,
    ) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let mut text = String::new();
        let _ = response.into_body().into_reader().take(1 << 16).read_to_string(&mut text);
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = said["error"]["message"].as_str().unwrap_or("it gives no reason");
        let hint = if status.as_u16() == 401 { " (HAWFINCH_API_KEY holds the key)" } else { "" };
        bail!("{} answers {}: {}{hint}", self.url, status.as_u16(), output::printable(message))
    }

    fn unreachable(&self, e: &ureq::Error) -> anyhow::Error {
        anyhow!("{} cannot be reached ({e})", self.url)
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let response = self.checked(request.call().map_err(|e| self.unreachable(&e))?)?;
        let mut text = String::new();
        response.into_body().into_reader().take(LINE).read_to_string(&mut text)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} does not answer as a server of models", self.url))
    }

    /// Gives the text of the system message, or takes it away, and starts over.
    pub fn set_system(&mut self, text: Option<&str>) {
        self.messages = text.map(|t| json!({"role": "system", "content": t})).into_iter().collect();
    }

    fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| m["role"] == "system")?["content"].as_str()
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let result = self.reply();
        if !matches!(result, Ok(true)) {
            self.messages.pop();
        }
        result.map(|_| ())
    }

    /// Gets the reply to the last message; false when it was stopped before anything was said.
    fn reply(&mut self) -> anyhow::Result<bool> {
        signal::clear();
        let mut body = json!({
            "model": self.model,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(map) = body.as_object_mut() {
            map.extend(self.settings.clone());
        }
        let mut request = self.agent.post(format!("{}/v1/chat/completions", self.url));
        request = request.header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.to_string().as_bytes()).map_err(|e| self.unreachable(&e))?;
        let reader = self.checked(response)?.into_body().into_reader();
        let mut printer = Printer::new(self.json);
        let (mut text, mut reasoning) = (String::new(), String::new());
        let (mut finish, mut usage) = (None, Value::Null);
        let mut complete = false;
        let mut lines = BufReader::new(reader);
        let mut line = String::new();
        loop {
            line.clear();
            if lines.by_ref().take(LINE).read_line(&mut line).context("the reply broke off")? == 0 {
                break;
            }
            // While the request waits, the server sends lines that say nothing.
            if signal::pressed() {
                finish = Some("interrupted".into());
                complete = true;
                break;
            }
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                complete = true;
                break;
            }
            let chunk: Value =
                serde_json::from_str(data).context("the server sends what is no chunk of a reply")?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                printer.end()?;
                bail!("{}", output::printable(message));
            }
            if chunk["usage"].is_object() {
                usage = chunk.clone();
            }
            let choice = &chunk["choices"][0];
            finish = choice["finish_reason"].as_str().map(str::to_owned).or(finish);
            let mut flow = ControlFlow::Continue(());
            for (field, kind) in
                [("reasoning_content", SegmentKind::Reasoning), ("content", SegmentKind::Answer)]
            {
                let Some(piece) = choice["delta"][field].as_str().filter(|t| !t.is_empty()) else { continue };
                let whole = if kind == SegmentKind::Reasoning { &mut reasoning } else { &mut text };
                whole.push_str(piece);
                flow = printer.piece(&Segment { kind, text: piece.into() });
            }
            if flow.is_break() {
                finish = Some("interrupted".into());
                complete = true;
                break;
            }
        }
        printer.end()?;
        signal::clear();
        if !complete {
            bail!("the reply broke off: the server went away");
        }
        if self.json {
            let line = json!({
                "text": text,
                "reasoning": (!reasoning.is_empty()).then_some(reasoning),
                "prompt_tokens": usage["usage"]["prompt_tokens"],
                "cached_tokens": usage["usage"]["prompt_tokens_details"]["cached_tokens"],
                "generated_tokens": usage["usage"]["completion_tokens"],
                "finish": finish,
            });
            Stream::new().write(&format!("{line}\n"))?;
        } else if finish.as_deref() == Some("length") {
            note("(cut off: as many tokens as allowed)");
        }
        if text.is_empty() && finish.as_deref() == Some("interrupted") {
            // As if it had not been asked.
            return Ok(false);
        }
        self.messages.push(json!({"role": "assistant", "content": text}));
        self.last = Some(usage);
        if self.stats {
            note(format_args!("({})", self.statistics()));
        }
        Ok(true)
    }

    fn statistics(&self) -> String {
        let Some(last) = self.last.as_ref().filter(|l| l.is_object()) else {
            return "nothing was said yet".into();
        };
        let number = |v: &Value| thousands(v.as_u64().unwrap_or(0));
        let usage = &last["usage"];
        let mut shown = format!(
            "read {}, of which {} were known, wrote {}",
            number(&usage["prompt_tokens"]),
            number(&usage["prompt_tokens_details"]["cached_tokens"]),
            number(&usage["completion_tokens"])
        );
        if let Some(rate) = last["timings"]["predicted_per_second"].as_f64() {
            shown += &format!(" ({rate:.1}/s)");
        }
        shown
    }

    /// Takes back the last question and its reply; gives the question.
    fn undo(&mut self) -> anyhow::Result<Value> {
        let asked = self.messages.iter().rposition(|m| m["role"] == "user");
        let asked = asked.ok_or_else(|| anyhow!("nothing was said yet"))?;
        let question = self.messages[asked].clone();
        self.messages.truncate(asked);
        Ok(question)
    }

    fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        if matches!(name, "max-tokens" | "max_tokens") {
            self.max_tokens = value.parse().map_err(|_| usage("max-tokens takes a whole number"))?;
            return Ok(());
        }
        // Checked here as the server would.
        self.settings.extend(given(|mut config| set_one(&mut config, name, value).map(|()| config))?);
        Ok(())
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        output::can_be_file(path)?;
        let text = serde_json::to_string_pretty(&json!({"model": self.model, "messages": self.messages}))?;
        std::fs::write(path, text + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
        note(format_args!("(saved to {})", path.display()));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let saved: Value = serde_json::from_str(&text).unwrap_or_default();
        let Some(messages) = saved["messages"].as_array() else {
            bail!("{} is no conversation that /save wrote while connected to a server", path.display());
        };
        self.messages.clone_from(messages);
        note(format_args!("(a conversation of {} messages)", self.messages.len()));
        Ok(())
    }

    fn history(&self) -> String {
        let said = |m: &Value| {
            let who = m["role"].as_str().unwrap_or_default();
            format!("{who}: {}\n\n", output::printable(m["content"].as_str().unwrap_or_default()))
        };
        self.messages.iter().map(said).collect()
    }

    fn fork(&mut self, name: &str) -> anyhow::Result<()> {
        let taken = |n: &String| *n == self.branch || self.branches.contains_key(n);
        let name = match name {
            "" => (2..).map(|n| format!("fork-{n}")).find(|n| !taken(n)).unwrap_or_default(),
            name => name.to_owned(),
        };
        if taken(&name) {
            return Err(usage(format!("there is a branch `{name}` already")));
        }
        let old = std::mem::replace(&mut self.branch, name);
        self.branches.insert(old, self.messages.clone());
        note(format_args!("(now in `{}`)", self.branch));
        Ok(())
    }

    fn go(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(messages) = self.branches.remove(name) else {
            return Err(usage(format!("there is no branch `{name}`: /branch lists them")));
        };
        let left = std::mem::replace(&mut self.messages, messages);
        let old = std::mem::replace(&mut self.branch, name.to_owned());
        self.branches.insert(old, left);
        Ok(())
    }

    /// Does what a line asks for; true when it asks to end.
    pub fn act(&mut self, line: &str, terminal: bool) -> anyhow::Result<bool> {
        let mut out = Stream::new();
        let file = |rest: &str, command: &str| match rest {
            "" => Err(usage(format!("{command} needs the name of a file"))),
            name => Ok(std::path::PathBuf::from(name)),
        };
        match commands::parse(line) {
            Line::Say("") => {}
            Line::Say(text) => {
                self.say(text)?;
                if terminal {
                    out.write("\n")?;
                }
            }
            Line::Unknown(name) => {
                return Err(usage(format!("there is no command {name}: /help lists them")));
            }
            Line::Do(command, rest) => match command {
                Command::Quit => return Ok(true),
                Command::Help => out.write(&commands::help())?,
                Command::Reset => {
                    let system = self.system().map(str::to_owned);
                    self.set_system(system.as_deref());
                    note("(the conversation is forgotten)");
                }
                Command::System => match rest {
                    "" => {
                        out.write(&format!("{}\n", self.system().unwrap_or("(there is no system text)")))?
                    }
                    "-" => self.set_system(None),
                    text => self.set_system(Some(text)),
                },
                Command::Regen => {
                    let before = self.messages.clone();
                    let question = self.undo()?;
                    self.messages.push(question);
                    let result = self.reply();
                    if !matches!(result, Ok(true)) {
                        self.messages = before;
                    }
                    result?;
                }
                Command::Undo => {
                    self.undo()?;
                    note("(the last question and its reply are forgotten)");
                }
                Command::History => out.write(&self.history())?,
                Command::Save => self.save(&file(rest, "/save")?)?,
                Command::Load => self.load(&file(rest, "/load")?)?,
                Command::Fork => self.fork(rest)?,
                Command::Branch if rest.is_empty() => {
                    let others = self.branches.keys().map(|n| format!("  {n}\n")).collect::<String>();
                    out.write(&format!("* {}\n{others}", self.branch))?;
                }
                Command::Branch => self.go(rest)?,
                Command::Set => match rest.split_once([' ', '=']) {
                    Some((name, value)) => self.set(name.trim(), value.trim())?,
                    None if rest.is_empty() => {
                        let shown = serde_json::to_string_pretty(&self.settings)?;
                        out.write(&format!(
                            "max-tokens {}, in place of the server's: {shown}\n",
                            self.max_tokens
                        ))?;
                        out.write(&format!("Settings: {SETTINGS}\n"))?;
                    }
                    None => return Err(usage("/set takes a name and a value, as in /set temperature 0.8")),
                },
                Command::Stats => out.write(&format!("{}\n", self.statistics()))?,
            },
        }
        Ok(false)
    }
}
