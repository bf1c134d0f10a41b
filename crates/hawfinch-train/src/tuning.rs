//! What of a model is trained: all of it, an adapter beside it (LoRA), or the state that every text begins with.
//!
//! The base model is not changed by the last two: its matrices stay as their file has them, quantised or not, and have
//! neither gradients nor moments. What is trained is a file of its own, in RWKV-PEFT's names and layout:
//!
//! | method | tensors | begins as |
//! | --- | --- | --- |
//! | LoRA | `MODULE.lora_A` `[r, in]`, `MODULE.lora_B` `[out, r]`: `W + (alpha / r) B A`; whole tensors that take the base's place | A uniform within 1/√in, B zero |
//! | state | `blocks.L.att.time_state` `[head, value, key]`; v4, ours: `[2, d]`, numerator and denominator at exponent 0 | zero |
//!
//! Source: the training spec, section 8.

use std::collections::{BTreeMap, BTreeSet};

use hawfinch_kernels::Real;
use hawfinch_model::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Config, Lora, Rng, State, hash, metadata};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Every parameter.
    #[default]
    Full,
    /// Matrices of low rank beside those of the model, which stays as it is.
    Lora,
    /// The state that every text begins with; the model stays as it is.
    State,
}

impl Method {
    /// As it is called in settings and files.
    pub fn name(self) -> &'static str {
        match self {
            Method::Full => "full",
            Method::Lora => "lora",
            Method::State => "state",
        }
    }
}

impl Method {
    /// What is trained, as the beginning of a line.
    pub fn title(self) -> &'static str {
        match self {
            Method::Full => "all",
            Method::Lora => "a LoRA",
            Method::State => "a first state",
        }
    }
}

/// Settings of a new adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// Rank of the products.
    pub rank: usize,
    /// The product counts alpha / rank.
    pub alpha: f64,
    /// Which linear layers: `att.key` for those of all blocks, `head`; none for all but the head.
    pub modules: Vec<String>,
    /// Parameters that are trained whole beside it: `ln`, `time`, `emb`, `head`.
    pub parts: Vec<String>,
    /// Seed of the matrices A.
    pub seed: u64,
}

/// What of a model is trained, ready for [`crate::Learner::tuned`].
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// What is trained.
    pub method: Method,
    /// The adapter, for [`Method::Lora`].
    pub adapter: Option<Lora>,
    /// The state to begin with, for [`Method::State`], if it has begun.
    pub state: Option<Checkpoint>,
}

impl Tuning {
    /// A new adapter for a model.
    ///
    /// # Errors
    /// No model, modules or parts that it does not have, a rank of 0.
    pub fn lora(base: &Checkpoint, settings: &LoraSettings) -> Result<Tuning> {
        let config = Config::infer(base)?;
        if settings.rank == 0 {
            return Err(Error::request("`lora-rank` is 0; it must be at least 1"));
        }
        if !(settings.alpha.is_finite() && settings.alpha > 0.0) {
            let why = format!("`lora-alpha` is {}; it must be a number above 0", settings.alpha);
            return Err(Error::request(why));
        }
        let mut adapter = Checkpoint::new("(a new adapter)", FileFormat::Memory);
        for module in modules(&config, &settings.modules)? {
            let shape = base.get(&format!("{module}.weight")).map(|t| t.shape.clone());
            let Some([out, input]) = shape.as_deref().and_then(|s| <[usize; 2]>::try_from(s).ok()) else {
                continue;
            };
            let (r, bound) = (settings.rank, 1.0 / (input as f32).sqrt());
            let name = format!("{module}.lora_A");
            let mut rng = Rng::of(settings.seed, &name, 0);
            let a: Vec<f32> = (0..r * input).map(|_| rng.uniform(-bound, bound)).collect();
            adapter.insert(name, StoredTensor::from_f32(&[r, input], &a))?;
            adapter
                .insert(format!("{module}.lora_B"), StoredTensor::from_f32(&[out, r], &vec![0.0; out * r]))?;
        }
        for name in parts(&config, base, &settings.parts)? {
            let tensor = base.get(&name).expect("found there");
            let whole = StoredTensor::from_f32(&tensor.shape, &tensor.to_f32());
            adapter.insert(name, whole)?;
        }
        let adapter = Lora::from_checkpoint(adapter, Some(settings.alpha))?;
        Ok(Tuning { method: Method::Lora, adapter: Some(adapter), state: None })
    }

    /// A state of zeros (or the one that the model brings), to be trained.
    pub fn state() -> Tuning {
        Tuning { method: Method::State, ..Tuning::default() }
    }

    /// One that goes on from a file.
    ///
    /// # Errors
    /// No adapter, or one that does not say its alpha.
    pub fn from_file(method: Method, file: Checkpoint) -> Result<Tuning> {
        Ok(match method {
            Method::Full => Tuning::default(),
            Method::Lora => Tuning { method, adapter: Some(Lora::from_checkpoint(file, None)?), state: None },
            Method::State => Tuning { method, adapter: None, state: Some(file) },
        })
    }

    /// Whether a parameter is trained.
    pub fn trains(&self, name: &str) -> bool {
        match self.method {
            Method::Full => true,
            Method::Lora => {
                let adapter = self.adapter.as_ref();
                name.contains(".lora_") || adapter.is_some_and(|a| a.replacements.contains_key(name))
            }
            Method::State => is_tuned_state(name),
        }
    }

    /// What is written into the file of what is trained: the base's identity, the method and its numbers.
    ///
    /// # Errors
    /// The base is no model.
    pub fn metadata(&self, base: &Checkpoint, data: &str) -> Result<BTreeMap<String, String>> {
        let config = Config::infer(base)?;
        let mut all = BTreeMap::from([
            (metadata::KIND.to_string(), self.method.name().to_string()),
            (metadata::VERSION.to_string(), config.version.number().to_string()),
            (metadata::MODEL.to_string(), hash::identity(base, None)?),
            (metadata::DATA.to_string(), data.to_string()),
        ]);
        if let Some(types) = base.metadata.get(metadata::QUANTIZED) {
            all.insert(metadata::QUANTIZED.into(), types.clone());
        }
        if let Some(adapter) = &self.adapter {
            let ranks: BTreeSet<usize> = adapter.modules.values().map(|(a, _)| a.shape[0]).collect();
            let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
            all.insert(metadata::LORA_ALPHA.into(), adapter.alpha.to_string());
            all.insert(metadata::LORA_RANK.into(), ranks.join(", "));
        }
        Ok(all)
    }
}

/// Whether that is the name of a tuned state.
pub fn is_tuned_state(name: &str) -> bool {
    name.ends_with(".att.time_state")
}

/// Names of the linear layers of a model that an adapter takes, without `.weight`.
fn modules(config: &Config, chosen: &[String]) -> Result<Vec<String>> {
    let all: Vec<String> = names::all_params(config.version, config.layers)
        .into_iter()
        .filter(|(name, param)| param.role == Role::Matrix && name != "emb.weight")
        .map(|(name, _)| name.trim_end_matches(".weight").to_string())
        .collect();
    let kind =
        |module: &str| names::split_block(module).map_or(module.to_string(), |(_, rest)| rest.to_string());
    for asked in chosen {
        if !all.iter().any(|m| m == asked || kind(m) == *asked) {
            let kinds: BTreeSet<String> = all.iter().map(|m| kind(m)).collect();
            let kinds: Vec<String> = kinds.into_iter().collect();
            return Err(Error::request(format!(
                "`lora-modules` names `{asked}`, which is no linear layer of {}: it has {}",
                config.version.plain_name(),
                kinds.join(", ")
            )));
        }
    }
    let wanted = |module: &String| match chosen {
        [] => module != "head",
        _ => chosen.iter().any(|asked| asked == module || *asked == kind(module)),
    };
    Ok(all.into_iter().filter(wanted).collect())
}

/// Names of the parameters that are trained whole.
fn parts(config: &Config, base: &Checkpoint, chosen: &[String]) -> Result<Vec<String>> {
    const KNOWN: [&str; 4] = ["ln", "time", "emb", "head"];
    if let Some(other) = chosen.iter().find(|part| !KNOWN.contains(&part.as_str())) {
        let known = KNOWN.join(", ");
        return Err(Error::request(format!("`train-parts` names `{other}`; there are {known}")));
    }
    let has = |part: &str| chosen.iter().any(|c| c == part);
    let wanted = |name: &str| {
        let own = names::split_block(name).map_or(name, |(_, rest)| rest);
        let norm = own.split('.').any(|part| part.starts_with("ln"));
        let matrix = names::find(config.version, name).is_none_or(|(_, param)| param.role == Role::Matrix);
        match own {
            "emb.weight" => has("emb"),
            "head.weight" => has("head"),
            _ if norm => has("ln"),
            _ => !matrix && has("time"),
        }
    };
    Ok(base.tensors.keys().filter(|name| wanted(name)).cloned().collect())
}

/// A tuned state's numbers of one layer, as files have them, with their shape: `[head, value, key]`, or v4's `[2, d]`.
pub(crate) fn in_file<F: Real>(config: &Config, state: &State<F>, layer: usize) -> (Vec<usize>, Vec<F>) {
    if state.layout().field("wkv").is_some() {
        let n = config.head_size;
        return (vec![config.heads, n, n], turned(state.field(layer, "wkv"), n));
    }
    let halves = [state.field(layer, "aa"), state.field(layer, "bb")];
    (vec![2, config.width], halves.concat())
}

/// Puts what [`in_file`] gives back into a state.
pub(crate) fn into_state<F: Real>(config: &Config, values: &[F], state: &mut State<F>, layer: usize) {
    if state.layout().field("wkv").is_some() {
        let values = turned(values, config.head_size);
        return state.field_mut(layer, "wkv").copy_from_slice(&values);
    }
    let (aa, bb) = values.split_at(config.width);
    state.field_mut(layer, "aa").copy_from_slice(aa);
    state.field_mut(layer, "bb").copy_from_slice(bb);
    state.field_mut(layer, "pp").fill(F::ZERO);
}

/// Brings what an optimiser made of a tuned state back to what a state can be: v4's denominators are not below 0.
pub(crate) fn mend<F: Real>(state: &mut [F], shape: &[usize]) {
    if let [2, d] = shape {
        state[*d..].iter_mut().filter(|v| **v < F::ZERO).for_each(|v| *v = F::ZERO);
    }
}

/// Exchanges keys and values of every head, each `[n, n]`.
fn turned<T: Copy>(heads: &[T], n: usize) -> Vec<T> {
    let head = |head: &[T]| -> Vec<T> { (0..n * n).map(|i| head[i % n * n + i / n]).collect() };
    heads.chunks_exact(n * n).flat_map(head).collect()
}
