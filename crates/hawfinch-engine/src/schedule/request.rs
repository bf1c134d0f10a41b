//! What is asked of the scheduler, and what is told.

use crate::{Constraint, Error, GenerateOptions, LanguageModel, Result, Sampled, Sampler, StopReason};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A model that runs many sequences at once, each with an adapter of its own or none.
pub trait BatchModel: LanguageModel<State: Send + Sync + 'static> + Send + Sync + 'static {
    /// What changes the model for one sequence.
    type Adapter: Send + Sync + 'static;

    /// [`LanguageModel::forward`] with an adapter, or none, for each sequence.
    ///
    /// # Errors
    /// As there.
    fn forward_adapted(
        &self,
        feeds: &mut [crate::Feed<'_, Self::State>],
        adapters: &[Option<&Self::Adapter>],
    ) -> Result<()>;

    /// Does something for each item, on the model's threads where it has some.
    fn for_each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        items.iter_mut().for_each(work);
    }
}

/// Where texts begin: what computes, and the first state.
pub struct Base<M: BatchModel> {
    /// Names everything that a result depends on but the tokens: model, adapter, first state.
    pub root: Arc<str>,
    /// The first state; the model's own without one.
    pub state: Option<Arc<M::State>>,
    /// The adapter.
    pub adapter: Option<Arc<M::Adapter>>,
}

impl<M: BatchModel> Clone for Base<M> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), state: self.state.clone(), adapter: self.adapter.clone() }
    }
}

/// When a grammar applies.
#[derive(Debug, Clone)]
pub struct Constrained {
    /// What the reply must be.
    pub constraint: Constraint,
    /// The text after which it must be so: the end of reasoning; from the beginning when there is none.
    pub after: Option<String>,
}

/// One prompt and what is wanted of it.
pub struct Request<M: BatchModel> {
    /// Where it begins.
    pub base: Base<M>,
    /// The prompt; an empty one reads [`crate::EMPTY_CONTEXT`].
    pub prompt: Vec<u32>,
    /// Positions in the prompt where other texts may go on: the ends of messages.
    pub marks: Vec<usize>,
    /// One sampler a choice; each choice goes on from the same prompt, read once.
    pub samplers: Vec<Sampler>,
    /// Length and stops.
    pub options: GenerateOptions,
    /// A grammar.
    pub constrained: Option<Constrained>,
    /// Tell the log-probabilities of the prompt's tokens from this position (at least 1) on.
    pub prompt_logprobs: Option<usize>,
    /// Who asks: clients take turns.
    pub client: Arc<str>,
    /// For whom: users of one client take turns, too.
    pub user: Arc<str>,
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// Start from known states, and keep new ones.
    pub cached: bool,
    /// Who is told.
    pub sink: Box<dyn Sink>,
}

/// Where events go.
pub trait Sink: Send {
    /// Takes an event. It must not wait.
    fn tell(&mut self, event: Event);
    /// Nobody listens any more: the request ends.
    fn is_closed(&self) -> bool;
}

/// What happens to a request.
#[derive(Debug)]
pub enum Event {
    /// It has left the queue; `cached` tokens of its prompt need not be read. Told again when another request has read more
    /// of the same text.
    Begun {
        /// Tokens of the prompt.
        prompt: usize,
        /// Of which a known state had read so many.
        cached: usize,
    },
    /// Log-probabilities of the prompt's tokens, in order; `top` as the first sampler asks for it.
    Prompt(Vec<Sampled>),
    /// A choice grew.
    Piece {
        /// Which.
        choice: usize,
        /// By these tokens,
        tokens: Vec<Sampled>,
        /// of whose text so much is certain by now (text of earlier tokens may be among it).
        text: String,
        /// Bytes of the choice's tokens whose text is certain by now.
        certain: usize,
    },
    /// A choice ended.
    Done {
        /// Which.
        choice: usize,
        /// Why.
        stop: StopReason,
        /// The stop token, which is not among the choice's tokens, where one ended it.
        stop_token: Option<Sampled>,
        /// Tokens of the choice.
        tokens: usize,
    },
    /// All choices ended.
    End(Timings),
    /// It failed; nothing follows.
    Failed(Error),
}

/// How long a request took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// In the queue.
    pub queued: Duration,
    /// Reading the prompt.
    pub prompt: Duration,
    /// From the prompt's end to the last token.
    pub generation: Duration,
    /// Tokens of the prompt that were read.
    pub prompt_tokens: usize,
    /// Tokens generated, of all choices.
    pub tokens: usize,
}
