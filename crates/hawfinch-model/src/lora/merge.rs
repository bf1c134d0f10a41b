//! Adapters and first states merged into the weights of their base.

use hawfinch_kernels::gemm::{Into, Precision, View, gemm};
use hawfinch_kernels::{DType, Isa, Pool};

use super::Lora;
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::{Config, Error, Result, metadata};

impl Lora {
    /// The base with this adapter merged into its weights: `W + (alpha / r) B A` in f32, then in the number type that
    /// `dtype` gives for a tensor of that name and type (rounded to the nearest, blocks encoded anew). Whole tensors take
    /// the place of the base's, in f32 or, where they are floats in the base, in the type that `dtype` gives.
    ///
    /// # Errors
    /// An adapter that does not fit the base or was trained beside another; numbers that cannot be encoded so.
    pub fn merge(
        &self,
        base: &Checkpoint,
        dtype: &dyn Fn(&str, DType) -> DType,
        (isa, pool): (Isa, &Pool),
    ) -> Result<Checkpoint> {
        let config = Config::infer(base)?;
        self.check(base, &config)?;
        let mut merged = base.clone();
        let encoded = |name: &str, tensor: StoredTensor, was: DType| {
            let to = dtype(name, was);
            tensor.converted(to).ok_or_else(|| {
                Error::Lora(format!("`{name}` of shape {:?} cannot be written as {to}", tensor.shape))
            })
        };
        for (module, (a, b)) in &self.modules {
            let name = format!("{module}.weight");
            let base = base.get(&name).expect("checked");
            let (rank, input, out) = (a.shape[0], a.shape[1], b.shape[0]);
            let scale = (self.alpha / rank as f64) as f32;
            let mut sum = base.to_f32();
            let a: Vec<f32> = a.to_f32().iter().map(|v| v * scale).collect();
            let b = b.to_f32();
            let (b, a) = (View::new(&b, out, rank), View::new(&a, rank, input));
            gemm(isa, pool, Precision::Full, &mut sum, Into::Add, b, a);
            let sum = StoredTensor::from_f32(&base.shape, &sum);
            merged.tensors.insert(name.clone(), encoded(&name, sum, base.dtype)?);
        }
        for (name, tensor) in &self.replacements {
            let was = base.get(name).expect("checked");
            let mut whole = StoredTensor::from_f32(&was.shape, &tensor.to_f32());
            if was.dtype.is_float() {
                whole = encoded(name, whole, was.dtype)?;
            }
            merged.tensors.insert(name.clone(), whole);
        }
        forget_origin(&mut merged);
        Ok(merged)
    }
}

/// A model with a tuned state (`blocks.L.att.time_state`) inside, where all sequences begin.
///
/// # Errors
/// No tuned state.
pub fn with_state(base: &Checkpoint, state: &Checkpoint) -> Result<Checkpoint> {
    let mut merged = base.clone();
    let tuned = state.tensors.iter().filter(|(name, _)| name.ends_with(".att.time_state"));
    let before = merged.tensors.len();
    merged.tensors.extend(tuned.map(|(name, tensor)| (name.clone(), tensor.clone())));
    if merged.tensors.len() == before {
        return Err(Error::State(format!(
            "{} holds no `blocks.N.att.time_state`: a state of a text cannot be merged into a model",
            state.path.display()
        )));
    }
    forget_origin(&mut merged);
    Ok(merged)
}

/// What was merged is a model of its own: the hash that the base had does not count.
fn forget_origin(merged: &mut Checkpoint) {
    merged.metadata.remove(metadata::SOURCE_HASH);
    // No file holds these bytes.
    merged.files.clear();
}
