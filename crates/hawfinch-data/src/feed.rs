//! Reads the files in order and hands out pieces of whole documents, leaving out what other shards do and what earlier
//! runs did.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::control::{BadLines, Invalid, Policy};
use crate::cut::{Cutter, Split};
use crate::error::{Error, Result};
use crate::open::{self, Kind, Stream};
use crate::part::{Counts, Part};
use crate::plan::{PartId, Plan, Shard, Unit};

/// Bytes of a piece, about.
const PIECE: u64 = 1 << 20;

/// Some documents of a file.
pub(crate) struct Piece {
    /// Index of the file in the plan.
    pub(crate) file: usize,
    /// Place of its first byte in the unpacked file.
    pub(crate) at: u64,
    /// How its documents are divided.
    pub(crate) split: Split,
    /// The line of its first byte, from 1, where the file cannot be read again to count.
    pub(crate) line: Option<u64>,
    /// Whether they are lines of JSON.
    pub(crate) json: bool,
    /// The documents.
    pub(crate) bytes: Vec<u8>,
}

/// What the reader says, in the order of the documents.
pub(crate) enum Event {
    /// A part begins.
    Begin(PartId),
    /// Documents of the part.
    Piece(Piece),
    /// The part is complete.
    End,
    /// A stream has ended, after so many parts.
    Ended { unit: usize, parts: u64 },
}

/// The file that says how many parts a stream has.
pub(crate) fn end_path(work: &Path, unit: usize) -> std::path::PathBuf {
    work.join(format!("{unit:06}.end"))
}

/// How many parts a stream has, if it was read to its end.
pub(crate) fn parts_of_stream(work: &Path, unit: usize) -> Option<u64> {
    std::fs::read_to_string(end_path(work, unit)).ok()?.trim().parse().ok()
}

/// Whether what was left out of a part when it was made is what this policy leaves out.
fn follows(counts: &Counts, policy: Policy) -> bool {
    let text = match policy.invalid {
        Invalid::Replace => counts.invalid == 0,
        Invalid::Skip => counts.replaced == 0,
        Invalid::Fail => counts.invalid == 0 && counts.replaced == 0,
    };
    text && (policy.bad_lines == BadLines::Skip || counts.bad == 0)
}

/// The reader.
pub(crate) struct Feeder<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) work: &'a Path,
    pub(crate) shard: Shard,
    pub(crate) policy: Policy,
    /// Bytes of files that are done with.
    pub(crate) read: Arc<AtomicU64>,
    /// Line breaks of standard input so far.
    pub(crate) lines_of_stdin: std::cell::Cell<u64>,
    /// Takes an event; false when nobody wants more.
    pub(crate) give: &'a dyn Fn(Event) -> bool,
}

/// Nobody wants more.
struct Over;

impl Feeder<'_> {
    /// Reads everything.
    pub(crate) fn run(&self) -> Result<()> {
        for (number, unit) in self.plan.units().into_iter().enumerate() {
            let done = match unit {
                Unit::Files(files) => self.files(number, files)?,
                Unit::Lines { file, parts } => self.lines(number, file, parts)?,
                Unit::Stream { file } => self.stream(number, file)?,
            };
            if done.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn give(&self, event: Event) -> std::result::Result<(), Over> {
        if (self.give)(event) { Ok(()) } else { Err(Over) }
    }

    /// Whether a part is to be made here and now.
    fn wanted(&self, part: PartId) -> Result<bool> {
        if !self.shard.has(part) {
            return Ok(false);
        }
        let there = Part::open(&part.path(self.work))?;
        Ok(!there.is_some_and(|p| follows(&p.counts(), self.policy)))
    }

    /// Counts what is not read as read.
    fn skipped(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn files(&self, unit: usize, files: std::ops::Range<usize>) -> Result<std::result::Result<(), Over>> {
        let part = PartId { unit, index: 0 };
        if !self.wanted(part)? {
            self.skipped(files.map(|f| self.plan.file(f).size).sum());
            return Ok(Ok(()));
        }
        if self.give(Event::Begin(part)).is_err() {
            return Ok(Err(Over));
        }
        for file in files {
            let (mut cutter, json, split) = self.open(file)?;
            if self.pieces(&mut cutter, file, json, split, u64::MAX)?.is_err() {
                return Ok(Err(Over));
            }
        }
        Ok(self.give(Event::End))
    }

    fn lines(&self, unit: usize, file: usize, parts: u64) -> Result<std::result::Result<(), Over>> {
        let (info, size) = (self.plan.file(file), self.plan.reading.part_bytes);
        for index in 0..parts {
            let part = PartId { unit, index };
            let (from, to) = (index * size, (index + 1) * size);
            if !self.wanted(part)? {
                self.skipped(to.min(info.size) - from);
                continue;
            }
            let stream = open::stream(&info.path, info.encoding, from.saturating_sub(1), None, &self.read)?;
            let mut cutter = match from {
                0 => Cutter::new(stream, Split::Lines, info.shown(), 0),
                _ => Cutter::enter(stream, Split::Lines, info.shown(), from)?,
            };
            if self.give(Event::Begin(part)).is_err()
                || self.pieces(&mut cutter, file, info.kind == Kind::Jsonl, Split::Lines, to)?.is_err()
                || self.give(Event::End).is_err()
            {
                return Ok(Err(Over));
            }
        }
        Ok(Ok(()))
    }

    fn stream(&self, unit: usize, file: usize) -> Result<std::result::Result<(), Over>> {
        if let Some(parts) = parts_of_stream(self.work, unit) {
            let mut wanted = false;
            for index in 0..parts {
                wanted |= self.wanted(PartId { unit, index })?;
            }
            if !wanted {
                self.skipped(self.plan.file(file).size);
                return Ok(Ok(()));
            }
        }
        let size = self.plan.reading.part_bytes;
        let (mut cutter, json, split) = self.open(file)?;
        let mut index = 0;
        loop {
            let part = PartId { unit, index };
            let to = (index + 1) * size;
            let wanted = self.wanted(part)?;
            let ended = if wanted {
                if self.give(Event::Begin(part)).is_err() {
                    return Ok(Err(Over));
                }
                match self.pieces(&mut cutter, file, json, split, to)? {
                    Ok(ended) => ended,
                    Err(over) => return Ok(Err(over)),
                }
            } else {
                let mut ended = false;
                while !ended && cutter.at() < to {
                    ended = cutter.next(piece_end(cutter.at(), to))?.is_none();
                }
                ended
            };
            if wanted && self.give(Event::End).is_err() {
                return Ok(Err(Over));
            }
            index += 1;
            if ended {
                return Ok(self.give(Event::Ended { unit, parts: index }));
            }
        }
    }

    /// Opens a file from its start.
    fn open(&self, file: usize) -> Result<(Cutter<Stream>, bool, Split)> {
        let info = self.plan.file(file);
        let (stream, kind) = if info.is_stdin() {
            open::stdin(info.kind, &self.read)?
        } else {
            (
                open::stream(&info.path, info.encoding, 0, self.plan.reading.field.as_deref(), &self.read)?,
                info.kind,
            )
        };
        let split = self.plan.split(kind);
        Ok((Cutter::new(stream, split, info.shown(), 0), kind == Kind::Jsonl, split))
    }

    /// Gives out the documents that begin before byte `to`; whether the file has ended.
    fn pieces(
        &self,
        cutter: &mut Cutter<Stream>,
        file: usize,
        json: bool,
        split: Split,
        to: u64,
    ) -> Result<std::result::Result<bool, Over>> {
        while cutter.at() < to {
            let at = cutter.at();
            let Some(bytes) = cutter.next(piece_end(at, to))? else { return Ok(Ok(true)) };
            let line = self.plan.file(file).is_stdin().then(|| {
                let breaks = memchr::memchr_iter(b'\n', &bytes).count() as u64;
                self.lines_of_stdin.replace(self.lines_of_stdin.get() + breaks) + 1
            });
            if self.give(Event::Piece(Piece { file, at, split, json, line, bytes })).is_err() {
                return Ok(Err(Over));
            }
        }
        Ok(Ok(false))
    }
}

/// Where the piece that begins at `at` ends at most.
fn piece_end(at: u64, to: u64) -> u64 {
    (at / PIECE + 1).saturating_mul(PIECE).min(to)
}

/// The line of a file in which a byte of its unpacked content lies, from 1; `None` where it cannot be read.
fn line_number(plan: &Plan, file: usize, at: u64) -> Option<u64> {
    use std::io::Read;
    let info = plan.file(file);
    let mut stream =
        open::stream(&info.path, info.encoding, 0, plan.reading.field.as_deref(), &Arc::default())
            .ok()?
            .take(at);
    let (mut lines, mut buffer) = (1, vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer).ok()? {
            0 => return Some(lines),
            n => lines += memchr::memchr_iter(b'\n', &buffer[..n]).count() as u64,
        }
    }
}

/// How many bytes may be on their way between reading and writing.
pub(crate) struct Budget {
    most: usize,
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Budget {
    /// At most so many.
    pub(crate) fn new(most: usize) -> Budget {
        Budget { most, state: Mutex::new((0, false)), changed: Condvar::new() }
    }

    /// What a piece counts as: more than its bytes if it is small, at most everything.
    fn price(&self, bytes: usize) -> usize {
        bytes.max(1 << 16).min(self.most)
    }

    /// Waits until there is room; false when the work was given up.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let price = self.price(bytes);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |s: &mut (usize, bool)| !s.1 && s.0 + price > self.most;
        let mut state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        state.0 += price;
        !state.1
    }

    /// A piece has left.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 -= self.price(bytes);
        self.changed.notify_all();
    }

    /// Nobody is to wait any more.
    pub(crate) fn give_up(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }
}

/// The error of the document at byte `at` of a piece, which was not to be left out.
pub(crate) fn document_error(
    plan: &Plan,
    piece: &Piece,
    at: usize,
    what: String,
    advice: &'static str,
) -> Error {
    let name = plan.file(piece.file).shown();
    let line = match piece.line {
        _ if piece.split == Split::None => None,
        Some(line) => Some(line + memchr::memchr_iter(b'\n', &piece.bytes[..at]).count() as u64),
        None => line_number(plan, piece.file, piece.at + at as u64),
    };
    let place = line.map_or_else(|| name.clone(), |line| format!("{name}, line {line}"));
    Error::Document { place, what, advice }
}
