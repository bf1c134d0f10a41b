//! What the engine needs of a model: tokens and a state in, logits and the state out.

use crate::Result;

/// One sequence of a step: its new tokens and its state.
#[derive(Debug)]
pub struct Feed<'a, S> {
    /// The new tokens; at least one.
    pub tokens: &'a [u32],
    /// The state they continue from; afterwards the state that includes them.
    pub state: &'a mut S,
    /// The logits that are wanted.
    pub logits: Wanted<'a>,
}

/// Which logits of a step are wanted, and where they go, replacing what is there.
#[derive(Debug)]
pub enum Wanted<'a> {
    /// None: only the state.
    Nothing,
    /// Those after the last token: `[vocab]`.
    Last(&'a mut Vec<f32>),
    /// Those after each of the last `rows` tokens (at least one, at most as many as are fed): `[rows, vocab]`. Asked
    /// for when drafts are verified ([`crate::speculate`]).
    Tail {
        /// How many.
        rows: usize,
        /// Receives them.
        logits: &'a mut Vec<f32>,
    },
}

impl Wanted<'_> {
    /// Of how many last tokens the logits are wanted.
    pub fn rows(&self) -> usize {
        match self {
            Wanted::Nothing => 0,
            Wanted::Last(_) => 1,
            Wanted::Tail { rows, .. } => *rows,
        }
    }

    /// Where they go; `None` when none are wanted.
    pub fn buffer(&mut self) -> Option<&mut Vec<f32>> {
        match self {
            Wanted::Nothing => None,
            Wanted::Last(logits) | Wanted::Tail { logits, .. } => Some(logits),
        }
    }

    /// The same wish, to pass on.
    pub fn reborrow(&mut self) -> Wanted<'_> {
        match self {
            Wanted::Nothing => Wanted::Nothing,
            Wanted::Last(logits) => Wanted::Last(logits),
            Wanted::Tail { rows, logits } => Wanted::Tail { rows: *rows, logits },
        }
    }
}

/// A model with a state of constant size.
///
/// An implementor keeps two promises that the engine builds on: sequences of one step do not influence each other,
/// and feeding tokens in any division gives the same state and logits.
pub trait LanguageModel {
    /// The state of one sequence; cloning it forks the sequence.
    type State: Clone;

    /// Number of logits.
    fn vocab(&self) -> usize;

    /// The state of the empty context.
    fn new_state(&self) -> Self::State;

    /// Bytes that one state takes: what decides how many a conversation keeps to go back to.
    fn state_bytes(&self) -> usize {
        size_of::<Self::State>()
    }

    /// Feeds each sequence its tokens. After an error the states of this step are undefined.
    fn forward(&self, feeds: &mut [Feed<'_, Self::State>]) -> Result<()>;

    /// Whether somebody wants the reply of a [`crate::Session`] to end here. Asked after every token, also after one
    /// that adds no visible text yet.
    fn cancelled(&self) -> bool {
        false
    }
}

impl<M: LanguageModel> LanguageModel for &M {
    type State = M::State;
    fn vocab(&self) -> usize {
        (**self).vocab()
    }
    fn new_state(&self) -> Self::State {
        (**self).new_state()
    }
    fn state_bytes(&self) -> usize {
        (**self).state_bytes()
    }
    fn forward(&self, feeds: &mut [Feed<'_, Self::State>]) -> Result<()> {
        (**self).forward(feeds)
    }
    fn cancelled(&self) -> bool {
        (**self).cancelled()
    }
}

impl<M: LanguageModel> LanguageModel for std::sync::Arc<M> {
    type State = M::State;
    fn vocab(&self) -> usize {
        (**self).vocab()
    }
    fn new_state(&self) -> Self::State {
        (**self).new_state()
    }
    fn state_bytes(&self) -> usize {
        (**self).state_bytes()
    }
    fn forward(&self, feeds: &mut [Feed<'_, Self::State>]) -> Result<()> {
        (**self).forward(feeds)
    }
    fn cancelled(&self) -> bool {
        (**self).cancelled()
    }
}
