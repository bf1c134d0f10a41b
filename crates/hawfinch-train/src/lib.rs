//! Trains RWKV models of every version, by the mathematics of the references.
//!
//! - [`Tape`]: the operations of the architectures, recorded as they run and replayed backwards.
//! - [`Parameters`]: the values that training changes, and their gradients.
//!
//! Nothing here knows of HTTP or of how a command line looks.

mod error;
mod learner;
mod parameters;
mod tape;
pub mod verify;

pub use error::{Error, Result};
pub use learner::{Learned, Learner, Lesson};
pub use parameters::{Parameter, Parameters};
pub use tape::{Gradients, Losses, Matrix, States, Tape, Var};
