//! How each parameter of each version begins: the references' formulas.
//!
//! Source: the training spec, section 1, from the modules' constructors and `generate_init_weight` of
//! RWKV-v4neo (v4, v5.0, v5.1), RWKV-v5 (v5.2, v6) and RWKV-v7/train_temp (v7). The attention baseline begins as v7 does,
//! but that every matrix keeps the size of what it is given. Letters as there: layer `l` of `L`,
//! `r0 = l/(L-1)`, `r1 = 1 - l/L`, channel `i` of `D`. Python computes the scalars in double precision and PyTorch the
//! tensors in single; so does this, operation by operation. Where the reference divides by zero (one layer, one head,
//! one channel) the quotient is taken as 0.

use hawfinch_model::names::{Param, Role};
use hawfinch_model::{Config, Version};

/// How a parameter begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Every number this.
    Constant(f32),
    /// These, in the order of the tensor.
    Values(Vec<f32>),
    /// Uniform in (-bound, bound).
    Uniform {
        /// Largest size of a number.
        bound: f32,
    },
    /// A matrix W with orthonormal rows or columns, whichever are fewer, drawn evenly from all such, times `gain`:
    /// W Wᵀ = gain² 1, or Wᵀ W where it has more rows.
    Orthogonal {
        /// Factor.
        gain: f64,
    },
}

/// The rule of `param` in layer `layer` (0 outside the blocks). `lr_init` is the run's first learning rate: the bound of
/// the embeddings of v4, v5.0 and v5.1.
pub fn rule(config: &Config, layer: usize, param: &Param, lr_init: f64) -> Rule {
    let Config { version, layers, width, vocab, .. } = *config;
    let old = matches!(version, Version::V4 | Version::V5_0 | Version::V5_1);
    let (rows, cols) = match config.shape(param)[..] {
        [rows, cols] => (rows, cols),
        _ => (1, 1),
    };
    // Taller matrices spread their gain over more outputs.
    let tall = (rows as f64 / cols.max(1) as f64).max(1.0).sqrt();
    match (param.name, param.role) {
        ("emb.weight", _) => Rule::Uniform { bound: if old { lr_init } else { 1e-4 } as f32 },
        ("head.weight", _) => Rule::Orthogonal { gain: 0.5 * (vocab as f64 / width as f64).max(1.0).sqrt() },
        ("att.output.weight" | "ffn.value.weight" | "ffn.receptance.weight", _) => Rule::Constant(0.0),
        ("att.key.weight" | "att.receptance.weight", _) if version == Version::V4 => Rule::Constant(0.0),
        (_, Role::Matrix) if old || version == Version::Attention => Rule::Orthogonal { gain: tall },
        ("att.key.weight" | "att.gate.weight", _) => Rule::Orthogonal { gain: 0.1 },
        (_, Role::Matrix) => Rule::Orthogonal { gain: 1.0 },
        (name, Role::LowRank) => match (name.ends_with('1'), version) {
            (true, _) => Rule::Constant(0.0),
            (false, Version::V7) => Rule::Orthogonal { gain: 0.1 * tall },
            (false, _) => Rule::Uniform { bound: 0.01 },
        },
        ("att.ln_x.weight", _) => Rule::Constant(((1 + layer) as f64 / layers as f64).powf(0.7) as f32),
        (name, Role::Vector) if name.contains("ln") => {
            Rule::Constant(if name.ends_with("weight") { 1.0 } else { 0.0 })
        }
        (name, Role::Vector) => {
            Formula { config, r0: ratio(layer, layers - 1), r1: 1.0 - ratio(layer, layers) }.of(name)
        }
    }
}

/// `n / all`; 0 where there is nothing to divide by.
fn ratio(n: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { n as f64 / all as f64 }
}

/// Vectors of one layer.
struct Formula<'a> {
    config: &'a Config,
    r0: f64,
    r1: f64,
}

impl Formula<'_> {
    fn of(&self, name: &str) -> Rule {
        let &Formula { config, r0, r1 } = self;
        let (h, a) = (config.heads, config.att_width);
        let values = |n: usize, f: &dyn Fn(usize) -> f32| Rule::Values((0..n).map(f).collect());
        let wide = |n: usize, f: &dyn Fn(usize) -> f64| Rule::Values((0..n).map(|i| f(i) as f32).collect());
        match name {
            // Token shift. 1 - for the versions that mix from the row towards the one before it.
            "att.time_mix_k" => self.power(r1),
            "att.time_mix_v" => self.map(r1, |p| p + (0.3 * r0) as f32),
            "att.time_mix_r" | "att.time_mix_g" => self.power(0.5 * r1),
            "att.time_maa_x" | "att.time_maa_w" | "att.time_maa_k" => self.map(r1, |p| 1.0 - p),
            "att.time_maa_v" => self.map(r1, |p| 1.0 - (p + (0.3 * r0) as f32)),
            "att.time_maa_r" | "att.time_maa_g" => self.map(0.5 * r1, |p| 1.0 - p),
            "ffn.time_mix_k" | "ffn.time_mix_r" => self.power(r1),
            "ffn.time_maa_k" | "ffn.time_maa_r" => self.map(r1.powi(3), |p| 1.0 - p),
            "att.x_r" | "att.x_g" => self.map(0.2 * r1, |p| 1.0 - p),
            "att.x_w" | "att.x_a" => self.map(0.9 * r1, |p| 1.0 - p),
            "att.x_k" | "att.x_v" => self.map(0.7 * r1, |p| 1.0 - p),
            "ffn.x_k" => self.map(r1.powi(4), |p| 1.0 - p),
            // Decays and bonuses, v4 to v6.
            "att.time_decay" => {
                let exponent = 0.7 + 1.3 * r0;
                match config.version {
                    Version::V4 => wide(a, &|i| -5.0 + 8.0 * ratio(i, a - 1).powf(exponent)),
                    Version::V5_0 | Version::V5_1 => {
                        wide(h, &|i| -6.0 + 5.0 * ratio(i, h - 1).powf(exponent))
                    }
                    _ => wide(a, &|i| -6.0 + 5.0 * ratio(i, a - 1).powf(exponent)),
                }
            }
            "att.time_first" => values(a, &|i| 0.3f64.ln() as f32 + zig3(i) as f32 * 0.5),
            "att.time_faaaa" => match config.version {
                Version::V5_0 | Version::V5_1 => wide(h, &|i| r0 * (1.0 - ratio(i, h - 1))),
                _ => wide(a, &|i| r0 * (1.0 - ratio(i, a - 1)) + zig3(i) * 0.1),
            },
            // v7.
            "att.w0" => values(a, &|i| {
                let www = -6.0 + 6.0 * ratio(i, a - 1).powf(1.0 + r0.powf(0.3));
                www as f32 + 0.5 + self.zigzag(i) * 2.5
            }),
            "att.a0" => values(a, &|i| -0.19 + self.zigzag(i) * 0.3 + self.linear(i) * 0.4),
            "att.v0" => values(a, &|i| 0.73 - self.linear(i) * 0.4),
            "att.k_k" => values(a, &|i| 0.71 - self.linear(i) * 0.1),
            "att.k_a" => Rule::Constant(1.02),
            "att.r_k" => Rule::Constant(-0.04),
            // Attention.
            "att.q_scale" | "att.k_scale" => Rule::Constant(1.0),
            other => unreachable!("every vector of `names` has its formula, but {other}"),
        }
    }

    /// (i/D)^exponent of every channel: PyTorch's power of single-precision numbers, rounded once.
    fn map(&self, exponent: f64, f: impl Fn(f32) -> f32) -> Rule {
        let d = self.config.width;
        let exponent = f64::from(exponent as f32);
        let power = |i: usize| f64::from(ratio(i, d) as f32).powf(exponent) as f32;
        Rule::Values((0..d).map(|i| f(power(i))).collect())
    }

    fn power(&self, exponent: f64) -> Rule {
        self.map(exponent, |p| p)
    }

    /// z |z|, z from -1 to 1 within each head.
    fn zigzag(&self, i: usize) -> f32 {
        let n = self.config.head_size;
        let half = (n - 1) as f64 / 2.0;
        let z = if n == 1 { 0.0 } else { ((i % n) as f64 - half) / half } as f32;
        z * z.abs()
    }

    /// From -0.5 to 0.5 over all channels.
    fn linear(&self, i: usize) -> f32 {
        (ratio(i, self.config.att_width - 1) - 0.5) as f32
    }
}

/// 0, 1, -1, 0, …
fn zig3(i: usize) -> f64 {
    ((i + 1) % 3) as f64 - 1.0
}
