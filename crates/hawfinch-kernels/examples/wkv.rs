//! Times WKV over a long text, one head of 64 channels, one thread: token by token and in chunks, each in turn with the
//! others, and how far each is from f64:
//! `cargo run --release -p hawfinch-kernels --example wkv [TOKENS] [ROUNDS]`.

use std::time::{Duration, Instant};

use hawfinch_kernels::{Isa, Level, Pool, Real, norm, peak, wkv};

#[path = "../src/testing.rs"]
mod testing;
use testing::values;

/// Channels of the head.
const N: usize = 64;
/// Chunk lengths; 0 stands for token by token.
const FORMS: [usize; 6] = [0, 4, 8, 16, 32, 64];

/// Inputs of one head: r, k, v, raw decays, and what v7 has beside them.
struct Inputs<F> {
    of: [Vec<F>; 6],
}

impl<F: Real> Inputs<F> {
    fn new(tokens: usize) -> Self {
        let isa = Isa::best();
        let mut of: [Vec<f32>; 6] = std::array::from_fn(|m| values(tokens * N, m as u32 + 1));
        // Decays of v5 and v6 from exp(-e^-4) = 0.98 to exp(-e^0) = 0.37; removal keys of length 1; rates in 0..1.
        of[3].iter_mut().for_each(|d| *d = 2.0 * *d - 2.0);
        let key = of[4].clone();
        norm::l2_normalize(isa, &mut of[4], &key, N);
        of[5].iter_mut().for_each(|a| *a = 0.5 + 0.5 * *a);
        Inputs { of: of.map(|x| x.into_iter().map(F::from_f32).collect()) }
    }

    /// Output and last state of a version in a form.
    fn run(&self, isa: Isa, version: usize, chunk: usize, y: &mut [F], s: &mut [F]) {
        let [r, k, v, d, kk, a] = &self.of;
        let bonus = &a[..N];
        // SAFETY: one call at a time.
        let y = unsafe { &wkv::Rows::new(y) };
        let x = wkv::Head { r, k, v, head: 0, n: N, c: N };
        match (version, chunk) {
            (5, 0) => wkv::wkv5(isa, y, s, x, &d[..N], bonus),
            (5, chunk) => wkv::chunked::wkv5(isa, chunk, y, s, x, &d[..N], bonus),
            (6, 0) => wkv::wkv6(isa, y, s, x, d, bonus),
            (6, chunk) => wkv::chunked::wkv6(isa, chunk, y, s, x, d, bonus),
            (_, 0) => wkv::wkv7(isa, y, s, x, d, kk, a),
            (_, chunk) => wkv::chunked::wkv7(isa, chunk, y, s, x, d, kk, a),
        }
    }
}

fn main() {
    let number = |at, other| std::env::args().nth(at).map_or(other, |n| n.parse().expect("a number"));
    let (tokens, rounds): (usize, usize) = (number(1, 4096), number(2, 9));
    let (inputs, exact) = (Inputs::<f32>::new(tokens), Inputs::<f64>::new(tokens));
    let (mut y, mut s) = (vec![0f32; tokens * N], vec![0f32; N * N]);
    println!("{tokens} tokens, a head of {N} channels, one thread; ns a token and head, best of {rounds}");
    four(&inputs.of, &mut y, rounds);
    for version in [5, 6, 7] {
        let (mut y64, mut s64) = (vec![0f64; tokens * N], vec![0f64; N * N]);
        exact.run(Isa::best(), version, 0, &mut y64, &mut s64);
        let scale = (y64.iter().map(|v| v * v).sum::<f64>() / y64.len() as f64).sqrt();
        // Multiply-adds and products a number of the state: what the sums of the recurrence are made of.
        let operations = if version == 7 { 5 } else { 3 };
        for isa in Isa::available().into_iter().filter(|isa| isa.level() != Level::Scalar) {
            let fma = peak::multiply_adds(isa, &Pool::new(1), Duration::from_millis(100));
            let least = (operations * N * N) as f64 / fma * 1e9;
            let mut best = [f64::INFINITY; FORMS.len()];
            let mut worst = [0f64; FORMS.len()];
            for _ in 0..rounds {
                for (form, chunk) in FORMS.into_iter().enumerate() {
                    s.fill(0.0);
                    let began = Instant::now();
                    inputs.run(isa, version, chunk, &mut y, &mut s);
                    best[form] = best[form].min(began.elapsed().as_secs_f64() * 1e9 / tokens as f64);
                    let far = y.iter().zip(&y64).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                    worst[form] = far / scale;
                }
            }
            println!("v{version} {isa}: {:.1} G multiply-adds/s, so at least {least:.0} ns", fma / 1e9);
            for (form, chunk) in FORMS.into_iter().enumerate() {
                let name = if chunk == 0 { "sequential".into() } else { format!("chunks of {chunk:2}") };
                println!(
                    "  {name:12} {:5.0} ns, {:.2} of sequential, largest error {:.1e} of the outputs' root mean square",
                    best[form],
                    best[form] / best[0],
                    worst[form],
                );
            }
        }
    }
}

/// v4 has no matrix form: as many channels as a head has.
fn four([_, k, v, decay, ..]: &[Vec<f32>; 6], y: &mut [f32], rounds: usize) {
    let pool = Pool::new(1);
    for isa in Isa::available().into_iter().filter(|isa| isa.level() != Level::Scalar) {
        let mut best = f64::INFINITY;
        for _ in 0..rounds {
            let (mut aa, mut bb, mut pp) = ([0f32; N], [0f32; N], [-1e30f32; N]);
            let state = wkv::State4 { aa: &mut aa, bb: &mut bb, pp: &mut pp };
            let began = Instant::now();
            wkv::wkv4(isa, &pool, y, state, k, v, &decay[..N], &v[..N]);
            best = best.min(began.elapsed().as_secs_f64() * 1e9 / (y.len() / N) as f64);
        }
        println!("v4 {isa}\n  sequential   {best:5.0} ns");
    }
}
