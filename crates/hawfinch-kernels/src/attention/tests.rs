use super::*;
use crate::testing::values;
use crate::testing_gradients::check_gradients;
use crate::wkv::Gradients;

fn scale<F: Real>(n: usize) -> F {
    F::from_f64((n as f64).sqrt().recip())
}

/// All heads of one sequence.
fn forward<F: Real>(isa: Isa, [q, k, v]: [&[F]; 3], c: usize, n: usize) -> Vec<F> {
    let rotary = Rotary::new(q.len() / c, n);
    let mut y = vec![F::from_f64(f64::NAN); q.len()];
    // SAFETY: one call at a time.
    let rows = unsafe { Rows::new(&mut y) };
    for head in 0..c / n {
        attention(isa, &rows, Head { r: q, k, v, head, n, c }, &rotary, scale(n));
    }
    y
}

fn backward<F: Real>(isa: Isa, [q, k, v]: [&[F]; 3], d_y: &[F], c: usize, n: usize) -> [Vec<F>; 3] {
    let rotary = Rotary::new(q.len() / c, n);
    let mut d = [0, 1, 2].map(|_| vec![F::from_f64(f64::NAN); q.len()]);
    // SAFETY: one call at a time.
    let [r, key, value] = d.each_mut().map(|d| unsafe { Rows::new(d) });
    for head in 0..c / n {
        let x = Head { r: q, k, v, head, n, c };
        attention_backward(isa, Gradients { r: &r, k: &key, v: &value }, x, &rotary, scale(n), d_y);
    }
    d
}

fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// Each row by the definition, in f64, a query at a time.
fn naive(q: &[f64], k: &[f64], v: &[f64], c: usize, n: usize) -> Vec<f64> {
    let turned = |x: &[f64], at: usize, head: usize| -> Vec<f64> {
        let row = &x[at * c + head * n..][..n];
        let half = n / 2;
        let mut out = row.to_vec();
        for i in 0..half {
            let (sin, cos) = (at as f64 * 10_000f64.powf(-2.0 * i as f64 / n as f64)).sin_cos();
            out[i] = row[i] * cos - row[i + half] * sin;
            out[i + half] = row[i] * sin + row[i + half] * cos;
        }
        out
    };
    let mut y = vec![0.0; q.len()];
    for i in 0..q.len() / c {
        for head in 0..c / n {
            let query = turned(q, i, head);
            let score = |j: usize| {
                query.iter().zip(turned(k, j, head)).map(|(a, b)| a * b).sum::<f64>() / (n as f64).sqrt()
            };
            let weights: Vec<f64> = (0..=i).map(|j| score(j).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (j, weight) in weights.iter().enumerate() {
                for l in 0..n {
                    y[i * c + head * n + l] += weight / sum * v[j * c + head * n + l];
                }
            }
        }
    }
    y
}

/// Lengths around a block, heads that fill registers and that do not.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 4, 4), (5, 6, 3), (31, 8, 8), (33, 10, 5), (70, 64, 32), (129, 2, 1)];

#[test]
fn it_is_its_definition() {
    for (t, c, n) in SHAPES {
        let [q, k, v] = [1, 2, 3].map(|seed| values(t * c, seed));
        let q: Vec<f32> = q.iter().map(|q| q * 3.0).collect();
        let [wide_q, wide_k, wide_v] = [&q, &k, &v].map(|x| wide(x.clone()));
        let want = naive(&wide_q, &wide_k, &wide_v, c, n);
        let got = forward(Isa::best(), [&wide_q, &wide_k, &wide_v], c, n);
        let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-12, "{t} tokens, {n} of {c}: {apart}");
        let got = forward(Isa::best(), [&q, &k, &v], c, n);
        let apart = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(apart < 3e-6, "{t} tokens in f32, {n} of {c}: {apart}");
    }
}

#[test]
fn gradients_are_slopes() {
    for (t, c, n) in [(1, 4, 4), (7, 6, 3), (34, 4, 4)] {
        let xs = [1, 2, 3].map(|seed| wide(values(t * c, seed)));
        let isa = Isa::best();
        let name = format!("attention of {t}");
        check_gradients(
            &name,
            &xs,
            |xs| forward(isa, [&xs[0], &xs[1], &xs[2]], c, n),
            |xs, d_y| backward(isa, [&xs[0], &xs[1], &xs[2]], d_y, c, n).into(),
        );
    }
}

/// A later token changes no bit of what comes before it, nor of the gradients if only earlier rows have any.
#[test]
fn later_tokens_change_nothing_earlier() {
    let (t, c, n) = (75, 16, 8);
    let [q, k, v, d_y] = [1, 2, 3, 4].map(|seed| values(t * c, seed));
    for at in [0, 31, 32, 50, 74] {
        let from = at * c;
        let mut others = [&q, &k, &v].map(Clone::clone);
        for (which, x) in others.iter_mut().enumerate() {
            x[from..].copy_from_slice(&values(t * c - from, 20 + which as u32));
        }
        let [q2, k2, v2] = &others;
        for isa in Isa::available() {
            let (a, b) = (forward(isa, [&q, &k, &v], c, n), forward(isa, [q2, k2, v2], c, n));
            assert!(a[..from] == b[..from], "{isa} at {at}");
            assert!(a[from..] != b[from..], "{isa} at {at}: the token itself");
            let mut early = d_y.clone();
            early[from..].fill(0.0);
            let a = backward(isa, [&q, &k, &v], &early, c, n);
            let b = backward(isa, [q2, k2, v2], &early, c, n);
            for (a, b) in a.iter().zip(&b) {
                assert!(a[..from] == b[..from] && a[from..].iter().all(|d| *d == 0.0), "{isa} at {at}");
            }
        }
    }
}

/// Scores far beyond what e to their power could hold.
#[test]
fn large_scores_are_no_trouble() {
    let (t, c) = (40, 8);
    let q: Vec<f32> = values(t * c, 1).iter().map(|q| q * 1e4).collect();
    let [k, v] = [2, 3].map(|seed| values(t * c, seed));
    let y = forward(Isa::best(), [&q, &k, &v], c, c);
    let most = v.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(y.iter().all(|y| y.abs() <= most * 1.0001));
    assert!(backward(Isa::best(), [&q, &k, &v], &v, c, c).iter().flatten().all(|d| d.is_finite()));
}

#[test]
fn the_same_bits_everywhere() {
    for (t, c, n) in SHAPES {
        let [q, k, v, d_y] = [1, 2, 3, 4].map(|seed| values(t * c, seed));
        let run = |isa| {
            let [d_q, d_k, d_v] = backward(isa, [&q, &k, &v], &d_y, c, n);
            let all = [forward(isa, [&q, &k, &v], c, n), d_q, d_k, d_v].concat();
            all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let want = run(Isa::SCALAR);
        for isa in Isa::available() {
            assert!(run(isa) == want, "{isa}: {t} tokens, {n} of {c}");
        }
    }
}
