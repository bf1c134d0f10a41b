//! The bytes of a weight: memory of its own, or somebody else's (a mapped file), until they are copied.

use std::sync::OnceLock;

use crate::buffer::Buffer;

/// Bytes that products read. Where they are lent they can be copied into huge pages at any time, also while products
/// run: those that have begun go on with the lent bytes, later ones read the copy.
pub struct Store {
    lent: Option<Box<dyn AsRef<[u8]> + Send + Sync>>,
    own: OnceLock<Buffer>,
}

impl Store {
    /// Memory of its own.
    pub fn own(buffer: Buffer) -> Self {
        Store { lent: None, own: OnceLock::from(buffer) }
    }

    /// Bytes of somebody else. They must not change; no alignment is asked for, but lines of 64 bytes are read faster.
    pub fn lent(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Store { lent: Some(Box::new(bytes)), own: OnceLock::new() }
    }

    /// The bytes (of an own buffer at least one).
    pub fn bytes(&self) -> &[u8] {
        match (self.own.get(), &self.lent) {
            (Some(own), _) => own.bytes(),
            (None, Some(lent)) => (**lent).as_ref(),
            (None, None) => &[],
        }
    }

    /// True where the bytes are lent and were not copied yet.
    pub fn is_lent(&self) -> bool {
        self.own.get().is_none()
    }

    /// Copies lent bytes into memory of their own; the bytes copied, 0 where there was nothing to do.
    pub fn copy(&self) -> usize {
        let Some(lent) = self.lent.as_ref().filter(|_| self.is_lent()) else { return 0 };
        let lent = (**lent).as_ref();
        // Two who copy at once waste memory for a moment; the second copy is dropped.
        if self.own.set(Buffer::copy_of(lent)).is_ok() { lent.len() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_bytes_are_read_until_they_are_copied() {
        let bytes: Vec<u8> = (0..5_000_000u32).map(|n| n as u8).collect();
        let at = bytes.as_ptr();
        let store = Store::lent(bytes.clone());
        assert!(store.is_lent() && store.bytes() == bytes);
        assert_eq!(store.copy(), bytes.len());
        assert!(!store.is_lent() && store.bytes() == bytes && store.bytes().as_ptr() != at);
        assert_eq!(store.bytes().as_ptr() as usize % (2 << 20), 0);
        assert_eq!(store.copy(), 0);
        let own = Store::own(Buffer::new(3));
        assert!(!own.is_lent() && own.copy() == 0 && own.bytes() == [0; 3]);
    }
}
