//! The product of low rank that is nearest to a matrix: what PiSSA takes out of the base and trains.
//!
//! The space of the largest singular vectors is found by subspace iteration from random vectors (Halko, Martinsson and Tropp
//! 2011, algorithm 4.4); in it the singular values are those of a small symmetric matrix, by Jacobi's rotations.

use hawfinch_kernels::gemm::{Into, Precision, View, gemm};
use hawfinch_kernels::orthogonal::orthonormalize;
use hawfinch_kernels::{Isa, Pool};
use hawfinch_model::Rng;

/// Vectors beyond the rank: what is not asked for may mix with these instead of with what is.
const MORE: usize = 8;
/// Passes over the matrix there and back (RWKV-PEFT's `svd_niter`).
const PASSES: usize = 4;
/// Sweeps of rotations, more than it takes.
const SWEEPS: usize = 30;

/// Of `w` `[out, in]` the halves `B = U √S` `[out, r]` and `A = √S Vᵀ` `[r, in]` of its `r` largest singular values; where it has
/// fewer, zeros.
pub(super) fn principal(
    (isa, pool): (Isa, &Pool),
    w: &[f32],
    [out, input]: [usize; 2],
    r: usize,
    rng: &mut Rng,
) -> (Vec<f32>, Vec<f32>) {
    let k = (r + MORE).min(out).min(input);
    let w = View::new(w, out, input);
    let times = |rows: &[f32], m: usize, b: View<'_, f32>, n: usize| {
        let mut y = vec![0f32; k * n];
        gemm(isa, pool, Precision::Full, &mut y, Into::Overwrite, View::new(rows, k, m), b);
        y
    };
    // Vectors lie in rows.
    let mut right: Vec<f32> = normals(rng, k * input).map(|v| v as f32).collect();
    let mut left = Vec::new();
    for _ in 0..=PASSES {
        left = orthonormal((isa, pool), times(&right, input, w.transposed(), out), out, rng);
        right = times(&left, out, w, input);
    }
    // The lengths of what is left of `w` in the directions `left` are not its singular values before these are turned.
    let mut gram = vec![0f64; k * k];
    let wide: Vec<f64> = right.iter().map(|&v| f64::from(v)).collect();
    let (a, b) = (View::new(&wide, k, input), View::new(&wide, k, input).transposed());
    gemm(isa, pool, Precision::Full, &mut gram, Into::Overwrite, a, b);
    let turn = eigenvectors(&mut gram, k);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| gram[j * k + j].total_cmp(&gram[i * k + i]));
    let (mut b, mut a) = (vec![0f32; out * r], vec![0f32; r * input]);
    let largest = gram[order[0] * k + order[0]];
    for (n, &i) in order.iter().take(r).enumerate() {
        let square = gram[i * k + i];
        // Below what rounding leaves there is no direction.
        if !(square > largest * 1e-12 && square > 0.0) {
            break;
        }
        let root = square.powf(0.25);
        let sum = |rows: &[f32], m: usize, c: usize| -> f64 {
            (0..k).map(|j| turn[i * k + j] * f64::from(rows[j * m + c])).sum()
        };
        (0..out).for_each(|c| b[c * r + n] = (sum(&left, out, c) * root) as f32);
        (0..input).for_each(|c| a[n * input + c] = (sum(&right, input, c) / root) as f32);
    }
    (b, a)
}

/// So many Gaussian numbers.
fn normals(rng: &mut Rng, n: usize) -> impl Iterator<Item = f64> {
    (0..n.div_ceil(2)).flat_map(|_| rng.normals()).take(n)
}

/// Rows of `m` numbers made orthonormal; those that depend on others are given a random part.
fn orthonormal((isa, pool): (Isa, &Pool), rows: Vec<f32>, m: usize, rng: &mut Rng) -> Vec<f32> {
    let mut wide: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
    let most = rows.iter().fold(f32::MIN_POSITIVE, |most, v| most.max(v.abs()));
    while !orthonormalize(isa, pool, &mut wide, m) {
        let noise = 1e-6 * f64::from(most);
        wide = rows.iter().zip(normals(rng, rows.len())).map(|(&v, n)| f64::from(v) + noise * n).collect();
    }
    wide.into_iter().map(|v| v as f32).collect()
}

/// Eigenvectors, in rows, of a symmetric matrix `[k, k]`, which becomes diagonal.
fn eigenvectors(of: &mut [f64], k: usize) -> Vec<f64> {
    let mut vectors = vec![0.0; k * k];
    (0..k).for_each(|i| vectors[i * k + i] = 1.0);
    for _ in 0..SWEEPS {
        let mut turned = false;
        for p in 0..k {
            for q in p + 1..k {
                let (app, aqq, apq) = (of[p * k + p], of[q * k + q], of[p * k + q]);
                if apq.abs() <= 1e-15 * (app.abs() * aqq.abs()).sqrt() {
                    continue;
                }
                turned = true;
                let theta = (aqq - app) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for i in 0..k {
                    let (x, y) = (of[i * k + p], of[i * k + q]);
                    (of[i * k + p], of[i * k + q]) = (c * x - s * y, s * x + c * y);
                }
                for rows in [&mut *of, &mut vectors] {
                    for i in 0..k {
                        let (x, y) = (rows[p * k + i], rows[q * k + i]);
                        (rows[p * k + i], rows[q * k + i]) = (c * x - s * y, s * x + c * y);
                    }
                }
            }
        }
        if !turned {
            break;
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(b: &[f32], a: &[f32], [out, input]: [usize; 2], r: usize) -> Vec<f64> {
        let at = |o: usize, i: usize| {
            (0..r).map(|n| f64::from(b[o * r + n]) * f64::from(a[n * input + i])).sum::<f64>()
        };
        (0..out * input).map(|n| at(n / input, n % input)).collect()
    }

    fn length(of: impl Iterator<Item = f64>) -> f64 {
        of.map(|v| v * v).sum::<f64>().sqrt()
    }

    /// A matrix made of known singular values: what is left of it after each rank is exactly the rest of them.
    #[test]
    fn what_is_left_is_the_smaller_singular_values() {
        let (isa, pool) = (Isa::best(), Pool::new(2));
        for shape in [[40, 64], [64, 40], [33, 33]] {
            let [out, input] = shape;
            let mut rng = Rng::new(7);
            let n = 20;
            let orthonormal = |m: usize, rng: &mut Rng| {
                let mut v: Vec<f64> = normals(rng, n * m).collect();
                assert!(orthonormalize(isa, &pool, &mut v, m));
                v
            };
            let (u, v) = (orthonormal(out, &mut rng), orthonormal(input, &mut rng));
            // Two of them equal.
            let s: Vec<f64> = (0..n).map(|i| 3.0 * 0.8f64.powi(if i == 3 { 2 } else { i as i32 })).collect();
            let w: Vec<f32> = (0..out * input)
                .map(|at| {
                    (0..n).map(|i| u[i * out + at / input] * s[i] * v[i * input + at % input]).sum::<f64>()
                        as f32
                })
                .collect();
            for r in [1, 4, 10, 20, 25] {
                let (b, a) = principal((isa, &pool), &w, shape, r, &mut Rng::new(1));
                let near = product(&b, &a, shape, r);
                let left = length(w.iter().zip(&near).map(|(w, n)| f64::from(*w) - n));
                let want = length(s[r.min(n)..].iter().copied());
                assert!((left - want).abs() < 1e-5 * s[0], "{shape:?} rank {r}: {left}, {want}");
                // Both halves share the singular values alike.
                for i in 0..r.min(n) {
                    let of_b = length((0..out).map(|o| f64::from(b[o * r + i])));
                    let of_a = length(a[i * input..][..input].iter().map(|&v| f64::from(v)));
                    assert!((of_b - s[i].sqrt()).abs() < 1e-4 && (of_a - s[i].sqrt()).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn of_nothing_there_is_nothing() {
        let pool = Pool::new(1);
        let (b, a) = principal((Isa::best(), &pool), &[0.0; 48], [6, 8], 3, &mut Rng::new(1));
        assert!(b.iter().chain(&a).all(|v| *v == 0.0));
    }
}
