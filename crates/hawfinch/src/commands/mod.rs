//! One file a subcommand: its arguments (`Args`), what it does (`run`), and its tests.

pub mod adapters;
pub mod bench;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod data;
pub mod detokenize;
pub mod doctor;
pub mod embed;
pub mod generate;
mod generate_batch;
pub mod inspect;
pub mod logits;
pub mod man;
pub mod merge;
pub mod models;
pub mod perplexity;
pub mod plan;
pub mod plot;
pub mod pull;
pub mod quantize;
#[cfg(feature = "serve")]
pub mod serve;
pub mod synthesize;
pub mod tokenize;
pub mod train;
pub mod verify;
