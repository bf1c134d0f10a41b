//! RWKV checkpoints of every version and file format, and the models they hold.

pub mod checkpoint;
pub mod config;
mod error;
pub mod format;
pub mod names;
pub mod state;

pub use checkpoint::{Checkpoint, DecayForm, FileFormat, StoredTensor};
pub use config::{Config, Version};
pub use error::{Error, Result};
