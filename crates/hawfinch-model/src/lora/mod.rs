//! LoRA files as RWKV-PEFT writes them: per module a pair A `[r, in]`, B `[out, r]` meaning
//! `W + (alpha / r) B A`, and whole tensors that replace the base's. They are applied unmerged.
//!
//! The same trainer's PiSSA checkpoints have the very same tensors but belong to a base from which the first
//! ones (`init_pissa.pth`) were taken away. Nothing in the file says so: merge them with the trainer's own
//! program. DiSHA (bone) files have names of their own and are refused.

mod merge;

pub use merge::{merge, with_state};

use std::path::Path;

use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::names::{self, Role};
use crate::{Config, Error, Result, format};

/// One LoRA file, ready to apply.
#[derive(Clone, Debug)]
pub struct Lora {
    /// `blocks.0.att.key` → (A `[r, in]`, B `[out, r]`).
    pub modules: IndexMap<String, (StoredTensor, StoredTensor)>,
    /// Official name → tensor that takes the place of the base's.
    pub replacements: IndexMap<String, StoredTensor>,
    /// alpha of `alpha / r`.
    pub alpha: f64,
    /// Identity of the model it was trained beside ([`crate::hash::identity`]), if the file says it.
    pub base: Option<String>,
}

impl Lora {
    /// Reads `FILE` or `FILE:alpha=N`, as given on a command line.
    ///
    /// # Errors
    /// As [`Lora::open`]; an alpha that is no number.
    pub fn from_spec(spec: &str) -> Result<Lora> {
        match spec.rsplit_once(":alpha=") {
            None => Lora::open(Path::new(spec), None),
            Some((file, alpha)) => {
                let alpha = alpha.parse().ok().filter(|a: &f64| a.is_finite()).ok_or_else(|| {
                    Error::Lora(format!("alpha must be a number, not `{alpha}` (as in FILE:alpha=32)"))
                })?;
                Lora::open(Path::new(file), Some(alpha))
            }
        }
    }

    /// Reads a LoRA file. Its alpha is the one given, or in the file's metadata (`lora_alpha`), or in
    /// `adapter_config.json`, `peft.json` or `FILE.json` beside it.
    ///
    /// # Errors
    /// Not a LoRA file; half a pair; ranks that disagree; no alpha anywhere; a file beside it that asks for
    /// another scale than alpha / r.
    pub fn open(path: &Path, alpha: Option<f64>) -> Result<Lora> {
        Self::from_checkpoint(format::open(path)?, alpha)
    }

    /// As [`Lora::open`], from a file already read.
    ///
    /// # Errors
    /// As [`Lora::open`].
    pub fn from_checkpoint(ckpt: Checkpoint, alpha: Option<f64>) -> Result<Lora> {
        let path = ckpt.path.clone();
        let shown = path.display();
        let mut halves: IndexMap<String, [Option<StoredTensor>; 2]> = IndexMap::new();
        let mut replacements = IndexMap::new();
        for (name, tensor) in ckpt.tensors {
            let name = name.strip_prefix("base_model.model.").unwrap_or(&name);
            let name = name.strip_prefix("model.").filter(|n| n.starts_with("blocks.")).unwrap_or(name);
            let stem = name.strip_suffix(".weight").unwrap_or(name);
            let stem = stem.strip_suffix(".default").unwrap_or(stem);
            let half = [".lora_A", ".lora_B"].iter().position(|s| stem.ends_with(s));
            if let Some(half) = half {
                if tensor.shape.len() != 2 {
                    return Err(Error::Lora(format!(
                        "{shown}: `{name}` has shape {:?}, not two axes",
                        tensor.shape
                    )));
                }
                halves.entry(stem[..stem.len() - 7].to_string()).or_default()[half] = Some(tensor);
            } else {
                replacements.insert(name.to_string(), tensor);
            }
        }
        let holds = |part: &str| replacements.keys().any(|k: &String| k.ends_with(part));
        if holds(".init_lora_A") {
            return Err(Error::Lora(format!(
                "{shown} holds what PiSSA training began with, not what it ended with; merge the two into the base \
                 model with RWKV-PEFT's merge program and open the result"
            )));
        }
        if holds(".disha") || holds(".bone") {
            return Err(Error::Lora(format!(
                "{shown} is a DiSHA (bone) adapter, which hawfinch does not apply; merge it into the base model with \
                 RWKV-PEFT's merge program and open the result"
            )));
        }
        if halves.is_empty() {
            return Err(Error::Lora(format!("{shown} holds no tensors named `….lora_A` and `….lora_B`")));
        }
        let mut modules = IndexMap::new();
        for (module, pair) in halves {
            let [Some(a), Some(b)] = pair else {
                return Err(Error::Lora(format!("{shown}: `{module}` has only one of lora_A and lora_B")));
            };
            if a.shape[0] != b.shape[1] || a.shape[0] == 0 {
                return Err(Error::Lora(format!(
                    "{shown}: `{module}` has lora_A of shape {:?} and lora_B of shape {:?}, whose ranks differ",
                    a.shape, b.shape
                )));
            }
            modules.insert(module, (a, b));
        }
        let in_file = |key: &str| ckpt.metadata.get(key).and_then(|s| s.parse().ok());
        let alpha =
            match alpha.or_else(|| in_file(crate::metadata::LORA_ALPHA)).or_else(|| in_file("lora_alpha")) {
                Some(alpha) => Some(alpha),
                None => alpha_beside(&path)?,
            };
        let alpha = alpha.filter(|a: &f64| a.is_finite());
        let alpha = alpha.ok_or_else(|| {
            Error::Lora(format!(
                "{shown} does not say its alpha, and no adapter_config.json or peft.json beside it does; \
                 give the alpha it was trained with, as in --lora FILE:alpha=32"
            ))
        })?;
        let base = ckpt.metadata.get(crate::metadata::MODEL).cloned();
        Ok(Lora { modules, replacements, alpha, base })
    }

    /// First 16 hexadecimal digits of SHA-256 over the file's tensors and alpha: part of the
    /// [identity](crate::Model::identity) of a model that it is applied to.
    pub fn fingerprint(&self) -> String {
        use sha2::{Digest, Sha256};
        let pairs = self.modules.iter().flat_map(|(name, (a, b))| [(name, a), (name, b)]);
        let mut hash = Sha256::new();
        hash.update(self.alpha.to_le_bytes());
        for (name, tensor) in pairs.chain(&self.replacements) {
            hash.update(name.as_bytes());
            hash.update(tensor.dtype.name().as_bytes());
            hash.update(&tensor.data);
        }
        hash.finalize().iter().take(8).fold(String::new(), |s, b| format!("{s}{b:02x}"))
    }

    /// Refuses a LoRA that does not fit a checkpoint: modules or tensors it lacks, other shapes, a module that
    /// is no linear layer (the embedding's rows are looked up, not multiplied).
    pub(crate) fn check(&self, base: &Checkpoint, config: &Config) -> Result<()> {
        if let Some(trained_beside) = &self.base {
            let own = crate::hash::identity(base, None)?;
            if *trained_beside != own {
                let short = |s: &str| s.chars().take(19).collect::<String>();
                return Err(Error::Lora(format!(
                    "it was trained beside another model ({}…) than {} ({}…): give the one it was trained beside",
                    short(trained_beside),
                    base.path.display(),
                    short(&own)
                )));
            }
        }
        let role = |name: &str| names::find(config.version, name).map(|(_, param)| param.role);
        for (module, (a, b)) in &self.modules {
            let name = format!("{module}.weight");
            if base.get(&name).is_some() && (name == "emb.weight" || role(&name) != Some(Role::Matrix)) {
                return Err(Error::Lora(format!(
                    "its `{module}` is no linear layer of {}; train the whole tensor in place of a pair",
                    config.version.plain_name()
                )));
            }
            let Some(w) = base.get(&name) else {
                return Err(Error::Lora(format!("the model has no `{name}`: it belongs to another model")));
            };
            if w.shape[..] != [b.shape[0], a.shape[1]] {
                return Err(Error::Lora(format!(
                    "`{name}` has shape {:?} in the model, but the LoRA's {module} is for [{}, {}]: \
                     it belongs to another model",
                    w.shape, b.shape[0], a.shape[1]
                )));
            }
        }
        for (name, tensor) in &self.replacements {
            match base.get(name) {
                // Axes of length 1 may come and go in vectors only.
                Some(t) if t.shape == tensor.shape => {}
                Some(t) if t.squeezed() == tensor.squeezed() && role(name) == Some(Role::Vector) => {}
                Some(t) => {
                    return Err(Error::Lora(format!(
                        "its `{name}` has shape {:?}, the model's {:?}: it belongs to another model",
                        tensor.shape, t.shape
                    )));
                }
                None => return Err(Error::Lora(format!("the model has no `{name}`, which it replaces"))),
            }
        }
        Ok(())
    }
}

/// `lora_alpha` or `alpha`, at the top or under `lora` or `lora_config`, of a JSON file beside.
///
/// # Errors
/// The file says that the scale is not alpha / r for every module.
fn alpha_beside(path: &Path) -> Result<Option<f64>> {
    let Some(folder) = path.parent() else { return Ok(None) };
    let own = path.with_extension("json");
    for file in [own, folder.join("adapter_config.json"), folder.join("peft.json")] {
        // A side file of over a megabyte is something else.
        if std::fs::metadata(&file).map_or(true, |m| m.len() > 1 << 20) {
            continue;
        }
        let json = std::fs::read(&file).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let Some(json): Option<serde_json::Value> = json else { continue };
        let tables = [Some(&json), json.get("lora"), json.get("lora_config")];
        let number = |t: &serde_json::Value| t.get("lora_alpha").or_else(|| t.get("alpha"))?.as_f64();
        let Some((table, alpha)) = tables.into_iter().flatten().find_map(|t| Some((t, number(t)?))) else {
            continue;
        };
        let by_root = table.get("use_rslora").and_then(|v| v.as_bool()) == Some(true);
        let by_module = table.get("alpha_pattern").and_then(|v| v.as_object()).is_some_and(|m| !m.is_empty());
        if by_root || by_module {
            return Err(Error::Lora(format!(
                "{} asks for a scale other than alpha / r for every module ({}); merge it into the base model and open \
                 the result",
                file.display(),
                if by_root { "use_rslora" } else { "alpha_pattern" }
            )));
        }
        return Ok(Some(alpha));
    }
    Ok(None)
}
