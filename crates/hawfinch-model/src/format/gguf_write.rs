//! Writing GGUF: `rwkv6` and `rwkv7` as llama.cpp's converter writes them, so that llama.cpp and
//! everything built on it opens them; `rwkv4` and `rwkv5` in the same manner, for hawfinch alone.
//!
//! Matrices take the number type asked for; vectors, mixes and low-rank matrices are F32, as llama.cpp
//! wants them. Which types these had is noted ([`META_ORIGINAL_TYPES`]), so that the way back is exact.
//! Nothing is rescaled (`rescale_every_n_layers` is 0).

use std::collections::BTreeMap;
use std::io::{self, Write};

use hawfinch_kernels::{DType, block};

use super::encode::{Item, Progress};
use super::gguf::{META_LAYER_0_VALUE_RANK, META_LAYER_0_VALUES, META_ORIGINAL_TYPES, original_type};
use super::gguf_container::{ALIGNMENT, MAGIC, type_number};
use super::gguf_names::{self as gguf, Arch};
use crate::config::{LAYER_NORM_EPS, present_name};
use crate::names::{self, Dim, Param, Role, split_block};
use crate::{Checkpoint, Config, DecayForm, Error, Result, StoredTensor, Version};

/// What of the file is not in the checkpoint.
#[derive(Default)]
pub(super) struct Options<'a> {
    /// Number type of the matrices; `None` keeps each matrix's own.
    pub dtype: Option<DType>,
    /// The World vocabulary: bytes of each token by id (id 0, the end of text, has none). llama.cpp needs
    /// it to tokenise, hawfinch does not.
    pub vocabulary: Option<&'a [Vec<u8>]>,
    /// Keys of ours.
    pub metadata: BTreeMap<String, String>,
    /// `general.name`.
    pub name: String,
}

/// Everything decided: what `write` puts out.
pub(super) struct Plan {
    head: Vec<u8>,
    entries: Vec<Entry>,
    total: u64,
}

/// A tensor as it will lie in the file.
struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    tensor: StoredTensor,
}

impl Plan {
    /// Names, shapes, types and key-values of the file of `ckpt`.
    ///
    /// # Errors
    /// Tensors that GGUF has no name for, types that are not written, a vocabulary longer than the
    /// embedding.
    pub(super) fn new(ckpt: &Checkpoint, config: &Config, options: &Options) -> Result<Plan> {
        if ckpt.decay_form == DecayForm::Exponentiated {
            return Err(Error::unsupported(
                &ckpt.path,
                "its decays are stored exponentiated, from which GGUF's cannot be had back exactly",
            ));
        }
        // Asked for by the caller, not found in the checkpoint: must be a type that is encoded.
        if let Some(d) = options.dtype
            && !(d.is_float() || writable(d))
        {
            return Err(no_type(d));
        }
        let Some(arch) = Arch::of(config.version) else {
            let why = format!("GGUF has no architecture that is {}", config.version);
            return Err(Error::unsupported(&ckpt.path, why));
        };
        let mut maker =
            Maker { ckpt, config, arch, options, entries: Vec::new(), layer_0_values: Vec::new() };
        let metadata = maker.tensors()?;
        let keys = maker.keys(&metadata)?;
        let entries = maker.entries;
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(3u32.to_le_bytes());
        head.extend((entries.len() as u64).to_le_bytes());
        head.extend((keys.count as u64).to_le_bytes());
        head.extend(keys.bytes);
        let mut offset = 0u64;
        let mut total = 0;
        for e in &entries {
            let number = type_number(e.dtype).ok_or_else(|| no_type(e.dtype))?;
            let bytes = e.item().bytes().map_err(|_| no_type(e.dtype))?;
            put_string(&mut head, e.name.as_bytes());
            head.extend((e.shape.len() as u32).to_le_bytes());
            e.shape.iter().rev().for_each(|&d| head.extend((d as u64).to_le_bytes()));
            head.extend(number.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += bytes.next_multiple_of(ALIGNMENT as u64);
            total += bytes;
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        Ok(Plan { head, entries, total })
    }

    /// Bytes of the tensors, for the progress.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Writes the file, front to back, in pieces of a few megabytes.
    pub(super) fn write(&self, out: &mut dyn Write, progress: &mut Progress) -> io::Result<()> {
        out.write_all(&self.head)?;
        for e in &self.entries {
            let item = e.item();
            item.write(out, progress)?;
            let len = item.bytes()?;
            let padding = len.next_multiple_of(ALIGNMENT as u64) - len;
            out.write_all(&[0; ALIGNMENT][..padding as usize])?;
        }
        Ok(())
    }
}

impl Entry {
    fn item(&self) -> Item<'_> {
        let (name, shape) = (self.name.clone(), self.shape.clone());
        Item { name, shape, dtype: self.dtype, tensor: &self.tensor, made: None }
    }
}

/// Whether numbers can be encoded in the type.
pub(super) fn writable(dtype: DType) -> bool {
    block::encode(dtype, &[0.0; 256], &mut Vec::new())
}

fn no_type(dtype: DType) -> Error {
    Error::Invalid(format!(
        "hawfinch does not write {dtype} tensors into GGUF; choose f16, bf16, q8_0, q4_k …"
    ))
}

struct Maker<'a> {
    ckpt: &'a Checkpoint,
    config: &'a Config,
    arch: Arch,
    options: &'a Options<'a>,
    entries: Vec<Entry>,
    /// [`META_LAYER_0_VALUES`], if not empty.
    layer_0_values: Vec<f32>,
}

impl Maker<'_> {
    /// Fills `entries` in official order; gives the metadata about them.
    fn tensors(&mut self) -> Result<BTreeMap<String, String>> {
        let mut originals: Vec<(String, DType)> = Vec::new();
        let mut metadata = BTreeMap::new();
        let mut done = 0;
        for (listed, param) in names::all_params(self.config.version, self.config.layers) {
            let key = present_name(self.ckpt, &listed);
            let (layer, rest) = split_block(&key).unwrap_or((0, ""));
            if param.optional_in_layer_0 && layer == 0 {
                if rest == "att.v0" {
                    let rank = self.layer_0_value()?;
                    done += if rank.is_some() { 3 } else { 0 };
                    metadata.extend(rank.map(|r| (META_LAYER_0_VALUE_RANK.to_string(), r.to_string())));
                }
                if rest.starts_with("att.v") && self.ckpt.get(&key).is_some() {
                    originals.extend(original_type(self.ckpt, &key).map(|d| (key.clone(), d)));
                }
                continue;
            }
            let tensor = self.ckpt.get(&key).ok_or_else(|| Error::MissingTensor {
                name: key.clone(),
                version: self.config.version.plain_name(),
            })?;
            done += 1;
            let tensor = self.in_official_shape(tensor, param);
            let parts = gguf::fused(self.arch);
            if let Some(part) = parts.iter().position(|p| *p == rest) {
                self.fuse(layer, part, parts.len(), &tensor);
            } else {
                self.push(&key, tensor, param)?;
            }
            if param.role != Role::Matrix {
                originals.extend(original_type(self.ckpt, &key).map(|d| (key, d)));
            }
        }
        if done < self.ckpt.tensors.len() {
            let known = |key: &str| {
                let listed = key.replace("att.time_first", "att.time_faaaa");
                names::find(self.config.version, key).or(names::find(self.config.version, &listed)).is_some()
            };
            // Layer 0's unused values of a shape of their own are left out; they mean nothing.
            // Nor do buffers without numbers, as old training code left them.
            let kept = self.ckpt.tensors.iter().filter(|(_, t)| !t.is_empty());
            if let Some(key) = kept.map(|(k, _)| k).find(|k| !known(k)) {
                return Err(Error::unsupported(
                    &self.ckpt.path,
                    format!(
                        "it holds a tensor `{key}`, for which GGUF has no place; convert to .safetensors instead"
                    ),
                ));
            }
        }
        metadata.extend(original_types(&originals).map(|v| (META_ORIGINAL_TYPES.to_string(), v)));
        Ok(metadata)
    }

    /// The official axes, in which formats differ by axes of length 1.
    fn in_official_shape(&self, t: &StoredTensor, param: &Param) -> StoredTensor {
        let mut official = self.config.shape(param);
        // The logarithmic bonus of v5.0 and v5.1 has the shape it has.
        if official.iter().product::<usize>() != t.len() {
            official = t.shape.clone();
        }
        if t.shape == official {
            return t.clone();
        }
        let plain =
            if t.transposed { t.converted(DType::F32).unwrap_or_else(|| t.clone()) } else { t.clone() };
        plain.reshaped(official)
    }

    fn push(&mut self, key: &str, tensor: StoredTensor, param: &Param) -> Result<()> {
        let name = gguf::to_gguf(self.arch, key)
            .ok_or_else(|| Error::unsupported(&self.ckpt.path, format!("GGUF has no name for `{key}`")))?;
        let (tensor, dtype) = match param.role {
            Role::Matrix => {
                let dtype = matrix_type(self.options.dtype, key, &tensor);
                (tensor, dtype)
            }
            Role::LowRank => (swapped(tensor), DType::F32),
            Role::Vector => {
                let shape = match param.shape {
                    [Dim::One, Dim::One, _] => vec![tensor.len()],
                    _ if param.name == "att.r_k" => vec![tensor.len()],
                    _ => tensor.shape.clone(),
                };
                (tensor.reshaped(shape), DType::F32)
            }
        };
        self.entries.push(Entry { name, shape: tensor.shape.clone(), dtype, tensor });
        Ok(())
    }

    /// Appends one mix to the layer's fused tensor `[parts, 1, 1, D]`, which the first one makes.
    fn fuse(&mut self, layer: usize, part: usize, parts: usize, tensor: &StoredTensor) {
        let values = tensor.converted(DType::F32).map(|t| t.data).unwrap_or_default();
        let name = format!("blk.{layer}.{}", gguf::FUSED);
        let at = self.entries.iter().rposition(|e| e.name == name).unwrap_or_else(|| {
            let shape = vec![parts, 1, 1, self.config.width];
            let tensor = StoredTensor::from_f32(&shape, &vec![0.0; parts * self.config.width]);
            self.entries.push(Entry { name, shape, dtype: DType::F32, tensor });
            self.entries.len() - 1
        });
        let fused = &mut self.entries[at].tensor;
        let mut bytes = fused.data.to_vec();
        let from = part * values.len();
        bytes[from..from + values.len()].copy_from_slice(&values);
        fused.data = bytes.into();
    }

    /// Layer 0's `v0 v1 v2`, of which llama.cpp wants some of `a1`'s rank: the checkpoint's, filled up with
    /// zeros, or copies of `a0 a1 a2`. The rank of the checkpoint's own is returned; where it is greater
    /// than `a1`'s, they go into `layer_0_values`.
    fn layer_0_value(&mut self) -> Result<Option<usize>> {
        let get = |name: &str| self.ckpt.get(&format!("blocks.0.att.{name}"));
        let (width, att, ranks) = (self.config.width, self.config.att_width, self.config.ranks.learn);
        let rank = get("v1").map_or(0, |t| t.len() / width);
        let sizes = [("v0", att), ("v1", width * rank), ("v2", rank * att)];
        let own = rank > 0 && sizes.iter().all(|(n, len)| get(n).is_some_and(|t| t.len() == *len));
        let missing =
            |n: &str| Error::MissingTensor { name: format!("blocks.0.att.{n}"), version: "RWKV-7".into() };
        let values = |names: [&str; 3]| -> Result<[Vec<f32>; 3]> {
            let [a, b, c] = names.map(|n| get(n).map(StoredTensor::to_f32).ok_or_else(|| missing(n)));
            Ok([a?, b?, c?])
        };
        let fits = own && rank <= ranks;
        if own && !fits {
            self.layer_0_values = values(["v0", "v1", "v2"])?.concat();
        }
        let [zero, down, up] = values(if fits { ["v0", "v1", "v2"] } else { ["a0", "a1", "a2"] })?;
        let have = if fits { rank } else { ranks };
        // Stored transposed: [ranks, width] and [att, ranks].
        let (mut rows, mut cols) = (vec![0.0; ranks * width], vec![0.0; att * ranks]);
        for r in 0..have {
            for d in 0..width {
                rows[r * width + d] = down[d * have + r];
            }
            for d in 0..att {
                cols[d * ranks + r] = up[r * att + d];
            }
        }
        for (name, shape, values) in
            [("v0", vec![att], zero), ("v1", vec![ranks, width], rows), ("v2", vec![att, ranks], cols)]
        {
            let tensor = StoredTensor::from_f32(&shape, &values);
            let name = format!("blk.0.time_mix_{name}.weight");
            self.entries.push(Entry { name, shape, dtype: DType::F32, tensor });
        }
        Ok(own.then_some(rank))
    }

    /// The type of most numbers in the linear weights of the blocks.
    fn main_type(&self) -> Option<DType> {
        let matrices = names::block_params(self.config.version).filter(|p| p.role == Role::Matrix);
        let names: Vec<String> = (0..self.config.layers)
            .flat_map(|l| matrices.clone().map(move |p| format!("blocks.{l}.{}", p.name)))
            .filter_map(|key| gguf::to_gguf(self.arch, &key))
            .collect();
        let mut numbers: BTreeMap<DType, usize> = BTreeMap::new();
        for e in self.entries.iter().filter(|e| names.contains(&e.name)) {
            *numbers.entry(e.dtype).or_default() += e.tensor.len();
        }
        numbers.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d)
    }

    fn keys(&self, metadata: &BTreeMap<String, String>) -> Result<Keys> {
        let c = self.config;
        let mut k = Keys::default();
        k.string("general.architecture", self.arch.name());
        k.string("general.type", "model");
        k.string("general.name", &self.options.name);
        k.u32("general.file_type", self.main_type().map_or(0, file_type));
        if self.entries.iter().any(|e| e.dtype.is_quantized()) {
            k.u32("general.quantization_version", 2);
        }
        let arch = self.arch.name();
        let mut number = |key: &str, v: usize| k.u32(&format!("{arch}.{key}"), v as u32);
        number("context_length", 1 << 20); // there is no limit; what llama.cpp's converter writes
        number("embedding_length", c.width);
        number("block_count", c.layers);
        number("feed_forward_length", c.ffn_width);
        number("attention.head_count", 0); // asked for, not used
        number("vocab_size", c.vocab);
        if c.version != Version::V4 {
            number("wkv.head_size", c.head_size);
        }
        if c.version == Version::V6 {
            number("rescale_every_n_layers", 0);
            number("time_mix_extra_dim", c.ranks.mix);
            number("time_decay_extra_dim", c.ranks.decay);
        }
        if c.version == Version::V7 {
            number("attention.decay_lora_rank", c.ranks.decay);
            number("attention.iclr_lora_rank", c.ranks.learn);
            number("attention.value_residual_mix_lora_rank", c.ranks.value);
            number("attention.gate_lora_rank", c.ranks.gate);
        }
        k.f32(&format!("{arch}.attention.layer_norm_epsilon"), LAYER_NORM_EPS as f32);
        for (key, value) in self.options.metadata.iter().filter(|(k, _)| !is_ours_alone(k)).chain(metadata) {
            k.string(key, value);
        }
        if !self.layer_0_values.is_empty() {
            k.key(META_LAYER_0_VALUES, 9);
            k.bytes.extend(6u32.to_le_bytes());
            k.bytes.extend((self.layer_0_values.len() as u64).to_le_bytes());
            k.bytes.extend(self.layer_0_values.iter().flat_map(|v| v.to_le_bytes()));
        }
        match self.options.vocabulary {
            None => k.string("tokenizer.ggml.model", "no_vocab"),
            Some(v) => k.vocabulary(v, c.vocab)?,
        }
        Ok(k)
    }
}

/// The type of a matrix in the file: the one asked for, or the nearest above it that divides the row, as llama.cpp
/// falls back; the head of a 4- or 5-bit model has 6 bits. With none asked for, the matrix's own.
pub(super) fn matrix_type(asked: Option<DType>, key: &str, t: &StoredTensor) -> DType {
    let Some(mut dtype) = asked else {
        return match t.dtype {
            DType::F64 => DType::F32,
            // A scaled tensor is encoded anew, which not every block type can be.
            d if t.scale != 1.0 && d.is_quantized() && !writable(d) => DType::F16,
            d => d,
        };
    };
    if t.dtype == dtype && t.scale == 1.0 {
        return dtype;
    }
    if key == "head.weight" && dtype.is_quantized() && dtype != DType::Q8_0 {
        dtype = DType::Q6_K;
    }
    let cols = t.shape.last().copied().unwrap_or(1);
    while cols % dtype.block_len() != 0 {
        dtype = match dtype {
            DType::Q4_K => DType::Q5_0,
            DType::Q5_K => DType::Q5_1,
            DType::Q6_K => DType::Q8_0,
            _ => DType::F16,
        };
    }
    dtype
}

/// Keys about how a GGUF file holds its tensors, which mean nothing elsewhere.
pub(super) fn is_ours_alone(key: &str) -> bool {
    key == META_ORIGINAL_TYPES || key == META_LAYER_0_VALUE_RANK
}

/// The last two axes exchanged, without touching the bytes.
fn swapped(mut t: StoredTensor) -> StoredTensor {
    let n = t.shape.len();
    t.shape.swap(n - 2, n - 1);
    t.transposed = !t.transposed;
    t
}

/// JSON for [`META_ORIGINAL_TYPES`]; `None` when all were F32 (or wider: those are rounded for good).
fn original_types(found: &[(String, DType)]) -> Option<String> {
    let narrow = |d: DType| if matches!(d, DType::F16 | DType::BF16) { d } else { DType::F32 };
    let count = |d: DType| found.iter().filter(|(_, f)| narrow(*f) == d).count();
    let common = [DType::F32, DType::BF16, DType::F16].into_iter().max_by_key(|d| count(*d))?;
    let mut map = BTreeMap::new();
    for (key, d) in found.iter().filter(|(_, d)| narrow(*d) != common) {
        map.insert(key.as_str(), narrow(*d).name());
    }
    if map.is_empty() && common == DType::F32 {
        return None;
    }
    map.insert("*", common.name());
    serde_json::to_string(&map).ok()
}

/// llama.cpp's number for "mostly this type".
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2_K => 10,
        DType::Q3_K => 11,
        DType::Q4_K => 14,
        DType::Q5_K => 16,
        DType::Q6_K => 18,
        DType::IQ4_NL => 25,
        DType::IQ4_XS => 30,
        DType::BF16 => 32,
        _ => 0,
    }
}

/// Key-values in the file's own bytes.
#[derive(Default)]
struct Keys {
    count: usize,
    bytes: Vec<u8>,
}

fn put_string(out: &mut Vec<u8>, s: &[u8]) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s);
}

impl Keys {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        put_string(&mut self.bytes, key.as_bytes());
        self.bytes.extend(kind.to_le_bytes());
    }

    fn u32(&mut self, key: &str, v: u32) {
        self.key(key, 4);
        self.bytes.extend(v.to_le_bytes());
    }

    fn f32(&mut self, key: &str, v: f32) {
        self.key(key, 6);
        self.bytes.extend(v.to_le_bytes());
    }

    fn string(&mut self, key: &str, v: &str) {
        self.key(key, 8);
        put_string(&mut self.bytes, v.as_bytes());
    }

    fn vocabulary(&mut self, tokens: &[Vec<u8>], rows: usize) -> Result<()> {
        const NORMAL: i32 = 1;
        const CONTROL: i32 = 3;
        const UNUSED: i32 = 5;
        if tokens.len() > rows {
            return Err(Error::Invalid(format!(
                "the vocabulary has {} entries and the model's embedding {rows} rows: it is another model's",
                tokens.len()
            )));
        }
        let text = |id: usize| match tokens.get(id) {
            _ if id == 0 => (b"<s>".to_vec(), CONTROL),
            Some(t) if !t.is_empty() => (escape(t), NORMAL),
            _ => (format!("[PAD{id}]").into_bytes(), UNUSED),
        };
        self.string("tokenizer.ggml.model", "rwkv");
        self.key("tokenizer.ggml.tokens", 9);
        self.bytes.extend(8u32.to_le_bytes());
        self.bytes.extend((rows as u64).to_le_bytes());
        (0..rows).for_each(|id| put_string(&mut self.bytes, &text(id).0));
        self.key("tokenizer.ggml.token_type", 9);
        self.bytes.extend(5u32.to_le_bytes());
        self.bytes.extend((rows as u64).to_le_bytes());
        (0..rows).for_each(|id| self.bytes.extend(text(id).1.to_le_bytes()));
        self.u32("tokenizer.ggml.bos_token_id", 0);
        self.u32("tokenizer.ggml.eos_token_id", 0);
        if tokens.get(261).is_some_and(|t| t == b"\n\n") {
            self.u32("tokenizer.ggml.eot_token_id", 261); // an empty line ends a turn
        }
        self.string("tokenizer.chat_template", "rwkv-world");
        Ok(())
    }
}

/// A token's bytes as Python prints them between the quotes of a `bytes` literal, which is what llama.cpp
/// keeps and undoes.
fn escape(token: &[u8]) -> Vec<u8> {
    // Python prefers single quotes, and takes double ones where that saves an escape.
    let quote = if token.contains(&b'\'') && !token.contains(&b'"') { b'"' } else { b'\'' };
    let mut out = Vec::with_capacity(token.len());
    for &b in token {
        match b {
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            b'\\' => out.extend(b"\\\\"),
            b if b == quote => out.extend([b'\\', b]),
            b' '..=b'~' => out.push(b),
            b => out.extend(format!("\\x{b:02x}").bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_escaped_as_python_does() {
        for (token, text) in [
            (&b"abc"[..], "abc"),
            (b"it's", "it's"),
            (b"\"'", "\"\\'"),
            (b"a\n\t\r\\", "a\\n\\t\\r\\\\"),
            (b"\x00\x7f\xff", "\\x00\\x7f\\xff"),
        ] {
            assert_eq!(String::from_utf8(escape(token)).unwrap(), text);
        }
    }

    #[test]
    fn original_types_name_the_exceptions() {
        let key = |s: &str, d| (s.to_string(), d);
        assert_eq!(original_types(&[key("a", DType::F32)]), None);
        let all = original_types(&[key("a", DType::BF16), key("b", DType::BF16), key("c", DType::F32)]);
        assert_eq!(all.unwrap(), r#"{"*":"bf16","c":"f32"}"#);
    }
}
