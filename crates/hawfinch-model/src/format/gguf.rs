//! GGUF models: llama.cpp's `rwkv6` and `rwkv7`, and `rwkv4` and `rwkv5` written by hawfinch. The
//! container is read by `gguf_container.rs`, names are in `gguf_names.rs`, writing in `gguf_write.rs`.
//!
//! What llama.cpp's converter changes is undone here without copying:
//!
//! - vectors lose axes of length 1, v7's `r_k` both of its axes;
//! - low-rank matrices are stored transposed;
//! - the token-shift mixes of a layer are one tensor (w k v r g in v6, r w k v a g in v7);
//! - v6 with `rescale_every_n_layers` = R: the output matrices of layer l are divided by 2^(l div R);
//! - layer 0 of v7, which has no value residual, holds copies of `a0 a1 a2` in its place: dropped. Files
//!   of ours keep the official checkpoint's unused `v0 v1 v2` there, filled up with zeros to the rank of
//!   `a1`, and say so in [`META_LAYER_0_VALUE_RANK`].

use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;
use indexmap::IndexMap;

use super::gguf_container::{self, Container, Stored, Value};
use super::gguf_names::{self as names, Arch};
use crate::names::{Dim, Param, Role, split_block};
use crate::{Checkpoint, Error, FileFormat, Layout, Result, StoredTensor, config};

/// Rank of layer 0's unused value residual in a v7 GGUF of ours; without this key it has none.
pub const META_LAYER_0_VALUE_RANK: &str = "hawfinch.layer_0_value_rank";
/// In place of the former where the rank is greater than that of `a1`: `v0`, `v1`, `v2` as one array of f32.
pub(super) const META_LAYER_0_VALUES: &str = "hawfinch.layer_0_values";
/// Number types that tensors had before GGUF made them F32: JSON, official key → type name, with `*` for
/// all that are not named.
pub const META_ORIGINAL_TYPES: &str = "hawfinch.original_types";

/// True when a file's first bytes are GGUF's.
pub fn is_gguf(head: &[u8]) -> bool {
    head.starts_with(gguf_container::MAGIC)
}

/// Reads a whole file; tensors share its bytes.
///
/// # Errors
/// A damaged container, block types that hawfinch does not decode, other architectures than RWKV-4 to 7.
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    let container = gguf_container::parse(path, &file)?;
    let reader = Reader::new(path, &container)?;
    let mut ckpt = Checkpoint::new(path, FileFormat::Gguf);
    ckpt.file_bytes = file.len() as u64;
    ckpt.metadata = container.keys.iter().filter_map(|(k, v)| Some((k.clone(), v.text()?))).collect();
    let mut layers = 0;
    for (name, stored) in &container.tensors {
        layers = layers.max(names::split_blk(name).map_or(0, |(l, _)| l + 1));
        for (key, tensor) in reader.official(name, stored)? {
            ckpt.insert(key, tensor)?;
        }
    }
    let said = reader.key("block_count").and_then(Value::count);
    if let Some(said) = said.filter(|&n| n != layers) {
        return Err(Error::damaged(path, format!("it says that it has {said} layers and holds {layers}")));
    }
    Ok(ckpt)
}

/// The vocabulary in a file of RWKV's World tokenizer: the bytes of each token by id, empty for id 0, the
/// end of text, and for unused ids. `None` when the file has another tokenizer or none.
///
/// # Errors
/// A damaged container.
pub fn world_vocabulary(path: &Path, file: &Bytes) -> Result<Option<Vec<Vec<u8>>>> {
    let container = gguf_container::parse(path, file)?;
    let is = |key: &str, what: &[u8]| matches!(container.keys.get(key), Some(Value::String(s)) if s == what);
    match container.keys.get("tokenizer.ggml.tokens") {
        Some(Value::Strings(tokens)) if is("tokenizer.ggml.model", b"rwkv") => {
            let unescaped = tokens.iter().enumerate().map(|(id, t)| match &t[..] {
                _ if id == 0 => Vec::new(),
                t if t.starts_with(b"[PAD") && t == format!("[PAD{id}]").as_bytes() => Vec::new(),
                t => unescape(t),
            });
            Ok(Some(unescaped.collect()))
        }
        _ => Ok(None),
    }
}

/// The number type that a tensor of a GGUF of ours had before it was widened to F32; its own type when
/// the file says nothing. Saving in that type gives the original bytes back.
pub fn original_type(ckpt: &Checkpoint, key: &str) -> Option<DType> {
    let own = ckpt.get(key)?.dtype;
    let record = ckpt.metadata.get(META_ORIGINAL_TYPES).filter(|_| own == DType::F32);
    let json: Option<serde_json::Value> = record.and_then(|r| serde_json::from_str(r).ok());
    let name = json.as_ref().and_then(|j| j.get(key).or_else(|| j.get("*"))).and_then(|v| v.as_str());
    Some(name.and_then(DType::from_name).filter(|d| d.is_float()).unwrap_or(own))
}

/// A token as llama.cpp writes it, a Python `bytes` literal without its quotes, back to bytes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        (rest, _) = match (first, tail) {
            (b'\\', [b'x', a, b, more @ ..]) if hex(*a).is_some() && hex(*b).is_some() => {
                (more, out.push(hex(*a).unwrap_or(0) << 4 | hex(*b).unwrap_or(0)))
            }
            (b'\\', [c, more @ ..]) => {
                let c = match c {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                };
                (more, out.push(c))
            }
            (c, more) => (more, out.push(*c)),
        };
    }
    out
}

struct Reader<'a> {
    path: &'a Path,
    arch: Arch,
    keys: &'a IndexMap<String, Value>,
    /// v6: every how many layers the residual is halved; 0 never.
    rescale: usize,
    head_size: Option<usize>,
    /// v7: rank of the real value residual of layer 0.
    layer_0_value_rank: Option<usize>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, container: &'a Container) -> Result<Self> {
        let keys = &container.keys;
        let damaged = |what: &str| Error::damaged(path, what.to_string());
        let name = keys.get("general.architecture").and_then(Value::text);
        let name = name.ok_or_else(|| damaged("it has no general.architecture"))?;
        let arch = Arch::from_name(&name).ok_or_else(|| other_architecture(path, &name))?;
        let mut reader = Reader { path, arch, keys, rescale: 0, head_size: None, layer_0_value_rank: None };
        reader.head_size = reader.key("wkv.head_size").and_then(Value::count).filter(|&n| n > 0);
        if let Some(v) = reader.key("rescale_every_n_layers").filter(|_| arch == Arch::Rwkv6) {
            reader.rescale = v.count().ok_or_else(|| damaged("its rescale_every_n_layers is not a count"))?;
        }
        if let Some(rank) = keys.get(META_LAYER_0_VALUE_RANK).and_then(Value::text) {
            let rank =
                rank.parse().map_err(|_| damaged("its hawfinch.layer_0_value_rank is not a number"))?;
            reader.layer_0_value_rank = Some(rank);
        }
        if reader.key("token_shift_count").and_then(Value::count).is_some_and(|n| n != 2) {
            return Err(Error::unsupported(
                path,
                "its token shift is not RWKV's (a hybrid with another model's feed-forward)",
            ));
        }
        let eps = match reader.key("attention.layer_norm_epsilon") {
            Some(Value::Float32(v)) => f64::from(*v),
            Some(Value::Float(v)) => *v,
            _ => config::LAYER_NORM_EPS,
        };
        if eps.is_nan() || (eps - config::LAYER_NORM_EPS).abs() > 1e-9 {
            return Err(Error::unsupported(
                path,
                format!("its layer norms use epsilon {eps}, RWKV's use {}", config::LAYER_NORM_EPS),
            ));
        }
        Ok(reader)
    }

    /// The value of `ARCH.key`.
    fn key(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(&format!("{}.{key}", self.arch.name()))
    }

    fn wrong_shape(&self, name: &str, stored: &Stored, expected: &str) -> Error {
        Error::damaged(
            self.path,
            format!("tensor `{name}` has shape {:?} ({}), expected {expected}", stored.shape, stored.dtype),
        )
    }

    /// The official tensors that a stored one holds: one, several for fused mixes, none for placeholders.
    fn official(&self, name: &str, stored: &Stored) -> Result<Vec<(String, StoredTensor)>> {
        if let Some((layer, names::FUSED)) = names::split_blk(name)
            && !names::fused(self.arch).is_empty()
        {
            return self.split(layer, name, stored);
        }
        let unknown = || {
            let arch = self.arch.name();
            Error::unsupported(self.path, format!("it holds a tensor `{name}` that {arch} does not have"))
        };
        let key = names::to_official(self.arch, name).ok_or_else(unknown)?;
        let Some((_, param)) = crate::names::find(self.arch.version(), &key) else {
            // v5's logarithmic bonus, [H].
            let t = StoredTensor::new(stored.dtype, stored.shape.clone(), stored.data.clone());
            return Ok(vec![(key, t.ok_or_else(unknown)?)]);
        };
        if param.optional_in_layer_0 && matches!(split_block(&key), Some((0, _))) {
            let Some(rank) = self.layer_0_value_rank else { return Ok(Vec::new()) };
            let tensor = self.layer_0_value(name, stored, param, rank)?;
            return Ok(vec![(key, tensor)]);
        }
        let mut tensor = self.restore(name, stored, param)?;
        if self.rescale > 0 && matches!(param.name, "att.output.weight" | "ffn.value.weight") {
            let halvings = split_block(&key).map_or(0, |(layer, _)| layer / self.rescale);
            // Anything near this is nonsense, and 2^128 is not an f32.
            if halvings > 64 {
                return Err(Error::damaged(
                    self.path,
                    format!("its rescale_every_n_layers is {} for this many layers", self.rescale),
                ));
            }
            tensor.scale = (halvings as f32).exp2();
        }
        Ok(vec![(key, tensor)])
    }

    /// The official shape and orientation of a stored tensor.
    fn restore(&self, name: &str, stored: &Stored, param: &Param) -> Result<StoredTensor> {
        let mut shape = stored.shape.clone();
        let len: usize = shape.iter().product();
        let mut transposed = false;
        match (param.role, param.shape) {
            (Role::LowRank, official) => {
                let n = official.len();
                if shape.len() != n {
                    return Err(self.wrong_shape(name, stored, &format!("{n} axes")));
                }
                shape.swap(n - 2, n - 1);
                transposed = true;
            }
            (_, [Dim::One, Dim::One, _]) => shape = vec![1, 1, len],
            // v7's r_k and anything of a single head comes flat; v5.0's and v5.1's [H] is so itself.
            (_, [Dim::H, Dim::N]) if shape.len() == 1 && self.arch != Arch::Rwkv5 => {
                let n = self.head_size.filter(|n| len.is_multiple_of(*n)).ok_or_else(|| {
                    self.wrong_shape(name, stored, "a multiple of wkv.head_size, which the file must give")
                })?;
                shape = vec![len / n, n];
            }
            _ => {}
        }
        let tensor = StoredTensor {
            dtype: stored.dtype,
            shape,
            transposed,
            scale: 1.0,
            layout: Layout::Rows,
            data: stored.data.clone(),
        };
        if tensor.expected_bytes() != Some(tensor.data.len()) {
            return Err(self.wrong_shape(name, stored, "whole blocks in a row"));
        }
        Ok(tensor)
    }

    /// The parts of a fused tensor, `[parts, 1, 1, D]`, over the same bytes.
    fn split(&self, layer: usize, name: &str, stored: &Stored) -> Result<Vec<(String, StoredTensor)>> {
        let parts = names::fused(self.arch);
        let width = stored.shape.last().copied().unwrap_or(0);
        let axes = stored.shape.len();
        let total: usize = stored.shape.iter().product();
        let wrong = || self.wrong_shape(name, stored, &format!("[{}, 1, 1, width]", parts.len()));
        let len = stored.dtype.bytes_for(width).ok_or_else(wrong)?;
        if axes < 2 || total != parts.len() * width || stored.data.len() != parts.len() * len {
            return Err(wrong());
        }
        let cut = |(i, rest): (usize, &&str)| {
            let data = stored.data.slice(i * len..(i + 1) * len);
            let t = StoredTensor::new(stored.dtype, vec![1, 1, width], data).ok_or_else(wrong)?;
            Ok((format!("blocks.{layer}.{rest}"), t))
        };
        parts.iter().enumerate().map(cut).collect()
    }

    /// Layer 0's `v0 v1 v2` in files of ours: the first `rank` of the ranks stored, or a part of the array
    /// beside them.
    fn layer_0_value(&self, name: &str, stored: &Stored, param: &Param, rank: usize) -> Result<StoredTensor> {
        let mut t = self.restore(name, stored, param)?;
        if let Some(Value::Floats(all)) = self.keys.get(META_LAYER_0_VALUES) {
            // v0 [1, 1, A], v1 [D, rank], v2 [rank, A], one after the other.
            let (shape, last) = match (t.shape[..].as_ref(), param.shape[1] == Dim::ValueRank) {
                ([a, b, c], _) => (vec![*a, *b, *c], false),
                ([a, _], true) => (vec![*a, rank], false),
                (other, _) => (vec![rank, other.last().copied().unwrap_or(0)], true),
            };
            let wrong = || Error::damaged(self.path, format!("its {META_LAYER_0_VALUES} has a wrong length"));
            let len = shape.iter().try_fold(4usize, |a, &d| a.checked_mul(d)).filter(|&n| n <= all.len());
            let len = len.ok_or_else(wrong)?;
            // What follows v1 is v2, [rank, A], and what precedes it v0: (all - v1) splits as 1 to rank.
            let from = match (shape.len(), last) {
                (3, _) => 0,
                (_, true) => all.len() - len,
                _ => (all.len() - len) / rank.saturating_add(1),
            };
            let data = all.get(from..from + len).map(|_| all.slice(from..from + len));
            return StoredTensor::new(DType::F32, shape, data.ok_or_else(wrong)?).ok_or_else(wrong);
        }
        let wrong = || self.wrong_shape(name, stored, &format!("rank {rank} or more"));
        let [a, b] = t.shape[..] else { return Ok(t) };
        if t.dtype.is_quantized() {
            return Err(wrong());
        }
        let size = t.dtype.block_bytes();
        if param.shape[1] == Dim::ValueRank {
            // v1, stored [ranks, D]: the first rows.
            t.shape = vec![a, rank];
            let len = a.checked_mul(rank).and_then(|n| n.checked_mul(size)).filter(|&n| n <= t.data.len());
            t.data = t.data.slice(..len.ok_or_else(wrong)?);
        } else {
            // v2, stored [D, ranks]: the first columns, copied (it is small).
            if rank > a {
                return Err(wrong());
            }
            t.shape = vec![rank, b];
            let rows = t.data.chunks_exact((a * size).max(1));
            t.data = rows.flat_map(|row| row[..rank * size].iter().copied()).collect();
        }
        Ok(t)
    }
}

fn other_architecture(path: &Path, name: &str) -> Error {
    let what = match name {
        "rwkv6qwen2" => {
            "QRWKV6, Qwen2 with RWKV-6's time mix in place of attention; hawfinch runs RWKV's own models".into()
        }
        "arwkv7" => {
            "ARWKV7, a transformer with RWKV-7's time mix in place of attention; hawfinch runs RWKV's own models"
                .into()
        }
        _ => format!("of the architecture `{name}`; hawfinch runs RWKV models (rwkv6, rwkv7)"),
    };
    Error::unsupported(path, format!("it is {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these string keys and no tensors.
    fn file(keys: &[(&str, &str)]) -> Bytes {
        let mut out = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend((keys.len() as u64).to_le_bytes());
        for (k, v) in keys {
            for (i, s) in [k, v].into_iter().enumerate() {
                out.extend((s.len() as u64).to_le_bytes());
                out.extend(s.bytes());
                out.extend(if i == 0 { 8u32.to_le_bytes().to_vec() } else { Vec::new() });
            }
        }
        out.into()
    }

    #[test]
    fn other_models_are_named() {
        for (arch, part) in
            [("rwkv6qwen2", "QRWKV6, Qwen2"), ("arwkv7", "ARWKV7"), ("llama", "architecture `llama`")]
        {
            let e = read(Path::new("x.gguf"), file(&[("general.architecture", arch)])).unwrap_err();
            assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains(part), "{e}");
        }
        let e = read(Path::new("x.gguf"), file(&[])).unwrap_err().to_string();
        assert!(e.contains("general.architecture"), "{e}");
    }

    #[test]
    fn tokens_are_unescaped() {
        for (text, token) in [
            ("abc", &b"abc"[..]),
            ("\\x00\\xff\\n\\t\\r", b"\0\xff\n\t\r"),
            ("it's \\\\ \\' \\\"", b"it's \\ ' \""),
            ("\\", b"\\"),
            ("\\x0", b"x0"),
        ] {
            assert_eq!(unescape(text.as_bytes()), token, "{text}");
        }
    }
}
