//! Trains RWKV models of every version, by the mathematics of the references.
//!
//! - [`Tape`]: the operations of the architectures, recorded as they run and replayed backwards.
//! - [`Parameters`]: the values that training changes, and their gradients.
//! - [`Learner`]: a model on a tape; one call computes losses and gradients of a batch.
//! - [`plan`]: memory, operations and traffic of a run to be.
//! - [`Segments`]: texts longer than memory.
//! - [`groups`], [`schedule`], [`adamw`]: how parameters are updated.
//! - [`trainer`]: a run, with its [`batches`], [`checkpoint`]s, [`config`]; [`metrics`] and [`tensorboard`] write down how it
//!   went.
//! - [`collective`]: training on more than one machine.
//! - [`init`]: new models; [`tuning`]: what of a model is trained.
//! - [`verify`]: gradients beside those of an independent implementation.
//!
//! Nothing here knows of HTTP or of how a command line looks.

pub mod adamw;
pub mod batches;
pub mod checkpoint;
pub mod collective;
pub mod config;
mod error;
pub mod groups;
pub mod init;
mod learner;
mod lent;
pub mod metrics;
mod parameters;
pub mod plan;
pub mod schedule;
mod segments;
mod tape;
pub mod tensorboard;
#[cfg(test)]
mod testing;
pub mod trainer;
pub mod tuning;
pub mod verify;

pub use error::{Error, Result};
pub use learner::{Learned, Learner, Lesson};
pub use parameters::{Parameter, Parameters};
pub use segments::Segments;
pub use tape::{Channels, Gradients, Losses, Matrix, Part, States, Tape, Var};
