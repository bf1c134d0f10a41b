//! Decode speed of several ways to hold a model's weights, in turns, so that a busy machine is fair to all:
//! `cargo run --release -p hawfinch-model --example in_turns -- [copied:]FILE …`. With `copied:` before the name of a
//! packed file its weights are copied into huge pages first.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hawfinch_kernels::{Isa, Pool};
use hawfinch_model::{Background, Cpu, Model, OpenOptions, Rows, Sequence, State, format};

/// Rounds; in each every model decodes some tokens.
const ROUNDS: usize = 12;
const TOKENS: u32 = 4;

struct Runner {
    name: String,
    model: Model,
    state: State,
    /// Seconds a token, of each round.
    times: Vec<f64>,
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = Arc::new(Pool::new(threads));
    let mut all: Vec<Runner> = std::env::args()
        .skip(1)
        .map(|name| {
            let began = Instant::now();
            let copied = name.strip_prefix("copied:");
            let path = copied.unwrap_or(&name);
            let background = if copied.is_some() { Background::Copy } else { Background::Check };
            let cpu = Cpu::with(pool.clone(), Isa::best()).in_background(background);
            let ckpt = format::open(Path::new(path)).unwrap_or_else(|e| panic!("{e}"));
            let model =
                Model::from_checkpoint(ckpt, OpenOptions::default(), cpu).unwrap_or_else(|e| panic!("{e}"));
            let opened = began.elapsed();
            let mut state = model.new_state();
            step(&model, &mut state, 1);
            let first = began.elapsed();
            let checked = model.ops().checked().unwrap_or_else(|e| panic!("{e}"));
            println!("{name}: opened in {opened:.1?}, first token after {first:.1?}, then {checked:.1?}");
            Runner { name, model, state, times: Vec::new() }
        })
        .collect();
    for round in 0..ROUNDS {
        for r in &mut all {
            let began = Instant::now();
            (0..TOKENS).for_each(|n| step(&r.model, &mut r.state, n + round as u32));
            r.times.push(began.elapsed().as_secs_f64() / f64::from(TOKENS));
        }
    }
    for r in &mut all {
        r.times.sort_by(f64::total_cmp);
        let [best, middle] = [r.times[0], r.times[ROUNDS / 2]].map(|t| 1e3 * t);
        println!("{:<40} {best:7.2} ms a token at best, {middle:7.2} ms in the middle", r.name);
    }
}

fn step(model: &Model, state: &mut State, token: u32) {
    let call = Sequence { tokens: &[token], state, logits: Rows::Last, hidden: Rows::None };
    model.forward(&mut [call]).unwrap_or_else(|e| panic!("{e}"));
}
