//! Writing a checkpoint whose tensors are made while they are written: files larger than the memory, and
//! sparse ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;

use super::encode::{Item, Make, Progress};
use super::save::{SaveFormat, replace_by_file, replace_file};
use super::{pth_write, safetensors};
use crate::checkpoint::{Layout, StoredTensor};
use crate::{Error, Result};

/// A tensor to be made.
#[derive(Clone, Debug)]
pub struct MadeTensor {
    /// Name in the file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Number type.
    pub dtype: DType,
}

/// Writes `tensors` to `path` (`.pth` or safetensors). `fill(i, out)` writes all bytes of tensor `i`,
/// row-major and little-endian; it is called once a tensor, in the order given when all have one number
/// type. With `sparse`, runs of zeros become holes where the file system has them. `progress` is told
/// (bytes written, bytes in all).
///
/// # Errors
/// GGUF and packed files are not written this way; a shape that is no whole number of blocks or overflows; what the system
/// says.
pub fn save_made(
    path: &Path,
    format: SaveFormat,
    tensors: &[MadeTensor],
    metadata: &BTreeMap<String, String>,
    fill: &dyn Fn(usize, &mut dyn Write) -> io::Result<()>,
    sparse: bool,
    progress: Option<&mut dyn FnMut(u64, u64)>,
) -> Result<()> {
    if !matches!(format, SaveFormat::Pth | SaveFormat::Safetensors) {
        return Err(Error::Invalid(
            "a GGUF or packed file cannot be made this way: make a .safetensors and convert it".into(),
        ));
    }
    let io_error = |e: io::Error| Error::io(path, e);
    let hollow: Vec<StoredTensor> = tensors
        .iter()
        .map(|t| {
            let hollow = StoredTensor {
                dtype: t.dtype,
                shape: t.shape.clone(),
                transposed: false,
                scale: 1.0,
                layout: Layout::Rows,
                data: Bytes::new(),
            };
            let too_large =
                || Error::Invalid(format!("`{}` of shape {:?} cannot be {}", t.name, t.shape, t.dtype));
            hollow.expected_bytes().map(|_| hollow).ok_or_else(too_large)
        })
        .collect::<Result<_>>()?;
    let makes: Vec<Box<Make>> =
        (0..tensors.len()).map(|i| Box::new(move |out: &mut dyn Write| fill(i, out)) as Box<Make>).collect();
    let items: Vec<Item> = tensors
        .iter()
        .zip(&hollow)
        .zip(&makes)
        .map(|((t, hollow), make)| Item {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype: t.dtype,
            tensor: hollow,
            made: Some(&**make),
        })
        .collect();
    let total: u64 = items.iter().map(Item::bytes).sum::<io::Result<u64>>().map_err(io_error)?;
    let mut progress = Progress::new(total, progress);
    let mut write = |out: &mut dyn Write| match format {
        SaveFormat::Pth => pth_write::write(out, &items, metadata, &mut progress),
        _ => safetensors::write(out, &items, metadata, &mut progress),
    };
    if !sparse {
        return replace_file(path, |out| write(out));
    }
    replace_by_file(path, |file| {
        let mut out = Holes { file, at: 0 };
        write(&mut out)?;
        out.finish()
    })
}

/// Skips over long runs of zeros in place of writing them.
struct Holes<'f> {
    file: &'f mut File,
    at: u64,
}

/// Runs shorter than a page are not worth a seek.
const HOLE: usize = 4096;

impl Write for Holes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= HOLE && bytes.iter().all(|&b| b == 0) {
            self.file.seek(SeekFrom::Current(bytes.len() as i64))?;
            self.at += bytes.len() as u64;
            return Ok(bytes.len());
        }
        let n = self.file.write(bytes)?;
        self.at += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Holes<'_> {
    /// Gives the file its length, which a hole at its end does not.
    fn finish(self) -> io::Result<()> {
        self.file.set_len(self.at)
    }
}
