//! The parameters of a model in training: their values, which change every step, and the gradients that steps add up.
//! Matrices that are not trained stay as their file has them, quantised or not, and have no gradient.

use std::collections::{BTreeMap, HashMap};

use hawfinch_kernels::{DType, Real};
use hawfinch_model::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use hawfinch_model::cpu::{Cpu, Tensor};
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Config, Lora};

use crate::{Result, lent};

/// The numbers of a parameter.
enum Numbers<F: Real> {
    /// As the arithmetic takes them, row-major; a tensor of one row.
    Own(Tensor<F>),
    /// As the file holds them, in rows: those of a matrix that is not trained.
    Stored(StoredTensor),
}

/// What of a parameter with two axes is not trained, though the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Rows from this one on.
    RowsFrom(usize),
    /// Columns from this one on.
    ColumnsFrom(usize),
}

/// One parameter.
pub struct Parameter<F: Real> {
    /// Official name.
    pub name: String,
    /// Official shape.
    pub shape: Vec<usize>,
    numbers: Numbers<F>,
    /// Gradients added up since they were last cleared, as many.
    gradient: Vec<F>,
    /// Whether it is trained: if not, it has no gradient.
    trained: bool,
    /// What of it is not.
    kept: Option<Kept>,
}

impl<F: Real> Parameter<F> {
    /// One that is trained, or could be.
    pub(crate) fn own(cpu: &Cpu<F>, name: String, shape: Vec<usize>, values: &[f64], trained: bool) -> Self {
        let value = cpu.make(1, values.len(), |to| {
            to.iter_mut().zip(values).for_each(|(to, &v)| *to = F::from_f64(v));
        });
        let gradient = if trained { vec![F::ZERO; values.len()] } else { Vec::new() };
        Parameter { name, shape, numbers: Numbers::Own(value), gradient, trained, kept: None }
    }

    /// Values, row-major.
    ///
    /// # Panics
    /// When the numbers are kept as their file has them: [`Parameter::stored`].
    pub fn value(&self) -> &[F] {
        self.tensor_ref().data()
    }

    fn tensor_ref(&self) -> &Tensor<F> {
        match &self.numbers {
            Numbers::Own(value) => value,
            Numbers::Stored(_) => panic!("`{}` is kept as its file has it", self.name),
        }
    }

    /// The values as a tensor of one row.
    pub(crate) fn tensor(&self) -> Tensor<F> {
        self.tensor_ref().clone()
    }

    /// The numbers as their file has them, in rows, when they are kept so: those of a matrix that is not trained.
    pub fn stored(&self) -> Option<&StoredTensor> {
        match &self.numbers {
            Numbers::Own(_) => None,
            Numbers::Stored(stored) => Some(stored),
        }
    }

    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gradients, as many as values; none when it is not trained.
    pub fn gradient(&self) -> &[F] {
        &self.gradient
    }

    /// Whether it is trained.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// Takes away the gradient of what is kept: AdamW leaves alone what never had one.
    pub(crate) fn clear_kept(&mut self) {
        let columns = self.shape.last().copied().unwrap_or(1);
        match self.kept {
            None => {}
            Some(Kept::RowsFrom(first)) => self.gradient[first * columns..].fill(F::ZERO),
            Some(Kept::ColumnsFrom(first)) => {
                self.gradient.chunks_exact_mut(columns).for_each(|row| row[first..].fill(F::ZERO));
            }
        }
    }

    /// Gradients, to add to.
    pub(crate) fn gradient_mut(&mut self) -> &mut [F] {
        &mut self.gradient
    }

    /// The same, to be taken while others need it, and given back.
    pub(crate) fn gradient_vec(&mut self) -> &mut Vec<F> {
        &mut self.gradient
    }

    /// Puts other values in their place, as many.
    ///
    /// # Panics
    /// While a step's tensors hold the values, or when there are not as many.
    pub fn set(&mut self, values: &[f32]) {
        let own = self.own_mut();
        assert_eq!(own.len(), values.len(), "as many values");
        own.iter_mut().zip(values).for_each(|(to, &v)| *to = F::from_f32(v));
    }

    /// Values and gradients, to change.
    ///
    /// # Panics
    /// While a step's tensors hold the values.
    pub fn both_mut(&mut self) -> (&mut [F], &mut [F]) {
        let Numbers::Own(value) = &mut self.numbers else { panic!("a matrix that is not trained") };
        (value.get_mut().expect("no step is under way"), &mut self.gradient)
    }

    fn own_mut(&mut self) -> &mut [F] {
        self.both_mut().0
    }
}

/// All parameters of a model, in official order.
pub struct Parameters<F: Real> {
    list: Vec<Parameter<F>>,
    index: HashMap<String, usize>,
}

impl<F: Real> Parameters<F> {
    /// Those of a checkpoint, then the halves of an adapter's matrices (`MODULE.lora_A`, `MODULE.lora_B`); those whose name
    /// `trains` says yes to are trained, quantised ones from the numbers that their blocks hold. Whole tensors of the adapter
    /// take the place of the checkpoint's.
    ///
    /// # Errors
    /// No model.
    pub fn new(
        cpu: &Cpu<F>,
        checkpoint: &Checkpoint,
        adapter: Option<&Lora>,
        trains: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let version = Config::infer(checkpoint)?.version;
        let mut list = Vec::new();
        let replaced = |name: &String| adapter.and_then(|a| a.replacements.get(name));
        let base = checkpoint.tensors.iter().map(|(name, t)| (name.clone(), replaced(name).unwrap_or(t)));
        let halves = adapter
            .iter()
            .flat_map(|a| &a.modules)
            .flat_map(|(module, (a, b))| [(format!("{module}.lora_A"), a), (format!("{module}.lora_B"), b)]);
        for (name, tensor) in base.chain(halves) {
            let trained = trains(&name);
            let role = names::find(version, &name).map(|(_, param)| param.role);
            let stored = match role {
                Some(Role::Matrix | Role::LowRank) if !trained && tensor.dtype != DType::F64 => {
                    tensor.converted(tensor.dtype)
                }
                _ => None,
            };
            let shape = tensor.shape.clone();
            list.push(match stored {
                Some(stored) => {
                    let numbers = Numbers::Stored(stored);
                    Parameter { name, shape, numbers, gradient: Vec::new(), trained, kept: None }
                }
                None => Parameter::own(cpu, name, shape, &tensor.to_f64(), trained),
            });
        }
        let index = list.iter().enumerate().map(|(n, p)| (p.name.clone(), n)).collect();
        Ok(Parameters { list, index })
    }

    /// Adds one, and returns its place.
    pub(crate) fn add(&mut self, parameter: Parameter<F>) -> usize {
        self.index.insert(parameter.name.clone(), self.list.len());
        self.list.push(parameter);
        self.list.len() - 1
    }

    /// Says that part of a parameter stays as it is.
    pub(crate) fn keep(&mut self, name: &str, kept: Kept) {
        if let Some(place) = self.find(name) {
            self.list[place].kept = Some(kept);
        }
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
            assert!(!p.trained || p.stored().is_none(), "`{}` was opened not to be trained", p.name);
            p.gradient = if p.trained { vec![F::ZERO; p.len()] } else { Vec::new() };
        }
    }

    /// Numbers in all parameters that are trained.
    pub fn trained_numbers(&self) -> u64 {
        self.list.iter().filter(|p| p.trained).map(|p| p.len() as u64).sum()
    }

    /// Numbers in all parameters.
    pub fn numbers(&self) -> u64 {
        self.list.iter().map(|p| p.len() as u64).sum()
    }

    /// Sets all gradients to zero.
    pub fn clear_gradients(&mut self) {
        self.list.iter_mut().for_each(|p| p.gradient.fill(F::ZERO));
    }

    /// The values of those that `choose` says yes to as a checkpoint, with this metadata: in f32, but matrices that are not
    /// trained as their file has them.
    pub fn checkpoint(
        &self,
        metadata: BTreeMap<String, String>,
        choose: impl Fn(&Parameter<F>) -> bool,
    ) -> Checkpoint {
        self.as_checkpoint(metadata, choose, |p| {
            let values: Vec<f32> = p.value().iter().map(|v| v.to_f32()).collect();
            StoredTensor::from_f32(&p.shape, &values)
        })
    }

    fn as_checkpoint(
        &self,
        metadata: BTreeMap<String, String>,
        choose: impl Fn(&Parameter<F>) -> bool,
        own: impl Fn(&Parameter<F>) -> StoredTensor,
    ) -> Checkpoint {
        let mut checkpoint = Checkpoint::new("(in training)", FileFormat::Memory);
        checkpoint.metadata = metadata;
        for p in self.list.iter().filter(|p| choose(p)) {
            let tensor = match p.stored() {
                Some(stored) => stored.clone(),
                None => own(p),
            };
            checkpoint.tensors.insert(p.name.clone(), tensor);
        }
        checkpoint
    }
}

/// A parameter's values, held.
struct Held(Tensor<f32>);

impl AsRef<[f32]> for Held {
    fn as_ref(&self) -> &[f32] {
        self.0.data()
    }
}

impl Parameters<f32> {
    /// As [`Parameters::checkpoint`], without a copy: the values cannot be changed while it is there.
    pub(crate) fn lent(
        &self,
        metadata: BTreeMap<String, String>,
        choose: impl Fn(&Parameter<f32>) -> bool,
    ) -> Checkpoint {
        self.as_checkpoint(metadata, choose, |p| lent::tensor(&p.shape, Held(p.tensor())))
    }
}
