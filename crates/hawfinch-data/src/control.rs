//! What a caller sees of long work, and how it stops it; and what is done with documents that cannot be used as they
//! are.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading text and turning it into tokens; counted in bytes of the files.
    Read,
    /// Writing the data set; counted in tokens.
    Write,
}

/// A caller's view of the work.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Threads that turn text into tokens, at least 1. The bytes that come out do not depend on it.
    pub threads: usize,
    /// Told now and then how much is done, and of how much (0: not known).
    pub progress: &'a (dyn Fn(Phase, u64, u64) + Sync),
    /// Asked now and then; once it says yes, the work ends with [`crate::Error::Stopped`].
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl Control<'_> {
    /// Nobody watches.
    pub fn quiet(threads: usize) -> Control<'static> {
        Control { threads, progress: &|_, _, _| (), stop: &|| false }
    }
}

/// What is done with text that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Invalid {
    /// Put U+FFFD in place of each sequence that is not.
    #[default]
    Replace,
    /// Leave the document out.
    Skip,
    /// End with an error.
    Fail,
}

/// What is done with lines that should be JSON documents and are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadLines {
    /// End with an error.
    #[default]
    Fail,
    /// Leave the line out.
    Skip,
}

/// Both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Of text that is not UTF-8.
    pub invalid: Invalid,
    /// Of lines that are no document.
    pub bad_lines: BadLines,
}
