//! Times the matrix products of every instruction set against what the machine can do, measured in the same run (the
//! recurrences: `wkv.rs`):
//! `cargo run --release -p hawfinch-kernels --example perf [THREADS]`.

use std::time::Duration;

use hawfinch_kernels::buffer::Buffer;
use hawfinch_kernels::linear::columns::{self, Columns};
use hawfinch_kernels::linear::{self, Matrix};
use hawfinch_kernels::panel::{self, Activations, Panels};
use hawfinch_kernels::tiles::{self, Runs};
use hawfinch_kernels::{DType, Isa, Pool, bf16, block, peak};

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let pool = Pool::new(threads);
    let budget = Duration::from_millis(400);
    let mut memory = Buffer::new(1 << 29);
    memory.bytes_mut().fill(1);
    let memory = memory.bytes();
    for streams in [1, 2, 4, 8] {
        let speed = peak::read_bandwidth(Isa::best(), &pool, memory, streams, budget);
        println!("reading memory, {streams} streams a thread: {:.1} GB/s", speed / 1e9);
    }
    // Measured anew beside every product: other programs share the memory.
    let read_now = || peak::read_bandwidth(Isa::best(), &pool, memory, 4, budget / 2);
    let (o, i) = (2048 * 16, 2048);
    let weights: Vec<f32> = (0..i).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
    for isa in Isa::available() {
        if isa == Isa::SCALAR {
            continue;
        }
        let fma = peak::multiply_adds(isa, &pool, budget);
        println!("{isa}: {:.1} G multiply-adds/s in registers", fma / 1e9);
        for dtype in [DType::F32, DType::BF16] {
            let mut row = Vec::new();
            assert!(block::encode(dtype, &weights, &mut row));
            let data = row.repeat(o);
            for t in [1usize, 4, 16, 128] {
                let outputs = o / t.next_multiple_of(8).div_ceil(8);
                let bytes = outputs * row.len();
                let w = Matrix { dtype, outputs, inputs: i, scale: 1.0, data: &data[..bytes] };
                let x: Vec<f32> = (0..t * i).map(|n| (n % 13) as f32 - 6.0).collect();
                let mut y = vec![0f32; t * outputs];
                let best = read_now();
                let time = peak::fastest(budget, || linear::linear(isa, &pool, &mut y, &x, w));
                let (read, multiplied) = (bytes as f64 / time, (t * outputs * i) as f64 / time);
                println!(
                    "{isa} {dtype} {t:4} tokens: {:6.1} GB/s {:3.0}%  {:6.1} G multiply-adds/s {:3.0}%",
                    read / 1e9,
                    100.0 * read / best,
                    multiplied / 1e9,
                    100.0 * multiplied / fma,
                );
            }
        }
        let mut row = Vec::new();
        assert!(block::encode(DType::BF16, &weights, &mut row));
        for t in [1usize, 4, 16, 128] {
            let outputs = 2 * o / t.next_multiple_of(8).div_ceil(8);
            let w = bf16::Panels::pack(&pool, &row.repeat(outputs), outputs, i, 1.0);
            let x: Vec<f32> = (0..t * i).map(|n| (n % 13) as f32 - 6.0).collect();
            let mut y = vec![0f32; t * outputs];
            let mut scratch = bf16::Tokens::default();
            let best = read_now();
            let time = peak::fastest(budget, || bf16::linear(isa, &pool, &mut y, &x, &w, &mut scratch));
            let (read, multiplied) = (w.bytes() as f64 / time, (t * outputs * i) as f64 / time);
            println!(
                "{isa} bf16 panels {t:4} tokens: {:6.1} GB/s {:3.0}%  {:6.1} G multiply-adds/s ({:.2} of f32's)",
                read / 1e9,
                100.0 * read / best,
                multiplied / 1e9,
                multiplied / fma,
            );
        }
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
            let mut row = Vec::new();
            assert!(block::encode(dtype, &weights, &mut row));
            let data = row.repeat(o * 4);
            for t in [1usize, 4, 16, 128] {
                let outputs = 4 * o / t.next_multiple_of(8).div_ceil(8);
                let bytes = outputs * row.len();
                let w = Panels::pack(&pool, dtype, &data[..bytes], outputs, i, 1.0).expect("panels");
                let x: Vec<f32> = (0..t * i).map(|n| (n % 13) as f32 - 6.0).collect();
                let mut y = vec![0f32; t * outputs];
                let mut scratch = Activations::default();
                let best = read_now();
                let time = peak::fastest(budget, || panel::linear(isa, &pool, &mut y, &x, &w, &mut scratch));
                let (read, multiplied) = (w.bytes() as f64 / time, (t * outputs * i) as f64 / time);
                println!(
                    "{isa} {dtype} {t:4} tokens: {:6.1} GB/s {:3.0}%  {:6.1} G multiply-adds/s ({:.2} of f32's)",
                    read / 1e9,
                    100.0 * read / best,
                    multiplied / 1e9,
                    multiplied / fma,
                );
            }
        }
        matrices(isa, &pool, fma, budget);
        low_rank(isa, &pool, fma, budget);
    }
}

/// Matrix × matrix alone: 512 tokens, 2048 inputs, 8192 outputs, weights packed. Beside the f32 multiply-adds and, where
/// there are tiles, what these do at most.
fn matrices(isa: Isa, pool: &Pool, fma: f64, budget: Duration) {
    let (t, i, o) = (512usize, 2048usize, 8192usize);
    let peaks = peak::tiles(isa, pool, budget);
    if let Some([int8, bf16]) = peaks {
        println!(
            "{isa}: {:.0} G multiply-adds/s in tiles of 8 bits, {:.0} G of bf16",
            int8 / 1e9,
            bf16 / 1e9
        );
    }
    let say = |name: &str, time: f64, peak: Option<f64>| {
        let speed = (t * o * i) as f64 / time;
        let of =
            peak.map_or(String::new(), |peak| format!(", {:.0}% of the tiles' most", 100.0 * speed / peak));
        println!(
            "{isa} {name} {t} x {i} x {o}: {:.1} G multiply-adds/s ({:.2} of f32's{of})",
            speed / 1e9,
            speed / fma
        );
    };
    let x: Vec<f32> = (0..t * i).map(|n| (n % 13) as f32 - 6.0).collect();
    let row: Vec<f32> = (0..i).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
    let mut y = vec![0f32; t * o];
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        let mut data = Vec::new();
        assert!(block::encode(dtype, &row, &mut data));
        let w = Panels::pack(pool, dtype, &data.repeat(o), o, i, 1.0).expect("panels");
        let mut scratch = Activations::default();
        let time = peak::fastest(budget, || panel::linear(isa, pool, &mut y, &x, &w, &mut scratch));
        say(&dtype.to_string(), time, peaks.map(|p| p[0]));
    }
    let mut data = Vec::new();
    assert!(block::encode(DType::BF16, &row, &mut data));
    let data = data.repeat(o);
    let w = Matrix { dtype: DType::BF16, outputs: o, inputs: i, scale: 1.0, data: &data };
    let time = peak::fastest(budget, || linear::linear(isa, pool, &mut y, &x, w));
    say("bf16, activations in f32", time, peaks.map(|p| p[1]));
    let panels = bf16::Panels::pack(pool, &data, o, i, 1.0);
    let mut scratch = bf16::Tokens::default();
    let time = peak::fastest(budget, || bf16::linear(isa, pool, &mut y, &x, &panels, &mut scratch));
    say("bf16, activations in bf16", time, peaks.map(|p| p[1]));
    let Some([int8, bf16]) = peaks else { return };
    let w = Runs::weights_bf16(&data, i);
    for parts in [1, 3] {
        let x = Runs::tokens_bf16(&x, i, parts);
        let time = peak::fastest(budget, || assert!(tiles::bf16(isa, pool, &mut y, &x, &w, 1.0)));
        // Every part is a product of its own.
        say(&format!("bf16 tiles, activations in {parts}"), time, Some(bf16 / parts as f64));
    }
    let bytes = |n: usize| (0..n).map(|n| (n * 31 % 255) as u8 as i8).collect::<Vec<_>>();
    let (x, w) = (Runs::tokens_int8(&bytes(t * i), i), Runs::weights_int8(&bytes(o * i), i));
    let mut y = vec![0i32; t * o];
    let time = peak::fastest(budget, || assert!(tiles::int8(isa, pool, &mut y, &x, &w)));
    say("tiles of 8 bits", time, Some(int8));
}

/// Low-rank weights, bf16 in tiles: down to a rank and up again.
fn low_rank(isa: Isa, pool: &Pool, fma: f64, budget: Duration) {
    for (o, i) in [(96usize, 2048usize), (2048, 96), (256, 2048), (2048, 256)] {
        let weights: Vec<f32> = (0..o * i).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
        let mut data = Vec::new();
        assert!(block::encode(DType::BF16, &weights, &mut data));
        let w = Columns::pack(DType::BF16, &data, o, i, 1.0);
        for t in [1usize, 16, 512] {
            let x: Vec<f32> = (0..t * i).map(|n| (n % 13) as f32 - 6.0).collect();
            let mut y = vec![0f32; t * o];
            let time = peak::fastest(budget / 4, || columns::linear(isa, pool, &mut y, &x, &w));
            let multiplied = (t * o * i) as f64 / time;
            println!(
                "{isa} low rank {i} -> {o}, {t:3} tokens: {:.1} G multiply-adds/s {:.0}%",
                multiplied / 1e9,
                100.0 * multiplied / fma
            );
        }
    }
}
