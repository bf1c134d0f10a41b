//! From logits to text, token by token: what one sequence does after each step, and many sequences as one batch.

use crate::{Error, Feed, LanguageModel, Result, Sampled, Sampler, StopMatcher, StopRules, Wanted};
use hawfinch_tokenizer::{StreamDecoder, Tokenizer};
use std::ops::ControlFlow;

/// The token of an empty context: end of document, after which any text may begin. Fed when a model is asked to
/// generate before it has read anything, as the reference does.
pub const EMPTY_CONTEXT: u32 = 0;

/// How long a reply may become and what ends it before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateOptions {
    /// At most this many tokens.
    pub max_tokens: usize,
    /// Stop strings and tokens.
    pub stops: StopRules,
}

impl GenerateOptions {
    /// At most `max_tokens`, ended by the tokenizer's end-of-document token (byte-level models have none).
    pub fn new(max_tokens: usize, tokenizer: &Tokenizer) -> Self {
        let tokens = tokenizer.eos().into_iter().collect();
        Self { max_tokens, stops: StopRules { strings: Vec::new(), tokens } }
    }
}

/// Why a reply ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// This stop string came up.
    StopString(String),
    /// This stop token came up, other than the end of the document.
    StopToken(u32),
    /// The model ended the document.
    EndOfDocument,
    /// As many tokens as allowed.
    MaxTokens,
    /// The callback said so.
    Cancelled,
    /// The grammar that the reply follows is complete.
    Complete,
    /// Its time was over.
    TimedOut,
}

impl StopReason {
    /// The word for it in machine-readable output.
    pub fn name(&self) -> &'static str {
        match self {
            StopReason::StopString(_) | StopReason::StopToken(_) => "stop",
            StopReason::EndOfDocument => "end_of_document",
            StopReason::MaxTokens => "max_tokens",
            StopReason::Cancelled => "interrupted",
            StopReason::Complete => "complete",
            StopReason::TimedOut => "timed_out",
        }
    }
}

/// What happens while a reply grows.
#[derive(Debug)]
pub enum Event<'a> {
    /// A token became part of the reply (or of a stop string; that is not known yet).
    Token(&'a Sampled),
    /// Text that is certainly part of the reply: whole characters, nothing of a stop string.
    Text(&'a str),
}

/// A finished reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text, without the stop string; invalid UTF-8 as U+FFFD. Equal to all [`Event::Text`] together.
    pub text: String,
    /// The generated tokens, those of a stop string included, a stop token not.
    pub tokens: Vec<u32>,
    /// For each token its log-probability in the model's raw distribution.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub stop: StopReason,
}

/// What a sequence needs next.
pub(crate) enum Next {
    /// Feed this token, then call again with the logits after it.
    Feed(u32),
    /// It is finished.
    Done,
}

/// One growing reply.
pub(crate) struct Run {
    max_tokens: usize,
    stops: StopRules,
    matcher: StopMatcher,
    decoder: StreamDecoder,
    released: Vec<u8>,
    /// Bytes released so far: those of the text.
    text_bytes: usize,
    /// Bytes of all tokens.
    pub(crate) bytes: Vec<u8>,
    pub(crate) generation: Generation,
}

impl Run {
    pub(crate) fn new(options: &GenerateOptions) -> Result<Self> {
        let matcher = StopMatcher::new(&options.stops.strings)?;
        Ok(Self::of(options.max_tokens, options.stops.clone(), matcher))
    }

    fn of(max_tokens: usize, stops: StopRules, matcher: StopMatcher) -> Self {
        Self {
            max_tokens,
            stops,
            matcher,
            decoder: StreamDecoder::new(),
            released: Vec::with_capacity(256),
            text_bytes: 0,
            bytes: Vec::new(),
            generation: Generation {
                text: String::new(),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                stop: StopReason::MaxTokens,
            },
        }
    }

    /// Another reply of the same options, not begun.
    pub(crate) fn fresh(&self) -> Self {
        let mut matcher = self.matcher.clone();
        matcher.reset();
        Self::of(self.max_tokens, self.stops.clone(), matcher)
    }

    /// The length in bytes of the reply proper within `bytes`.
    pub(crate) fn text_len(&self) -> usize {
        self.text_bytes
    }

    /// Whether a token ends the reply.
    pub(crate) fn stops_at(&self, id: u32) -> bool {
        self.stops.tokens.contains(&id)
    }

    /// Whether the text ends in what may become a stop string.
    pub(crate) fn is_holding(&self) -> bool {
        !self.matcher.held().is_empty()
    }

    /// How many tokens may still come.
    pub(crate) fn room(&self) -> usize {
        self.max_tokens.saturating_sub(self.generation.tokens.len())
    }

    /// Whether no token may be generated at all.
    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Samples a token and does everything up to the next step of the model.
    pub(crate) fn step(
        &mut self,
        sampler: &mut Sampler,
        logits: &[f32],
        tokenizer: &Tokenizer,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Next> {
        if self.is_full() {
            self.finish(StopReason::MaxTokens, on_event);
            return Ok(Next::Done);
        }
        let sampled = sampler.sample(logits)?;
        Ok(self.take(sampled, sampler, tokenizer, on_event))
    }

    /// Makes a token part of the reply, drawn or forced.
    pub(crate) fn take(
        &mut self,
        sampled: Sampled,
        sampler: &mut Sampler,
        tokenizer: &Tokenizer,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Next {
        let id = sampled.id;
        if self.stops.tokens.contains(&id) {
            let end = tokenizer.eos() == Some(id);
            self.finish(if end { StopReason::EndOfDocument } else { StopReason::StopToken(id) }, on_event);
            return Next::Done;
        }
        sampler.accept(id);
        self.generation.tokens.push(id);
        self.generation.logprobs.push(sampled.logprob);
        // Rows of the head beyond the vocabulary have no text; a trained model does not choose them.
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        self.bytes.extend_from_slice(bytes);
        let stopped = self.matcher.push(bytes, &mut self.released);
        let mut flow = on_event(Event::Token(&sampled));
        if self.release(on_event).is_break() {
            flow = ControlFlow::Break(());
        }
        if let Some(which) = stopped {
            let string = self.stops.strings.get(which).cloned().unwrap_or_default();
            self.finish(StopReason::StopString(string), on_event);
            return Next::Done;
        }
        if flow.is_break() {
            self.finish(StopReason::Cancelled, on_event);
            return Next::Done;
        }
        if self.is_full() {
            self.finish(StopReason::MaxTokens, on_event);
            return Next::Done;
        }
        Next::Feed(id)
    }

    fn release(&mut self, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        self.text_bytes += self.released.len();
        let text = self.decoder.push(&self.released);
        self.released.clear();
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.generation.text.push_str(text);
        on_event(Event::Text(text))
    }

    pub(crate) fn finish(
        &mut self,
        stop: StopReason,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) {
        if !matches!(stop, StopReason::StopString(_)) {
            self.matcher.finish(&mut self.released);
            let _ = self.release(on_event);
        }
        let rest = self.decoder.finish();
        if !rest.is_empty() {
            self.generation.text.push_str(rest);
            let _ = on_event(Event::Text(rest));
        }
        self.generation.stop = stop;
    }
}

/// One prompt of a batch.
pub struct BatchRequest<S> {
    /// The prompt's tokens; an empty prompt feeds [`EMPTY_CONTEXT`].
    pub tokens: Vec<u32>,
    /// The state to start from; the empty context without one.
    pub state: Option<S>,
    /// How this sequence samples.
    pub sampler: Sampler,
    /// Length and stops.
    pub options: GenerateOptions,
}

/// A sequence of a batch that has begun.
struct Active<S> {
    index: usize,
    state: S,
    sampler: Sampler,
    run: Run,
    /// What to feed in the next step.
    feed: Vec<u32>,
    logits: Vec<f32>,
}

/// Generates for many prompts, up to `width` of them in one ragged step at a time: prompts being read and replies
/// being written mix freely, a finished sequence makes room for the next prompt.
///
/// Each sequence has its own sampler and stops, so its text is the one it would have alone. `on_event` gets the
/// request's index; breaking cancels that sequence only. A request that is wrong (an id out of range, a logit that is
/// NaN) gets its own error; an error of the model ends all.
///
/// A request is taken from `requests` only when there is room for it, so that an iterator that makes them holds no
/// more than `width` of their states at a time.
pub fn generate_batch<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    requests: impl IntoIterator<Item = BatchRequest<M::State>>,
    width: usize,
    on_event: impl FnMut(usize, Event<'_>) -> ControlFlow<()>,
) -> Result<Vec<Result<Generation>>> {
    let mut results: Vec<Option<Result<Generation>>> = Vec::new();
    generate_batch_each(model, tokenizer, requests, width, on_event, |index, result| {
        results.resize_with(results.len().max(index + 1), || None);
        results[index] = Some(result);
        ControlFlow::Continue(())
    })?;
    Ok(results.into_iter().flatten().collect())
}

/// As [`generate_batch`], but gives each result, with the request's index, as soon as its sequence ends: nothing that
/// is finished is lost when what follows fails, and no more is held than what is under way. `on_done` may break to end
/// the whole batch; of sequences that have not ended by then nothing is told.
pub fn generate_batch_each<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    requests: impl IntoIterator<Item = BatchRequest<M::State>>,
    width: usize,
    mut on_event: impl FnMut(usize, Event<'_>) -> ControlFlow<()>,
    mut on_done: impl FnMut(usize, Result<Generation>) -> ControlFlow<()>,
) -> Result<()> {
    let vocab = model.vocab();
    let mut waiting = requests.into_iter().enumerate();
    let mut active: Vec<Active<M::State>> = Vec::new();
    loop {
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue() && active.len() < width.max(1) {
            let Some((index, request)) = waiting.next() else { break };
            match begin(model, vocab, index, request) {
                Ok(a) if a.run.is_full() => flow = on_done(index, Ok(a.run.generation)),
                Ok(a) => active.push(a),
                Err(e) => flow = on_done(index, Err(e)),
            }
        }
        if flow.is_break() || active.is_empty() {
            return Ok(());
        }
        let mut feeds: Vec<Feed<'_, M::State>> = active
            .iter_mut()
            .map(|a| Feed { tokens: &a.feed, state: &mut a.state, logits: Wanted::Last(&mut a.logits) })
            .collect();
        model.forward(&mut feeds)?;
        active.retain_mut(|a| {
            if flow.is_break() {
                return true;
            }
            let index = a.index;
            let mut emit = |event: Event<'_>| on_event(index, event);
            flow = match a.run.step(&mut a.sampler, &a.logits, tokenizer, &mut emit) {
                Ok(Next::Feed(id)) => {
                    a.feed.clear();
                    a.feed.push(id);
                    return true;
                }
                Ok(Next::Done) => on_done(index, Ok(a.run.generation.clone())),
                Err(e) => on_done(index, Err(e)),
            };
            false
        });
        if flow.is_break() {
            return Ok(());
        }
    }
}

fn begin<M: LanguageModel>(
    model: &M,
    vocab: usize,
    index: usize,
    request: BatchRequest<M::State>,
) -> Result<Active<M::State>> {
    let BatchRequest { mut tokens, state, mut sampler, options } = request;
    check_ids(&tokens, vocab)?;
    sampler.observe(&tokens);
    if tokens.is_empty() {
        tokens.push(EMPTY_CONTEXT);
    }
    let state = state.unwrap_or_else(|| model.new_state());
    Ok(Active { index, state, sampler, run: Run::new(&options)?, feed: tokens, logits: Vec::new() })
}

/// Refuses an id that the model has no row for.
pub(crate) fn check_ids(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        Some(&id) => Err(Error::TokenRange { id, vocab }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HashModel, sampler};
    use crate::{SamplerConfig, Session};

    fn requests() -> Vec<BatchRequest<u64>> {
        (0..9u64)
            .map(|i| {
                let config = match i % 3 {
                    0 => SamplerConfig::greedy(),
                    1 => SamplerConfig::default(),
                    _ => SamplerConfig { repetition_penalty: 1.3, top_k: 20, ..SamplerConfig::chat() },
                };
                let strings =
                    if i % 2 == 0 { "aeiouQ!".chars().map(String::from).collect() } else { Vec::new() };
                BatchRequest {
                    tokens: (0..i * 3).map(|t| (t * i % 256) as u32).collect(),
                    state: (i == 4).then_some(77),
                    sampler: sampler(config, i),
                    options: GenerateOptions {
                        max_tokens: if i == 6 { 0 } else { 5 + 7 * i as usize },
                        stops: StopRules { strings, tokens: vec![i as u32, 100 + i as u32] },
                    },
                }
            })
            .collect()
    }

    #[test]
    fn a_batch_says_what_each_sequence_says_alone() {
        let model = HashModel(256);
        let tokenizer = Tokenizer::bytes();
        let alone: Vec<Generation> = requests()
            .into_iter()
            .map(|r| {
                let state = r.state.unwrap_or(model.new_state());
                let mut s = Session::with_state(&model, tokenizer.clone(), r.sampler, state);
                s.feed_tokens(&r.tokens).unwrap();
                s.generate(&r.options, |_| ControlFlow::Continue(())).unwrap()
            })
            .collect();
        assert!(alone.iter().any(|g| matches!(g.stop, StopReason::StopString(_))));
        assert!(alone.iter().any(|g| matches!(g.stop, StopReason::StopToken(_))));
        for width in [0, 1, 2, 4, 100] {
            let mut texts = vec![String::new(); 9];
            let got = generate_batch(&model, &tokenizer, requests(), width, |i, e| {
                if let Event::Text(t) = e {
                    texts[i].push_str(t);
                }
                ControlFlow::Continue(())
            });
            let got: Vec<Generation> = got.unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(got, alone, "width {width}");
            assert_eq!(texts, alone.iter().map(|g| g.text.clone()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_result_comes_when_its_sequence_ends() {
        let (model, tokenizer) = (HashModel(256), Tokenizer::bytes());
        let all = |_: usize, _: Event<'_>| ControlFlow::Continue(());
        let want = generate_batch(&model, &tokenizer, requests(), 3, all).unwrap();
        for ending_after in 1..=9 {
            // Tokens of a sequence come before its result, and nothing of it after.
            let counted = std::cell::RefCell::new([0; 9]);
            let mut told = Vec::new();
            generate_batch_each(
                &model,
                &tokenizer,
                requests(),
                3,
                |i, event| {
                    counted.borrow_mut()[i] += usize::from(matches!(event, Event::Token(_)));
                    ControlFlow::Continue(())
                },
                |i, result| {
                    assert_eq!(counted.borrow()[i], result.as_ref().unwrap().tokens.len());
                    told.push((i, result));
                    if told.len() == ending_after {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            )
            .unwrap();
            assert_eq!(told.len(), ending_after);
            for (i, result) in &told {
                assert_eq!(*result, want[*i]);
                assert_eq!(counted.borrow()[*i], want[*i].as_ref().unwrap().tokens.len());
            }
            let begun = counted.borrow().iter().filter(|n| **n > 0).count();
            assert!(begun <= ending_after + 3, "{begun} begun, {ending_after} ended");
        }
    }

    #[test]
    fn requests_are_taken_when_there_is_room() {
        let taken = std::cell::Cell::new(0usize);
        let ended = std::cell::Cell::new(0usize);
        let lazy = requests().into_iter().inspect(|_| taken.set(taken.get() + 1));
        // Every request ends at its first token here.
        let got = generate_batch(&HashModel(256), &Tokenizer::bytes(), lazy, 2, |_, event| {
            if let Event::Token(_) = event {
                ended.set(ended.get() + 1);
                // Two at once, and the one that wants no token.
                assert!(taken.get() <= ended.get() + 2, "{} taken, {} ended", taken.get(), ended.get());
            }
            ControlFlow::Break(())
        });
        assert_eq!((got.unwrap().len(), taken.get()), (9, 9));
    }

    #[test]
    fn one_bad_or_cancelled_request_leaves_the_others_alone() {
        let model = HashModel(256);
        let tokenizer = Tokenizer::bytes();
        let all = |_: usize, _: Event<'_>| ControlFlow::Continue(());
        let want = generate_batch(&model, &tokenizer, requests(), 4, all).unwrap();
        let mut spoiled = requests();
        spoiled[1].tokens.push(256);
        spoiled[3].options.stops.strings.push(String::new());
        let got = generate_batch(&model, &tokenizer, spoiled, 4, |i, _| match i {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        let got = got.unwrap();
        assert_eq!(got.len(), 9);
        assert_eq!(got[1], Err(Error::TokenRange { id: 256, vocab: 256 }));
        assert_eq!(got[3], Err(Error::EmptyStop { index: 0 }));
        let cancelled = got[5].as_ref().unwrap();
        assert_eq!((&cancelled.stop, cancelled.tokens.len()), (&StopReason::Cancelled, 1));
        for i in [0, 2, 4, 6, 7, 8] {
            assert_eq!(got[i], want[i]);
        }
    }
}
