//! RWKV checkpoints of every version and file format, and the models they hold.
//!
//! A LoRA is merged into a checkpoint ([`lora::merge`]), applied to all that a model computes ([`OpenOptions::loras`]), or
//! prepared beside a model and chosen sequence by sequence, in one batch with others ([`Model::adapter`],
//! [`Model::forward_adapted`]). The last two give the same bits.

mod arch;
pub mod checkpoint;
pub mod config;
pub mod cpu;
mod error;
pub mod format;
pub mod hash;
mod logits;
pub mod lora;
pub mod metadata;
mod model;
pub mod names;
pub mod ops;
pub mod quantize;
mod rng;
pub mod state;
mod state_file;
pub mod synthetic;
pub mod verify;

pub use checkpoint::{Checkpoint, DecayForm, FileFormat, Layout, StoredTensor};
pub use config::{Config, Version};
pub use cpu::{Background, Cpu};
pub use error::{Error, Printable, Result};
pub use logits::log_sum_exp;
pub use lora::Lora;
pub use model::{Adapter, Model, OpenOptions, Output, Rows, STEP_TOKENS, Sequence, Trace};
pub use quantize::Quant;
pub use rng::Rng;
pub use state::{State, StateLayout};
