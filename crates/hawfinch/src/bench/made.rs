//! Models of published sizes made up in memory: random weights, cheaply.

use std::collections::HashMap;

use hawfinch_kernels::{DType, block};
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Checkpoint, Config, FileFormat, Quant, Rng, StoredTensor, synthetic};

use crate::shapes::Published;

/// Random numbers drawn for each range of values; they come again and again, each time begun at another place.
const DRAWN: usize = 1 << 20;
/// Numbers that are never divided: the largest block of any format.
const WHOLE: usize = 256;

/// A checkpoint of random weights of these sizes, in the ranges of trained ones: bf16, and what `quant` quantises in
/// its blocks already (quantising as many weights as a model has takes minutes).
///
/// With `quant` tensors share their bytes: they are repacked while the model is prepared, nothing reads them
/// afterwards. Without, each has its own, because what is measured is how they are read.
pub fn checkpoint(of: &Published, config: &Config, quant: Option<Quant>) -> Checkpoint {
    let mut made = Checkpoint::new(of.name, FileFormat::Memory);
    let mut random = Rng::new(1);
    let mut noises = HashMap::<Kind, Noise>::new();
    let params = names::all_params(config.version, config.layers);
    // A pool that is shared holds the largest of those that share it.
    for (name, p) in params.iter().filter(|(_, p)| p.role != Role::Vector) {
        let noise = noises.entry(Kind::of(config, name, p, quant)).or_default();
        noise.largest = noise.largest.max(config.shape(p).iter().product());
    }
    for (name, p) in params {
        let shape = config.shape(p);
        let tensor = match noises.get_mut(&Kind::of(config, &name, p, quant)) {
            Some(noise) if p.role != Role::Vector => {
                noise.take(shape, (&name, p), config, quant, &mut random)
            }
            _ => {
                let mut data = Vec::new();
                block::encode(DType::BF16, &synthetic::parameter(config, p, &mut random), &mut data);
                StoredTensor::new(DType::BF16, shape, data.into())
            }
        };
        made.tensors.insert(name, tensor.expect("whole blocks, as many as the shape asks for"));
    }
    made.file_bytes = held(config, quant);
    made
}

/// Bytes of memory that [`checkpoint`] takes.
pub fn held(config: &Config, quant: Option<Quant>) -> u64 {
    let mut pools = HashMap::<Kind, usize>::new();
    let mut sum = 0;
    for (name, p) in names::all_params(config.version, config.layers) {
        let numbers = config.shape(p).iter().product::<usize>();
        if quant.is_some() && p.role != Role::Vector {
            let pool = pools.entry(Kind::of(config, &name, p, quant)).or_default();
            *pool = pooled(numbers).max(*pool);
        } else {
            sum += 2 * numbers as u64;
        }
    }
    sum + pools.iter().map(|(kind, n)| bytes(kind.dtype, *n) as u64).sum::<u64>()
}

/// Numbers of a pool for a tensor of so many, wherever it begins.
fn pooled(numbers: usize) -> usize {
    (numbers.div_ceil(DRAWN) + 1) * DRAWN
}

/// Bytes of numbers that are whole blocks.
fn bytes(dtype: DType, numbers: usize) -> usize {
    dtype.bytes_for(numbers).expect("whole blocks")
}

/// Tensors of one kind are cut from the same noise.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    /// Bits of the least and the largest value.
    range: [u32; 2],
    dtype: DType,
}

impl Kind {
    fn of(config: &Config, name: &str, p: &names::Param, quant: Option<Quant>) -> Kind {
        let (low, high) = synthetic::range(config, p);
        let linear = p.role == Role::Matrix && name != "emb.weight";
        let inputs = config.shape(p).last().copied().unwrap_or(1);
        let dtype = quant.filter(|_| linear).and_then(|q| q.type_for(name, DType::BF16, inputs));
        Kind { range: [low.to_bits(), high.to_bits()], dtype: dtype.unwrap_or(DType::BF16) }
    }
}

/// Random numbers of one kind.
#[derive(Default)]
struct Noise {
    /// Numbers of the largest tensor.
    largest: usize,
    /// As a tensor, whose bytes can be cut without a copy.
    drawn: Option<StoredTensor>,
}

impl Noise {
    fn take(
        &mut self,
        shape: Vec<usize>,
        (name, p): (&str, &names::Param),
        config: &Config,
        quant: Option<Quant>,
        random: &mut Rng,
    ) -> Option<StoredTensor> {
        let Kind { range, dtype } = Kind::of(config, name, p, quant);
        let [low, high] = range.map(f32::from_bits);
        let drawn = self.drawn.get_or_insert_with(|| {
            let values: Vec<f32> = (0..DRAWN).map(|_| random.uniform(low, high)).collect();
            let mut data = Vec::new();
            assert!(block::encode(dtype, &values, &mut data), "{dtype} can be written");
            let mut numbers = DRAWN;
            if quant.is_some() {
                numbers = pooled(self.largest);
                data = data.repeat(numbers / DRAWN);
            }
            StoredTensor::new(dtype, vec![numbers], data.into()).expect("as many as were drawn")
        });
        let wanted = bytes(dtype, shape.iter().product());
        let from = bytes(dtype, random.next_u64() as usize % (DRAWN / WHOLE) * WHOLE);
        if quant.is_some() {
            return StoredTensor::new(dtype, shape, drawn.data.slice(from..from + wanted));
        }
        let mut own = Vec::with_capacity(wanted);
        let mut rest = &drawn.data[from..];
        while own.len() < wanted {
            own.extend_from_slice(&rest[..rest.len().min(wanted - own.len())]);
            rest = &drawn.data;
        }
        StoredTensor::new(dtype, shape, own.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    #[test]
    fn quantised_or_not_they_are_whole_models_of_the_size_told() {
        let of = shapes::find("goose-0.1b").unwrap();
        let mut config = of.shape.config();
        (config.layers, config.vocab) = (2, 3000);
        for quant in [None, Some(Quant::Bf16), Some(Quant::Int8), Some(Quant::Int4), Some(Quant::Mixed)] {
            let made = checkpoint(&of, &config, quant);
            let found = Config::infer(&made).unwrap();
            assert_eq!((found.layers, found.width, found.vocab), (2, 768, 3000));
            assert!(made.tensors.values().all(|t| Some(t.data.len()) == t.expected_bytes()));
            let types = ["blocks.1.att.key.weight", "head.weight", "emb.weight", "blocks.1.att.w1"];
            let types = types.map(|name| made.get(name).unwrap().dtype);
            let [block, head] = match quant {
                None | Some(Quant::Bf16) => [DType::BF16; 2],
                Some(Quant::Int8) => [DType::Q8_0; 2],
                Some(Quant::Int4 | Quant::Mixed) => [DType::Q4_K, DType::Q8_0],
            };
            assert_eq!(types, [block, head, DType::BF16, DType::BF16]);
            let output = if quant == Some(Quant::Mixed) { DType::Q8_0 } else { block };
            assert_eq!(made.get("blocks.1.att.output.weight").unwrap().dtype, output);
            let key = made.get("blocks.1.att.key.weight").unwrap().to_f32();
            let (low, high) = key.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
            let bound = (3.0f32 / 768.0).sqrt();
            assert!(low < -0.9 * bound && high > 0.9 * bound && high <= 1.1 * bound, "{low} {high}");
        }
        let whole = of.shape.config();
        assert!(held(&whole, Some(Quant::Int8)) < held(&whole, None));
        assert_eq!(held(&whole, None), synthetic::bytes(&whole, DType::BF16).unwrap());
    }
}
