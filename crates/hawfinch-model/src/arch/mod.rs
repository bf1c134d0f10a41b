//! The architectures: one file a version, each reading like its equations. This file holds what they
//! share: how parameters are fetched by name, a linear layer with its adapters, the block.

mod attention;
mod v4;
mod v5;
mod v6;
mod v7;

use std::cell::{Cell, RefCell};

use hawfinch_kernels::elementwise::{Binary, Toward};
use indexmap::IndexSet;

use crate::checkpoint::{Checkpoint, DecayForm, StoredTensor};
use crate::config::{Config, LAYER_NORM_EPS, Version, present_name};
use crate::lora::Lora;
use crate::model::AdapterRows;
use crate::ops::{Apply, Batch, LoraRows, Norm, Ops, Then, Weight};
use crate::{Error, Result};

/// The two halves of a version's block: from the residual stream to the residual stream.
pub(crate) trait Block<O: Ops>: Send + Sync {
    fn time_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor;
    fn channel_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor;
}

/// What goes into half a block.
pub(crate) struct Input<'a, O: Ops> {
    /// The residual stream, `[t, d]`.
    x: &'a O::Tensor,
    /// The norm before this half.
    norm: &'a Norm<O::Tensor>,
    /// Which layer the block is.
    pub layer: usize,
    /// The state field that holds the last normalised row.
    field: &'static str,
}

impl<O: Ops> Input<'_, O> {
    /// Normalised and mixed with the row before.
    pub fn mixes<const N: usize>(
        &self,
        o: &O,
        step: &mut Step<'_, '_, O>,
        weights: [&O::Tensor; N],
        toward: Toward,
    ) -> [O::Tensor; N] {
        o.norm_mixes(self.x, self.norm, (weights, toward), step.batch, self.layer, self.field)
    }

    /// The residual stream with `W y` added.
    pub fn plus(&self, o: &O, step: &Step<'_, '_, O>, linear: &Linear<O>, y: &O::Tensor) -> O::Tensor {
        linear.forward_then(o, step, y, Then::Add(self.x))
    }

    /// The residual stream with sigmoid(r) y added.
    pub fn plus_gated(&self, o: &O, r: &O::Tensor, y: &O::Tensor) -> O::Tensor {
        o.binary(Binary::Add, self.x, &o.binary(Binary::SigmoidMul, r, y))
    }

    /// Normalised.
    pub fn normalised(&self, o: &O) -> O::Tensor {
        o.layer_norm(self.x, self.norm)
    }

    /// Normalised, and the row before each.
    pub fn shifted(&self, o: &O, step: &mut Step<'_, '_, O>) -> [O::Tensor; 2] {
        let x = self.normalised(o);
        let before = o.token_shift(&x, step.batch, self.layer, self.field);
        [x, before]
    }
}

/// What one step carries from block to block beside the residual stream.
pub(crate) struct Step<'a, 'b, O: Ops> {
    pub batch: &'a mut Batch<'b, O::State>,
    /// v7: the value of layer 0, for the same tokens.
    pub v_first: Option<O::Tensor>,
    /// Adapters of single sequences, each with the rows of its sequences in what linear layers are given.
    pub adapters: &'a [AdapterRows<'a, O>],
}

/// A block with its norms.
pub(crate) struct Layer<O: Ops> {
    ln1: Norm<O::Tensor>,
    ln2: Norm<O::Tensor>,
    block: Box<dyn Block<O>>,
}

impl<O: Ops> Layer<O> {
    /// The residual stream through one block.
    pub fn forward(&self, o: &O, layer: usize, x: &O::Tensor, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let x = &self.block.time_mix(o, Input { x, norm: &self.ln1, layer, field: "att_x" }, step);
        self.block.channel_mix(o, Input { x, norm: &self.ln2, layer, field: "ffn_x" }, step)
    }
}

/// A linear layer `W x`, with LoRA adapters applied unmerged: `W x + Σ scale B (A x)`. First those that the model was
/// opened with, in every row, then those of single sequences, in theirs.
pub(crate) struct Linear<O: Ops> {
    weight: O::Matrix,
    /// The adapters that the model was opened with.
    fixed: Vec<Pair<O::Matrix>>,
    /// By which adapters of single sequences know the layer; low-rank weights have none.
    number: Option<usize>,
}

/// The two matrices that a LoRA adds to a linear layer: `scale B (A x)`.
pub(crate) struct Pair<M> {
    /// A `[r, in]`
    pub a: M,
    /// B `[out, r]`
    pub b: M,
    pub scale: f64,
}

impl<M> Pair<M> {
    /// What a LoRA has for a module, if anything, its halves as `matrix` prepares them.
    pub fn of(
        lora: &Lora,
        module: &str,
        matrix: impl Fn(&str, &StoredTensor) -> Result<M>,
    ) -> Option<Result<Self>> {
        let (a, b) = lora.modules.get(module)?;
        let prepared = || {
            let scale = lora.alpha / a.shape[0] as f64;
            let (a, b) = (matrix(&format!("{module}.lora_A"), a)?, matrix(&format!("{module}.lora_B"), b)?);
            Ok(Pair { a, b, scale })
        };
        Some(prepared())
    }
}

impl<O: Ops> Linear<O> {
    /// The matrix itself.
    pub fn weight(&self) -> &O::Matrix {
        &self.weight
    }

    pub fn forward(&self, o: &O, step: &Step<'_, '_, O>, x: &O::Tensor) -> O::Tensor {
        self.adapted(o, step, o.linear(x, &self.weight), x)
    }

    /// The layer, and what follows it.
    pub fn forward_then(
        &self,
        o: &O,
        step: &Step<'_, '_, O>,
        x: &O::Tensor,
        then: Then<'_, O::Tensor>,
    ) -> O::Tensor {
        let adapted = !self.fixed.is_empty() || self.of_sequences(step).next().is_some();
        match adapted {
            false => o.linear_then(x, &self.weight, then),
            true => o.after(self.forward(o, step, x), then),
        }
    }

    /// Layers that do not depend on each other, at once.
    pub fn forward_all<const N: usize>(
        o: &O,
        step: &Step<'_, '_, O>,
        layers: [(&Self, &O::Tensor); N],
    ) -> [O::Tensor; N] {
        let mut products = o.linears(layers.map(|(l, x)| (x, &l.weight))).into_iter();
        layers.map(|(l, x)| l.adapted(o, step, products.next().expect("a product a layer"), x))
    }

    /// `y`, which is `W x`, with the adapters' part added.
    fn adapted(&self, o: &O, step: &Step<'_, '_, O>, y: O::Tensor, x: &O::Tensor) -> O::Tensor {
        let y = self.fixed.iter().fold(y, |y, Pair { a, b, scale }| {
            let low = o.linear(x, a);
            o.add_scaled(&y, &o.linear(&low, b), *scale)
        });
        let loras: Vec<_> = self.of_sequences(step).collect();
        if loras.is_empty() { y } else { o.add_loras(y, x, &loras) }
    }

    /// What the step's adapters have for this layer.
    fn of_sequences<'a>(&self, step: &Step<'a, '_, O>) -> impl Iterator<Item = LoraRows<'a, O::Matrix>> {
        step.adapters.iter().filter_map(|of| {
            let Pair { a, b, scale } = of.adapter.pair(self.number?)?;
            Some(LoraRows { rows: of.rows.clone(), a, b, scale: *scale })
        })
    }
}

/// Fetches the parameters of one model by official name and prepares them for `ops`.
pub(crate) struct Loader<'a, O: Ops> {
    pub ops: &'a O,
    pub checkpoint: &'a Checkpoint,
    pub config: &'a Config,
    pub loras: &'a [Lora],
    /// The modules of the linear layers met so far: a layer's number is its place.
    pub linears: RefCell<IndexSet<String>>,
    /// What the matrices prepared so far cost a token.
    pub work: Cell<Work>,
}

/// What multiplying one token with the weights takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Bytes of weights read.
    pub bytes: u64,
    /// Products added.
    pub multiply_adds: u64,
}

impl<O: Ops> Loader<'_, O> {
    /// Prepares a matrix that every token is multiplied with.
    fn matrix(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Result<O::Matrix> {
        Ok(self.counted(self.ops.matrix(name, weight, apply)?, weight.len()))
    }

    /// A prepared matrix, whose work counts.
    fn counted(&self, matrix: O::Matrix, numbers: usize) -> O::Matrix {
        let Work { bytes, multiply_adds } = self.work.get();
        self.work.set(Work {
            bytes: bytes + matrix.bytes() as u64,
            multiply_adds: multiply_adds + numbers as u64,
        });
        matrix
    }

    pub fn layers(&self) -> Result<Vec<Layer<O>>>
    where
        O: 'static,
    {
        (0..self.config.layers).map(|l| self.layer(l)).collect()
    }

    /// One layer.
    pub fn layer(&self, l: usize) -> Result<Layer<O>>
    where
        O: 'static,
    {
        let block: Box<dyn Block<O>> = match self.config.version {
            Version::V4 => Box::new(v4::V4::load(self, l)?),
            Version::V5_0 | Version::V5_1 | Version::V5_2 => Box::new(v5::V5::load(self, l)?),
            Version::V6 => Box::new(v6::V6::load(self, l)?),
            Version::V7 => Box::new(v7::V7::load(self, l)?),
            Version::Attention => Box::new(attention::Attention::load(self, l)?),
        };
        Ok(Layer {
            ln1: self.layer_norm(&format!("blocks.{l}.ln1"))?,
            ln2: self.layer_norm(&format!("blocks.{l}.ln2"))?,
            block,
        })
    }

    /// A LoRA file's tensor in place of the checkpoint's; the last file wins.
    fn replaced(&self, name: &str) -> Option<&StoredTensor> {
        self.loras.iter().rev().find_map(|l| l.replacements.get(name))
    }

    /// Whether a decay (or v5's bonus) is stored exponentiated. LoRA files hold them as they were trained.
    fn is_exponentiated(&self, name: &str) -> bool {
        self.checkpoint.decay_form == DecayForm::Exponentiated && self.replaced(name).is_none()
    }

    /// The tensor of that name: a LoRA file's replacement if it has one, else the checkpoint's.
    fn tensor(&self, name: &str) -> Result<&StoredTensor> {
        self.replaced(name).or_else(|| self.checkpoint.get(name)).ok_or_else(|| Error::MissingTensor {
            name: name.into(),
            version: self.config.version.plain_name(),
        })
    }

    /// A linear weight `[out, in]` with its adapters.
    pub fn linear(&self, name: &str) -> Result<Linear<O>> {
        self.adapted(name, Apply::Linear)
    }

    /// A linear weight applied to what relu² gives, with its adapters.
    pub fn linear_after_relu(&self, name: &str) -> Result<Linear<O>> {
        self.adapted(name, Apply::AfterRelu)
    }

    fn adapted(&self, name: &str, apply: Apply) -> Result<Linear<O>> {
        let weight = self.matrix(name, self.tensor(name)?, apply)?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let half = |name: &str, weight: &StoredTensor| self.matrix(name, weight, Apply::Adapter);
        let fixed = self.loras.iter().filter_map(|l| Pair::of(l, module, half)).collect::<Result<_>>()?;
        let (number, _) = self.linears.borrow_mut().insert_full(module.into());
        Ok(Linear { weight, fixed, number: Some(number) })
    }

    /// A matrix applied as it is: the embedding table (rows are looked up), no adapters.
    pub fn table(&self, name: &str) -> Result<O::Matrix> {
        self.ops.matrix(name, self.tensor(name)?, Apply::Table)
    }

    /// A low-rank weight `[in, out]`.
    pub fn low_rank(&self, name: &str) -> Result<O::Matrix> {
        self.matrix(name, self.tensor(name)?, Apply::Right)
    }

    /// The first weight `[in, rank]` of a low-rank function, to be applied beside linear layers.
    pub fn low_rank_first(&self, name: &str) -> Result<Linear<O>> {
        Ok(Linear { weight: self.low_rank(name)?, fixed: Vec::new(), number: None })
    }

    /// The `z`-th low-rank weight of a stack `[k, in, out]`.
    pub fn low_rank_of(&self, name: &str, z: usize) -> Result<O::Matrix> {
        let stack = self.tensor(name)?;
        let matrix = self.ops.matrix_of(name, stack, z, Apply::Right)?;
        Ok(self.counted(matrix, stack.len() / stack.shape[0]))
    }

    /// A vector parameter, checked to be finite.
    pub fn vector(&self, name: &str) -> Result<O::Tensor> {
        Ok(self.ops.vector(name, &self.values(name)?))
    }

    fn values(&self, name: &str) -> Result<Vec<f64>> {
        let values = self.tensor(name)?.to_f64();
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => {
                let value = values[index].to_string();
                Err(Error::NonFinite { name: name.into(), index, value })
            }
            None => Ok(values),
        }
    }

    /// `time_decay` of v4 and v5 as trained, whatever form the file holds.
    pub fn time_decay(&self, name: &str) -> Result<O::Tensor> {
        let mut values = self.values(name)?;
        if self.is_exponentiated(name) {
            // v4 files hold -exp(d), v5 files exp(-exp(d)). A decay that rounded to exactly 0 or 1 comes
            // back as a raw value that gives the same decay again.
            let raw = |v: f64| match self.config.version {
                Version::V4 => (-v).max(f64::from(f32::MIN_POSITIVE)).ln(),
                _ => (-v.clamp(f64::from(f32::MIN_POSITIVE), 1.0 - 1e-16).ln()).ln(),
            };
            values.iter_mut().for_each(|v| *v = raw(*v));
        }
        Ok(self.ops.vector(name, &values))
    }

    /// The bonus u of v5: `time_faaaa` as it is, or exp(`time_first`); see spec section 2.
    pub fn bonus5(&self, prefix: &str) -> Result<O::Tensor> {
        let name = present_name(self.checkpoint, &format!("{prefix}time_faaaa"));
        let values = self.values(&name)?;
        let logarithm = name.ends_with("time_first") && !self.is_exponentiated(&name);
        Ok(if logarithm { self.ops.vector_exp(&name, &values) } else { self.ops.vector(&name, &values) })
    }

    /// `name.weight` and `name.bias` as a layer norm.
    pub fn layer_norm(&self, name: &str) -> Result<Norm<O::Tensor>> {
        self.norm(name, LAYER_NORM_EPS)
    }

    /// `name.weight` and `name.bias` as the group norm after WKV.
    pub fn group_norm(&self, name: &str) -> Result<Norm<O::Tensor>> {
        self.norm(name, self.config.group_norm_eps)
    }

    fn norm(&self, name: &str, eps: f64) -> Result<Norm<O::Tensor>> {
        let weight = self.vector(&format!("{name}.weight"))?;
        let bias = self.vector(&format!("{name}.bias"))?;
        Ok(Norm { weight, bias, eps })
    }
}
