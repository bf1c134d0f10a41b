use super::super::*;
use super::*;
use crate::testing::values;
use crate::testing_gradients::check_gradients;

/// `len` numbers within ±1, none near 0 (where relu² bends).
fn numbers(len: usize, seed: u32) -> Vec<f64> {
    values(len, seed).iter().map(|&v| f64::from(v) + if v < 0.0 { -0.05 } else { 0.05 }).collect()
}

#[test]
fn gradients_are_slopes() {
    let (isa, pool, t, c) = (Isa::best(), Pool::new(2), 3, 6);
    let (a, b, row) = (numbers(t * c, 1), numbers(t * c, 2), numbers(c, 3));
    for f in [Unary::Exp, Unary::Tanh, Unary::Sigmoid, Unary::Silu, Unary::ReluSquared] {
        let forward = |x: &[f64]| {
            let mut y = vec![0.0; x.len()];
            unary(isa, f, &mut y, x);
            y
        };
        check_gradients(
            &format!("{f:?}"),
            std::slice::from_ref(&a),
            |xs| forward(&xs[0]),
            |xs, d_y| {
                let mut d = vec![f64::NAN; t * c];
                unary_backward(isa, f, &mut d, &xs[0], &forward(&xs[0]), d_y);
                vec![d]
            },
        );
    }
    for f in [Binary::Add, Binary::Mul, Binary::SigmoidMul, Binary::SiluMul] {
        for b in [&b, &row] {
            let forward = |xs: &[Vec<f64>]| {
                let mut y = vec![0.0; t * c];
                binary(isa, f, &mut y, &xs[0], &xs[1]);
                y
            };
            check_gradients(&format!("{f:?}"), &[a.clone(), b.clone()], forward, |xs, d_y| {
                let (mut d_a, mut d_b) = (vec![f64::NAN; t * c], vec![f64::NAN; b.len()]);
                match b.len() == c {
                    true => binary_row_backward(isa, &pool, f, &mut d_a, &mut d_b, &xs[0], &xs[1], d_y),
                    false => binary_backward(isa, f, &mut d_a, &mut d_b, &xs[0], &xs[1], d_y),
                }
                vec![d_a, d_b]
            });
        }
    }
    for weight in [numbers(t * c, 4), row.clone()] {
        let forward = |xs: &[Vec<f64>]| {
            let mut y = vec![0.0; t * c];
            lerp(isa, &mut y, &xs[0], &xs[1], &xs[2]);
            y
        };
        check_gradients("lerp", &[a.clone(), b.clone(), weight.clone()], forward, |xs, d_y| {
            let mut d = [vec![f64::NAN; t * c], vec![f64::NAN; t * c], vec![f64::NAN; weight.len()]];
            let [from, to, of] = &mut d;
            match weight.len() == c {
                true => lerp_row_backward(isa, &pool, from, to, of, &xs[0], &xs[1], &xs[2], d_y),
                false => lerp_backward(isa, from, to, of, &xs[0], &xs[1], &xs[2], d_y),
            }
            d.into()
        });
    }
    let forward = |xs: &[Vec<f64>]| {
        let mut y = vec![0.0; t * c];
        scale_key(isa, &mut y, &xs[0], &xs[1], &xs[2]);
        y
    };
    check_gradients("scale_key", &[a.clone(), b.clone(), row.clone()], forward, |xs, d_y| {
        let mut d = [vec![f64::NAN; t * c], vec![f64::NAN; t * c], vec![f64::NAN; c]];
        let [k, a, k_a] = &mut d;
        scale_key_backward(isa, &pool, k, a, k_a, &xs[0], &xs[1], &xs[2], d_y);
        d.into()
    });
    let rkv = [numbers(t * c, 5), numbers(t * c, 6), numbers(t * c, 7)];
    let forward = |xs: &[Vec<f64>]| {
        let mut y = vec![0.0; t * c];
        bonus(isa, &mut y, &a, &xs[0], &xs[1], &xs[2], &xs[3], 3);
        y
    };
    let [r, k, v] = rkv;
    check_gradients("bonus", &[r, k, v, row.clone()], forward, |xs, d_y| {
        let mut d = [vec![f64::NAN; t * c], vec![f64::NAN; t * c], vec![f64::NAN; t * c], vec![f64::NAN; c]];
        let [r, k, v, r_k] = &mut d;
        let rkv = [&xs[0][..], &xs[1], &xs[2]];
        bonus_backward(isa, &pool, [r, k, v], r_k, rkv, &xs[3], d_y, 3);
        d.into()
    });
    check_gradients(
        "a row for all",
        &[row],
        |xs| (0..t).flat_map(|_| xs[0].clone()).collect(),
        |_, d_y| {
            let mut d = vec![f64::NAN; c];
            sum_rows(isa, &pool, &mut d, d_y);
            vec![d]
        },
    );
}

/// Sequences of several lengths, several mixes, both directions.
fn mixes_case(toward: Toward, c: usize, broken: bool) {
    let (lengths, isa, pool) = ([1usize, 3, 2], Isa::best(), Pool::new(2));
    let t: usize = lengths.iter().sum();
    let forward = |xs: &[Vec<f64>]| -> Vec<f64> {
        let (rows, before, weights) = (&xs[0], &xs[1], &xs[2..]);
        let mut shifted = vec![0.0; t * c];
        let mut at = 0;
        for (s, len) in lengths.iter().enumerate() {
            let of = at * c..(at + len) * c;
            token_shift(&mut shifted[of.clone()], &rows[of], &mut before[s * c..(s + 1) * c].to_vec());
            at += len;
        }
        let (from, to) = if toward == Toward::Row { (&shifted, rows) } else { (rows, &shifted) };
        let mix = |w: &Vec<f64>| {
            let mut y = vec![0.0; t * c];
            lerp(isa, &mut y, from, to, w);
            y
        };
        weights.iter().flat_map(mix).collect()
    };
    let xs = [numbers(t * c, 1), numbers(3 * c, 2), numbers(c, 3), numbers(c, 4)];
    check_gradients("mixes", &xs, forward, |xs, d_y| {
        let (mut d_rows, mut d_before) = (vec![f64::NAN; t * c], vec![f64::NAN; 3 * c]);
        let mut d_weights = vec![f64::NAN; 2 * c];
        // Broken: the borders between sequences are not known.
        let lengths = if broken { &[t][..] } else { &lengths[..] };
        let before: Vec<&[f64]> = xs[1].chunks(c).take(lengths.len()).collect();
        let of = MixesBackward {
            d_rows: &mut d_rows,
            d_before: &mut d_before[..lengths.len() * c],
            d_weights: &mut d_weights,
            rows: &xs[0],
            before: &before,
            lengths,
            weights: &[&xs[2], &xs[3]],
            toward,
            d_ys: &d_y.chunks(t * c).collect::<Vec<_>>(),
        };
        of.run(isa, &pool);
        vec![d_rows, d_before, d_weights[..c].to_vec(), d_weights[c..].to_vec()]
    });
}

#[test]
fn mixes_stop_at_the_borders_of_sequences() {
    for c in [4, 70] {
        mixes_case(Toward::Row, c, false);
        mixes_case(Toward::Before, c, false);
    }
}

#[test]
#[should_panic(expected = "mixes: operand")]
fn a_border_left_out_is_found() {
    mixes_case(Toward::Before, 4, true);
}

/// Bits do not depend on the instruction set or on the threads.
#[test]
fn the_same_bits_everywhere() {
    let (t, c) = (301, 193);
    let [a, b, d_y] = [1, 2, 3].map(|seed| values(t * c, seed));
    let row = values(c, 4);
    let run = |isa: Isa, threads: usize| {
        let pool = Pool::new(threads);
        let mut all: Vec<Vec<f32>> = Vec::new();
        let (mut x, mut y, mut z, mut r) =
            (vec![0f32; t * c], vec![0f32; t * c], vec![0f32; t * c], vec![0f32; c]);
        for f in [Unary::Exp, Unary::Tanh, Unary::Sigmoid, Unary::Silu, Unary::ReluSquared] {
            unary(isa, f, &mut y, &a);
            unary_backward(isa, f, &mut x, &a, &y, &d_y);
            all.push(x.clone());
        }
        for f in [Binary::Add, Binary::Mul, Binary::SigmoidMul, Binary::SiluMul] {
            binary_backward(isa, f, &mut x, &mut y, &a, &b, &d_y);
            binary_row_backward(isa, &pool, f, &mut z, &mut r, &a, &row, &d_y);
            all.extend([x.clone(), y.clone(), z.clone(), r.clone()]);
        }
        lerp_backward(isa, &mut x, &mut y, &mut z, &a, &b, &d_y, &a);
        all.extend([x.clone(), y.clone(), z.clone()]);
        lerp_row_backward(isa, &pool, &mut x, &mut y, &mut r, &a, &b, &row, &d_y);
        all.extend([x.clone(), y.clone(), r.clone()]);
        scale_key_backward(isa, &pool, &mut x, &mut y, &mut r, &a, &b, &row, &d_y);
        all.extend([x.clone(), y.clone(), r.clone()]);
        bonus_backward(isa, &pool, [&mut x, &mut y, &mut z], &mut r, [&a, &b, &d_y], &row, &a, c);
        all.extend([x.clone(), y.clone(), z, r.clone()]);
        sum_rows(isa, &pool, &mut r, &d_y);
        all.push(r);
        let (mut before, mut weights) = (vec![0f32; 2 * c], vec![0f32; 2 * c]);
        let of = MixesBackward {
            d_rows: &mut x,
            d_before: &mut before,
            d_weights: &mut weights,
            rows: &a,
            before: &[&row, &b[..c]],
            lengths: &[100, 201],
            weights: &[&row, &b[c..2 * c]],
            toward: Toward::Row,
            d_ys: &[&b, &d_y],
        };
        of.run(isa, &pool);
        all.extend([x, before, weights]);
        all.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let want = run(Isa::SCALAR, 1);
    for isa in Isa::available() {
        for threads in [1, 3] {
            assert!(run(isa, threads) == want, "{isa}, {threads} threads");
        }
    }
}
