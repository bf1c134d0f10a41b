//! Reading a data set where it lies.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{Dtype, HEADER, MAGIC};
use crate::error::{Error, Result};

/// A mapped data set. Opening it reads the header and the last entries of the tables; each document is checked when it
/// is asked for.
pub struct Reader {
    bin: Mmap,
    idx: Mmap,
    bin_path: PathBuf,
    idx_path: PathBuf,
    dtype: Dtype,
    documents: u64,
    tokens: u64,
}

impl Reader {
    /// Opens `name.bin` and `name.idx`; `name` may be either file.
    ///
    /// # Errors
    /// A file is missing, the index is of another format or version, its ids are floating point, or the two files'
    /// sizes do not agree with what it says.
    pub fn open(name: &Path) -> Result<Reader> {
        let (bin_path, idx_path) = super::paths(name);
        let (idx, bin) = (map(&idx_path)?, map(&bin_path)?);
        let bad = |path: &Path, what: String| Error::NotBinidx { path: path.into(), what };
        let not = |what: String| bad(&idx_path, what);
        if !idx.starts_with(MAGIC) {
            return Err(not("it does not begin with MMIDIDX; give NAME of a NAME.bin and NAME.idx".into()));
        }
        if (idx.len() as u64) < HEADER {
            return Err(not(format!("it ends within its header, after {} bytes", idx.len())));
        }
        let version = u64_at(&idx, 9);
        if version != 1 {
            return Err(not(format!("it has version {version}, and only version 1 is known")));
        }
        let dtype = Dtype::from_code(idx[17]).ok_or_else(|| {
            let code = idx[17];
            let float = if code == 6 || code == 7 { " (floating point)" } else { "" };
            not(format!("number type {code}{float} is none of token ids"))
        })?;
        let (documents, entries) = (u64_at(&idx, 18), u64_at(&idx, 26));
        let need = documents
            .checked_mul(12)
            .and_then(|n| n.checked_add(entries.checked_mul(8)?)?.checked_add(HEADER))
            .filter(|&n| n == idx.len() as u64);
        if need.is_none() {
            return Err(not(format!(
                "a header of {documents} documents and {entries} borders does not go with a file of {} bytes; it is cut off or damaged",
                idx.len()
            )));
        }
        let width = dtype.width() as u64;
        if !(bin.len() as u64).is_multiple_of(width) {
            let what = format!("its {} bytes are no whole number of {} ids", bin.len(), dtype.name());
            return Err(bad(&bin_path, what));
        }
        let tokens = bin.len() as u64 / width;
        let reader = Reader { bin, idx, bin_path, idx_path, dtype, documents, tokens };
        let end = match documents {
            0 => Some(0),
            n => reader.place(n - 1).and_then(|(at, len)| at.checked_add(len)),
        };
        match end {
            Some(end) if end == tokens => Ok(reader),
            Some(end) => Err(bad(
                &reader.bin_path,
                format!(
                    "it has {tokens} tokens, and {} says {end}: one of the two is cut off or of another data set",
                    reader.idx_path.display()
                ),
            )),
            None => Err(bad(&reader.idx_path, "its last document lies at an impossible place".into())),
        }
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Number of tokens, end tokens included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Number type of the ids.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The `.bin`.
    pub fn path(&self) -> &Path {
        &self.bin_path
    }

    /// First token and number of tokens of a document, as the index says; `None` if they are no such numbers.
    fn place(&self, document: u64) -> Option<(u64, u64)> {
        // `documents` went with the length of the file.
        let size = i32_at(&self.idx, HEADER + 4 * document);
        let offset = u64_at(&self.idx, HEADER + 4 * self.documents + 8 * document);
        let width = self.dtype.width() as u64;
        offset.is_multiple_of(width).then_some((offset / width, u64::try_from(size).ok()?))
    }

    /// First token and number of tokens of a document.
    ///
    /// # Errors
    /// There is no such document, or it lies outside of the `.bin`.
    pub fn span(&self, document: u64) -> Result<(u64, u64)> {
        if document >= self.documents {
            return Err(Error::request(format!(
                "there is no document {document} in {}: it has {}, counted from 0",
                self.bin_path.display(),
                self.documents
            )));
        }
        let inside = |&(at, len): &(u64, u64)| at.checked_add(len).is_some_and(|end| end <= self.tokens);
        self.place(document).filter(inside).ok_or_else(|| Error::NotBinidx {
            path: self.idx_path.clone(),
            what: format!("document {document} lies outside of the {} tokens there are", self.tokens),
        })
    }

    /// The ids of a document, its end token included.
    ///
    /// # Errors
    /// As [`Reader::span`]; an id is negative or above 2^32.
    pub fn document(&self, document: u64) -> Result<Vec<u32>> {
        let (at, len) = self.span(document)?;
        let mut ids = Vec::new();
        self.read(at, len, &mut ids)?;
        Ok(ids)
    }

    /// Appends `len` ids from token `start` on to `ids`, whatever documents they belong to: a training sample.
    ///
    /// # Errors
    /// There are not so many tokens; an id is negative or above 2^32.
    pub fn read(&self, start: u64, len: u64, ids: &mut Vec<u32>) -> Result<()> {
        let width = self.dtype.width();
        let end = start.checked_add(len).filter(|&end| end <= self.tokens).ok_or_else(|| {
            let (path, tokens) = (self.bin_path.display(), self.tokens);
            Error::request(format!("{path} has {tokens} tokens: {len} from token {start} on are not there"))
        })?;
        let bytes = &self.bin[start as usize * width..end as usize * width];
        if self.dtype == Dtype::U16 {
            ids.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))));
            return Ok(());
        }
        for (i, b) in bytes.chunks_exact(width).enumerate() {
            let id = match self.dtype {
                Dtype::U8 => i64::from(b[0]),
                Dtype::I8 => i64::from(b[0] as i8),
                Dtype::I16 | Dtype::U16 => i64::from(i16::from_le_bytes([b[0], b[1]])),
                Dtype::I32 => i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                Dtype::I64 => i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            };
            ids.push(u32::try_from(id).map_err(|_| Error::NotBinidx {
                path: self.bin_path.clone(),
                what: format!("token {} is {id}, which is no token id", start + i as u64),
            })?);
        }
        Ok(())
    }
}

fn u64_at(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    bytes[at..at + 8].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

fn i32_at(bytes: &[u8], at: u64) -> i32 {
    let at = at as usize;
    i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Maps a file.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    if file.metadata().is_ok_and(|m| !m.is_file()) {
        return Err(Error::request(format!("{} is no file", path.display())));
    }
    // SAFETY: the map is only read. Whoever changes or shortens the file meanwhile gets wrong ids or a bus error; files
    // that this crate writes are replaced by rename, never in place.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::read(path, e))
}
