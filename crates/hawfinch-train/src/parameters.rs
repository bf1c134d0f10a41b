//! The parameters of a model in training: their values, which change every step, and the gradients that steps add up.

use std::collections::HashMap;

use hawfinch_kernels::Real;
use hawfinch_model::Lora;
use hawfinch_model::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use hawfinch_model::cpu::{Cpu, Tensor};

use crate::{Error, Result};

/// One parameter.
pub struct Parameter<F: Real> {
    /// Official name.
    pub name: String,
    /// Official shape.
    pub shape: Vec<usize>,
    /// Values, row-major; a tensor of one row.
    value: Tensor<F>,
    /// Gradients added up since they were last cleared, as many.
    gradient: Vec<F>,
    /// Whether it is trained: if not, it has no gradient.
    trained: bool,
}

impl<F: Real> Parameter<F> {
    /// Values, row-major.
    pub fn value(&self) -> &[F] {
        self.value.data()
    }

    /// The values as a tensor of one row.
    pub(crate) fn tensor(&self) -> Tensor<F> {
        self.value.clone()
    }

    /// Gradients, as many as values; none when it is not trained.
    pub fn gradient(&self) -> &[F] {
        &self.gradient
    }

    /// Whether it is trained.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// Gradients, to add to.
    pub(crate) fn gradient_mut(&mut self) -> &mut [F] {
        &mut self.gradient
    }

    /// Puts other values in their place, as many.
    ///
    /// # Panics
    /// While a step's tensors hold the values, or when there are not as many.
    pub fn set(&mut self, values: &[f32]) {
        let own = self.value.get_mut().expect("no step is under way");
        assert_eq!(own.len(), values.len(), "as many values");
        own.iter_mut().zip(values).for_each(|(to, &v)| *to = F::from_f32(v));
    }

    /// Values and gradients, to change.
    ///
    /// # Panics
    /// While a step's tensors hold the values.
    pub fn both_mut(&mut self) -> (&mut [F], &mut [F]) {
        (self.value.get_mut().expect("no step is under way"), &mut self.gradient)
    }
}

/// All parameters of a model, in official order.
pub struct Parameters<F: Real> {
    list: Vec<Parameter<F>>,
    index: HashMap<String, usize>,
}

impl<F: Real> Parameters<F> {
    /// Those of a checkpoint, then the halves of an adapter's matrices (`MODULE.lora_A`, `MODULE.lora_B`), all of them
    /// trained. Whole tensors of the adapter take the place of the checkpoint's.
    ///
    /// # Errors
    /// Quantised weights, which cannot be trained.
    pub fn new(cpu: &Cpu<F>, checkpoint: &Checkpoint, adapter: Option<&Lora>) -> Result<Self> {
        let mut list = Vec::new();
        let replaced = |name: &String| adapter.and_then(|a| a.replacements.get(name));
        let base = checkpoint.tensors.iter().map(|(name, t)| (name.clone(), replaced(name).unwrap_or(t)));
        let halves = adapter
            .iter()
            .flat_map(|a| &a.modules)
            .flat_map(|(module, (a, b))| [(format!("{module}.lora_A"), a), (format!("{module}.lora_B"), b)]);
        for (name, tensor) in base.chain(halves) {
            if !tensor.dtype.is_float() {
                return Err(Error::Quantised { name, dtype: tensor.dtype.name().into() });
            }
            let values = tensor.to_f64();
            let value = cpu.make(1, values.len(), |to| {
                to.iter_mut().zip(&values).for_each(|(to, &v)| *to = F::from_f64(v));
            });
            let gradient = vec![F::ZERO; values.len()];
            list.push(Parameter {
                name: name.clone(),
                shape: tensor.shape.clone(),
                value,
                gradient,
                trained: true,
            });
        }
        let index = list.iter().enumerate().map(|(n, p)| (p.name.clone(), n)).collect();
        Ok(Parameters { list, index })
    }

    /// Which parameter has that name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Parameter<F>> {
        self.find(name).map(|n| &self.list[n])
    }

    /// All of them.
    pub fn list(&self) -> &[Parameter<F>] {
        &self.list
    }

    /// All of them, to change.
    pub fn list_mut(&mut self) -> &mut [Parameter<F>] {
        &mut self.list
    }

    /// Trains only those that `choose` names.
    pub fn train_only(&mut self, choose: impl Fn(&str) -> bool) {
        for p in &mut self.list {
            p.trained = choose(&p.name);
            p.gradient = if p.trained { vec![F::ZERO; p.value().len()] } else { Vec::new() };
        }
    }

    /// Numbers in all parameters that are trained.
    pub fn trained_numbers(&self) -> u64 {
        self.list.iter().filter(|p| p.trained).map(|p| p.value().len() as u64).sum()
    }

    /// Sets all gradients to zero.
    pub fn clear_gradients(&mut self) {
        self.list.iter_mut().for_each(|p| p.gradient.fill(F::ZERO));
    }

    /// The values as a checkpoint in f32, with this metadata.
    pub fn checkpoint(&self, metadata: std::collections::BTreeMap<String, String>) -> Checkpoint {
        let mut checkpoint = Checkpoint::new("(in training)", FileFormat::Memory);
        checkpoint.metadata = metadata;
        for p in &self.list {
            let values: Vec<f32> = p.value().iter().map(|v| v.to_f32()).collect();
            checkpoint.tensors.insert(p.name.clone(), StoredTensor::from_f32(&p.shape, &values));
        }
        checkpoint
    }
}
