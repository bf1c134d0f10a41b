//! What can be wrong with a training run, each message one sentence: what, where, what to do.

use std::io;
use std::path::{Path, PathBuf};

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
    /// A checkpoint that the run cannot do without.
    #[error(
        "cannot write the checkpoint of step {step} (those before it are kept): {source}; make room, then give the same command again"
    )]
    Checkpoint {
        /// Its step.
        step: u64,
        /// What went wrong.
        source: Box<Error>,
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
    /// Ranks of a run that cannot be reached, or do not do the same.
    #[error("{}", Printable(.0))]
    Ranks(String),
    /// A request that makes no sense.
    #[error("{}", Printable(.0))]
    Request(String),
}

impl Error {
    /// [`Error::Request`]
    pub(crate) fn request(what: impl Into<String>) -> Error {
        Error::Request(what.into())
    }

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
