//! `hawfinch_model::Model` as the engine's [`LanguageModel`].

use crate::{Error, Feed, LanguageModel, Result};
use hawfinch_model::{Model, Rows, Sequence, State};

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
        let mut sequences: Vec<Sequence<'_>> = feeds
            .iter_mut()
            .map(|f| Sequence {
                tokens: f.tokens,
                state: &mut *f.state,
                logits: if f.logits.is_some() { Rows::Last } else { Rows::None },
                hidden: Rows::None,
            })
            .collect();
        let outputs = Model::forward(self, &mut sequences).map_err(|e| Error::Model(e.to_string()))?;
        for (feed, output) in feeds.iter_mut().zip(outputs) {
            if let Some(logits) = &mut feed.logits {
                **logits = output.logits;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::sampler;
    use crate::{BatchRequest, GenerateOptions, SamplerConfig, Session, generate_batch};
    use hawfinch_model::{Cpu, Model, OpenOptions, synthetic};
    use hawfinch_tokenizer::Tokenizer;
    use std::ops::ControlFlow;

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
}
