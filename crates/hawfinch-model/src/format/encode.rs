//! A tensor on its way into a file: under which name, in which shape and number type, written in
//! pieces so that a model of any size is converted in a few megabytes of memory.

use std::io::{self, Write};

use hawfinch_kernels::{DType, block};

use crate::checkpoint::StoredTensor;

/// Numbers that are decoded and encoded at a time.
const PIECE: usize = 1 << 18;

/// Counts the bytes written and tells the caller.
pub(super) struct Progress<'a> {
    done: u64,
    total: u64,
    tell: Option<&'a mut dyn FnMut(u64, u64)>,
}

impl<'a> Progress<'a> {
    pub fn new(total: u64, tell: Option<&'a mut dyn FnMut(u64, u64)>) -> Self {
        Progress { done: 0, total, tell }
    }

    pub fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if let Some(tell) = &mut self.tell {
            tell(self.done, self.total);
        }
    }
}

/// One tensor to be written.
pub(super) struct Item<'a> {
    /// Name in the file.
    pub name: String,
    /// Shape in the file: as many numbers as the tensor has, differing from its own shape by axes of
    /// length 1 only.
    pub shape: Vec<usize>,
    /// Number type in the file.
    pub dtype: DType,
    /// The numbers.
    pub tensor: &'a StoredTensor,
    /// When there, writes the numbers in place of `tensor`, which then has only type and shape.
    pub made: Option<&'a Make<'a>>,
}

/// Writes all bytes of a tensor that is nowhere in memory.
pub(super) type Make<'a> = dyn Fn(&mut dyn Write) -> io::Result<()> + 'a;

/// Counts what goes through.
struct Counting<'w, 'p, 'a> {
    out: &'w mut dyn Write,
    progress: &'p mut Progress<'a>,
    written: u64,
}

impl Write for Counting<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        self.progress.add(n);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Item<'_> {
    /// Bytes that the item takes in the file.
    pub fn bytes(&self) -> io::Result<u64> {
        let cols = self.tensor.shape.last().copied().unwrap_or(1);
        let rows = self.tensor.len().checked_div(cols).unwrap_or(0);
        let row = self.dtype.bytes_for(cols).ok_or_else(|| self.unwritable())?;
        Ok(row as u64 * rows as u64)
    }

    fn unwritable(&self) -> io::Error {
        io::Error::other(format!(
            "tensor `{}` of shape {:?} cannot be written as {}",
            self.name, self.shape, self.dtype
        ))
    }

    /// Refuses numbers that would become infinite: F16, also as the scale of a block, ends at 65504. In blocks
    /// refuses NaN and infinities too.
    fn check_range(&self, values: &[f32]) -> io::Result<()> {
        const END: f32 = 65520.0; // from here on F16 rounds to infinity
        if self.dtype != DType::F16 && !self.dtype.is_quantized() {
            return Ok(());
        }
        // A block has no number for them: they would become others.
        if let Some(v) = values.iter().find(|v| !v.is_finite()).filter(|_| self.dtype.is_quantized()) {
            return Err(io::Error::other(format!(
                "tensor `{}` holds {v}, which {} cannot: the model is damaged, as `hawfinch verify` says too",
                self.name, self.dtype
            )));
        }
        match values.iter().find(|v| v.is_finite() && v.abs() >= END) {
            None => Ok(()),
            Some(v) => Err(io::Error::other(format!(
                "tensor `{}` holds {v}, which {} cannot (it ends at 65504); choose bf16 or f32",
                self.name, self.dtype
            ))),
        }
    }

    /// Writes the numbers, row-major, little-endian.
    pub fn write(&self, out: &mut dyn Write, progress: &mut Progress) -> io::Result<()> {
        if let Some(make) = self.made {
            let mut counting = Counting { out, progress, written: 0 };
            make(&mut counting)?;
            if counting.written != self.bytes()? {
                return Err(io::Error::other(format!("tensor `{}` was made with another length", self.name)));
            }
            return Ok(());
        }
        let t = &self.tensor.unpacked();
        if t.dtype == self.dtype && !t.transposed && t.scale == 1.0 {
            for piece in t.data.chunks(4 * PIECE) {
                out.write_all(piece)?;
                progress.add(piece.len());
            }
            return Ok(());
        }
        // Swapped tensors are the low-rank ones, which are small; F64 goes by way of f64.
        if t.transposed || self.dtype == DType::F64 || t.dtype == DType::F64 {
            self.check_range(&t.to_f32())?;
            let whole = t.converted(self.dtype).ok_or_else(|| self.unwritable())?;
            out.write_all(&whole.data)?;
            progress.add(whole.data.len());
            return Ok(());
        }
        let cols = t.shape.last().copied().unwrap_or(1);
        if t.is_empty() {
            return Ok(());
        }
        let row_bytes = t.dtype.bytes_for(cols).ok_or_else(|| self.unwritable())?;
        let rows = (PIECE / cols).max(1);
        let mut values = Vec::new();
        let mut encoded = Vec::new();
        for piece in t.data.chunks(rows * row_bytes) {
            values.resize(piece.len() / row_bytes * cols, 0.0);
            for (v, b) in values.chunks_exact_mut(cols).zip(piece.chunks_exact(row_bytes)) {
                block::decode(t.dtype, b, v);
            }
            if t.scale != 1.0 {
                values.iter_mut().for_each(|v| *v *= t.scale);
            }
            self.check_range(&values)?;
            encoded.clear();
            for row in values.chunks_exact(cols) {
                if !block::encode(self.dtype, row, &mut encoded) {
                    return Err(self.unwritable());
                }
            }
            out.write_all(&encoded)?;
            progress.add(encoded.len());
        }
        Ok(())
    }
}
