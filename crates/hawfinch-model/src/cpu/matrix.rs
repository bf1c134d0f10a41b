//! Weight matrices on the CPU: how they lie in memory, and products with them.

use std::array;
use std::sync::{Arc, Mutex};

use hawfinch_kernels::linear::columns::{self, Columns};
use hawfinch_kernels::panel::sparse::{self, Sparse};
use hawfinch_kernels::panel::{self, Activations, Panels};
use hawfinch_kernels::{DType, Isa, Real, Store, Then, Work, bf16, block, linear, run_here};

use super::Cpu;
use crate::checkpoint::{Layout, StoredTensor};
use crate::ops::Apply;
use crate::quantize::Quant;
use crate::{Error, Result};

/// Activations that are rounded on the calling thread: some microseconds.
const ROUNDED_HERE: usize = 1 << 13;

/// A weight on the CPU.
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    form: Form,
    /// Whether its inputs come out of relu².
    after_relu: bool,
}

enum Form {
    /// Row after row in the bytes of the file: a row is an output.
    Rows(Rows),
    /// Low-rank weights, in tiles.
    Columns(Columns),
    /// Quantised, repacked for the kernels.
    Panels(Panels),
    /// The same for inputs that are mostly zero.
    Sparse(Sparse),
    /// In bf16, repacked for the kernels, which take activations in bf16.
    Bf16(bf16::Panels),
}

/// Rows in whatever number format.
struct Rows {
    dtype: DType,
    scale: f32,
    data: Arc<Store>,
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
            Form::Rows(rows) => rows.data.bytes().len(),
            Form::Columns(tiles) => tiles.bytes(),
            Form::Panels(panels) => panels.bytes(),
            Form::Sparse(strips) => strips.bytes(),
            Form::Bf16(panels) => panels.bytes(),
        }
    }

    /// Rows of an embedding: `out` `[t, i]`.
    pub(super) fn look_up<F: Real>(&self, out: &mut [F], tokens: &[u32]) {
        match &self.form {
            Form::Rows(rows) => linear::embedding(out, tokens, self.view(rows)),
            _ => unreachable!("tables are kept in rows"),
        }
    }

    /// What activations are rounded to, for products that do that.
    fn rounding(&self) -> Option<RoundTo> {
        match &self.form {
            Form::Rows(_) | Form::Columns(_) => None,
            Form::Panels(w) => Some(RoundTo::Blocks(w.blocks())),
            Form::Sparse(w) => Some(RoundTo::Blocks(w.blocks())),
            Form::Bf16(_) => Some(RoundTo::Bf16),
        }
    }

    /// y = x Wᵀ as work, with activations already rounded where the form asks for it; `None` when there is nothing
    /// to multiply.
    fn product<'a, F: Real>(
        &'a self,
        (isa, threads): (Isa, usize),
        (y, then): (&'a mut [F], Then<'a, F>),
        x: &'a [F],
        a: Option<&'a Rounded>,
    ) -> Option<Product<'a, F>> {
        // Quantised weights are multiplied in f32 alone.
        let narrow = || match then {
            Then::Nothing => Then::Nothing,
            Then::ReluSquared => Then::ReluSquared,
            Then::Add(x) => Then::Add(only_f32(F::as_f32s(x))),
        };
        match (&self.form, a) {
            (Form::Rows(w), _) => {
                linear::product((isa, threads), y, x, self.view(w), then).map(Product::Rows)
            }
            (Form::Columns(w), _) => columns::product(isa, y, x, w, then).map(Product::Columns),
            (Form::Panels(w), Some(Rounded::Blocks(a))) => {
                panel::product(isa, only_f32(F::as_f32_slice(y)), w, a, narrow()).map(Product::Panels)
            }
            (Form::Sparse(w), Some(Rounded::Blocks(a))) => {
                let y = only_f32(F::as_f32_slice(y));
                sparse::product(isa, threads, y, w, a, narrow()).map(Product::Sparse)
            }
            (Form::Bf16(w), Some(Rounded::Bf16(a))) => {
                bf16::product(isa, only_f32(F::as_f32_slice(y)), w, a, narrow()).map(Product::Bf16)
            }
            _ => unreachable!("activations are rounded as the form asks for"),
        }
    }

    fn view<'a>(&self, rows: &'a Rows) -> linear::Matrix<'a> {
        linear::Matrix {
            dtype: rows.dtype,
            outputs: self.outputs,
            inputs: self.inputs,
            scale: rows.scale,
            data: rows.data.bytes(),
        }
    }

    /// Where its bytes lie.
    fn store(&self) -> &Arc<Store> {
        match &self.form {
            Form::Rows(rows) => &rows.data,
            Form::Columns(tiles) => tiles.store(),
            Form::Panels(panels) => panels.store(),
            Form::Sparse(strips) => strips.store(),
            Form::Bf16(panels) => panels.store(),
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
        let form = match self.as_packed(name, weight, apply) {
            Some(form) => form,
            None => self.form(name, weight.unpacked(), apply, outputs, inputs),
        };
        let matrix = Matrix { outputs, inputs, form, after_relu: apply == Apply::AfterRelu };
        // A token reads but a row of the table.
        if matrix.store().is_lent() && !matches!(apply, Apply::Table | Apply::Adapter) {
            self.lent.add(name, matrix.store());
        }
        Ok(matrix)
    }

    /// A weight that lies as the kernels want it for that use, as it lies.
    fn as_packed(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Option<Form> {
        let [a, b] = weight.shape[..] else { return None };
        let (dtype, scale) = (weight.dtype, weight.scale);
        let data = || Arc::new(Store::lent(weight.data.clone()));
        let in_f32 = F::as_f32s(&[]).is_some();
        match (weight.layout, apply) {
            (Layout::Tiles, Apply::Right) => Columns::packed(dtype, data(), b, a, scale).map(Form::Columns),
            (Layout::Panels, Apply::Linear | Apply::AfterRelu) if in_f32 && weight.is_bf16_panels() => {
                let stays = |q: Quant| q.type_for(name, dtype, b).is_none_or(|d| d == DType::BF16);
                self.quant.is_none_or(stays).then_some(())?;
                bf16::Panels::packed(data(), a, b, scale).map(Form::Bf16)
            }
            (Layout::Panels, Apply::Linear | Apply::AfterRelu) if in_f32 => {
                Panels::packed(dtype, data(), a, b, scale).map(Form::Panels)
            }
            (Layout::Strips { width }, Apply::AfterRelu) if in_f32 => {
                Sparse::packed(dtype, data(), a, b, scale, width).map(Form::Sparse)
            }
            _ => None,
        }
    }

    /// A weight in rows, repacked where that is faster.
    fn form(
        &self,
        name: &str,
        mut weight: StoredTensor,
        apply: Apply,
        outputs: usize,
        inputs: usize,
    ) -> Form {
        // Files that store them the other way round: turned once, so that they give the same bits as all others.
        if weight.transposed {
            let [a, b] = weight.shape[..] else { unreachable!("a matrix") };
            let (dtype, data) = linear::turned(weight.dtype, &weight.data, b, a);
            (weight.dtype, weight.data, weight.transposed) = (dtype, data.into(), false);
        }
        if apply == Apply::Right {
            if let Some(data) = narrowed(&weight) {
                (weight.dtype, weight.data) = (DType::BF16, data.into());
            }
            return Form::Columns(Columns::pack(weight.dtype, &weight.data, outputs, inputs, weight.scale));
        }
        let wish = self.quant.filter(|_| matches!(apply, Apply::Linear | Apply::AfterRelu));
        let wish = wish.and_then(|q| q.type_for(name, weight.dtype, inputs));
        if let Some(dtype) = wish.filter(|d| *d != weight.dtype) {
            (weight.dtype, weight.data) = (dtype, self.quantized(&weight, inputs, dtype).into());
        }
        // In f64 (checking) the blocks are decoded and activations keep their precision.
        let packs = F::as_f32s(&[]).is_some() && apply != Apply::Table && outputs > 0 && inputs > 0;
        let (pool, bytes, dtype, scale) = (self.pool(), &weight.data, weight.dtype, weight.scale);
        let packed = if !packs {
            None
        } else if wish == Some(DType::BF16) {
            Some(Form::Bf16(bf16::Panels::pack(pool, bytes, outputs, inputs, scale)))
        } else if apply == Apply::AfterRelu && sparse::has(dtype) {
            Sparse::pack(pool, dtype, bytes, outputs, inputs, scale).map(Form::Sparse)
        } else {
            Panels::pack(pool, dtype, bytes, outputs, inputs, scale).map(Form::Panels)
        };
        packed.unwrap_or_else(|| Form::Rows(Rows { dtype, scale, data: Arc::new(Store::lent(weight.data)) }))
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

    /// y = x Wᵀ, and what follows, for products that do not depend on each other, as one job of the threads.
    pub(super) fn multiply_all<const N: usize>(
        &self,
        ys: [(&mut [F], Then<'_, F>); N],
        products: [(&[F], &Matrix); N],
    ) {
        let isa = self.isa();
        if self.after_relu.is_on() {
            products.iter().filter(|(_, w)| w.after_relu).for_each(|(x, _)| self.after_relu.count(x));
        }
        // Products that round activations first do that.
        let mut scratch: [Option<Rounded>; N] =
            products.map(|(_, w)| w.rounding().map(|to| self.activations.take(to)));
        let mut rounded = scratch.iter_mut().zip(&products);
        let rounding = array::from_fn::<_, N, _>(|_| {
            let (a, (x, w)) = rounded.next()?;
            Some(a.as_mut()?.of(isa, only_f32(F::as_f32s(x)), w))
        });
        if products.iter().map(|(x, _)| x.len()).sum::<usize>() <= ROUNDED_HERE {
            run_here(&rounding);
        } else {
            self.pool().run_all(&rounding);
        }
        let mut operands = ys.into_iter().zip(products).zip(&scratch);
        let works = array::from_fn::<_, N, _>(|_| {
            let ((y, (x, w)), a) = operands.next()?;
            w.product((isa, self.threads()), y, x, a.as_ref())
        });
        self.order.next(self.pool(), &works);
        self.pool().run_all(&works);
        scratch.into_iter().flatten().for_each(|a| self.activations.give(a));
    }

    /// y = x Wᵀ, for any number of products that do not depend on each other, as one job of the threads. They are not among
    /// those whose order is learned: which there are differs from step to step.
    pub(super) fn multiply_each(&self, ys: Vec<&mut [F]>, products: &[(&[F], &Matrix)]) {
        let isa = self.isa();
        let rooms = products.iter().map(|(_, w)| w.rounding().map(|to| self.activations.take(to)));
        let mut scratch: Vec<Option<Rounded>> = rooms.collect();
        let rounding = scratch
            .iter_mut()
            .zip(products)
            .map(|(a, (x, w))| Some(a.as_mut()?.of(isa, only_f32(F::as_f32s(x)), w)));
        self.pool().run_all(&rounding.collect::<Vec<_>>());
        let operands = ys.into_iter().zip(products).zip(&scratch);
        let works = operands
            .map(|((y, (x, w)), a)| w.product((isa, self.threads()), (y, Then::Nothing), x, a.as_ref()));
        self.pool().run_all(&works.collect::<Vec<_>>());
        scratch.into_iter().flatten().for_each(|a| self.activations.give(a));
    }
}

/// The same numbers in half the bytes, where nothing is lost: GGUF files hold low-rank weights in f32 that were trained
/// and published in bf16.
fn narrowed(weight: &StoredTensor) -> Option<Vec<u8>> {
    let numbers = weight.data.chunks_exact(4);
    let fits = weight.dtype == DType::F32 && numbers.clone().all(|b| b[..2] == [0, 0]);
    fits.then(|| numbers.flat_map(|b| [b[2], b[3]]).collect())
}

/// What quantised weights are prepared for.
fn only_f32<T>(slice: Option<T>) -> T {
    slice.expect("such weights are made for f32 alone")
}

/// A product of any form.
enum Product<'a, F: Real> {
    Rows(linear::Product<'a, F>),
    Columns(columns::Product<'a, F>),
    Panels(panel::Product<'a>),
    Sparse(sparse::Product<'a>),
    Bf16(bf16::Product<'a>),
}

impl<F: Real> Product<'_, F> {
    fn work(&self) -> &dyn Work {
        match self {
            Product::Rows(p) => p,
            Product::Columns(p) => p,
            Product::Panels(p) => p,
            Product::Sparse(p) => p,
            Product::Bf16(p) => p,
        }
    }
}

impl<F: Real> Work for Product<'_, F> {
    fn chunks(&self) -> usize {
        self.work().chunks()
    }
    unsafe fn chunk(&self, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.work().chunk(n) }
    }
    fn reads(&self, n: usize) -> &[u8] {
        self.work().reads(n)
    }
}

/// What a form rounds activations to.
#[derive(Clone, Copy)]
enum RoundTo {
    /// 8 bits, in so many blocks a row.
    Blocks(usize),
    Bf16,
}

/// Activations that are rounded.
enum Rounded {
    Blocks(Activations),
    Bf16(bf16::Tokens),
}

impl Rounded {
    /// `x` `[t, i]` as work to be done, for products with that weight.
    fn of<'a>(&'a mut self, isa: Isa, x: &'a [f32], w: &Matrix) -> ToRound<'a> {
        match (self, w.rounding()) {
            (Rounded::Blocks(a), Some(RoundTo::Blocks(n))) => ToRound::Blocks(a.of(isa, x, w.inputs, n)),
            (Rounded::Bf16(a), Some(RoundTo::Bf16)) => ToRound::Bf16(a.of(isa, x, w.inputs)),
            _ => unreachable!("taken for that weight"),
        }
    }
}

/// Activations to be rounded.
enum ToRound<'a> {
    Blocks(panel::Quantizing<'a>),
    Bf16(bf16::Rounding<'a>),
}

impl Work for ToRound<'_> {
    fn chunks(&self) -> usize {
        match self {
            ToRound::Blocks(work) => work.chunks(),
            ToRound::Bf16(work) => work.chunks(),
        }
    }
    unsafe fn chunk(&self, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                ToRound::Blocks(work) => work.chunk(n),
                ToRound::Bf16(work) => work.chunk(n),
            }
        }
    }
}

/// Scratch for activations that are rounded, used again and again.
#[derive(Default)]
pub(super) struct Scratch {
    blocks: Mutex<Vec<Activations>>,
    bf16: Mutex<Vec<bf16::Tokens>>,
}

impl Scratch {
    fn take(&self, to: RoundTo) -> Rounded {
        fn last<T: Default>(of: &Mutex<Vec<T>>) -> T {
            of.lock().unwrap_or_else(|e| e.into_inner()).pop().unwrap_or_default()
        }
        match to {
            RoundTo::Blocks(_) => Rounded::Blocks(last(&self.blocks)),
            RoundTo::Bf16 => Rounded::Bf16(last(&self.bf16)),
        }
    }

    fn give(&self, a: Rounded) {
        match a {
            Rounded::Blocks(a) => self.blocks.lock().unwrap_or_else(|e| e.into_inner()).push(a),
            Rounded::Bf16(a) => self.bf16.lock().unwrap_or_else(|e| e.into_inner()).push(a),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_rank_weights_are_narrowed_only_where_nothing_is_lost() {
        let cpu = Cpu::<f32>::new(1);
        let exact = [1.5f32, -0.0, 2f32.powi(127), f32::MIN_POSITIVE, -2.0, 0.25];
        let prepared = |values: &[f32]| {
            cpu.prepare("w", &StoredTensor::from_f32(&[3, 2], values), Apply::Right).unwrap().bytes()
        };
        assert_eq!(prepared(&exact), 12);
        assert_eq!(prepared(&exact.map(|v| v * (1.0 + f32::EPSILON))), 24);
        let bytes = narrowed(&StoredTensor::from_f32(&[3, 2], &exact)).unwrap();
        let mut back = [0f32; 6];
        block::decode(DType::BF16, &bytes, &mut back);
        assert_eq!(back.map(f32::to_bits), exact.map(f32::to_bits));
    }
}
