//! The contract of the operations, on the tape.

use hawfinch_kernels::Real;
use hawfinch_kernels::elementwise::{Binary, Toward, Unary};
use hawfinch_model::checkpoint::StoredTensor;
use hawfinch_model::ops::{Apply, Batch, LoraRows, Norm, Ops, Reading};
use hawfinch_model::{Error, Result, State, StateLayout};

use super::{Matrix, States, Tape, Var};

impl<F: Real> Tape<F> {
    fn parameter(&self, name: &str) -> Result<usize> {
        let no_such = || Error::Invalid(format!("`{name}` is not among the parameters in training"));
        self.parameters().find(name).ok_or_else(no_such)
    }
}

impl<F: Real> Ops for Tape<F> {
    type Tensor = Var<F>;
    type Matrix = Matrix;
    type State = States<F>;

    fn matrix(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Result<Matrix> {
        let [rows, columns] = weight.shape[..] else {
            return Err(Error::Invalid(format!("`{name}` is no matrix: its shape is {:?}", weight.shape)));
        };
        Ok(Matrix::new(self.parameter(name)?, 0, [rows, columns], apply))
    }

    fn matrix_of(&self, name: &str, stack: &StoredTensor, z: usize, apply: Apply) -> Result<Matrix> {
        let [_, rows, columns] = stack.shape[..] else {
            return Err(Error::Invalid(format!(
                "`{name}` is no stack of matrices: its shape is {:?}",
                stack.shape
            )));
        };
        Ok(Matrix::new(self.parameter(name)?, z * rows * columns, [rows, columns], apply))
    }

    fn vector(&self, name: &str, _values: &[f64]) -> Var<F> {
        // The model asks for parameters that its checkpoint has, and this has those of the same checkpoint.
        Var::Parameter(self.parameter(name).expect("a parameter of the checkpoint"))
    }

    fn vector_exp(&self, name: &str, _values: &[f64]) -> Var<F> {
        Var::ExpParameter(self.parameter(name).expect("a parameter of the checkpoint"))
    }

    fn embedding(&self, table: &Matrix, tokens: &[u32]) -> Var<F> {
        self.look_up(table, tokens)
    }

    fn linears<const N: usize>(&self, products: [(&Var<F>, &Matrix); N]) -> [Var<F>; N] {
        products.map(|(x, w)| self.product(x, w))
    }

    fn columns(&self, x: &Var<F>, start: usize, len: usize) -> Var<F> {
        self.some_columns(x, start, len)
    }

    fn rows(&self, x: &Var<F>, rows: &[usize]) -> Var<F> {
        self.some_rows(x, rows)
    }

    fn unary(&self, f: Unary, x: &Var<F>) -> Var<F> {
        self.function(f, x)
    }

    fn binary(&self, f: Binary, a: &Var<F>, b: &Var<F>) -> Var<F> {
        self.function_of_two(f, a, b)
    }

    fn add_scaled(&self, a: &Var<F>, b: &Var<F>, s: f64) -> Var<F> {
        self.sum_scaled(a, b, s)
    }

    fn add_loras(&self, y: Var<F>, x: &Var<F>, loras: &[LoraRows<'_, Matrix>]) -> Var<F> {
        loras.iter().fold(y, |y, LoraRows { rows, a, b, scale }| {
            let low = self.product(&self.some_rows(x, &rows.clone().collect::<Vec<_>>()), a);
            self.sum_scaled_rows(&y, &self.product(&low, b), *scale, rows.start)
        })
    }

    fn lerp(&self, from: &Var<F>, to: &Var<F>, weight: &Var<F>) -> Var<F> {
        self.between(from, to, weight)
    }

    fn layer_norm(&self, x: &Var<F>, norm: &Norm<Var<F>>) -> Var<F> {
        self.norm(x, norm, 1)
    }

    fn group_norm(&self, x: &Var<F>, norm: &Norm<Var<F>>, heads: usize) -> Var<F> {
        self.norm(x, norm, heads)
    }

    fn normalize_heads(&self, x: &Var<F>, heads: usize) -> Var<F> {
        self.unit_heads(x, heads)
    }

    fn token_shift(&self, x: &Var<F>, batch: &mut Batch<'_, States<F>>, layer: usize, field: &str) -> Var<F> {
        self.shift(x, batch, layer, field)
    }

    fn norm_mixes<const N: usize>(
        &self,
        x: &Var<F>,
        norm: &Norm<Var<F>>,
        mixes: ([&Var<F>; N], Toward),
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
        field: &str,
    ) -> [Var<F>; N] {
        self.norm_shift_mixes(x, norm, mixes, batch, layer, field)
    }

    fn wkv4(
        &self,
        k: &Var<F>,
        v: &Var<F>,
        time_decay: &Var<F>,
        time_first: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.means(k, v, time_decay, time_first, batch, layer)
    }

    fn wkv5(
        &self,
        rkv: [&Var<F>; 3],
        time_decay: &Var<F>,
        bonus: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.constant_decay(rkv, time_decay, bonus, batch, layer)
    }

    fn wkv6(
        &self,
        rkv: [&Var<F>; 3],
        d: &Var<F>,
        bonus: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.own_decay(rkv, d, bonus, batch, layer)
    }

    fn wkv7(
        &self,
        rkv: [&Var<F>; 3],
        om: &Var<F>,
        kk: &Var<F>,
        a: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.delta_rule(rkv, [om, kk, a], batch, layer)
    }

    fn attention(&self, qkv: [&Var<F>; 3], heads: usize, scale: f64, batch: &Batch<'_, States<F>>) -> Var<F> {
        self.attend(qkv, heads, scale, &batch.lengths)
    }

    fn scale_key(&self, k: &Var<F>, a: &Var<F>, k_a: &Var<F>) -> Var<F> {
        self.scaled_key(k, a, k_a)
    }

    fn bonus(&self, y: &Var<F>, rkv: [&Var<F>; 3], r_k: &Var<F>, heads: usize) -> Var<F> {
        self.current_bonus(y, rkv, r_k, heads)
    }

    fn read(&self, x: &Var<F>, readings: &mut [Reading<'_>]) {
        self.cpu().read(&self.value(x), readings);
    }

    fn state(&self, from: &State) -> States<F> {
        States::constant(self, &from.cast())
    }

    fn read_state(&self, state: &States<F>) -> State {
        state.read(self).cast()
    }

    fn layout<'s>(&self, state: &'s States<F>) -> &'s StateLayout {
        state.layout()
    }

    fn count_tokens(&self, state: &mut States<F>, tokens: u64) {
        state.tokens += tokens;
    }
}
