//! One file a subcommand: its arguments (`Args`), what it does (`run`), and its tests.

pub mod convert;
pub mod detokenize;
pub mod inspect;
pub mod logits;
pub mod synthesize;
pub mod tokenize;
pub mod verify;
