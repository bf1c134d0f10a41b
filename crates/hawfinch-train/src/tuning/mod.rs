//! What of a model is trained: all of it, an adapter beside it (LoRA), or the state that every text begins with.
//!
//! The base model is not changed by the last two: its matrices stay as their file has them, quantised or not, and have
//! neither gradients nor moments. What is trained is a file of its own, in RWKV-PEFT's names and layout:
//!
//! | method | tensors | begins as |
//! | --- | --- | --- |
//! | LoRA | `MODULE.lora_A` `[r, in]`, `MODULE.lora_B` `[out, r]`: `W + (alpha / r) B A`; whole tensors that take the base's place | A uniform within 1/√in, B zero |
//! | PiSSA | the same, twice the rank: what is trained, and the frozen rest `-B0 A0` that takes its beginning out of W; α / r is 1 | B0 A0: the product of rank r nearest to W |
//! | DiSHA (Bone) | the same: A is identities beside each other, frozen; B is Dᵀ | zero |
//! | state | `blocks.L.att.time_state` `[head, value, key]`; v4, ours: `[2, d]`, numerator and denominator at exponent 0 | zero |
//!
//! Source: the training spec, section 8.

mod principal;

use std::collections::{BTreeMap, BTreeSet};

use hawfinch_kernels::Real;
use hawfinch_model::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Config, Cpu, Lora, Rng, State, hash, metadata};
use serde::{Deserialize, Serialize};

use crate::parameters::{Kept, Parameter, Parameters};
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

/// What a new adapter begins as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoraInit {
    /// A random, B zero.
    #[default]
    Zero,
    /// The largest singular values and vectors of each matrix, which are taken out of it (Meng, Wang and Zhang 2024).
    Pissa,
    /// What goes in is added up in shards of r numbers, and B is zero (Kang and Yin 2024; also Bone, MiSS).
    Disha,
}

impl LoraInit {
    /// As it is called in settings and files.
    pub fn name(self) -> &'static str {
        match self {
            LoraInit::Zero => "zero",
            LoraInit::Pissa => "pissa",
            LoraInit::Disha => "disha",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<LoraInit> {
        [LoraInit::Zero, LoraInit::Pissa, LoraInit::Disha].into_iter().find(|i| i.name() == name)
    }
}

/// Settings of a new adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSettings {
    /// Rank of the products.
    pub rank: usize,
    /// The product counts alpha / rank; once, whatever this says, where it begins as more than zero.
    pub alpha: f64,
    /// What it begins as.
    pub init: LoraInit,
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
    /// What it began as, which says what of it is not trained.
    pub init: LoraInit,
    /// The state to begin with, for [`Method::State`], if it has begun.
    pub state: Option<Checkpoint>,
}

impl Tuning {
    /// A new adapter for a model.
    ///
    /// # Errors
    /// No model, modules or parts that it does not have, a rank of 0.
    pub fn lora(base: &Checkpoint, settings: &LoraSettings, cpu: &Cpu<f32>) -> Result<Tuning> {
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
            let Some(matrix) = base.get(&format!("{module}.weight")).filter(|t| t.shape.len() == 2) else {
                continue;
            };
            let (a, b) = beginning(&module, matrix, settings, cpu);
            adapter.insert(format!("{module}.lora_A"), a)?;
            adapter.insert(format!("{module}.lora_B"), b)?;
        }
        for name in parts(&config, base, &settings.parts)? {
            let tensor = base.get(&name).expect("found there");
            let whole = StoredTensor::from_f32(&tensor.shape, &tensor.to_f32());
            adapter.insert(name, whole)?;
        }
        let alpha = match settings.init {
            LoraInit::Zero => settings.alpha,
            LoraInit::Pissa => 2.0 * settings.rank as f64,
            LoraInit::Disha => settings.rank as f64,
        };
        let adapter = Lora::from_checkpoint(adapter, Some(alpha))?;
        Ok(Tuning { method: Method::Lora, adapter: Some(adapter), init: settings.init, state: None })
    }

    /// A state of zeros (or the one that the model brings), to be trained.
    pub fn state() -> Tuning {
        Tuning { method: Method::State, ..Tuning::default() }
    }

    /// One that goes on from a file.
    ///
    /// # Errors
    /// No adapter, or one that does not say its alpha, or began as something that nobody knows.
    pub fn from_file(method: Method, file: Checkpoint) -> Result<Tuning> {
        Ok(match method {
            Method::Full => Tuning::default(),
            Method::Lora => {
                let init = match file.metadata.get(metadata::LORA_INIT) {
                    None => LoraInit::Zero,
                    Some(name) => LoraInit::from_name(name).ok_or_else(|| {
                        Error::request(format!(
                            "{} began as `{name}`, which this version of hawfinch does not know",
                            file.path.display()
                        ))
                    })?,
                };
                Tuning { method, adapter: Some(Lora::from_checkpoint(file, None)?), init, state: None }
            }
            Method::State => Tuning { method, state: Some(file), ..Tuning::default() },
        })
    }

    /// Whether a parameter is trained.
    pub fn trains(&self, name: &str) -> bool {
        match self.method {
            Method::Full => true,
            Method::Lora => {
                let adapter = self.adapter.as_ref();
                let half = if self.init == LoraInit::Disha { ".lora_B" } else { ".lora_" };
                name.contains(half) || adapter.is_some_and(|a| a.replacements.contains_key(name))
            }
            Method::State => is_tuned_state(name),
        }
    }

    /// Marks what of the adapter's halves stays as it is.
    pub(crate) fn keep<F: Real>(&self, parameters: &mut Parameters<F>) {
        if self.init != LoraInit::Pissa {
            return;
        }
        for (module, (a, _)) in self.adapter.iter().flat_map(|a| &a.modules) {
            let half = a.shape[0] / 2;
            parameters.keep(&format!("{module}.lora_A"), Kept::RowsFrom(half));
            parameters.keep(&format!("{module}.lora_B"), Kept::ColumnsFrom(half));
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
            if self.init != LoraInit::Zero {
                all.insert(metadata::LORA_INIT.into(), self.init.name().into());
            }
        }
        Ok(all)
    }
}

/// Whether a parameter belongs into the file of what a method trains: of an adapter, both halves, trained or not.
pub(crate) fn is_saved<F: Real>(method: Method, p: &Parameter<F>) -> bool {
    method == Method::Full || p.is_trained() || p.name.contains(".lora_")
}

/// Whether that is the name of a tuned state.
pub fn is_tuned_state(name: &str) -> bool {
    name.ends_with(".att.time_state")
}

/// The halves A and B that the adapter of a matrix begins with.
fn beginning(
    module: &str,
    matrix: &StoredTensor,
    settings: &LoraSettings,
    cpu: &Cpu<f32>,
) -> (StoredTensor, StoredTensor) {
    let (out, input, r) = (matrix.shape[0], matrix.shape[1], settings.rank);
    let mut rng = Rng::of(settings.seed, &format!("{module}.lora_A"), 0);
    let zero = || StoredTensor::from_f32(&[out, r], &vec![0.0; out * r]);
    match settings.init {
        LoraInit::Zero => {
            let bound = 1.0 / (input as f32).sqrt();
            let a: Vec<f32> = (0..r * input).map(|_| rng.uniform(-bound, bound)).collect();
            (StoredTensor::from_f32(&[r, input], &a), zero())
        }
        LoraInit::Pissa => {
            let by = (cpu.isa(), &**cpu.pool());
            let (b, a) = principal::principal(by, &matrix.to_f32(), [out, input], r, &mut rng);
            // Each row of B, then the same with its sign turned.
            let twice = b.chunks_exact(r).flat_map(|row| row.iter().copied().chain(row.iter().map(|v| -v)));
            let b: Vec<f32> = twice.collect();
            (
                StoredTensor::from_f32(&[2 * r, input], &[&a[..], &a].concat()),
                StoredTensor::from_f32(&[out, 2 * r], &b),
            )
        }
        LoraInit::Disha => {
            let a: Vec<f32> =
                (0..r * input).map(|n| f32::from(u8::from(n % input % r == n / input))).collect();
            (StoredTensor::from_f32(&[r, input], &a), zero())
        }
    }
}

/// Names of the linear layers of a model that an adapter takes, without `.weight`.
fn modules(config: &Config, chosen: &[String]) -> Result<Vec<String>> {
    let all: Vec<String> = names::all_params(config.version, config.layers)
        .into_iter()
        .filter(|(name, param)| param.role == Role::Matrix && name != "emb.weight" && name != "head.weight")
        .map(|(name, _)| name.trim_end_matches(".weight").to_string())
        .collect();
    let kind =
        |module: &str| names::split_block(module).map_or(module.to_string(), |(_, rest)| rest.to_string());
    if chosen.iter().any(|asked| asked == "head") {
        return Err(Error::request(
            "`lora-modules` names `head`, beside which no product is trained: train it whole, with `head` in `train-parts`",
        ));
    }
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
        [] => true,
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
