//! What can go wrong in training.

use std::io;
use std::path::{Path, PathBuf};

use hawfinch_model::Printable;

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
    /// A file of the run that could not be read.
    #[error("cannot read {}: {source}", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the run that could not be written.
    #[error("cannot write {}: {source}", shown(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of metrics that is no record of a run.
    #[error("{} line {line} is no record of a run: {}", shown(path), Printable(what))]
    Metrics {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Something given does not fit.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub(crate) fn read(path: &Path, source: io::Error) -> Error {
        Error::Read { path: path.into(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Error {
        Error::Write { path: path.into(), source }
    }
}

/// A path as a sentence can hold it.
fn shown(path: &Path) -> String {
    Printable(&path.to_string_lossy()).to_string()
}

/// Of this crate.
pub type Result<T> = std::result::Result<T, Error>;
