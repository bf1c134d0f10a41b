//! `hawfinch_model::Model` as the engine's [`LanguageModel`].

use crate::schedule::BatchModel;
use crate::tree::store::StateCodec;
use crate::{Error, Feed, LanguageModel, Result};
use hawfinch_model::{Adapter, Model, Output, Rows, Sequence, State, StateLayout};
use std::sync::Arc;

impl LanguageModel for Model {
    type State = State;

    fn vocab(&self) -> usize {
        self.config().vocab
    }

    fn new_state(&self) -> State {
        Model::new_state(self)
    }

    fn state_bytes(&self) -> usize {
        size_of::<f32>() * self.state_layout().len()
    }

    fn forward(&self, feeds: &mut [Feed<'_, State>]) -> Result<()> {
        BatchModel::forward_adapted(self, feeds, &vec![None; feeds.len()])
    }
}

impl BatchModel for Model {
    type Adapter = Adapter;

    fn forward_adapted(&self, feeds: &mut [Feed<'_, State>], adapters: &[Option<&Adapter>]) -> Result<()> {
        // The logits go where they are wanted, into the memory that is there.
        let buffer = |f: &mut Feed<'_, State>| f.logits.buffer().map(std::mem::take).unwrap_or_default();
        let mut outputs: Vec<Output> =
            feeds.iter_mut().map(|f| Output { logits: buffer(f), hidden: Vec::new() }).collect();
        let mut sequences: Vec<Sequence<'_>> = feeds
            .iter_mut()
            .map(|f| Sequence {
                tokens: f.tokens,
                state: &mut *f.state,
                logits: Rows::Tail(f.logits.rows()),
                hidden: Rows::None,
            })
            .collect();
        let result = Model::forward_adapted(self, &mut sequences, adapters, &mut outputs);
        let result = result.map_err(|e| Error::Model(e.to_string()));
        for (feed, output) in feeds.iter_mut().zip(outputs) {
            if let Some(logits) = feed.logits.buffer() {
                *logits = output.logits;
            }
        }
        result
    }

    fn for_each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        self.ops().pool().split(items, 1, 1, |_, item| work(&mut item[0]));
    }
}

/// States of one model as bytes: their floats, layer by layer, after the number of tokens.
#[derive(Debug, Clone)]
pub struct Codec(pub Arc<StateLayout>);

impl StateCodec<State> for Codec {
    fn encode(&self, state: &State) -> Vec<u8> {
        let floats = state.data().iter().flat_map(|v| v.to_le_bytes());
        state.tokens.to_le_bytes().into_iter().chain(floats).collect()
    }

    fn decode(&self, bytes: &[u8]) -> Option<State> {
        let (tokens, floats) = bytes.split_first_chunk::<8>()?;
        if floats.len() != size_of::<f32>() * self.0.len() {
            return None;
        }
        let mut state = State::new(self.0.clone());
        for (v, bytes) in state.data_mut().iter_mut().zip(floats.chunks_exact(4)) {
            *v = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        state.tokens = u64::from_le_bytes(*tokens);
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::sampler;
    use crate::{
        BatchRequest, GenerateOptions, Generation, ModelDrafter, NgramDrafter, Position, SamplerConfig,
        Session, Speculation, generate_batch,
    };
    use hawfinch_model::{Cpu, Model, OpenOptions, State, Version, synthetic};
    use hawfinch_tokenizer::Tokenizer;
    use std::ops::ControlFlow;
    use std::sync::Arc;

    #[test]
    fn a_model_in_a_batch_says_what_it_says_alone() {
        let model =
            Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::default()).unwrap();
        let tokenizer = Tokenizer::bytes();
        let prompts = ["", "a", "The quick brown fox", "Ünïcödé text of some length"];
        let options = GenerateOptions::new(24, &tokenizer);
        let alone: Vec<_> = prompts
            .iter()
            .zip(0..)
            .map(|(p, seed)| {
                let mut s = Session::new(&model, tokenizer.clone(), sampler(SamplerConfig::default(), seed));
                s.feed_text(p).unwrap();
                s.generate(&options, |_| ControlFlow::Continue(())).unwrap()
            })
            .collect();
        let requests = prompts.iter().zip(0..).map(|(p, seed)| BatchRequest {
            tokens: tokenizer.encode(p.as_bytes()),
            state: None,
            sampler: sampler(SamplerConfig::default(), seed),
            options: options.clone(),
        });
        let got = generate_batch(&model, &tokenizer, requests, 3, |_, _| ControlFlow::Continue(())).unwrap();
        let got: Vec<_> = got.into_iter().map(Result::unwrap).collect();
        assert_eq!(got, alone);
        assert_eq!(got[0].tokens.len(), 24);
        // In two pieces, with a fork between, the same again.
        let mut s = Session::new(&model, tokenizer.clone(), sampler(SamplerConfig::default(), 2));
        s.feed_text("The quick").unwrap();
        let fork = s.position().clone();
        s.feed_text(" red hen").unwrap();
        s.restore(fork);
        s.feed_text(" brown fox").unwrap();
        assert_eq!(s.generate(&options, |_| ControlFlow::Continue(())).unwrap(), alone[2]);
    }

    /// Text and state, bit for bit, of every version, greedy and drawn, whatever guesses.
    #[test]
    fn speculation_changes_no_bit() {
        let open = |c| Arc::new(Model::from_checkpoint(c, OpenOptions::default(), Cpu::new(2)).unwrap());
        let f32s = synthetic::demo().get("emb.weight").unwrap().dtype;
        let draft = open(synthetic::demo());
        let tokenizer = Tokenizer::bytes();
        let versions = [Version::V4, Version::V5_2, Version::V6, Version::V7];
        for version in versions {
            let sizes =
                synthetic::Shape { version, layers: 2, width: 64, vocab: 256, head_size: 16 }.config();
            let model = open(synthetic::checkpoint(&sizes, f32s, 3));
            for config in [SamplerConfig::greedy(), SamplerConfig::default()] {
                let run = |speculation: Option<Speculation>| -> (Generation, Position<State>, u64) {
                    let mut s = Session::new(&*model, tokenizer.clone(), sampler(config.clone(), 5));
                    s.speculation = speculation;
                    s.feed_text("abcabcabcab").unwrap();
                    let options = GenerateOptions::new(150, &tokenizer);
                    let g = s.generate(&options, |_| ControlFlow::Continue(())).unwrap();
                    let right = s.speculation.as_mut().map_or(0, |s| s.take_statistics().accepted);
                    (g, s.position().clone(), right)
                };
                let (text, position, _) = run(None);
                let drafter = |model: &Arc<Model>| ModelDrafter::new(model.clone(), 256).unwrap();
                for (name, speculation) in [
                    ("n-gram", Speculation::fixed(NgramDrafter::new(), 5)),
                    ("another model", Speculation::fixed(drafter(&draft), 3)),
                    // More drafts than tokens of a step.
                    ("itself", Speculation::fixed(drafter(&model), 200)),
                    ("itself, as it pays", Speculation::new(drafter(&model), 16)),
                ] {
                    let got = run(Some(speculation));
                    assert_eq!(got.0, text, "{version} {name}");
                    assert!(got.1 == position, "{version} {name}: the positions differ");
                    assert!(name != "itself" || got.2 == 148, "{} of 148", got.2);
                }
            }
        }
    }
}
