//! Packed files: every matrix as the kernels want it, so that opening means mapping.
//!
//! A packed file is a safetensors file. Matrices in panels, strips and tiles (and rows of blocks, which safetensors
//! has no number type for) are tensors of bytes, `U8 [bytes]`, first in the file, each from a multiple of 64 on and
//! filled up to one with zeros; all others are ordinary tensors behind them. The metadata say the rest:
//! [`VERSION`] the version of the layout, [`TENSORS`] a JSON array of all tensors in official order (name, number type
//! and logical shape, layout, scale, XXH64 of the bytes), [`SUM`] the XXH64 of all other metadata.
//!
//! How panels, strips and tiles lie is said in `hawfinch_kernels` ([`panel`](hawfinch_kernels::panel) and, of bf16,
//! [`bf16`](hawfinch_kernels::bf16), [`sparse`](hawfinch_kernels::panel::sparse),
//! [`columns`](hawfinch_kernels::linear::columns)); it is the same for
//! every instruction set. Who changes it counts [`LAYOUT`] up. Files with panels of bf16 say the next version
//! ([`LAYOUT_BF16`]): these came later, and a program that does not know them says so.

mod read;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
pub(super) use read::unfold;
pub(super) use write::{bf16_type, matrix_type, save};

/// Metadata: the version of the layout.
pub const VERSION: &str = "hawfinch.packed";
/// Metadata: the tensors.
pub const TENSORS: &str = "hawfinch.packed.tensors";
/// Metadata: checksum of the other metadata.
pub const SUM: &str = "hawfinch.packed.sum";
/// The layout that is written and read.
pub const LAYOUT: u64 = 1;
/// The same where some panels are of bf16.
pub const LAYOUT_BF16: u64 = 2;
/// Where tensors of bytes begin.
const ALIGNMENT: usize = 64;
/// Tensors up to this size are checked when the file is opened, larger ones later.
const CHECKED_AT_ONCE: usize = 64 << 10;

/// One tensor of the list.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    dtype: String,
    shape: Vec<u64>,
    /// `plain`: an ordinary tensor. `rows`, `panels`, `strips`, `tiles`: bytes.
    layout: String,
    /// Outputs of a strip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    width: Option<u64>,
    /// Factor on every number, when it is not 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<f32>,
    /// Sixteen hexadecimal digits.
    xxh64: String,
}

/// The checksum of some bytes: XXH64 with seed 0, against damage, not malice.
pub fn xxh64(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}

/// The number that [`SUM`] should be: a checksum of all other metadata.
pub fn sum_of(metadata: &BTreeMap<String, String>) -> u64 {
    let mut all = Vec::new();
    for (key, value) in metadata.iter().filter(|(key, _)| *key != SUM) {
        for text in [key, value] {
            all.extend((text.len() as u64).to_le_bytes());
            all.extend(text.as_bytes());
        }
    }
    xxh64(&all)
}

/// Whether metadata are those of a packed file, or were before they were damaged.
pub(super) fn recognise(metadata: &BTreeMap<String, String>) -> bool {
    metadata.keys().any(|key| is_ours_alone(key))
}

/// The keys that say how a packed file holds its tensors, which mean nothing elsewhere.
pub(super) fn is_ours_alone(key: &str) -> bool {
    [VERSION, TENSORS, SUM].contains(&key)
}

/// An open packed file: its tensors' bytes with what they should sum up to.
#[derive(Debug)]
pub struct Packed {
    path: PathBuf,
    tensors: Vec<(String, Bytes, u64)>,
    /// The mapping that the bytes are cut from, where it is known.
    mapping: Option<Arc<Mmap>>,
}

impl Packed {
    /// Names and bytes of the tensors, in official order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.tensors.iter().map(|(name, bytes, _)| (&**name, bytes))
    }

    /// Whether tensor `n` of [`Packed::tensors`] holds the bytes that were written.
    pub fn is_sound(&self, n: usize) -> bool {
        self.tensors.get(n).is_none_or(|(_, bytes, sum)| xxh64(bytes) == *sum)
    }

    /// What is to be said of tensor `n` where it is not.
    pub fn damage(&self, n: usize) -> Error {
        let name = self.tensors.get(n).map_or("", |(name, ..)| name);
        Error::damaged(
            &self.path,
            format!(
                "tensor `{name}` holds other bytes than were written (its checksum differs): pack the model again, or \
                 copy the file again from where it came"
            ),
        )
    }

    /// Compares the checksums of all tensors.
    ///
    /// # Errors
    /// The first tensor whose bytes are not those that were written.
    pub fn check_all(&self) -> Result<()> {
        match (0..self.tensors.len()).find(|&n| !self.is_sound(n)) {
            Some(n) => Err(self.damage(n)),
            None => Ok(()),
        }
    }

    /// Gives the memory of some of the tensors' bytes back, if they are mapped: it is read from the file again if
    /// anybody asks for it.
    pub(crate) fn release(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some(map) = &self.mapping {
            const PAGE: usize = 64 << 10; // a multiple of every system's
            let whole = map.as_ptr_range();
            let (from, to) = (bytes.as_ptr_range().start, bytes.as_ptr_range().end);
            if whole.start <= from && to <= whole.end {
                let from = (from as usize - whole.start as usize).next_multiple_of(PAGE);
                let to = (to as usize - whole.start as usize) / PAGE * PAGE;
                if from < to {
                    // SAFETY: the range lies within a mapping of a file that is never written to: whoever reads it
                    // gets the same bytes from the file again. A refusal changes nothing.
                    let _ = unsafe {
                        map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from)
                    };
                }
            }
        }
        #[cfg(not(unix))]
        let _ = (bytes, &self.mapping);
    }

    /// Remembers the mapping.
    pub(super) fn is_mapped_by(&mut self, map: Arc<Mmap>) {
        self.mapping = Some(map);
    }
}

#[cfg(test)]
mod tests {
    use super::xxh64;

    /// Files name the checksum: values of its specification.
    #[test]
    fn known_values() {
        assert_eq!(xxh64(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc"), 0x44BC_2CF5_AD77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition"), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn every_flip_shows() {
        let bytes: Vec<u8> = (0..77).collect();
        for bit in 0..77 * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(xxh64(&other), xxh64(&bytes), "{bit}");
        }
    }
}
