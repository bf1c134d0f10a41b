//! The one table of parameters: official checkpoint key ↔ shape and role, a list a version. Everything that
//! must know which tensors a version has (inference of the configuration, loading, synthetic models,
//! writers) walks these lists. Other programs' names for the same parameters stand with their formats
//! (`format/gguf_names.rs`, `format/huggingface/`, `format/webrwkv.rs`, `format/ggml.rs`).

use crate::config::Version;

/// An axis of a parameter, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the letters are explained in the module `config`
pub enum Dim {
    One,
    Five,
    /// Model width.
    D,
    /// Attention width (heads × head size; equals D in every released model).
    A,
    /// Channel-mix inner width.
    F,
    /// Vocabulary.
    V,
    /// Heads.
    H,
    /// Head size.
    N,
    /// v6: five times the rank of the token-shift mix.
    Mix5,
    /// v6: rank of the token-shift mix.
    Mix,
    /// v6 and v7: rank of the decay.
    DecayRank,
    /// v7: rank of the in-context learning rate.
    LearnRank,
    /// v7: rank of the value residual.
    ValueRank,
    /// v7: rank of the gate.
    GateRank,
}

/// What a parameter is to the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Linear weight `[out, in]`, applied as `W x`: the bulk of the bytes.
    Matrix,
    /// Low-rank weight `[in, out]` (or a stack of them), applied as `x @ W`.
    LowRank,
    /// Anything else: norms, mixes, decays, bonuses. Kept wide.
    Vector,
}

/// One parameter of a version.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Official key; without the `blocks.N.` prefix for per-layer parameters.
    pub name: &'static str,
    /// Official shape.
    pub shape: &'static [Dim],
    /// Role.
    pub role: Role,
    /// May be absent: v7's `att.v0/v1/v2` in layer 0, which do not use them.
    pub optional_in_layer_0: bool,
}

use Dim::*;
use Role::*;

const fn p(name: &'static str, shape: &'static [Dim], role: Role) -> Param {
    Param { name, shape, role, optional_in_layer_0: false }
}

const fn opt0(name: &'static str, shape: &'static [Dim], role: Role) -> Param {
    Param { name, shape, role, optional_in_layer_0: true }
}

/// Before the blocks (official order).
pub const HEAD_OF_FILE: &[Param] = &[p("emb.weight", &[V, D], Matrix)];

/// In block 0 only, after its `ln2`.
pub const LN0: &[Param] = &[p("blocks.0.ln0.weight", &[D], Vector), p("blocks.0.ln0.bias", &[D], Vector)];

/// After the blocks.
pub const END_OF_FILE: &[Param] =
    &[p("ln_out.weight", &[D], Vector), p("ln_out.bias", &[D], Vector), p("head.weight", &[V, D], Matrix)];

const NORMS: &[Param] = &[
    p("ln1.weight", &[D], Vector),
    p("ln1.bias", &[D], Vector),
    p("ln2.weight", &[D], Vector),
    p("ln2.bias", &[D], Vector),
];

const V4_ATT: &[Param] = &[
    p("att.time_decay", &[A], Vector),
    p("att.time_first", &[A], Vector),
    p("att.time_mix_k", &[One, One, D], Vector),
    p("att.time_mix_v", &[One, One, D], Vector),
    p("att.time_mix_r", &[One, One, D], Vector),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.receptance.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
];

const V5_0_ATT: &[Param] = &[
    p("att.time_mix_k", &[One, One, D], Vector),
    p("att.time_mix_v", &[One, One, D], Vector),
    p("att.time_mix_r", &[One, One, D], Vector),
    p("att.time_decay", &[H], Vector),
    p("att.time_faaaa", &[H], Vector),
    p("att.receptance.weight", &[A, D], Matrix),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
    p("att.ln_x.weight", &[A], Vector),
    p("att.ln_x.bias", &[A], Vector),
];

const V5_1_ATT: &[Param] = &[
    p("att.time_mix_k", &[One, One, D], Vector),
    p("att.time_mix_v", &[One, One, D], Vector),
    p("att.time_mix_r", &[One, One, D], Vector),
    p("att.time_mix_g", &[One, One, D], Vector),
    p("att.time_decay", &[H], Vector),
    p("att.time_faaaa", &[H], Vector),
    p("att.receptance.weight", &[A, D], Matrix),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
    p("att.gate.weight", &[A, D], Matrix),
    p("att.ln_x.weight", &[A], Vector),
    p("att.ln_x.bias", &[A], Vector),
];

const V5_2_ATT: &[Param] = &[
    p("att.time_mix_k", &[One, One, D], Vector),
    p("att.time_mix_v", &[One, One, D], Vector),
    p("att.time_mix_r", &[One, One, D], Vector),
    p("att.time_mix_g", &[One, One, D], Vector),
    p("att.time_decay", &[H, N], Vector),
    p("att.time_faaaa", &[H, N], Vector),
    p("att.receptance.weight", &[A, D], Matrix),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
    p("att.gate.weight", &[A, D], Matrix),
    p("att.ln_x.weight", &[A], Vector),
    p("att.ln_x.bias", &[A], Vector),
];

const V6_ATT: &[Param] = &[
    p("att.time_maa_x", &[One, One, D], Vector),
    p("att.time_maa_w", &[One, One, D], Vector),
    p("att.time_maa_k", &[One, One, D], Vector),
    p("att.time_maa_v", &[One, One, D], Vector),
    p("att.time_maa_r", &[One, One, D], Vector),
    p("att.time_maa_g", &[One, One, D], Vector),
    p("att.time_maa_w1", &[D, Mix5], LowRank),
    p("att.time_maa_w2", &[Five, Mix, D], LowRank),
    p("att.time_decay", &[One, One, A], Vector),
    p("att.time_decay_w1", &[D, DecayRank], LowRank),
    p("att.time_decay_w2", &[DecayRank, A], LowRank),
    p("att.time_faaaa", &[H, N], Vector),
    p("att.receptance.weight", &[A, D], Matrix),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
    p("att.gate.weight", &[A, D], Matrix),
    p("att.ln_x.weight", &[A], Vector),
    p("att.ln_x.bias", &[A], Vector),
];

const V7_ATT: &[Param] = &[
    p("att.x_r", &[One, One, D], Vector),
    p("att.x_w", &[One, One, D], Vector),
    p("att.x_k", &[One, One, D], Vector),
    p("att.x_v", &[One, One, D], Vector),
    p("att.x_a", &[One, One, D], Vector),
    p("att.x_g", &[One, One, D], Vector),
    p("att.w0", &[One, One, A], Vector),
    p("att.w1", &[D, DecayRank], LowRank),
    p("att.w2", &[DecayRank, A], LowRank),
    p("att.a0", &[One, One, A], Vector),
    p("att.a1", &[D, LearnRank], LowRank),
    p("att.a2", &[LearnRank, A], LowRank),
    opt0("att.v0", &[One, One, A], Vector),
    opt0("att.v1", &[D, ValueRank], LowRank),
    opt0("att.v2", &[ValueRank, A], LowRank),
    p("att.g1", &[D, GateRank], LowRank),
    p("att.g2", &[GateRank, A], LowRank),
    p("att.k_k", &[One, One, A], Vector),
    p("att.k_a", &[One, One, A], Vector),
    p("att.r_k", &[H, N], Vector),
    p("att.receptance.weight", &[A, D], Matrix),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
    p("att.ln_x.weight", &[A], Vector),
    p("att.ln_x.bias", &[A], Vector),
];

const ATTENTION_ATT: &[Param] = &[
    p("att.q_scale", &[H, N], Vector),
    p("att.k_scale", &[H, N], Vector),
    p("att.query.weight", &[A, D], Matrix),
    p("att.key.weight", &[A, D], Matrix),
    p("att.value.weight", &[A, D], Matrix),
    p("att.output.weight", &[D, A], Matrix),
];

const V4_FFN: &[Param] = &[
    p("ffn.time_mix_k", &[One, One, D], Vector),
    p("ffn.time_mix_r", &[One, One, D], Vector),
    p("ffn.key.weight", &[F, D], Matrix),
    p("ffn.receptance.weight", &[D, D], Matrix),
    p("ffn.value.weight", &[D, F], Matrix),
];

const V6_FFN: &[Param] = &[
    p("ffn.time_maa_k", &[One, One, D], Vector),
    p("ffn.time_maa_r", &[One, One, D], Vector),
    p("ffn.key.weight", &[F, D], Matrix),
    p("ffn.receptance.weight", &[D, D], Matrix),
    p("ffn.value.weight", &[D, F], Matrix),
];

const V7_FFN: &[Param] = &[
    p("ffn.x_k", &[One, One, D], Vector),
    p("ffn.key.weight", &[F, D], Matrix),
    p("ffn.value.weight", &[D, F], Matrix),
];

const ATTENTION_FFN: &[Param] = &[
    p("ffn.gate.weight", &[F, D], Matrix),
    p("ffn.key.weight", &[F, D], Matrix),
    p("ffn.value.weight", &[D, F], Matrix),
];

/// The per-layer parameters of a version: norms, time mix, channel mix, in official order. Names are
/// without `blocks.N.`; block 0 has [`LN0`] besides.
///
/// v5.0 and v5.1 files may hold `att.time_first` (the bonus as a logarithm) in place of
/// `att.time_faaaa`; the list names the latter.
pub fn block_params(version: Version) -> impl Iterator<Item = &'static Param> + Clone {
    let (att, ffn) = match version {
        Version::V4 => (V4_ATT, V4_FFN),
        Version::V5_0 => (V5_0_ATT, V4_FFN),
        Version::V5_1 => (V5_1_ATT, V4_FFN),
        Version::V5_2 => (V5_2_ATT, V4_FFN),
        Version::V6 => (V6_ATT, V6_FFN),
        Version::V7 => (V7_ATT, V7_FFN),
        Version::Attention => (ATTENTION_ATT, ATTENTION_FFN),
    };
    NORMS.iter().chain(att).chain(ffn)
}

/// Every parameter of a model of `layers` blocks as (full official key, entry), in official order.
pub fn all_params(version: Version, layers: usize) -> Vec<(String, &'static Param)> {
    let mut out: Vec<(String, &'static Param)> =
        HEAD_OF_FILE.iter().map(|p| (p.name.to_string(), p)).collect();
    for l in 0..layers {
        for (i, param) in block_params(version).enumerate() {
            out.push((format!("blocks.{l}.{}", param.name), param));
            if l == 0 && i + 1 == NORMS.len() {
                out.extend(LN0.iter().map(|p| (p.name.to_string(), p)));
            }
        }
    }
    out.extend(END_OF_FILE.iter().map(|p| (p.name.to_string(), p)));
    out
}

/// The entry of a full official key in that version, with its layer (`None` outside the blocks).
pub fn find(version: Version, key: &str) -> Option<(Option<usize>, &'static Param)> {
    if let Some(p) = HEAD_OF_FILE.iter().chain(END_OF_FILE).find(|p| p.name == key) {
        return Some((None, p));
    }
    if let Some(p) = LN0.iter().find(|p| p.name == key) {
        return Some((Some(0), p));
    }
    let (layer, rest) = split_block(key)?;
    block_params(version).find(|p| p.name == rest).map(|p| (Some(layer), p))
}

/// Splits `blocks.12.att.key.weight` into (12, `att.key.weight`).
pub fn split_block(key: &str) -> Option<(usize, &str)> {
    let (layer, rest) = key.strip_prefix("blocks.")?.split_once('.')?;
    // A plain decimal number only: "+1" and "01" are other keys.
    if layer.is_empty() || layer.len() > 4 || !layer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((layer.parse().ok()?, rest))
}
