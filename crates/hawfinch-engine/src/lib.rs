//! Token ids in, token ids out: everything between a text and a model's steps.
//!
//! * [`sampler`]: logits to a token, the same on every platform for the same seed.
//! * [`StopMatcher`]: where a reply ends, whatever the borders of tokens.
//! * [`template`]: conversations to text and replies back, for every family of models.
//! * [`Session`]: one sequence that reads, writes, forks and goes back; [`Chat`]: a conversation over it;
//!   [`generate_batch`]: many sequences in one ragged step.
//! * [`speculate`]: tokens that are guessed ahead and verified together: the same text in fewer steps.
//! * [`schedule`]: many requests at once, on the ragged step; [`tree`]: states keyed by the tokens that led to them.
//! * [`grammar`]: replies that must follow a JSON schema, a regular expression or a grammar.
//! * [`embed()`]: a vector for a text.
//!
//! Models come in through [`LanguageModel`], which `hawfinch_model::Model` implements (`adapter.rs`). What belongs
//! elsewhere: how a token is computed (`hawfinch-model`), how text becomes tokens (`hawfinch-tokenizer`), HTTP.
//!
//! ```no_run
//! use hawfinch_engine::{Chat, Sampler, Session, Template, Uncounted};
//! use std::ops::ControlFlow;
//!
//! let model = hawfinch_model::Model::open("model.pth")?;
//! let tokenizer = hawfinch_tokenizer::Tokenizer::world();
//! let template = Template::builtin("world")?;
//! let uncounted = Uncounted::from_texts(tokenizer.vocab_size(), |id| tokenizer.token_bytes(id));
//! let sampler = Sampler::new(template.sampler.clone(), uncounted)?;
//! let mut chat = Chat::new(Session::new(&model, tokenizer, sampler), template);
//! let options = chat.options(500);
//! let answer = chat.say("Why is the sky blue?", &options, |piece| {
//!     print!("{}", piece.text);
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n({} tokens)", answer.generation.tokens.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod chat;
mod embed;
mod error;
mod generate;
pub mod grammar;
mod language_model;
pub mod sampler;
pub mod schedule;
mod score;
mod session;
pub mod speculate;
mod stop;
pub mod template;
#[cfg(test)]
mod testing;
pub mod tree;

pub use adapter::Codec;
pub use chat::{Chat, ChatReply};
pub use embed::{Embedding, embed};
pub use error::{Error, Result};
pub use generate::{
    BatchRequest, EMPTY_CONTEXT, Event, GenerateOptions, Generation, StopReason, generate_batch,
    generate_batch_each,
};
pub use grammar::{Constraint, Grammar, Grammars};
pub use language_model::{Feed, LanguageModel, Wanted};
pub use sampler::{Mirostat, Rng, Sampled, Sampler, SamplerConfig, SamplerState, Uncounted};
pub use score::{Score, score};
pub use session::{Position, Session};
pub use speculate::{Drafter, ModelDrafter, NgramDrafter, Speculation};
pub use stop::{StopMatcher, StopRules};
pub use template::{Message, Role, Template};
