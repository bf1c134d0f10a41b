//! Times what training does with WKV beside plain running, each in turn with the others: forward, forward that keeps
//! states, backward, of 768 channels in heads of 64:
//! `cargo run --release -p hawfinch-kernels --example wkv_training [TOKENS] [ROUNDS] [THREADS] [ISA]`.

use std::time::{Duration, Instant};

use hawfinch_kernels::{Isa, Pool, norm, peak, wkv};

#[path = "../src/testing.rs"]
mod testing;
use testing::values;

const C: usize = 768;
const N: usize = 64;
const HEADS: usize = C / N;

/// The three that are timed.
const WAYS: [&str; 3] = ["forward", "forward, saving", "backward"];

/// One layer's operands and results, `[t, c]` but for what heads keep.
struct Layer {
    version: usize,
    isa: Isa,
    pool: Pool,
    of: [Vec<f32>; 6],
    d_y: Vec<f32>,
    y: Vec<f32>,
    gradients: [Vec<f32>; 6],
    /// Of decays and bonuses, by heads.
    vectors: [Vec<f32>; 2],
    /// State and its gradient, and what is kept, by heads.
    heads: Vec<std::sync::Mutex<[Vec<f32>; 3]>>,
}

impl Layer {
    fn new(version: usize, isa: Isa, threads: usize, tokens: usize) -> Self {
        let mut of: [Vec<f32>; 6] = std::array::from_fn(|m| values(tokens * C, m as u32 + 1));
        // Decays of v5 and v6 from exp(-e^-4) = 0.98 to exp(-e^0) = 0.37; removal keys of length 1; rates in 0..1.
        of[3].iter_mut().for_each(|d| *d = 2.0 * *d - 2.0);
        let key = of[4].clone();
        norm::l2_normalize(isa, &mut of[4], &key, N);
        of[5].iter_mut().for_each(|a| *a = 0.5 + 0.5 * *a);
        let kept = if version == 7 { wkv::saved_len7(tokens, N) } else { wkv::saved_len(tokens, N) };
        let head = || [vec![0f32; N * N], vec![0f32; N * N], vec![0f32; kept]];
        Layer {
            version,
            isa,
            pool: Pool::new(threads),
            d_y: values(tokens * C, 9),
            y: vec![0f32; tokens * C],
            gradients: std::array::from_fn(|_| vec![0f32; tokens * C]),
            vectors: [vec![0f32; C], vec![0f32; C]],
            heads: (0..HEADS).map(|_| head().into()).collect(),
            of,
        }
    }

    fn run(&mut self, way: usize) {
        let Layer { version, isa, pool, of: [r, k, v, d, kk, a], d_y, y, gradients, vectors, heads } = self;
        let (version, isa, bonus) = (*version, *isa, &kk[..C]);
        if version == 4 {
            let [mut aa, mut bb, mut pp] = [0f32, 0.0, -1e30].map(|s| vec![s; C]);
            if way < 2 {
                let state = wkv::State4 { aa: &mut aa, bb: &mut bb, pp: &mut pp };
                return wkv::wkv4(isa, pool, y, state, k, v, &d[..C], bonus);
            }
            let [d_k, d_v, ..] = gradients;
            let [time_decay, time_first] = vectors;
            let [mut a, mut b, mut exponent] = [(); 3].map(|()| vec![0f32; C]);
            let to = wkv::Gradients4 { k: d_k, v: d_v, time_decay, time_first };
            let state = wkv::StateGradient4 { a: &mut a, b: &mut b, exponent: &mut exponent };
            let s = [&aa[..], &bb, &pp];
            return wkv::wkv4_backward(isa, pool, to, state, s, d_y, k, v, &d[..C], bonus);
        }
        // SAFETY: each head is one chunk of the pool's work.
        let (y, to) = unsafe { (wkv::Rows::new(y), gradients.each_mut().map(|d| wkv::Rows::new(d))) };
        let parts: Vec<_> = {
            let [a, b] = vectors;
            a.chunks_exact_mut(N).zip(b.chunks_exact_mut(N)).map(std::sync::Mutex::new).collect()
        };
        pool.run(HEADS, &|head| {
            let mut own = heads[head].lock().expect("a head");
            let [s, d_s, saved] = &mut *own;
            s.fill(0.0);
            d_s.fill(0.0);
            let (d_decay, d_bonus) = &mut *parts[head].lock().expect("a head");
            let x = wkv::Head { r, k, v, head, n: N, c: C };
            let rkv = wkv::Gradients { r: &to[0], k: &to[1], v: &to[2] };
            match (version, way) {
                (5, 0) => wkv::wkv5(isa, &y, s, x, &d[..C], bonus),
                (5, 1) => wkv::wkv5_saving(isa, &y, s, saved, x, &d[..C], bonus),
                (5, _) => wkv::wkv5_backward(isa, rkv, d_decay, d_bonus, d_s, saved, d_y, x, &d[..C], bonus),
                (6, 0) => wkv::wkv6(isa, &y, s, x, d, bonus),
                (6, 1) => wkv::wkv6_saving(isa, &y, s, saved, x, d, bonus),
                (6, _) => wkv::wkv6_backward(isa, rkv, &to[3], d_bonus, d_s, saved, d_y, x, d, bonus),
                (_, 0) => wkv::wkv7(isa, &y, s, x, d, kk, a),
                (_, 1) => wkv::wkv7_saving(isa, &y, s, saved, x, d, kk, a),
                _ => wkv::wkv7_backward(isa, rkv, &to[3], &to[4], &to[5], d_s, saved, d_y, x, d, kk, a),
            }
        });
    }
}

fn main() {
    let argument = |at| std::env::args().nth(at);
    let number = |at, other| argument(at).map_or(other, |n| n.parse().expect("a number"));
    let (tokens, rounds, threads): (usize, usize, usize) = (number(1, 512), number(2, 15), number(3, 2));
    let isa = argument(4).map_or(Isa::best(), |name| Isa::from_name(&name).expect("an instruction set"));
    let fma = peak::multiply_adds(isa, &Pool::new(threads), Duration::from_millis(200));
    println!(
        "{tokens} tokens of {C} channels, {threads} threads, {isa}, {:.1} G multiply-adds/s; best and median of {rounds}",
        fma / 1e9
    );
    for version in [4, 5, 6, 7] {
        let mut layer = Layer::new(version, isa, threads, tokens);
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            for (way, times) in times.iter_mut().enumerate() {
                let began = Instant::now();
                layer.run(way);
                times.push(began.elapsed().as_secs_f64());
            }
        }
        times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        for (way, name) in WAYS.into_iter().enumerate() {
            let (best, median) = (times[way][0], times[way][rounds / 2]);
            // Multiply-adds and products for a number of the state; v4 is exponentials.
            let operations = match (version, way) {
                (4, _) => 0,
                (7, 2) => 12,
                (7, _) => 5,
                (_, 2) => 8,
                _ => 3,
            };
            let least = (operations * N * C * tokens) as f64 / fma;
            println!(
                "v{version} {name:15} {:7.2} ms, median {:7.2}; {:.2} of forward; {:.2} of the peak",
                best * 1e3,
                median * 1e3,
                best / times[0][0],
                least / best
            );
        }
    }
}
