//! Speculative decoding: tokens are guessed ahead, and one step of the model says how far the guess was right.
//!
//! A step of a few tokens reads the weights once, as a step of one does, so every draft that is right saves most of a
//! step. A [`Drafter`] guesses: [`NgramDrafter`] looks up how the text went on where it said the same before,
//! [`ModelDrafter`] asks a smaller model of the same vocabulary.
//!
//! **The text is the same, token for token, as without speculation**, also when tokens are drawn at random. A draft is
//! never taken because it is probable: after each row of logits the sampler draws as it always does, with its penalties,
//! its random numbers and whatever else it keeps, and the draft was right if it is what was drawn. So the distribution
//! is the sampler's by construction, for every setting (mirostat too), and a seed names one text.
//!
//! How often is a draft right? A draft that is certain (a look-up) is right with probability p(draft), as with the rule
//! of Leviathan et al. 2023 and Chen et al. 2023. A draft model is given a copy of the sampler, *random numbers
//! included*, and draws from its own logits what the sampler would: where the two distributions agree, so do the two
//! draws. The rule of these papers accepts with probability Σ min(p, q), which no rule exceeds. It is not used: it makes
//! a text depend on where steps end, and so on the clock that decides how many drafts are worth it, and it has no answer
//! for samplers with a memory. Shared random numbers give back most of the difference (`acceptance.rs` measures both).
//!
//! **Going back.** A state cannot be unread, but it is small. A step with drafts runs on a copy of the state; if some
//! draft was wrong, the copy is dropped, and the tokens that were right are read again *in front of the next drafts,
//! within the same step*. A step of its own for them would read all weights once more; they themselves cost little, and
//! the state is exactly that of the text, because a text gives the same bits however it is divided.
//!
//! **How many.** A further token in a step is not free: on a CPU it costs a seventh of a step (8-bit weights) to a third
//! (16 bits). The speculation times its steps, counts what was right and asks for as many drafts as promise the most
//! tokens a second, or none: then it tries again after a while. What it asks for never changes the text.
//!
//! ```no_run
//! use hawfinch_engine::{ModelDrafter, Session, Speculation};
//! use hawfinch_model::Model;
//! use std::sync::Arc;
//!
//! # fn speculate(mut session: Session<Arc<Model>>) -> Result<(), Box<dyn std::error::Error>> {
//! let small = Arc::new(Model::open("small.pth")?);
//! let drafter = ModelDrafter::new(small, session.model().config().vocab)?;
//! session.speculation = Some(Speculation::new(drafter, 16));
//! // From here on session.generate(…) says what it would have said.
//! # Ok(())
//! # }
//! ```

#[cfg(test)]
mod acceptance;
mod length;
mod model;
mod ngram;
#[cfg(test)]
mod tests;
mod verify;

pub use model::ModelDrafter;
pub use ngram::NgramDrafter;
pub(crate) use verify::Verifier;

use crate::{Result, Sampler};
use length::Length;
use std::fmt;
use std::time::Duration;

/// Guesses how a text goes on.
///
/// It is given the text by [`Drafter::begin`] and what is written since by [`Drafter::advance`]; the tokens of
/// [`Drafter::propose`] are no part of it.
pub trait Drafter: Send {
    /// The text from now on: all its tokens. It often begins as the one before did, which need not be read again.
    ///
    /// # Errors
    /// The drafter's own; the reply ends with it.
    fn begin(&mut self, text: &[u32]) -> Result<()>;

    /// The text goes on with these.
    fn advance(&mut self, tokens: &[u32]);

    /// Writes up to `ask.most` tokens to `drafts` (empty when it is given): how the text may go on. None is a fine answer.
    ///
    /// # Errors
    /// The drafter's own; the reply ends with it.
    fn propose(&mut self, ask: &Ask<'_>, drafts: &mut Vec<u32>) -> Result<()>;

    /// A copy for a fork of the sequence.
    fn fork(&self) -> Box<dyn Drafter>;
}

/// What is asked of a [`Drafter`].
#[derive(Debug)]
pub struct Ask<'a> {
    /// At most this many drafts; at least 1.
    pub most: usize,
    /// The sampler that will judge them, as it stands behind the text.
    pub sampler: &'a Sampler,
    /// Tokens that end the reply: drafts behind one are of no use.
    pub stop_tokens: &'a [u32],
}

/// What speculation did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Steps of the model.
    pub steps: u64,
    /// Tokens that were guessed and verified.
    pub drafted: u64,
    /// Those of them that were right: tokens of the text without a step of their own.
    pub accepted: u64,
    /// Time spent on guessing.
    pub drafting: Duration,
}

/// Speculation for a [`crate::Session`].
pub struct Speculation {
    drafter: Box<dyn Drafter>,
    length: Length,
    statistics: Statistics,
}

impl Speculation {
    /// Up to `most` drafts a step; how many, is decided from step to step. With 0 it does nothing.
    pub fn new(drafter: impl Drafter + 'static, most: usize) -> Self {
        Self { drafter: Box::new(drafter), length: Length::adaptive(most), statistics: Statistics::default() }
    }

    /// Always `drafts` a step, whether or not that is any faster: for measurements and tests.
    pub fn fixed(drafter: impl Drafter + 'static, drafts: usize) -> Self {
        Self { drafter: Box::new(drafter), length: Length::fixed(drafts), statistics: Statistics::default() }
    }

    /// What it did since the last call.
    pub fn take_statistics(&mut self) -> Statistics {
        std::mem::take(&mut self.statistics)
    }
}

impl Clone for Speculation {
    fn clone(&self) -> Self {
        Self { drafter: self.drafter.fork(), length: self.length.clone(), statistics: self.statistics }
    }
}

impl fmt::Debug for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Speculation")
            .field("length", &self.length)
            .field("statistics", &self.statistics)
            .finish_non_exhaustive()
    }
}
