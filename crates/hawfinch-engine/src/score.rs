//! How well a model foretells a text: the probability that it gives each token.

use hawfinch_model::{Model, Rows, STEP_TOKENS, Sequence, State, log_sum_exp};

use crate::{Error, Result};

/// What a model says of one text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Tokens that were foretold: all but the first.
    pub tokens: usize,
    /// Sum of their negative log-probabilities, in nats.
    pub nats: f64,
}

/// Logits of one call, in numbers at most: 64 MB.
const LOGITS: usize = 1 << 24;

/// The scores of texts, each read from a fresh state: how improbable the model finds each token after the first, given those
/// before it. To score a text whole, put the token that ends texts before it. `progress` is told how many tokens were read.
///
/// ```
/// use hawfinch_engine::score;
/// use hawfinch_model::{Cpu, Model, OpenOptions, synthetic};
///
/// let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::default())?;
/// let scores = score(&model, &[b"one text".map(u32::from).to_vec()], |_| ())?;
/// assert_eq!(scores[0].tokens, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// An id out of range; logits that are not finite.
pub fn score(model: &Model, texts: &[Vec<u32>], mut progress: impl FnMut(usize)) -> Result<Vec<Score>> {
    let vocab = model.config().vocab;
    let at_once = (LOGITS / (STEP_TOKENS * vocab)).max(1);
    let mut scores = vec![Score::default(); texts.len()];
    // Texts of like lengths run side by side to their ends.
    let mut order: Vec<usize> = (0..texts.len()).filter(|&i| texts[i].len() > 1).collect();
    order.sort_by_key(|&i| texts[i].len());
    for group in order.chunks(at_once) {
        let mut states: Vec<State> = group.iter().map(|_| model.new_state()).collect();
        let longest = group.iter().map(|&i| texts[i].len() - 1).max().unwrap_or(0);
        for start in (0..longest).step_by(STEP_TOKENS) {
            let (mut of, mut sequences) = (Vec::new(), Vec::new());
            for (&i, state) in group.iter().zip(&mut states) {
                let end = (texts[i].len() - 1).min(start + STEP_TOKENS);
                if let Some(tokens) = texts[i].get(start..end).filter(|t| !t.is_empty()) {
                    of.push((i, &texts[i][start + 1..=end]));
                    sequences.push(Sequence { tokens, state, logits: Rows::All, hidden: Rows::None });
                }
            }
            let outputs = model.forward(&mut sequences).map_err(|e| Error::Model(e.to_string()))?;
            progress(sequences.iter().map(|s| s.tokens.len()).sum());
            for ((i, next), output) in of.into_iter().zip(outputs) {
                // `forward` knows only the ids that it was given.
                if let Some(id) = next.iter().find(|&&id| id as usize >= vocab) {
                    let why = format!("token {id} is beyond the model's vocabulary of {vocab}");
                    return Err(Error::Model(why));
                }
                // An exponential a logit: the threads share the rows.
                let mut nats = vec![0.0; next.len()];
                model.ops().pool().split(&mut nats, 1, 1, |n, nats| {
                    let row = &output.logits[n * vocab..(n + 1) * vocab];
                    nats[0] = log_sum_exp(row) - f64::from(row[next[n] as usize]);
                });
                scores[i].nats += nats.iter().sum::<f64>();
                scores[i].tokens += nats.len();
            }
        }
    }
    if scores.iter().any(|s| !s.nats.is_finite()) {
        let why = "the logits are not finite: the model's weights hold NaN or overflow; `hawfinch verify` names the tensor";
        return Err(Error::Model(why.into()));
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_model::{Cpu, OpenOptions, synthetic};

    #[test]
    fn it_is_what_single_tokens_say_whatever_runs_beside() {
        let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::new(1)).unwrap();
        let long: Vec<u32> = (0..300u32).map(|i| i * 37 % 256).collect();
        let texts = [b"a".map(u32::from).to_vec(), long, b"some words".map(u32::from).to_vec(), Vec::new()];
        let scores = score(&model, &texts, |_| ()).unwrap();
        for (text, score) in texts.iter().zip(&scores) {
            let (mut state, mut nats) = (model.new_state(), 0.0);
            for pair in text.windows(2) {
                let tokens = &pair[..1];
                let sequence = Sequence { tokens, state: &mut state, logits: Rows::Last, hidden: Rows::None };
                let out = model.forward(&mut [sequence]).unwrap();
                let sum: f64 = out[0].logits.iter().map(|&v| f64::from(v).exp()).sum();
                nats += sum.ln() - f64::from(out[0].logits[pair[1] as usize]);
            }
            assert_eq!(score.tokens, text.len().saturating_sub(1));
            assert!((score.nats - nats).abs() <= 1e-5 * nats.max(1.0), "{} {nats}", score.nats);
        }
    }

    #[test]
    fn an_id_that_is_none_is_an_error() {
        let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::new(1)).unwrap();
        for text in [vec![1, 256], vec![256, 1]] {
            assert!(score(&model, &[text], |_| ()).is_err());
        }
    }
}
