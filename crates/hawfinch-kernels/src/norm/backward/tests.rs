use super::super::*;
use super::*;
use crate::testing::values;
use crate::testing_gradients::check_gradients;

fn numbers(len: usize, seed: u32) -> Vec<f64> {
    values(len, seed).iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn gradients_are_slopes() {
    let (isa, pool, t) = (Isa::best(), Pool::new(2), 3);
    for (c, n) in [(6, 3), (70, 70), (36, 18), (5, 1)] {
        let eps = 1e-2;
        let forward = |xs: &[Vec<f64>]| {
            let mut y = vec![0.0; t * c];
            group_norm(isa, &mut y, &xs[0], &xs[1], &xs[2], n, eps);
            y
        };
        let xs = [numbers(t * c, 1), numbers(c, 2), numbers(c, 3)];
        check_gradients(&format!("norm of {n}"), &xs, forward, |xs, d_y| {
            let mut d = [vec![f64::NAN; t * c], vec![f64::NAN; c], vec![f64::NAN; c]];
            let [x, weight, bias] = &mut d;
            group_norm_backward(isa, &pool, x, weight, bias, &xs[0], &xs[1], d_y, n, eps);
            d.into()
        });
        let forward = |xs: &[Vec<f64>]| {
            let mut y = vec![0.0; t * c];
            l2_normalize(isa, &mut y, &xs[0], n);
            y
        };
        check_gradients(&format!("length of {n}"), &xs[..1], forward, |xs, d_y| {
            let mut d = vec![f64::NAN; t * c];
            l2_normalize_backward(isa, &mut d, &xs[0], d_y, n);
            vec![d]
        });
    }
}

#[test]
fn a_zero_vector_has_a_finite_gradient() {
    let mut d = [0f32; 2];
    l2_normalize_backward(Isa::SCALAR, &mut d, &[0.0, 0.0], &[1e-12, 0.0], 2);
    assert_eq!(d, [1.0, 0.0]);
}

/// Bits do not depend on the instruction set or on the threads.
#[test]
fn the_same_bits_everywhere() {
    for (c, n) in [(192, 64), (193, 193), (60, 20)] {
        let t = 150;
        let (x, d_y, weight) = (values(t * c, 1), values(t * c, 2), values(c, 3));
        let run = |isa: Isa, threads: usize| {
            let mut d = [vec![0f32; t * c], vec![0f32; c], vec![0f32; c], vec![0f32; t * c]];
            let [d_x, d_weight, d_bias, unit] = &mut d;
            let pool = Pool::new(threads);
            group_norm_backward(isa, &pool, d_x, d_weight, d_bias, &x, &weight, &d_y, n, 1e-5);
            l2_normalize_backward(isa, unit, &x, &d_y, n);
            d.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let want = run(Isa::SCALAR, 1);
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert!(run(isa, threads) == want, "{isa}, {threads} threads, {n} of {c}");
            }
        }
    }
}
