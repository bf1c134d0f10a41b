//! The `.st` files of web-rwkv and Ai00: safetensors in f16, lower-case names, `time_faaaa` called
//! `time_first`, `time_maa` called `time_mix`, and the low-rank matrices (and tuned states) with their
//! last two axes swapped. Here they get their official names and logical shapes; the bytes stay.
//!
//! Source: what web-rwkv's `convert_safetensors.py` does to a `.pth`, read the other way round. Its
//! treatment of v5.1 (decay and bonus of a head repeated over the head's channels) is undone too.

use bytes::Bytes;
use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use crate::{Error, Result, metadata, names};

/// True when the names and shapes are those that web-rwkv's converter makes. (Its v4 files have official
/// names and shapes throughout.)
pub(super) fn recognise(ckpt: &Checkpoint) -> bool {
    if ckpt.metadata.keys().any(|k| k.starts_with(metadata::PREFIX)) {
        return false;
    }
    let get = |name: &str| ckpt.get(&format!("blocks.0.att.{name}"));
    if get("time_mix_x").is_some() || get("time_mix_w1").is_some() {
        return true;
    }
    // v7 differs by the swapped axes only: official w1, a1 and g1 are [D, rank]. One rank may equal D; where
    // all do, the file is taken as official.
    if let (Some(_), Some([_, width])) = (get("w1"), ckpt.get("emb.weight").map(|t| &t.shape[..])) {
        let swapped = |name: &str| {
            get(name).is_some_and(|t| matches!(t.shape[..], [rows, cols] if cols == *width && rows != *width))
        };
        return ["w1", "a1", "g1"].into_iter().any(swapped);
    }
    // v5: the bonus or the decay a matrix under the name of v4's vector.
    if get("ln_x.weight").is_some() && get("time_faaaa").is_none() {
        let wide = |name: &str| get(name).is_some_and(is_matrix);
        return wide("time_first") || (wide("time_decay") && get("time_first").is_some());
    }
    is_tuned_state(ckpt)
}

/// A file of nothing but `time_state` in f16, as the converter makes from a tuned state. (Trainers write
/// these as `.pth`, in bf16 or f32 and unswapped; our own files say in their metadata that they are ours.)
fn is_tuned_state(ckpt: &Checkpoint) -> bool {
    !ckpt.tensors.is_empty()
        && ckpt
            .tensors
            .iter()
            .all(|(k, t)| k.ends_with(".att.time_state") && t.dtype == hawfinch_kernels::DType::F16)
}

/// Gives a file that [`recognise`] knows its official names and logical shapes.
pub(super) fn translate(mut ckpt: Checkpoint) -> Result<Checkpoint> {
    ckpt.format = FileFormat::WebRwkv;
    let has = |suffix: &str| ckpt.tensors.keys().any(|k| k.ends_with(suffix));
    let v6 = has(".att.time_mix_x") || has(".att.time_mix_w1");
    let v5 = !v6 && has(".att.ln_x.weight") && has(".att.time_decay");
    let scalar_v5 = v5 && expanded_scalars(&ckpt);
    let tensors = std::mem::take(&mut ckpt.tensors);
    let mut out = IndexMap::with_capacity(tensors.len());
    for (name, mut t) in tensors {
        let rest = names::split_block(&name).map_or("", |(_, rest)| rest).to_string();
        if swapped(&rest) && t.shape.len() >= 2 {
            let n = t.shape.len();
            t.shape.swap(n - 2, n - 1);
            t.transposed = !t.transposed;
        }
        if scalar_v5 && matches!(rest.as_str(), "att.time_decay" | "att.time_first") {
            // A bonus that was a vector already is the logarithmic one, whose name the converter keeps.
            let log_bonus = rest == "att.time_first" && !is_matrix(&t);
            t = first_column(t);
            if log_bonus {
                out.insert(name, t);
                continue;
            }
        }
        let mut official = name.clone();
        if v6 {
            official = official.replace(".time_mix_", ".time_maa_");
        }
        if v5 || v6 {
            official = official.replace(".att.time_first", ".att.time_faaaa");
        }
        if out.insert(official, t).is_some() {
            return Err(Error::damaged(&ckpt.path, format!("two of its tensors are both `{name}`")));
        }
    }
    ckpt.tensors = out;
    Ok(ckpt)
}

/// Per-layer parameters that the converter stores with swapped axes.
fn swapped(rest: &str) -> bool {
    matches!(
        rest,
        "att.time_mix_w1"
            | "att.time_mix_w2"
            | "att.time_decay_w1"
            | "att.time_decay_w2"
            | "att.time_state"
            | "att.w1"
            | "att.w2"
            | "att.a1"
            | "att.a2"
            | "att.g1"
            | "att.g2"
            | "att.v1"
            | "att.v2"
    )
}

/// `[H, N]`, one head included.
fn is_matrix(t: &StoredTensor) -> bool {
    matches!(t.shape[..], [_, cols] if cols > 1)
}

/// True when every decay of a v5 file is the same number all over a head, as the converter makes v5.1.
fn expanded_scalars(ckpt: &Checkpoint) -> bool {
    let mut decays = ckpt.tensors.iter().filter(|(k, _)| k.ends_with(".att.time_decay")).peekable();
    let constant_rows = |t: &StoredTensor| {
        let size = t.dtype.block_bytes();
        let (true, Some(&cols)) = (is_matrix(t), t.shape.last()) else { return false };
        t.data.chunks_exact(cols * size).all(|row| row.chunks_exact(size).all(|v| v == &row[..size]))
    };
    decays.peek().is_some() && decays.all(|(_, t)| constant_rows(t))
}

/// `[H, N]` of equal columns → `[H]`; a vector stays as it is.
fn first_column(t: StoredTensor) -> StoredTensor {
    let size = t.dtype.block_bytes();
    match t.shape[..] {
        [heads, cols] if cols > 1 => {
            let data: Vec<u8> = t.data.chunks_exact(cols * size).flat_map(|r| &r[..size]).copied().collect();
            StoredTensor { shape: vec![heads], data: Bytes::from(data), ..t }
        }
        _ => t,
    }
}
