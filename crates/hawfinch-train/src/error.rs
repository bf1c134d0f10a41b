//! What can go wrong in training.

/// Each says what is wrong and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint that cannot be opened, or is no model.
    #[error(transparent)]
    Model(#[from] hawfinch_model::Error),
    /// Weights that are not floats.
    #[error(
        "`{name}` is stored as {dtype}; only floats can be trained: start from the checkpoint before it was quantised"
    )]
    Quantised {
        /// The tensor.
        name: String,
        /// Its number format.
        dtype: String,
    },
    /// A parameter that the model asks for and the checkpoint lacks.
    #[error("the checkpoint has no parameter `{0}` to train")]
    NoParameter(String),
    /// Something given does not fit.
    #[error("{0}")]
    Invalid(String),
}

/// Of this crate.
pub type Result<T> = std::result::Result<T, Error>;
