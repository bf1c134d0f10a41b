//! How a command ends when it does not succeed.

use std::error::Error as _;
use std::fmt;
use std::process::ExitCode;

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
            eprintln!("hawfinch: {e:#}");
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// True when whoever read our output went away.
fn closed_pipe(e: &anyhow::Error) -> bool {
    let mut causes = e.chain();
    causes.any(|c| {
        let io = c.downcast_ref::<std::io::Error>();
        let io = io.or_else(|| c.source().and_then(|s| s.downcast_ref()));
        io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
