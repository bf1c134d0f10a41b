//! The commands as a person or a script runs them: the real binary, on models made by `synthesize`, on the
//! built-in stand-in and, where `../shared/data` is there, on real ones.

mod bad_input;
mod bench;
mod chat;
mod chat_data;
mod data;
mod files;
mod finetune;
mod generate;
mod help;
mod packed;
#[cfg(feature = "plot")]
mod plot;
mod quantize;
#[cfg(feature = "serve")]
mod serve;
mod speculate;
mod text;
mod train;
mod train_bad_input;
mod util;
mod verify;
