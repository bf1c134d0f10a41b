//! Adapters and first states merged into the weights of their base.

use hawfinch_kernels::gemm::{Into, Precision, View, gemm};
use hawfinch_kernels::{DType, Isa, Pool};

use indexmap::IndexMap;

use super::Lora;
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::{Config, Error, Result, metadata};

/// The base with adapters merged into its weights: `W + (alpha / r) B A + …` in f32, then in the number type that `dtype` gives
/// for a tensor of that name and type (rounded to the nearest, blocks encoded anew, once). Whole tensors take the place of
/// the base's, in f32 or, where they are floats in the base, in the type that `dtype` gives: the last adapter's that has one. The
/// products of all are added to it, as they are beside the model.
///
/// # Errors
/// An adapter that does not fit the base or was trained beside another; numbers that cannot be encoded so.
pub fn merge(
    base: &Checkpoint,
    adapters: &[Lora],
    dtype: &dyn Fn(&str, DType) -> DType,
    (isa, pool): (Isa, &Pool),
) -> Result<Checkpoint> {
    let config = Config::infer(base)?;
    adapters.iter().try_for_each(|adapter| adapter.check(base, &config))?;
    let mut changed: IndexMap<String, Vec<f32>> = IndexMap::new();
    for adapter in adapters {
        changed.extend(adapter.replacements.iter().map(|(name, tensor)| (name.clone(), tensor.to_f32())));
    }
    for adapter in adapters {
        for (module, (a, b)) in &adapter.modules {
            let name = format!("{module}.weight");
            let was = base.get(&name).expect("checked");
            let sum = changed.entry(name).or_insert_with(|| was.to_f32());
            let (rank, input, out) = (a.shape[0], a.shape[1], b.shape[0]);
            let scale = (adapter.alpha / rank as f64) as f32;
            let a: Vec<f32> = a.to_f32().iter().map(|v| v * scale).collect();
            let b = b.to_f32();
            let (b, a) = (View::new(&b, out, rank), View::new(&a, rank, input));
            gemm(isa, pool, Precision::Full, sum, Into::Add, b, a);
        }
    }
    let products = |name: &str| {
        let module = name.trim_end_matches(".weight");
        adapters.iter().any(|adapter| adapter.modules.contains_key(module))
    };
    let mut merged = base.clone();
    for (name, values) in changed {
        let was = base.get(&name).expect("checked");
        let mut tensor = StoredTensor::from_f32(&was.shape, &values);
        if was.dtype.is_float() || products(&name) {
            let to = dtype(&name, was.dtype);
            tensor = tensor.converted(to).ok_or_else(|| {
                Error::Lora(format!("`{name}` of shape {:?} cannot be written as {to}", was.shape))
            })?;
        }
        merged.tensors.insert(name, tensor);
    }
    forget_origin(&mut merged);
    Ok(merged)
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
