//! Quick measurements of this machine, for `doctor` and `bench`: a fraction of a second each, the best of several
//! passes, because what disturbs a measurement only ever slows it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use hawfinch_kernels::buffer::Buffer;
use hawfinch_kernels::{DType, Isa, Pool, block, peak};
use hawfinch_model::ops::{Apply, Ops};
use hawfinch_model::{Cpu, Rng, StoredTensor};

use crate::system::cpu::Cpu as Processor;
use crate::system::memory::Memory;

/// Time given to one measurement.
pub const BUDGET: Duration = Duration::from_millis(250);
/// Inputs of the matrix measured: the width of the 2.9B model.
const WIDTH: usize = 2560;

/// How fast hawfinch multiplies a matrix with a vector.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Product {
    /// Number format of the weights.
    pub dtype: &'static str,
    /// Bytes of weights a second.
    pub bytes_per_second: f64,
    /// Weights (multiply-adds) a second.
    pub weights_per_second: f64,
}

/// What the machine can do at most, measured again whenever it is asked, so that a speed can stand beside a
/// limit of the same moment.
pub struct Gauge {
    isa: Isa,
    pool: Arc<Pool>,
    data: Buffer,
    streams: usize,
    budget: Duration,
}

impl Gauge {
    /// With a model's instruction set and threads. Reads a block of far more than the caches hold, but never much of
    /// what is free; `budget` is the time for one measurement. (Read again and again, a block of four times the largest
    /// cache was still 10 to 20% faster than memory, as a part of it stays: 38 GB/s beside 34.3 of eight times, 34.4 of
    /// sixteen and 33.7 of sixty-four times as much.)
    pub fn new(isa: Isa, pool: Arc<Pool>, cpu: &Processor, memory: &Memory, budget: Duration) -> Gauge {
        let most = (memory.available().unwrap_or(1 << 30) / 8).clamp(32 << 20, 1 << 30);
        let wanted = (16 * cpu.largest_cache()).clamp(256 << 20, 1 << 30).min(most);
        let mut gauge = Gauge { isa, pool, data: Buffer::new(wanted as usize), streams: 1, budget };
        // How many streams a thread reads best in depends on the machine.
        let tries = [1, 2, 4, 8].map(|streams| (gauge.read_with(&gauge.pool, streams), streams));
        let best = tries.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        gauge.streams = best.map_or(1, |(_, streams)| streams);
        gauge
    }

    /// Bytes of the block that is read, which the process holds beside what it measures.
    pub fn bytes(&self) -> u64 {
        self.data.bytes().len() as u64
    }

    /// Streams in which each thread reads.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Bytes a second read from memory by all threads.
    pub fn read(&self) -> f64 {
        self.read_with(&self.pool, self.streams)
    }

    /// Bytes a second read by one thread, in as many streams.
    pub fn read_alone(&self) -> f64 {
        self.read_with(&Pool::new(1), self.streams)
    }

    fn read_with(&self, pool: &Pool, streams: usize) -> f64 {
        peak::read_bandwidth(self.isa, pool, self.data.bytes(), streams, self.budget)
    }

    /// Multiply-adds of f32 a second, by all threads, operands in registers.
    pub fn multiply(&self) -> f64 {
        peak::multiply_adds(self.isa, &self.pool, self.budget)
    }
}

/// The speed of the matrix product that models run on, for a matrix of about `bytes` bytes; `None` for a
/// format that cannot be written.
pub fn product(dtype: DType, bytes: usize) -> Option<Product> {
    let row_bytes = dtype.bytes_for(WIDTH)?;
    let rows = (bytes / row_bytes).max(1);
    // A few rows of plausible weights, over and over: encoding all would take longer than the measurement.
    let mut random = Rng::new(1);
    let mut few = Vec::new();
    for _ in 0..rows.min(64) {
        let row: Vec<f32> = (0..WIDTH).map(|_| random.uniform(-0.03, 0.03)).collect();
        if !block::encode(dtype, &row, &mut few) {
            return None;
        }
    }
    let data: Vec<u8> = few.iter().copied().cycle().take(rows * row_bytes).collect();
    let weight = StoredTensor::new(dtype, vec![rows, WIDTH], data.into())?;
    let ops = Cpu::<f32>::default();
    let matrix = ops.matrix("doctor", &weight, Apply::Linear).ok()?;
    let x: Vec<f64> = (0..WIDTH).map(|_| random.uniform(-1.0, 1.0).into()).collect();
    let x = ops.vector(&x);
    let time = peak::fastest(BUDGET, || _ = black_box(ops.linear(&x, &matrix)));
    Some(Product {
        dtype: dtype.name(),
        bytes_per_second: (rows * row_bytes) as f64 / time,
        weights_per_second: (rows * WIDTH) as f64 / time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_positive() {
        let small = Memory { machine_available: Some(1), ..Memory::default() };
        let budget = Duration::from_millis(1);
        let gauge = Gauge::new(Isa::best(), Arc::new(Pool::new(2)), &Processor::default(), &small, budget);
        assert_eq!(gauge.bytes(), 32 << 20);
        assert!(gauge.read() > 1e6 && gauge.read_alone() > 1e6 && gauge.multiply() > 1e6);
        let p = product(DType::Q8_0, 1 << 20).unwrap();
        assert_eq!(p.dtype, "q8_0");
        assert!((p.bytes_per_second / p.weights_per_second - 34.0 / 32.0).abs() < 1e-9);
        assert!(product(DType::I8, 1 << 10).is_none());
    }
}
