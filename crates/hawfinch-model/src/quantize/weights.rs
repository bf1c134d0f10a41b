//! The weights of a model that a file may hold in blocks, and its parameters by kind.

use hawfinch_kernels::DType;

use super::{Quant, rounding};
use crate::names::{self, Role};
use crate::{Checkpoint, Config};

/// A weight that may be quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Official name.
    pub name: String,
    /// `[out, in]`
    pub shape: [usize; 2],
    /// Its 4-bit block type.
    pub narrow: DType,
    /// Its 8-bit block type.
    pub wide: DType,
}

impl Weight {
    /// Numbers in it.
    pub fn numbers(&self) -> u64 {
        self.shape[0] as u64 * self.shape[1] as u64
    }

    /// Bytes in blocks of a type that fits it.
    pub fn bytes(&self, dtype: DType) -> u64 {
        let row = dtype.bytes_for(self.shape[1]).expect("whole blocks");
        self.shape[0] as u64 * row as u64
    }

    /// Its block type by the rule of `quant`.
    pub fn by_rule(&self, quant: Quant) -> DType {
        quant.type_for(&self.name, DType::F32, self.shape[1]).unwrap_or(self.wide)
    }
}

/// The weights of a model that a file may hold in blocks, in official order: linear weights and the embedding, where
/// they are floats and their rows are whole blocks.
pub fn weights(checkpoint: &Checkpoint, config: &Config) -> Vec<Weight> {
    let all = names::all_params(config.version, config.layers).into_iter();
    let matrices = all.filter(|(_, p)| p.role == Role::Matrix);
    let fits = |(name, _): (String, _)| {
        let t = checkpoint.get(&name).filter(|t| t.dtype.is_float())?;
        let &[out, inputs] = &t.shape[..] else { return None };
        let (narrow, wide) = (rounding::narrow(inputs)?, rounding::wide(inputs)?);
        (out > 0 && inputs > 0).then_some(Weight { name, shape: [out, inputs], narrow, wide })
    };
    matrices.filter_map(fits).collect()
}

/// The parameters of one name in every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Without the layer: `att.key.weight`.
    pub name: &'static str,
    /// What it is to the arithmetic.
    pub role: Role,
    /// Official names.
    pub tensors: Vec<String>,
    /// Numbers in all of them.
    pub numbers: u64,
}

/// The float parameters of a model by kind, in official order.
pub fn kinds(checkpoint: &Checkpoint, config: &Config) -> Vec<Kind> {
    let mut out: Vec<Kind> = Vec::new();
    for (listed, param) in names::all_params(config.version, config.layers) {
        let key = crate::config::present_name(checkpoint, &listed);
        // Layer 0's value residual is not used.
        let unused = param.optional_in_layer_0 && listed.starts_with("blocks.0.");
        let Some(tensor) = checkpoint.get(&key).filter(|t| t.dtype.is_float() && !unused) else { continue };
        let at = out.iter().position(|k| k.name == param.name).unwrap_or_else(|| {
            out.push(Kind { name: param.name, role: param.role, tensors: Vec::new(), numbers: 0 });
            out.len() - 1
        });
        out[at].tensors.push(key);
        out[at].numbers += tensor.len() as u64;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;
    use crate::synthetic::{self, Shape};

    #[test]
    fn what_may_be_quantised() {
        let of = |width, version| {
            let config = Shape { version, layers: 2, width, vocab: 90, head_size: 32 }.config();
            let ckpt = synthetic::checkpoint(&config, DType::F16, 1);
            (weights(&ckpt, &config), kinds(&ckpt, &config))
        };
        let (found, all) = of(256, Version::V7);
        let names: Vec<&str> = found.iter().map(|w| &*w.name).collect();
        assert_eq!(names.len(), 2 + 2 * 6);
        assert_eq!((names[0], names[13]), ("emb.weight", "head.weight"));
        assert!(found.iter().all(|w| w.narrow == DType::Q4_K && w.wide == DType::Q8_0));
        assert_eq!(found[13].bytes(DType::Q8_0), 90 * 256 * 34 / 32);
        let residual = all.iter().find(|k| k.name == "att.v1").unwrap();
        assert_eq!((residual.role, residual.tensors.len()), (Role::LowRank, 1));
        // Rows of 32 are no blocks of 256; rows of 32 × 3.5 are.
        let (found, _) = of(96, Version::V5_2);
        assert!(found.iter().all(|w| w.narrow == DType::Q4_0));
    }
}
