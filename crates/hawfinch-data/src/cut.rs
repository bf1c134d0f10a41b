//! Dividing a stream into pieces of whole documents.
//!
//! A document belongs to the piece in whose range of bytes it begins. So pieces do not depend on how much was read at
//! a time, and a plain file can be entered at any border ([`Cutter::enter`]): shards read only what is theirs.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How text is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// A file is a document.
    None,
    /// A line is one (and so is a line of JSON).
    Lines,
    /// What stands between blank lines is one.
    BlankLines,
}

/// Longest document in bytes. Its tokens, and what is needed to find them, are held in memory.
pub(crate) const MAX_DOCUMENT: usize = 512 << 20;

/// Bytes asked for at a time.
const CHUNK: usize = 1 << 18;

/// A stream on its way through pieces.
pub(crate) struct Cutter<R> {
    input: R,
    split: Split,
    /// Name for messages.
    name: String,
    /// What was read and not given out yet.
    held: Vec<u8>,
    /// Place in the stream of the first byte held.
    at: u64,
    /// Bytes of `held` known to hold no border that is wanted; the start of a line.
    seen: usize,
    ended: bool,
}

impl<R: Read> Cutter<R> {
    /// A stream whose first byte is byte `at` of the whole.
    pub(crate) fn new(input: R, split: Split, name: String, at: u64) -> Self {
        Cutter { input, split, name, held: Vec::new(), at, seen: 0, ended: false }
    }

    /// A stream that was entered one byte before `border`: leaves out the document that lies across it.
    pub(crate) fn enter(input: R, split: Split, name: String, border: u64) -> Result<Self> {
        let mut cutter = Cutter::new(input, split, name, border - 1);
        cutter.next(border)?;
        Ok(cutter)
    }

    /// Where the next piece begins.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The documents that begin before byte `to` of the whole; `None` at the end.
    pub(crate) fn next(&mut self, to: u64) -> Result<Option<Vec<u8>>> {
        let enough = usize::try_from(to.saturating_sub(self.at)).unwrap_or(usize::MAX);
        loop {
            if let Some(cut) = self.border(enough) {
                let rest = self.held.split_off(cut);
                return Ok(Some(self.give(rest)));
            }
            if self.ended {
                return Ok((!self.held.is_empty()).then(|| self.give(Vec::new())));
            }
            if self.held.len() > MAX_DOCUMENT {
                return Err(Error::Document {
                    place: self.name.clone(),
                    what: format!("a document of more than {} MiB", MAX_DOCUMENT >> 20),
                    advice: "divide it, or text with --split lines or --split blank-lines",
                });
            }
            self.fill()?;
        }
    }

    fn give(&mut self, rest: Vec<u8>) -> Vec<u8> {
        let piece = std::mem::replace(&mut self.held, rest);
        self.at += piece.len() as u64;
        self.seen = 0;
        piece
    }

    fn fill(&mut self) -> Result<()> {
        let before = self.held.len();
        let got = self.input.by_ref().take(CHUNK as u64).read_to_end(&mut self.held);
        // What was read before an error must not be taken for a whole document.
        got.map_err(|source| Error::Read { path: (&self.name).into(), source })?;
        self.ended = self.held.len() == before;
        Ok(())
    }

    /// The first border of documents at or after `enough` bytes of what is held.
    fn border(&mut self, enough: usize) -> Option<usize> {
        match self.split {
            Split::None => None,
            Split::Lines => {
                let from = self.seen.max(enough.saturating_sub(1)).min(self.held.len());
                match memchr::memchr(b'\n', &self.held[from..]) {
                    Some(end) => Some(from + end + 1),
                    None => {
                        self.seen = from;
                        None
                    }
                }
            }
            Split::BlankLines => {
                while let Some(end) = memchr::memchr(b'\n', &self.held[self.seen..]) {
                    let line = self.seen..self.seen + end;
                    self.seen = line.end + 1;
                    if self.seen >= enough && self.held[line].trim_ascii().is_empty() {
                        return Some(self.seen);
                    }
                }
                None
            }
        }
    }
}

/// The documents of a piece, each with its place in it. Lines are without their line breaks, and those of text that
/// are empty are no documents; lines of JSON are given as they are.
pub(crate) fn documents(
    piece: &[u8],
    split: Split,
    mut each: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    match split {
        Split::None => each(0, piece),
        Split::Lines => lines(piece, |at, line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() { Ok(()) } else { each(at, line) }
        }),
        Split::BlankLines => {
            // First byte of the paragraph, end of its last line.
            let mut paragraph: Option<(usize, usize)> = None;
            lines(piece, |at, line| {
                if !line.trim_ascii().is_empty() {
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    let begin = paragraph.map_or(at, |p| p.0);
                    paragraph = Some((begin, at + line.len()));
                    return Ok(());
                }
                paragraph.take().map_or(Ok(()), |(begin, end)| each(begin, &piece[begin..end]))
            })?;
            paragraph.map_or(Ok(()), |(begin, end)| each(begin, &piece[begin..end]))
        }
    }
}

fn lines(piece: &[u8], mut each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
    let mut at = 0;
    while at < piece.len() {
        let end = memchr::memchr(b'\n', &piece[at..]).map_or(piece.len(), |n| at + n);
        each(at, &piece[at..end])?;
        at = end + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1.min(buffer.len()).min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn texts(piece: &[u8], split: Split) -> Vec<String> {
        let mut out = Vec::new();
        documents(piece, split, |_, d| {
            out.push(String::from_utf8(d.to_vec()).unwrap());
            Ok(())
        })
        .unwrap();
        out
    }

    const TEXT: &[u8] = b"one\ntwo\r\n\n\nthree\nfour\n \t\r\n\nfive\n\n\nsix without an end";

    #[test]
    fn documents_are_the_same_however_it_is_cut() {
        let whole = [
            (Split::None, vec![String::from_utf8(TEXT.to_vec()).unwrap()]),
            (
                Split::Lines,
                ["one", "two", "three", "four", " \t", "five", "six without an end"].map(String::from).into(),
            ),
            (
                Split::BlankLines,
                ["one\ntwo", "three\nfour", "five", "six without an end"].map(String::from).into(),
            ),
        ];
        for (split, want) in whole {
            assert_eq!(texts(TEXT, split), want);
            for size in 1..TEXT.len() as u64 + 2 {
                let mut cutter = Cutter::new(Slow(TEXT, 3), split, "x".into(), 0);
                let (mut got, mut joined) = (Vec::new(), Vec::new());
                while let Some(piece) = cutter.next((cutter.at() / size + 1) * size).unwrap() {
                    got.extend(texts(&piece, split));
                    joined.extend(piece);
                }
                assert_eq!(got, want, "{split:?} in pieces of {size}");
                assert_eq!(joined, TEXT);
            }
        }
    }

    #[test]
    fn a_file_can_be_entered_at_every_border() {
        for size in 1..TEXT.len() {
            let mut got = Vec::new();
            for border in (0..TEXT.len()).step_by(size) {
                let (from, split) = (border.saturating_sub(1), Split::Lines);
                let mut cutter = if border == 0 {
                    Cutter::new(TEXT, split, "x".into(), 0)
                } else {
                    Cutter::enter(&TEXT[from..], split, "x".into(), border as u64).unwrap()
                };
                let end = (border + size) as u64;
                while cutter.at() < end
                    && let Some(piece) = cutter.next(end).unwrap()
                {
                    got.extend(texts(&piece, split));
                }
            }
            assert_eq!(got, texts(TEXT, Split::Lines), "parts of {size}");
        }
    }
}
