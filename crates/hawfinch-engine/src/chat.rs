//! A conversation: messages through a template into a session, replies back, and going back in it.
//!
//! Nothing is read twice: each message appends to the state what [`Template::continuation`] gives. Only a template
//! that rewrites earlier turns makes the conversation be read anew.

use crate::generate::{Event, GenerateOptions, Generation};
use crate::session::{Position, Session};
use crate::template::{Message, Reply, ReplyStream, Segment, Template};
use crate::{Error, LanguageModel, Result};
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// Bytes of states kept to go back to at once, and how many at most; turns before them are read anew.
const KEPT_BYTES: usize = 256 << 20;
const KEPT_TURNS: usize = 64;

/// A reply in a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatReply {
    /// The cleaned reply.
    pub reply: Reply,
    /// The raw one: text, tokens, log-probabilities, why it ended.
    pub generation: Generation,
    /// How many tokens were read before it began.
    pub prompt_tokens: usize,
}

/// Where a turn began.
#[derive(Debug, Clone)]
struct Turn<S> {
    /// Length of the history before the user's message.
    history: usize,
    /// The session before it; `None` when it was dropped to save memory.
    position: Option<Position<S>>,
}

/// A conversation with a model.
#[derive(Debug, Clone)]
pub struct Chat<M: LanguageModel> {
    session: Session<M>,
    template: Template,
    tools: Vec<serde_json::Value>,
    start: Position<M::State>,
    history: Vec<Message>,
    turns: VecDeque<Turn<M::State>>,
    /// Where the last reply began, to draw another.
    prompted: Option<Position<M::State>>,
}

impl<M: LanguageModel> Chat<M> {
    /// A conversation that begins where the session stands.
    pub fn new(session: Session<M>, template: Template) -> Self {
        let start = session.position().clone();
        Self {
            session,
            template,
            tools: Vec::new(),
            start,
            history: Vec::new(),
            turns: VecDeque::new(),
            prompted: None,
        }
    }

    /// The messages so far.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// The number of user turns.
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// The session behind it.
    pub fn session(&self) -> &Session<M> {
        &self.session
    }

    /// The session behind it, to change the sampler.
    pub fn session_mut(&mut self) -> &mut Session<M> {
        &mut self.session
    }

    /// The template.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Length and stops as the template has them.
    pub fn options(&self, max_tokens: usize) -> GenerateOptions {
        GenerateOptions { max_tokens, stops: self.template.stops.clone() }
    }

    /// Forgets everything but the system message and the tools.
    pub fn reset(&mut self) {
        self.session.restore(self.start.clone());
        let system = self.history.first().filter(|m| m.role == crate::Role::System).cloned();
        self.history = system.into_iter().collect();
        self.turns.clear();
        self.prompted = None;
    }

    /// Sets the system message, or removes it, and starts over.
    pub fn set_system(&mut self, text: Option<&str>) {
        self.history.clear();
        self.reset();
        self.history.extend(text.map(Message::system));
    }

    /// Sets the functions the model may call, as the OpenAI API defines them, and starts over.
    pub fn set_tools(&mut self, tools: Vec<serde_json::Value>) {
        self.tools = tools;
        self.reset();
    }

    /// Where the conversation began: what going back to its first turn, or forgetting all, returns to.
    pub fn start(&self) -> &Position<M::State> {
        &self.start
    }

    /// Replaces the whole past by a position, its messages and where they began, as saved from [`Chat::session`],
    /// [`Chat::history`] and [`Chat::start`].
    pub fn resume(&mut self, start: Position<M::State>, position: Position<M::State>, history: Vec<Message>) {
        self.start = start;
        self.session.restore(position);
        self.turns = history
            .iter()
            .enumerate()
            .filter(|(_, m)| m.role == crate::Role::User)
            .map(|(history, _)| Turn { history, position: None })
            .collect();
        self.history = history;
        self.prompted = None;
    }

    /// Turns whose states are kept: at least one, so that the last can be undone at once.
    fn kept_turns(&self) -> usize {
        let model = self.session.model();
        let each = model.state_bytes() + size_of::<f32>() * model.vocab();
        (KEPT_BYTES / each.max(1)).clamp(1, KEPT_TURNS)
    }

    /// Says something and gets the reply, streaming its cleaned pieces. Breaking cancels; what was said so far stays.
    /// After an error the conversation is as it was before.
    pub fn say(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_segment: impl FnMut(&Segment) -> ControlFlow<()>,
    ) -> Result<ChatReply> {
        let message = self.template.user_message(text);
        self.send(message, options, on_segment)
    }

    /// As [`Chat::say`] with any message, such as a function's result.
    pub fn send(
        &mut self,
        message: Message,
        options: &GenerateOptions,
        on_segment: impl FnMut(&Segment) -> ControlFlow<()>,
    ) -> Result<ChatReply> {
        let before = self.session.position().clone();
        let length = self.history.len();
        let prompted = self.prompted.take();
        match self.read(message).and_then(|()| self.reply(before.tokens.len(), options, on_segment)) {
            Ok(reply) => {
                self.turns.push_back(Turn { history: length, position: Some(before) });
                if let Some(old) = self.turns.len().checked_sub(self.kept_turns() + 1) {
                    self.turns[old].position = None;
                }
                Ok(reply)
            }
            Err(e) => {
                self.session.restore(before);
                self.history.truncate(length);
                self.prompted = prompted;
                Err(e)
            }
        }
    }

    /// Drops the last reply and draws another.
    pub fn regenerate(
        &mut self,
        options: &GenerateOptions,
        on_segment: impl FnMut(&Segment) -> ControlFlow<()>,
    ) -> Result<ChatReply> {
        let turns = self.turns.len();
        let last = turns.checked_sub(1).ok_or(Error::NoSuchTurn { turn: 0, turns })?;
        let Some(prompted) = self.prompted.clone() else {
            let message = self.history.get(self.turns[last].history).cloned();
            self.rewind(last)?;
            let message = message.ok_or(Error::NoSuchTurn { turn: last, turns })?;
            return self.send(message, options, on_segment);
        };
        let kept = (self.session.position().clone(), self.history.clone());
        let read = self.turns[last].position.as_ref().map_or(0, |p| p.tokens.len());
        self.history.truncate(self.turns[last].history + 1);
        self.session.restore(prompted);
        self.reply(read, options, on_segment).inspect_err(|_| {
            self.session.restore(kept.0);
            self.history = kept.1;
        })
    }

    /// Goes back to before user turn `turn` (from 0): what was said since is forgotten.
    pub fn rewind(&mut self, turn: usize) -> Result<()> {
        let turns = self.turns.len();
        let target = self.turns.get(turn).cloned().ok_or(Error::NoSuchTurn { turn, turns })?;
        match target.position {
            Some(position) => self.session.restore(position),
            None => {
                self.session.restore(self.start.clone());
                let past = &self.history[..target.history];
                if past.iter().any(|m| m.role != crate::Role::System) {
                    let text = self.template.render(past, &self.tools, false)?;
                    self.session.feed_text(text.trim_end())?;
                }
            }
        }
        self.history.truncate(target.history);
        self.turns.truncate(turn);
        self.prompted = None;
        Ok(())
    }

    /// Brings a message into the state.
    fn read(&mut self, message: Message) -> Result<()> {
        let said = self.history.iter().rposition(|m| m.role == crate::Role::Assistant);
        let piece = match said {
            // Only the reply just given can be continued; later messages would have been read with it.
            Some(at) if at + 1 == self.history.len() => {
                let (earlier, reply) = self.history.split_at(at);
                self.template.continuation(earlier, &reply[0], std::slice::from_ref(&message), &self.tools)?
            }
            _ => None,
        };
        self.history.push(message);
        match piece {
            Some(piece) => self.session.feed_text(&piece),
            None => {
                let whole = self.template.render(&self.history, &self.tools, true)?;
                self.session.restore(self.start.clone());
                self.session.feed_text(&whole)
            }
        }
    }

    /// Generates the reply to what was read and adds it to the history.
    fn reply(
        &mut self,
        already_read: usize,
        options: &GenerateOptions,
        mut on_segment: impl FnMut(&Segment) -> ControlFlow<()>,
    ) -> Result<ChatReply> {
        let prompted = self.session.position().clone();
        // When the conversation was read anew, all of it was.
        let prompt_tokens = prompted.tokens.len().checked_sub(already_read).unwrap_or(prompted.tokens.len());
        let mut stream: ReplyStream = self.template.reply_stream();
        let mut segments: Vec<Segment> = Vec::new();
        let mut told = 0;
        let generation = self.session.generate(options, |event| {
            if let Event::Text(text) = event {
                stream.push(text, &mut segments);
            }
            for s in &segments[told..] {
                told += 1;
                on_segment(s)?;
            }
            ControlFlow::Continue(())
        })?;
        stream.finish(&mut segments);
        for s in &segments[told..] {
            let _ = on_segment(s);
        }
        let message = self.template.reply_message(&generation.text);
        if !self.session.position().beyond.is_empty() {
            // The state may keep the beginning of the stop string only if the next turn begins so too.
            let next = [self.template.user_message("x")];
            let piece = self.template.continuation(&self.history, &message, &next, &self.tools)?;
            if !piece.is_some_and(|p| p.as_bytes().starts_with(&self.session.position().beyond)) {
                self.session.end_reply()?;
            }
        }
        self.history.push(message);
        self.prompted = Some(prompted);
        Ok(ChatReply { reply: Reply::from_segments(&segments), generation, prompt_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HashModel, ScriptModel, read_text, sampler};
    use crate::{SamplerConfig, StopReason};
    use hawfinch_tokenizer::Tokenizer;

    fn go(_: &Segment) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Answers "Echo: " and what was asked, then begins a new user turn, in one of two ways, or ends the document.
    fn echo(read: &str) -> String {
        let (before, said) = read.rsplit_once("Assistant:").unwrap();
        let asked = before.rsplit_once("User: ").unwrap().1.trim_end();
        let reply = match asked.len() % 3 {
            0 => format!(" Echo: {asked}\n\nUser: and"),
            1 => format!(" Echo: {asked}\nUser: and"),
            _ => format!(" Echo: {asked}"),
        };
        reply.strip_prefix(said).unwrap_or_default().to_owned()
    }

    fn chat(model: &ScriptModel) -> Chat<&ScriptModel> {
        let session = Session::new(model, model.tokenizer.clone(), sampler(SamplerConfig::greedy(), 1));
        Chat::new(session, Template::builtin("world").unwrap())
    }

    #[test]
    fn the_state_has_read_the_conversation_once() {
        for tokenizer in [Tokenizer::world(), Tokenizer::bytes()] {
            let model = ScriptModel::new(tokenizer.clone(), echo);
            let mut c = chat(&model);
            c.set_system(Some("Be kind."));
            let o = c.options(200);
            for (i, asked) in ["abc", "abcdef", "日本語です", "ab", "two\n\nlines?", "abc"].iter().enumerate()
            {
                let mut told = String::new();
                let r = c.say(asked, &o, |s| {
                    told.push_str(&s.text);
                    ControlFlow::Continue(())
                });
                let r = r.unwrap();
                let want = format!("Echo: {}", crate::template::normalise(asked));
                assert_eq!((r.reply.text.as_str(), told.as_str()), (want.as_str(), want.as_str()));
                assert_ne!(r.generation.stop, StopReason::MaxTokens);
                assert_eq!(c.turns(), i + 1);
            }
            // Everything up to the last reply, word for word as the template writes it.
            let whole = c.template().render(c.history(), &[], false).unwrap();
            let mut session = c.session().clone();
            session.end_reply().unwrap();
            let read = String::from_utf8(read_text(&tokenizer, &session.position().state)).unwrap();
            assert!(
                whole.trim_end().starts_with(&read) && read.contains("Be kind."),
                "{read:?} of {whole:?}"
            );
        }
    }

    #[test]
    fn nothing_is_read_twice() {
        // Only three-letter questions: replies that end in a blank line and "User:", as trained models do.
        let model = ScriptModel::new(Tokenizer::world(), echo);
        let mut c = chat(&model);
        let o = c.options(200);
        for _ in 0..5 {
            c.say("abc", &o, go).unwrap();
            assert_eq!(model.fed(), c.session().position().tokens.len());
        }
        let p = c.session().position();
        assert_eq!(p.beyond, b"\n\nUser");
    }

    #[test]
    fn regenerating_and_going_back() {
        let model = HashModel(256);
        let session = Session::new(&model, Tokenizer::bytes(), sampler(SamplerConfig::default(), 4));
        let mut c = Chat::new(session, Template::builtin("completion").unwrap());
        let o = GenerateOptions::new(20, &Tokenizer::bytes());
        let first = c.say("one", &o, go).unwrap();
        let after_one = (c.history().to_vec(), c.session().position().clone());
        let second = c.say("two", &o, go).unwrap();
        assert_eq!(second.prompt_tokens, 4, "the last token of the first reply and three letters");
        let start = c.session().position().tokens.len();
        let again = c.regenerate(&o, go).unwrap();
        assert_ne!(again.generation.tokens, second.generation.tokens);
        assert_eq!(again.prompt_tokens, 4);
        assert_eq!(c.session().position().tokens.len(), start);
        assert_eq!(c.history().len(), 4);
        c.rewind(1).unwrap();
        assert_eq!((c.history().to_vec(), c.session().position().clone()), after_one);
        assert_eq!(c.history()[1].content, first.generation.text);
        // The same random numbers draw the same reply again.
        let state = c.session().sampler.state().clone();
        let a = c.say("two", &o, go).unwrap();
        c.rewind(1).unwrap();
        c.session_mut().sampler.restore(state);
        assert_eq!(c.say("two", &o, go).unwrap(), a);
        assert_eq!(c.rewind(2), Err(Error::NoSuchTurn { turn: 2, turns: 2 }));
        c.reset();
        assert_eq!((c.history().len(), c.turns(), c.session().position().tokens.len()), (0, 0, 0));
        assert!(c.regenerate(&o, go).is_err());
    }

    #[test]
    fn a_saved_conversation_resumes() {
        let model = ScriptModel::new(Tokenizer::world(), echo);
        let mut c = chat(&model);
        let o = c.options(100);
        c.say("abc", &o, go).unwrap();
        c.say("abcd", &o, go).unwrap();
        let mut d = chat(&model);
        d.resume(c.start().clone(), c.session().position().clone(), c.history().to_vec());
        assert_eq!(d.say("abc", &o, go).unwrap(), c.say("abc", &o, go).unwrap());
        assert_eq!(d.session().position(), c.session().position());
        // Earlier turns have no state any more; they are read anew.
        d.rewind(1).unwrap();
        let read = read_text(&model.tokenizer, &d.session().position().state);
        assert_eq!(String::from_utf8(read).unwrap(), "User: abc\n\nAssistant: Echo: abc");
        assert_eq!(d.say("abcd", &o, go).unwrap().reply.text, "Echo: abcd");
    }

    #[test]
    fn after_an_error_the_conversation_is_as_before() {
        let model = ScriptModel::new(Tokenizer::world(), echo);
        let mut c = chat(&model);
        let o = c.options(100);
        c.say("abc", &o, go).unwrap();
        let before = (c.history().to_vec(), c.session().position().clone());
        let all = (0..model.tokenizer.vocab_size() as u32 + 3).map(|id| (id, f32::NEG_INFINITY)).collect();
        let config = c.session().sampler.config().clone();
        let banned = SamplerConfig { logit_bias: all, ..config.clone() };
        c.session_mut().sampler.reconfigure(banned).unwrap();
        assert!(matches!(c.say("abcd", &o, go), Err(Error::NothingLeft { .. })));
        assert!(c.regenerate(&o, go).is_err());
        assert_eq!((c.history().to_vec(), c.session().position().clone()), before);
        c.session_mut().sampler.reconfigure(config).unwrap();
        assert_eq!(c.say("abcd", &o, go).unwrap().reply.text, "Echo: abcd");
        assert_eq!(c.regenerate(&o, go).unwrap().reply.text, "Echo: abcd");
        // Cancelled: what was said stays and the conversation goes on behind it.
        let r = c.say("abc", &o, |_| ControlFlow::Break(())).unwrap();
        assert_eq!(r.generation.stop, StopReason::Cancelled);
        assert_eq!(c.history().last().unwrap().content, r.reply.text);
        assert_eq!(c.say("abcd", &o, go).unwrap().reply.text, "Echo: abcd");
    }

    /// A model that is told to end its replies after so many tokens.
    struct Impatient(ScriptModel, std::cell::Cell<usize>);

    impl LanguageModel for Impatient {
        type State = Vec<u32>;
        fn vocab(&self) -> usize {
            self.0.vocab()
        }
        fn new_state(&self) -> Vec<u32> {
            self.0.new_state()
        }
        fn forward(&self, feeds: &mut [crate::Feed<'_, Vec<u32>>]) -> Result<()> {
            self.0.forward(feeds)
        }
        fn cancelled(&self) -> bool {
            let left = self.1.get();
            self.1.set(left.saturating_sub(1));
            left == 1
        }
    }

    #[test]
    fn a_reply_ends_where_the_model_is_told_to_stop_also_in_white_space() {
        // White space is held back until it is clear that text follows: no piece is told for it.
        let blank = |read: &str| format!("Yes.{}", "\n \n".repeat(500 - read.len().min(400)));
        for tokens in [1, 4, 9, 20] {
            let script = ScriptModel::new(Tokenizer::world(), blank);
            let model = Impatient(script, std::cell::Cell::new(tokens));
            let session = Session::new(&model, Tokenizer::world(), sampler(SamplerConfig::greedy(), 1));
            let mut c = Chat::new(session, Template::builtin("world").unwrap());
            let r = c.say("Sure?", &c.options(300), go).unwrap();
            assert_eq!((r.generation.stop, r.generation.tokens.len()), (StopReason::Cancelled, tokens));
            assert_eq!(c.history().len(), 2, "what was said stays");
            assert_eq!(c.turns(), 1);
        }
    }

    #[test]
    fn thinking_is_told_from_the_answer() {
        let model = ScriptModel::new(Tokenizer::world(), |read| {
            let said = read.rsplit_once("Assistant: <think").unwrap().1;
            ">\nhm, hm\n</think>\n\nYes.\n\nUser:".strip_prefix(said).unwrap_or_default().to_owned()
        });
        let session = Session::new(&model, model.tokenizer.clone(), sampler(SamplerConfig::greedy(), 1));
        let mut c = Chat::new(session, Template::builtin("g1-think-a-bit").unwrap());
        let o = c.options(100);
        for _ in 0..3 {
            let r = c.say("Sure?", &o, go).unwrap();
            assert_eq!(r.reply, Reply { text: "Yes.".into(), reasoning: Some("hm, hm".into()) });
            assert_eq!(model.fed(), c.session().position().tokens.len(), "nothing is read twice");
        }
        assert_eq!(c.history()[0].content, "Sure? (think a bit)");
    }
}
