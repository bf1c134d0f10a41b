//! How a command ends when it does not succeed.

use std::fmt;
use std::process::ExitCode;

use crate::output::{note, printable};

/// An error that is the caller's wording, not the world's: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A usage error as [`anyhow::Error`].
pub fn usage(sentence: impl Into<String>) -> anyhow::Error {
    Usage(sentence.into()).into()
}

/// Prints what went wrong, if anything did, and gives the exit code.
pub fn report(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(e) if closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            // Only writing to standard output gives an error of the system that nobody has put into words.
            let bare = e.downcast_ref::<std::io::Error>().is_some() && e.chain().len() == 1;
            let place = if bare { "cannot write to standard output: " } else { "" };
            note(format_args!("hawfinch: {place}{}", sentence(&e)));
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// The error and its causes in one line. A cause that the error before it already quotes is not repeated.
pub fn sentence(e: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in e.chain() {
        let cause = cause.to_string();
        if !out.contains(&cause) {
            if !out.is_empty() {
                out += ": ";
            }
            out += &cause;
        }
    }
    // Messages of other libraries may span lines.
    let lines: Vec<&str> = out.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect();
    // And quote names from a file that is not to be trusted.
    printable(&lines.join(" "))
}

/// True when whoever read our output went away.
pub fn closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| {
        c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_told_once() {
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "gone");
        let e = anyhow::Error::from(missing()).context("a.pth").context("cannot open");
        assert_eq!(sentence(&e), "cannot open: a.pth: gone");
        let quoted = hawfinch_model::Error::io("b.pth", missing());
        assert_eq!(sentence(&quoted.into()), "b.pth: gone");
        let e = Err::<(), _>(missing()).context("two\n  lines").unwrap_err();
        assert_eq!(sentence(&e), "two lines: gone");
    }

    #[test]
    fn a_closed_pipe_is_success_however_deep() {
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(closed_pipe(&anyhow::Error::from(pipe).context("while writing")));
        assert!(!closed_pipe(&usage("no")));
    }
}
