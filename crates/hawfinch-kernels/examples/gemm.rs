//! Times the products of training on every instruction set, beside the multiply-adds that the machine does in registers,
//! measured in turn with them: `cargo run --release -p hawfinch-kernels --example gemm [THREADS [SET [SHAPE]]]`. SET is
//! an instruction set's name, SHAPE a part of a shape's line.

use std::time::{Duration, Instant};

use hawfinch_kernels::gemm::{Into, Precision, View, gemm};
use hawfinch_kernels::{Isa, Pool, peak};

/// Which operands are read as their transpose: `nt` is `x Wᵀ`, `nn` `dy W`, `tn` `dyᵀ x`.
const FORMS: [(&str, bool, bool); 3] = [("nt", false, true), ("nn", false, false), ("tn", true, false)];

/// `[m, k, n]`, and which forms: tokens are the first of them in `nt` and `nn`, the second in `tn`.
const SHAPES: [([usize; 3], &[usize]); 12] = [
    ([512, 768, 3072], &[0, 1]),
    ([768, 512, 3072], &[2]),
    ([512, 768, 768], &[0, 1]),
    ([768, 512, 768], &[2]),
    ([8192, 512, 2048], &[0, 1, 2]),
    ([2048, 2048, 2048], &[0, 1, 2]),
    ([512, 768, 65536], &[0]),
    ([512, 65536, 768], &[1]),
    ([65536, 512, 768], &[2]),
    ([4096, 768, 64], &[0, 1]),
    ([4096, 64, 768], &[0, 1]),
    ([768, 4096, 64], &[2]),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().map_or(2, |n| n.parse().expect("a number of threads"));
    let wanted = |n: usize, name: &str| args.get(n).is_none_or(|arg| name.contains(arg.as_str()));
    let pool = Pool::new(threads);
    for isa in Isa::available() {
        if isa == Isa::SCALAR || args.get(1).is_some_and(|set| set != isa.name()) {
            continue;
        }
        for ([m, k, n], forms) in SHAPES {
            for &form in forms {
                let (form, turned_a, turned_b) = FORMS[form];
                for precision in [Precision::Full, Precision::Bf16] {
                    let line = format!("{isa} {precision:?} {m} x {k} x {n} {form}");
                    if wanted(2, &line) {
                        time(isa, &pool, precision, [m, k, n], turned_a, turned_b, &line);
                    }
                }
            }
        }
    }
}

fn time(
    isa: Isa,
    pool: &Pool,
    precision: Precision,
    [m, k, n]: [usize; 3],
    turned_a: bool,
    turned_b: bool,
    line: &str,
) {
    let numbers = |n: usize| (0..n).map(|n| ((n * 7919) % 1000) as f32 / 1000.0 - 0.5).collect::<Vec<_>>();
    let (a, b, mut c) = (numbers(m * k), numbers(k * n), vec![0f32; m * n]);
    let a = if turned_a { View::new(&a, k, m).transposed() } else { View::new(&a, m, k) };
    let b = if turned_b { View::new(&b, n, k).transposed() } else { View::new(&b, k, n) };
    // What the registers do, for as long as a product takes, between one product and the next: whatever else disturbs
    // the machine then disturbs both.
    let once = || match precision {
        Precision::Full => peak::multiply_adds_once(isa, pool),
        Precision::Bf16 => peak::pairs_once(isa, pool).unwrap_or_else(|| peak::multiply_adds_once(isa, pool)),
    };
    let (mut speeds, mut peaks, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    while speeds.len() < 5 || began.elapsed() < Duration::from_millis(600) {
        let at = Instant::now();
        gemm(isa, pool, precision, &mut c, Into::Overwrite, a, b);
        let time = at.elapsed();
        let (at, mut done) = (Instant::now(), 0.0);
        while at.elapsed() < time {
            done += once();
        }
        let (speed, peak) = ((m * k * n) as f64 / time.as_secs_f64(), done / at.elapsed().as_secs_f64());
        speeds.push(speed);
        peaks.push(peak);
        shares.push(speed / peak);
    }
    for numbers in [&mut speeds, &mut peaks, &mut shares] {
        numbers.sort_by(f64::total_cmp);
    }
    let most = |numbers: &[f64]| numbers[numbers.len() - 1];
    println!(
        "{line}: {:.1} GFLOP/s, {:.1}% of {:.1} in registers (median of pairs {:.1}%)",
        2e-9 * most(&speeds),
        100.0 * most(&speeds) / most(&peaks),
        2e-9 * most(&peaks),
        100.0 * shares[shares.len() / 2],
    );
}
