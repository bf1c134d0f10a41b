//! What can be wrong with a corpus or a data set, each message one sentence: what, where, what to do.

use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that preparing or reading data can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system, or the decompressor, said.
        source: io::Error,
    },
    /// A file could not be written. What was finished before is kept.
    #[error("cannot write {}: {source}{}", shown(path), advice(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A `.bin`/`.idx` pair that breaks the format's rules.
    #[error("{} is no data set: {}", shown(path), Printable(what))]
    NotBinidx {
        /// The file in which it was seen.
        path: PathBuf,
        /// What was expected and what is there.
        what: String,
    },
    /// A mask that does not go with its data set.
    #[error(
        "{}: {}; build the data set again, or remove its mask to learn from every token",
        shown(path),
        Printable(what)
    )]
    NotMask {
        /// The file in which it was seen.
        path: PathBuf,
        /// What was expected and what is there.
        what: String,
    },
    /// A document that cannot be used, where the caller wanted none left out.
    #[error("{place}: {}; {}", Printable(what), advice)]
    Document {
        /// The file and line, or the file.
        place: String,
        /// What is wrong with it.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// The request itself: a source that is not there, a weight that is no number, settings that contradict.
    #[error("{}", Printable(.0))]
    Request(String),
    /// The work folder belongs to other inputs or settings.
    #[error("{}", Printable(.0))]
    OtherWork(String),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn read(path: &Path, source: io::Error) -> Error {
        Error::Read { path: path.into(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Error {
        Error::Write { path: path.into(), source }
    }

    pub(crate) fn request(sentence: impl Into<String>) -> Error {
        Error::Request(sentence.into())
    }
}

/// What helps against a failed write.
fn advice(source: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match source.kind() {
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => {
            ": make room, then give the same command again, what is finished is kept"
        }
        _ => "",
    }
}

/// A path as a sentence can hold it.
fn shown(path: &Path) -> String {
    Printable(&path.to_string_lossy()).to_string()
}

/// Words that may come from a file: control characters escaped, cut after some hundred characters.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.0.chars().enumerate() {
            if i == 1000 {
                return f.write_char('…');
            }
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        let e = Error::write(Path::new("a\nb.bin"), io::Error::from(io::ErrorKind::StorageFull));
        let said = e.to_string();
        assert!(said.starts_with("cannot write a\\nb.bin: ") && said.contains("make room"), "{said}");
        let e = Error::write(Path::new("x"), io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(!e.to_string().contains("make room"));
    }
}
