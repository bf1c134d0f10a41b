//! Matrix products with weights in any stored format: `y = W x` for one token or many, by the same
//! arithmetic, so that a token's result does not depend on its neighbours.

use crate::{DType, Real, block, parallel};

/// How a weight's bytes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Rows are outputs: `[o, i]`. Linear weights of checkpoints.
    OutIn,
    /// Rows are inputs: `[i, o]`. Low-rank weights, applied as `x @ W`.
    InOut,
}

/// A borrowed weight matrix in its stored format.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Number format.
    pub dtype: DType,
    /// o
    pub outputs: usize,
    /// i
    pub inputs: usize,
    /// Order of the bytes.
    pub layout: Layout,
    /// Factor on every number.
    pub scale: f32,
    /// The bytes; no alignment is asked for.
    pub data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Numbers in one stored row.
    fn row_len(&self) -> usize {
        match self.layout {
            Layout::OutIn => self.inputs,
            Layout::InOut => self.outputs,
        }
    }

    /// Bytes of stored row `row`.
    fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.dtype.bytes_for(self.row_len()).expect("a row is whole blocks");
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Decodes stored row `row` into `out` (`row_len` numbers); `narrow` is scratch.
    #[inline(always)]
    fn decode_row<F: Real>(&self, row: usize, out: &mut [F], narrow: &mut Vec<f32>) {
        let bytes = self.row(row);
        if self.dtype == DType::F64 {
            let values = bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
            out.iter_mut().zip(values).for_each(|(o, v)| *o = F::from_f64(v));
        } else if let Some(out32) = F::as_f32_slice(out) {
            block::decode(self.dtype, bytes, out32);
        } else {
            narrow.resize(out.len(), 0.0);
            block::decode(self.dtype, bytes, narrow);
            out.iter_mut().zip(narrow).for_each(|(o, v)| *o = F::from_f32(*v));
        }
    }
}

/// Independent partial sums of a dot product. Part of its meaning: the order of additions.
const LANES: usize = 16;

/// Sum of products in `LANES` interleaved partial sums, then those pairwise, then the tail in order.
#[inline(always)]
pub fn dot<F: Real>(a: &[F], b: &[F]) -> F {
    let mut acc = [F::ZERO; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (x, y) in ca.zip(cb) {
        for l in 0..LANES {
            acc[l] += x[l] * y[l];
        }
    }
    finish(acc, ra, rb)
}

#[inline(always)]
fn finish<F: Real>(mut acc: [F; LANES], ra: &[F], rb: &[F]) -> F {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            let other = acc[l + width];
            acc[l] += other;
        }
        width /= 2;
    }
    let mut sum = acc[0];
    for (x, y) in ra.iter().zip(rb) {
        sum += *x * *y;
    }
    sum
}

/// Tokens whose dot products with one row run together: the row is read once for all of them.
const TOKENS: usize = 4;

/// [`dot`] of one row with four others, each with exactly `dot`'s order of additions.
#[inline(always)]
fn dot4<F: Real>(w: &[F], x: [&[F]; TOKENS]) -> [F; TOKENS] {
    let n = w.len() / LANES * LANES;
    let mut acc = [[F::ZERO; LANES]; TOKENS];
    let [x0, x1, x2, x3] = x.map(|x| &x[..w.len()]);
    for at in (0..n).step_by(LANES) {
        let wc = &w[at..at + LANES];
        let (c0, c1, c2, c3) =
            (&x0[at..at + LANES], &x1[at..at + LANES], &x2[at..at + LANES], &x3[at..at + LANES]);
        for l in 0..LANES {
            acc[0][l] += wc[l] * c0[l];
            acc[1][l] += wc[l] * c1[l];
            acc[2][l] += wc[l] * c2[l];
            acc[3][l] += wc[l] * c3[l];
        }
    }
    [
        finish(acc[0], &w[n..], &x0[n..]),
        finish(acc[1], &w[n..], &x1[n..]),
        finish(acc[2], &w[n..], &x2[n..]),
        finish(acc[3], &w[n..], &x3[n..]),
    ]
}

/// y = x Wᵀ (layout `OutIn`) or x W (layout `InOut`), times the scale.
///
/// * `y`: `[t, o]`, overwritten
/// * `x`: `[t, i]`
///
/// Each output is one dot product over `i` in a fixed order, whatever `t` and `threads` are.
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear<F: Real>(y: &mut [F], x: &[F], w: Matrix<'_>, threads: usize) {
    let (o, i) = (w.outputs, w.inputs);
    if o == 0 || i == 0 {
        y.fill(F::ZERO);
        return;
    }
    let t = x.len() / i;
    assert!(x.len() == t * i && y.len() == t * o, "linear: x {} y {} for [{o}, {i}]", x.len(), y.len());
    match w.layout {
        Layout::OutIn if t == 1 => {
            parallel::split(y, 1, threads_for(threads, t, o, i), |first, y| rows(y, x, w, first, 1));
        }
        Layout::OutIn => {
            // Each thread fills whole rows of the transposed result.
            let mut yt = vec![F::ZERO; t * o];
            parallel::split(&mut yt, t, threads_for(threads, t, o, i), |first, y| rows(y, x, w, first, t));
            for (j, row) in yt.chunks_exact(t).enumerate() {
                for (s, v) in row.iter().enumerate() {
                    y[s * o + j] = *v;
                }
            }
        }
        // Turning a weight costs about as much as using it for a few tokens.
        Layout::InOut if t >= LANES && w.dtype != DType::F64 => {
            let turned = turned(w);
            linear(y, x, Matrix { dtype: DType::F32, layout: Layout::OutIn, data: &turned, ..w }, threads);
        }
        Layout::InOut => {
            parallel::split(y, o, threads_for(threads, t, o, i).min(t), |first, y| {
                let tokens = y.len() / o;
                accumulate_rows(y, &x[first * i..(first + tokens) * i], w);
            });
        }
    }
}

/// Stored rows decoded together, so that a block of tokens is read from near memory for each of them.
const ROWS: usize = 8;

/// Outputs `first…` of every token: `y` is `[rows, t]`.
fn rows<F: Real>(y: &mut [F], x: &[F], w: Matrix<'_>, first: usize, t: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        return unsafe { rows_avx2(y, x, w, first, t) };
    }
    rows_portable(y, x, w, first, t);
}

/// The same code, compiled for wider registers: the same operations in the same order, the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rows_avx2<F: Real>(y: &mut [F], x: &[F], w: Matrix<'_>, first: usize, t: usize) {
    rows_portable(y, x, w, first, t);
}

#[inline(always)]
fn rows_portable<F: Real>(y: &mut [F], x: &[F], w: Matrix<'_>, first: usize, t: usize) {
    let i = w.inputs;
    let mut block = vec![F::ZERO; ROWS.min(y.len() / t) * i];
    let mut narrow = Vec::new();
    let scale = F::from_f32(w.scale);
    for (n, y) in y.chunks_mut(ROWS * t).enumerate() {
        let block = &mut block[..y.len() / t * i];
        for (j, row) in block.chunks_exact_mut(i).enumerate() {
            w.decode_row(first + n * ROWS + j, row, &mut narrow);
        }
        let mut s = 0;
        while s + TOKENS <= t {
            let at = |n: usize| &x[(s + n) * i..(s + n + 1) * i];
            let tokens = [at(0), at(1), at(2), at(3)];
            for (row, y) in block.chunks_exact(i).zip(y.chunks_exact_mut(t)) {
                y[s..s + TOKENS].copy_from_slice(&dot4(row, tokens));
            }
            s += TOKENS;
        }
        for s in s..t {
            // Few tokens: several rows with one token, which is the same sum of the same products.
            let x = &x[s * i..(s + 1) * i];
            let mut j = 0;
            while (j + TOKENS) * i <= block.len() {
                let at = |n: usize| &block[(j + n) * i..(j + n + 1) * i];
                let out = dot4(x, [at(0), at(1), at(2), at(3)]);
                out.iter().enumerate().for_each(|(n, v)| y[(j + n) * t + s] = *v);
                j += TOKENS;
            }
            for (row, y) in block.chunks_exact(i).zip(y.chunks_exact_mut(t)).skip(j) {
                y[s] = dot(row, x);
            }
        }
        if w.scale != 1.0 {
            y.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// The numbers of a matrix of layout `InOut` as f32 bytes in layout `OutIn`.
fn turned(w: Matrix<'_>) -> Vec<u8> {
    let (o, i) = (w.outputs, w.inputs);
    let mut out = vec![0u8; 4 * o * i];
    let mut rows = vec![0f32; LANES * o]; // so many inputs at a time: what is written stays near
    for first in (0..i).step_by(LANES) {
        let n = LANES.min(i - first);
        for (k, row) in rows.chunks_exact_mut(o).take(n).enumerate() {
            block::decode(w.dtype, w.row(first + k), row);
        }
        for j in 0..o {
            let out = &mut out[4 * (j * i + first)..][..4 * n];
            for (k, out) in out.chunks_exact_mut(4).enumerate() {
                out.copy_from_slice(&rows[k * o + j].to_le_bytes());
            }
        }
    }
    out
}

/// y = x W with W's rows as inputs, for few tokens: every output is added up in exactly [`dot`]'s order, so
/// that a weight gives the same bits in either layout.
fn accumulate_rows<F: Real>(y: &mut [F], x: &[F], w: Matrix<'_>) {
    let (o, i) = (w.outputs, w.inputs);
    let whole = i / LANES * LANES;
    let mut row = vec![F::ZERO; o];
    let mut narrow = Vec::new();
    let mut sums = vec![F::ZERO; y.len() * LANES]; // [token, lane, output]
    for k in 0..whole {
        w.decode_row(k, &mut row, &mut narrow);
        for (sums, x) in sums.chunks_exact_mut(LANES * o).zip(x.chunks_exact(i)) {
            add_scaled_row(&mut sums[k % LANES * o..][..o], &row, x[k]);
        }
    }
    for (sums, y) in sums.chunks_exact_mut(LANES * o).zip(y.chunks_exact_mut(o)) {
        let mut width = LANES / 2;
        while width > 0 {
            let (low, high) = sums.split_at_mut(width * o);
            low.iter_mut().zip(&*high).for_each(|(a, &b)| *a += b);
            width /= 2;
        }
        y.copy_from_slice(&sums[..o]);
    }
    for k in whole..i {
        w.decode_row(k, &mut row, &mut narrow);
        for (y, x) in y.chunks_exact_mut(o).zip(x.chunks_exact(i)) {
            add_scaled_row(y, &row, x[k]);
        }
    }
    if w.scale != 1.0 {
        y.iter_mut().for_each(|v| *v *= F::from_f32(w.scale));
    }
}

/// sums += row * factor
fn add_scaled_row<F: Real>(sums: &mut [F], row: &[F], factor: F) {
    sums.iter_mut().zip(row).for_each(|(s, &w)| *s += w * factor);
}

/// Starting a thread costs tens of microseconds: only products of over a million terms are divided.
fn threads_for(threads: usize, t: usize, o: usize, i: usize) -> usize {
    let terms = t.saturating_mul(o).saturating_mul(i);
    threads.min(terms / (1 << 19)).max(1)
}

/// Rows of an embedding table: `out` `[t, c]`, table `[v, c]` in layout `OutIn`.
///
/// # Panics
/// When a token is outside the table (callers check ids first).
pub fn embedding<F: Real>(out: &mut [F], tokens: &[u32], table: Matrix<'_>) {
    assert!(table.layout == Layout::OutIn);
    let mut narrow = Vec::new();
    let scale = F::from_f32(table.scale);
    for (o, &id) in out.chunks_exact_mut(table.inputs).zip(tokens) {
        table.decode_row(id as usize, o, &mut narrow);
        if table.scale != 1.0 {
            o.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                (s >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Plain sums in f64, against both layouts, both number types, with and without neighbours.
    #[test]
    fn equals_the_plain_sum_and_ignores_neighbours() {
        for (t, o, i) in [(1, 3, 5), (7, 33, 100), (4, 16, 64), (9, 1, 1), (2, 5, 1024)] {
            let (x, w) = (values(t * i, 1), values(o * i, 2));
            let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
            for layout in [Layout::OutIn, Layout::InOut] {
                let m = Matrix { dtype: DType::F32, outputs: o, inputs: i, layout, scale: 2.0, data: &bytes };
                let mut y = vec![0f32; t * o];
                linear(&mut y, &x, m, 2);
                let x64: Vec<f64> = x.iter().map(|&v| v.into()).collect();
                let mut y64 = vec![0f64; t * o];
                linear(&mut y64, &x64, m, 1);
                for s in 0..t {
                    for j in 0..o {
                        let at = |k: usize| if layout == Layout::OutIn { j * i + k } else { k * o + j };
                        let want: f64 = (0..i).map(|k| 2.0 * x64[s * i + k] * f64::from(w[at(k)])).sum();
                        assert!((y64[s * o + j] - want).abs() < 1e-11, "{layout:?}");
                        assert!((f64::from(y[s * o + j]) - want).abs() < 1e-4, "{layout:?}");
                    }
                    let mut alone = vec![0f32; o];
                    linear(&mut alone, &x[s * i..(s + 1) * i], m, 1);
                    assert_eq!(alone, y[s * o..(s + 1) * o], "one token alone gives the same bits");
                }
            }
        }
    }

    /// What the machine's widest compiled form gives is what the portable form gives.
    #[test]
    fn wider_registers_do_not_change_a_bit() {
        for (t, o, i) in [(1, 19, 130), (7, 9, 64), (4, 3, 15)] {
            let (x, w) = (values(t * i, 7), values(o * i, 8));
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let mut data = Vec::new();
                assert!(block::encode(dtype, &w, &mut data));
                let m =
                    Matrix { dtype, outputs: o, inputs: i, layout: Layout::OutIn, scale: 0.5, data: &data };
                let (mut a, mut b) = (vec![0f32; t * o], vec![0f32; t * o]);
                rows(&mut a, &x, m, 0, t);
                rows_portable(&mut b, &x, m, 0, t);
                assert_eq!(a, b);
            }
        }
    }

    #[test]
    fn both_layouts_give_the_same_bits() {
        for (t, o, i) in [(1, 7, 40), (35, 10, 33), (16, 3, 64), (2, 5, 3)] {
            let (x, w) = (values(t * i, 5), values(o * i, 6));
            let turned: Vec<f32> = (0..i * o).map(|n| w[n % o * i + n / o]).collect();
            let run = |w: &[f32], layout| {
                let data: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
                let m = Matrix { dtype: DType::F32, outputs: o, inputs: i, layout, scale: 0.5, data: &data };
                let mut y = vec![0f32; t * o];
                linear(&mut y, &x, m, 1);
                y
            };
            assert_eq!(run(&w, Layout::OutIn), run(&turned, Layout::InOut), "{t} {o} {i}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (t, o, i) = (5, 700, 900);
        let (x, w) = (values(t * i, 3), values(o * i, 4));
        let bytes: Vec<u8> = w.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let m = Matrix {
            dtype: DType::BF16,
            outputs: o,
            inputs: i,
            layout: Layout::OutIn,
            scale: 1.0,
            data: &bytes,
        };
        let (mut a, mut b) = (vec![0f32; t * o], vec![0f32; t * o]);
        linear(&mut a, &x, m, 1);
        linear(&mut b, &x, m, 3);
        assert_eq!(a, b);
    }
}
