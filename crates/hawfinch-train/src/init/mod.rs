//! New models: every parameter as the references begin with it (`rules.rs`), from sizes and a seed.
//!
//! Random numbers are drawn for each tensor by itself, decided by the seed, its name and the place in it: a model is the
//! same, bit for bit, whatever the threads, the instruction set and the order.

mod rules;

use hawfinch_kernels::orthogonal::orthonormalize;
use hawfinch_kernels::{Isa, Pool};
use hawfinch_model::config::Ranks;
use hawfinch_model::names::{self, Dim, Param};
use hawfinch_model::synthetic::Shape;
use hawfinch_model::{Checkpoint, Config, FileFormat, Rng, StoredTensor, Version};

pub use rules::{Rule, rule};

use crate::{Error, Result};

/// Sizes of a new model; what is not said is as the references have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Version.
    pub version: Version,
    /// L
    pub layers: usize,
    /// D; a multiple of the head size.
    pub width: usize,
    /// V
    pub vocab: usize,
    /// N (64 in every released model; v4 has no heads).
    pub head_size: usize,
    /// F; by default 4 D, for v5.2 and v6 3.5 D in whole 32s.
    pub ffn_width: Option<usize>,
    /// Widths of the low-rank parts; by default [`Ranks::reference`].
    pub ranks: Option<Ranks>,
}

/// Most numbers a model may have: a thousand times the largest released.
const MOST: u64 = 1 << 44;

impl Sizes {
    /// The configuration of such a model.
    ///
    /// # Errors
    /// One sentence: a size that no model has, and what it may be.
    pub fn config(&self) -> Result<Config> {
        let bad = |what: String| Err(Error::request(what));
        let Sizes { version, layers, width, vocab, head_size, .. } = *self;
        for (name, value, most) in [
            ("layers", layers, 9999),
            ("width", width, 1 << 20),
            ("vocabulary", vocab, 1 << 24),
            ("head size", head_size, 1024),
            ("inner width of the channel mix", self.ffn_width.unwrap_or(1), 1 << 22),
        ] {
            if value == 0 || value > most {
                return bad(format!("{name} is {value}: a model has from 1 to {most}"));
            }
        }
        if version != Version::V4 && !width.is_multiple_of(head_size) {
            return bad(format!(
                "a width of {width} is not a whole number of heads of {head_size}: make it a multiple, or give another head size"
            ));
        }
        if version == Version::V5_2 && head_size == 1 {
            return bad(
                "a v5.2 model with heads of 1 could not be told from one of v5.1: give a larger head size"
                    .into(),
            );
        }
        let shape = Shape { version, layers, width, vocab, head_size };
        let mut config = shape.config();
        config.ranks = self.ranks.unwrap_or(Ranks::reference(version, width));
        config.ffn_width = self.ffn_width.unwrap_or(config.ffn_width);
        for (_, param) in names::all_params(version, 1) {
            for (dim, name) in RANKS {
                let rank = config.dim(dim);
                if param.shape.contains(&dim) && (rank == 0 || rank > 1 << 16) {
                    return bad(format!(
                        "the rank of the {name} is {rank}: it must be from 1 to {}",
                        1 << 16
                    ));
                }
            }
        }
        match config.parameters(true) {
            n if n > MOST => {
                bad(format!("a model of these sizes would have {n} parameters: make it smaller"))
            }
            _ => Ok(config),
        }
    }
}

const RANKS: [(Dim, &str); 5] = [
    (Dim::Mix, "token-shift mix"),
    (Dim::DecayRank, "decay"),
    (Dim::LearnRank, "in-context learning rate"),
    (Dim::ValueRank, "value residual"),
    (Dim::GateRank, "gate"),
];

/// What else decides a new model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Decides the random numbers.
    pub seed: u64,
    /// First learning rate of the run: embeddings of v4, v5.0 and v5.1 are uniform within it (6e-4 in the reference's
    /// script; the paper has 1e-4). The other versions' are within 1e-4 whatever the run.
    pub lr_init: f64,
}

/// A new model: f32 tensors in official order under official names, layer 0 of v7 with its unused `v0`, `v1`, `v2`, as
/// the reference writes it.
pub fn model(config: &Config, options: &Options, isa: Isa, pool: &Pool) -> Checkpoint {
    let mut model = Checkpoint::new("new model", FileFormat::Memory);
    for (name, param) in names::all_params(config.version, config.layers) {
        let tensor = tensor(config, options, &name, param, isa, pool);
        model.file_bytes += tensor.data.len() as u64;
        model.tensors.insert(name, tensor);
    }
    model
}

/// One tensor of a new model, by its official name and its entry in [`names`].
pub fn tensor(
    config: &Config,
    options: &Options,
    name: &str,
    param: &Param,
    isa: Isa,
    pool: &Pool,
) -> StoredTensor {
    let layer = names::split_block(name).map_or(0, |(layer, _)| layer);
    let shape = config.shape(param);
    let n = shape.iter().product();
    let values = match rule(config, layer, param, options.lr_init) {
        Rule::Constant(value) => vec![value; n],
        Rule::Values(values) => values,
        Rule::Uniform { bound } => uniform(n, bound, options.seed, name, pool),
        Rule::Orthogonal { gain } => orthogonal(shape[0], shape[1], gain, options.seed, name, isa, pool),
    };
    StoredTensor::from_f32(&shape, &values)
}

/// `n` numbers in (-bound, bound); each run of 4096 has its own generator.
fn uniform(n: usize, bound: f32, seed: u64, name: &str, pool: &Pool) -> Vec<f32> {
    const RUN: usize = 4096;
    let mut values = vec![0f32; n];
    pool.split(&mut values, 1, RUN, |first, run| {
        let mut rng = Rng::of(seed, name, (first / RUN) as u64);
        run.iter_mut().for_each(|v| *v = rng.uniform(-bound, bound));
    });
    values
}

/// `[rows, cols]`, its rows (columns, if it has more rows) orthonormal, times `gain`: Gaussian vectors, each with its own
/// generator, made orthonormal. As the diagonal of R is positive, every such matrix is as likely as any other.
fn orthogonal(rows: usize, cols: usize, gain: f64, seed: u64, name: &str, isa: Isa, pool: &Pool) -> Vec<f32> {
    let (n, m) = (rows.min(cols), rows.max(cols));
    let mut vectors = vec![0f64; n * m];
    for attempt in 0.. {
        pool.split(&mut vectors, m, 1, |i, vector| {
            let mut rng = Rng::of(seed, name, attempt << 32 | i as u64);
            vector.chunks_mut(2).for_each(|two| two.copy_from_slice(&rng.normals()[..two.len()]));
        });
        // Gaussian vectors depend on each other with probability 0; but a program does not end by chance.
        if orthonormalize(isa, pool, &mut vectors, m) {
            break;
        }
    }
    let mut values = vec![0f32; n * m];
    let vectors = &vectors;
    // Sixteen rows at a time: a cache line of each column.
    pool.split(&mut values, cols, 16, |first, part| {
        if rows <= cols {
            let from = &vectors[first * m..first * m + part.len()];
            part.iter_mut().zip(from).for_each(|(v, x)| *v = (gain * x) as f32);
            return;
        }
        for (c, column) in vectors.chunks_exact(m).enumerate() {
            for (row, x) in part.chunks_exact_mut(cols).zip(&column[first..]) {
                row[c] = (gain * x) as f32;
            }
        }
    });
    values
}

#[cfg(test)]
mod tests;
