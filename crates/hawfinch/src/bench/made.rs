//! Models of published sizes made up in memory: random weights in bf16, cheaply.

use std::collections::HashMap;

use hawfinch_kernels::{DType, block};
use hawfinch_model::names::{self, Role};
use hawfinch_model::synthetic::{self, Random};
use hawfinch_model::{Checkpoint, Config, FileFormat, StoredTensor};

use crate::shapes::Published;

/// Random numbers drawn for each range of values; they come again and again, each time begun at another place.
const DRAWN: usize = 1 << 20;

/// A checkpoint of random bf16 weights of these sizes, in the ranges of trained ones.
///
/// When the weights will be quantised while the model is prepared, tensors share their bytes (`shared`): nothing reads
/// them afterwards. Otherwise each has its own, because what is measured is how they are read.
pub fn checkpoint(of: &Published, config: &Config, shared: bool) -> Checkpoint {
    let mut made = Checkpoint::new(of.name, FileFormat::Memory);
    let mut random = Random(1);
    let params = names::all_params(config.version, config.layers);
    let mut noises = Noises { pools: HashMap::new(), shared };
    // A shared pool must hold the largest of those that share it.
    for (_, p) in params.iter().filter(|(_, p)| p.role != Role::Vector) {
        noises.reserve(synthetic::range(config, p), bytes(config, p));
    }
    for (name, p) in params {
        let data = if p.role == Role::Vector {
            let mut data = Vec::new();
            block::encode(DType::BF16, &synthetic::parameter(config, p, &mut random), &mut data);
            data.into()
        } else {
            noises.take(synthetic::range(config, p), bytes(config, p), &mut random)
        };
        let tensor =
            StoredTensor { dtype: DType::BF16, shape: config.shape(p), transposed: false, scale: 1.0, data };
        made.tensors.insert(name, tensor);
    }
    made.file_bytes = held(config, shared);
    made
}

/// Bytes of memory that [`checkpoint`] takes.
pub fn held(config: &Config, shared: bool) -> u64 {
    let mut pools = HashMap::<[u32; 2], u64>::new();
    let mut sum = 0;
    for (_, p) in names::all_params(config.version, config.layers) {
        let bytes = bytes(config, p) as u64;
        if shared && p.role != Role::Vector {
            let pool = pools.entry(key(synthetic::range(config, p))).or_default();
            *pool = bytes.max(*pool);
        } else {
            sum += bytes;
        }
    }
    let drawn = 2 * DRAWN as u64;
    sum + pools.values().map(|b| (b.div_ceil(drawn) + 1) * drawn).sum::<u64>()
}

fn bytes(config: &Config, p: &names::Param) -> usize {
    config.shape(p).iter().product::<usize>() * 2
}

fn key((low, high): (f32, f32)) -> [u32; 2] {
    [low.to_bits(), high.to_bits()]
}

/// Random bytes by the range of the values.
struct Noises {
    pools: HashMap<[u32; 2], Pool>,
    shared: bool,
}

/// The bytes of one range: as a tensor, which can be cut without a copy.
#[derive(Default)]
struct Pool {
    largest: usize,
    noise: Option<StoredTensor>,
}

impl Noises {
    fn reserve(&mut self, range: (f32, f32), bytes: usize) {
        let pool = self.pools.entry(key(range)).or_default();
        pool.largest = pool.largest.max(bytes);
    }

    fn take(&mut self, range: (f32, f32), bytes: usize, random: &mut Random) -> bytes::Bytes {
        let shared = self.shared;
        let pool = self.pools.entry(key(range)).or_default();
        let largest = pool.largest;
        let noise = pool.noise.get_or_insert_with(|| {
            let values: Vec<f32> = (0..DRAWN).map(|_| random.uniform(range.0, range.1)).collect();
            let mut drawn = Vec::new();
            block::encode(DType::BF16, &values, &mut drawn);
            if shared {
                drawn = drawn.repeat(largest.div_ceil(drawn.len()) + 1);
            }
            StoredTensor::new(DType::BF16, vec![drawn.len() / 2], drawn.into()).expect("two bytes each")
        });
        // Whole cache lines on.
        let from = random.bits() as usize % (2 * DRAWN / 64) * 64;
        if shared {
            return noise.data.slice(from..from + bytes);
        }
        let mut own = Vec::with_capacity(bytes);
        let mut rest = &noise.data[from..];
        while own.len() < bytes {
            own.extend_from_slice(&rest[..rest.len().min(bytes - own.len())]);
            rest = &noise.data;
        }
        own.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    #[test]
    fn shared_or_not_they_are_whole_models_of_the_size_told() {
        let of = shapes::find("goose-0.1b").unwrap();
        let mut config = of.shape.config();
        (config.layers, config.vocab) = (2, 3000);
        for shared in [false, true] {
            let made = checkpoint(&of, &config, shared);
            let found = Config::infer(&made).unwrap();
            assert_eq!((found.layers, found.width, found.vocab), (2, 768, 3000));
            assert!(made.tensors.values().all(|t| Some(t.data.len()) == t.expected_bytes()));
            let key = made.get("blocks.1.att.key.weight").unwrap().to_f32();
            let (low, high) = key.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
            let bound = (3.0f32 / 768.0).sqrt();
            assert!(low < -0.9 * bound && high > 0.9 * bound && high <= 1.01 * bound, "{low} {high}");
        }
        assert!(held(&config, true) < held(&of.shape.config(), false));
        assert_eq!(
            held(&of.shape.config(), false),
            synthetic::bytes(&of.shape.config(), DType::BF16).unwrap()
        );
    }
}
