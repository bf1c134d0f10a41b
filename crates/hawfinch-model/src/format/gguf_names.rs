//! llama.cpp's names for the parameters of RWKV-6 and RWKV-7, and, in their manner, ours for RWKV-4 and
//! RWKV-5, which llama.cpp does not run. What differs besides names is said at [`fused`] and in
//! `gguf.rs`.

use crate::Version;
use crate::names::split_block;

/// Value of `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    Rwkv4,
    Rwkv5,
    Rwkv6,
    Rwkv7,
}

impl Arch {
    pub(super) fn name(self) -> &'static str {
        match self {
            Arch::Rwkv4 => "rwkv4",
            Arch::Rwkv5 => "rwkv5",
            Arch::Rwkv6 => "rwkv6",
            Arch::Rwkv7 => "rwkv7",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Arch> {
        [Arch::Rwkv4, Arch::Rwkv5, Arch::Rwkv6, Arch::Rwkv7].into_iter().find(|a| a.name() == name)
    }

    /// That of a version; `None` where GGUF has none.
    pub(super) fn of(version: Version) -> Option<Arch> {
        Some(match version {
            Version::V4 => Arch::Rwkv4,
            Version::V5_0 | Version::V5_1 | Version::V5_2 => Arch::Rwkv5,
            Version::V6 => Arch::Rwkv6,
            Version::V7 => Arch::Rwkv7,
            Version::Attention => return None,
        })
    }

    /// A version whose table of parameters has every name of the architecture; the three versions 5
    /// differ in shapes only.
    pub(super) fn version(self) -> Version {
        match self {
            Arch::Rwkv4 => Version::V4,
            Arch::Rwkv5 => Version::V5_2,
            Arch::Rwkv6 => Version::V6,
            Arch::Rwkv7 => Version::V7,
        }
    }

    fn tables(self) -> [&'static [(&'static str, &'static str)]; 2] {
        match self {
            Arch::Rwkv4 => [BLOCK, BLOCK_4],
            Arch::Rwkv5 => [BLOCK, BLOCK_5],
            Arch::Rwkv6 => [BLOCK, BLOCK_6],
            Arch::Rwkv7 => [BLOCK, BLOCK_7],
        }
    }
}

/// (official, GGUF) outside the blocks; ln0 belongs to the embedding there.
const OUTSIDE: &[(&str, &str)] = &[
    ("emb.weight", "token_embd.weight"),
    ("blocks.0.ln0.weight", "token_embd_norm.weight"),
    ("blocks.0.ln0.bias", "token_embd_norm.bias"),
    ("ln_out.weight", "output_norm.weight"),
    ("ln_out.bias", "output_norm.bias"),
    ("head.weight", "output.weight"),
];

/// (official without `blocks.N.`, GGUF without `blk.N.`), what every version has or may have.
const BLOCK: &[(&str, &str)] = &[
    ("ln1.weight", "attn_norm.weight"),
    ("ln1.bias", "attn_norm.bias"),
    ("ln2.weight", "attn_norm_2.weight"),
    ("ln2.bias", "attn_norm_2.bias"),
    ("att.key.weight", "time_mix_key.weight"),
    ("att.value.weight", "time_mix_value.weight"),
    ("att.receptance.weight", "time_mix_receptance.weight"),
    ("att.gate.weight", "time_mix_gate.weight"),
    ("att.output.weight", "time_mix_output.weight"),
    ("att.ln_x.weight", "time_mix_ln.weight"),
    ("att.ln_x.bias", "time_mix_ln.bias"),
    ("ffn.key.weight", "channel_mix_key.weight"),
    ("ffn.value.weight", "channel_mix_value.weight"),
    ("ffn.receptance.weight", "channel_mix_receptance.weight"),
];

const BLOCK_4: &[(&str, &str)] = &[
    ("att.time_mix_k", "time_mix_lerp_k.weight"),
    ("att.time_mix_v", "time_mix_lerp_v.weight"),
    ("att.time_mix_r", "time_mix_lerp_r.weight"),
    ("att.time_decay", "time_mix_decay.weight"),
    ("att.time_first", "time_mix_first.weight"),
    ("ffn.time_mix_k", "channel_mix_lerp_k.weight"),
    ("ffn.time_mix_r", "channel_mix_lerp_r.weight"),
];

const BLOCK_5: &[(&str, &str)] = &[
    ("att.time_mix_k", "time_mix_lerp_k.weight"),
    ("att.time_mix_v", "time_mix_lerp_v.weight"),
    ("att.time_mix_r", "time_mix_lerp_r.weight"),
    ("att.time_mix_g", "time_mix_lerp_g.weight"),
    ("att.time_decay", "time_mix_decay.weight"),
    ("att.time_faaaa", "time_mix_first.weight"),
    // Early files of 5.0 and 5.1 hold the bonus as a logarithm.
    ("att.time_first", "time_mix_first_log.weight"),
    ("ffn.time_mix_k", "channel_mix_lerp_k.weight"),
    ("ffn.time_mix_r", "channel_mix_lerp_r.weight"),
];

const BLOCK_6: &[(&str, &str)] = &[
    ("att.time_maa_x", "time_mix_lerp_x.weight"),
    // Five in one tensor in files since 2025.
    ("att.time_maa_w", "time_mix_lerp_w.weight"),
    ("att.time_maa_k", "time_mix_lerp_k.weight"),
    ("att.time_maa_v", "time_mix_lerp_v.weight"),
    ("att.time_maa_r", "time_mix_lerp_r.weight"),
    ("att.time_maa_g", "time_mix_lerp_g.weight"),
    ("att.time_maa_w1", "time_mix_w1.weight"),
    ("att.time_maa_w2", "time_mix_w2.weight"),
    ("att.time_decay", "time_mix_decay.weight"),
    ("att.time_decay_w1", "time_mix_decay_w1.weight"),
    ("att.time_decay_w2", "time_mix_decay_w2.weight"),
    ("att.time_faaaa", "time_mix_first.weight"),
    ("ffn.time_maa_k", "channel_mix_lerp_k.weight"),
    ("ffn.time_maa_r", "channel_mix_lerp_r.weight"),
];

const BLOCK_7: &[(&str, &str)] = &[
    ("att.w0", "time_mix_w0.weight"),
    ("att.w1", "time_mix_w1.weight"),
    ("att.w2", "time_mix_w2.weight"),
    ("att.a0", "time_mix_a0.weight"),
    ("att.a1", "time_mix_a1.weight"),
    ("att.a2", "time_mix_a2.weight"),
    ("att.v0", "time_mix_v0.weight"),
    ("att.v1", "time_mix_v1.weight"),
    ("att.v2", "time_mix_v2.weight"),
    ("att.g1", "time_mix_g1.weight"),
    ("att.g2", "time_mix_g2.weight"),
    ("att.k_k", "time_mix_k_k.weight"),
    ("att.k_a", "time_mix_k_a.weight"),
    ("att.r_k", "time_mix_r_k.weight"),
    ("ffn.x_k", "channel_mix_lerp_k.weight"),
];

/// GGUF's name, without `blk.N.`, of the tensor that holds several mixes one after the other.
pub(super) const FUSED: &str = "time_mix_lerp_fused.weight";

/// The official names, without `blocks.N.`, of what [`FUSED`] holds, in its order.
pub(super) fn fused(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::Rwkv4 | Arch::Rwkv5 => &[],
        Arch::Rwkv6 => {
            &["att.time_maa_w", "att.time_maa_k", "att.time_maa_v", "att.time_maa_r", "att.time_maa_g"]
        }
        Arch::Rwkv7 => &["att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g"],
    }
}

/// GGUF's name for an official key that is a tensor of its own there.
pub(super) fn to_gguf(arch: Arch, key: &str) -> Option<String> {
    if let Some((_, name)) = OUTSIDE.iter().find(|(official, _)| *official == key) {
        return Some((*name).into());
    }
    let (layer, rest) = split_block(key)?;
    let (_, name) = arch.tables().into_iter().flatten().find(|(official, _)| *official == rest)?;
    Some(format!("blk.{layer}.{name}"))
}

/// Layer and rest of `blk.12.attn_norm.weight`.
pub(super) fn split_blk(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    if layer.is_empty() || layer.len() > 4 || !layer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((layer.parse().ok()?, rest))
}

/// The official key of a GGUF tensor.
pub(super) fn to_official(arch: Arch, name: &str) -> Option<String> {
    if let Some((official, _)) = OUTSIDE.iter().find(|(_, gguf)| *gguf == name) {
        return Some((*official).into());
    }
    let (layer, rest) = split_blk(name)?;
    let (official, _) = arch.tables().into_iter().flatten().find(|(_, gguf)| *gguf == rest)?;
    Some(format!("blocks.{layer}.{official}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::all_params;

    #[test]
    fn every_parameter_has_a_name_and_comes_back() {
        for version in [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7] {
            let arch = Arch::of(version).unwrap();
            for (key, _) in all_params(version, 2) {
                let rest = split_block(&key).map_or("", |(_, r)| r);
                match to_gguf(arch, &key) {
                    Some(name) => assert_eq!(to_official(arch, &name).as_deref(), Some(key.as_str())),
                    None => assert!(fused(arch).contains(&rest), "{version}: {key}"),
                }
            }
        }
        assert_eq!(
            to_official(Arch::Rwkv5, "blk.3.time_mix_first_log.weight").unwrap(),
            "blocks.3.att.time_first"
        );
        assert_eq!(to_official(Arch::Rwkv7, "blk.3.ffn_down.weight"), None);
    }
}
