//! What a checkpoint is: version, sizes, ranks, all inferred from the names and shapes of its tensors
//! (never from a file name, never from a separate configuration).
//!
//! Letters: `V` vocabulary, `D` model width, `L` layers, `H` heads, `N` head size, `A` = H·N attention
//! width, `F` inner width of the channel mix.

use std::fmt;
use std::path::Path;

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::names::{self, Dim, Param, Role};
use crate::{Error, Result};

/// The RWKV versions hawfinch runs, and the transformer that it trains to compare them with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // named as their authors name them
pub enum Version {
    V4,
    V5_0,
    V5_1,
    V5_2,
    V6,
    V7,
    /// The baseline of softmax attention: trained and evaluated, not run token by token, as it keeps no state.
    Attention,
}

impl Version {
    /// `4`, `5.0`, `5.1`, `5.2`, `6`, `7`, `attention`.
    pub fn number(self) -> &'static str {
        match self {
            Version::V4 => "4",
            Version::V5_0 => "5.0",
            Version::V5_1 => "5.1",
            Version::V5_2 => "5.2",
            Version::V6 => "6",
            Version::V7 => "7",
            Version::Attention => "attention",
        }
    }

    /// The bird, where it has one.
    pub fn nickname(self) -> Option<&'static str> {
        match self {
            Version::V4 | Version::V5_0 | Version::V5_1 | Version::Attention => None,
            Version::V5_2 => Some("Eagle"),
            Version::V6 => Some("Finch"),
            Version::V7 => Some("Goose"),
        }
    }

    /// The version of that [`Version::number`]; `5` means 5.2.
    pub fn from_number(s: &str) -> Option<Version> {
        Some(match s {
            "4" => Version::V4,
            "5.0" => Version::V5_0,
            "5.1" => Version::V5_1,
            "5" | "5.2" => Version::V5_2,
            "6" => Version::V6,
            "7" => Version::V7,
            "attention" => Version::Attention,
            _ => return None,
        })
    }

    /// `RWKV-7`; `the attention baseline`.
    pub fn plain_name(self) -> String {
        match self {
            Version::Attention => "the attention baseline".into(),
            _ => format!("RWKV-{}", self.number()),
        }
    }

    /// Whether it keeps a state, and so can go on with a text. What does not is trained and evaluated on whole
    /// sequences, and nothing else.
    pub fn has_state(self) -> bool {
        self != Version::Attention
    }

    /// Refuses the model in `path` if it is of a version without a state, where a text is to be gone on with.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: what it can be used for.
    pub fn needs_state(self, path: &Path) -> Result<()> {
        if self.has_state() {
            return Ok(());
        }
        let name = self.plain_name();
        Err(Error::unsupported(
            path,
            format!(
                "it is {name}, which is trained and evaluated only and keeps no state to go on from; open an RWKV model"
            ),
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nickname() {
            Some(n) => write!(f, "{} \"{n}\"", self.plain_name()),
            None => f.write_str(&self.plain_name()),
        }
    }
}

/// Ranks of the low-rank parameters; 0 where the version has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    /// v6: token-shift mix.
    pub mix: usize,
    /// v6, v7: decay.
    pub decay: usize,
    /// v7: in-context learning rate.
    pub learn: usize,
    /// v7: value residual (0 when no layer has it: one-layer models without it).
    pub value: usize,
    /// v7: gate.
    pub gate: usize,
}

impl Ranks {
    /// Those of published models; for v7 of a width that none has, by an early formula of the reference's
    /// (1.8 √D, 1.8 √D, 1.3 √D, 0.6 D^0.8 in whole 32s).
    pub fn published(version: Version, width: usize) -> Ranks {
        let d = width;
        match version {
            Version::V6 if d >= 4096 => Ranks { mix: 64, decay: 128, ..Ranks::default() },
            Version::V6 => Ranks { mix: 32, decay: 64, ..Ranks::default() },
            Version::V7 => {
                let (decay, learn, value, gate) = match d {
                    768 | 1024 => (64, 64, 32, 128),
                    2048 => (96, 96, 64, 256),
                    2560 => (96, 96, 64, 320),
                    4096 => (128, 128, 96, 480),
                    _ => {
                        let root = (d as f64).sqrt();
                        let gate = whole_32s(0.6 * (d as f64).powf(0.8));
                        (whole_32s(1.8 * root), whole_32s(1.8 * root), whole_32s(1.3 * root), gate)
                    }
                };
                Ranks { mix: 0, decay, learn, value, gate }
            }
            _ => Ranks::default(),
        }
    }

    /// Those that the reference's trainers give a new model today: v6 32 and 64 at any width, v7
    /// 2.5 √D, 2.5 √D, 1.7 √D, 5 √D in whole 32s.
    pub fn reference(version: Version, width: usize) -> Ranks {
        match version {
            Version::V7 => {
                let rank = |factor: f64| whole_32s(factor * (width as f64).sqrt());
                Ranks { mix: 0, decay: rank(2.5), learn: rank(2.5), value: rank(1.7), gate: rank(5.0) }
            }
            Version::V6 => Ranks { mix: 32, decay: 64, ..Ranks::default() },
            _ => Ranks::default(),
        }
    }
}

/// The nearest multiple of 32, the even one of two as near; at least 32.
fn whole_32s(rank: f64) -> usize {
    (32.0 * (rank / 32.0).round_ties_even()).max(32.0) as usize
}

/// Version and sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Version.
    pub version: Version,
    /// L
    pub layers: usize,
    /// D
    pub width: usize,
    /// A = heads × head_size (D in every released model). For v4, which has no heads, A with
    /// `heads` = 1.
    pub att_width: usize,
    /// F
    pub ffn_width: usize,
    /// V
    pub vocab: usize,
    /// H
    pub heads: usize,
    /// N
    pub head_size: usize,
    /// Ranks of the low-rank parts.
    pub ranks: Ranks,
    /// Epsilon of the group norm after WKV (v5 to v7). Not in any official file: 64e-5, or what the
    /// file's kind or metadata implies.
    pub group_norm_eps: f64,
}

/// Widest attention that is run, in model widths (released models: 1).
const MAX_ATT_RATIO: usize = 16;
/// Largest head that is run.
const MAX_HEAD_SIZE: usize = 1024;
/// Epsilon of every layer norm, in every version.
pub const LAYER_NORM_EPS: f64 = 1e-5;
/// Group-norm epsilon of official files.
pub const GROUP_NORM_EPS: f64 = 64e-5;
/// Metadata key that carries the group-norm epsilon in our own files.
pub const META_GROUP_NORM_EPS: &str = "hawfinch.group_norm_eps";

impl Config {
    /// Length of an axis.
    pub fn dim(&self, d: Dim) -> usize {
        match d {
            Dim::One => 1,
            Dim::Five => 5,
            Dim::D => self.width,
            Dim::A => self.att_width,
            Dim::F => self.ffn_width,
            Dim::V => self.vocab,
            Dim::H => self.heads,
            Dim::N => self.head_size,
            Dim::Mix5 => 5 * self.ranks.mix,
            Dim::Mix => self.ranks.mix,
            Dim::DecayRank => self.ranks.decay,
            Dim::LearnRank => self.ranks.learn,
            Dim::ValueRank => self.ranks.value,
            Dim::GateRank => self.ranks.gate,
        }
    }

    /// Official shape of a parameter.
    pub fn shape(&self, param: &Param) -> Vec<usize> {
        param.shape.iter().map(|&d| self.dim(d)).collect()
    }

    /// Parameters of the model; v7's unused `v0/v1/v2` of layer 0 count when `layer_0_value` is true.
    pub fn parameters(&self, layer_0_value: bool) -> u64 {
        names::all_params(self.version, self.layers)
            .iter()
            .filter(|(key, p)| layer_0_value || !(p.optional_in_layer_0 && key.starts_with("blocks.0.")))
            .map(|(_, p)| self.shape(p).iter().map(|&d| d as u64).product::<u64>())
            .sum()
    }

    /// Floats in one sequence's state.
    pub fn state_len(&self) -> usize {
        crate::state::StateLayout::new(self).len()
    }

    /// Tensors of the checkpoint that a model of this configuration does not use: none in official files (buffers of
    /// old training code without numbers and tuned states do not count).
    pub fn unused<'c>(&self, ckpt: &'c Checkpoint) -> Vec<&'c str> {
        let used: std::collections::HashSet<String> = names::all_params(self.version, self.layers)
            .into_iter()
            .map(|(key, _)| present_name(ckpt, &key))
            .collect();
        let idle = ckpt
            .tensors
            .iter()
            .filter(|(key, t)| !(used.contains(*key) || t.is_empty() || key.ends_with(".att.time_state")));
        idle.map(|(key, _)| key.as_str()).collect()
    }

    /// Infers version and sizes, and checks that every tensor of the version is there with the shape
    /// that the others imply.
    ///
    /// # Errors
    /// Not an RWKV checkpoint, a variant that is not implemented, a tensor missing or misshapen.
    pub fn infer(ckpt: &Checkpoint) -> Result<Config> {
        let config = Self::infer_sizes(ckpt)?;
        config.check(ckpt)?;
        Ok(config)
    }

    fn infer_sizes(ckpt: &Checkpoint) -> Result<Config> {
        if ckpt.get("emb.weight").is_none() && ckpt.tensors.keys().any(|k| is_adapter(k)) {
            return Err(not_rwkv(ckpt));
        }
        refuse_variants(ckpt)?;
        let layers = ckpt
            .tensors
            .keys()
            .filter_map(|k| names::split_block(k))
            .map(|(l, _)| l + 1)
            .max()
            .ok_or_else(|| not_rwkv(ckpt))?;
        let version = detect_version(ckpt)?;
        let (vocab, width) = dims2(version, ckpt, "emb.weight")?;
        if vocab == 0 || width == 0 {
            return Err(Error::damaged(&ckpt.path, format!("emb.weight has shape [{vocab}, {width}]")));
        }
        let att = |name: &str| format!("blocks.0.att.{name}");
        let (att_width, key_in) = dims2(version, ckpt, &att("key.weight"))?;
        if key_in != width {
            let found = vec![att_width, key_in];
            return Err(Error::Shape { name: att("key.weight"), found, expected: format!("[_, {width}]") });
        }
        let (ffn_width, _) = dims2(version, ckpt, "blocks.0.ffn.key.weight")?;
        let heads = match version {
            Version::V4 => 1,
            Version::V5_0 | Version::V5_1 => require(version, ckpt, &att("time_decay"))?.len(),
            Version::V5_2 => dims2(version, ckpt, &att("time_decay"))?.0,
            Version::V6 => dims2(version, ckpt, &att("time_faaaa"))?.0,
            Version::V7 => dims2(version, ckpt, &att("r_k"))?.0,
            Version::Attention => dims2(version, ckpt, &att("q_scale"))?.0,
        };
        if heads == 0 || att_width == 0 || att_width % heads != 0 {
            return Err(Error::damaged(
                &ckpt.path,
                format!("its {heads} heads do not divide the attention width {att_width}"),
            ));
        }
        if att_width / MAX_ATT_RATIO > width {
            return Err(Error::unsupported(
                &ckpt.path,
                format!(
                    "its attention is {att_width} wide in a model of width {width}; hawfinch runs up to {MAX_ATT_RATIO} times the width"
                ),
            ));
        }
        // The state of a layer is heads × head_size²: without a bound, a small file asks for memory by the
        // square of its size.
        if version != Version::V4 && att_width / heads > MAX_HEAD_SIZE {
            return Err(Error::unsupported(
                &ckpt.path,
                format!(
                    "its heads have {} channels each; hawfinch runs heads of up to {MAX_HEAD_SIZE} (every released model has 64)",
                    att_width / heads
                ),
            ));
        }
        let mut ranks = Ranks::default();
        match version {
            Version::V6 => {
                ranks.mix = dims2(version, ckpt, &att("time_maa_w1"))?.1 / 5;
                ranks.decay = dims2(version, ckpt, &att("time_decay_w1"))?.1;
            }
            Version::V7 => {
                ranks.decay = dims2(version, ckpt, &att("w1"))?.1;
                ranks.learn = dims2(version, ckpt, &att("a1"))?.1;
                ranks.gate = dims2(version, ckpt, &att("g1"))?.1;
                // Layer 0 does not use v1 and files may lack it there.
                if layers > 1 {
                    ranks.value = dims2(version, ckpt, "blocks.1.att.v1")?.1;
                } else if ckpt.get(&att("v1")).is_some() {
                    ranks.value = dims2(version, ckpt, &att("v1"))?.1;
                }
            }
            _ => {}
        }
        let group_norm_eps = match ckpt.metadata.get(META_GROUP_NORM_EPS) {
            Some(s) => s.parse().ok().filter(|e: &f64| *e > 0.0 && *e < 1.0).ok_or_else(|| {
                Error::damaged(&ckpt.path, format!("its metadata gives the group-norm epsilon as `{s}`"))
            })?,
            None => {
                ckpt.group_norm_eps.map_or(GROUP_NORM_EPS, |e| e.to_string().parse().unwrap_or(f64::from(e)))
            }
        };
        Ok(Config {
            version,
            layers,
            width,
            att_width,
            ffn_width,
            vocab,
            heads,
            head_size: att_width / heads,
            ranks,
            group_norm_eps,
        })
    }

    /// Every parameter present, each of the right shape (in vectors axes of length 1 do not count: formats
    /// drop or add them).
    fn check(&self, ckpt: &Checkpoint) -> Result<()> {
        for (key, param) in names::all_params(self.version, self.layers) {
            let optional = param.optional_in_layer_0 && key.starts_with("blocks.0.");
            let key = present_name(ckpt, &key);
            match ckpt.get(&key) {
                None if optional => {}
                None => {
                    return Err(Error::MissingTensor { name: key, version: self.version.plain_name() });
                }
                Some(_) if optional => {} // unused: its shape is nobody's concern
                Some(t) => {
                    let expected = self.shape(param);
                    if expected.contains(&0) {
                        return Err(Error::damaged(&ckpt.path, format!("tensor `{key}` is empty")));
                    }
                    let squeezed: Vec<usize> = expected.iter().copied().filter(|&d| d != 1).collect();
                    // Matrices and low-rank stacks are cut by their axes.
                    if t.squeezed() != squeezed || (param.role != Role::Vector && t.shape != expected) {
                        return Err(Error::Shape {
                            name: key,
                            found: t.shape.clone(),
                            expected: format!("{expected:?}"),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// v5.0 and v5.1 files carry the bonus as `time_faaaa` (direct) or `time_first` (logarithm): the name
/// that this file uses for an official key.
pub fn present_name(ckpt: &Checkpoint, key: &str) -> String {
    if ckpt.get(key).is_none()
        && let Some(stem) = key.strip_suffix("time_faaaa")
    {
        let other = format!("{stem}time_first");
        if ckpt.get(&other).is_some() {
            return other;
        }
    }
    key.to_string()
}

/// A tensor of a state or LoRA file.
fn is_adapter(key: &str) -> bool {
    key.contains(".lora_A") || key.ends_with(".att.time_state") || key.starts_with("state.")
}

fn not_rwkv(ckpt: &Checkpoint) -> Error {
    let seen: Vec<&str> = ckpt.tensors.keys().take(3).map(String::as_str).collect();
    let why = if seen.is_empty() {
        "it holds no tensors".to_string()
    } else if ckpt.tensors.keys().any(|k| k.ends_with(".att.time_state") || k.starts_with("state.")) {
        "it is a state, not a model: give it with --state beside its model".to_string()
    } else if ckpt.tensors.keys().any(|k| is_adapter(k)) {
        "it is a LoRA file, not a model: give it with --lora beside its model".to_string()
    } else {
        format!("its tensors are not RWKV's (the first are {})", seen.join(", "))
    };
    Error::not_a_model(&ckpt.path, why)
}

/// Architectures that share RWKV's names but are other models, recognised by name (spec section 8).
fn refuse_variants(ckpt: &Checkpoint) -> Result<()> {
    // A part of a name, at its beginning too.
    let has = |part: &str| {
        let first = part.strip_prefix('.').unwrap_or(part);
        ckpt.tensors.keys().any(|k| k.contains(part) || k.starts_with(first))
    };
    let variants: [(&str, &str); 9] = [
        (".qkv.", "is RWKV-7b, which adds soft-capped attention with a cache that grows with the text"),
        ("s_emb", "is RWKV-7a (DeepEmbed), which adds per-layer token tables to the channel mix"),
        (".tiny_", "is RWKV-4a, which adds a tiny attention with a cache that grows with the text"),
        (".att.time_maa_rkvw_w1", "is the research variant x060b or x060c of RWKV-6 (four-way mixing)"),
        (".att.gate_w1", "is the research variant x060a of RWKV-6 (low-rank gate)"),
        (".ffnPre.", "has an early experiment's ffnPre block in place of the first time mix"),
        ("head_q.weight", "has the head-QK trick of early experiments, which reads all earlier tokens"),
        (".self_attn.", "is a transformer or a hybrid with attention, not an RWKV model"),
        (".mixer.", "is a state-space model such as Mamba, not an RWKV model"),
    ];
    for (part, what) in variants {
        if has(part) {
            return Err(Error::unsupported(
                &ckpt.path,
                format!("this checkpoint {what}; hawfinch does not implement it"),
            ));
        }
    }
    Ok(())
}

/// The order-independent rule of spec section 8.
fn detect_version(ckpt: &Checkpoint) -> Result<Version> {
    let has = |suffix: &str| ckpt.tensors.keys().any(|k| k.ends_with(suffix));
    if has(".att.q_scale") && has(".att.query.weight") {
        return Ok(Version::Attention);
    }
    if has(".att.r_k") || has(".att.x_r") {
        return Ok(Version::V7);
    }
    if has(".att.time_maa_x") || has(".att.time_maa_w1") {
        return Ok(Version::V6);
    }
    if has(".att.ln_x.weight") {
        if !has(".att.gate.weight") {
            return Ok(Version::V5_0);
        }
        let decay = require(Version::V5_2, ckpt, "blocks.0.att.time_decay")?;
        let vector = decay.shape.len() >= 2 && decay.shape[1..].iter().product::<usize>() > 1;
        return Ok(if vector { Version::V5_2 } else { Version::V5_1 });
    }
    if has(".att.time_decay") && has(".att.time_first") { Ok(Version::V4) } else { Err(not_rwkv(ckpt)) }
}

fn require<'a>(version: Version, ckpt: &'a Checkpoint, name: &str) -> Result<&'a StoredTensor> {
    ckpt.get(name).ok_or_else(|| Error::MissingTensor { name: name.into(), version: version.plain_name() })
}

fn dims2(version: Version, ckpt: &Checkpoint, name: &str) -> Result<(usize, usize)> {
    let t = require(version, ckpt, name)?;
    match t.shape[..] {
        [a, b] => Ok((a, b)),
        _ => Err(Error::Shape { name: name.into(), found: t.shape.clone(), expected: "two axes".into() }),
    }
}
