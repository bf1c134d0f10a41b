//! Where results go: standard output or a file; and notes beside them on standard error. Nothing here
//! panics when a reader goes away, as `println!` would.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use hawfinch_model::format;

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

/// Refuses what cannot become a file: asked before a long computation, not after it.
pub fn can_be_file(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        return Err(usage(format!("{} is a folder: give the name of a file to write", path.display())));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        anyhow::bail!("cannot write {}: there is no folder {}", path.display(), folder.display());
    }
    Ok(())
}

/// Refuses a file that exists unless it may be replaced.
pub fn may_write(path: &Path, force: bool) -> anyhow::Result<()> {
    can_be_file(path)?;
    // A pipe or a device is written to, not replaced.
    let kept = path.metadata().is_ok_and(|m| !m.is_file());
    if !force && !kept && path.symlink_metadata().is_ok() {
        return Err(usage(format!("{} exists: give --force to replace it", path.display())));
    }
    Ok(())
}

/// Refuses to write over a file that the same command reads.
pub fn not_over<P: AsRef<Path>>(path: &Path, read: impl IntoIterator<Item = P>) -> anyhow::Result<()> {
    match read.into_iter().find(|r| same_place(path, r.as_ref())) {
        None => Ok(()),
        Some(_) => {
            Err(usage(format!("{} is a file to read, not to write over: give another name", path.display())))
        }
    }
}

/// Whether two paths are one file of a disk, or would be if it were there. Links count as what they lead to;
/// pipes and devices are no places.
pub fn same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| -> Option<PathBuf> {
        match path.metadata() {
            Ok(m) if !m.is_file() => None,
            Ok(_) => path.canonicalize().ok(),
            Err(_) => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Some(folder.canonicalize().ok()?.join(path.file_name()?))
            }
        }
    };
    place(a).is_some_and(|a| place(b).as_ref() == Some(&a))
}

/// A file that is written beside its final place and put there when complete; on a failure nothing is left.
/// A link stays a link: what it leads to is replaced. What is there and is no file of a disk (a pipe,
/// `/dev/stdout`, `/dev/null`) is written to, not replaced.
pub struct NewFile {
    path: PathBuf,
    /// Where the bytes go until the file is complete; `None` when they go to `path` itself.
    beside: Option<PathBuf>,
    /// It stays there if it is never completed.
    kept: bool,
    out: BufWriter<File>,
}

/// Files that are not complete yet.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Deletes them: for a program that is about to end before its time. What was to be replaced stays.
pub fn remove_unfinished() {
    for path in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Nothing more can be done if this fails.
        let _ = std::fs::remove_file(path);
    }
}

impl NewFile {
    /// Begins the file.
    pub fn create(path: &Path) -> anyhow::Result<NewFile> {
        let shown = || format!("cannot write {}", path.display());
        can_be_file(path)?;
        if path.is_file() && format::is_model(path) {
            return Err(usage(format!(
                "{} is a model: give another name, or remove it first",
                path.display()
            )));
        }
        let buffered = |file| BufWriter::with_capacity(1 << 16, file);
        if path.metadata().is_ok_and(|m| !m.is_file()) {
            let file = OpenOptions::new().write(true).open(path).with_context(shown)?;
            return Ok(NewFile { path: path.into(), beside: None, kept: false, out: buffered(file) });
        }
        let target = path.canonicalize().unwrap_or_else(|_| path.into());
        let mut name = target.file_name().with_context(shown)?.to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let beside = target.with_file_name(name);
        crate::signal::end_cleanly_unless_caught();
        // Held until the file is listed: none may come into being unseen.
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        let file = OpenOptions::new().write(true).create_new(true).open(&beside).with_context(shown)?;
        unfinished.push(beside.clone());
        Ok(NewFile { path: target, beside: Some(beside), kept: false, out: buffered(file) })
    }

    /// From now on what is written is worth keeping: where the program ends before the file is complete, it stays
    /// beside its place, under the name of [`NewFile::beside`].
    pub fn keep(&mut self) {
        if let Some(beside) = &self.beside {
            UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| p != beside);
        }
        self.kept = true;
    }

    /// Where the bytes lie until the file is complete; `None` when they go to its place at once.
    pub fn beside(&self) -> Option<&Path> {
        self.beside.as_deref()
    }

    /// Ends the file and puts it in its place.
    pub fn complete(mut self) -> anyhow::Result<()> {
        let shown = || format!("cannot write {}", self.path.display());
        self.out.flush().with_context(shown)?;
        if let Some(beside) = &self.beside {
            std::fs::rename(beside, &self.path).with_context(shown)?;
            UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| p != beside);
        }
        self.beside = None;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(beside) = self.beside.as_ref().filter(|_| !self.kept) {
            // Nothing more can be done if this fails too.
            let _ = std::fs::remove_file(beside);
        }
    }
}

/// A file, or standard output.
pub enum Sink {
    /// Standard output.
    Stdout(BufWriter<io::StdoutLock<'static>>),
    /// A new file.
    File(NewFile),
}

impl Sink {
    /// To this file if there is one.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Sink> {
        Ok(match path {
            Some(path) => Sink::File(NewFile::create(path)?),
            None => Sink::Stdout(stdout()),
        })
    }

    /// Writes a line.
    pub fn line(&mut self, line: impl fmt::Display) -> io::Result<()> {
        match self {
            Sink::Stdout(out) => writeln!(out, "{line}"),
            Sink::File(out) => writeln!(out, "{line}"),
        }
    }

    /// Puts out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Stdout(out) => out.flush(),
            Sink::File(out) => out.flush(),
        }
    }

    /// Ends the output.
    pub fn complete(self) -> anyhow::Result<()> {
        match self {
            Sink::Stdout(mut out) => Ok(out.flush()?),
            Sink::File(file) => file.complete(),
        }
    }
}

/// Text of a model on standard output as it comes. On a terminal, control characters are shown as symbols:
/// a model's text must not move the cursor or change the terminal's settings.
pub struct Stream {
    out: io::Stdout,
    terminal: bool,
    /// The last character written was a line break (or nothing was written).
    at_line_start: bool,
}

impl Stream {
    /// To standard output.
    pub fn new() -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal();
        Stream { out, terminal, at_line_start: true }
    }

    /// Writes and flushes.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        if let Some(last) = text.chars().last() {
            self.at_line_start = last == '\n';
        }
        let mut out = self.out.lock();
        if self.terminal {
            out.write_all(printable(text).as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()
    }

    /// Writes a control sequence of ours.
    pub fn control(&mut self, sequence: &str) -> io::Result<()> {
        let mut out = self.out.lock();
        out.write_all(sequence.as_bytes())?;
        out.flush()
    }

    /// Ends the line if it is not ended.
    pub fn end_line(&mut self) -> io::Result<()> {
        if self.at_line_start { Ok(()) } else { self.write("\n") }
    }
}

/// Whether to use colours: standard output is a terminal that can, and `NO_COLOR` is not set.
pub fn colors() -> bool {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    io::stdout().is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|t| t != "dumb")
}

/// Text with every control character but line break and tab as a symbol (`␛`).
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
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

/// The moment in universal time, as `2026-03-01T09:05:07Z`.
#[cfg(feature = "serve")]
pub fn clock() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    moment(since.map_or(0, |d| d.as_secs()))
}

/// Seconds since 1970 as a date and a time (proleptic Gregorian, after H. Hinnant's `civil_from_days`).
#[cfg(feature = "serve")]
fn moment(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "serve")]
    #[test]
    fn moments_as_known() {
        // GNU date: date -u -d @N +%FT%TZ
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_962_222, "2026-11-29T14:23:42Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(moment(seconds), text);
        }
    }

    #[test]
    fn control_characters_become_symbols() {
        assert_eq!(printable("a\n\tb\x1b[2J\u{9b}\x7f\0é"), "a\n\tb␛[2J\u{fffd}␡␀é");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_599_873_024), "1,599,873,024");
        assert_eq!(size(999), "999 bytes");
        assert_eq!(size(3_199_999_999), "3.20 GB");
    }
}
