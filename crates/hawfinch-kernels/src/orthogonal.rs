//! Orthonormal vectors from any: what a QR factorisation's Q is, with a positive diagonal of R.
//!
//! Gram-Schmidt by halves: the first half of the vectors is made orthonormal, taken out of the second half in one go
//! (two matrix products), then the second half is made orthonormal among itself. A sweep loses accuracy by as much as
//! vectors shrink in it; while one shrinks to a tenth or less, another sweep over the result follows ("twice is
//! enough", Giraud, Langou and Rozložník 2005). Tall Gaussian matrices need one, square ones two.

use crate::isa::compiled_for_each;
use crate::{Isa, Pool};

/// Vectors that one thread takes at a time.
const ROWS: usize = 16;
/// Numbers of each vector that are used at a time: those of 100 vectors fit a second-level cache.
const SEGMENT: usize = 512;
/// Partial sums of a product.
const LANES: usize = 8;
/// Sweeps after which vectors count as dependent.
const SWEEPS: usize = 5;

/// Makes `vectors`, rows of `m` numbers, orthonormal: row `i` becomes the part of it that is orthogonal to the rows
/// before, at length 1. The same bits on every instruction set and for any number of threads.
///
/// Returns false when that cannot be done (a vector is zero, not finite, or depends on those before it); `vectors`
/// are of no use then.
///
/// # Panics
/// When there are not whole rows, or more rows than numbers in one.
pub fn orthonormalize(isa: Isa, pool: &Pool, vectors: &mut [f64], m: usize) -> bool {
    if vectors.is_empty() {
        return true;
    }
    assert!(m > 0 && vectors.len().is_multiple_of(m) && vectors.len() / m <= m, "orthonormalize: shape");
    (0..SWEEPS).any(|_| {
        let mut lengths = vec![0f64; vectors.len() / m];
        let rows = &*vectors;
        pool.split(&mut lengths, 1, ROWS, |first, part| {
            for (length, row) in part.iter_mut().zip(rows[first * m..].chunks_exact(m)) {
                dot(isa, length, row, row);
                *length = length.sqrt();
            }
        });
        sweep(isa, pool, vectors, m, &lengths) > 0.1
    })
}

/// One sweep over vectors of these lengths: the smallest part of its length that a vector keeps.
fn sweep(isa: Isa, pool: &Pool, vectors: &mut [f64], m: usize, lengths: &[f64]) -> f64 {
    let n = lengths.len();
    if n == 1 {
        let mut square = 0.0;
        dot(isa, &mut square, vectors, vectors);
        let length = square.sqrt();
        if !(length > 0.0 && length.is_finite()) {
            return 0.0;
        }
        vectors.iter_mut().for_each(|x| *x /= length);
        return length / lengths[0];
    }
    let half = n / 2;
    let (before, after) = vectors.split_at_mut(half * m);
    let kept = sweep(isa, pool, before, m, &lengths[..half]);
    let mut parts = vec![0f64; (n - half) * half];
    let (done, rows) = (&*before, &*after);
    pool.split(&mut parts, half, ROWS, |first, parts| dots(isa, parts, &rows[first * m..], done, m));
    let parts = &parts;
    pool.split(after, m, ROWS, |first, rows| subtract(isa, rows, &parts[first * half..], done, m));
    kept.min(sweep(isa, pool, after, m, &lengths[half..]))
}

/// The numbers from `at` on of row `r`, of rows of `m`: a segment's.
#[inline(always)]
fn segment(rows: &[f64], r: usize, m: usize, at: usize) -> &[f64] {
    &rows[r * m + at..r * m + m.min(at + SEGMENT)]
}

compiled_for_each! {
    fn dot(sum: &mut f64, a: &[f64], b: &[f64]) = dot_body
}

#[inline(always)]
fn dot_body(sum: &mut f64, a: &[f64], b: &[f64]) {
    let [[one]] = products([a], [b]);
    *sum = one;
}

#[inline(always)]
fn multiply_add(a: [f64; LANES], b: [f64; LANES], mut sum: [f64; LANES]) -> [f64; LANES] {
    for l in 0..LANES {
        sum[l] = a[l].mul_add(b[l], sum[l]);
    }
    sum
}

/// All products of some vectors with others, all of one length.
#[inline(always)]
fn products<const A: usize, const B: usize>(a: [&[f64]; A], b: [&[f64]; B]) -> [[f64; B]; A] {
    let n = a[0].len();
    let whole = n / LANES * LANES;
    let parts_a = a.map(|a| a.as_chunks::<LANES>().0);
    let parts_b = b.map(|b| b.as_chunks::<LANES>().0);
    let mut acc = [[[0f64; LANES]; B]; A];
    for at in 0..whole / LANES {
        // Each vector is loaded once.
        let b = parts_b.map(|b| b[at]);
        for j in 0..A {
            let a = parts_a[j][at];
            for k in 0..B {
                acc[j][k] = multiply_add(a, b[k], acc[j][k]);
            }
        }
    }
    std::array::from_fn(|j| {
        std::array::from_fn(|k| {
            let acc = acc[j][k];
            let acc: [f64; 4] = std::array::from_fn(|l| acc[l] + acc[l + 4]);
            let sum = (acc[0] + acc[2]) + (acc[1] + acc[3]);
            (whole..n).fold(sum, |sum, x| a[j][x].mul_add(b[k][x], sum))
        })
    })
}

compiled_for_each! {
    /// `parts[j, i] = rows[j] · done[i]`, as many rows as `parts` has.
    fn dots(parts: &mut [f64], rows: &[f64], done: &[f64], m: usize) = dots_body
}

#[inline(always)]
fn dots_body(parts: &mut [f64], rows: &[f64], done: &[f64], m: usize) {
    let k = done.len() / m;
    let n = parts.len() / k;
    for at in (0..m).step_by(SEGMENT) {
        for i in (0..k).step_by(2) {
            for j in (0..n).step_by(4) {
                if i + 2 <= k && j + 4 <= n {
                    let a = std::array::from_fn::<_, 4, _>(|x| segment(rows, j + x, m, at));
                    let b = std::array::from_fn::<_, 2, _>(|x| segment(done, i + x, m, at));
                    for (x, sums) in products(a, b).into_iter().enumerate() {
                        for (y, sum) in sums.into_iter().enumerate() {
                            parts[(j + x) * k + i + y] += sum;
                        }
                    }
                    continue;
                }
                for j in j..n.min(j + 4) {
                    for i in i..k.min(i + 2) {
                        let [[sum]] = products([segment(rows, j, m, at)], [segment(done, i, m, at)]);
                        parts[j * k + i] += sum;
                    }
                }
            }
        }
    }
}

compiled_for_each! {
    /// `rows[j] -= Σ parts[j, i] done[i]`.
    fn subtract(rows: &mut [f64], parts: &[f64], done: &[f64], m: usize) = subtract_body
}

#[inline(always)]
fn subtract_body(rows: &mut [f64], parts: &[f64], done: &[f64], m: usize) {
    let k = done.len() / m;
    for at in (0..m).step_by(SEGMENT) {
        let len = SEGMENT.min(m - at);
        for i in (0..k).step_by(4) {
            let d: [&[f64]; 4] = std::array::from_fn(|x| segment(done, (i + x).min(k - 1), m, at));
            // Past the end, nothing of the last vector.
            let part = |j: usize, x: usize| if i + x < k { -parts[j * k + i + x] } else { 0.0 };
            for (pair, two) in rows.chunks_mut(2 * m).enumerate() {
                let j = 2 * pair;
                let (first, second) = two.split_at_mut(m);
                let c: [f64; 4] = std::array::from_fn(|x| part(j, x));
                let y = &mut first[at..at + len];
                if second.is_empty() {
                    for x in 0..len {
                        y[x] = combine(y[x], c, [d[0][x], d[1][x], d[2][x], d[3][x]]);
                    }
                    continue;
                }
                let e: [f64; 4] = std::array::from_fn(|x| part(j + 1, x));
                let z = &mut second[at..at + len];
                let (d0, d1, d2, d3) = (&d[0][..len], &d[1][..len], &d[2][..len], &d[3][..len]);
                for x in 0..len {
                    let d = [d0[x], d1[x], d2[x], d3[x]];
                    y[x] = combine(y[x], c, d);
                    z[x] = combine(z[x], e, d);
                }
            }
        }
    }
}

#[inline(always)]
fn combine(y: f64, c: [f64; 4], d: [f64; 4]) -> f64 {
    c[3].mul_add(d[3], c[2].mul_add(d[2], c[1].mul_add(d[1], c[0].mul_add(d[0], y))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    fn plain(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Largest |Q Qᵀ - 1|.
    fn error(q: &[f64], m: usize) -> f64 {
        let rows: Vec<&[f64]> = q.chunks_exact(m).collect();
        let mut worst = 0f64;
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate().take(i + 1) {
                worst = worst.max((plain(a, b) - if i == j { 1.0 } else { 0.0 }).abs());
            }
        }
        worst
    }

    fn start(n: usize, m: usize, seed: u32) -> Vec<f64> {
        values(n * m, seed).into_iter().map(f64::from).collect()
    }

    #[test]
    fn vectors_become_orthonormal_and_keep_their_spans() {
        for (n, m) in [(1, 1), (1, 9), (2, 2), (5, 5), (7, 40), (64, 64), (33, 1500), (130, 131), (3, 513)] {
            let from = start(n, m, (n * m) as u32);
            let mut q = from.clone();
            assert!(orthonormalize(Isa::best(), &Pool::new(2), &mut q, m), "{n} × {m}");
            assert!(error(&q, m) < 1e-14, "{n} × {m}: {:e}", error(&q, m));
            // from = R Q with R lower triangular here (rows), its diagonal positive.
            for i in 0..n {
                let row = &from[i * m..(i + 1) * m];
                let r: Vec<f64> = q.chunks_exact(m).map(|q| plain(row, q)).collect();
                assert!(r[i] > 0.0);
                let size = plain(row, row).sqrt();
                assert!(r[i + 1..].iter().all(|r| r.abs() < 1e-12 * size), "{n} × {m}, {i}");
            }
        }
    }

    /// Vectors that nearly depend on each other: more than one sweep.
    #[test]
    fn nearly_dependent_vectors() {
        let (n, m) = (40, 60);
        let mut q = start(n, m, 3);
        for i in 1..n {
            for x in 0..m {
                q[i * m + x] = q[x] + 1e-9 * q[i * m + x];
            }
        }
        assert!(orthonormalize(Isa::best(), &Pool::new(1), &mut q, m));
        assert!(error(&q, m) < 1e-14, "{:e}", error(&q, m));
        let mut zero = start(3, 4, 1);
        zero[4..8].fill(0.0);
        assert!(!orthonormalize(Isa::best(), &Pool::new(1), &mut zero, 4));
        let mut bad = start(3, 4, 1);
        bad[5] = f64::NAN;
        assert!(!orthonormalize(Isa::best(), &Pool::new(1), &mut bad, 4));
        assert!(orthonormalize(Isa::best(), &Pool::new(1), &mut [], 4));
    }

    #[test]
    fn the_same_bits_everywhere() {
        let (n, m) = (75, 700);
        let run = |isa, threads| {
            let mut q = start(n, m, 9);
            assert!(orthonormalize(isa, &Pool::new(threads), &mut q, m));
            q
        };
        let want = run(Isa::SCALAR, 1);
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert!(run(isa, threads) == want, "{isa} {threads}");
            }
        }
    }
}
