//! Products with weight matrices.

use hawfinch_kernels::Real;
use hawfinch_kernels::block;
use hawfinch_kernels::gemm::{Into, View, gemm, gemm_strided};
use hawfinch_model::checkpoint::StoredTensor;
use hawfinch_model::cpu::Tensor;
use hawfinch_model::ops::{Apply, Weight};

use std::ops::Range;

use super::elements::own;
use super::{Source, Tape, Var};

/// Numbers of a stored matrix that are decoded at a time: 8 MB of f32.
const DECODED: usize = 1 << 21;
/// Rows that are decoded at a time are a multiple of this: the length of the blocks that sums are made of.
const ROWS: usize = 512;

/// A weight matrix: which parameter it is, or which part of one.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub(super) parameter: usize,
    /// Where its numbers begin in the parameter.
    at: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Whether it lies `[in, out]`.
    right: bool,
    /// Whether it is applied to what relu² gives.
    after_relu: bool,
}

impl Weight for Matrix {
    fn bytes(&self) -> usize {
        self.outputs * self.inputs * 4
    }
}

impl Matrix {
    /// The matrix of these two axes that begins at number `at` of a parameter.
    pub(super) fn new(parameter: usize, at: usize, [rows, columns]: [usize; 2], apply: Apply) -> Self {
        let right = apply == Apply::Right;
        let (outputs, inputs) = if right { (columns, rows) } else { (rows, columns) };
        Matrix { parameter, at, outputs, inputs, right, after_relu: apply == Apply::AfterRelu }
    }

    /// Of all numbers of the parameter, those of this matrix as `[out, in]`.
    pub(super) fn view<'a, F: Real>(&self, all: &'a [F]) -> View<'a, F> {
        let own = &all[self.at..self.at + self.outputs * self.inputs];
        match self.right {
            true => View::new(own, self.inputs, self.outputs).transposed(),
            false => View::new(own, self.outputs, self.inputs),
        }
    }

    /// The same numbers to change, as they lie.
    fn numbers<'a, F>(&self, all: &'a mut [F]) -> &'a mut [F] {
        &mut all[self.at..self.at + self.outputs * self.inputs]
    }

    /// Adds `d_yᵀ x` to the gradient: `d_y` `[t, out]`, `x` `[t, in]`.
    pub(super) fn add_gradient<F: Real>(&self, tape: &Tape<F>, d_y: View<'_, F>, x: View<'_, F>) {
        let mut parameters = tape.parameters_mut();
        let gradient = self.numbers(parameters.list_mut()[self.parameter].gradient_mut());
        let (a, b) = if self.right { (x, d_y) } else { (d_y, x) };
        gemm(tape.cpu.isa(), tape.cpu.pool(), tape.precision, gradient, Into::Add, a.transposed(), b);
        parameters.list_mut()[self.parameter].clear_kept();
    }
}

/// Decodes rows of a matrix that lies as its file has it: `[rows, columns]` numbers from row `first` on.
pub(super) fn decode_rows<F: Real>(stored: &StoredTensor, first: usize, columns: usize, out: &mut [F]) {
    let bytes = stored.dtype.bytes_for(columns).expect("checked when read");
    let rows = stored.data[first * bytes..].chunks_exact(bytes);
    let scale = |row: &mut [f32]| {
        if stored.scale != 1.0 {
            row.iter_mut().for_each(|v| *v *= stored.scale);
        }
    };
    match F::as_f32_slice(out) {
        Some(out) => {
            for (out, row) in out.chunks_exact_mut(columns).zip(rows) {
                block::decode(stored.dtype, row, out);
                scale(out);
            }
        }
        None => {
            let mut narrow = vec![0.0; columns];
            for (out, row) in out.chunks_exact_mut(columns).zip(rows) {
                block::decode(stored.dtype, row, &mut narrow);
                scale(&mut narrow);
                out.iter_mut().zip(&narrow).for_each(|(to, v)| *to = F::from_f32(*v));
            }
        }
    }
}

impl<F: Real> Tape<F> {
    /// Calls `with` for ranges of outputs, in order, and the rows `[outputs, inputs]` of the stored matrix that make them.
    fn decoded(&self, w: &Matrix, stored: &StoredTensor, mut with: impl FnMut(Range<usize>, View<'_, F>)) {
        // Low-rank matrices lie `[in, out]` and are small.
        let (rows, columns) = if w.right { (w.inputs, w.outputs) } else { (w.outputs, w.inputs) };
        let step = if w.right { rows } else { (DECODED / columns / ROWS * ROWS).max(ROWS) };
        let first = w.at / columns;
        for from in (0..rows).step_by(step) {
            let some = from..rows.min(from + step);
            let numbers = self.by_rows(some.len(), columns, |at, out| {
                decode_rows(stored, first + some.start + at.start / columns, columns, out);
            });
            let view = View::new(numbers.data(), some.len(), columns);
            if w.right { with(0..w.outputs, view.transposed()) } else { with(some, view) }
        }
    }

    /// `y = x Wᵀ`: `x` `[t, in]`, `y` `[t, out]`.
    pub(super) fn forward_product(&self, y: &mut [F], x: View<'_, F>, w: &Matrix) {
        let (isa, pool, precision) = (self.cpu.isa(), self.cpu.pool(), self.precision);
        let parameters = self.parameters();
        let p = &parameters.list()[w.parameter];
        match p.stored() {
            None => gemm(isa, pool, precision, y, Into::Overwrite, x, w.view(p.value()).transposed()),
            Some(stored) => self.decoded(w, stored, |some, rows| {
                let y = &mut y[some.start..];
                gemm_strided(isa, pool, precision, y, w.outputs, Into::Overwrite, x, rows.transposed());
            }),
        }
    }

    /// `d_x = d_y W`: `d_y` `[t, out]`, `d_x` `[t, in]`.
    pub(super) fn backward_product(&self, d_x: &mut [F], d_y: View<'_, F>, w: &Matrix) {
        let (isa, pool, precision) = (self.cpu.isa(), self.cpu.pool(), self.precision);
        let parameters = self.parameters();
        let p = &parameters.list()[w.parameter];
        match p.stored() {
            None => gemm(isa, pool, precision, d_x, Into::Overwrite, d_y, w.view(p.value())),
            Some(stored) => self.decoded(w, stored, |some, rows| {
                let into = if some.start == 0 { Into::Overwrite } else { Into::Add };
                gemm(isa, pool, precision, d_x, into, d_y.columns(some), rows);
            }),
        }
    }

    pub(super) fn product(&self, x: &Var<F>, w: &Matrix) -> Var<F> {
        let (w, of_x, x) = (*w, self.source(x), self.value(x));
        if w.after_relu {
            self.look_at_channels(w.parameter, &x);
        }
        let t = x.rows();
        let trained = self.parameters().list()[w.parameter].is_trained();
        let of_w = if trained { Source::Parameter(w.parameter) } else { Source::Constant };
        let y = self.cpu.make(t, w.outputs, |y| {
            self.forward_product(y, View::new(x.data(), t, w.inputs), &w);
        });
        // What went in is needed for the weight alone.
        let x = (of_w != Source::Constant).then_some(x);
        self.record_one(y, &[of_x, of_w], move |tape, g, d_y: Tensor<F>| {
            let d_y = View::new(d_y.data(), t, w.outputs);
            if of_x != Source::Constant {
                let mut d_x = tape.cpu.make(t, w.inputs, |_| {});
                tape.backward_product(own(&mut d_x), d_y, &w);
                g.add(tape, of_x, d_x);
            }
            if let Some(x) = x {
                w.add_gradient(tape, d_y, View::new(x.data(), t, w.inputs));
            }
        })
    }
}
