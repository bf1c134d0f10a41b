//! What can be wrong with a training run, each message one sentence: what, where, what to do.

use hawfinch_model::Printable;

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that training can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file, or what is to become one.
    #[error(transparent)]
    Model(#[from] hawfinch_model::Error),
    /// A data set that cannot be read.
    #[error(transparent)]
    Data(#[from] hawfinch_data::Error),
    /// A gradient is NaN or infinite.
    #[error(
        "the gradient of `{name}` is not finite at step {step}: the run diverged or the weights were damaged; go on from \
         an earlier checkpoint with a lower learning rate"
    )]
    Gradient {
        /// Official name of the tensor.
        name: String,
        /// The step that was not made, from 1.
        step: u64,
    },
    /// Weights that are not floats.
    #[error(
        "`{name}` is stored as {dtype}; only floats can be trained: start from the model before it was quantised"
    )]
    Quantised {
        /// Official name of the tensor.
        name: String,
        /// Its number format.
        dtype: String,
    },
    /// A request that makes no sense.
    #[error("{}", Printable(.0))]
    Request(String),
}

impl Error {
    /// [`Error::Request`]
    pub(crate) fn request(what: impl Into<String>) -> Error {
        Error::Request(what.into())
    }
}
