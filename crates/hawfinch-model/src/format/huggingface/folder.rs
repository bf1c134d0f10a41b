//! A folder with one model in it: `model.safetensors`, shards listed by an index, `pytorch_model.bin`,
//! or any single weight file. `config.json` is optional; the tensors decide.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::checkpoint::{Checkpoint, FileFormat};
use crate::config::GROUP_NORM_EPS;
use crate::format;
use crate::{Error, Result};

/// Longest index or configuration that is read.
const MAX_JSON: u64 = 64 << 20;
/// Indices of sharded models, in the order they are looked for.
const INDICES: [&str; 2] = ["model.safetensors.index.json", "pytorch_model.bin.index.json"];
/// Unsharded models, likewise.
const SINGLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Models of a folder that are named where there is more than one.
const LISTED: usize = 12;
/// Extensions of weight files.
const EXTENSIONS: [&str; 6] = ["safetensors", "pth", "pt", "gguf", "st", "bin"];

/// Opens the model in a folder.
pub(in crate::format) fn open(dir: &Path) -> Result<Checkpoint> {
    let mut ckpt = read(dir)?;
    ckpt = format::translate(ckpt)?;
    ckpt.path = dir.into();
    if ckpt.format == FileFormat::HuggingFace {
        ckpt.group_norm_eps = norm_eps(dir)?;
    }
    Ok(ckpt)
}

fn read(dir: &Path) -> Result<Checkpoint> {
    for index in INDICES {
        let path = dir.join(index);
        if path.is_file() {
            return read_shards(dir, &path);
        }
    }
    for name in SINGLE {
        let path = dir.join(name);
        if path.is_file() {
            return read_file(&path);
        }
    }
    let named = candidates(dir)?;
    if let [one] = &named[..] {
        return read_file(one);
    }
    let models: Vec<&PathBuf> = named.iter().filter(|p| format::is_model(p)).collect();
    match &models[..] {
        [one] => read_file(one),
        [] if named.is_empty() => Err(Error::not_a_model(
            dir,
            "the folder holds no model file (.safetensors, .pth, .st, .gguf, .bin)",
        )),
        [] => Err(Error::not_a_model(
            dir,
            format!("none of the {} files there that are named like models is one", named.len()),
        )),
        many => {
            let names = many.iter().take(LISTED);
            let names = names.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
            let more = match many.len().saturating_sub(LISTED) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            let names = names.collect::<Vec<_>>().join(", ");
            let many = many.len();
            let why = format!("the folder holds {many} models; give one of them: {names}{more}");
            Err(Error::not_a_model(dir, why))
        }
    }
}

fn read_file(path: &Path) -> Result<Checkpoint> {
    format::open_file(path)
}

/// Weight files in the folder itself, sorted by name.
fn candidates(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        if !hidden && extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) && path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MAX_JSON {
        return Err(Error::damaged(path, format!("it is {size} bytes long, which no such file is")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::damaged(path, format!("it does not parse: {e}")))
}

fn read_shards(dir: &Path, index_path: &Path) -> Result<Checkpoint> {
    let index: Index = json(index_path)?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    if files.is_empty() {
        return Err(Error::damaged(index_path, "it lists no shards"));
    }
    let mut out = Checkpoint::new(dir, FileFormat::Safetensors);
    out.files.push(index_path.into());
    for file in files {
        // A plain name only: an index must not lead outside its folder.
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::damaged(
                index_path,
                format!("it names the shard {file:?}, which is outside the folder"),
            ));
        }
        let path = dir.join(file);
        if !path.is_file() {
            return Err(Error::damaged(
                dir,
                format!("the shard {file} that its index lists is not there: download it too"),
            ));
        }
        let shard = read_file(&path)?;
        out.files.extend(shard.files);
        out.format = shard.format;
        out.file_bytes += shard.file_bytes;
        out.metadata.extend(shard.metadata);
        for (name, tensor) in shard.tensors {
            out.insert(name, tensor)?;
        }
    }
    if let Some(missing) = index.weight_map.keys().find(|k| !out.tensors.contains_key(*k)) {
        return Err(Error::damaged(
            dir,
            format!("its index lists the tensor `{missing}`, which no shard holds"),
        ));
    }
    Ok(out)
}

#[derive(Deserialize)]
struct ModelConfig {
    norm_eps: Option<f64>,
    head_dim: Option<f64>,
}

/// Group-norm epsilon of a flash-linear-attention model (head size × `norm_eps`) where it is not the
/// official one.
fn norm_eps(dir: &Path) -> Result<Option<f32>> {
    let path = dir.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config: ModelConfig = json(&path)?;
    let (Some(eps), Some(head)) = (config.norm_eps, config.head_dim) else { return Ok(None) };
    let product = eps * head;
    let official = (product - GROUP_NORM_EPS).abs() < 1e-9;
    Ok((!official && product > 0.0 && product < 1.0).then_some(product as f32))
}
