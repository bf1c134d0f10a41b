//! One sequence: what it has read and written, and going on from there, back, or in two directions.

use crate::generate::{EMPTY_CONTEXT, Event, GenerateOptions, Generation, Next, Run, check_ids};
use crate::speculate::Verifier;
use crate::{Feed, LanguageModel, Result, Sampler, Speculation, StopReason, Wanted};
use hawfinch_tokenizer::Tokenizer;
use std::ops::ControlFlow;

/// Where a sequence stands. Plain data: clone it to snapshot, store its parts to save.
#[derive(Debug, Clone, PartialEq)]
pub struct Position<S> {
    /// The model's state after `tokens`.
    pub state: S,
    /// All tokens that the state has read since the session's first state.
    pub tokens: Vec<u32>,
    /// Logits after the last of them; empty when they are not known (nothing read yet).
    pub logits: Vec<f32>,
    /// Tokens that belong to the text but were not read yet: the last one of a reply that was cut off.
    pub pending: Vec<u32>,
    /// Bytes of a stop string that the state has read beyond the end of the reply.
    pub beyond: Vec<u8>,
    /// The last bytes of the reply, which the state has not read because their token reached into the stop string.
    pub missing: Vec<u8>,
}

impl<S> Position<S> {
    fn new(state: S) -> Self {
        Self {
            state,
            tokens: Vec::new(),
            logits: Vec::new(),
            pending: Vec::new(),
            beyond: Vec::new(),
            missing: Vec::new(),
        }
    }
}

/// The way back from a reply whose stop string the state has partly read.
#[derive(Debug, Clone)]
struct Retreat<S> {
    /// Where the reply began.
    before: Position<S>,
    /// The reply's tokens that end within its text.
    tokens: Vec<u32>,
    /// The text's bytes after them.
    rest: Vec<u8>,
}

/// A sequence of a model.
///
/// ```
/// # use hawfinch_engine::{Feed, GenerateOptions, LanguageModel, Result, Sampler, SamplerConfig, Session, Uncounted};
/// # struct Echo; // stands in for `hawfinch_model::Model::open("model.pth")?`: says each byte's successor
/// # impl LanguageModel for Echo {
/// #     type State = u32;
/// #     fn vocab(&self) -> usize { 256 }
/// #     fn new_state(&self) -> u32 { 0 }
/// #     fn forward(&self, feeds: &mut [Feed<'_, u32>]) -> Result<()> {
/// #         for f in feeds {
/// #             *f.state = *f.tokens.last().unwrap();
/// #             if let Some(l) = f.logits.buffer() { *l = (0..256).map(|i| -(i as f32 - *f.state as f32 - 1.0).abs()).collect(); }
/// #         }
/// #         Ok(())
/// #     }
/// # }
/// # let model = Echo;
/// # let tokenizer = hawfinch_tokenizer::Tokenizer::bytes();
/// let sampler = Sampler::new(SamplerConfig::greedy(), Uncounted::none())?;
/// let mut session = Session::new(model, tokenizer.clone(), sampler);
/// session.feed_text("abc")?;
/// let before = session.position().clone(); // a fork costs one copy of the state
/// let options = GenerateOptions::new(4, &tokenizer);
/// assert_eq!(session.generate(&options, |_| std::ops::ControlFlow::Continue(()))?.text, "defg");
/// session.restore(before);
/// assert_eq!(session.generate(&options, |_| std::ops::ControlFlow::Continue(()))?.text, "defg");
/// # Ok::<(), hawfinch_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Session<M: LanguageModel> {
    model: M,
    tokenizer: Tokenizer,
    /// How tokens are drawn; settings may change at any time.
    pub sampler: Sampler,
    /// Guesses tokens ahead, when there is one: the same text in fewer steps of the model.
    pub speculation: Option<Speculation>,
    position: Position<M::State>,
    retreat: Option<Box<Retreat<M::State>>>,
}

impl<M: LanguageModel> Session<M> {
    /// A sequence that has read nothing. `model` may be a reference or an `Arc`.
    pub fn new(model: M, tokenizer: Tokenizer, sampler: Sampler) -> Self {
        let state = model.new_state();
        Self::with_state(model, tokenizer, sampler, state)
    }

    /// A sequence that starts from a state: a tuned one, or one that was saved.
    pub fn with_state(model: M, tokenizer: Tokenizer, sampler: Sampler, state: M::State) -> Self {
        let position = Position::new(state);
        Self { model, tokenizer, sampler, speculation: None, position, retreat: None }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Where the sequence stands.
    pub fn position(&self) -> &Position<M::State> {
        &self.position
    }

    /// Goes back, or over, to a position of the same model. The sampler stays as it is: going on from the same
    /// position draws other tokens, unless its state is restored too.
    pub fn restore(&mut self, position: Position<M::State>) {
        self.position = position;
        self.retreat = None;
    }

    /// Reads text.
    ///
    /// After a reply that ended with a stop string, text that begins with the stop string's part that the state has
    /// read already goes on behind it; other text goes on right behind the reply (which is then read once more from
    /// where it began). Either way the state has read what the text says, once.
    pub fn feed_text(&mut self, text: &str) -> Result<()> {
        self.feed_bytes(text.as_bytes())
    }

    /// Reads bytes, as [`Session::feed_text`].
    pub fn feed_bytes(&mut self, text: &[u8]) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if let Some(rest) = text.strip_prefix(&self.position.beyond[..]) {
            let joined = [&self.position.missing[..], rest].concat();
            let tokens = self.tokenizer.encode(&joined);
            return self.read(&tokens);
        }
        self.end_reply()?;
        let joined = [&self.position.missing[..], text].concat();
        let tokens = self.tokenizer.encode(&joined);
        self.read(&tokens)
    }

    /// Reads tokens right behind what was read and written so far.
    pub fn feed_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        check_ids(tokens, self.model.vocab())?;
        self.end_reply()?;
        let missing = self.tokenizer.encode(&self.position.missing);
        self.read(&[&missing, tokens].concat())
    }

    /// Makes the state end where the last reply's text ends: if it has read part of a stop string, it goes back to
    /// where the reply began and reads the reply once more. Feeding and generating do this when they need it; call
    /// it before [`Session::position`] is stored for text that will not begin with the stop string.
    pub fn end_reply(&mut self) -> Result<()> {
        if self.position.beyond.is_empty() {
            return Ok(());
        }
        if let Some(retreat) = self.retreat.take() {
            self.position = retreat.before;
            self.read(&retreat.tokens)?;
            self.position.missing = retreat.rest;
        } else {
            // A restored position without its past: what was read cannot be unread, so the text goes on behind it.
            self.position.beyond.clear();
        }
        Ok(())
    }

    /// Feeds the pending tokens and these.
    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        check_ids(tokens, self.model.vocab())?;
        let p = &mut self.position;
        let start = p.tokens.len();
        p.tokens.append(&mut p.pending);
        p.tokens.extend_from_slice(tokens);
        p.beyond.clear();
        p.missing.clear();
        self.retreat = None;
        if p.tokens.len() == start {
            return Ok(());
        }
        self.sampler.observe(tokens);
        let logits = Wanted::Last(&mut p.logits);
        let feed = Feed { tokens: &p.tokens[start..], state: &mut p.state, logits };
        self.model.forward(&mut [feed])
    }

    /// Generates a reply, telling `on_event` each token and each piece of text; it may break to cancel.
    ///
    /// With [`Session::speculation`] the reply, the tokens told and where the session stands afterwards are the same; it
    /// takes fewer steps.
    ///
    /// Counts of the presence and frequency penalties start anew, as in the reference. Afterwards the session stands
    /// at the end of the reply. An empty session first reads [`EMPTY_CONTEXT`]. After an error the position is
    /// undefined: restore an earlier one.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut run = Run::new(options)?;
        if run.is_full() {
            return Ok(run.generation);
        }
        self.end_reply()?;
        let missing = self.tokenizer.encode(&self.position.missing);
        if !missing.is_empty() || !self.position.pending.is_empty() {
            self.read(&missing)?;
        }
        if self.position.logits.is_empty() {
            self.read(&[EMPTY_CONTEXT])?;
        }
        self.sampler.reset_counts();
        // The state before the reply is needed only if a stop string ends it.
        let before = (!options.stops.strings.is_empty()).then(|| self.position.clone());
        let mut fed_bytes = 0;
        let Self { model, tokenizer, sampler, speculation, position: p, .. } = self;
        let mut tell = |event: Event<'_>| {
            let token = matches!(event, Event::Token(_));
            on_event(event)?;
            // Once a token: text of a reply that has ended comes out in any case.
            if token && model.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut ahead = speculation.as_mut().map(|s| Verifier::new(s, model, p));
        loop {
            let logits = ahead.as_ref().map_or(&p.logits[..], Verifier::logits);
            let Next::Feed(id) = run.step(sampler, logits, tokenizer, &mut tell)? else { break };
            p.tokens.push(id);
            match &mut ahead {
                Some(verifier) => verifier.next(p, run.room(), sampler, &options.stops.tokens)?,
                None => {
                    let logits = Wanted::Last(&mut p.logits);
                    model.forward(&mut [Feed { tokens: &[id], state: &mut p.state, logits }])?;
                }
            }
            fed_bytes = run.bytes.len();
        }
        if let Some(verifier) = ahead {
            verifier.end(p)?;
        }
        self.settle(&run, fed_bytes, before);
        Ok(run.generation)
    }

    /// Notes how the state and the reply's text differ at the end of a reply.
    fn settle(&mut self, run: &Run, fed_bytes: usize, before: Option<Position<M::State>>) {
        let (tokens, bytes, text_len) = (&run.generation.tokens, &run.bytes, run.text_len());
        match (&run.generation.stop, before) {
            (StopReason::StopString(_), Some(before)) => {
                // The last token was not read and its part of the stop string is dropped.
                if fed_bytes > text_len {
                    self.position.beyond = bytes[text_len..fed_bytes].to_vec();
                    let (mut whole, mut end) = (0, 0);
                    for &id in tokens {
                        let len = self.tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
                        if end + len > text_len {
                            break;
                        }
                        end += len;
                        whole += 1;
                    }
                    let (tokens, rest) = (tokens[..whole].to_vec(), bytes[end..text_len].to_vec());
                    self.retreat = Some(Box::new(Retreat { before, tokens, rest }));
                } else {
                    self.position.missing = bytes[fed_bytes..text_len].to_vec();
                }
            }
            (StopReason::MaxTokens | StopReason::Cancelled, _) => {
                self.position.pending.extend(tokens.last());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HashModel, ScriptModel, read_text, sampler};
    use crate::{SamplerConfig, StopRules};

    fn go(_: Event<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn options(max_tokens: usize, strings: &[&str], tokens: &[u32]) -> GenerateOptions {
        let strings = strings.iter().map(|s| (*s).to_owned()).collect();
        GenerateOptions { max_tokens, stops: StopRules { strings, tokens: tokens.to_vec() } }
    }

    fn hashed(model: &HashModel) -> Session<&HashModel> {
        Session::new(model, Tokenizer::bytes(), sampler(SamplerConfig::default(), 3))
    }

    #[test]
    fn any_division_of_the_prompt_gives_the_same_reply() {
        let model = HashModel(256);
        let o = options(40, &[], &[]);
        let mut whole = hashed(&model);
        whole.feed_text("a prompt").unwrap();
        let want = whole.generate(&o, go).unwrap();
        let mut parts = hashed(&model);
        for p in ["a", " pro", "", "mpt"] {
            parts.feed_text(p).unwrap();
        }
        assert_eq!(parts.generate(&o, go).unwrap(), want);
        assert_eq!(parts.position(), whole.position());
        assert_eq!(want.stop, StopReason::MaxTokens);
    }

    #[test]
    fn forks_and_snapshots_go_on_alike_and_do_not_disturb_each_other() {
        let model = HashModel(256);
        let o = options(10, &[], &[]);
        let mut s = hashed(&model);
        s.feed_text("once").unwrap();
        s.generate(&o, go).unwrap();
        let (position, state) = (s.position().clone(), s.sampler.state().clone());
        let mut fork = s.clone();
        fork.feed_text("elsewhere").unwrap();
        let a = s.generate(&o, go).unwrap();
        s.restore(position);
        s.sampler.restore(state);
        assert_eq!(s.generate(&o, go).unwrap(), a);
        assert_ne!(fork.generate(&o, go).unwrap(), a);
    }

    #[test]
    fn a_reply_that_was_cut_off_goes_on_where_it_ended() {
        let model = HashModel(256);
        let greedy = sampler(SamplerConfig::greedy(), 1);
        let mut long = Session::new(&model, Tokenizer::bytes(), greedy.clone());
        long.feed_text("x").unwrap();
        let want = long.generate(&options(9, &[], &[]), go).unwrap().tokens;
        let mut short = Session::new(&model, Tokenizer::bytes(), greedy);
        short.feed_text("x").unwrap();
        let mut got = Vec::new();
        for n in [1, 0, 3, 5] {
            got.extend(short.generate(&options(n, &[], &[]), go).unwrap().tokens);
        }
        assert_eq!(got, want);
        // Text fed afterwards comes behind the token that was not read yet.
        short.feed_text("!").unwrap();
        assert_eq!(short.position().tokens, [&[u32::from(b'x')][..], &want, &[u32::from(b'!')]].concat());
    }

    #[test]
    fn an_empty_prompt_reads_the_end_of_document() {
        let model = HashModel(256);
        let mut s = hashed(&model);
        let reply = s.generate(&options(3, &[], &[]), go).unwrap();
        assert_eq!(s.position().tokens, [&[EMPTY_CONTEXT][..], &reply.tokens[..2]].concat());
        assert_eq!(s.position().pending, reply.tokens[2..]);
    }

    #[test]
    fn every_way_to_stop() {
        let model = ScriptModel::new(Tokenizer::world(), |read| "Hello, world! More.".replacen(read, "", 1));
        let run = |o: GenerateOptions, cancel_at: usize| {
            let mut s = Session::new(&model, model.tokenizer.clone(), sampler(SamplerConfig::greedy(), 1));
            let (mut text, mut seen) = (String::new(), 0);
            let g = s.generate(&o, |e| {
                match e {
                    Event::Text(t) => text.push_str(t),
                    Event::Token(_) => seen += 1,
                }
                if seen >= cancel_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let g = g.unwrap();
            assert_eq!((g.text.as_str(), g.tokens.len(), g.logprobs.len()), (text.as_str(), seen, seen));
            (g.text, g.stop)
        };
        let never = usize::MAX;
        let whole = "Hello, world! More.".to_owned();
        assert_eq!(run(options(99, &[], &[0]), never), (whole.clone(), StopReason::EndOfDocument));
        assert_eq!(run(options(2, &[], &[0]), never).1, StopReason::MaxTokens);
        assert_eq!(run(options(0, &[], &[0]), never), (String::new(), StopReason::MaxTokens));
        let stop = |s: &str| StopReason::StopString(s.into());
        assert_eq!(run(options(99, &["ld! M"], &[0]), never), ("Hello, wor".into(), stop("ld! M")));
        assert_eq!(run(options(99, &["Hel", "x"], &[0]), never), (String::new(), stop("Hel")));
        // A stop string that only begins is text after all.
        assert_eq!(run(options(99, &["More.."], &[0]), never), (whole.clone(), StopReason::EndOfDocument));
        let comma = model.tokenizer.encode(b"Hello,")[1];
        assert_eq!(run(options(99, &[], &[comma]), never), ("Hello".into(), StopReason::StopToken(comma)));
        assert_eq!(run(options(99, &[], &[0]), 1).1, StopReason::Cancelled);
        // A model that never stops by itself is stopped by the limit.
        assert_eq!(run(options(25, &[], &[]), never).1, StopReason::MaxTokens);
    }

    #[test]
    fn characters_arrive_whole_whatever_the_tokens() {
        const SAID: &str = "日本語 é 🦜!";
        let model = ScriptModel::new(Tokenizer::bytes(), |read| SAID.strip_prefix(read).unwrap().to_owned());
        let mut s = Session::new(&model, Tokenizer::bytes(), sampler(SamplerConfig::greedy(), 1));
        // Byte-level models have no end of document; the empty state reads token 0, a byte the script knows nothing of.
        s.restore(Position { logits: vec![0.0; 259], ..Position::new(Vec::new()) });
        s.position.logits[0xE6] = 60.0;
        let mut pieces = Vec::new();
        let g = s.generate(&options(SAID.len(), &["🦜?"], &[]), |e| {
            if let Event::Text(t) = e {
                pieces.push(t.to_owned());
            }
            ControlFlow::Continue(())
        });
        assert_eq!(g.unwrap().text, SAID);
        assert_eq!(pieces.concat(), SAID);
        assert_eq!(&pieces[..3], ["日", "本", "語"]);
        assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')));
        // Cut in the middle of a character: one replacement character, no panic.
        s.restore(Position { logits: vec![0.0; 259], ..Position::new(Vec::new()) });
        s.position.logits[0xE6] = 60.0;
        assert_eq!(s.generate(&options(4, &[], &[]), go).unwrap().text, "日\u{fffd}");
    }

    /// After a reply ended by a stop string, the state has read exactly the text, however the next text begins.
    #[test]
    fn behind_a_stop_string_the_text_is_exact() {
        for tokenizer in [Tokenizer::bytes(), Tokenizer::world()] {
            for (said, next) in [
                (" Hi.\n\nUser: never", "\n\nUser: more"),
                (" Hi.\n\nUser: never", "\n\nSystem: other"),
                (" Hi.\nUser: never", "\n\nUser: more"),
                (" Hi.\nUser: never", "?"),
                ("\n\nUser: never", "\n\nUser: more"),
            ] {
                let script = match said {
                    " Hi.\n\nUser: never" => |t: &str| " Hi.\n\nUser: never"[t.len() - 2..].to_owned(),
                    " Hi.\nUser: never" => |t: &str| " Hi.\nUser: never"[t.len() - 2..].to_owned(),
                    _ => |t: &str| "\n\nUser: never"[t.len() - 2..].to_owned(),
                };
                let model = ScriptModel::new(tokenizer.clone(), script);
                let mut s = Session::new(&model, tokenizer.clone(), sampler(SamplerConfig::greedy(), 1));
                s.feed_text("A:").unwrap();
                let g = s.generate(&options(99, &["\n\nUser:", "\nUser:"], &[0]), go).unwrap();
                assert!(matches!(g.stop, StopReason::StopString(_)));
                assert!(!g.text.contains("User") && said.starts_with(&g.text));
                // The script cannot answer what comes next; only the reading matters.
                let mut quiet = Session {
                    model: Silent(&model),
                    tokenizer: s.tokenizer.clone(),
                    sampler: s.sampler.clone(),
                    speculation: None,
                    position: s.position.clone(),
                    retreat: s.retreat.clone(),
                };
                quiet.feed_text(next).unwrap();
                let read = read_text(&tokenizer, &quiet.position().state);
                let want = format!("A:{}{next}", g.text);
                assert_eq!(String::from_utf8(read).unwrap(), want, "{said:?} then {next:?}");
                assert_eq!(quiet.position().state, quiet.position().tokens);
            }
        }
    }

    /// The scripted model without its script.
    struct Silent<'a>(&'a ScriptModel);

    impl LanguageModel for Silent<'_> {
        type State = Vec<u32>;
        fn vocab(&self) -> usize {
            self.0.vocab()
        }
        fn new_state(&self) -> Vec<u32> {
            Vec::new()
        }
        fn forward(&self, feeds: &mut [Feed<'_, Vec<u32>>]) -> Result<()> {
            for f in feeds {
                f.state.extend_from_slice(f.tokens);
            }
            Ok(())
        }
    }

    #[test]
    fn ids_out_of_range_are_refused_before_anything_changes() {
        let model = HashModel(150);
        let mut s = hashed(&model);
        s.feed_tokens(&[5]).unwrap();
        let before = s.position().clone();
        assert!(matches!(s.feed_tokens(&[1, 150]), Err(crate::Error::TokenRange { id: 150, vocab: 150 })));
        assert!(s.feed_text("é").is_err());
        assert_eq!(*s.position(), before);
    }
}
