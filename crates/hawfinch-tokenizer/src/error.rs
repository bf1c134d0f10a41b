//! The one error type of this crate.

use std::fmt::{self, Write};
use std::path::PathBuf;

/// What can go wrong when a vocabulary is read or ids are decoded. Encoding cannot fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A line of a World vocabulary file is not `ID LITERAL LENGTH`, or contradicts another line.
    #[error("vocabulary line {line}: {}", Printable(problem))]
    VocabularyLine {
        /// Line number, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A World vocabulary file is unusable as a whole.
    #[error("vocabulary: {}", Printable(.0))]
    Vocabulary(String),
    /// A `tokenizer.json` is not readable, contradicts itself, or asks for something that is not implemented.
    #[error("tokenizer.json: {}", Printable(.0))]
    TokenizerJson(String),
    /// A file could not be read.
    #[error("cannot read the tokenizer file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is neither a World vocabulary nor a `tokenizer.json`.
    #[error(
        "{0} is neither a World vocabulary (lines `ID 'TOKEN' LENGTH`) nor a Hugging Face tokenizer.json; \
         give one of these with --tokenizer FILE"
    )]
    UnknownFile(PathBuf),
    /// A tokenizer file with its own error inside.
    #[error("{path}: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
    /// A model of the Pile family needs a `tokenizer.json` that was not found.
    #[error(
        "a vocabulary of {vocab_size} entries is GPT-NeoX 20B's, and neither tokenizer.json nor \
         20B_tokenizer.json lies beside the model{searched}; put it there (it is part of \
         EleutherAI/gpt-neox-20b, `hawfinch pull` fetches it) or give it with --tokenizer FILE"
    )]
    NeoxTokenizerMissing {
        /// The model's vocabulary size.
        vocab_size: usize,
        /// ` (looked in DIR)`, or nothing.
        searched: String,
    },
    /// No tokenizer is known for a model's vocabulary size.
    #[error(
        "no tokenizer is known for a vocabulary of {0} entries (World has 65536, GPT-NeoX 20B 50277 to 50304, \
         bytes 256); give the model's own with --tokenizer FILE"
    )]
    UnknownVocabSize(usize),
    /// A tokenizer can produce ids that the model does not have.
    #[error(
        "the tokenizer {path} has ids up to {highest}, but the model's vocabulary has only {vocab_size} entries; \
         give the model's own with --tokenizer FILE"
    )]
    TooManyIds {
        /// The tokenizer file.
        path: PathBuf,
        /// The tokenizer's highest id.
        highest: usize,
        /// The model's vocabulary size.
        vocab_size: usize,
    },
    /// An id has no token.
    #[error("token id {id} is not in the vocabulary {name} ({vocab_size} ids)")]
    UndefinedId {
        /// The id.
        id: u32,
        /// The vocabulary's name.
        name: &'static str,
        /// Number of ids.
        vocab_size: usize,
    },
}

/// Words that may come from a file, as a sentence can hold them: control characters escaped (a name could steer the
/// terminal), cut after some hundred characters.
struct Printable<'a>(&'a str);

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

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
