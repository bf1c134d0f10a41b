//! What a run's model makes of texts that it does not learn from: each rank looks at some of them.

use hawfinch_kernels::cross_entropy::Targets;

use super::ranks::loss;
use super::{Observer, Trainer};
use crate::{Lesson, Result};

/// One validation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalReport {
    /// After which step.
    pub step: u64,
    /// Tokens learned from so far.
    pub tokens: u64,
    /// Mean loss, nats a token.
    pub loss: f64,
    /// The same in bits a byte of text, where tokens' bytes are known.
    pub bits_per_byte: Option<f64>,
    /// Share of the probe's last words that the model guesses, token by token.
    pub probe: Option<f64>,
    /// Share of the channel mix's channels that relu² left at zero for every token; `None` without relu².
    pub dead_channels: Option<f64>,
    /// Whether it is the best so far.
    pub best: bool,
}

/// What a model makes of the validation set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss, nats a token.
    pub loss: f64,
    /// As [`EvalReport::bits_per_byte`].
    pub bits_per_byte: Option<f64>,
    /// As [`EvalReport::dead_channels`].
    pub dead_channels: Option<f64>,
}

/// A text whose end is to be guessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// All of it.
    pub ids: Vec<u32>,
    /// Tokens of its end that are asked for; at least one, fewer than all.
    pub asked: usize,
}

/// Questions of a probe at a time.
const PROBED: usize = 16;

impl Trainer {
    /// What the model makes of the validation set; `None` without one.
    ///
    /// # Errors
    /// Data that cannot be read; ranks that cannot be reached.
    pub fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        self.learner.tape().watch_channels();
        let losses = self.validation_loss();
        let mut channels = self.learner.tape().channels();
        let losses = losses?;
        if losses.is_some() {
            self.ranks.all_channels(&mut channels)?;
        }
        let dead_channels = channels.dead_share();
        Ok(losses.map(|(loss, bits_per_byte)| Evaluation { loss, bits_per_byte, dead_channels }))
    }

    /// The mean loss over the validation set, and that in bits a byte.
    fn validation_loss(&mut self) -> Result<Option<(f64, Option<f64>)>> {
        let Some(set) = &self.data.validation else { return Ok(None) };
        let per = (self.config.ctx * self.config.batch) as u64;
        let (mut counted, mut bytes, mut first, mut read) = (0u64, 0u64, 0u64, 0u64);
        // One sum a batch; each rank computes some of them.
        let mut losses = Vec::new();
        // Where a mask leaves nothing of what may be read, on until something counts.
        while (read < self.config.eval_tokens.max(per) || counted == 0) && first < set.samples() {
            let take = self.config.batch.min((set.samples() - first) as usize);
            let batch = set.batch(first, take)?;
            first += take as u64;
            read += batch.tokens.len() as u64;
            if batch.counted() == 0 {
                continue;
            }
            counted += batch.counted() as u64;
            let counting = batch.targets.iter().zip(&batch.counts).filter(|(_, c)| **c);
            bytes += self
                .data
                .token_bytes
                .as_ref()
                .map_or(0, |b| counting.map(|(target, _)| u64::from(b[*target as usize])).sum());
            losses.push(0.0);
            if !self.ranks.has(losses.len() - 1) {
                continue;
            }
            let weights = vec![0.0; batch.tokens.len()];
            let targets = Targets { ids: &batch.targets, weights: &weights, l2wrap: 0.0 };
            let lengths = &batch.lengths;
            let lesson = Lesson { lengths, tokens: &batch.tokens, targets, initial: None, d_last: None };
            let learned = self.learner.evaluate_in_segments(&lesson, self.config.segments())?;
            *losses.last_mut().expect("the one of this batch") = loss(&learned, &batch);
        }
        self.ranks.fill(&mut losses)?;
        let loss = losses.iter().sum::<f64>();
        if counted == 0 {
            return Ok(None);
        }
        let bits = (bytes > 0).then(|| loss / std::f64::consts::LN_2 / bytes as f64);
        Ok(Some((loss / counted as f64, bits)))
    }

    /// The share of the probe's questions that the model answers: each asked token is the likeliest after those before it.
    /// `None` without questions.
    ///
    /// # Errors
    /// Tokens that the model does not know.
    pub fn probe(&mut self) -> Result<Option<f64>> {
        let mut answered = 0;
        for (n, questions) in self.data.probe.chunks(PROBED).enumerate() {
            if !self.ranks.has(n) {
                continue;
            }
            let lengths: Vec<usize> = questions.iter().map(|q| q.ids.len() - 1).collect();
            let tokens: Vec<u32> = questions.iter().flat_map(|q| q.ids[..q.ids.len() - 1].to_vec()).collect();
            let ids: Vec<u32> = questions.iter().flat_map(|q| q.ids[1..].to_vec()).collect();
            let weights = vec![0.0; ids.len()];
            let targets = Targets { ids: &ids, weights: &weights, l2wrap: 0.0 };
            let lesson = Lesson { lengths: &lengths, tokens: &tokens, targets, initial: None, d_last: None };
            let right = self.learner.evaluate(&lesson)?.losses.right;
            let mut end = 0;
            for (question, len) in questions.iter().zip(&lengths) {
                end += len;
                answered += usize::from(right[end - question.asked..end].iter().all(|r| *r));
            }
        }
        let [answered] = self.ranks.sums([answered as f64])?;
        let asked = self.data.probe.len();
        Ok((asked > 0).then(|| answered / asked as f64))
    }

    pub(super) fn validate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(Evaluation { loss, bits_per_byte, dead_channels }) = self.evaluate()? else {
            return Ok(());
        };
        let probe = self.probe()?;
        let p = &mut self.progress;
        let best = loss.is_finite() && p.best.is_none_or(|(least, _)| loss < least);
        if best {
            (p.best, p.since_best) = (Some((loss, p.step)), 0);
        } else {
            p.since_best += 1;
        }
        let (step, tokens) = (p.step, p.tokens);
        observer.evaluated(&EvalReport { step, tokens, loss, bits_per_byte, probe, dead_channels, best });
        if best && !step.is_multiple_of(self.config.save_every) {
            // So that the best weights can be had.
            self.save_or_go_on(observer)?;
        }
        Ok(())
    }
}
