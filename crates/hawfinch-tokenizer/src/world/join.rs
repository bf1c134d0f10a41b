//! Joining guessed pieces of a text's ids into the exact sequence.
//!
//! Greedy matching cannot be cut at any byte: what is matched before the cut may reach across it. But the match at a
//! place depends only on the bytes from there on. So a piece may be matched from a guessed place: once the true
//! sequence of matches, coming from the left, begins a token at a place where the guessed one began a token, the two
//! are the same from there on. Joining matches on across the cut until it meets the guess (a few tokens in practice,
//! the whole piece at worst), drops the guess's start and keeps its rest.

use super::World;

/// The true sequence so far.
pub(super) struct Join {
    /// Where its next token begins.
    pub(super) at: usize,
}

impl Join {
    /// Extends the true sequence by the tokens that begin before `to`, the end of a piece `from..to`. `guess` holds
    /// the ids of the tokens that begin in the piece when one begins at `from`; the last of them ends at `guess_end`.
    /// The true sequence stands at `from` or later.
    pub(super) fn piece(
        &mut self,
        world: &World,
        text: &[u8],
        from: usize,
        to: usize,
        guess: &[u32],
        guess_end: usize,
        ids: &mut Vec<u32>,
    ) {
        let mut guess = guess.iter();
        let mut guess_at = from;
        // Whichever is behind takes its next token until both begin one at the same place.
        while self.at < to {
            if self.at == guess_at {
                ids.extend_from_slice(guess.as_slice());
                self.at = guess_end;
                return;
            }
            if guess_at < self.at {
                let Some(&id) = guess.next() else { return };
                guess_at += world.token_len(id);
            } else {
                let Some((id, end)) = world.match_at(text, self.at) else { return };
                ids.push(id);
                self.at = end;
            }
        }
    }
}
