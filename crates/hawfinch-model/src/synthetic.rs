//! Checkpoints made up in memory: random weights of any version and size, for tests, benchmarks and the
//! built-in stand-in model. Deterministic in the seed on every platform.

use std::collections::BTreeMap;

use hawfinch_kernels::{DType, block};

use crate::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use crate::config::{Config, GROUP_NORM_EPS, Ranks, Version};
use crate::names::{self, Role};
use crate::rng::Rng;

/// Sizes of a model to make up; [`Shape::config`] fills in the rest as released models have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Version.
    pub version: Version,
    /// L
    pub layers: usize,
    /// D; a multiple of `head_size`.
    pub width: usize,
    /// V
    pub vocab: usize,
    /// N (64 in every released model; not used by v4).
    pub head_size: usize,
}

impl Shape {
    /// The configuration a released model of these sizes would have: inner width 4 D (v5.2, v6: 3.5 D
    /// in whole 32s; attention, whose channel mix has a gate, 8/3 D), low-rank widths as released (v7: by the reference's formula where no released
    /// model has the width).
    pub fn config(&self) -> Config {
        let d = self.width;
        let ffn_width = match self.version {
            Version::V5_2 | Version::V6 => d * 7 / 2 / 32 * 32,
            Version::Attention => d * 8 / 3 / 32 * 32,
            _ => 4 * d,
        };
        let heads = if self.version == Version::V4 { 1 } else { d / self.head_size };
        Config {
            version: self.version,
            layers: self.layers,
            width: d,
            att_width: d,
            ffn_width: ffn_width.max(32),
            vocab: self.vocab,
            heads,
            head_size: d / heads,
            ranks: Ranks::published(self.version, d),
            group_norm_eps: GROUP_NORM_EPS,
        }
    }
}

/// Random values of one parameter, in the range in which a trained model's lie, so that every path of the
/// arithmetic changes the logits and nothing overflows.
pub fn parameter(config: &Config, param: &names::Param, random: &mut Rng) -> Vec<f32> {
    let n: usize = config.shape(param).iter().product();
    let (low, high) = range(config, param);
    (0..n).map(|_| random.uniform(low, high)).collect()
}

/// The range of [`parameter`]'s values.
pub fn range(config: &Config, param: &names::Param) -> (f32, f32) {
    let shape = config.shape(param);
    let name = param.name.rsplit_once("att.").map_or(param.name, |(_, n)| n);
    match param.role {
        // Standard deviation 1/sqrt(inputs): activations keep their size.
        Role::Matrix if param.name == "emb.weight" => (-0.5, 0.5),
        Role::Matrix | Role::LowRank => {
            let inputs = match param.role {
                Role::Matrix => shape[shape.len() - 1],
                _ => shape[shape.len() - 2],
            };
            let bound = (3.0 / inputs.max(1) as f32).sqrt();
            (-bound, bound)
        }
        Role::Vector if name.contains("ln") && name.ends_with("weight") => (0.8, 1.2),
        Role::Vector if name.contains("mix_") || name.contains("maa_") || name.contains("x_") => (0.0, 1.0),
        Role::Vector if name == "time_decay" => (-6.0, 1.0),
        Role::Vector if name == "w0" => (-6.0, 1.0),
        Role::Vector if ["k_k", "k_a", "q_scale", "k_scale"].contains(&name) => (0.7, 1.1),
        Role::Vector => (-0.3, 0.3),
    }
}

/// A checkpoint of random weights in memory, official names and shapes, layer 0 of v7 with its unused
/// `v0`, `v1`, `v2`.
///
/// # Panics
/// When `dtype` cannot be written or does not divide the rows.
pub fn checkpoint(config: &Config, dtype: DType, seed: u64) -> Checkpoint {
    let mut random = Rng::new(seed);
    let mut ckpt = Checkpoint::new("synthetic", FileFormat::Memory);
    for (key, param) in names::all_params(config.version, config.layers) {
        let values = parameter(config, param, &mut random);
        let mut data = Vec::new();
        assert!(block::encode(dtype, &values, &mut data), "{dtype} cannot be written");
        let tensor =
            StoredTensor::new(dtype, config.shape(param), data.into()).expect("as many as the shape");
        ckpt.tensors.insert(key, tensor);
    }
    ckpt.file_bytes = ckpt.tensors.values().map(|t| t.data.len() as u64).sum();
    ckpt.metadata = BTreeMap::new();
    ckpt
}

/// Sizes of the built-in stand-in model.
pub const DEMO: Shape = Shape { version: Version::V7, layers: 3, width: 128, vocab: 256, head_size: 64 };

/// Letters of English text and how often they come, in the order of their frequency; what the stand-in's
/// noise is made of.
const LETTERS: &[(u8, f32)] = &[
    (b' ', 18.0),
    (b'e', 10.3),
    (b't', 7.5),
    (b'a', 6.5),
    (b'o', 6.2),
    (b'n', 5.7),
    (b'i', 5.7),
    (b's', 5.3),
    (b'r', 5.0),
    (b'h', 5.0),
    (b'l', 3.3),
    (b'd', 3.3),
    (b'u', 2.3),
    (b'c', 2.2),
    (b'm', 2.0),
    (b'f', 2.0),
    (b'w', 1.7),
    (b'g', 1.6),
    (b'p', 1.5),
    (b'y', 1.4),
    (b'b', 1.3),
    (b'v', 0.8),
    (b'k', 0.6),
    (b'.', 0.5),
    (b',', 0.5),
    (b'x', 0.1),
    (b'j', 0.1),
    (b'q', 0.1),
    (b'z', 0.1),
];

/// The built-in stand-in: byte-level, untrained (random weights), so its text is noise; its last layer is
/// leaned towards letters so that the noise can be printed. It lets every command run before a model has
/// been fetched.
pub fn demo() -> Checkpoint {
    let config = DEMO.config();
    let mut ckpt = checkpoint(&config, DType::F32, 7);
    ckpt.path = "the built-in stand-in model".into();
    // The final norm gets a large bias on its first channel, which the head turns into log-frequencies.
    const BIAS: f32 = 4.0;
    let edit = |ckpt: &mut Checkpoint, name: &str, change: &dyn Fn(&mut [f32])| {
        let mut values = ckpt.tensors[name].to_f32();
        change(&mut values);
        ckpt.tensors[name] = StoredTensor::from_f32(&ckpt.tensors[name].shape.clone(), &values);
    };
    edit(&mut ckpt, "ln_out.weight", &|w| w[0] = 0.0);
    edit(&mut ckpt, "ln_out.bias", &|b| b[0] = BIAS);
    edit(&mut ckpt, "head.weight", &|head| {
        for (byte, row) in head.chunks_exact_mut(config.width).enumerate() {
            let letter = LETTERS.iter().find(|(l, _)| usize::from(*l) == byte);
            row[0] = letter.map_or(-20.0, |(_, percent)| (percent / 18.0).ln()) / BIAS;
        }
    });
    ckpt
}

/// Bytes of every parameter for a dtype (matrices; vectors too), without making them: what a file of
/// this model would weigh.
pub fn bytes(config: &Config, dtype: DType) -> Option<u64> {
    names::all_params(config.version, config.layers)
        .iter()
        .map(|(_, p)| {
            let shape = config.shape(p);
            let cols = *shape.last()?;
            let rows = shape[..shape.len() - 1].iter().product::<usize>() as u64;
            Some(dtype.bytes_for(cols)? as u64 * rows)
        })
        .sum()
}
