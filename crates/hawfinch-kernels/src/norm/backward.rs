//! Gradients of the norms.

use crate::by_channels::{BLOCK, Channels, Sums, by_channels};
use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::reduce::{dot, fold, sum_of};
use crate::{Isa, Pool, Real};

/// Gradients of [`group_norm`](super::group_norm).
///
/// * `d_x`, `x`, `d_y`: `[t, c]`
/// * `d_weight`, `d_bias`, `weight`: `[c]`
/// * `n` divides c
///
/// # Panics
/// When the shapes disagree.
pub fn group_norm_backward<F: Real>(
    isa: Isa,
    pool: &Pool,
    d_x: &mut [F],
    d_weight: &mut [F],
    d_bias: &mut [F],
    x: &[F],
    weight: &[F],
    d_y: &[F],
    n: usize,
    eps: F,
) {
    let c = weight.len();
    let t = x.len() / c;
    assert!(d_x.len() == t * c && d_y.len() == t * c && x.len() == t * c, "group_norm_backward: rows");
    assert!(d_weight.len() == c && d_bias.len() == c && c.is_multiple_of(n), "group_norm_backward: channels");
    // Mean and 1/deviation of each group, for the sums over rows.
    let groups = c / n;
    let mut moments = vec![[F::ZERO; 2]; t * groups];
    let d_x = Parts::new(d_x);
    let rows = ROWS.div_ceil(c);
    pool.split(&mut moments, groups, rows, |first, moments| {
        let at = first * c..first * c + moments.len() / groups * c;
        // SAFETY: rows are divided among the calls.
        let d_x = unsafe { d_x.get(at.start, at.len()) };
        inputs(isa, d_x, moments, &x[at.clone()], weight, &d_y[at], n, eps);
    });
    let (d_weight, d_bias) = (Parts::new(d_weight), Parts::new(d_bias));
    by_channels(pool, (t, c), BLOCK.min(n), |at| {
        parameters(isa, at, [&d_weight, &d_bias], x, &moments, d_y, n);
    });
}

/// Numbers of a chunk of rows at least.
const ROWS: usize = 1 << 13;

compiled_for_each! {
    fn inputs<F: Real>(
        d_x: &mut [F],
        moments: &mut [[F; 2]],
        x: &[F],
        weight: &[F],
        d_y: &[F],
        n: usize,
        eps: F,
    ) = inputs_body
}

#[inline(always)]
fn inputs_body<F: Real>(
    d_x: &mut [F],
    moments: &mut [[F; 2]],
    x: &[F],
    weight: &[F],
    d_y: &[F],
    n: usize,
    eps: F,
) {
    const LANES: usize = crate::reduce::LANES;
    let scale = F::ONE / F::from_f64(n as f64);
    let groups = weight.len() / n;
    for (g, moments) in moments.iter_mut().enumerate() {
        let at = g * n..(g + 1) * n;
        let (x, d_y, d_x) = (&x[at.clone()], &d_y[at.clone()], &mut d_x[at]);
        let weight = &weight[g % groups * n..][..n];
        let mean = sum_of(x, |v| v) * scale;
        let variance = sum_of(x, |v| (v - mean) * (v - mean)) * scale;
        let inverse = F::ONE / (variance + eps).sqrt();
        *moments = [mean, inverse];
        // With x̂ the normalised number and e = d_y weight: d_x = (e - mean(e) - x̂ mean(e x̂)) / deviation.
        let (mut plain, mut along) = ([F::ZERO; LANES], [F::ZERO; LANES]);
        let whole = n / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            for l in 0..LANES {
                let e = d_y[at + l] * weight[at + l];
                plain[l] += e;
                along[l] = e.mul_add(x[at + l] - mean, along[l]);
            }
        }
        let (mut plain, mut along) = (fold(plain), fold(along));
        for j in whole..n {
            let e = d_y[j] * weight[j];
            plain += e;
            along = e.mul_add(x[j] - mean, along);
        }
        let (plain, along) = (plain * scale, along * scale * inverse * inverse);
        for j in 0..n {
            let e = d_y[j].mul_add(weight[j], -plain);
            d_x[j] = inverse * (mean - x[j]).mul_add(along, e);
        }
    }
}

compiled_for_each! {
    fn parameters<F: Real>(
        at: Channels,
        d: [&Parts<F>; 2],
        x: &[F],
        moments: &[[F; 2]],
        d_y: &[F],
        n: usize,
    ) = parameters_body
}

#[inline(always)]
fn parameters_body<F: Real>(
    at: Channels,
    [d_weight, d_bias]: [&Parts<F>; 2],
    x: &[F],
    moments: &[[F; 2]],
    d_y: &[F],
    n: usize,
) {
    // The block may begin within a group and reach into the next.
    let (mut weights, mut biases) = (Sums::new(), Sums::new());
    let groups = at.c / n;
    for (t, row) in at.rows().enumerate() {
        let (x, d_y) = (&x[row.clone()], &d_y[row]);
        let (weight, bias) = (weights.row(), biases.row());
        let mut j = 0;
        while j < at.len {
            let group = (at.first + j) / n;
            let end = ((group + 1) * n - at.first).min(at.len);
            let [mean, inverse] = moments[t * groups + group];
            for j in j..end {
                weight[j] = d_y[j].mul_add((x[j] - mean) * inverse, weight[j]);
                bias[j] += d_y[j];
            }
            j = end;
        }
    }
    // SAFETY: each block of channels is worked on once.
    weights.write(unsafe { d_weight.get(at.first, at.len) });
    // SAFETY: as above.
    biases.write(unsafe { d_bias.get(at.first, at.len) });
}

compiled_for_each! {
    /// Gradient of [`l2_normalize`](super::l2_normalize): all `[t, c]`, `n` divides c.
    pub fn l2_normalize_backward<F: Real>(d_x: &mut [F], x: &[F], d_y: &[F], n: usize) = l2_body
}

#[inline(always)]
fn l2_body<F: Real>(d_x: &mut [F], x: &[F], d_y: &[F], n: usize) {
    let least = F::from_f64(1e-12);
    for ((d_x, x), d_y) in d_x.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(d_y.chunks_exact(n)) {
        let length = sum_of(x, |v| v * v).sqrt();
        // Shorter than the least length, the divisor is constant.
        let (inverse, along) = match length > least {
            true => (F::ONE / length, dot(x, d_y) / (length * length)),
            false => (F::ONE / least, F::ZERO),
        };
        for j in 0..n {
            d_x[j] = (-along).mul_add(x[j], d_y[j]) * inverse;
        }
    }
}

#[cfg(test)]
mod tests;
