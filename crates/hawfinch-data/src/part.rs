//! A part: the tokens of some documents and a record of each, in one file of the work folder. A part that bears its
//! name is whole.
//!
//! Tokens (u16), zeros up to a multiple of eight bytes, spans of tokens to learn, records, counts, a tail. Work folders are for the machines that
//! made them: numbers lie in the machine's order of bytes, which the tail's first number shows.

use std::path::Path;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::binidx;
use crate::error::{Error, Result};
use crate::new_file::NewFile;

/// What is known of a document beside its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Record {
    /// 128-bit hash of its text.
    pub(crate) hash: [u64; 2],
    /// First of its tokens in the part.
    pub(crate) start: u64,
    /// First of its spans in the part.
    pub(crate) first_span: u64,
    /// Number of its spans: ranges of its tokens that are to be learned, in their order.
    pub(crate) spans: u32,
    /// Tokens in them.
    pub(crate) learned: u32,
    /// Number of tokens, the end token included.
    pub(crate) tokens: u32,
    /// Bytes of its text.
    pub(crate) bytes: u32,
    /// Characters of its text.
    pub(crate) chars: u32,
    /// Index of its file in the plan.
    pub(crate) file: u32,
}

/// What was left out or changed while a part was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Counts {
    /// Documents with too few tokens.
    pub(crate) short: u64,
    /// Documents with too many.
    pub(crate) long: u64,
    /// Lines that are no document.
    pub(crate) bad: u64,
    /// Documents in which invalid UTF-8 was replaced.
    pub(crate) replaced: u64,
    /// Documents left out for invalid UTF-8.
    pub(crate) invalid: u64,
    /// Documents in which nothing is to be learned.
    pub(crate) unlearned: u64,
    /// Messages whose reasoning the template has no place for.
    pub(crate) reasoning: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.short += other.short;
        self.long += other.long;
        self.bad += other.bad;
        self.replaced += other.replaced;
        self.invalid += other.invalid;
        self.unlearned += other.unlearned;
        self.reasoning += other.reasoning;
    }
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Tail {
    magic: u64,
    tokens: u64,
    spans: u64,
    records: u64,
    counts: Counts,
    /// Of spans and records.
    checksum: u64,
}

/// `hawpart2`.
const MAGIC: u64 = u64::from_le_bytes(*b"hawpart2");

/// A range of a document's tokens: the first, and the one behind the last.
pub(crate) type Span = [u32; 2];

/// Writes a part.
pub(crate) struct PartWriter {
    file: NewFile,
    tokens: u64,
    spans: Vec<Span>,
    records: Vec<Record>,
    counts: Counts,
}

impl PartWriter {
    /// Begins it.
    pub(crate) fn create(path: &Path) -> Result<PartWriter> {
        Ok(PartWriter {
            file: NewFile::create(path)?,
            tokens: 0,
            spans: Vec::new(),
            records: Vec::new(),
            counts: Counts::default(),
        })
    }

    /// Appends documents, whose records count tokens and spans from the first of these.
    pub(crate) fn push(
        &mut self,
        tokens: &[u16],
        spans: &[Span],
        records: &[Record],
        counts: &Counts,
    ) -> Result<()> {
        self.file.put(bytemuck::cast_slice(tokens))?;
        let before = self.spans.len() as u64;
        self.records.extend(records.iter().map(|r| Record {
            start: r.start + self.tokens,
            first_span: r.first_span + before,
            ..*r
        }));
        self.spans.extend(spans);
        self.tokens += tokens.len() as u64;
        self.counts.add(counts);
        Ok(())
    }

    /// Ends it and gives it its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        let (spans, records): (&[u8], &[u8]) =
            (bytemuck::cast_slice(&self.spans), bytemuck::cast_slice(&self.records));
        self.file.put(&[0; 8][..padding(self.tokens)])?;
        self.file.put(spans)?;
        self.file.put(records)?;
        let mut sum = Xxh3::new();
        sum.update(spans);
        sum.update(records);
        let tail = Tail {
            magic: MAGIC,
            tokens: self.tokens,
            spans: self.spans.len() as u64,
            records: self.records.len() as u64,
            counts: self.counts,
            checksum: sum.digest(),
        };
        self.file.put(bytemuck::bytes_of(&tail))?;
        self.file.complete()
    }
}

/// Bytes from the end of so many tokens to a multiple of eight.
fn padding(tokens: u64) -> usize {
    ((4 - tokens % 4) % 4 * 2) as usize
}

/// A part that is whole.
pub(crate) struct Part {
    map: Mmap,
    tail: Tail,
}

impl Part {
    /// Opens a part; `None` if it is not there, or is not whole, and must be made again.
    pub(crate) fn open(path: &Path) -> Result<Option<Part>> {
        let map = match binidx::map(path) {
            Ok(map) => map,
            Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let size = size_of::<Tail>();
        let Some(at) = map.len().checked_sub(size) else { return Ok(None) };
        let tail: Tail = bytemuck::pod_read_unaligned(&map[at..]);
        if tail.magic != MAGIC {
            return Ok(None);
        }
        let part = Part { map, tail };
        let whole = part.places().is_some_and(|[spans, _, end]| {
            end == at && xxh3_64(&part.map[spans..end]) == tail.checksum && part.records_fit()
        });
        Ok(whole.then_some(part))
    }

    /// Where the spans and the records lie and end, if numbers of that size can be.
    fn places(&self) -> Option<[usize; 3]> {
        let spans = self.tail.tokens.checked_mul(2)?.checked_add(padding(self.tail.tokens) as u64)?;
        let records = spans.checked_add(self.tail.spans.checked_mul(size_of::<Span>() as u64)?)?;
        let end = records.checked_add(self.tail.records.checked_mul(size_of::<Record>() as u64)?)?;
        let end = usize::try_from(end).ok().filter(|&end| end <= self.map.len())?;
        Some([spans as usize, records as usize, end])
    }

    /// Whether the documents lie one after the other up to the last token, and so do their spans.
    fn records_fit(&self) -> bool {
        let (mut next, mut span) = (0, 0);
        self.records().iter().all(|r| {
            let fits = r.start == next && r.first_span == span;
            next += u64::from(r.tokens);
            span += u64::from(r.spans);
            fits && span <= self.tail.spans && self.spans(r).iter().all(|s| s[0] <= s[1] && s[1] <= r.tokens)
        }) && next == self.tail.tokens
            && span == self.tail.spans
    }

    /// What is to be learned of a document.
    fn spans(&self, record: &Record) -> &[Span] {
        let [from, to, _] = self.places().unwrap_or_default();
        let spans: &[Span] = bytemuck::cast_slice(&self.map[from..to]);
        &spans[record.first_span as usize..][..record.spans as usize]
    }

    /// For each token of a document 1 if it is to be learned, else 0.
    pub(crate) fn mask(&self, record: &Record) -> Vec<u8> {
        let mut mask = vec![0; record.tokens as usize];
        self.spans(record).iter().for_each(|s| mask[s[0] as usize..s[1] as usize].fill(1));
        mask
    }

    /// The records, in the order of the documents.
    pub(crate) fn records(&self) -> &[Record] {
        let [_, from, to] = self.places().unwrap_or_default();
        bytemuck::cast_slice(&self.map[from..to])
    }

    /// The tokens of a document.
    pub(crate) fn tokens(&self, record: &Record) -> &[u16] {
        let from = record.start as usize * 2;
        bytemuck::cast_slice(&self.map[from..from + record.tokens as usize * 2])
    }

    /// What was left out.
    pub(crate) fn counts(&self) -> Counts {
        self.tail.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(hash: u64, [start, first_span]: [u64; 2], tokens: u32, [spans, learned]: [u32; 2]) -> Record {
        let hash = [hash, 1];
        Record { hash, start, first_span, spans, learned, tokens, bytes: 9, chars: 8, file: 0 }
    }

    #[test]
    fn what_is_written_is_read_and_half_of_it_is_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("p");
        let mut write = PartWriter::create(&path).unwrap();
        let counts = Counts { bad: 2, ..Counts::default() };
        let records = [record(1, [0, 0], 3, [1, 2]), record(2, [3, 1], 2, [0, 0])];
        write.push(&[5, 6, 0, 7, 0], &[[1, 3]], &records, &counts).unwrap();
        write.push(&[8, 0], &[[0, 1], [1, 2]], &[record(3, [0, 0], 2, [2, 2])], &counts).unwrap();
        assert!(Part::open(&path).unwrap().is_none(), "not before it is finished");
        write.finish().unwrap();
        let part = Part::open(&path).unwrap().unwrap();
        assert_eq!(part.records(), [records[0], records[1], record(3, [5, 1], 2, [2, 2])]);
        assert_eq!(part.tokens(&part.records()[1]), [7, 0]);
        assert_eq!(part.tokens(&part.records()[2]), [8, 0]);
        let masks: Vec<_> = part.records().iter().map(|r| part.mask(r)).collect();
        assert_eq!(masks, [&[0, 1, 1][..], &[0, 0], &[1, 1]]);
        assert_eq!(part.counts().bad, 4);
        let bytes = std::fs::read(&path).unwrap();
        for n in 0..bytes.len() {
            std::fs::write(&path, &bytes[..n]).unwrap();
            assert!(Part::open(&path).unwrap().is_none(), "{n} bytes");
        }
        // Tokens are not under the checksum: damage of a disk is not looked for.
        for at in 16..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x41;
            std::fs::write(&path, &changed).unwrap();
            if let Some(part) = Part::open(&path).unwrap() {
                part.records().iter().for_each(|r| drop((part.tokens(r).to_vec(), part.mask(r))));
            }
        }
    }
}
