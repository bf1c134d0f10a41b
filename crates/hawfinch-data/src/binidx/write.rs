//! Writing a data set.

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;

use super::{Dtype, HEADER, MAGIC};
use crate::error::{Error, Result};
use crate::new_file::NewFile;

/// Writes ids of 16 bits, one document after the other, in memory that does not grow. Both files get their names in
/// [`Writer::finish`]; dropped before, nothing is left of them.
pub struct Writer {
    bin: NewFile,
    idx: NewFile,
    idx_path: std::path::PathBuf,
    dtype: Dtype,
    documents: u64,
    tokens: u64,
}

impl Writer {
    /// Begins `name.bin` and `name.idx`.
    ///
    /// # Errors
    /// The files cannot be created.
    pub fn create(name: &Path) -> Result<Writer> {
        Writer::of(name, Dtype::U16)
    }

    /// Of numbers of another type.
    pub(crate) fn of(name: &Path, dtype: Dtype) -> Result<Writer> {
        let (bin, idx_path) = super::paths(name);
        let (bin, mut idx) = (NewFile::create(&bin)?, NewFile::create(&idx_path)?);
        idx.put(MAGIC)?;
        idx.put(&1u64.to_le_bytes())?;
        idx.put(&[dtype.code()])?;
        // Known at the end.
        idx.put(&[0; 16])?;
        Ok(Writer { bin, idx, idx_path, dtype, documents: 0, tokens: 0 })
    }

    /// Appends a document, its end token included.
    ///
    /// # Errors
    /// The files cannot be written, or the document has more than 2^31 - 1 tokens.
    pub fn push(&mut self, tokens: &[u16]) -> Result<()> {
        debug_assert_eq!(self.dtype, Dtype::U16);
        self.put(&le_bytes(tokens), tokens.len())
    }

    /// Appends a document of single bytes.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        debug_assert_eq!(self.dtype, Dtype::U8);
        self.put(bytes, bytes.len())
    }

    fn put(&mut self, bytes: &[u8], tokens: usize) -> Result<()> {
        let size = i32::try_from(tokens).map_err(|_| {
            Error::request(format!(
                "a document of {tokens} tokens is longer than the format holds (2147483647): divide it"
            ))
        })?;
        self.bin.put(bytes)?;
        self.idx.put(&size.to_le_bytes())?;
        self.documents += 1;
        self.tokens += tokens as u64;
        Ok(())
    }

    /// Documents so far.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Writes the tables and puts both files in their places. An older index is removed first: at no time do files
    /// that do not belong together bear the two names.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn finish(mut self) -> Result<()> {
        let mut counts = [0; 16];
        counts[..8].copy_from_slice(&self.documents.to_le_bytes());
        counts[8..].copy_from_slice(&(self.documents + 1).to_le_bytes());
        self.idx.replace(18, &counts)?;
        let mut sizes = self.idx.read_back(HEADER)?;
        let mut offset = 0i64;
        for _ in 0..self.documents {
            let mut size = [0; 4];
            sizes.read_exact(&mut size).map_err(|e| Error::read(&self.idx_path, e))?;
            self.idx.put(&offset.to_le_bytes())?;
            offset += self.dtype.width() as i64 * i64::from(i32::from_le_bytes(size));
        }
        for i in 0..=self.documents {
            self.idx.put(&i.to_le_bytes())?;
        }
        self.bin.flush()?;
        self.idx.flush()?;
        remove(&self.idx_path)?;
        self.bin.complete()?;
        self.idx.complete()
    }
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path, e)),
        _ => Ok(()),
    }
}

/// Ids as they lie in the file.
pub(crate) fn le_bytes(tokens: &[u16]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(tokens))
    } else {
        Cow::Owned(tokens.iter().flat_map(|t| t.to_le_bytes()).collect())
    }
}
