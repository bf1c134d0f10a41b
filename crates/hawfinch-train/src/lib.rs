//! Trains RWKV models of every version, by the mathematics of the references.
//!
//! - [`Tape`]: the operations of the architectures, recorded as they run and replayed backwards.
//! - [`Parameters`]: the values that training changes, and their gradients.
//! - [`Learner`]: a model on a tape; one call computes losses and gradients of a batch.
//! - [`groups`]: which parameters learn faster, and which decay.
//! - [`metrics`], [`tensorboard`]: what a run writes down, for people and for plots.
//! - [`verify`]: gradients beside those of an independent implementation.
//!
//! Nothing here knows of HTTP or of how a command line looks.

mod error;
pub mod groups;
mod learner;
pub mod metrics;
mod parameters;
mod tape;
pub mod tensorboard;
#[cfg(test)]
mod testing;
pub mod verify;

pub use error::{Error, Result};
pub use learner::{Learned, Learner, Lesson};
pub use parameters::{Parameter, Parameters};
pub use tape::{Gradients, Losses, Matrix, States, Tape, Var};
