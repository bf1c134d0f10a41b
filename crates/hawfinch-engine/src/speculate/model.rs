//! A small model that guesses for a large one.

use super::{Ask, Drafter};
use crate::{Error, Feed, LanguageModel, Result, Sampler, SamplerConfig, Wanted};

/// Beginnings of replies whose states are kept, to go back to.
const KEPT: usize = 8;

/// A smaller model of the same vocabulary that draws, from its own logits, with a copy of the sampler and its random
/// numbers, what the sampler would draw.
///
/// It reads the text itself and keeps a state of it, as the large model does: drafts run on a copy, what was right
/// of them is read in front of the next drafts. A text that goes back to where an earlier reply began (another reply to
/// the same prompt) is not read again.
#[derive(Clone)]
pub struct ModelDrafter<M: LanguageModel> {
    model: M,
    /// The state after `read`.
    state: M::State,
    read: Vec<u32>,
    /// What the text goes on with.
    waiting: Vec<u32>,
    /// The state after `read` and `tried`, the drafts that were fed.
    ahead: M::State,
    tried: Vec<u32>,
    logits: Vec<f32>,
    /// Draws the drafts, as the sampler of the text would.
    sampler: Option<Sampler>,
    /// States at beginnings of replies, by how many of `read` they include, ascending.
    kept: Vec<(usize, M::State)>,
}

impl<M: LanguageModel> ModelDrafter<M> {
    /// `model` drafts for a model with `vocab` logits.
    ///
    /// # Errors
    /// It has another number of logits.
    pub fn new(model: M, vocab: usize) -> Result<Self> {
        if model.vocab() != vocab {
            return Err(Error::DraftVocab { draft: model.vocab(), target: vocab });
        }
        let (state, ahead) = (model.new_state(), model.new_state());
        let (read, waiting, tried, logits) = Default::default();
        Ok(Self { model, state, read, waiting, ahead, tried, logits, sampler: None, kept: Vec::new() })
    }

    /// Reads what waits. False when the model was told to stop, whose state is then that of no text.
    fn catch_up(&mut self, logits: bool) -> Result<bool> {
        if self.waiting.is_empty() {
            return Ok(true);
        }
        let wanted = if logits { Wanted::Last(&mut self.logits) } else { Wanted::Nothing };
        let feed = Feed { tokens: &self.waiting, state: &mut self.state, logits: wanted };
        match self.model.forward(&mut [feed]) {
            Ok(()) => {
                self.read.append(&mut self.waiting);
                Ok(true)
            }
            Err(_) if self.model.cancelled() => {
                let text = [&self.read[..], &self.waiting].concat();
                self.forget();
                self.waiting = text;
                Ok(false)
            }
            Err(e) => Err(Error::Draft(e.to_string())),
        }
    }

    /// Has read nothing from now on.
    fn forget(&mut self) {
        self.state = self.model.new_state();
        self.read.clear();
        self.waiting.clear();
        self.tried.clear();
        self.kept.clear();
    }
}

impl<M: LanguageModel + Clone + Send + 'static> Drafter for ModelDrafter<M>
where
    M::State: Send,
{
    fn begin(&mut self, text: &[u32]) -> Result<()> {
        self.tried.clear();
        let common = self.read.iter().zip(text).take_while(|(a, b)| a == b).count();
        self.kept.retain(|(len, _)| *len <= common);
        if common < self.read.len() {
            match self.kept.last() {
                Some((len, state)) => {
                    self.state.clone_from(state);
                    self.read.truncate(*len);
                }
                None => self.forget(),
            }
        }
        self.waiting = text[self.read.len()..].to_vec();
        if self.catch_up(false)? && self.kept.last().is_none_or(|(len, _)| *len < text.len()) {
            if self.kept.len() >= KEPT {
                self.kept.remove(0);
            }
            self.kept.push((text.len(), self.state.clone()));
        }
        Ok(())
    }

    fn advance(&mut self, tokens: &[u32]) {
        self.waiting.extend_from_slice(tokens);
    }

    fn propose(&mut self, ask: &Ask<'_>, drafts: &mut Vec<u32>) -> Result<()> {
        // Were all drafts right that were fed, the state behind them is the text's.
        let tried = std::mem::take(&mut self.tried);
        if !tried.is_empty() && self.waiting.starts_with(&tried) {
            std::mem::swap(&mut self.state, &mut self.ahead);
            self.waiting.drain(..tried.len());
            self.read.extend(tried);
        }
        if self.waiting.is_empty() || !self.catch_up(true)? {
            return Ok(());
        }
        let sampler = match &mut self.sampler {
            Some(sampler) => {
                sampler.clone_from(ask.sampler);
                sampler
            }
            none => none.insert(ask.sampler.clone()),
        };
        // No seed: its random numbers are those of the text.
        let config = SamplerConfig { top_logprobs: 0, seed: None, ..sampler.config().clone() };
        sampler.reconfigure(config)?;
        loop {
            let id = draw(sampler, &self.logits)?;
            drafts.push(id);
            if drafts.len() >= ask.most || ask.stop_tokens.contains(&id) {
                return Ok(());
            }
            if self.tried.is_empty() {
                self.ahead.clone_from(&self.state);
            }
            let logits = Wanted::Last(&mut self.logits);
            let feed = Feed { tokens: &[id], state: &mut self.ahead, logits };
            if let Err(e) = self.model.forward(&mut [feed]) {
                self.tried.clear();
                return Err(Error::Draft(e.to_string()));
            }
            self.tried.push(id);
        }
    }

    fn fork(&self) -> Box<dyn Drafter> {
        Box::new(self.clone())
    }
}

/// Draws and counts a token.
fn draw(sampler: &mut Sampler, logits: &[f32]) -> Result<u32> {
    let id = sampler.sample(logits).map_err(|e| Error::Draft(e.to_string()))?.id;
    sampler.accept(id);
    Ok(id)
}
