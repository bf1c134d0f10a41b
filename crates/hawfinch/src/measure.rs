//! Quick measurements of this machine, for `doctor`: a fraction of a second each, the best of several
//! passes, because what disturbs a measurement only ever slows it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hawfinch_kernels::{DType, block};
use hawfinch_model::ops::{Apply, Ops};
use hawfinch_model::synthetic::Random;
use hawfinch_model::{Cpu, StoredTensor};

/// Time given to one measurement.
const BUDGET: Duration = Duration::from_millis(250);
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

/// Seconds of the fastest of as many runs as fit the budget, at least two.
fn fastest(mut run: impl FnMut()) -> f64 {
    let (began, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 2 || began.elapsed() < BUDGET {
        let at = Instant::now();
        run();
        best = best.min(at.elapsed().as_secs_f64());
        runs += 1;
    }
    best.max(1e-9)
}

/// Bytes a second that are read from a block of `size` bytes: by one thread, by `threads`.
pub fn read(size: usize, threads: usize) -> (f64, f64) {
    // Written once, so that every page is a page of its own.
    let data: Vec<u64> = (0..size.max(64) as u64 / 8).collect();
    let bytes = (data.len() * 8) as f64;
    let one = bytes / fastest(|| _ = black_box(sum(&data)));
    let all = match threads {
        0 | 1 => one,
        n => {
            let part = data.len().div_ceil(n);
            let time = fastest(|| {
                std::thread::scope(|s| {
                    for part in data.chunks(part) {
                        s.spawn(move || black_box(sum(part)));
                    }
                });
            });
            bytes / time
        }
    };
    (one, all.max(one))
}

/// A sum that keeps several loads under way.
fn sum(data: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    let chunks = data.chunks_exact(16);
    let rest: u64 = chunks.remainder().iter().fold(0, |a, b| a.wrapping_add(*b));
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().fold(rest, |a, b| a.wrapping_add(*b))
}

/// The speed of the matrix product that models run on, for a matrix of about `bytes` bytes; `None` for a
/// format that cannot be written.
pub fn product(dtype: DType, bytes: usize) -> Option<Product> {
    let row_bytes = dtype.bytes_for(WIDTH)?;
    let rows = (bytes / row_bytes).max(1);
    // A few rows of plausible weights, over and over: encoding all would take longer than the measurement.
    let mut random = Random(1);
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
    let time = fastest(|| _ = black_box(ops.linear(&x, &matrix)));
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
    fn sums_are_right_and_speeds_are_positive() {
        let data: Vec<u64> = (0..1003).collect();
        assert_eq!(sum(&data), 1003 * 1002 / 2);
        let (one, all) = read(1 << 20, 2);
        assert!(one > 1e6 && all >= one);
        let p = product(DType::Q8_0, 1 << 20).unwrap();
        assert_eq!(p.dtype, "q8_0");
        assert!((p.bytes_per_second / p.weights_per_second - 34.0 / 32.0).abs() < 1e-9);
        assert!(product(DType::I8, 1 << 10).is_none());
    }
}
