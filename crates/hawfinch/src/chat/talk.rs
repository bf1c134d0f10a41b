//! The conversation: saying things, going back, saving, branching.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hawfinch_engine::template::{Segment, SegmentKind};
use hawfinch_engine::{
    Chat, ChatReply, Message, Position, Role, Sampler, Session, Speculation, StopReason, Template,
};
use hawfinch_model::{Model, State, format, metadata};
use hawfinch_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::fail::usage;
use crate::model_args::{may_become_state, model_identity};
use crate::output::{Stream, colors, note, size, thousands};
use crate::runner::{Runner, Timing, catch_up};
use crate::sampler_args::{SETTINGS, set_one};
use crate::signal;
use crate::speculate_args::Guessing;

/// Metadata of a state file that holds the conversation which led to the state.
const CHAT: &str = "hawfinch.chat";

/// What is kept under [`CHAT`].
#[derive(Serialize, Deserialize)]
struct Saved {
    template: String,
    messages: Vec<Message>,
}

/// A conversation with its branches.
pub struct Talk<'m> {
    runner: &'m Runner<'m>,
    chat: Chat<&'m Runner<'m>>,
    /// Branches that are not the current one.
    branches: BTreeMap<String, Chat<&'m Runner<'m>>>,
    branch: String,
    /// Longest reply.
    pub max_tokens: usize,
    last: Option<(Timing, usize, StopReason)>,
    /// Replies as JSON, one a line.
    pub json: bool,
    /// Tokens and speed after each reply.
    pub stats: bool,
    /// Files of a draft model, which are not to be written over.
    draft_files: Vec<PathBuf>,
}

/// The branch that every chat begins in.
const MAIN: &str = "main";

impl<'m> Talk<'m> {
    /// A conversation from a state.
    pub fn new(
        runner: &'m Runner<'m>,
        tokenizer: Tokenizer,
        sampler: Sampler,
        template: Template,
        state: State,
        max_tokens: usize,
    ) -> Self {
        let chat = Chat::new(Session::with_state(runner, tokenizer, sampler, state), template);
        let branches = BTreeMap::new();
        Talk {
            runner,
            chat,
            branches,
            branch: MAIN.into(),
            max_tokens,
            last: None,
            json: false,
            stats: false,
            draft_files: Vec::new(),
        }
    }

    /// Replies are written with guesses from now on.
    pub fn speculate(&mut self, guessing: Guessing) {
        self.chat.session_mut().speculation = Some(guessing.speculation);
        self.draft_files = guessing.files;
    }

    /// The branch's name for the prompt; empty for the first.
    pub fn branch(&self) -> &str {
        if self.branch == MAIN { "" } else { &self.branch }
    }

    /// Says something, streaming the reply.
    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.reply(|chat, options, on| chat.say(text, options, on))
    }

    /// Draws another reply.
    pub fn regenerate(&mut self) -> anyhow::Result<()> {
        if self.chat.turns() == 0 {
            bail!("there is no reply yet to draw again");
        }
        self.reply(|chat, options, on| chat.regenerate(options, on))
    }

    fn reply(
        &mut self,
        draw: impl FnOnce(
            &mut Chat<&'m Runner<'m>>,
            &hawfinch_engine::GenerateOptions,
            &mut dyn FnMut(&Segment) -> ControlFlow<()>,
        ) -> hawfinch_engine::Result<ChatReply>,
    ) -> anyhow::Result<()> {
        signal::clear();
        self.take_timing();
        let options = self.chat.options(self.max_tokens);
        let mut printer = Printer::new(self.json);
        let result = draw(&mut self.chat, &options, &mut |segment| printer.piece(segment));
        printer.end()?;
        let stopped = signal::pressed();
        signal::clear();
        let reply = match result {
            Ok(reply) => reply,
            Err(_) if stopped => {
                note("(stopped before the reply began)");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        let timing = self.take_timing();
        if self.json {
            let line = json!({
                "text": reply.reply.text,
                "reasoning": reply.reply.reasoning,
                "prompt_tokens": reply.prompt_tokens,
                "generated_tokens": reply.generation.tokens.len(),
                "finish": reply.generation.stop.name(),
            });
            let mut out = Stream::new();
            out.write(&format!("{line}\n"))?;
        } else if reply.generation.stop == StopReason::MaxTokens {
            note(dim(&format!("(cut off at {} tokens; /set max-tokens N allows more)", self.max_tokens)));
        } else if reply.generation.stop == StopReason::Cancelled {
            note(dim("(stopped)"));
        }
        self.last = Some((timing, reply.prompt_tokens, reply.generation.stop));
        if self.stats {
            note(dim(&self.pace()));
        }
        Ok(())
    }

    /// What was timed since the last call.
    fn take_timing(&mut self) -> Timing {
        let guesses = self.chat.session_mut().speculation.as_mut().map(Speculation::take_statistics);
        self.runner.take_timing().speculated(guesses)
    }

    fn pace(&self) -> String {
        match &self.last {
            None => "[nothing was said yet]".into(),
            Some((t, _, _)) => format!("[{}]", t.shown()),
        }
    }

    /// What `/stats` prints.
    pub fn statistics(&self) -> String {
        let state = &self.chat.session().position().state;
        let bytes = 4 * self.runner.model().config().state_len() as u64;
        format!("{}\nstate: {} of context in {}", self.pace(), plural(state.tokens, "token"), size(bytes))
    }

    /// Forgets the conversation.
    pub fn reset(&mut self) {
        self.chat.reset();
    }

    /// Drops the last turn.
    pub fn undo(&mut self) -> anyhow::Result<()> {
        match self.chat.turns().checked_sub(1) {
            Some(last) => Ok(self.chat.rewind(last)?),
            None => bail!("there is nothing to take back"),
        }
    }

    /// The system text.
    pub fn system(&self) -> Option<&str> {
        self.chat.history().first().filter(|m| m.role == Role::System).map(|m| m.content.as_str())
    }

    /// Sets or removes the system text; the conversation starts over.
    pub fn set_system(&mut self, text: Option<&str>) {
        self.chat.set_system(text);
    }

    /// The conversation as a person reads it.
    pub fn history(&self) -> String {
        let mut out = String::new();
        for m in self.chat.history() {
            let text = match m.role {
                Role::Assistant => self.chat.template().clean(&m.content).text,
                _ => m.content.clone(),
            };
            let (mark, indent) = match m.role {
                Role::User => ("> ", "  "),
                Role::System => ("system: ", "  "),
                Role::Assistant | Role::Tool => ("", ""),
            };
            out += &format!("{mark}{}\n", text.replace('\n', &format!("\n{indent}")));
        }
        if out.is_empty() { "(nothing was said yet)\n".into() } else { out }
    }

    /// Saves state and conversation.
    pub fn save(&mut self, path: &Path) -> anyhow::Result<()> {
        may_become_state(path, self.runner.model())?;
        // The state then holds the text, the whole text and nothing but the text, for whoever reads it.
        catch_up(self.chat.session_mut())?;
        let model = self.runner.model();
        let saved =
            Saved { template: self.chat.template().name().into(), messages: self.chat.history().to_vec() };
        let state = &self.chat.session().position().state;
        // Kept where it is another than every chat of the model begins at.
        let start = Some(&self.chat.start().state).filter(|s| **s != model.new_state());
        let more = [(CHAT, serde_json::to_string(&saved)?)];
        crate::output::not_over(path, model.checkpoint().files.iter().chain(&self.draft_files))?;
        state.save_with(path, model.config().version, &model_identity(model)?, start, &more)?;
        note(format_args!("saved {} ({} of context)", path.display(), plural(state.tokens, "token")));
        Ok(())
    }

    /// Goes on from a saved conversation, or begins at a state without one.
    pub fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        if !path.exists() {
            bail!("there is no file {}", path.display());
        }
        let file = format::open_state(path)?;
        let model = self.runner.model();
        let state = model.state_from(&file)?;
        let context = plural(state.tokens, "token");
        let saved: Option<Saved> = file
            .metadata
            .get(CHAT)
            .map(|s| serde_json::from_str(s))
            .transpose()
            .with_context(|| format!("the conversation in {} is damaged", path.display()))?;
        let session = self.chat.session();
        let (tokenizer, sampler) = (session.tokenizer().clone(), session.sampler.clone());
        let speculation = session.speculation.clone();
        let Some(saved) = saved else {
            let mut session = Session::with_state(self.runner, tokenizer, sampler, state);
            session.speculation = speculation;
            let system = self.system().map(str::to_owned);
            self.chat = Chat::new(session, self.chat.template().clone());
            // As after /reset.
            self.chat.set_system(system.as_deref());
            note(format_args!("begins at the state of {} ({context} of context)", path.display()));
            return Ok(());
        };
        if saved.template != self.chat.template().name() {
            note(format_args!(
                "(it was saved with the template {}, this chat uses {})",
                saved.template,
                self.chat.template().name()
            ));
        }
        let said = saved.messages.len();
        let start = model.start_from(&file)?.unwrap_or_else(|| model.new_state());
        self.chat.resume(at(start), at(state), saved.messages);
        note(format_args!(
            "goes on from {} ({}, {context} of context)",
            path.display(),
            plural(said as u64, "message")
        ));
        Ok(())
    }

    /// Goes on in a copy of the conversation.
    pub fn fork(&mut self, name: &str) -> anyhow::Result<()> {
        let name = match name {
            "" => (2..).map(|n| n.to_string()).find(|n| !self.is_branch(n)).context("no name is left")?,
            name => name.to_string(),
        };
        if self.is_branch(&name) {
            return Err(usage(format!("there is a branch `{name}` already: /branch {name} goes there")));
        }
        let kept = std::mem::replace(&mut self.branch, name);
        note(format_args!("now in branch {}; /branch {kept} goes back", self.branch));
        self.branches.insert(kept, self.chat.clone());
        Ok(())
    }

    fn is_branch(&self, name: &str) -> bool {
        self.branch == name || self.branches.contains_key(name)
    }

    /// Goes to another branch.
    pub fn go(&mut self, name: &str) -> anyhow::Result<()> {
        if name == self.branch {
            return Ok(());
        }
        let Some(other) = self.branches.remove(name) else {
            bail!("there is no branch `{name}`; /branch lists them, /fork {name} makes it");
        };
        let left = std::mem::replace(&mut self.chat, other);
        let name = std::mem::replace(&mut self.branch, name.to_string());
        self.branches.insert(name, left);
        note(format_args!("now in branch {}", self.branch));
        Ok(())
    }

    /// All branches, the current one marked.
    pub fn list_branches(&self) -> String {
        let all = self.branches.iter().map(|(n, c)| (n, c.turns(), "  "));
        let mut all: Vec<_> = all.chain([(&self.branch, self.chat.turns(), "* ")]).collect();
        all.sort();
        let line = |(name, turns, mark): (&String, usize, &str)| {
            format!("{mark}{name}: {}\n", plural(turns as u64, "turn"))
        };
        all.into_iter().map(line).collect()
    }

    /// Changes a setting.
    pub fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        if matches!(name, "max-tokens" | "max_tokens") {
            self.max_tokens = value
                .parse()
                .map_err(|_| usage(format!("max-tokens takes a whole number, not `{value}`")))?;
            return Ok(());
        }
        let sampler = &mut self.chat.session_mut().sampler;
        let mut config = sampler.config().clone();
        set_one(&mut config, name, value).map_err(|e| {
            if e.to_string().contains(SETTINGS) { usage(format!("{e}, max-tokens")) } else { e }
        })?;
        Ok(sampler.reconfigure(config)?)
    }

    /// All settings.
    pub fn settings(&self) -> String {
        let sampler = &self.chat.session().sampler;
        let c = sampler.config();
        let mut out = format!(
            "  max-tokens {}\n  temperature {}, top-p {}, top-k {}, min-p {}, typical {}\n  presence-penalty {}, \
             frequency-penalty {}, penalty-decay {}, repetition-penalty {}\n  seed {}\n",
            self.max_tokens,
            c.temperature,
            c.top_p,
            c.top_k,
            c.min_p,
            c.typical_p,
            c.presence_penalty,
            c.frequency_penalty,
            c.penalty_decay,
            c.repetition_penalty,
            sampler.seed(),
        );
        if let Some(m) = c.mirostat {
            out += &format!("  mirostat-tau {}, mirostat-eta {}\n", m.tau, m.eta);
        }
        out
    }
}

/// A position of which only the state is known.
fn at(state: State) -> Position<State> {
    Position {
        state,
        tokens: Vec::new(),
        logits: Vec::new(),
        pending: Vec::new(),
        beyond: Vec::new(),
        missing: Vec::new(),
    }
}

fn plural(n: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// Notes of less weight, where there are colours.
fn dim(text: &str) -> String {
    if colors() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_string() }
}

/// Writes a reply as it comes; reasoning is dimmed, or marked where there are no colours.
pub(super) struct Printer {
    stream: Stream,
    reasoning: bool,
    json: bool,
    failed: Option<std::io::Error>,
}

impl Printer {
    /// Nothing written yet; as JSON, the whole reply is written by somebody else.
    pub(super) fn new(json: bool) -> Self {
        Printer { stream: Stream::new(), reasoning: false, json, failed: None }
    }

    pub(super) fn piece(&mut self, segment: &Segment) -> ControlFlow<()> {
        // The piece is part of the conversation, so it is shown even if it is the last.
        if !self.json
            && let Err(e) = self.write(segment)
        {
            self.failed = Some(e);
            return ControlFlow::Break(());
        }
        if signal::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn write(&mut self, segment: &Segment) -> std::io::Result<()> {
        let reasoning = segment.kind == SegmentKind::Reasoning;
        if reasoning != self.reasoning {
            self.switch(reasoning)?;
        }
        self.stream.write(&segment.text)
    }

    fn switch(&mut self, reasoning: bool) -> std::io::Result<()> {
        self.reasoning = reasoning;
        match (reasoning, colors()) {
            (true, true) => self.stream.control("\x1b[2m"),
            (true, false) => self.stream.write("<think>\n"),
            (false, true) => self.stream.control("\x1b[0m").and_then(|()| self.stream.write("\n\n")),
            (false, false) => self.stream.write("\n</think>\n\n"),
        }
    }

    pub(super) fn end(mut self) -> anyhow::Result<()> {
        if let Some(e) = self.failed {
            return Err(e.into());
        }
        if self.reasoning && colors() {
            self.stream.control("\x1b[0m")?;
        }
        Ok(self.stream.end_line()?)
    }
}

/// The model's name for the first line of a chat.
pub fn title(model: &Model, template: &Template) -> String {
    let name =
        model.checkpoint().path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let parameters = model.config().parameters(false) as f64;
    let scale = if parameters < 1e8 {
        format!("{:.1} M", parameters / 1e6)
    } else {
        format!("{:.1} B", parameters / 1e9)
    };
    let source = model.checkpoint().metadata.get(metadata::KIND).map(String::as_str).unwrap_or_default();
    let source = if source.is_empty() { name } else { format!("{name} {source}") };
    format!("{source}: {}, {scale} parameters, template {}", model.config().version, template.name())
}
