//! A bounds-checked cursor over little-endian bytes, for the readers of binary formats.

use bytes::Bytes;

/// Reads from the front of a file's bytes; every method gives `None` where the file ends too early, and
/// slices share the file's memory.
pub(crate) struct Cursor {
    file: Bytes,
    at: usize,
}

impl Cursor {
    pub(crate) fn new(file: Bytes) -> Self {
        Cursor { file, at: 0 }
    }

    /// Offset of the next byte.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.file.len() - self.at
    }

    /// The next `n` bytes, without a copy.
    pub(crate) fn bytes(&mut self, n: usize) -> Option<Bytes> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.file.len())?;
        let slice = self.file.slice(self.at..end);
        self.at = end;
        Some(slice)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let end = self.at.checked_add(N)?;
        let a = self.file.get(self.at..end)?.try_into().ok()?;
        self.at = end;
        Some(a)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
