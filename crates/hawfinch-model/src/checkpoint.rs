//! A checkpoint as it lies in its file: named tensors, still in the file's own bytes, under official
//! names and shapes whatever the format. Readers in [`crate::format`] make it, the architectures and
//! the writers use it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hawfinch_kernels::linear::columns::Columns;
use hawfinch_kernels::panel::sparse::{self, Sparse};
use hawfinch_kernels::panel::{self, Panels};
use hawfinch_kernels::{DType, Store, bf16, block};
use indexmap::IndexMap;

use crate::format::packed::Packed;
use crate::{Error, Result};

/// In which order the bytes of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Layout {
    /// Row after row.
    #[default]
    Rows,
    /// `[out, in]` in [`Panels`], or of bf16 in [`bf16::Panels`].
    Panels,
    /// `[out, in]` in strips of so many outputs ([`Sparse`]).
    Strips {
        /// Outputs of a strip.
        width: usize,
    },
    /// `[in, out]`, or each of a stack of such matrices, in the tiles of [`Columns`].
    Tiles,
}

impl Layout {
    /// `rows`, `panels`, `strips`, `tiles`: in packed files and as printed.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Rows => "rows",
            Layout::Panels => "panels",
            Layout::Strips { .. } => "strips",
            Layout::Tiles => "tiles",
        }
    }
}

/// One tensor, in the bytes of its file (memory-mapped where the format allows).
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Number format of the bytes.
    pub dtype: DType,
    /// Logical shape, as in official checkpoints (`[out, in]` for linear weights).
    pub shape: Vec<usize>,
    /// When true the bytes hold the last two axes swapped (`shape` stays logical): web-rwkv and GGUF
    /// store the low-rank matrices so. Always false for fewer than two axes.
    pub transposed: bool,
    /// Every stored number is to be multiplied by this (a power of two; 1 for nearly all files). GGUF
    /// files of RWKV-6 hold output matrices divided by 2^(layer/rescale).
    pub scale: f32,
    /// How the bytes lie: row-major in every file but packed ones, where the kernels take them as they lie.
    pub layout: Layout,
    /// Exactly as many bytes as dtype, shape and layout ask for, without gaps. Little-endian.
    pub data: Bytes,
}

impl StoredTensor {
    /// A tensor in plain row-major order; `None` when the bytes are not as many as dtype and shape need.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Option<Self> {
        let t = StoredTensor { dtype, shape, transposed: false, scale: 1.0, layout: Layout::Rows, data };
        (t.expected_bytes() == Some(t.data.len())).then_some(t)
    }

    /// f32 values in row-major order.
    ///
    /// # Panics
    /// When `values` is not as long as the shape asks for.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        let mut data = Vec::new();
        block::encode(DType::F32, values, &mut data);
        Self::new(DType::F32, shape.to_vec(), data.into()).expect("as many values as the shape says")
    }

    /// Bytes that dtype, shape and layout ask for; `None` on overflow, when a row is not whole blocks or the layout has
    /// no such tensors.
    pub fn expected_bytes(&self) -> Option<usize> {
        let (rows, cols) = self.stored_rows_cols()?;
        match (self.layout, &self.shape[..]) {
            (Layout::Rows, _) | (Layout::Tiles, [.., _, _]) => {}
            (Layout::Panels, &[o, i]) if self.is_bf16_panels() => return bf16::bytes_for(o, i),
            (Layout::Panels, &[o, i]) => return panel::bytes_for(self.dtype, o, i),
            (Layout::Strips { width }, &[o, i]) => return sparse::bytes_for(self.dtype, o, i, width),
            _ => return None,
        }
        self.dtype.bytes_for(cols)?.checked_mul(rows)
    }

    /// Whether it lies in [`bf16::Panels`], for activations in bf16.
    pub fn is_bf16_panels(&self) -> bool {
        self.layout == Layout::Panels && self.dtype == DType::BF16
    }

    /// Numbers in the tensor (1 for a scalar).
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when an axis is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape without axes of length 1.
    pub fn squeezed(&self) -> Vec<usize> {
        self.shape.iter().copied().filter(|&d| d != 1).collect()
    }

    /// (rows, numbers in a row) of the bytes as stored; `None` on overflow.
    fn stored_rows_cols(&self) -> Option<(usize, usize)> {
        // Axes of length 0 hide the others' product until the axes are put in another order.
        self.shape.iter().filter(|&&d| d != 0).try_fold(1usize, |a, &d| a.checked_mul(d))?;
        let total: usize = self.shape.iter().product();
        let cols = match (self.shape.len(), self.transposed) {
            (0, _) => 1,
            (n, true) if n >= 2 => self.shape[n - 2],
            (n, _) => self.shape[n - 1],
        };
        Some((total.checked_div(cols).unwrap_or(0), cols))
    }

    /// The tensor with its bytes in rows: itself, without a copy, where they are.
    ///
    /// # Panics
    /// When the bytes are fewer than the shape asks for.
    pub fn unpacked(&self) -> StoredTensor {
        let (dtype, scale) = (self.dtype, self.scale);
        let lent = |data: Bytes| Arc::new(Store::lent(data));
        let rows = match (self.layout, &self.shape[..]) {
            (Layout::Panels, &[o, i]) if self.is_bf16_panels() => {
                let panels = bf16::Panels::packed(lent(self.data.clone()), o, i, scale);
                panels.expect("checked when read").unpack()
            }
            (Layout::Panels, &[o, i]) => Panels::packed(dtype, lent(self.data.clone()), o, i, scale)
                .expect("checked when read")
                .unpack(),
            (Layout::Strips { width }, &[o, i]) => {
                let strips = Sparse::packed(dtype, lent(self.data.clone()), o, i, scale, width);
                strips.expect("checked when read").unpack()
            }
            (Layout::Tiles, &[.., i, o]) => {
                let bytes = dtype.bytes_for(o).expect("checked when read") * i;
                let matrices = self.data.len().checked_div(bytes).unwrap_or(0);
                let matrix = |n| {
                    let data = self.data.slice(n * bytes..(n + 1) * bytes);
                    Columns::packed(dtype, lent(data), o, i, scale).expect("as many bytes").unpack()
                };
                (0..matrices).flat_map(matrix).collect()
            }
            _ => return self.clone(),
        };
        StoredTensor { layout: Layout::Rows, data: rows.into(), ..self.clone() }
    }

    /// All values in logical row-major order, scale applied, rounded to f32.
    pub fn to_f32(&self) -> Vec<f32> {
        if self.layout != Layout::Rows {
            return self.unpacked().to_f32();
        }
        let mut out = vec![0.0; self.len()];
        let (rows, cols) = self.stored_rows_cols().expect("checked when read");
        if rows * cols == 0 {
            return out;
        }
        let row_bytes = self.dtype.bytes_for(cols).expect("checked when read");
        for (o, b) in out.chunks_exact_mut(cols).zip(self.data.chunks_exact(row_bytes)) {
            block::decode(self.dtype, b, o);
        }
        if self.scale != 1.0 {
            out.iter_mut().for_each(|v| *v *= self.scale);
        }
        if self.transposed { transpose_last_two(&out, &self.shape) } else { out }
    }

    /// All values in logical row-major order as f64 (exact for every float type but large I64).
    pub fn to_f64(&self) -> Vec<f64> {
        if self.dtype == DType::F64 && self.layout == Layout::Rows {
            let scale = f64::from(self.scale);
            let values =
                self.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")) * scale);
            let values: Vec<f64> = values.collect();
            return if self.transposed { transpose_last_two(&values, &self.shape) } else { values };
        }
        self.to_f32().into_iter().map(f64::from).collect()
    }

    /// The tensor re-encoded as `dtype` in plain logical order; itself, without a copy, when it is that
    /// already. `None` when `dtype` cannot be written or its blocks do not divide a row.
    pub fn converted(&self, dtype: DType) -> Option<StoredTensor> {
        if self.layout != Layout::Rows {
            return self.unpacked().converted(dtype);
        }
        if self.dtype == dtype && !self.transposed && self.scale == 1.0 {
            return Some(self.clone());
        }
        let cols = self.shape.last().copied().unwrap_or(1);
        dtype.bytes_for(cols)?;
        let mut data = Vec::new();
        if dtype == DType::F64 {
            self.to_f64().iter().for_each(|v| data.extend(v.to_le_bytes()));
        } else if cols > 0 {
            for row in self.to_f32().chunks(cols) {
                if !block::encode(dtype, row, &mut data) {
                    return None;
                }
            }
        }
        StoredTensor::new(dtype, self.shape.clone(), data.into())
    }

    /// Entry `z` of the first axis, without copying but of two packed axes.
    ///
    /// # Panics
    /// When there is no such entry, or the first axis is one of two that are swapped.
    pub fn index(&self, z: usize) -> StoredTensor {
        if self.layout != Layout::Rows && self.shape.len() <= 2 {
            return self.unpacked().index(z);
        }
        let in_order = !self.transposed && self.layout == Layout::Rows;
        assert!(
            in_order || self.shape.len() > 2,
            "rows of a transposed or packed matrix do not lie together"
        );
        let len = self.data.len() / self.shape[0];
        let transposed = self.transposed;
        let data = self.data.slice(z * len..(z + 1) * len);
        StoredTensor {
            dtype: self.dtype,
            shape: self.shape[1..].to_vec(),
            transposed,
            scale: self.scale,
            layout: self.layout,
            data,
        }
    }

    /// The same bytes (packed: those of its rows) under another shape of as many numbers.
    ///
    /// # Panics
    /// When the numbers of numbers differ.
    pub fn reshaped(&self, shape: Vec<usize>) -> StoredTensor {
        assert_eq!(shape.iter().product::<usize>(), self.len());
        if self.layout != Layout::Rows {
            return StoredTensor { shape, ..self.unpacked() };
        }
        StoredTensor { shape, ..self.clone() }
    }

    /// Place (flat index of the logical tensor) and value of the first NaN or infinity in the file's order, if
    /// there is one. Decodes a row at a time: no copy of the tensor is made where it lies in
    /// rows.
    pub fn first_non_finite(&self) -> Option<(usize, f32)> {
        if self.layout != Layout::Rows {
            return self.unpacked().first_non_finite();
        }
        let (rows, cols) = self.stored_rows_cols()?;
        if rows * cols == 0 {
            return None;
        }
        let row_bytes = self.dtype.bytes_for(cols)?;
        let mut row = vec![0.0; cols];
        for (r, bytes) in self.data.chunks_exact(row_bytes).enumerate() {
            block::decode(self.dtype, bytes, &mut row);
            if let Some(c) = row.iter().position(|v| !v.is_finite()) {
                // Stored [.., b, a] is logical [.., a, b].
                let b = self.shape.last().copied().unwrap_or(1);
                let at = if self.transposed { r / b * b * cols + c * b + r % b } else { r * cols + c };
                return Some((at, row[c]));
            }
        }
        None
    }
}

/// Swaps the last two axes of `values`, whose logical (swapped-to) shape is `shape`.
fn transpose_last_two<T: Copy + Default>(values: &[T], shape: &[usize]) -> Vec<T> {
    let (a, b) = (shape[shape.len() - 2], shape[shape.len() - 1]); // logical [.., a, b], stored [.., b, a]
    let mut out = vec![T::default(); values.len()];
    for (o, v) in out.chunks_exact_mut(a * b).zip(values.chunks_exact(a * b)) {
        for i in 0..a {
            for j in 0..b {
                o[i * b + j] = v[j * a + i];
            }
        }
    }
    out
}

/// In which form the file holds the decays of the versions whose decay is a plain parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DecayForm {
    /// As trained: `time_decay`.
    #[default]
    Raw,
    /// rwkv.cpp: v4 holds `-exp(time_decay)`, v5 holds `exp(-exp(time_decay))`; v6 and v7 are raw. For
    /// v5.0/5.1 files with `time_first` the bonus is exponentiated too.
    Exponentiated,
}

/// The file format a checkpoint came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileFormat {
    /// PyTorch zip pickle.
    Pth,
    /// safetensors with official names, or ours.
    Safetensors,
    /// safetensors with web-rwkv / ai00 names and transposes (`.st`).
    WebRwkv,
    /// Hugging Face folder or file with v4, v5, v6 or FLA v7 names.
    HuggingFace,
    /// GGUF.
    Gguf,
    /// rwkv.cpp's ggml `.bin`.
    Ggml,
    /// Weights as the kernels want them, in a safetensors file of ours.
    Packed,
    /// Made in memory.
    Memory,
}

impl FileFormat {
    /// As printed by `inspect`.
    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Pth => "PyTorch .pth",
            FileFormat::Safetensors => "safetensors",
            FileFormat::WebRwkv => "safetensors (web-rwkv names)",
            FileFormat::HuggingFace => "Hugging Face safetensors",
            FileFormat::Gguf => "GGUF",
            FileFormat::Ggml => "rwkv.cpp ggml .bin",
            FileFormat::Packed => "packed safetensors",
            FileFormat::Memory => "memory",
        }
    }
}

/// Named tensors of one model (or state, or LoRA) file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Official name → tensor, in file order.
    pub tensors: IndexMap<String, StoredTensor>,
    /// String metadata of the file (safetensors `__metadata__`, GGUF key-values, our `.pth` record).
    /// Our own keys start with `hawfinch.`; see [`crate::metadata`].
    pub metadata: BTreeMap<String, String>,
    /// Where it came from.
    pub path: PathBuf,
    /// The files that were read for it: the one at `path`, or those of the folder there; none when it was
    /// made in memory. What is written must not go to one of these.
    pub files: Vec<PathBuf>,
    /// In which format.
    pub format: FileFormat,
    /// Form of the decays.
    pub decay_form: DecayForm,
    /// Group-norm epsilon that this kind of file implies, if not the official 64e-5.
    pub group_norm_eps: Option<f32>,
    /// Bytes of the file(s) on disk.
    pub file_bytes: u64,
    /// The packed file that the tensors lie in, with their checksums.
    pub packed: Option<Arc<Packed>>,
}

impl Checkpoint {
    /// An empty checkpoint of a format.
    pub fn new(path: impl AsRef<Path>, format: FileFormat) -> Self {
        Checkpoint {
            tensors: IndexMap::new(),
            metadata: BTreeMap::new(),
            path: path.as_ref().into(),
            files: Vec::new(),
            format,
            decay_form: DecayForm::Raw,
            group_norm_eps: None,
            file_bytes: 0,
            packed: None,
        }
    }

    /// The tensor of that official name.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// Adds a tensor; two of one name are an error of the file.
    pub fn insert(&mut self, name: impl Into<String>, tensor: StoredTensor) -> Result<()> {
        let name = name.into();
        if self.tensors.contains_key(&name) {
            return Err(Error::damaged(&self.path, format!("it holds two tensors named `{name}`")));
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// The checkpoint without packed low-rank weights, which writers turn; they are a few percent of a model. (Panels and
    /// strips are unpacked one by one as they are written.)
    pub(crate) fn in_rows(&self) -> Checkpoint {
        let mut ckpt = self.clone();
        for tensor in ckpt.tensors.values_mut().filter(|t| t.layout == Layout::Tiles) {
            *tensor = tensor.unpacked();
        }
        ckpt
    }

    /// With matrices that lie in panels of bf16 in rows again: such a model is computed with activations as they are.
    pub fn with_floats_in_rows(mut self) -> Checkpoint {
        for tensor in self.tensors.values_mut().filter(|t| t.is_bf16_panels()) {
            *tensor = tensor.unpacked();
        }
        self
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_tensor_reads_as_its_logical_self() {
        let mut t = StoredTensor::from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
        t.shape = vec![3, 2];
        t.transposed = true; // bytes are rows of 3: logical [3, 2]
        assert_eq!(t.to_f32(), [1., 4., 2., 5., 3., 6.]);
        assert_eq!(t.expected_bytes(), Some(24));
        t.scale = 2.0;
        assert_eq!(t.converted(DType::F16).unwrap().to_f32(), [2., 8., 4., 10., 6., 12.]);
    }

    #[test]
    fn a_value_that_is_not_finite_is_found_where_it_is() {
        let mut values = vec![0.0; 24];
        values[17] = f32::NAN; // stored [2, 4, 3] at [1, 1, 2]
        let mut t = StoredTensor::from_f32(&[2, 4, 3], &values);
        assert_eq!(t.first_non_finite().unwrap().0, 17);
        t.shape = vec![2, 3, 4];
        t.transposed = true; // logical [1, 2, 1]
        assert_eq!(t.first_non_finite().unwrap().0, 12 + 2 * 4 + 1);
        assert!(t.to_f32()[12 + 2 * 4 + 1].is_nan());
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert!(StoredTensor::new(DType::F32, vec![usize::MAX, 2], Bytes::new()).is_none());
        assert!(StoredTensor::new(DType::F32, vec![2], Bytes::from_static(&[0; 7])).is_none());
        assert!(StoredTensor::new(DType::F32, vec![0, 5], Bytes::new()).is_some());
        assert!(StoredTensor::new(DType::F32, vec![usize::MAX, 0, 2], Bytes::new()).is_none());
    }
}
