//! A model as the commands run it: long texts are read piece by piece with a progress bar, Ctrl-C stops the
//! reading, states count their tokens, and the time is taken.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use hawfinch_engine::speculate::Statistics;
use hawfinch_engine::{Error, Feed, LanguageModel, Result, Session, Wanted};
use hawfinch_model::{Model, STEP_TOKENS, State};

use crate::progress::Progress;
use crate::signal;

/// Tokens of the first piece of a text that is read.
pub const FIRST_PIECE: usize = 16;

/// The size of the next piece: as large as a step takes, but no piece should keep Ctrl-C and the progress bar
/// waiting for long. The division changes no bit of the result.
fn next_size(size: usize, took: Duration) -> usize {
    if took > Duration::from_millis(600) {
        (size / 2).max(1)
    } else if took < Duration::from_millis(200) {
        (size * 2).min(STEP_TOKENS)
    } else {
        size
    }
}

/// How many tokens were read or written, and in what time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Tokens.
    pub tokens: u64,
    /// In this time.
    pub time: Duration,
}

impl Pace {
    fn add(&mut self, tokens: usize, time: Duration) {
        self.tokens += tokens as u64;
        self.time += time;
    }

    /// `52 in 0.90 s (58/s)`
    pub fn shown(&self) -> String {
        let seconds = self.time.as_secs_f64();
        let rate = if seconds > 0.0 { self.tokens as f64 / seconds } else { 0.0 };
        let digits = usize::from(rate < 10.0);
        format!("{} in {seconds:.2} s ({rate:.digits$}/s)", crate::output::thousands(self.tokens))
    }
}

/// The paces of one reply.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Tokens of prompts.
    pub read: Pace,
    /// Generated tokens.
    pub written: Pace,
    /// What was guessed of them.
    pub guesses: Option<Statistics>,
}

impl Timing {
    /// What was written by speculation: tokens that were guessed count, and so does the time of guessing.
    pub fn speculated(mut self, guesses: Option<Statistics>) -> Timing {
        if let Some(g) = &guesses {
            self.written.tokens = g.steps + g.accepted;
            self.written.time += g.drafting;
        }
        self.guesses = guesses;
        self
    }

    /// `read 5 in 0.10 s (50/s), wrote 52 in 0.90 s (58/s)`, and how many guesses were right if there were any.
    pub fn shown(&self) -> String {
        let mut shown = format!("read {}, wrote {}", self.read.shown(), self.written.shown());
        if let Some(g) = &self.guesses {
            let thousands = crate::output::thousands;
            shown += &format!(", {} of {} guesses right", thousands(g.accepted), thousands(g.drafted));
            if g.steps > 0 {
                shown += &format!(", {:.2} tokens a step", self.written.tokens as f64 / g.steps as f64);
            }
        }
        shown
    }
}

/// The model with its clock.
pub struct Runner<'m> {
    model: &'m Model,
    timing: Cell<Timing>,
    /// Counts every token that is fed, when there is one for the whole work.
    bar: RefCell<Option<Progress>>,
}

impl<'m> Runner<'m> {
    /// With nothing timed yet.
    pub fn new(model: &'m Model) -> Self {
        Runner { model, timing: Cell::default(), bar: RefCell::default() }
    }

    /// From now on one bar counts all tokens that are fed, until [`Runner::end_bar`].
    pub fn begin_bar(&self, what: &str, tokens: u64) {
        *self.bar.borrow_mut() = Some(Progress::count(what, tokens));
    }

    /// Takes that bar away.
    pub fn end_bar(&self) {
        *self.bar.borrow_mut() = None;
    }

    /// Does something that may write to the terminal, with that bar out of the way.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        match &*self.bar.borrow() {
            Some(bar) => bar.aside(work),
            None => work(),
        }
    }

    /// What was timed since the last call.
    pub fn take_timing(&self) -> Timing {
        self.timing.take()
    }

    /// Counts tokens that were written by speculation, whose steps do not say how many they are.
    pub fn count_written(&self, tokens: u64) {
        if let Some(bar) = &mut *self.bar.borrow_mut() {
            bar.add(tokens);
        }
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Reads the tokens of all sequences in pieces.
    fn read(&self, feeds: &mut [Feed<'_, State>], tokens: usize) -> Result<()> {
        let mut whole = self.bar.borrow_mut();
        let mut own = None;
        let bar = match &mut *whole {
            Some(bar) => bar,
            None => own.insert(Progress::count("reading", tokens as u64)),
        };
        read_in_pieces(self.model, feeds, bar)
    }
}

/// Feeds each sequence its tokens in pieces that `bar` counts, until Ctrl-C is pressed. Wants no more than logits
/// after the last tokens.
pub fn read_in_pieces(model: &Model, feeds: &mut [Feed<'_, State>], bar: &mut Progress) -> Result<()> {
    let mut done = vec![0; feeds.len()];
    let mut size = FIRST_PIECE;
    loop {
        let mut room = size.max(feeds.len());
        let mut piece = Vec::new();
        for (feed, done) in feeds.iter_mut().zip(&mut done) {
            let (from, to) = (*done, feed.tokens.len().min(*done + room));
            if from == to {
                continue;
            }
            // Only the last token's logits are wanted.
            let logits = if to == feed.tokens.len() { feed.logits.reborrow() } else { Wanted::Nothing };
            piece.push(Feed { tokens: &feed.tokens[from..to], state: &mut *feed.state, logits });
            room -= to - from;
            *done = to;
        }
        if piece.is_empty() {
            return Ok(());
        }
        if signal::pressed() {
            return Err(Error::Model("interrupted while reading".into()));
        }
        let began = Instant::now();
        LanguageModel::forward(model, &mut piece)?;
        size = next_size(size, began.elapsed());
        bar.add(piece.iter().map(|f| f.tokens.len() as u64).sum());
    }
}

/// Makes a session's state include exactly the text so far: what a cut-off reply has not read yet is read, what
/// was read of a stop string is not. A state that is saved then means the same to whoever loads it.
pub fn catch_up<M: LanguageModel>(session: &mut Session<M>) -> Result<()> {
    session.end_reply()?;
    let mut position = session.position().clone();
    let mut tokens = std::mem::take(&mut position.pending);
    tokens.extend(session.tokenizer().encode(&std::mem::take(&mut position.missing)));
    session.restore(position);
    session.feed_tokens(&tokens)
}

impl LanguageModel for Runner<'_> {
    type State = State;

    fn vocab(&self) -> usize {
        self.model.config().vocab
    }

    fn new_state(&self) -> State {
        self.model.new_state()
    }

    fn cancelled(&self) -> bool {
        signal::pressed()
    }

    fn state_bytes(&self) -> usize {
        self.model.state_bytes()
    }

    fn forward(&self, feeds: &mut [Feed<'_, State>]) -> Result<()> {
        let before: Vec<u64> = feeds.iter().map(|f| f.state.tokens).collect();
        let began = Instant::now();
        let tokens: usize = feeds.iter().map(|f| f.tokens.len()).sum();
        // Several tokens that verify guesses are written, not read.
        let verifies = feeds.iter().any(|f| matches!(f.logits, Wanted::Tail { .. }));
        let reads = tokens > feeds.len() && !verifies;
        if reads {
            self.read(feeds, tokens)?;
        } else {
            LanguageModel::forward(self.model, feeds)?;
            if !verifies {
                self.count_written(tokens as u64);
            }
        }
        let mut timing = self.timing.get();
        let pace = if reads { &mut timing.read } else { &mut timing.written };
        pace.add(tokens, began.elapsed());
        self.timing.set(timing);
        for (feed, before) in feeds.iter_mut().zip(before) {
            feed.state.tokens = before + feed.tokens.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_model::{Cpu, OpenOptions, synthetic};

    #[test]
    fn pieces_grow_on_fast_models_and_shrink_on_slow_ones() {
        let (fast, slow) = (Duration::from_millis(5), Duration::from_secs(3));
        let sizes = |took, n| (0..n).fold(FIRST_PIECE, |size, _| next_size(size, took));
        assert_eq!(sizes(fast, 20), STEP_TOKENS);
        assert_eq!(sizes(slow, 20), 1);
        assert_eq!(sizes(Duration::from_millis(400), 5), FIRST_PIECE);
    }

    #[test]
    fn reading_in_pieces_is_reading_at_once() {
        let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::new(1)).unwrap();
        let runner = Runner::new(&model);
        let tokens: Vec<u32> = (0..300).map(|i| i * 11 % 256).collect();
        let (mut pieces, mut whole) = (model.new_state(), model.new_state());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        runner
            .forward(&mut [Feed { tokens: &tokens, state: &mut pieces, logits: Wanted::Last(&mut a) }])
            .unwrap();
        LanguageModel::forward(
            &model,
            &mut [Feed { tokens: &tokens, state: &mut whole, logits: Wanted::Last(&mut b) }],
        )
        .unwrap();
        assert_eq!(a, b);
        assert_eq!(pieces.data(), whole.data());
        assert_eq!(pieces.tokens, 300);
        let timing = runner.take_timing();
        assert_eq!((timing.read.tokens, timing.written.tokens), (300, 0));
        // Several sequences, one of which reads but one token.
        let texts = [&tokens[..], &tokens[7..8], &tokens[100..240]];
        let run = |model: &dyn Fn(&mut [Feed<'_, State>])| {
            let mut states = vec![runner.new_state(); 3];
            let mut logits = vec![Vec::new(); 3];
            let feeds = texts.iter().zip(&mut states).zip(&mut logits);
            let mut feeds: Vec<_> =
                feeds.map(|((tokens, state), l)| Feed { tokens, state, logits: Wanted::Last(l) }).collect();
            model(&mut feeds);
            (logits, states.iter().map(|s| s.data().to_vec()).collect::<Vec<_>>())
        };
        runner.begin_bar("all", 441);
        let pieces = run(&|feeds| runner.forward(feeds).unwrap());
        assert_eq!(runner.bar.borrow().as_ref().map(Progress::done), Some(441));
        runner.end_bar();
        assert_eq!(pieces, run(&|feeds| LanguageModel::forward(&model, feeds).unwrap()));
    }
}
