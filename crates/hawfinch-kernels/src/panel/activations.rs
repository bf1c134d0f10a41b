//! Activations in 8 bits, for products with quantised weights.

use super::{BLOCK, GROUP, QUAD};
use crate::isa::compiled_for_each;
use crate::{Isa, Pool};

/// Rows of activations quantised in blocks of 32: `x ≈ scale q`, `q` in -127..=127.
///
/// Tokens lie in groups of up to [`GROUP`], in a group interleaved as the kernels broadcast them: for every four
/// inputs the four bytes of each token, for every block the scale (the sum) of each token.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    blocks: usize,
    quads: Vec<[i8; QUAD]>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// One group of tokens.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    /// The first token.
    pub first: usize,
    /// Tokens.
    pub width: usize,
    /// `[blocks * 8, width]`: four inputs of a token.
    pub quads: &'a [[i8; QUAD]],
    /// `[blocks, width]`
    pub scales: &'a [f32],
    /// `[blocks, width]`: Σ q
    pub sums: &'a [i32],
}

/// Tokens that one chunk of work quantises.
const CHUNK: usize = GROUP;

impl Activations {
    /// Quantises `x` `[t, i]`, padding each row with zeros to `blocks` blocks.
    pub fn quantize(&mut self, isa: Isa, pool: &Pool, x: &[f32], i: usize, blocks: usize) {
        let tokens = x.len() / i;
        (self.tokens, self.blocks) = (tokens, blocks);
        // Every number is overwritten below.
        self.quads.resize(tokens * blocks * BLOCK / QUAD, [0; QUAD]);
        self.scales.resize(tokens * blocks, 0.0);
        self.sums.resize(tokens * blocks, 0);
        use crate::pool::Parts;
        let (quads, scales, sums) =
            (Parts::new(&mut self.quads), Parts::new(&mut self.scales), Parts::new(&mut self.sums));
        pool.run(tokens.div_ceil(CHUNK), &|group| {
            let first = group * CHUNK;
            let width = CHUNK.min(tokens - first);
            // SAFETY: each group has parts of its own.
            let (quads, scales, sums) = unsafe {
                (
                    quads.get(first * blocks * BLOCK / QUAD, width * blocks * BLOCK / QUAD),
                    scales.get(first * blocks, width * blocks),
                    sums.get(first * blocks, width * blocks),
                )
            };
            for (t, x) in x[first * i..(first + width) * i].chunks_exact(i).enumerate() {
                row(isa, x, t, width, quads, scales, sums);
            }
        });
    }

    /// The groups.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        (0..self.tokens).step_by(GROUP).map(|first| {
            let width = GROUP.min(self.tokens - first);
            let (at, n) = (first * self.blocks, width * self.blocks);
            let per = BLOCK / QUAD;
            Group {
                first,
                width,
                quads: &self.quads[at * per..(at + n) * per],
                scales: &self.scales[at..at + n],
                sums: &self.sums[at..at + n],
            }
        })
    }
}

compiled_for_each! {
    /// Token `t` of a group of `width`.
    fn row(
        x: &[f32],
        t: usize,
        width: usize,
        quads: &mut [[i8; QUAD]],
        scales: &mut [f32],
        sums: &mut [i32],
    ) = row_body
}

#[inline(always)]
fn row_body(
    x: &[f32],
    t: usize,
    width: usize,
    quads: &mut [[i8; QUAD]],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    for b in 0..scales.len() / width {
        let mut values = [0f32; BLOCK];
        let at = (b * BLOCK).min(x.len());
        let n = BLOCK.min(x.len() - at);
        if n == BLOCK {
            values.copy_from_slice(&x[at..at + BLOCK]);
        } else {
            values[..n].copy_from_slice(&x[at..at + n]);
        }
        let (scale, q) = block(&values);
        scales[b * width + t] = scale;
        sums[b * width + t] = q.iter().map(|&q| i32::from(q)).sum();
        let quads = &mut quads[b * BLOCK / QUAD * width..];
        for (n, q) in q.as_chunks::<QUAD>().0.iter().enumerate() {
            quads[n * width + t] = *q;
        }
    }
}

/// Scale and codes of 32 numbers, rounded to the nearest (even) code. NaN or infinity makes the scale NaN.
#[inline(always)]
fn block(x: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
    let mut lanes = [0f32; 8];
    let mut poison = [0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for l in 0..8 {
            let size = x[l].abs();
            lanes[l] = if size > lanes[l] { size } else { lanes[l] };
            poison[l] += x[l] * 0.0;
        }
    }
    let largest = lanes.iter().fold(0f32, |a, &b| if b > a { b } else { a });
    let poison: f32 = poison.iter().sum();
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut q = [0i8; BLOCK];
    for j in 0..BLOCK {
        // Within -127..=127 but for NaN, which the scale carries.
        q[j] = (x[j] * inverse).round_ties_even() as i32 as i8;
    }
    (largest * (1.0 / 127.0) + poison, q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_near_and_damage_shows() {
        let mut x = [0f32; 40];
        (0..40).for_each(|j| x[j] = (j as f32 - 11.5) * 0.3);
        for isa in Isa::available() {
            let mut a = Activations::default();
            a.quantize(isa, &Pool::new(1), &x, 40, 2);
            let g = a.groups().next().unwrap();
            for (j, &v) in x.iter().enumerate() {
                let got = g.scales[j / 32] * f32::from(g.quads[j / 4][j % 4]);
                assert!((got - v).abs() <= g.scales[j / 32] * 0.51, "{isa} {j}");
            }
            assert!(g.quads[10..].iter().all(|q| *q == [0; 4]), "padding");
            let mut bad = x;
            bad[35] = f32::NAN;
            a.quantize(isa, &Pool::new(1), &bad, 40, 2);
            let g = a.groups().next().unwrap();
            assert!(g.scales[0].is_finite() && g.scales[1].is_nan());
            a.quantize(isa, &Pool::new(1), &[0.0; 40], 40, 2);
            assert_eq!(a.groups().next().unwrap().scales, [0.0, 0.0]);
        }
    }
}
