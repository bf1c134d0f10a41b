//! Times a step of training (forward, backward, no optimiser) of a model of random weights beside what the machine can
//! multiply at most.
//!
//! `cargo run --release -p hawfinch-train --example step -- [VERSION] [LAYERS] [WIDTH] [VOCAB] [CTX] [BATCH] [ROUNDS]
//! [full|bf16] [recompute]`

use std::time::{Duration, Instant};

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{DType, peak};
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{Version, synthetic};
use hawfinch_train::{Learner, Lesson};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default: usize| args.get(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let version = args.first().and_then(|a| Version::from_number(a)).unwrap_or(Version::V7);
    let (layers, width, vocab) = (number(1, 12), number(2, 768), number(3, 65536));
    let (ctx, batch, rounds) = (number(4, 512), number(5, 1), number(6, 3));
    let precision = if args.iter().any(|a| a == "full") { Precision::Full } else { Precision::Bf16 };
    let config = synthetic::Shape { version, layers, width, vocab, head_size: 64 }.config();
    let checkpoint = synthetic::checkpoint(&config, DType::F32, 1);
    let cpu = Cpu::<f32>::default();
    let (isa, pool) = (cpu.isa(), cpu.pool().clone());
    let mut learner = Learner::new(&checkpoint, cpu, precision).expect("a model");
    learner.set_recomputing(args.iter().any(|a| a == "recompute"));
    let t = ctx * batch;
    let tokens: Vec<u32> = (0..=t).map(|n| (n * 7919 % vocab) as u32).collect();
    let weights = vec![1.0 / t as f32; t];
    let targets = Targets { ids: &tokens[1..], weights: &weights, l2wrap: 0.0 };
    let lengths = vec![ctx; batch];
    // Six multiply-adds... three products a weight (forward, to the inputs, to the weights) of two operations each.
    let flops = 6.0 * learner.model().multiply_adds(true) as f64;
    let (mut best, mut share) = (f64::INFINITY, 0.0f64);
    for _ in 0..rounds {
        let lesson = Lesson { lengths: &lengths, tokens: &tokens[..t], targets, initial: None, d_last: None };
        let at = Instant::now();
        let learned = learner.learn(&lesson).expect("a step");
        let time = at.elapsed().as_secs_f64();
        let peak = 2.0 * peak::multiply_adds(isa, &pool, Duration::from_millis(200));
        let rate = flops * t as f64 / time;
        share = share.max(rate / peak);
        best = best.min(time);
        println!(
            "{:.3} s: {:.0} tokens/s, {:.1} GFLOP/s of {:.1} ({:.0}% of the f32 peak), loss {:.3}",
            time,
            t as f64 / time,
            rate / 1e9,
            peak / 1e9,
            100.0 * rate / peak,
            learned.losses.sum
        );
    }
    println!(
        "best: {:.0} tokens/s; at most {:.0}% of the f32 peak of the same moment",
        t as f64 / best,
        100.0 * share
    );
}
