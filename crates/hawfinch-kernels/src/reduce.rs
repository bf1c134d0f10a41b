//! Sums over many numbers, in one order of additions everywhere: sixteen interleaved partial sums, those added
//! pairwise (`l` and `l + 8`, then `l + 4`, …), then what is left over in order. Multiply-adds are fused.

use crate::Real;

/// Interleaved partial sums. Part of the meaning of every sum here.
pub const LANES: usize = 16;

/// Adds up the partial sums.
#[inline(always)]
pub fn fold<F: Real>(acc: [F; LANES]) -> F {
    // Arrays of half the size, not one array folded in place: these stay in registers.
    let acc: [F; 8] = std::array::from_fn(|l| acc[l] + acc[l + 8]);
    let acc: [F; 4] = std::array::from_fn(|l| acc[l] + acc[l + 4]);
    let acc: [F; 2] = std::array::from_fn(|l| acc[l] + acc[l + 2]);
    acc[0] + acc[1]
}

/// Σ a b
#[inline(always)]
pub fn dot<F: Real>(a: &[F], b: &[F]) -> F {
    let mut acc = [F::ZERO; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (x, y) in ca.zip(cb) {
        for l in 0..LANES {
            acc[l] = x[l].mul_add(y[l], acc[l]);
        }
    }
    ra.iter().zip(rb).fold(fold(acc), |sum, (x, y)| x.mul_add(*y, sum))
}

/// Σ a b c
#[inline(always)]
pub fn dot3<F: Real>(a: &[F], b: &[F], c: &[F]) -> F {
    let mut acc = [F::ZERO; LANES];
    let whole = a.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let (a, b, c) = (&a[at..at + LANES], &b[at..at + LANES], &c[at..at + LANES]);
        for l in 0..LANES {
            acc[l] = (a[l] * b[l]).mul_add(c[l], acc[l]);
        }
    }
    (whole..a.len()).fold(fold(acc), |sum, j| (a[j] * b[j]).mul_add(c[j], sum))
}

/// Σ f(x)
#[inline(always)]
pub fn sum_of<F: Real>(x: &[F], f: impl Fn(F) -> F) -> F {
    let mut acc = [F::ZERO; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for l in 0..LANES {
            acc[l] += f(x[l]);
        }
    }
    rest.iter().fold(fold(acc), |sum, x| sum + f(*x))
}
