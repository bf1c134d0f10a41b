//! Times general matrix products of training's shapes beside what the machine can multiply at most.
//!
//! `cargo run --release -p hawfinch-kernels --example gemm -- [ROWS] [THREADS] [WIDTHS…]`

use std::time::Duration;

use hawfinch_kernels::gemm::{Into, Precision, View, gemm};
use hawfinch_kernels::{Isa, Pool, peak};

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let rows = numbers.first().copied().unwrap_or(4096);
    let isa = Isa::best();
    let threads = numbers.get(1).copied();
    let pool =
        Pool::new(threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())));
    let widths = if numbers.len() > 2 { numbers[2..].to_vec() } else { vec![256, 512, 768] };
    let data = vec![0.5f32; 64 << 20];
    let mut c = vec![0f32; 64 << 20];
    println!("{isa}, {} threads: percent of the f32 peak of the same moment", pool.threads());
    for width in widths {
        // Forward and to the inputs: rows by width by width; to the weights: width by rows by width; the head.
        let shapes = [
            ("x wᵀ", rows, width, width, false, true),
            ("ffn.key", rows, width, 4 * width, false, true),
            ("ffn.value", rows, 4 * width, width, false, true),
            ("d w", rows, width, width, false, false),
            ("dᵀ x", width, rows, width, true, false),
            ("rank 32 down", rows, width, 32, false, true),
            ("rank 32 up", rows, 32, width, false, true),
            ("rank 32 dᵀ x", 32, rows, width, true, false),
        ];
        for (name, m, k, n, left_turned, right_turned) in shapes {
            let a = if left_turned {
                View::new(&data[..m * k], k, m).transposed()
            } else {
                View::new(&data[..m * k], m, k)
            };
            let b = if right_turned {
                View::new(&data[..n * k], n, k).transposed()
            } else {
                View::new(&data[..n * k], k, n)
            };
            let c = &mut c[..m * n];
            let best = peak::multiply_adds(isa, &pool, Duration::from_millis(30));
            let time = peak::fastest(Duration::from_millis(150), || {
                gemm(isa, &pool, Precision::Full, c, Into::Overwrite, a, b);
            });
            let speed = (m * k * n) as f64 / time;
            println!(
                "{name:<14}{m:>6} {k:>6} {n:>6}  {:>6.1} GFLOP/s  {:>4.0}%",
                2e-9 * speed,
                100.0 * speed / best
            );
        }
    }
}
