//! Names of transformers' RWKV-4 and of the RWKV-5 and RWKV-6 models published with code of their own
//! (`RWKV/rwkv-5-world-…`, `RWKV/v6-Finch-…`): `rwkv.embeddings.weight`,
//! `rwkv.blocks.N.attention.time_mix_key`. Shapes and values are the official ones.

use indexmap::IndexMap;

use crate::checkpoint::Checkpoint;
use crate::names::split_block;
use crate::{Error, Result};

/// True for a checkpoint with these names.
pub(super) fn recognise(ckpt: &Checkpoint) -> bool {
    ckpt.tensors.keys().any(|k| {
        let k = k.strip_prefix("rwkv.").unwrap_or(k);
        split_block(k).is_some_and(|(_, r)| r.starts_with("attention.") || r.starts_with("feed_forward."))
    })
}

/// Official names for these. Buffers that hold no parameter stay under their own name.
pub(super) fn translate(mut ckpt: Checkpoint) -> Result<Checkpoint> {
    let mut out = IndexMap::with_capacity(ckpt.tensors.len());
    for (name, t) in std::mem::take(&mut ckpt.tensors) {
        let official = official(&name).unwrap_or_else(|| name.clone());
        if out.insert(official, t).is_some() {
            return Err(Error::damaged(&ckpt.path, format!("two of its tensors are both `{name}`")));
        }
    }
    ckpt.tensors = out;
    Ok(ckpt)
}

fn official(name: &str) -> Option<String> {
    let bare = name.strip_prefix("rwkv.").unwrap_or(name);
    if let Some(rest) = bare.strip_prefix("embeddings.") {
        return Some(format!("emb.{rest}"));
    }
    if bare.starts_with("ln_out.") || bare.starts_with("head.") {
        return Some(bare.to_string());
    }
    let (layer, rest) = split_block(bare)?;
    let (module, rest) = rest.split_once('.')?;
    let module = match module {
        "pre_ln" => "ln0",
        "ln1" | "ln2" => module,
        "attention" => "att",
        "feed_forward" => "ffn",
        _ => return None,
    };
    let rest = match rest {
        "time_mix_key" => "time_mix_k",
        "time_mix_value" => "time_mix_v",
        "time_mix_receptance" => "time_mix_r",
        "time_mix_gate" => "time_mix_g",
        other => other,
    };
    Some(format!("blocks.{layer}.{module}.{rest}"))
}
