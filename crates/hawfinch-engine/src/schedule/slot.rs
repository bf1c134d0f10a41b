//! One running sequence: the prompt that it reads, the reply that it writes.

use super::queue::Who;
use super::request::{Base, BatchModel, Constrained, Event, Request, Sink, Timings};
use super::share::Wait;
use crate::generate::{Event as Told, Next, Run};
use crate::grammar::Allowed;
use crate::sampler::raw_logprob;
use crate::tree::Snapshot;
use crate::tree::cache::StateCache;
use crate::{EMPTY_CONTEXT, Error, Feed, Result, Sampled, Sampler, StopReason, Wanted};
use hawfinch_tokenizer::Tokenizer;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A snapshot before a possible stop string is taken only so many tokens after the last one.
const HELD_APART: usize = 8;
/// Rows of logits of one sequence in one step at most.
const ROWS: usize = 64;

/// A sequence's part of a step, and its adapter.
type Part<'a, M> = (Feed<'a, <M as crate::LanguageModel>::State>, Option<&'a <M as BatchModel>::Adapter>);

/// What all choices of a request share.
pub(super) struct Ticket {
    pub who: Who,
    pub deadline: Option<Instant>,
    /// When it was submitted, begun, when its prompt was read.
    pub times: [Instant; 3],
    inner: Mutex<Inner>,
}

struct Inner {
    sink: Box<dyn Sink>,
    choices: usize,
    timings: Timings,
    over: bool,
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tell(&self, event: Event) {
        let mut inner = self.lock();
        if !inner.over {
            inner.sink.tell(event);
        }
    }

    fn begun(&self, prompt: usize, cached: usize) {
        self.lock().timings.prompt_tokens = prompt - cached;
        self.tell(Event::Begun { prompt, cached });
    }

    pub fn fail(&self, error: Error) {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.over, true) {
            inner.sink.tell(Event::Failed(error));
        }
    }

    /// Whether nobody listens any more, or it has failed.
    pub fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.over || inner.sink.is_closed()
    }

    /// A choice ended; with the last one, all.
    fn done(
        &self,
        choice: usize,
        (stop, stop_token): (StopReason, Option<Sampled>),
        tokens: usize,
        prompt_read: Option<Instant>,
    ) {
        let mut inner = self.lock();
        if inner.over {
            return;
        }
        inner.sink.tell(Event::Done { choice, stop, stop_token, tokens });
        inner.choices -= 1;
        inner.timings.tokens += tokens;
        if inner.choices == 0 {
            let now = Instant::now();
            let read = prompt_read.unwrap_or(now);
            inner.timings.queued = self.times[1] - self.times[0];
            inner.timings.prompt = read - self.times[1];
            inner.timings.generation = now - read;
            let timings = inner.timings;
            inner.sink.tell(Event::End(timings));
            inner.over = true;
        }
    }
}

/// The part of a sequence that is its prompt.
struct Prompt {
    /// Tokens of the prompt.
    len: usize,
    /// Where snapshots are taken on the way, ascending.
    marks: Vec<usize>,
    /// Samplers of the other choices.
    others: Vec<Sampler>,
    /// From which position on log-probabilities are told.
    logprobs: Option<usize>,
}

impl Prompt {
    /// Takes a snapshot there, too; its end is another matter.
    fn mark(&mut self, at: usize) {
        if at < self.len
            && let Err(i) = self.marks.binary_search(&at)
        {
            self.marks.insert(i, at);
        }
    }
}

/// A running sequence.
pub(super) struct Slot<M: BatchModel> {
    /// Ascending in the order in which prompts begin; all choices of one have the same.
    pub number: u64,
    pub ticket: Arc<Ticket>,
    pub base: Base<M>,
    /// Another one is reading what its prompt begins with.
    pub waits: Option<Wait>,
    choice: usize,
    cached: bool,
    /// Where it ends is kept: not where only likelihoods are asked for, which nobody goes on from.
    keeps_end: bool,
    /// All tokens since the base's state, those of the reply included.
    tokens: Vec<u32>,
    /// How many of them the state has read.
    fed: usize,
    /// How many of them this step reads.
    reading: usize,
    state: M::State,
    logits: Vec<f32>,
    prompt: Option<Prompt>,
    prompt_read: Option<Instant>,
    sampler: Sampler,
    run: Run,
    constrained: Option<Constrained>,
    /// A snapshot before what may become a stop string.
    held: Option<(usize, Arc<Snapshot<M::State>>)>,
    last_held: usize,
    /// The token that ended it, which is no part of it.
    stop_token: Option<Sampled>,
    /// Why it ended.
    pub ended: bool,
}

impl<M: BatchModel> Slot<M> {
    /// Begins: finds the deepest state that the prompt can start from.
    pub fn begin(
        number: u64,
        model: &M,
        cache: &StateCache<M::State>,
        tokenizer: &Tokenizer,
        request: Request<M>,
        submitted: Instant,
    ) -> Self {
        let Request { base, mut prompt, marks, samplers, mut options, constrained, prompt_logprobs, .. } =
            request;
        if prompt.is_empty() {
            prompt.push(EMPTY_CONTEXT);
        }
        let len = prompt.len();
        if constrained.is_some() {
            options.stops.tokens.extend(tokenizer.eos());
        }
        let mut marks: Vec<usize> = marks.into_iter().filter(|m| (1..len).contains(m)).collect();
        marks.sort_unstable();
        marks.dedup();
        let state = base.state.as_deref().cloned().unwrap_or_else(|| model.new_state());
        let mut samplers = samplers.into_iter();
        let mut sampler = samplers.next().expect("a request has a sampler a choice");
        sampler.observe(&prompt);
        let others: Vec<Sampler> = samplers
            .map(|mut s| {
                s.observe_as(&sampler);
                s
            })
            .collect();
        let now = Instant::now();
        let timings = Timings::default();
        let inner = Inner { sink: request.sink, choices: 1 + others.len(), timings, over: false };
        let ticket = Ticket {
            who: (request.client, request.user),
            deadline: request.deadline,
            times: [submitted, now, now],
            inner: Mutex::new(inner),
        };
        let mut slot = Self {
            number,
            ticket: Arc::new(ticket),
            base,
            waits: None,
            choice: 0,
            cached: request.cached,
            keeps_end: request.cached && prompt_logprobs.is_none(),
            tokens: prompt,
            fed: 0,
            reading: 0,
            state,
            logits: Vec::new(),
            prompt: Some(Prompt {
                len,
                marks,
                others,
                logprobs: prompt_logprobs.map(|from| from.clamp(1, len)),
            }),
            prompt_read: None,
            sampler,
            run: Run::new(&options).expect("stops were checked at submission"),
            constrained,
            held: None,
            last_held: 0,
            stop_token: None,
            ended: false,
        };
        slot.start(cache);
        slot
    }

    /// Goes to the deepest known state that the prompt can start from, and tells where that is.
    pub fn start(&mut self, cache: &StateCache<M::State>) {
        let usable = self.usable();
        let Some(p) = &mut self.prompt else { return };
        if self.cached {
            let start = cache.find(&self.base.root, &self.tokens[..usable]);
            if let Some((at, snapshot)) = start.from
                && at > self.fed
            {
                self.fed = at;
                self.state.clone_from(&snapshot.state);
                self.logits.clone_from(&snapshot.logits);
            }
            p.marks.retain(|&m| m > self.fed);
            // Where it parts from a known text, others will.
            if start.known > self.fed + super::MARK_APART {
                p.mark(start.known);
            }
        }
        self.ticket.begun(p.len, self.fed);
    }

    /// Counts where it started, unless it still waits to do so.
    pub fn count_start(&self, cache: &StateCache<M::State>) {
        if self.cached && self.waits.is_none() {
            cache.count_start(self.fed > 0);
        }
    }

    /// Up to where of its prompt a known state is of use.
    fn usable(&self) -> usize {
        // Log-probabilities from a position on need the logits after the token before it.
        self.prompt.as_ref().map_or(0, |p| p.logprobs.map_or(p.len, |from| from - 1))
    }

    /// Tokens that the state has read.
    pub fn fed(&self) -> usize {
        self.fed
    }

    /// How many tokens at the beginning of its prompt another that is being read reads, too, and will keep the state of.
    pub fn shares(&self, other: &Self) -> usize {
        let Some(p) = other.prompt.as_ref().filter(|_| !other.ended) else { return 0 };
        if !self.cached || !other.cached || self.base.root != other.base.root {
            return 0;
        }
        let usable = self.usable();
        // Where only likelihoods are asked for, the end is not kept.
        let kept = p.len - usize::from(p.logprobs.is_some());
        let shared = common(&self.tokens[..usable], &other.tokens[..kept]);
        // What is kept on the way has no logits, which are needed where nothing is left to read.
        if shared == usable && shared < p.len { shared.saturating_sub(1) } else { shared }
    }

    /// Takes a snapshot on the way through the prompt.
    pub fn mark(&mut self, at: usize) {
        if let Some(p) = self.prompt.as_mut().filter(|_| at > self.fed) {
            p.mark(at);
        }
    }

    /// Choices that it stands for.
    pub fn weight(&self) -> usize {
        1 + self.prompt.as_ref().map_or(0, |p| p.others.len())
    }

    pub fn is_reading(&self) -> bool {
        self.prompt.is_some()
    }

    /// Tokens of the prompt that are left to read; 0 when it is known whole.
    pub fn left(&self) -> usize {
        self.prompt.as_ref().map_or(0, |p| p.len - self.fed)
    }

    /// Takes up to `room` tokens of the prompt into the next step; returns how many.
    pub fn read(&mut self, room: usize) -> usize {
        let Some(p) = &self.prompt else { return 0 };
        let end = p.marks.first().copied().unwrap_or(p.len);
        let rows = if p.logprobs.is_some_and(|from| self.fed + room >= from) { ROWS } else { usize::MAX };
        self.reading = room.min(end - self.fed).min(rows);
        self.reading
    }

    /// Takes what the reply added into the next step; returns how many tokens.
    pub fn write(&mut self) -> usize {
        self.reading = self.tokens.len() - self.fed;
        self.reading
    }

    /// Its part of the step; `None` when it has none.
    pub fn feed(&mut self) -> Option<Part<'_, M>> {
        if self.reading == 0 || self.ended {
            return None;
        }
        let end = self.fed + self.reading;
        let rows = match &self.prompt {
            None => 1,
            Some(p) => match p.logprobs {
                // The row after token `i` foretells token `i + 1`.
                Some(from) => end.saturating_sub(self.fed.max(from - 1)),
                None => usize::from(end == p.len),
            },
        };
        let logits = match rows {
            0 => Wanted::Nothing,
            1 => Wanted::Last(&mut self.logits),
            rows => Wanted::Tail { rows, logits: &mut self.logits },
        };
        let feed = Feed { tokens: &self.tokens[self.fed..end], state: &mut self.state, logits };
        Some((feed, self.base.adapter.as_deref()))
    }

    fn snapshot(&self, logits: bool) -> Arc<Snapshot<M::State>> {
        let logits = if logits { self.logits.clone() } else { Vec::new() };
        Arc::new(Snapshot { state: self.state.clone(), logits })
    }

    /// After a step: what was read is counted, log-probabilities of the prompt are told, snapshots are kept. When the prompt
    /// has been read, returns the sequences of the other choices.
    pub fn was_fed(&mut self, model: &M, cache: &StateCache<M::State>) -> Vec<Slot<M>> {
        let before = self.fed;
        self.fed += std::mem::take(&mut self.reading);
        let Some(p) = &mut self.prompt else { return Vec::new() };
        if let Some(from) = p.logprobs
            && self.fed >= from
            && self.fed > before
        {
            self.tell_prompt(model, from);
        }
        let Some(p) = &mut self.prompt else { return Vec::new() };
        if p.marks.first() == Some(&self.fed) {
            p.marks.remove(0);
            if self.cached {
                cache.put(&self.base.root, &self.tokens[..self.fed], self.snapshot(false));
            }
        }
        let Some(p) = self.prompt.take_if(|p| p.len == self.fed) else { return Vec::new() };
        self.prompt_read = Some(Instant::now());
        if self.cached && self.fed > before && p.logprobs.is_none() {
            cache.share(&self.base.root, &self.tokens, self.snapshot(true));
        }
        let fork = |(sampler, choice)| Slot {
            number: self.number,
            waits: None,
            ticket: self.ticket.clone(),
            base: self.base.clone(),
            choice,
            cached: self.cached,
            keeps_end: self.keeps_end,
            tokens: self.tokens.clone(),
            fed: self.fed,
            reading: 0,
            state: self.state.clone(),
            logits: self.logits.clone(),
            prompt: None,
            prompt_read: self.prompt_read,
            sampler,
            run: self.run.fresh(),
            constrained: self.constrained.clone(),
            held: None,
            last_held: 0,
            stop_token: None,
            ended: false,
        };
        p.others.into_iter().zip(1..).map(fork).collect()
    }

    /// Tells the log-probabilities of the tokens that the rows of this step foretell, and keeps the last row.
    fn tell_prompt(&mut self, model: &M, from: usize) {
        let vocab = model.vocab();
        let rows = self.logits.len() / vocab;
        let first = self.fed - rows;
        let top = self.sampler.config().top_logprobs as usize;
        let len = self.prompt.as_ref().map_or(0, |p| p.len);
        debug_assert!(first + 1 >= from);
        type Row<'a> = (&'a [f32], u32, Option<Result<Sampled>>);
        let mut told: Vec<Row<'_>> = (first + 1..=self.fed)
            .take_while(|&next| next < len)
            .zip(self.logits.chunks_exact(vocab))
            .map(|(next, row)| (row, self.tokens[next], None))
            .collect();
        model.for_each(&mut told, |(row, id, out)| *out = Some(raw_logprob(row, *id, top)));
        let told: Result<Vec<Sampled>> = told.into_iter().filter_map(|(.., out)| out).collect();
        match told {
            Ok(told) if told.is_empty() => {}
            Ok(told) => self.ticket.tell(Event::Prompt(told)),
            Err(e) => {
                self.ticket.fail(e);
                self.ended = true;
            }
        }
        self.logits.drain(..self.logits.len().saturating_sub(vocab));
    }

    /// Draws the next token from the logits and says what to read next.
    pub fn draw(&mut self, tokenizer: &Tokenizer, cache: &StateCache<M::State>) {
        if self.ended || self.prompt.is_some() {
            return;
        }
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let was_holding = self.run.is_holding();
        let next = self.choose(tokenizer, &mut tokens, &mut text);
        if !tokens.is_empty() || !text.is_empty() {
            let certain = self.run.text_len();
            self.ticket.tell(Event::Piece { choice: self.choice, tokens, text, certain });
        }
        match next {
            Ok(true) => {
                if !self.run.is_holding() {
                    self.held = None;
                } else if !was_holding && self.cached && self.fed >= self.last_held + HELD_APART {
                    // The state before it may become a stop string: it is where other turns go on.
                    self.held = Some((self.fed, self.snapshot(false)));
                    self.last_held = self.fed;
                }
            }
            Ok(false) => self.end(cache),
            Err(e) => {
                self.ticket.fail(e);
                self.ended = true;
            }
        }
    }

    /// True when the reply goes on.
    fn choose(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &mut Vec<Sampled>,
        text: &mut String,
    ) -> Result<bool> {
        let mut tell = |event: Told<'_>| {
            match event {
                Told::Token(t) => tokens.push(t.clone()),
                Told::Text(t) => text.push_str(t),
            }
            ControlFlow::Continue(())
        };
        let bytes = &self.run.bytes;
        let binds = |c: &Constrained| match &c.after {
            // The tag is complete with the token drawn last: longer ones do not reach back further.
            Some(tag) => bytes.windows(tag.len()).rev().any(|w| w == tag.as_bytes()),
            None => true,
        };
        let mut constraint = match &mut self.constrained {
            Some(c) if binds(c) => {
                c.after = None;
                Some(&mut c.constraint)
            }
            _ => None,
        };
        let allowed = match constraint.as_mut().map(|c| c.allowed()).transpose()? {
            Some(Allowed::End) => {
                self.run.finish(StopReason::Complete, &mut tell);
                return Ok(false);
            }
            Some(Allowed::Tokens(allowed)) => Some(allowed),
            None => None,
        };
        if self.run.is_full() {
            self.run.finish(StopReason::MaxTokens, &mut tell);
            return Ok(false);
        }
        let sampled = self.sampler.sample_within(&self.logits, allowed)?;
        if self.run.stops_at(sampled.id) {
            self.stop_token = Some(sampled.clone());
        }
        let Next::Feed(id) = self.run.take(sampled, &mut self.sampler, tokenizer, &mut tell) else {
            return Ok(false);
        };
        self.tokens.push(id);
        let Some(constraint) = constraint else { return Ok(true) };
        constraint.accept(id)?;
        for id in constraint.forced() {
            // There was no choice: probability 1.
            let forced = Sampled { id, logprob: 0.0, top: Vec::new() };
            match self.run.take(forced, &mut self.sampler, tokenizer, &mut tell) {
                Next::Feed(id) => self.tokens.push(id),
                Next::Done => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Ends as the run says.
    fn end(&mut self, cache: &StateCache<M::State>) {
        self.keep(cache);
        let stop = self.run.generation.stop.clone();
        let stop = (stop, self.stop_token.take());
        self.ticket.done(self.choice, stop, self.run.generation.tokens.len(), self.prompt_read);
        self.ended = true;
    }

    /// Ends for a reason from outside; `unread` is told where its prompt was not read yet.
    pub fn end_early(&mut self, stop: StopReason, unread: Error, cache: &StateCache<M::State>) {
        if self.ended {
            return;
        }
        let mut text = String::new();
        let mut tell = |event: Told<'_>| {
            if let Told::Text(t) = event {
                text.push_str(t);
            }
            ControlFlow::Continue(())
        };
        if self.prompt.take().is_some() {
            // There is no reply that could be cut: an empty one would be taken for the model's.
            self.keep(cache);
            self.ticket.fail(unread);
            self.ended = true;
            return;
        }
        self.run.finish(stop, &mut tell);
        if !text.is_empty() {
            let certain = self.run.text_len();
            self.ticket.tell(Event::Piece { choice: self.choice, tokens: Vec::new(), text, certain });
        }
        self.end(cache);
    }

    /// Keeps where the reply ended, and where it stood before its stop string.
    fn keep(&mut self, cache: &StateCache<M::State>) {
        if !self.keeps_end || self.fed == 0 {
            return;
        }
        if let Some((at, snapshot)) = self.held.take()
            && matches!(self.run.generation.stop, StopReason::StopString(_))
        {
            cache.share(&self.base.root, &self.tokens[..at], snapshot);
        }
        cache.share(&self.base.root, &self.tokens[..self.fed], self.snapshot(false));
    }
}

/// How many numbers two lists begin with alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    // By blocks first: long prompts are compared with all that are read beside them.
    const BLOCK: usize = 256;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK)).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[blocks * BLOCK..], &b[blocks * BLOCK..]);
    blocks * BLOCK + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
