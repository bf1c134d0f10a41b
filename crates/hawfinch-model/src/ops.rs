//! The contract between the architectures and whatever does the arithmetic. Each version is written
//! once over these operations; the CPU ([`crate::cpu::Cpu`]) is one implementor, a tape that records for
//! training and a GPU are others.
//!
//! Tensors are handles: two axes `[rows, channels]`, a row a token, living where the implementor keeps
//! them. Nothing reads a value except [`Ops::read`]. Parameters that are vectors are tensors of one row,
//! and an operand of one row stands for every row. Operations that look across tokens take the
//! [`Batch`], which knows where sequences begin and owns their states; no other operation sees it.

use std::ops::Range;

use hawfinch_kernels::elementwise::{Binary, Toward, Unary};

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::{Result, State, StateLayout};

/// How a weight matrix is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// `W x` with W `[out, in]`: linear weights, nearly all of a model.
    Linear,
    /// The same for an `x` that relu² has made zero for the most part.
    AfterRelu,
    /// `x @ W` with W `[in, out]`: low-rank weights.
    Right,
    /// `W x` with W `[out, in]`: the halves of a LoRA.
    Adapter,
    /// Rows are looked up: the embedding.
    Table,
}

/// The sequences of one step: their tokens lie one after the other in the rows of every tensor.
pub struct Batch<'a, S> {
    /// New tokens of each sequence; never zero.
    pub lengths: Vec<usize>,
    /// Their states, read and updated by the step.
    pub states: Vec<&'a mut S>,
}

impl<S> Batch<'_, S> {
    /// Rows of the step's tensors.
    pub fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// A prepared weight matrix.
pub trait Weight {
    /// Bytes that a product with it reads.
    fn bytes(&self) -> usize;
}

impl Weight for crate::cpu::Matrix {
    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// What follows a product.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a, T> {
    /// relu².
    ReluSquared,
    /// This is added: the residual stream.
    Add(&'a T),
}

/// What an adapter adds to some rows of a linear layer's outputs: `scale B (A x)`.
#[derive(Clone, Debug)]
pub struct LoraRows<'a, M> {
    /// The rows.
    pub rows: Range<usize>,
    /// A `[r, in]`
    pub a: &'a M,
    /// B `[out, r]`
    pub b: &'a M,
    /// alpha / r
    pub scale: f64,
}

/// The operations of RWKV. Shapes: `t` rows of the step, `c` channels, `h` heads of `n` channels.
pub trait Ops {
    /// Handle of `[rows, channels]` values. Cloning copies the handle, not the values.
    type Tensor: Clone + Send + Sync;
    /// A weight matrix, prepared for this implementor, in its stored format.
    type Matrix: Weight + Send + Sync;
    /// The state of one sequence.
    type State;

    /// Prepares a weight matrix (two axes).
    ///
    /// # Errors
    /// A number format that this implementor cannot multiply.
    fn matrix(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Result<Self::Matrix>;
    /// Entry `z` of a stack of weight matrices (three axes).
    ///
    /// # Errors
    /// As [`Ops::matrix`].
    fn matrix_of(&self, name: &str, stack: &StoredTensor, z: usize, apply: Apply) -> Result<Self::Matrix> {
        self.matrix(name, &stack.index(z), apply)
    }
    /// The parameter of that name, a vector, as a tensor of one row.
    fn vector(&self, name: &str, values: &[f64]) -> Self::Tensor;
    /// The same where the equations use e to the power of the parameter.
    fn vector_exp(&self, name: &str, values: &[f64]) -> Self::Tensor {
        self.vector(name, &values.iter().map(|v| v.exp()).collect::<Vec<_>>())
    }

    /// Rows of the embedding: `[t, d]`. Ids are within the table (the model checks them first).
    fn embedding(&self, table: &Self::Matrix, tokens: &[u32]) -> Self::Tensor;
    /// Matrix product: `[t, in]` → `[t, out]`.
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix) -> Self::Tensor {
        let [y] = self.linears([(x, w)]);
        y
    }
    /// Matrix product, and what follows it, which an implementor may do as its outputs are stored.
    fn linear_then(&self, x: &Self::Tensor, w: &Self::Matrix, then: Then<'_, Self::Tensor>) -> Self::Tensor {
        self.after(self.linear(x, w), then)
    }
    /// What follows a product whose outputs are `y`.
    fn after(&self, y: Self::Tensor, then: Then<'_, Self::Tensor>) -> Self::Tensor {
        match then {
            Then::ReluSquared => self.unary(Unary::ReluSquared, &y),
            Then::Add(x) => self.binary(Binary::Add, x, &y),
        }
    }
    /// Matrix products that do not depend on each other, so that an implementor may do them at once.
    fn linears<const N: usize>(&self, products: [(&Self::Tensor, &Self::Matrix); N]) -> [Self::Tensor; N];
    /// Channels `start .. start + len` of every row.
    fn columns(&self, x: &Self::Tensor, start: usize, len: usize) -> Self::Tensor;
    /// Chosen rows, in the order given.
    fn rows(&self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor;

    /// `f(x)`, element by element.
    fn unary(&self, f: Unary, x: &Self::Tensor) -> Self::Tensor;
    /// `f(a, b)`, element by element; `b` may have one row.
    fn binary(&self, f: Binary, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;
    /// `a + s b`.
    fn add_scaled(&self, a: &Self::Tensor, b: &Self::Tensor, s: f64) -> Self::Tensor;
    /// `y` `[t, out]` with `scale B (A x)` added in the rows of each of `loras`; `x` `[t, in]`. Row by row the bits of
    /// [`Ops::linear`] twice and [`Ops::add_scaled`].
    fn add_loras(
        &self,
        y: Self::Tensor,
        x: &Self::Tensor,
        loras: &[LoraRows<'_, Self::Matrix>],
    ) -> Self::Tensor;
    /// `from + (to - from) * weight`; `weight` may have one row.
    fn lerp(&self, from: &Self::Tensor, to: &Self::Tensor, weight: &Self::Tensor) -> Self::Tensor;

    /// Layer norm over each row.
    fn layer_norm(&self, x: &Self::Tensor, norm: &Norm<Self::Tensor>) -> Self::Tensor;
    /// Group norm: each head of each row on its own, then the affine of all channels.
    fn group_norm(&self, x: &Self::Tensor, norm: &Norm<Self::Tensor>, heads: usize) -> Self::Tensor;
    /// Each head of each row divided by max(its length, 1e-12).
    fn normalize_heads(&self, x: &Self::Tensor, heads: usize) -> Self::Tensor;

    /// The row before each row within its sequence; the first takes state field `field` of `layer`, which
    /// then becomes the sequence's last row.
    fn token_shift(
        &self,
        x: &Self::Tensor,
        batch: &mut Batch<'_, Self::State>,
        layer: usize,
        field: &str,
    ) -> Self::Tensor;

    /// Layer norm, [`Ops::token_shift`] of what it gives, and mixes of each row with the one before it, by `weights` of
    /// one row: what every half of a block begins with. An implementor may do all of it in one pass.
    fn norm_mixes<const N: usize>(
        &self,
        x: &Self::Tensor,
        norm: &Norm<Self::Tensor>,
        (weights, toward): ([&Self::Tensor; N], Toward),
        batch: &mut Batch<'_, Self::State>,
        layer: usize,
        field: &str,
    ) -> [Self::Tensor; N] {
        let x = self.layer_norm(x, norm);
        let before = self.token_shift(&x, batch, layer, field);
        let (from, to) = if toward == Toward::Row { (&before, &x) } else { (&x, &before) };
        weights.map(|weight| self.lerp(from, to, weight))
    }

    /// RWKV-4 (state `aa`, `bb`, `pp`); see [`hawfinch_kernels::wkv::wkv4`].
    fn wkv4(
        &self,
        k: &Self::Tensor,
        v: &Self::Tensor,
        time_decay: &Self::Tensor,
        time_first: &Self::Tensor,
        batch: &mut Batch<'_, Self::State>,
        layer: usize,
    ) -> Self::Tensor;
    /// RWKV-5 (state `wkv`); see [`hawfinch_kernels::wkv::wkv5`].
    fn wkv5(
        &self,
        rkv: [&Self::Tensor; 3],
        time_decay: &Self::Tensor,
        bonus: &Self::Tensor,
        batch: &mut Batch<'_, Self::State>,
        layer: usize,
    ) -> Self::Tensor;
    /// RWKV-6 (state `wkv`); see [`hawfinch_kernels::wkv::wkv6`].
    fn wkv6(
        &self,
        rkv: [&Self::Tensor; 3],
        d: &Self::Tensor,
        bonus: &Self::Tensor,
        batch: &mut Batch<'_, Self::State>,
        layer: usize,
    ) -> Self::Tensor;
    /// RWKV-7 (state `wkv`); see [`hawfinch_kernels::wkv::wkv7`].
    fn wkv7(
        &self,
        rkv: [&Self::Tensor; 3],
        om: &Self::Tensor,
        kk: &Self::Tensor,
        a: &Self::Tensor,
        batch: &mut Batch<'_, Self::State>,
        layer: usize,
    ) -> Self::Tensor;
    /// Causal softmax attention with rotary positions, each sequence of the batch from its first token: it keeps no state.
    /// `qkv` `[t, h·n]`; see [`hawfinch_kernels::attention`].
    fn attention(
        &self,
        qkv: [&Self::Tensor; 3],
        heads: usize,
        scale: f64,
        batch: &Batch<'_, Self::State>,
    ) -> Self::Tensor;
    /// RWKV-7's key after the learning rate: `k (1 + (a - 1) k_a)`.
    fn scale_key(&self, k: &Self::Tensor, a: &Self::Tensor, k_a: &Self::Tensor) -> Self::Tensor;
    /// RWKV-7's current-token bonus, per head: `y + (Σ r k r_k) v`.
    fn bonus(
        &self,
        y: &Self::Tensor,
        rkv: [&Self::Tensor; 3],
        r_k: &Self::Tensor,
        heads: usize,
    ) -> Self::Tensor;

    /// Copies values of some rows to the host.
    fn read(&self, x: &Self::Tensor, readings: &mut [Reading<'_>]);
    /// A state of the empty context in this implementor's memory, or one with given values.
    fn state(&self, from: &State) -> Self::State;
    /// Copies a state to the host.
    fn read_state(&self, state: &Self::State) -> State;
    /// Which fields a state has.
    fn layout<'s>(&self, state: &'s Self::State) -> &'s StateLayout;
    /// Adds to the number of tokens that a state has consumed.
    fn count_tokens(&self, state: &mut Self::State, tokens: u64);
    /// Told when a model's call is done, before its results are given.
    ///
    /// # Errors
    /// Weights that were found damaged since.
    fn called(&self, _checkpoint: &Checkpoint) -> Result<()> {
        Ok(())
    }
}

/// Rows of a tensor that are copied to the host.
pub struct Reading<'a> {
    /// Which rows.
    pub rows: Range<usize>,
    /// Where their values go, row-major, as f32, behind what is there.
    pub out: &'a mut Vec<f32>,
    /// Found by the copying: the first of the rows, counted from the first read, with a value that is not finite.
    pub unsound: Option<usize>,
}

impl<'a> Reading<'a> {
    /// Of some rows.
    pub fn new(rows: Range<usize>, out: &'a mut Vec<f32>) -> Self {
        Self { rows, out, unsound: None }
    }
}

/// Affine normalisation parameters.
pub struct Norm<T> {
    /// `[1, c]`
    pub weight: T,
    /// `[1, c]`
    pub bias: T,
    /// Added to the variance.
    pub eps: f64,
}
