//! The reference's data sets: `NAME.bin` and `NAME.idx` ("binidx", Megatron's memory-mapped format).
//!
//! `NAME.bin` holds token ids back to back. `NAME.idx`, all little endian:
//!
//! | offset | bytes | content |
//! | --- | --- | --- |
//! | 0 | 9 | `MMIDIDX\0\0` |
//! | 9 | 8 | u64 version, 1 |
//! | 17 | 1 | u8 number type of the ids, see [`Dtype`] |
//! | 18 | 8 | u64 S, number of documents |
//! | 26 | 8 | u64 M, number of entries of the last table |
//! | 34 | 4 S | i32 tokens of each document, its end token included |
//! | 34 + 4 S | 8 S | i64 offset of each document in `NAME.bin`, in bytes |
//! | 34 + 12 S | 8 M | i64 0, 1, …, S |

mod read;
mod write;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use read::Reader;
pub(crate) use read::map;
pub use write::Writer;
pub(crate) use write::remove;

/// First bytes of an `.idx`.
const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
/// Bytes before the tables.
const HEADER: u64 = 34;

/// Number types of token ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 1: bytes, of which a mask is one a token.
    U8,
    /// 2.
    I8,
    /// 3.
    I16,
    /// 4.
    I32,
    /// 5.
    I64,
    /// 8: what the RWKV reference writes, and [`Writer`].
    U16,
}

impl Dtype {
    /// By the number in the file. 6 and 7 are floating point, which no token id is.
    fn from_code(code: u8) -> Option<Dtype> {
        Some(match code {
            1 => Dtype::U8,
            2 => Dtype::I8,
            3 => Dtype::I16,
            4 => Dtype::I32,
            5 => Dtype::I64,
            8 => Dtype::U16,
            _ => return None,
        })
    }

    /// The number in the file.
    fn code(self) -> u8 {
        match self {
            Dtype::U8 => 1,
            Dtype::I8 => 2,
            Dtype::I16 => 3,
            Dtype::I32 => 4,
            Dtype::I64 => 5,
            Dtype::U16 => 8,
        }
    }

    /// Bytes of an id.
    pub fn width(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::I16 | Dtype::U16 => 2,
            Dtype::I32 => 4,
            Dtype::I64 => 8,
        }
    }

    /// `u16` and so on.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "u8",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
            Dtype::U16 => "u16",
        }
    }
}

/// `.bin` and `.idx` of a data set, which may be named with or without either ending.
pub fn paths(name: &Path) -> (PathBuf, PathBuf) {
    let stem = match name.extension().and_then(|e| e.to_str()) {
        Some("bin" | "idx") => name.with_extension(""),
        _ => name.to_path_buf(),
    };
    let with = |ending: &str| {
        let mut whole = OsString::from(&stem);
        whole.push(ending);
        PathBuf::from(whole)
    };
    (with(".bin"), with(".idx"))
}

#[cfg(test)]
mod tests;
