//! Where results go: standard output or a file; and notes beside them on standard error. Nothing here
//! panics when a reader goes away, as `println!` would.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use crate::fail::usage;

/// Buffered standard output. Flush it: errors of the last bytes would be lost.
pub fn stdout() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Writes one JSON value and a line break to standard output.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Writes a line to standard error, if anybody is there to read it.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Refuses a file that exists unless it may be replaced.
pub fn may_write(path: &Path, force: bool) -> anyhow::Result<()> {
    if path.is_dir() {
        return Err(usage(format!("{} is a folder: give the name of a file to write", path.display())));
    }
    if !force && path.symlink_metadata().is_ok() {
        return Err(usage(format!("{} exists: give --force to replace it", path.display())));
    }
    Ok(())
}

/// A new file for output.
pub fn create(path: &Path) -> anyhow::Result<BufWriter<std::fs::File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
    Ok(BufWriter::with_capacity(1 << 16, file.with_context(|| format!("cannot write {}", path.display()))?))
}

/// A number with its thousands apart: `191,084,544`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// A size in bytes for a person: `3.20 GB` (decimal units, as disks are sold and files are listed).
pub fn size(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_599_873_024), "1,599,873,024");
        assert_eq!(size(999), "999 bytes");
        assert_eq!(size(3_199_999_999), "3.20 GB");
    }
}
