//! Weight matrices on the CPU: how they lie in memory, and products with them.

use hawfinch_kernels::panel::sparse::{self, Sparse};
use hawfinch_kernels::panel::{self, Activations, Panels};
use hawfinch_kernels::{DType, Real, block, linear};

use super::Cpu;
use crate::checkpoint::StoredTensor;
use crate::ops::Apply;
use crate::{Error, Result};

/// A weight on the CPU.
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    form: Form,
}

enum Form {
    /// Row after row in the bytes of the file: a row is an output.
    Rows(StoredTensor),
    /// Low-rank weights: a row is an input.
    Columns(StoredTensor),
    /// Quantised, repacked for the kernels.
    Panels(Panels),
    /// The same for inputs that are mostly zero.
    Sparse(Sparse),
}

impl Matrix {
    /// o
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// i
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes that a product with it reads.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Rows(weight) | Form::Columns(weight) => weight.data.len(),
            Form::Panels(panels) => panels.bytes(),
            Form::Sparse(strips) => strips.bytes(),
        }
    }

    /// Rows of an embedding: `out` `[t, i]`.
    pub(super) fn look_up<F: Real>(&self, out: &mut [F], tokens: &[u32]) {
        match &self.form {
            Form::Rows(weight) => linear::embedding(out, tokens, self.view(weight)),
            _ => unreachable!("tables are kept in rows"),
        }
    }

    fn view<'a>(&self, weight: &'a StoredTensor) -> linear::Matrix<'a> {
        linear::Matrix {
            dtype: weight.dtype,
            outputs: self.outputs,
            inputs: self.inputs,
            scale: weight.scale,
            data: &weight.data,
        }
    }
}

impl<F: Real> Cpu<F> {
    /// [`crate::ops::Ops::matrix`]
    pub(super) fn prepare(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Result<Matrix> {
        let [a, b] = weight.shape[..] else {
            return Err(Error::Shape {
                name: name.into(),
                found: weight.shape.clone(),
                expected: "two axes".into(),
            });
        };
        if !weight.dtype.is_float() && !weight.dtype.is_quantized() {
            return Err(Error::Invalid(format!(
                "tensor `{name}` holds {} numbers; weights are floats or quantised blocks",
                weight.dtype
            )));
        }
        debug_assert!(weight.dtype != DType::Bool);
        let (outputs, inputs) = if apply == Apply::Right { (b, a) } else { (a, b) };
        let mut weight = weight.clone();
        // Files that store them the other way round: turned once, so that they give the same bits as all others.
        if weight.transposed {
            let (dtype, data) = linear::turned(weight.dtype, &weight.data, b, a);
            (weight.dtype, weight.data, weight.transposed) = (dtype, data.into(), false);
        }
        if apply == Apply::Right {
            return Ok(Matrix { outputs, inputs, form: Form::Columns(weight) });
        }
        if matches!(apply, Apply::Linear | Apply::AfterRelu)
            && let Some(dtype) = self.quant.and_then(|q| q.block_type(name, weight.dtype, inputs))
        {
            (weight.dtype, weight.data) = (dtype, self.quantized(&weight, inputs, dtype).into());
        }
        // In f64 (checking) the blocks are decoded and activations keep their precision.
        let packs = F::as_f32s(&[]).is_some() && apply != Apply::Table && outputs > 0 && inputs > 0;
        let (pool, bytes) = (self.pool(), &weight.data);
        let packed = if !packs {
            None
        } else if apply == Apply::AfterRelu {
            Sparse::pack(pool, weight.dtype, bytes, outputs, inputs, weight.scale).map(Form::Sparse)
        } else {
            Panels::pack(pool, weight.dtype, bytes, outputs, inputs, weight.scale).map(Form::Panels)
        };
        let form = packed.unwrap_or(Form::Rows(weight));
        Ok(Matrix { outputs, inputs, form })
    }

    /// Rows of floats as blocks of `dtype`, on all threads.
    pub(crate) fn quantized(&self, weight: &StoredTensor, inputs: usize, dtype: DType) -> Vec<u8> {
        let from = weight.dtype.bytes_for(inputs).expect("a float type");
        let to = dtype.bytes_for(inputs).expect("whole blocks");
        let mut out = vec![0u8; weight.data.len() / from * to];
        self.pool().split(&mut out, to, 8, |first, part| {
            let (mut row, mut blocks) = (vec![0f32; inputs], Vec::with_capacity(to));
            for (out, bytes) in part.chunks_exact_mut(to).zip(weight.data.chunks_exact(from).skip(first)) {
                block::decode(weight.dtype, bytes, &mut row);
                blocks.clear();
                assert!(block::encode(dtype, &row, &mut blocks), "{dtype} can be written");
                out.copy_from_slice(&blocks);
            }
        });
        out
    }

    /// y = x Wᵀ
    pub(super) fn multiply(&self, y: &mut [F], x: &[F], w: &Matrix) {
        match &w.form {
            Form::Rows(weight) => linear::linear(self.isa(), self.pool(), y, x, w.view(weight)),
            Form::Columns(weight) => {
                linear::columns::linear(self.isa(), self.pool(), y, x, w.view(weight));
            }
            Form::Panels(w) => {
                self.in_8_bits(y, x, |y, x, a| panel::linear(self.isa(), self.pool(), y, x, w, a))
            }
            Form::Sparse(w) => {
                self.in_8_bits(y, x, |y, x, a| sparse::linear(self.isa(), self.pool(), y, x, w, a))
            }
        }
    }

    /// A product that rounds activations to 8 bits.
    fn in_8_bits(&self, y: &mut [F], x: &[F], product: impl FnOnce(&mut [f32], &[f32], &mut Activations)) {
        let (Some(y), Some(x)) = (F::as_f32_slice(y), F::as_f32s(x)) else {
            unreachable!("such weights are made for f32 alone")
        };
        product(y, x, &mut self.activations.lock().unwrap_or_else(|e| e.into_inner()));
    }
}
