//! Text to token data sets for training RWKV models.
//!
//! - [`binidx`]: the reference's `.bin`/`.idx` files, written byte for byte and read where they lie.
//! - [`sampler`]: in which order training reads them.

pub mod binidx;
mod error;
mod new_file;
pub mod sampler;

pub use error::{Error, Result};
