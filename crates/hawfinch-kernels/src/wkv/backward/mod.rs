//! Gradients of the recurrences (spec sections 1.5 and 11): one file a version, v5 and v6 together, one head of one
//! sequence a call.
//!
//! The forward for training keeps the state before each run of [`RUN`] tokens (v7 also what each token removes). Backward
//! takes the runs from the last to the first: it recomputes the states of a run from the one that was kept, exactly as
//! the forward did, and never divides by a decay. Sums over the values of a key are those of [`crate::reduce`], sums over
//! keys go in their order: the same bits on every instruction set.

mod matrix;
#[cfg(test)]
mod tests;
mod v4;
mod v7;

pub use matrix::{wkv5_backward, wkv6_backward};
pub use v4::{Gradients4, StateGradient4, wkv4_backward};
pub use v7::wkv7_backward;

use std::slice::ChunksExactMut;

use super::Rows;
use crate::Real;

/// Tokens between two states that the forward keeps.
pub const RUN: usize = 16;

/// Numbers that a head of size `n` of v5 and v6 keeps of `t` tokens: states `[ceil(t/RUN), n, n]`.
pub const fn saved_len(t: usize, n: usize) -> usize {
    t.div_ceil(RUN) * n * n
}

/// Numbers that a head of size `n` of v7 keeps of `t` tokens: states `[ceil(t/RUN), n, n]`, then what each token
/// removes, `[t, n]`.
pub const fn saved_len7(t: usize, n: usize) -> usize {
    saved_len(t, n) + t * n
}

/// Where the gradients of receptance, key and value go: `[t, c]` of all heads each. A call overwrites its head's part.
#[derive(Clone, Copy)]
pub struct Gradients<'a, F> {
    /// Of the receptance.
    pub r: &'a Rows<F>,
    /// Of the key.
    pub k: &'a Rows<F>,
    /// Of the value.
    pub v: &'a Rows<F>,
}

/// States as a forward keeps them; of none when nothing is to be kept.
pub(super) struct Saved<'a, F> {
    states: ChunksExactMut<'a, F>,
    token: usize,
}

impl<'a, F: Real> Saved<'a, F> {
    /// For states before the runs of `t` tokens, or for none.
    pub fn new(states: &'a mut [F], t: usize, n: usize) -> Self {
        assert!(states.is_empty() || states.len() == saved_len(t, n), "room for the states that are kept");
        Saved { states: states.chunks_exact_mut(n * n), token: 0 }
    }

    /// The state as it is before the next token.
    #[inline(always)]
    pub fn before_token(&mut self, s: &[F]) {
        if self.token.is_multiple_of(RUN)
            && let Some(to) = self.states.next()
        {
            to.copy_from_slice(s);
        }
        self.token += 1;
    }
}
