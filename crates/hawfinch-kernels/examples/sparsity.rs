//! Times products with mostly zero inputs, dense panels beside strips:
//! `cargo run --release -p hawfinch-kernels --example sparsity [TOKENS]`.

use std::time::Instant;

use hawfinch_kernels::panel::sparse::{self, Sparse};
use hawfinch_kernels::panel::{self, Activations, Panels};
use hawfinch_kernels::{DType, Isa, Pool, block};

fn main() {
    let pool = Pool::new(2);
    let tokens = std::env::args().nth(1).map_or(1, |n| n.parse().expect("a number of tokens"));
    for (o, i, copies) in [(2048usize, 8192usize, 16usize), (768, 3072, 60)] {
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_K] {
            let weights: Vec<f32> = (0..i).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
            let mut row = Vec::new();
            assert!(block::encode(dtype, &weights, &mut row));
            let rows = row.repeat(o);
            // More than the caches hold, as the layers of a model are.
            let pack = || Panels::pack(&pool, dtype, &rows, o, i, 1.0).expect("panels");
            let dense: Vec<_> = (0..copies).map(|_| pack()).collect();
            let pack = || Sparse::pack(&pool, dtype, &rows, o, i, 1.0).expect("strips");
            let strips: Vec<_> = (0..copies).map(|_| pack()).collect();
            let mut a = Activations::default();
            for isa in Isa::available().into_iter().filter(|i| *i != Isa::SCALAR) {
                for percent in [0, 50, 80, 90, 95] {
                    let mut s = 1u32;
                    let x: Vec<f32> = (0..i * tokens)
                        .map(|_| {
                            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                            if (s >> 16) % 100 < percent { 0.0 } else { (s >> 8) as f32 / (1 << 24) as f32 }
                        })
                        .collect();
                    let mut y = vec![0f32; o * tokens];
                    let (mut times, rounds) = ([Vec::new(), Vec::new()], 9);
                    for _ in 0..rounds {
                        let at = Instant::now();
                        dense.iter().for_each(|w| panel::linear(isa, &pool, &mut y, &x, w, &mut a));
                        times[0].push(at.elapsed().as_secs_f64() * 1e6 / copies as f64);
                        let at = Instant::now();
                        strips.iter().for_each(|w| sparse::linear(isa, &pool, &mut y, &x, w, &mut a));
                        times[1].push(at.elapsed().as_secs_f64() * 1e6 / copies as f64);
                    }
                    let [dense, sparse] = times.map(|mut t| {
                        t.sort_by(f64::total_cmp);
                        t[rounds / 2]
                    });
                    println!(
                        "{isa} {dtype} {o} × {i}, {percent:2}% zeros: panels {dense:6.0} µs, strips {sparse:6.0} µs ({:.2}×)",
                        dense / sparse
                    );
                }
            }
        }
    }
}
