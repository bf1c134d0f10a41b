//! The identity of a model: SHA-256 over its canonical tensors. States name the model they belong to by
//! it, `convert` hands it on, so that a state still fits after the model changed its file format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, DecayForm};
use crate::config::{Config, present_name};
use crate::{Result, metadata, names};

/// The identity of the model: the one that its file carries (it was converted from another file), or
/// [`compute`]d and cached. `progress` is told (bytes done, bytes in all).
///
/// # Errors
/// Not a model.
pub fn identity(ckpt: &Checkpoint, progress: Option<&mut dyn FnMut(u64, u64)>) -> Result<String> {
    if let Some(hash) = ckpt.metadata.get(metadata::SOURCE_HASH).filter(|h| is_hash(h)) {
        return Ok(hash.clone());
    }
    let key = CacheKey::of(&ckpt.path);
    if let Some(hash) = key.as_ref().and_then(CacheKey::look_up) {
        return Ok(hash);
    }
    let hash = compute(ckpt, progress)?;
    if let Some(key) = key {
        key.store(&hash);
    }
    Ok(hash)
}

/// `sha256:` and 64 hexadecimal digits over every parameter in the order of its official name: name, number
/// type, shape without axes of length 1, and the bytes in logical row-major order. Layer 0's unused value
/// residual of v7 and tensors that are no parameters do not count, so the same numbers give the same hash
/// in every file format.
///
/// # Errors
/// Not a model.
pub fn compute(ckpt: &Checkpoint, mut progress: Option<&mut dyn FnMut(u64, u64)>) -> Result<String> {
    let config = Config::infer(ckpt)?;
    let mut keys: Vec<String> = names::all_params(config.version, config.layers)
        .into_iter()
        .filter(|(key, p)| !(p.optional_in_layer_0 && key.starts_with("blocks.0.")))
        .map(|(key, _)| present_name(ckpt, &key))
        .collect();
    keys.sort();
    let total: u64 = keys.iter().filter_map(|k| ckpt.get(k)).map(|t| t.data.len() as u64).sum();
    let mut hash = Sha256::new();
    hash.update(b"hawfinch model 1\0");
    if ckpt.decay_form == DecayForm::Exponentiated {
        hash.update(b"exponentiated decays\0");
    }
    let mut done = 0;
    for key in &keys {
        let Some(tensor) = ckpt.get(key) else { continue };
        hash.update(key.as_bytes());
        hash.update([0]);
        hash.update(tensor.dtype.name().as_bytes());
        for d in tensor.squeezed() {
            hash.update((d as u64).to_le_bytes());
        }
        let plain = !tensor.transposed && tensor.scale == 1.0;
        match tensor.converted(tensor.dtype) {
            Some(logical) if plain || tensor.dtype.is_float() => hash.update(&logical.data),
            // Transposed quantised blocks have no other form: as they are stored.
            _ => {
                hash.update(b"transposed\0");
                hash.update(tensor.scale.to_le_bytes());
                hash.update(&tensor.unpacked().data);
            }
        }
        done += tensor.data.len() as u64;
        if let Some(tell) = &mut progress {
            tell(done, total);
        }
    }
    let digest = hash.finalize();
    Ok(digest.iter().fold("sha256:".to_string(), |s, b| format!("{s}{b:02x}")))
}

/// In the form that [`compute`] gives; anything else in a file is not ours.
fn is_hash(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:");
    digits.is_some_and(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What must be unchanged for a cached hash to hold.
#[derive(Serialize, Deserialize, PartialEq, Clone)]
struct Stamp {
    bytes: u64,
    /// Since 1970, in nanoseconds. (Not u128, which serde cannot read inside a flattened structure.)
    modified_ns: u64,
}

#[derive(Serialize, Deserialize, Clone)]
struct Entry {
    #[serde(flatten)]
    stamp: Stamp,
    hash: String,
}

struct CacheKey {
    file: String,
    stamp: Stamp,
    cache: PathBuf,
}

/// Smaller files are hashed anew each time, which takes a few milliseconds.
const CACHED_FROM: u64 = 16 << 20;
/// Entries the cache keeps.
const CACHE_ENTRIES: usize = 1000;

impl CacheKey {
    /// For a single large file that can be named; other checkpoints are hashed anew each time.
    fn of(path: &Path) -> Option<CacheKey> {
        let path = path.canonicalize().ok()?;
        let meta = std::fs::metadata(&path).ok().filter(|m| m.is_file() && m.len() >= CACHED_FROM)?;
        let modified_ns =
            meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos().try_into().ok()?;
        Some(CacheKey {
            file: path.to_str()?.to_string(),
            stamp: Stamp { bytes: meta.len(), modified_ns },
            cache: cache_folder()?.join("hashes.json"),
        })
    }

    fn read(&self) -> BTreeMap<String, Entry> {
        let bytes = std::fs::read(&self.cache).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn look_up(&self) -> Option<String> {
        self.read().remove(&self.file).filter(|e| e.stamp == self.stamp).map(|e| e.hash)
    }

    /// A cache that cannot be written costs time, nothing else.
    fn store(&self, hash: &str) {
        let mut entries = self.read();
        if entries.len() >= CACHE_ENTRIES {
            entries.clear();
        }
        entries.insert(self.file.clone(), Entry { stamp: self.stamp.clone(), hash: hash.into() });
        let Some(folder) = self.cache.parent() else { return };
        if std::fs::create_dir_all(folder).is_ok()
            && let Ok(json) = serde_json::to_vec_pretty(&entries)
        {
            let _ = crate::format::replace_file(&self.cache, |out| out.write_all(&json));
        }
    }
}

/// `$HAWFINCH_CACHE`, else `hawfinch` in the platform's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("HAWFINCH_CACHE").or_else(|| {
        let base = var("XDG_CACHE_HOME")
            .or_else(|| var("LOCALAPPDATA"))
            .or_else(|| var("HOME").map(|h| h.join(".cache")))?;
        Some(base.join("hawfinch"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;
    use hawfinch_kernels::DType;

    #[test]
    fn one_number_changes_the_hash_and_unused_tensors_do_not() {
        let config = synthetic::Shape { layers: 2, width: 64, ..synthetic::DEMO }.config();
        let ckpt = synthetic::checkpoint(&config, DType::BF16, 1);
        let whole = compute(&ckpt, None).unwrap();
        assert_eq!(whole.len(), 7 + 64);
        let mut without = ckpt.clone();
        without.tensors.shift_remove("blocks.0.att.v1");
        assert_eq!(compute(&without, None).unwrap(), whole);
        let mut changed = ckpt.clone();
        let t = changed.tensors.get_mut("blocks.1.att.w0").unwrap();
        let mut bytes = t.data.to_vec();
        bytes[0] ^= 1;
        t.data = bytes.into();
        assert_ne!(compute(&changed, None).unwrap(), whole);
    }
}
