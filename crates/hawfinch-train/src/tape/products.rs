//! Products with weight matrices.

use hawfinch_kernels::Real;
use hawfinch_kernels::gemm::{Into, View, gemm};
use hawfinch_model::cpu::Tensor;
use hawfinch_model::ops::{Apply, Weight};

use super::elements::own;
use super::{Source, Tape, Var};

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
    }
}

impl<F: Real> Tape<F> {
    pub(super) fn product(&self, x: &Var<F>, w: &Matrix) -> Var<F> {
        let (w, of_x, x) = (*w, self.source(x), self.value(x));
        if w.after_relu {
            self.look_at_channels(w.parameter, &x);
        }
        let t = x.rows();
        let parameters = self.parameters();
        let p = &parameters.list()[w.parameter];
        let of_w = if p.is_trained() { Source::Parameter(w.parameter) } else { Source::Constant };
        let (isa, pool) = (self.cpu.isa(), self.cpu.pool());
        let y = self.cpu.make(t, w.outputs, |y| {
            let x = View::new(x.data(), t, w.inputs);
            gemm(isa, pool, self.precision, y, Into::Overwrite, x, w.view(p.value()).transposed());
        });
        drop(parameters);
        self.record_one(y, &[of_x, of_w], move |tape, g, d_y: Tensor<F>| {
            let d_y = View::new(d_y.data(), t, w.outputs);
            if of_x != Source::Constant {
                let mut d_x = tape.cpu.make(t, w.inputs, |_| {});
                let parameters = tape.parameters();
                let weight = w.view(parameters.list()[w.parameter].value());
                gemm(
                    tape.cpu.isa(),
                    tape.cpu.pool(),
                    tape.precision,
                    own(&mut d_x),
                    Into::Overwrite,
                    d_y,
                    weight,
                );
                drop(parameters);
                g.add(tape, of_x, d_x);
            }
            if of_w != Source::Constant {
                w.add_gradient(tape, d_y, View::new(x.data(), t, w.inputs));
            }
        })
    }
}
