//! Sentence embeddings for free: what the model's activations say about a text it has read.

use crate::{Error, Result};
use hawfinch_model::{Model, Rows, STEP_TOKENS, Sequence, State, Version};

/// Which vector stands for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Embedding {
    /// The mean over the text's tokens of the last layer's output after the final norm (what the head multiplies),
    /// scaled to length 1: as many numbers as the model is wide.
    #[default]
    Mean,
    /// The state of one layer (from 0) after the text, all its fields one after the other, not scaled.
    State(usize),
}

/// The vectors of texts that run side by side in ragged steps. `step` is asked before each how many tokens it may have (at least
/// one a text are read), `progress` is told after each how many it read, and may end the work by an error.
///
/// ```
/// use hawfinch_engine::{Embedding, embed};
/// use hawfinch_model::{Cpu, Model, OpenOptions, synthetic};
///
/// let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::default())?;
/// let vectors = embed(&model, &[b"one text".map(u32::from).to_vec()], Embedding::Mean, || 128, |_| Ok(()))?;
/// assert_eq!(vectors[0].len(), model.config().width);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A text without tokens, an id out of range, a layer the model does not have, activations that are not finite; what `progress`
/// says.
pub fn embed(
    model: &Model,
    texts: &[Vec<u32>],
    what: Embedding,
    step: impl Fn() -> usize,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    let invalid = Error::Model;
    if texts.iter().any(Vec::is_empty) {
        return Err(invalid("a text without tokens has no embedding".into()));
    }
    let layers = model.config().layers;
    if let Embedding::State(layer) = what
        && layer >= layers
    {
        return Err(invalid(format!("there is no layer {layer}: the model has {layers} (from 0)")));
    }
    let width = model.config().width;
    let hidden = if what == Embedding::Mean { Rows::All } else { Rows::None };
    let mut states: Vec<State> = texts.iter().map(|_| model.new_state()).collect();
    let mut sums = vec![vec![0.0f64; width]; texts.len()];
    let mut read = vec![0; texts.len()];
    loop {
        let left = texts.iter().zip(&read).filter(|(ids, read)| **read < ids.len()).count();
        if left == 0 {
            break;
        }
        let part = (step().min(STEP_TOKENS) / left).max(1);
        let mut of = Vec::new();
        let mut sequences = Vec::new();
        for (i, (ids, state)) in texts.iter().zip(&mut states).enumerate() {
            let end = ids.len().min(read[i] + part);
            let tokens = &ids[read[i]..end];
            if !tokens.is_empty() {
                of.push(i);
                sequences.push(Sequence { tokens, state, logits: Rows::None, hidden });
                read[i] = end;
            }
        }
        let outputs = model.forward(&mut sequences).map_err(|e| Error::Model(e.to_string()))?;
        progress(sequences.iter().map(|s| s.tokens.len()).sum())?;
        for (i, output) in of.into_iter().zip(outputs) {
            for row in output.hidden.chunks_exact(width) {
                sums[i].iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
            }
        }
    }
    let vectors: Vec<Vec<f32>> = match what {
        Embedding::Mean => sums.into_iter().map(normalised).collect(),
        Embedding::State(layer) => {
            let version = model.config().version;
            states.iter().map(|s| layer_of(s, version, layer)).collect()
        }
    };
    if vectors.iter().flatten().any(|v| !v.is_finite()) {
        return Err(invalid(
            "the embedding is not finite: the model's weights hold NaN or overflow; `hawfinch verify` names the tensor"
                .into(),
        ));
    }
    Ok(vectors)
}

/// All fields of one layer of a state, in the order of state files.
fn layer_of(state: &State, version: Version, layer: usize) -> Vec<f32> {
    state.layout().fields.iter().flat_map(|f| state.as_in_files(version, layer, f.name)).collect()
}

/// Scaled to length 1; the sum's direction is the mean's.
fn normalised(sum: Vec<f64>) -> Vec<f32> {
    let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
    sum.into_iter().map(|v| (v / length.max(f64::MIN_POSITIVE)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_model::{Cpu, OpenOptions, synthetic};

    #[test]
    fn an_embedding_is_the_mean_of_hidden_rows_and_ignores_neighbours() {
        let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::new(1)).unwrap();
        let texts: Vec<Vec<u32>> =
            [300u32, 5, 129].iter().map(|&n| (0..n).map(|i| (i * 7 + n) % 256).collect()).collect();
        let together = embed(&model, &texts, Embedding::Mean, || 128, |_| Ok(())).unwrap();
        for (ids, got) in texts.iter().zip(&together) {
            assert_eq!(
                embed(&model, std::slice::from_ref(ids), Embedding::Mean, || 128, |_| Ok(())).unwrap()[0],
                *got
            );
            let mut state = model.new_state();
            let call = Sequence { tokens: ids, state: &mut state, logits: Rows::None, hidden: Rows::All };
            let hidden = model.forward(&mut [call]).unwrap().remove(0).hidden;
            let width = model.config().width;
            let mean = |c: usize| -> f64 {
                hidden.iter().skip(c).step_by(width).map(|v| f64::from(*v)).sum::<f64>() / ids.len() as f64
            };
            let length = (0..width).map(|c| mean(c).powi(2)).sum::<f64>().sqrt();
            for c in 0..width {
                assert!((f64::from(got[c]) - mean(c) / length).abs() < 1e-6);
            }
            let layer =
                embed(&model, std::slice::from_ref(ids), Embedding::State(1), || 128, |_| Ok(())).unwrap();
            assert_eq!(layer[0].len(), model.state_layout().layer_len);
            assert_eq!(layer[0][..width], *state.field(1, "att_x"));
        }
    }

    #[test]
    fn what_cannot_be_embedded_is_said() {
        let model = Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::new(1)).unwrap();
        let says = |texts: &[Vec<u32>], what| {
            embed(&model, texts, what, || 128, |_| Ok(())).unwrap_err().to_string()
        };
        assert!(says(&[vec![]], Embedding::Mean).contains("without tokens"));
        assert!(says(&[vec![1]], Embedding::State(3)).contains("no layer 3"));
        assert!(says(&[vec![256]], Embedding::Mean).contains("out of range"));
    }
}
