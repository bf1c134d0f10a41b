//! Small dense products, all of them inside one chunk of one head.

use crate::{Isa, Real};

/// The left factor: number (i, k) stands at `i * row + k * step`.
#[derive(Clone, Copy)]
pub struct Left<'a, F> {
    pub data: &'a [F],
    pub row: usize,
    pub step: usize,
}

/// What a sum starts from.
#[derive(Clone, Copy)]
pub enum Start<'a, F> {
    /// Nothing.
    Zero,
    /// What stands there.
    Kept,
    /// What stands there times a number for each row.
    Scaled(&'a [F]),
}

/// `c[i, j] = start + Σ_k a[i, k] b[k, j]`: each number one sum in the order of k, every step a fused multiply-add.
///
/// * `c`: `m` rows of `n` numbers, `c_row` apart
/// * `b`: `k` rows of `n` numbers, `b_row` apart
#[inline(always)]
pub fn product<F: Real>(
    isa: Isa,
    (c, c_row): (&mut [F], usize),
    a: Left<'_, F>,
    (b, b_row): (&[F], usize),
    [m, k, n]: [usize; 3],
    start: Start<'_, F>,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(c) = F::as_f32_slice(c)
        && let (Some(a_data), Some(b)) = (F::as_f32s(a.data), F::as_f32s(b))
    {
        let a = Left { data: a_data, row: a.row, step: a.step };
        let start = match start {
            Start::Zero => Some(Start::Zero),
            Start::Kept => Some(Start::Kept),
            Start::Scaled(by) => F::as_f32s(by).map(Start::Scaled),
        };
        if start.is_some_and(|start| {
            super::product_x86::product(isa, (c, c_row), a, (b, b_row), [m, k, n], start)
        }) {
            return;
        }
    }
    let _ = isa;
    for i in 0..m {
        let c = &mut c[i * c_row..][..n];
        match start {
            Start::Zero => c.fill(F::ZERO),
            Start::Kept => {}
            Start::Scaled(by) => c.iter_mut().for_each(|c| *c *= by[i]),
        }
        for k in 0..k {
            let a = a.data[i * a.row + k * a.step];
            for (c, b) in c.iter_mut().zip(&b[k * b_row..][..n]) {
                *c = a.mul_add(*b, *c);
            }
        }
    }
}

/// Σ a b in the order of [`crate::reduce::dot`].
#[inline(always)]
pub fn dot<F: Real>(isa: Isa, a: &[F], b: &[F]) -> F {
    #[cfg(target_arch = "x86_64")]
    if let (Some(x), Some(y)) = (F::as_f32s(a), F::as_f32s(b))
        && let Some(sum) = super::product_x86::dot(isa, x, y)
    {
        return F::from_f32(sum);
    }
    let _ = isa;
    crate::reduce::dot(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// Every shape of tile and of what is left over, against sums written out in f64 and against the scalar bits.
    #[test]
    fn every_number_is_its_sum() {
        for [m, k, n] in [[1, 1, 1], [4, 3, 64], [5, 7, 81], [9, 0, 24], [3, 64, 16], [16, 16, 100]] {
            let (c_row, b_row) = (n + 3, n + 1);
            let (a, b, by) = (values(m * k + 1, 1), values(k * b_row + n, 2), values(m, 3));
            let old = values(m * c_row, 4);
            for turned in [false, true] {
                let (row, step) = if turned { (1, m) } else { (k, 1) };
                for start in [Start::Zero, Start::Kept, Start::Scaled(&by)] {
                    let run = |isa| {
                        let mut c = old.clone();
                        let a = Left { data: &a, row, step };
                        product(isa, (&mut c, c_row), a, (&b, b_row), [m, k, n], start);
                        c
                    };
                    let got = run(Isa::SCALAR);
                    for at in 0..m * c_row {
                        let (i, j) = (at / c_row, at % c_row);
                        let from = match start {
                            _ if j >= n => 1.0,
                            Start::Zero => 0.0,
                            Start::Kept => 1.0,
                            Start::Scaled(by) => by[i],
                        };
                        let terms = if j < n { 0..k } else { 0..0 };
                        let sum: f64 = terms
                            .map(|k| f64::from(a[i * row + k * step]) * f64::from(b[k * b_row + j]))
                            .sum();
                        let want = sum + f64::from(old[at]) * f64::from(from);
                        assert!((f64::from(got[at]) - want).abs() < 1e-5, "[{m} {k} {n}] at {i}, {j}");
                    }
                    for isa in Isa::available() {
                        assert!(run(isa).iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
                    }
                }
            }
        }
    }

    #[test]
    fn sums_are_in_the_order_of_all_sums() {
        for n in [1, 16, 64, 83, 128] {
            let (a, b) = (values(n, 1), values(n, 2));
            for isa in Isa::available() {
                assert_eq!(dot(isa, &a, &b).to_bits(), crate::reduce::dot(&a, &b).to_bits(), "{n} on {isa}");
            }
        }
    }
}
