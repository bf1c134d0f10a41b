//! Reading and writing states.
//!
//! Our file is a `.safetensors` with tensors `state.L.att_x`, `state.L.wkv`, `state.L.ffn_x` (v4:
//! `.aa`, `.bb`, `.pp` in place of `.wkv`), f32, `.wkv` as `[head, key, value]` for v5 and v6 and
//! `[head, value, key]` for v7 (in memory all are `[head, key, value]`). Its metadata: `hawfinch.kind` = `state`, `hawfinch.version`,
//! `hawfinch.tokens` (consumed), `hawfinch.model` (the model's [identity](Model::identity)). A saved conversation
//! that did not begin at the model's own state holds the one where it began as well, in tensors `start.L.…`, with
//! `hawfinch.start_tokens`.
//!
//! Also read: tuned initial states (`blocks.L.att.time_state`, official `.pth` or ai00's `.state`), whose
//! tensors are `[head, value, key]` in every version (v4's, which only hawfinch trains: `[2, d]`, numerator and
//! denominator at exponent 0), and ai00's live states.

use std::path::Path;
use std::sync::Arc;

use hawfinch_kernels::DType;

use crate::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use crate::format::{SaveFormat, SaveOptions};
use crate::ops::Ops;
use crate::state::StateLayout;
use crate::{Adapter, Config, Error, Model, Result, State, Version, format, metadata};

/// What the names of the state's tensors begin with in our file.
const STATE: &str = "state.";
/// The same for the state where the text began.
const START: &str = "start.";

impl State {
    /// One field of one layer in the order of state files: RWKV-7's matrices `[head, value, key]`.
    ///
    /// # Panics
    /// As [`State::field`].
    pub fn as_in_files(&self, version: Version, layer: usize, name: &str) -> Vec<f32> {
        let mut values = self.field(layer, name).to_vec();
        if version == Version::V7
            && name == "wkv"
            && let Some(field) = self.layout().field(name)
        {
            turn(&mut values, field.shape[1]);
        }
        values
    }

    /// Writes the state to a file of our format, atomically. `model` is the identity of the model that
    /// it belongs to ([`Model::identity`]).
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self, path: &Path, version: Version, model: &str) -> Result<()> {
        self.save_with(path, version, model, None, &[])
    }

    /// As [`State::save`], with the state at which the text began that led to this one, where that is not the model's
    /// own, and with more metadata; its keys must start with [`metadata::PREFIX`].
    ///
    /// # Errors
    /// As [`State::save`].
    pub fn save_with(
        &self,
        path: &Path,
        version: Version,
        model: &str,
        start: Option<&State>,
        more: &[(&str, String)],
    ) -> Result<()> {
        let mut file = Checkpoint::new(path, FileFormat::Memory);
        for (prefix, state) in [(STATE, Some(self)), (START, start)] {
            let Some(state) = state else { continue };
            for layer in 0..state.layout().layers {
                for f in &state.layout().fields {
                    let tensor = StoredTensor::from_f32(&f.shape, &state.as_in_files(version, layer, f.name));
                    file.insert(format!("{prefix}{layer}.{}", f.name), tensor)?;
                }
            }
        }
        if let Some(start) = start {
            file.metadata.insert(metadata::START_TOKENS.into(), start.tokens.to_string());
        }
        file.metadata.insert(metadata::KIND.into(), "state".into());
        file.metadata.insert(metadata::VERSION.into(), version.number().into());
        file.metadata.insert(metadata::TOKENS.into(), self.tokens.to_string());
        file.metadata.insert(metadata::MODEL.into(), model.into());
        file.metadata.extend(more.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
        format::save(
            path,
            &file,
            SaveOptions {
                format: SaveFormat::Safetensors,
                dtype: Some(DType::F32),
                vocabulary: None,
                progress: None,
            },
        )
    }
}

impl<O: Ops + 'static> Model<O> {
    /// Writes a state of this model to a file of our format: [`State::save`] with the model's version and
    /// identity.
    ///
    /// # Errors
    /// A state of another model's shape; as [`State::save`].
    pub fn save_state(&self, state: &State, path: &Path) -> Result<()> {
        if **state.layout() != **self.state_layout() {
            return Err(Error::State("it was made for a model of another version or size".into()));
        }
        state.save(path, self.config().version, &self.identity(None)?)
    }

    /// Reads a state file of any of the formats above.
    ///
    /// # Errors
    /// Not a state; a state of another model, version or size; NaN in it.
    pub fn load_state(&self, path: &Path) -> Result<State> {
        self.state_from(&format::open_state(path)?)
    }

    /// As [`Model::load_state`], from a file already read.
    ///
    /// # Errors
    /// As [`Model::load_state`].
    pub fn state_from(&self, file: &Checkpoint) -> Result<State> {
        self.state_with(file, None)
    }

    /// As [`Model::state_from`], of the model with that adapter.
    ///
    /// # Errors
    /// As [`Model::load_state`].
    pub fn state_with(&self, file: &Checkpoint, adapter: Option<&Adapter<O>>) -> Result<State> {
        if file.tensors.keys().any(|k| k.starts_with("state.")) {
            self.check_owner(file, adapter)?;
            return read_ours(file, STATE, self.config(), self.state_layout());
        }
        if file.tensors.keys().any(|k| k.ends_with(".att.time_state")) {
            self.check_owner(file, adapter)?;
            return read_tuned(file, self.config(), self.state_layout());
        }
        let why = match Config::infer(file) {
            Ok(config) => format!("it is a model, {}", config.version),
            Err(_) if file.tensors.keys().any(|k| k.contains(".lora_A")) => {
                "it is a LoRA file, which --lora takes".into()
            }
            Err(_) => {
                let seen: Vec<&str> = file.tensors.keys().take(3).map(String::as_str).collect();
                format!("it holds other tensors ({})", seen.join(", "))
            }
        };
        Err(Error::not_a_state(&file.path, why))
    }

    /// The state at which the text began that led to the file's state; `None` where that is the model's own
    /// ([`Model::new_state`]).
    ///
    /// # Errors
    /// As [`Model::load_state`].
    pub fn start_from(&self, file: &Checkpoint) -> Result<Option<State>> {
        if !file.tensors.keys().any(|k| k.starts_with(START)) {
            return Ok(None);
        }
        self.check_owner(file, None)?;
        read_ours(file, START, self.config(), self.state_layout()).map(Some)
    }

    fn check_owner(&self, file: &Checkpoint, adapter: Option<&Adapter<O>>) -> Result<()> {
        let own = self.config().version.number();
        if let Some(v) = file.metadata.get(metadata::VERSION).filter(|v| *v != own) {
            let shown: String = v.chars().take(8).collect();
            return Err(Error::State(format!("it is a state of RWKV-{shown}, the model is RWKV-{own}")));
        }
        if let Some(model) = file.metadata.get(metadata::MODEL) {
            let own = self.identity_with(adapter, None)?;
            let base = |id: &str| id.split('+').next().unwrap_or_default().to_string();
            if *model != own && base(model) == base(&own) {
                return Err(Error::State(
                    "it was computed with other LoRA files than those given now: give the same --lora".into(),
                ));
            }
            if *model != own {
                let short = |s: &str| s.chars().take(19).collect::<String>();
                return Err(Error::State(format!(
                    "it belongs to another model ({}…), this one is {}…",
                    short(model),
                    short(&own)
                )));
            }
        }
        Ok(())
    }
}

/// Our format, or the same tensors without metadata; `prefix` is [`STATE`] or [`START`].
fn read_ours(file: &Checkpoint, prefix: &str, config: &Config, layout: &Arc<StateLayout>) -> Result<State> {
    let mut state = State::new(layout.clone());
    let mut known = 0;
    for layer in 0..layout.layers {
        for f in &layout.fields {
            let name = format!("{prefix}{layer}.{}", f.name);
            let tensor = file.get(&name).ok_or_else(|| {
                Error::State(format!("it has no `{name}`, which RWKV-{} needs", config.version.number()))
            })?;
            copy(&mut state, layer, f.name, &name, tensor, &f.shape)?;
            if config.version == Version::V7 && f.name == "wkv" {
                turn(state.field_mut(layer, "wkv"), f.shape[1]);
            }
            known += 1;
        }
    }
    if file.tensors.keys().filter(|k| k.starts_with(prefix)).count() != known {
        return Err(Error::State(format!("it has more tensors than a model of {} layers", layout.layers)));
    }
    let count = if prefix == START { metadata::START_TOKENS } else { metadata::TOKENS };
    if let Some(n) = file.metadata.get(count) {
        state.tokens = n
            .parse()
            .map_err(|_| Error::State("its metadata does not give the number of tokens".to_string()))?;
    }
    Ok(state)
}

/// The tuned state that a model's own file brings, as trainers merge it in; `None` when there is none.
pub(crate) fn tuned_inside(
    file: &Checkpoint,
    config: &Config,
    layout: &Arc<StateLayout>,
) -> Result<Option<State>> {
    let any = file.tensors.keys().any(|k| k.ends_with(".att.time_state"));
    if any { read_tuned(file, config, layout).map(Some) } else { Ok(None) }
}

/// `blocks.L.att.time_state` in kernel orientation [head, value, key]; the shift states start at zero.
fn read_tuned(file: &Checkpoint, config: &Config, layout: &Arc<StateLayout>) -> Result<State> {
    let mut state = State::new(layout.clone());
    let n = config.head_size;
    let count = file.tensors.keys().filter(|k| k.ends_with(".att.time_state")).count();
    if count != layout.layers {
        return Err(Error::State(format!("it has {count} layers, the model {}", layout.layers)));
    }
    for layer in 0..layout.layers {
        let name = format!("blocks.{layer}.att.time_state");
        let tensor = file.get(&name).ok_or_else(|| Error::State(format!("it has no `{name}`")))?;
        if config.version == Version::V4 {
            copy_tuned_v4(&mut state, layer, &name, tensor)?;
            continue;
        }
        copy(&mut state, layer, "wkv", &name, tensor, &[config.heads, n, n])?;
        // Ai00's live states have the shift states too.
        for (field, name) in [("att_x", "att.shift_state"), ("ffn_x", "ffn.shift_state")] {
            let name = format!("blocks.{layer}.{name}");
            if let Some(tensor) = file.get(&name) {
                copy(&mut state, layer, field, &name, tensor, &[config.width])?;
            }
        }
        turn(state.field_mut(layer, "wkv"), n);
    }
    Ok(state)
}

/// v4's, of hawfinch: `[2, d]`, numerator and denominator at exponent 0.
fn copy_tuned_v4(state: &mut State, layer: usize, name: &str, tensor: &StoredTensor) -> Result<()> {
    let d = state.field(layer, "aa").len();
    if tensor.shape != [2, d] {
        return Err(Error::State(format!(
            "its `{name}` has shape {:?}, a tuned state of RWKV-4 has [2, {d}]",
            tensor.shape
        )));
    }
    for (z, field) in ["aa", "bb"].into_iter().enumerate() {
        copy(state, layer, field, name, &tensor.index(z), &[d])?;
    }
    if let Some(i) = state.field(layer, "bb").iter().position(|v| *v < 0.0) {
        let v = state.field(layer, "bb")[i];
        return Err(Error::State(format!(
            "its `{name}` has the denominator {v} at index {i}; it must not be below 0"
        )));
    }
    state.field_mut(layer, "pp").fill(0.0);
    Ok(())
}

/// Exchanges keys and values of every head, each `[n, n]`.
fn turn(heads: &mut [f32], n: usize) {
    for head in heads.chunks_exact_mut(n * n) {
        for i in 0..n {
            for j in 0..i {
                head.swap(i * n + j, j * n + i);
            }
        }
    }
}

fn copy(
    state: &mut State,
    layer: usize,
    field: &str,
    name: &str,
    tensor: &StoredTensor,
    shape: &[usize],
) -> Result<()> {
    if tensor.shape != shape {
        return Err(Error::State(format!(
            "its `{name}` has shape {:?}, the model's is {shape:?}",
            tensor.shape
        )));
    }
    let values = tensor.to_f32();
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::State(format!("its `{name}` holds {} at index {i}", values[i])));
    }
    state.field_mut(layer, field).copy_from_slice(&values);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{self, Shape};
    use crate::{Cpu, OpenOptions, Rows, Sequence};

    fn model(version: Version, seed: u64) -> Model {
        let config = Shape { version, layers: 2, width: 32, vocab: 64, head_size: 16 }.config();
        let ckpt = synthetic::checkpoint(&config, DType::F32, seed);
        Model::from_checkpoint(ckpt, OpenOptions::default(), Cpu::new(1)).unwrap()
    }

    #[test]
    fn a_saved_state_comes_back_and_fits_no_other_model() {
        let dir = tempfile::tempdir().unwrap();
        for version in [Version::V4, Version::V5_0, Version::V5_2, Version::V6, Version::V7] {
            let m = model(version, 3);
            let mut state = m.new_state();
            let tokens = [3, 1, 4, 1, 5];
            m.forward(&mut [Sequence {
                tokens: &tokens,
                state: &mut state,
                logits: Rows::None,
                hidden: Rows::None,
            }])
            .unwrap();
            assert_eq!(state.tokens, 5);
            let path = dir.path().join("s.safetensors");
            m.save_state(&state, &path).unwrap();
            assert_eq!(m.load_state(&path).unwrap(), state);
            let other = model(version, 4).load_state(&path).unwrap_err().to_string();
            assert!(other.contains("belongs to another model"), "{other}");
            let wrong = if version == Version::V7 { Version::V6 } else { Version::V7 };
            let other = model(wrong, 3).load_state(&path).unwrap_err().to_string();
            assert!(other.contains("the model is RWKV-"), "{other}");
        }
    }

    #[test]
    fn a_tuned_state_is_key_value_in_memory_and_in_our_file_as_documented() {
        let mut file = Checkpoint::new("tuned", FileFormat::Memory);
        let values: Vec<f32> = (0..512).map(|v| v as f32).collect();
        for l in 0..2 {
            let t = StoredTensor::from_f32(&[2, 16, 16], &values);
            file.insert(format!("blocks.{l}.att.time_state"), t).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        for (version, value_key) in [(Version::V7, true), (Version::V6, false)] {
            let m = model(version, 1);
            let state = m.state_from(&file).unwrap();
            assert_eq!((state.field(1, "wkv")[1], state.field(1, "wkv")[256 + 16]), (16.0, 257.0));
            let path = dir.path().join(version.number());
            m.save_state(&state, &path).unwrap();
            let saved = format::open_state(&path).unwrap().get("state.1.wkv").unwrap().to_f32();
            assert_eq!(saved == values, value_key, "{version}");
        }
        assert!(model(Version::V4, 1).state_from(&file).is_err());
        file.tensors.shift_remove("blocks.1.att.time_state");
        assert!(model(Version::V6, 1).state_from(&file).unwrap_err().to_string().contains("1 layers"));
    }
}
