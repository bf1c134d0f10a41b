//! Which type a weight is quantised to: by rule while a model is opened, by measurement for a file.

pub mod choose;
pub mod quality;
pub mod rounding;
pub mod weights;

use std::fmt;
use std::str::FromStr;

use hawfinch_kernels::DType;

use crate::names::{self, Role};
use crate::{Checkpoint, Config};

/// How the weights of a model are quantised.
///
/// Only linear weights are (`W x`): the embedding, of which a token reads one row, low-rank weights, norms, mixes,
/// decays and LoRAs stay as they are. Weights that are quantised already stay so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// Every linear weight in bf16, and the activations that it is multiplied with rounded to bf16, for the machine's
    /// instructions for bf16.
    Bf16,
    /// Every linear weight as Q8_0: 8.5 bits a weight.
    Int8,
    /// Every linear weight as Q4_K, 4.6 bits a weight in memory (Q4_0 where rows are no whole blocks of 256), but the
    /// head as Q8_0.
    Int4,
    /// As `Int4`, but the receptance and the output of the time mix as Q8_0: the two that cost trained models most for
    /// their size (docs/quantization.md).
    Mixed,
}

impl Quant {
    /// Every way, as on the command line.
    pub const ALL: [Quant; 4] = [Quant::Bf16, Quant::Int8, Quant::Int4, Quant::Mixed];
    /// Those that make blocks.
    pub const BLOCKS: [Quant; 3] = [Quant::Int8, Quant::Int4, Quant::Mixed];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Quant::Bf16 => "bf16",
            Quant::Int8 => "int8",
            Quant::Int4 => "int4",
            Quant::Mixed => "mixed",
        }
    }

    /// The type for a weight with rows of `inputs` numbers stored as `from`, or `None` when it stays as it is.
    pub fn type_for(self, name: &str, from: DType, inputs: usize) -> Option<DType> {
        // The embedding is quantised in files alone; narrow it costs as much as the head.
        let is_end = matches!(name, "head.weight" | "emb.weight");
        let is_sensitive =
            || name.ends_with(".att.receptance.weight") || name.ends_with(".att.output.weight");
        let wish: &[DType] = match self {
            Quant::Bf16 => &[DType::BF16],
            Quant::Int4 if !is_end => &[DType::Q4_K, DType::Q4_0],
            Quant::Mixed if !is_end && !is_sensitive() => &[DType::Q4_K, DType::Q4_0],
            _ => &[DType::Q8_0],
        };
        let fits = |d: &&DType| from.is_float() && d.bytes_for(inputs).is_some();
        wish.iter().find(fits).copied()
    }
}

/// Linear weights of a model and those among them that are not quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unquantized {
    /// All of them.
    pub linear: usize,
    /// Those that are blocks already.
    pub blocks: usize,
    /// Those whose rows divide into no blocks.
    pub odd_rows: usize,
}

/// Which linear weights of a checkpoint stay as they are although `quant` is asked for.
pub fn unquantized(quant: Quant, checkpoint: &Checkpoint, config: &Config) -> Unquantized {
    let mut out = Unquantized::default();
    for (name, t) in checkpoint.tensors.iter().filter(|(name, _)| is_linear(name, config)) {
        let stays = t.shape.last().is_none_or(|i| quant.type_for(name, t.dtype, *i).is_none());
        out.linear += 1;
        out.blocks += usize::from(stays && t.dtype.is_quantized());
        out.odd_rows += usize::from(stays && !t.dtype.is_quantized());
    }
    out
}

/// True for the weights that are quantised: those of `W x`.
fn is_linear(name: &str, config: &Config) -> bool {
    name != "emb.weight"
        && names::find(config.version, name).is_some_and(|(_, param)| param.role == Role::Matrix)
}

/// Bytes that a checkpoint's weights take once they are quantised, with what quantising the largest takes meanwhile.
pub fn held_bytes(quant: Quant, checkpoint: &Checkpoint, config: &Config) -> u64 {
    let (mut held, mut largest) = (0, 0);
    for (name, t) in &checkpoint.tensors {
        let to = match t.shape[..] {
            [o, i] if is_linear(name, config) => {
                quant.type_for(name, t.dtype, i).and_then(|to| to.bytes_for(i)?.checked_mul(o))
            }
            _ => None,
        };
        held += to.unwrap_or(t.data.len()) as u64;
        largest = largest.max(to.unwrap_or(0) as u64);
    }
    held + largest
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quant {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Quant::ALL
            .into_iter()
            .find(|q| q.name() == s)
            .ok_or_else(|| format!("`{s}` is none of bf16, int8, int4 and mixed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{self, Shape};

    #[test]
    fn what_becomes_what() {
        let of = |q: Quant, name: &str, from, inputs| q.type_for(name, from, inputs);
        assert_eq!(of(Quant::Int8, "blocks.0.att.key.weight", DType::BF16, 2048), Some(DType::Q8_0));
        assert_eq!(of(Quant::Int4, "blocks.0.att.key.weight", DType::BF16, 2048), Some(DType::Q4_K));
        assert_eq!(of(Quant::Int4, "blocks.0.att.key.weight", DType::F32, 96), Some(DType::Q4_0));
        assert_eq!(of(Quant::Int4, "head.weight", DType::BF16, 2048), Some(DType::Q8_0));
        assert_eq!(of(Quant::Int8, "blocks.0.att.key.weight", DType::BF16, 40), None);
        assert_eq!(of(Quant::Bf16, "blocks.0.att.key.weight", DType::F32, 40), Some(DType::BF16));
        assert_eq!(of(Quant::Bf16, "head.weight", DType::Q8_0, 2048), None);
        assert_eq!(of(Quant::Int8, "blocks.0.att.key.weight", DType::Q5_0, 2048), None);
        for (name, wide) in
            [("key", false), ("value", false), ("gate", false), ("receptance", true), ("output", true)]
        {
            let want = if wide { DType::Q8_0 } else { DType::Q4_K };
            let name = format!("blocks.3.att.{name}.weight");
            assert_eq!(of(Quant::Mixed, &name, DType::F16, 512), Some(want), "{name}");
        }
        assert_eq!(of(Quant::Mixed, "blocks.3.ffn.receptance.weight", DType::F16, 512), Some(DType::Q4_K));
        assert_eq!(of(Quant::Mixed, "head.weight", DType::F16, 512), Some(DType::Q8_0));
        assert_eq!(of(Quant::Int4, "emb.weight", DType::F16, 512), Some(DType::Q8_0));
        assert_eq!("int4".parse(), Ok(Quant::Int4));
        // Half of bf16, or little more; a model of blocks takes what it takes.
        let shape = Shape { version: crate::Version::V7, layers: 2, width: 256, vocab: 300, head_size: 64 };
        let ckpt = synthetic::checkpoint(&shape.config(), DType::BF16, 1);
        let all: u64 = ckpt.tensors.values().map(|t| t.data.len() as u64).sum();
        let [sixteen, eight, four, mixed] = Quant::ALL.map(|q| held_bytes(q, &ckpt, &shape.config()));
        assert!(sixteen > all && sixteen < all * 3 / 2, "{all} {sixteen}");
        assert!(eight < all * 8 / 10 && four < eight && four > all / 4, "{all} {eight} {four}");
        assert!(four < mixed && mixed < eight, "{four} {mixed} {eight}");
        assert!("int3".parse::<Quant>().is_err());
    }
}
