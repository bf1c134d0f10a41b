//! LoRA files as RWKV-PEFT writes them: per module a pair A `[r, in]`, B `[out, r]` meaning
//! `W + (alpha / r) B A`, and whole tensors that replace the base's. They are applied unmerged.

use std::path::Path;

use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::{Error, Result, format};

/// One LoRA file, ready to apply.
#[derive(Clone, Debug)]
pub struct Lora {
    /// `blocks.0.att.key` → (A `[r, in]`, B `[out, r]`).
    pub modules: IndexMap<String, (StoredTensor, StoredTensor)>,
    /// Official name → tensor that takes the place of the base's.
    pub replacements: IndexMap<String, StoredTensor>,
    /// alpha of `alpha / r`.
    pub alpha: f64,
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
    /// Not a LoRA file; half a pair; ranks that disagree; no alpha anywhere.
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
        let alpha = alpha
            .or_else(|| in_file("hawfinch.lora_alpha"))
            .or_else(|| in_file("lora_alpha"))
            .or_else(|| alpha_beside(&path))
            .filter(|a: &f64| a.is_finite());
        let alpha = alpha.ok_or_else(|| {
            Error::Lora(format!(
                "{shown} does not say its alpha, and no adapter_config.json or peft.json beside it does; \
                 give the alpha it was trained with, as in --lora FILE:alpha=32"
            ))
        })?;
        Ok(Lora { modules, replacements, alpha })
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

    /// Refuses a LoRA that does not fit a checkpoint: modules or tensors it lacks, other shapes.
    pub(crate) fn check(&self, base: &Checkpoint) -> Result<()> {
        for (module, (a, b)) in &self.modules {
            let name = format!("{module}.weight");
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
                Some(t) if t.squeezed() == tensor.squeezed() => {}
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
fn alpha_beside(path: &Path) -> Option<f64> {
    let folder = path.parent()?;
    let own = path.with_extension("json");
    [own, folder.join("adapter_config.json"), folder.join("peft.json")].iter().find_map(|file| {
        // A side file of over a megabyte is something else.
        if std::fs::metadata(file).ok()?.len() > 1 << 20 {
            return None;
        }
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        let tables = [Some(&json), json.get("lora"), json.get("lora_config")];
        let number = |t: &serde_json::Value| t.get("lora_alpha").or_else(|| t.get("alpha"))?.as_f64();
        tables.into_iter().flatten().find_map(number)
    })
}
