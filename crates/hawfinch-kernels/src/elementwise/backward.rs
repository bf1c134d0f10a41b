//! Gradients of the operations one level up. `d_y` is the gradient of what the operation gave; gradients of operands are
//! overwritten. Those of parameters of one row are sums over rows, in an order that no number of threads changes.

use super::{Binary, Toward, Unary};
use crate::by_channels::{BLOCK, Channels, Sums, by_channels};
use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::reduce::dot3;
use crate::{Isa, Pool, Real};

compiled_for_each! {
    /// `d_x = f'(x) d_y`, any one shape. Only [`Unary::Silu`] looks at `x`; the others are known by their `y = f(x)`, and
    /// `x` may then be `y` as well.
    pub fn unary_backward<F: Real>(f: Unary, d_x: &mut [F], x: &[F], y: &[F], d_y: &[F]) = unary_body
}

#[inline(always)]
fn unary_body<F: Real>(f: Unary, d_x: &mut [F], x: &[F], y: &[F], d_y: &[F]) {
    #[inline(always)]
    fn map<F: Real>(d_x: &mut [F], of: &[F], d_y: &[F], slope: impl Fn(F) -> F) {
        assert!(d_x.len() == of.len() && d_y.len() == of.len(), "unary_backward: shapes");
        d_x.iter_mut().zip(of).zip(d_y).for_each(|((d_x, &of), &d_y)| *d_x = slope(of) * d_y);
    }
    match f {
        Unary::Exp => map(d_x, y, d_y, |y| y),
        Unary::Tanh => map(d_x, y, d_y, |y| (-y).mul_add(y, F::ONE)),
        Unary::Sigmoid => map(d_x, y, d_y, |y| y * (F::ONE - y)),
        Unary::Silu => map(d_x, x, d_y, silu_slope),
        // y = max(x, 0)², whose root is max(x, 0).
        Unary::ReluSquared => map(d_x, y, d_y, |y| y.sqrt() + y.sqrt()),
    }
}

/// silu'(x) = s (1 + x (1 - s)), s = sigmoid(x)
#[inline(always)]
fn silu_slope<F: Real>(x: F) -> F {
    let s = x.sigmoid();
    s * x.mul_add(F::ONE - s, F::ONE)
}

/// What `d_y` is multiplied with to give the gradients of `a` and `b`.
#[inline(always)]
fn slopes<F: Real>(f: Binary, a: F, b: F) -> [F; 2] {
    match f {
        Binary::Add => [F::ONE, F::ONE],
        Binary::Mul => [b, a],
        Binary::SigmoidMul => {
            let s = a.sigmoid();
            [s * (F::ONE - s) * b, s]
        }
        Binary::SiluMul => [silu_slope(a) * b, a * a.sigmoid()],
    }
}

compiled_for_each! {
    /// Both operands' gradients, all of one shape. (Those of [`Binary::Add`] are `d_y`.)
    pub fn binary_backward<F: Real>(f: Binary, d_a: &mut [F], d_b: &mut [F], a: &[F], b: &[F], d_y: &[F]) = binary_body
}

#[inline(always)]
fn binary_body<F: Real>(f: Binary, d_a: &mut [F], d_b: &mut [F], a: &[F], b: &[F], d_y: &[F]) {
    #[inline(always)]
    fn each<F: Real>(d_a: &mut [F], d_b: &mut [F], a: &[F], b: &[F], d_y: &[F], f: impl Fn(F, F) -> [F; 2]) {
        let n = d_y.len();
        let (d_a, d_b, a, b) = (&mut d_a[..n], &mut d_b[..n], &a[..n], &b[..n]);
        for j in 0..n {
            let [of_a, of_b] = f(a[j], b[j]);
            (d_a[j], d_b[j]) = (of_a * d_y[j], of_b * d_y[j]);
        }
    }
    match f {
        Binary::Add => each(d_a, d_b, a, b, d_y, |a, b| slopes(Binary::Add, a, b)),
        Binary::Mul => each(d_a, d_b, a, b, d_y, |a, b| slopes(Binary::Mul, a, b)),
        Binary::SigmoidMul => each(d_a, d_b, a, b, d_y, |a, b| slopes(Binary::SigmoidMul, a, b)),
        Binary::SiluMul => each(d_a, d_b, a, b, d_y, |a, b| slopes(Binary::SiluMul, a, b)),
    }
}

/// The same where `b` has one row: `d_a`, `a`, `d_y` `[t, c]`, `d_b`, `b` `[c]`.
pub fn binary_row_backward<F: Real>(
    isa: Isa,
    pool: &Pool,
    f: Binary,
    d_a: &mut [F],
    d_b: &mut [F],
    a: &[F],
    b: &[F],
    d_y: &[F],
) {
    let (t, c) = shape(d_y, b);
    assert!(d_a.len() == t * c && a.len() == t * c && d_b.len() == c, "binary_row_backward: shapes");
    let (d_a, d_b) = (Parts::new(d_a), Parts::new(d_b));
    by_channels(pool, (t, c), BLOCK, |at| binary_row(isa, at, f, &d_a, &d_b, a, b, d_y));
}

compiled_for_each! {
    fn binary_row<F: Real>(
        at: Channels,
        f: Binary,
        d_a: &Parts<F>,
        d_b: &Parts<F>,
        a: &[F],
        b: &[F],
        d_y: &[F],
    ) = binary_row_body
}

#[inline(always)]
fn binary_row_body<F: Real>(
    at: Channels,
    f: Binary,
    d_a: &Parts<F>,
    d_b: &Parts<F>,
    a: &[F],
    b: &[F],
    d_y: &[F],
) {
    let (mut sums, b) = (Sums::new(), &b[at.own()]);
    for row in at.rows() {
        // SAFETY: each block of channels is worked on once.
        let d_a = unsafe { d_a.get(row.start, at.len) };
        let (a, d_y, sum) = (&a[row.clone()], &d_y[row], sums.row());
        for j in 0..at.len {
            let [of_a, of_b] = slopes(f, a[j], b[j]);
            d_a[j] = of_a * d_y[j];
            sum[j] = of_b.mul_add(d_y[j], sum[j]);
        }
    }
    // SAFETY: as above.
    sums.write(unsafe { d_b.get(at.first, at.len) });
}

/// Sums over rows: `d` `[c]`, `d_y` `[t, c]`. The gradient of a term that every row is given.
pub fn sum_rows<F: Real>(isa: Isa, pool: &Pool, d: &mut [F], d_y: &[F]) {
    let (t, c) = shape(d_y, d);
    let d = Parts::new(d);
    by_channels(pool, (t, c), BLOCK, |at| sum_block(isa, at, &d, d_y));
}

compiled_for_each! {
    fn sum_block<F: Real>(at: Channels, d: &Parts<F>, d_y: &[F]) = sum_block_body
}

#[inline(always)]
fn sum_block_body<F: Real>(at: Channels, d: &Parts<F>, d_y: &[F]) {
    let mut sums = Sums::new();
    for row in at.rows() {
        sums.row().iter_mut().zip(&d_y[row]).for_each(|(sum, d)| *sum += *d);
    }
    // SAFETY: each block of channels is worked on once.
    sums.write(unsafe { d.get(at.first, at.len) });
}

compiled_for_each! {
    /// Gradients of `from + (to - from) * weight`, all of one shape.
    pub fn lerp_backward<F: Real>(
        d_from: &mut [F],
        d_to: &mut [F],
        d_weight: &mut [F],
        from: &[F],
        to: &[F],
        weight: &[F],
        d_y: &[F],
    ) = lerp_body
}

#[inline(always)]
fn lerp_body<F: Real>(
    d_from: &mut [F],
    d_to: &mut [F],
    d_weight: &mut [F],
    from: &[F],
    to: &[F],
    weight: &[F],
    d_y: &[F],
) {
    let n = d_y.len();
    let (d_from, d_to, d_weight) = (&mut d_from[..n], &mut d_to[..n], &mut d_weight[..n]);
    let (from, to, weight) = (&from[..n], &to[..n], &weight[..n]);
    for j in 0..n {
        d_to[j] = d_y[j] * weight[j];
        d_from[j] = d_y[j] - d_to[j];
        d_weight[j] = d_y[j] * (to[j] - from[j]);
    }
}

/// The same where `weight` has one row: `d_weight`, `weight` `[c]`, the others `[t, c]`.
pub fn lerp_row_backward<F: Real>(
    isa: Isa,
    pool: &Pool,
    d_from: &mut [F],
    d_to: &mut [F],
    d_weight: &mut [F],
    from: &[F],
    to: &[F],
    weight: &[F],
    d_y: &[F],
) {
    let (t, c) = shape(d_y, weight);
    assert!(from.len() == t * c && to.len() == t * c && d_weight.len() == c, "lerp_row_backward: shapes");
    assert!(d_from.len() == t * c && d_to.len() == t * c, "lerp_row_backward: gradients");
    let (d_from, d_to, d_weight) = (Parts::new(d_from), Parts::new(d_to), Parts::new(d_weight));
    by_channels(pool, (t, c), BLOCK, |at| {
        lerp_row(isa, at, [&d_from, &d_to, &d_weight], from, to, weight, d_y);
    });
}

compiled_for_each! {
    fn lerp_row<F: Real>(
        at: Channels,
        d: [&Parts<F>; 3],
        from: &[F],
        to: &[F],
        weight: &[F],
        d_y: &[F],
    ) = lerp_row_body
}

#[inline(always)]
fn lerp_row_body<F: Real>(
    at: Channels,
    [d_from, d_to, d_weight]: [&Parts<F>; 3],
    from: &[F],
    to: &[F],
    weight: &[F],
    d_y: &[F],
) {
    let (mut sums, weight) = (Sums::new(), &weight[at.own()]);
    for row in at.rows() {
        // SAFETY: each block of channels is worked on once.
        let (d_from, d_to) = unsafe { (d_from.get(row.start, at.len), d_to.get(row.start, at.len)) };
        let (from, to, d_y, sum) = (&from[row.clone()], &to[row.clone()], &d_y[row], sums.row());
        for j in 0..at.len {
            d_to[j] = d_y[j] * weight[j];
            d_from[j] = d_y[j] - d_to[j];
            sum[j] = d_y[j].mul_add(to[j] - from[j], sum[j]);
        }
    }
    // SAFETY: as above.
    sums.write(unsafe { d_weight.get(at.first, at.len) });
}

/// Gradients of several [mixes](super::mixes) of rows with the rows before them within their sequence.
pub struct MixesBackward<'a, F> {
    /// `[t, c]`, of the rows.
    pub d_rows: &'a mut [F],
    /// `[sequences, c]`, of the row before each sequence's first.
    pub d_before: &'a mut [F],
    /// `[mixes, c]`, of the weights.
    pub d_weights: &'a mut [F],
    /// `[t, c]`: the rows.
    pub rows: &'a [F],
    /// `[c]` each: the row before each sequence's first.
    pub before: &'a [&'a [F]],
    /// Rows of each sequence.
    pub lengths: &'a [usize],
    /// `[c]` each.
    pub weights: &'a [&'a [F]],
    /// Which row they weigh.
    pub toward: Toward,
    /// `[t, c]` each: gradients of the mixes.
    pub d_ys: &'a [&'a [F]],
}

impl<F: Real> MixesBackward<'_, F> {
    /// Computes them.
    ///
    /// # Panics
    /// When the shapes disagree.
    pub fn run(self, isa: Isa, pool: &Pool) {
        let c = self.weights.first().map_or(1, |w| w.len());
        let (t, n) = (self.rows.len() / c, self.weights.len());
        assert!(self.d_rows.len() == t * c && self.lengths.iter().sum::<usize>() == t, "mixes: rows");
        assert!(self.d_weights.len() == n * c && self.d_ys.len() == n, "mixes: weights");
        assert!(self.d_ys.iter().all(|d| d.len() == t * c), "mixes: gradients");
        assert!(self.before.len() == self.lengths.len(), "mixes: sequences");
        assert!(self.d_before.len() == self.before.len() * c, "mixes: rows before");
        let d = [Parts::new(self.d_rows), Parts::new(self.d_before), Parts::new(self.d_weights)];
        let (rows, before, lengths) = (self.rows, self.before, self.lengths);
        let (weights, toward, d_ys) = (self.weights, self.toward, self.d_ys);
        by_channels(pool, (t, c), BLOCK, |at| {
            mixes_block(isa, at, &d, rows, before, lengths, weights, toward, d_ys);
        });
    }
}

compiled_for_each! {
    fn mixes_block<F: Real>(
        at: Channels,
        d: &[Parts<F>; 3],
        rows: &[F],
        before: &[&[F]],
        lengths: &[usize],
        weights: &[&[F]],
        toward: Toward,
        d_ys: &[&[F]],
    ) = mixes_block_body
}

#[inline(always)]
fn mixes_block_body<F: Real>(
    at: Channels,
    [d_rows, d_before, d_weights]: &[Parts<F>; 3],
    rows: &[F],
    before: &[&[F]],
    lengths: &[usize],
    weights: &[&[F]],
    toward: Toward,
    d_ys: &[&[F]],
) {
    // As many mixes at once as any version has (and as fit the nearest cache); the rest in further passes.
    for (pass, (weights, d_ys)) in weights.chunks(MIXES).zip(d_ys.chunks(MIXES)).enumerate() {
        let first = pass * MIXES;
        let mut sums: [Sums<F>; MIXES] = std::array::from_fn(|_| Sums::new());
        // The part of the row itself, and of the one before it.
        let mut parts = [[[F::ZERO; BLOCK]; 2]; MIXES];
        for ([of_row, of_before], weight) in parts.iter_mut().zip(weights) {
            for (j, &w) in weight[at.own()].iter().enumerate() {
                let rest = F::ONE - w;
                (of_row[j], of_before[j]) = if toward == Toward::Row { (w, rest) } else { (rest, w) };
            }
        }
        let mut row = 0;
        for (s, (&length, before)) in lengths.iter().zip(before).enumerate() {
            for n in 0..length {
                let here = at.row(row);
                let (last, d_last) = match n {
                    // SAFETY: each block of channels is worked on once; no row is taken twice at a time.
                    0 => (&before[at.own()], unsafe { d_before.get(s * at.c + at.first, at.len) }),
                    // SAFETY: as above.
                    _ => (&rows[at.row(row - 1)], unsafe { d_rows.get(at.row(row - 1).start, at.len) }),
                };
                // SAFETY: as above.
                let d_x = unsafe { d_rows.get(here.start, at.len) };
                let x = &rows[here.clone()];
                let mut d: [&[F]; MIXES] = [&[]; MIXES];
                d.iter_mut().zip(d_ys).for_each(|(d, d_y)| *d = &d_y[here.clone()]);
                // What is before a sequence has no part of its own.
                let fresh = [pass == 0, pass == 0 && n == 0];
                one_row(&mut sums[..weights.len()], &parts, [d_x, d_last], fresh, x, last, &d, toward);
                row += 1;
            }
        }
        for (mix, sums) in sums.into_iter().take(weights.len()).enumerate() {
            // SAFETY: as above.
            sums.write(unsafe { d_weights.get((first + mix) * at.c + at.first, at.len) });
        }
    }
}

/// Mixes that are worked on together.
const MIXES: usize = 6;

/// One row of a block: what its mixes' gradients are to the row and the one before it.
#[inline(always)]
fn one_row<F: Real>(
    sums: &mut [Sums<F>],
    parts: &[[[F; BLOCK]; 2]; MIXES],
    [d_x, d_last]: [&mut [F]; 2],
    [fresh, fresh_last]: [bool; 2],
    x: &[F],
    last: &[F],
    d: &[&[F]; MIXES],
    toward: Toward,
) {
    let len = x.len();
    let (mut own, mut earlier, mut apart) = ([F::ZERO; BLOCK], [F::ZERO; BLOCK], [F::ZERO; BLOCK]);
    for j in 0..len {
        apart[j] = if toward == Toward::Row { x[j] - last[j] } else { last[j] - x[j] };
    }
    for ((sums, [of_row, of_before]), d) in sums.iter_mut().zip(parts).zip(d) {
        let (sum, d) = (sums.row(), &d[..len]);
        for j in 0..len {
            own[j] = of_row[j].mul_add(d[j], own[j]);
            earlier[j] = of_before[j].mul_add(d[j], earlier[j]);
            sum[j] = d[j].mul_add(apart[j], sum[j]);
        }
    }
    let (d_x, d_last) = (&mut d_x[..len], &mut d_last[..len]);
    for j in 0..len {
        d_x[j] = if fresh { own[j] } else { d_x[j] + own[j] };
        d_last[j] = if fresh_last { earlier[j] } else { d_last[j] + earlier[j] };
    }
}

/// Gradients of [`scale_key`](super::scale_key): `d_k_a`, `k_a` `[c]`, the others `[t, c]`.
pub fn scale_key_backward<F: Real>(
    isa: Isa,
    pool: &Pool,
    d_k: &mut [F],
    d_a: &mut [F],
    d_k_a: &mut [F],
    k: &[F],
    a: &[F],
    k_a: &[F],
    d_y: &[F],
) {
    let (t, c) = shape(d_y, k_a);
    assert!(k.len() == t * c && a.len() == t * c && d_k_a.len() == c, "scale_key_backward: shapes");
    assert!(d_k.len() == t * c && d_a.len() == t * c, "scale_key_backward: gradients");
    let (d_k, d_a, d_k_a) = (Parts::new(d_k), Parts::new(d_a), Parts::new(d_k_a));
    by_channels(pool, (t, c), BLOCK, |at| scale_key_block(isa, at, [&d_k, &d_a, &d_k_a], k, a, k_a, d_y));
}

compiled_for_each! {
    fn scale_key_block<F: Real>(
        at: Channels,
        d: [&Parts<F>; 3],
        k: &[F],
        a: &[F],
        k_a: &[F],
        d_y: &[F],
    ) = scale_key_block_body
}

#[inline(always)]
fn scale_key_block_body<F: Real>(
    at: Channels,
    [d_k, d_a, d_k_a]: [&Parts<F>; 3],
    k: &[F],
    a: &[F],
    k_a: &[F],
    d_y: &[F],
) {
    let (mut sums, k_a) = (Sums::new(), &k_a[at.own()]);
    for row in at.rows() {
        // SAFETY: each block of channels is worked on once.
        let (d_k, d_a) = unsafe { (d_k.get(row.start, at.len), d_a.get(row.start, at.len)) };
        let (k, a, d_y, sum) = (&k[row.clone()], &a[row.clone()], &d_y[row], sums.row());
        for j in 0..at.len {
            let (less, d) = (a[j] - F::ONE, d_y[j] * k[j]);
            d_k[j] = d_y[j] * less.mul_add(k_a[j], F::ONE);
            d_a[j] = d * k_a[j];
            sum[j] = d.mul_add(less, sum[j]);
        }
    }
    // SAFETY: as above.
    sums.write(unsafe { d_k_a.get(at.first, at.len) });
}

/// Gradients of [`bonus`](super::bonus) but that of `x`, which is `d_y`: `d_r_k`, `r_k` `[c]`, the others `[t, c]`,
/// heads of `n`.
pub fn bonus_backward<F: Real>(
    isa: Isa,
    pool: &Pool,
    [d_r, d_k, d_v]: [&mut [F]; 3],
    d_r_k: &mut [F],
    rkv: [&[F]; 3],
    r_k: &[F],
    d_y: &[F],
    n: usize,
) {
    let (t, c) = shape(d_y, r_k);
    assert!(rkv.iter().all(|x| x.len() == t * c) && d_r_k.len() == c, "bonus_backward: shapes");
    let d = [d_r, d_k, d_v].map(|d| {
        assert_eq!(d.len(), t * c, "bonus_backward: gradients");
        Parts::new(d)
    });
    let d_r_k = Parts::new(d_r_k);
    pool.run(c / n, &|head| {
        bonus_head(isa, Channels { t, c, first: head * n, len: n }, &d, &d_r_k, rkv, r_k, d_y)
    });
}

compiled_for_each! {
    fn bonus_head<F: Real>(
        at: Channels,
        d: &[Parts<F>; 3],
        d_r_k: &Parts<F>,
        rkv: [&[F]; 3],
        r_k: &[F],
        d_y: &[F],
    ) = bonus_head_body
}

#[inline(always)]
fn bonus_head_body<F: Real>(
    at: Channels,
    d: &[Parts<F>; 3],
    d_r_k: &Parts<F>,
    rkv: [&[F]; 3],
    r_k: &[F],
    d_y: &[F],
) {
    let rho = &r_k[at.own()];
    // SAFETY: each head is worked on once.
    let d_rho = unsafe { d_r_k.get(at.first, at.len) };
    d_rho.fill(F::ZERO);
    for row in at.rows() {
        let [r, k, v] = rkv.map(|x| &x[row.clone()]);
        let d_y = &d_y[row.clone()];
        let (s, d_s) = (dot3(r, k, rho), crate::reduce::dot(d_y, v));
        // SAFETY: as above.
        let [d_r, d_k, d_v] = d.each_ref().map(|d| unsafe { d.get(row.start, at.len) });
        for j in 0..at.len {
            d_v[j] = s * d_y[j];
            d_r[j] = d_s * (k[j] * rho[j]);
            d_k[j] = d_s * (r[j] * rho[j]);
            d_rho[j] = d_s.mul_add(r[j] * k[j], d_rho[j]);
        }
    }
}

/// Rows and channels of `x` beside a parameter of one row.
fn shape<F>(x: &[F], row: &[F]) -> (usize, usize) {
    let c = row.len().max(1);
    assert!(x.len().is_multiple_of(c), "{} numbers in rows of {c}", x.len());
    (x.len() / c, c)
}

#[cfg(test)]
mod tests;
