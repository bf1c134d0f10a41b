//! Names of flash-linear-attention's RWKV-7 and RWKV-6: `model.layers.N.attn.w_lora.lora.0.weight` and
//! so on. Low-rank matrices are ordinary linear layers there, so their axes are the official ones
//! swapped; vectors lack their unit axes.
//!
//! Source: `utils/convert_from_rwkv7.py` and `convert_from_rwkv6.py` of that project, read the other
//! way round.

use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::{Error, Result};

/// True for a checkpoint with these names.
pub(super) fn recognise(ckpt: &Checkpoint) -> bool {
    ckpt.tensors.keys().any(|k| {
        layer_of(k).is_some_and(|(_, r)| {
            r == "attn.r_k"
                || r.starts_with("attn.w_lora.")
                || r.starts_with("attn.x_proj.")
                || r == "attn.bonus"
        })
    })
}

/// `model.layers.12.attn.k_k` → (12, `attn.k_k`).
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if layer.is_empty() || layer.len() > 4 || !layer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((layer.parse().ok()?, rest))
}

/// Official names and logical shapes.
pub(super) fn translate(mut ckpt: Checkpoint) -> Result<Checkpoint> {
    let v6 = ckpt.tensors.keys().any(|k| layer_of(k).is_some_and(|(_, r)| r.starts_with("attn.x_proj.")));
    let mut out: IndexMap<String, StoredTensor> = IndexMap::with_capacity(ckpt.tensors.len());
    for (name, t) in std::mem::take(&mut ckpt.tensors) {
        let parts = match layer_of(&name) {
            Some((layer, rest)) => {
                let block = |r: String| format!("blocks.{layer}.{r}");
                let odd =
                    || Error::damaged(&ckpt.path, format!("tensor `{name}` has the odd shape {:?}", t.shape));
                if v6 { layer_v6(rest, &t).ok_or_else(odd)? } else { layer_v7(rest, &t).ok_or_else(odd)? }
                    .into_iter()
                    .map(|(r, t)| (block(r), t))
                    .collect()
            }
            None => vec![(outside(&name).unwrap_or(&name).to_string(), t)],
        };
        for (official, t) in parts {
            if out.insert(official, t).is_some() {
                return Err(Error::damaged(&ckpt.path, format!("two of its tensors are both `{name}`")));
            }
        }
    }
    ckpt.tensors = out;
    Ok(ckpt)
}

fn outside(name: &str) -> Option<&'static str> {
    Some(match name {
        "model.embeddings.weight" => "emb.weight",
        "model.norm.weight" => "ln_out.weight",
        "model.norm.bias" => "ln_out.bias",
        "lm_head.weight" => "head.weight",
        _ => return None,
    })
}

/// Norm and linear layers that both versions name alike.
fn common(rest: &str) -> Option<String> {
    let (module, leaf) = rest.rsplit_once('.')?;
    let module = match module {
        "pre_norm" => "ln0",
        "attn_norm" => "ln1",
        "ffn_norm" => "ln2",
        "attn.g_norm" => "att.ln_x",
        "attn.r_proj" => "att.receptance",
        "attn.k_proj" => "att.key",
        "attn.v_proj" => "att.value",
        "attn.o_proj" => "att.output",
        "ffn.key" | "ffn.value" | "ffn.receptance" => module,
        _ => return None,
    };
    Some(format!("{module}.{leaf}"))
}

fn swap(t: &StoredTensor) -> Option<StoredTensor> {
    let [rows, cols] = t.shape[..] else { return None };
    Some(StoredTensor { shape: vec![cols, rows], transposed: !t.transposed, ..t.clone() })
}

type Parts = Vec<(String, StoredTensor)>;

fn layer_v7(rest: &str, t: &StoredTensor) -> Option<Parts> {
    if let Some(name) = common(rest) {
        return Some(vec![(name, t.clone())]);
    }
    let rest_att = rest.strip_prefix("attn.");
    if let Some((letter, leaf)) = rest_att.and_then(|r| r.split_once("_lora.lora."))
        && matches!(letter, "w" | "a" | "v" | "g")
    {
        return match leaf {
            "0.weight" => Some(vec![(format!("att.{letter}1"), swap(t)?)]),
            "2.weight" => Some(vec![(format!("att.{letter}2"), swap(t)?)]),
            "2.bias" => Some(vec![(format!("att.{letter}0"), t.clone())]),
            _ => Some(vec![(rest.to_string(), t.clone())]),
        };
    }
    // Early versions keep the six mixes in one tensor.
    if rest == "attn.x_x" {
        let parts = rows(t, 6)?;
        let letters = ["r", "w", "k", "v", "a", "g"];
        return Some(letters.iter().zip(parts).map(|(l, t)| (format!("att.x_{l}"), t)).collect());
    }
    let name = match rest_att {
        Some(r) => format!("att.{r}"),
        None => rest.to_string(),
    };
    Some(vec![(name, t.clone())])
}

/// Cuts the first axis into `n` tensors, without a copy.
fn rows(t: &StoredTensor, n: usize) -> Option<Vec<StoredTensor>> {
    let squeezed = t.squeezed();
    let (&[count, width], false) = (&squeezed[..], t.transposed) else { return None };
    if count != n || !t.data.len().is_multiple_of(n) {
        return None;
    }
    let bytes = t.data.len() / n;
    (0..n)
        .map(|i| StoredTensor::new(t.dtype, vec![width], t.data.slice(i * bytes..(i + 1) * bytes)))
        .collect()
}

/// Where v6's five parts w, k, v, r, g stand in flash-linear-attention's order r, w, k, v, g.
const V6_PARTS: [usize; 5] = [1, 2, 3, 0, 4];

fn layer_v6(rest: &str, t: &StoredTensor) -> Option<Parts> {
    // Linear layers with a mix of their own are `X.linear.weight` and `X.mu`.
    let plain = rest.replace(".linear.weight", ".weight");
    if rest == "ffn.key.mu" || rest == "ffn.receptance.mu" {
        let name = if rest == "ffn.key.mu" { "ffn.time_maa_k" } else { "ffn.time_maa_r" };
        return Some(vec![(name.into(), t.clone())]);
    }
    if plain == "attn.g_proj.weight" {
        return Some(vec![("att.gate.weight".into(), t.clone())]);
    }
    if let Some(name) = common(&plain) {
        return Some(vec![(name, t.clone())]);
    }
    let one = |name: &str, t: StoredTensor| Some(vec![(name.to_string(), t)]);
    match rest {
        "attn.x_proj.0.mu" => one("att.time_maa_x", t.clone()),
        "attn.x_proj.0.linear.weight" => one("att.time_maa_w1", mix_in(t)?),
        "attn.x_proj.2.weight" => one("att.time_maa_w2", mix_out(t)?),
        "attn.x_bias" => {
            let parts = rows(t, 5)?;
            let letters = ["r", "w", "k", "v", "g"];
            Some(letters.iter().zip(parts).map(|(l, t)| (format!("att.time_maa_{l}"), t)).collect())
        }
        "attn.w_proj.linear.lora.0.weight" => one("att.time_decay_w1", swap(t)?),
        "attn.w_proj.linear.lora.2.weight" => one("att.time_decay_w2", swap(t)?),
        "attn.w_proj.linear.lora.2.bias" => one("att.time_decay", t.clone()),
        "attn.bonus" => one("att.time_faaaa", t.clone()),
        _ => Some(vec![(rest.to_string(), t.clone())]),
    }
}

/// `[5R, D]`, parts r, w, k, v, g → official `[D, 5R]` (bytes `[5R, D]`), parts w, k, v, r, g.
fn mix_in(t: &StoredTensor) -> Option<StoredTensor> {
    let (&[five_r, d], false) = (&t.shape[..], t.transposed) else { return None };
    if !five_r.is_multiple_of(5) || t.data.is_empty() {
        return None;
    }
    let part = t.data.len() / 5;
    let data: Vec<u8> = V6_PARTS.iter().flat_map(|&p| &t.data[p * part..(p + 1) * part]).copied().collect();
    let mut t = StoredTensor::new(t.dtype, vec![five_r, d], data.into())?;
    t.shape = vec![d, five_r];
    t.transposed = true;
    Some(t)
}

/// `[D, 5R]`, parts r, w, k, v, g → official `[5, R, D]` (bytes `[5, D, R]`), parts w, k, v, r, g.
fn mix_out(t: &StoredTensor) -> Option<StoredTensor> {
    let (&[d, five_r], false) = (&t.shape[..], t.transposed) else { return None };
    if !five_r.is_multiple_of(5) || t.data.is_empty() || t.dtype.block_len() != 1 {
        return None;
    }
    let r = five_r / 5;
    let part = r * t.dtype.block_bytes();
    let mut data = Vec::with_capacity(t.data.len());
    for p in V6_PARTS {
        for row in t.data.chunks_exact(5 * part) {
            data.extend_from_slice(&row[p * part..(p + 1) * part]);
        }
    }
    let mut t = StoredTensor::new(t.dtype, vec![5, d, r], data.into())?;
    t.shape = vec![5, r, d];
    t.transposed = true;
    Some(t)
}
