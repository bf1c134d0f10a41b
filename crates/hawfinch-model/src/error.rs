//! What can be wrong with a file or a request, one variant a kind, each message a sentence that says
//! what is wrong, where, and what to do.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that opening or running a model can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a file of any format that hawfinch knows.
    #[error("{} is not a model file: {}", shown(path), Printable(why))]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// What was seen and what was expected.
        why: String,
    },
    /// Not a file that a state comes in.
    #[error(
        "{} is not a state file: {} (give one that hawfinch saved, or a tuned state: .pth with time_state, ai00 .state)",
        shown(path),
        Printable(why)
    )]
    NotAState {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: String,
    },
    /// A file of a known format that is damaged or breaks its format's rules.
    #[error("{} is damaged: {}", shown(path), Printable(what))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and where in the file.
        what: String,
    },
    /// A sound file that asks for something hawfinch does not do.
    #[error("{} cannot be used: {}", shown(path), Printable(what))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for, and what to do instead.
        what: String,
    },
    /// A checkpoint without a tensor that its version needs.
    #[error(
        "the checkpoint has no tensor `{name}`, which {version} needs: it is incomplete (was the download complete?) \
         or of a variant that hawfinch does not know"
    )]
    MissingTensor {
        /// Official name.
        name: String,
        /// As `RWKV-6` ([`Version::plain_name`](crate::Version::plain_name)).
        version: String,
    },
    /// A tensor of the wrong shape.
    #[error(
        "tensor `{name}` has shape {found:?} where the other tensors ask for {expected}: the file is damaged or of a \
         variant that hawfinch does not know"
    )]
    Shape {
        /// Official name.
        name: String,
        /// What the file holds.
        found: Vec<usize>,
        /// What the rest of the checkpoint asks for.
        expected: String,
    },
    /// A tensor holds NaN or infinity.
    #[error(
        "tensor `{name}` holds {value} at index {index}: the checkpoint is damaged or was not trained stably"
    )]
    NonFinite {
        /// Official name.
        name: String,
        /// Flat index.
        index: usize,
        /// `NaN` or `inf`.
        value: String,
    },
    /// The model computed NaN or infinity.
    #[error(
        "the model's logits are not finite (token {position} of this call): its weights hold NaN or overflow; `hawfinch verify` names the tensor"
    )]
    NonFiniteLogits {
        /// Index of the token in the call.
        position: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is out of range: the model's vocabulary has {vocab} entries (0 to {})", vocab - 1)]
    TokenRange {
        /// The id asked for.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A state of another model or shape.
    #[error("this state does not fit the model: {}", Printable(.0))]
    State(String),
    /// A LoRA file that does not fit, or lacks its scale.
    #[error("this LoRA cannot be applied: {}", Printable(.0))]
    Lora(String),
    /// A request that makes no sense.
    #[error("{}", Printable(.0))]
    Invalid(String),
}

/// Words that may come from a file, as a sentence can hold them: control characters escaped (a name could
/// steer the terminal), cut after some hundred characters.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = 1000usize;
        for c in self.0.chars() {
            if left == 0 {
                return f.write_char('…');
            }
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
            left = left.saturating_sub(if c.is_control() { 8 } else { 1 });
        }
        Ok(())
    }
}

fn shown(path: &Path) -> String {
    Printable(&path.to_string_lossy()).to_string()
}

impl Error {
    /// Wraps what the system said about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().into(), source }
    }
    /// [`Error::Damaged`]
    pub fn damaged(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Damaged { path: path.as_ref().into(), what: what.into() }
    }
    /// [`Error::Unsupported`]
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Unsupported { path: path.as_ref().into(), what: what.into() }
    }
    /// [`Error::NotAState`]
    pub fn not_a_state(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::NotAState { path: path.as_ref().into(), why: why.into() }
    }
    /// [`Error::NotAModel`]
    pub fn not_a_model(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::NotAModel { path: path.as_ref().into(), why: why.into() }
    }
}
