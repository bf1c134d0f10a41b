//! Drafts through the model: one step for all of them, then a row of logits after another, then on or back.

use super::{Ask, Speculation};
use crate::session::Position;
use crate::{Feed, LanguageModel, Result, Sampler, Wanted};
use std::time::Instant;

/// Gives a reply its rows of logits, one after another, from fewer steps than there are rows.
///
/// While it works, the position's state may lag behind its tokens: it has read all but `pending`, or, when the last
/// step had no drafts, all.
pub(crate) struct Verifier<'a, M: LanguageModel> {
    model: &'a M,
    speculation: &'a mut Speculation,
    /// Tokens of the text that the position's state has not read, though `ahead` has.
    pending: Vec<u32>,
    /// What was guessed to follow them.
    drafts: Vec<u32>,
    /// So many drafts were right so far.
    accepted: usize,
    /// `[1 + drafts, vocab]`: logits after the last pending token and after each draft.
    rows: Vec<f32>,
    /// The state after the pending tokens and all drafts, when there are any.
    ahead: Option<M::State>,
    /// So many of the position's tokens the drafter was told; `None` before it began.
    told: Option<usize>,
    /// Tokens of the position when the reply began.
    start: usize,
}

impl<'a, M: LanguageModel> Verifier<'a, M> {
    /// From a position whose logits are known.
    pub fn new(speculation: &'a mut Speculation, model: &'a M, position: &mut Position<M::State>) -> Self {
        Verifier {
            model,
            speculation,
            pending: Vec::new(),
            drafts: Vec::new(),
            accepted: 0,
            rows: std::mem::take(&mut position.logits),
            ahead: None,
            told: None,
            start: position.tokens.len(),
        }
    }

    /// The logits for the next token.
    pub fn logits(&self) -> &[f32] {
        let vocab = self.model.vocab();
        self.rows.get(self.accepted * vocab..(self.accepted + 1) * vocab).unwrap_or_default()
    }

    /// Goes on behind the last of the position's tokens, which was just drawn; at most `room` more may come.
    pub fn next(
        &mut self,
        position: &mut Position<M::State>,
        room: usize,
        sampler: &Sampler,
        stop_tokens: &[u32],
    ) -> Result<()> {
        let id = *position.tokens.last().expect("a token was drawn");
        if self.drafts.get(self.accepted) == Some(&id) {
            self.accepted += 1;
            return Ok(());
        }
        self.end_step(position);
        self.speculation.length.tell(self.drafts.len(), self.accepted);
        self.pending.push(id);
        self.draft(position, room, sampler, stop_tokens)?;
        self.step(position)
    }

    /// Settles what the last step's state is good for.
    fn end_step(&mut self, position: &mut Position<M::State>) {
        self.speculation.statistics.accepted += self.accepted as u64;
        if self.drafts.is_empty() {
            return;
        }
        match &mut self.ahead {
            Some(ahead) if self.accepted == self.drafts.len() => {
                std::mem::swap(ahead, &mut position.state);
                self.pending.clear();
            }
            _ => self.pending.extend_from_slice(&self.drafts[..self.accepted]),
        }
    }

    /// Guesses what follows.
    fn draft(
        &mut self,
        position: &Position<M::State>,
        room: usize,
        sampler: &Sampler,
        stop_tokens: &[u32],
    ) -> Result<()> {
        self.drafts.clear();
        self.accepted = 0;
        // Each row gives a token, so the last one needs no draft.
        let Speculation { drafter, length, statistics } = &mut *self.speculation;
        let most = length.choose(self.pending.len()).min(room.saturating_sub(1));
        if most == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let told = match self.told {
            Some(told) => told,
            None => {
                drafter.begin(&position.tokens[..self.start])?;
                self.start
            }
        };
        drafter.advance(&position.tokens[told..]);
        self.told = Some(position.tokens.len());
        let guessing = Instant::now();
        drafter.propose(&Ask { most, sampler, stop_tokens }, &mut self.drafts)?;
        self.drafts.truncate(most);
        let vocab = self.model.vocab();
        let known = self.drafts.iter().position(|&id| id as usize >= vocab);
        self.drafts.truncate(known.unwrap_or(most));
        length.drafted(self.drafts.len(), guessing.elapsed());
        statistics.drafting += began.elapsed();
        Ok(())
    }

    /// Feeds the pending tokens and the drafts.
    fn step(&mut self, position: &mut Position<M::State>) -> Result<()> {
        self.speculation.statistics.steps += 1;
        if !self.drafts.is_empty() {
            let state = match self.ahead.take() {
                Some(mut state) => {
                    state.clone_from(&position.state);
                    state
                }
                None => position.state.clone(),
            };
            let state = self.ahead.insert(state);
            let (pending, drafts) = (self.pending.len(), self.drafts.len());
            self.pending.extend_from_slice(&self.drafts);
            let began = Instant::now();
            let logits = Wanted::Tail { rows: 1 + drafts, logits: &mut self.rows };
            let result = self.model.forward(&mut [Feed { tokens: &self.pending, state, logits }]);
            self.speculation.length.stepped(self.pending.len(), began.elapsed());
            self.pending.truncate(pending);
            if result.is_ok() {
                self.speculation.statistics.drafted += drafts as u64;
                return Ok(());
            }
            // A wrong draft may lead where the model has no numbers; the text itself may be sound.
            self.speculation.length.tell(drafts, 0);
            self.drafts.clear();
        }
        let began = Instant::now();
        let tokens = self.pending.len();
        read(self.model, position, &mut self.pending, &mut self.rows)?;
        self.speculation.length.stepped(tokens, began.elapsed());
        Ok(())
    }

    /// At the end of a reply: makes the position what it would be without speculation. Its state has then read all
    /// its tokens, and its logits are those after the last.
    pub fn end(mut self, position: &mut Position<M::State>) -> Result<()> {
        self.end_step(position);
        if self.pending.is_empty() {
            let row = self.logits().to_vec();
            position.logits = row;
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.rows);
        let result = read(self.model, position, &mut self.pending, &mut rows);
        position.logits = rows;
        result
    }
}

/// Feeds tokens to the position's state itself; `logits` receives those after the last. None are left.
fn read<M: LanguageModel>(
    model: &M,
    position: &mut Position<M::State>,
    tokens: &mut Vec<u32>,
    logits: &mut Vec<f32>,
) -> Result<()> {
    let logits = Wanted::Tail { rows: 1, logits };
    model.forward(&mut [Feed { tokens, state: &mut position.state, logits }])?;
    tokens.clear();
    Ok(())
}
