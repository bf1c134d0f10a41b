//! Trains RWKV models of every version, by the mathematics of the references.
//!
//! Nothing here knows of HTTP or of how a command line looks.

pub mod adamw;
mod error;
pub mod groups;
pub mod init;
pub mod schedule;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
