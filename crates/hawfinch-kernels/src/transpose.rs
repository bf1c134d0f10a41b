//! Square matrices turned over.

use crate::{Isa, Real};

/// `out[j * n + i] = x[i * n + j]`; both `[n, n]`.
#[inline(always)]
pub fn square<F: Real>(isa: Isa, out: &mut [F], x: &[F], n: usize) {
    assert!(out.len() == n * n && x.len() == n * n);
    #[cfg(target_arch = "x86_64")]
    if n.is_multiple_of(8)
        && isa.level() >= crate::Level::Avx2
        && let (Some(out), Some(x)) = (F::as_f32_slice(out), F::as_f32s(x))
    {
        // SAFETY: an Isa exists only where the machine has the instructions; the sizes were checked.
        return unsafe { eights(out, x, n) };
    }
    #[cfg(target_arch = "aarch64")]
    if n.is_multiple_of(4)
        && isa.level() >= crate::Level::Neon
        && let (Some(out), Some(x)) = (F::as_f32_slice(out), F::as_f32s(x))
    {
        // SAFETY: an Isa exists only where the machine has the instructions; the sizes were checked.
        return unsafe { fours(out, x, n) };
    }
    let _ = isa;
    for i in 0..n {
        for j in 0..n {
            out[j * n + i] = x[i * n + j];
        }
    }
}

/// In blocks of 8 × 8.
///
/// # Safety
/// Both have n² numbers; 8 divides n.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn eights(out: &mut [f32], x: &[f32], n: usize) {
    use std::arch::x86_64::*;
    for i in (0..n).step_by(8) {
        for j in (0..n).step_by(8) {
            // SAFETY: rows i..i + 8, columns j..j + 8.
            let r: [__m256; 8] =
                std::array::from_fn(|k| unsafe { _mm256_loadu_ps(x.as_ptr().add((i + k) * n + j)) });
            let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let ((a0, a1), (a2, a3)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
            let ((a4, a5), (a6, a7)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
            let fours = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
            let ((b0, b1), (b2, b3)) = (fours(a0, a2), fours(a1, a3));
            let ((b4, b5), (b6, b7)) = (fours(a4, a6), fours(a5, a7));
            let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
            let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
            let turned = [
                low(b0, b4),
                low(b1, b5),
                low(b2, b6),
                low(b3, b7),
                high(b0, b4),
                high(b1, b5),
                high(b2, b6),
                high(b3, b7),
            ];
            for (k, row) in turned.into_iter().enumerate() {
                // SAFETY: rows j..j + 8, columns i..i + 8.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add((j + k) * n + i), row) };
            }
        }
    }
}

/// In blocks of 4 × 4.
///
/// # Safety
/// Both have n² numbers; 4 divides n.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn fours(out: &mut [f32], x: &[f32], n: usize) {
    use std::arch::aarch64::*;
    for i in (0..n).step_by(4) {
        for j in (0..n).step_by(4) {
            // SAFETY: rows i..i + 4, columns j..j + 4.
            let r: [float32x4_t; 4] =
                std::array::from_fn(|k| unsafe { vld1q_f32(x.as_ptr().add((i + k) * n + j)) });
            let (a, b) = (vzip1q_f32(r[0], r[2]), vzip2q_f32(r[0], r[2]));
            let (c, d) = (vzip1q_f32(r[1], r[3]), vzip2q_f32(r[1], r[3]));
            let turned = [vzip1q_f32(a, c), vzip2q_f32(a, c), vzip1q_f32(b, d), vzip2q_f32(b, d)];
            for (k, row) in turned.into_iter().enumerate() {
                // SAFETY: rows j..j + 4, columns i..i + 4.
                unsafe { vst1q_f32(out.as_mut_ptr().add((j + k) * n + i), row) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows() {
        for n in [1, 5, 8, 12, 24, 64] {
            let x: Vec<f32> = (0..n * n).map(|v| v as f32).collect();
            for isa in Isa::available() {
                let mut out = vec![0.0; n * n];
                square(isa, &mut out, &x, n);
                assert!((0..n * n).all(|at| out[at] == x[at % n * n + at / n]), "{isa} {n}");
            }
        }
    }
}
