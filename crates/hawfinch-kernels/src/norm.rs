//! Normalisations. Population variance, two passes, in the number type of the activations.

pub mod backward;

use crate::Real;
use crate::isa::compiled_for_each;
use crate::reduce::sum_of;

compiled_for_each! {
    /// Normalises consecutive groups of `n` numbers to mean 0, variance 1, then `* weight + bias`.
    ///
    /// * `y`, `x`: `[t, c]`
    /// * `weight`, `bias`: `[c]`
    /// * `n` divides c: `n = c` is layer norm, `n = head size` is group norm
    pub fn group_norm<F: Real>(y: &mut [F], x: &[F], weight: &[F], bias: &[F], n: usize, eps: F) = group_norm_body
}

#[inline(always)]
fn group_norm_body<F: Real>(y: &mut [F], x: &[F], weight: &[F], bias: &[F], n: usize, eps: F) {
    let c = weight.len();
    let scale = F::ONE / F::from_f64(n as f64);
    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
        let params = weight.chunks_exact(n).zip(bias.chunks_exact(n));
        for ((y, x), (weight, bias)) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(params) {
            let mean = sum_of(x, |v| v) * scale;
            let variance = sum_of(x, |v| (v - mean) * (v - mean)) * scale;
            let inverse = F::ONE / (variance + eps).sqrt();
            for j in 0..n {
                y[j] = ((x[j] - mean) * inverse).mul_add(weight[j], bias[j]);
            }
        }
    }
}

compiled_for_each! {
    /// Each group of `n` numbers divided by the larger of its Euclidean length and 1e-12 (`[t, c]`, `n`
    /// divides c; RWKV-7's `kk`).
    pub fn l2_normalize<F: Real>(y: &mut [F], x: &[F], n: usize) = l2_normalize_body
}

#[inline(always)]
fn l2_normalize_body<F: Real>(y: &mut [F], x: &[F], n: usize) {
    for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
        let length = sum_of(x, |v| v * v).sqrt().max(F::from_f64(1e-12));
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x / length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn groups_have_mean_bias_and_variance_weight() {
        let x: Vec<f64> = (0..24).map(|i| (i * i % 17) as f64).collect();
        let mut y = vec![0.0; 24];
        group_norm(Isa::best(), &mut y, &x, &[2.0; 12], &[0.5; 12], 4, 0.0);
        for g in y.chunks(4) {
            let mean = g.iter().sum::<f64>() / 4.0;
            let var = g.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 4.0;
            assert!((mean - 0.5).abs() < 1e-12 && (var - 4.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_zero_vector_normalises_to_zero() {
        let mut y = vec![1.0f32; 4];
        l2_normalize(Isa::SCALAR, &mut y, &[0.0, 0.0, 3.0, 4.0], 2);
        assert_eq!(y, [0.0, 0.0, 0.6, 0.8]);
    }
}
