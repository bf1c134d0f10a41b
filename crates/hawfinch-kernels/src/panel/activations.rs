//! Activations in 8 bits, for products with quantised weights.

use std::marker::PhantomData;

use super::{BLOCK, GROUP, QUAD, tiled};
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::pool::Parts;
use crate::tiles;
use crate::{Isa, Pool, Work};

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
    halves: Vec<i32>,
    /// The same in the order of tiles, where these are used.
    tiled: tiled::Tokens,
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
    /// `[blocks, 2, width]`: -32 Σ q over each half of a block, which stands for zero where codes are those of Q6_K.
    pub halves: &'a [i32],
}

/// What stands for zero in Q6_K's codes.
const SIX_ZERO: i32 = 32;

impl Activations {
    /// Quantises `x` `[t, i]`, padding each row with zeros to `blocks` blocks.
    pub fn quantize(&mut self, isa: Isa, pool: &Pool, x: &[f32], i: usize, blocks: usize) {
        pool.run_all(&[self.of(isa, x, i, blocks)]);
    }

    /// [`Activations::quantize`] as work to be done.
    pub fn of<'a>(&'a mut self, isa: Isa, x: &'a [f32], i: usize, blocks: usize) -> Quantizing<'a> {
        let tokens = x.len() / i;
        (self.tokens, self.blocks) = (tokens, blocks);
        // Every number is overwritten by the work.
        self.quads.resize(tokens * blocks * BLOCK / QUAD, [0; QUAD]);
        self.scales.resize(tokens * blocks, 0.0);
        self.sums.resize(tokens * blocks, 0);
        self.halves.resize(2 * tokens * blocks, 0);
        let (quads, scales) = (Parts::new(&mut self.quads), Parts::new(&mut self.scales));
        let (sums, halves) = (Parts::new(&mut self.sums), Parts::new(&mut self.halves));
        self.tiled.resize(isa, tokens, blocks);
        let tiled = (!self.tiled.is_empty()).then(|| {
            let tiled = &mut self.tiled;
            (Parts::new(&mut tiled.codes), Parts::new(&mut tiled.scales), Parts::new(&mut tiled.offsets))
        });
        Quantizing { isa, x, i, tokens, blocks, quads, scales, sums, halves, tiled, borrowed: PhantomData }
    }

    /// How many tokens they are, and they in the order of tiles, if this instruction set has any and they are many.
    pub(super) fn tiled(&self, isa: Isa) -> Option<(usize, &tiled::Tokens)> {
        (isa.has_tiles() && !self.tiled.is_empty()).then_some((self.tokens, &self.tiled))
    }

    /// Whether it holds so many tokens of so many blocks.
    pub(super) fn is_for(&self, tokens: usize, blocks: usize) -> bool {
        (self.tokens, self.blocks) == (tokens, blocks)
    }

    /// The groups.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        (0..self.tokens.div_ceil(GROUP)).map(|n| self.group(n))
    }

    /// Group `n`.
    pub fn group(&self, n: usize) -> Group<'_> {
        let first = n * GROUP;
        let width = GROUP.min(self.tokens - first);
        let (at, n) = (first * self.blocks, width * self.blocks);
        let per = BLOCK / QUAD;
        Group {
            first,
            width,
            quads: &self.quads[at * per..(at + n) * per],
            scales: &self.scales[at..at + n],
            sums: &self.sums[at..at + n],
            halves: &self.halves[2 * at..2 * (at + n)],
        }
    }
}

/// Rows to be quantised: a chunk is a group of tokens.
pub struct Quantizing<'a> {
    isa: Isa,
    x: &'a [f32],
    i: usize,
    tokens: usize,
    blocks: usize,
    quads: Parts<[i8; QUAD]>,
    scales: Parts<f32>,
    sums: Parts<i32>,
    halves: Parts<i32>,
    tiled: Option<(Parts<tiles::Row>, Parts<f32>, Parts<f32>)>,
    borrowed: PhantomData<&'a mut Activations>,
}

impl Work for Quantizing<'_> {
    fn chunks(&self) -> usize {
        self.tokens.div_ceil(GROUP)
    }

    unsafe fn chunk(&self, group: usize) {
        let (i, blocks, first) = (self.i, self.blocks, group * GROUP);
        let width = GROUP.min(self.tokens - first);
        // SAFETY: each group has parts of its own.
        let mut to = unsafe {
            Rounded {
                width,
                quads: self.quads.get(first * blocks * BLOCK / QUAD, width * blocks * BLOCK / QUAD),
                scales: self.scales.get(first * blocks, width * blocks),
                sums: self.sums.get(first * blocks, width * blocks),
                halves: self.halves.get(2 * first * blocks, 2 * width * blocks),
            }
        };
        for (t, x) in self.x[first * i..(first + width) * i].chunks_exact(i).enumerate() {
            row(self.isa, x, t, &mut to);
        }
        let Rounded { quads, scales, sums, .. } = to;
        let Some((codes, tiled_scales, offsets)) = &self.tiled else { return };
        for (b, quads) in quads.chunks_exact(BLOCK / QUAD * width).enumerate() {
            for t in 0..width {
                let (at, n) = (tiled::place(first + t, b, blocks), b * width + t);
                // SAFETY: each token has places of its own.
                let row = unsafe { codes.get(at, 1) };
                for (to, quads) in
                    row[0].0.as_chunks_mut::<QUAD>().0.iter_mut().zip(quads.chunks_exact(width))
                {
                    *to = quads[t];
                }
                // SAFETY: as above.
                unsafe {
                    tiled_scales.set(at, scales[n]);
                    offsets.set(at, scales[n] * sums[n] as f32);
                }
            }
        }
    }
}

/// A [`Group`] being made.
struct Rounded<'a> {
    width: usize,
    quads: &'a mut [[i8; QUAD]],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    halves: &'a mut [i32],
}

/// Token `t` of a group.
fn row(isa: Isa, x: &[f32], t: usize, to: &mut Rounded<'_>) {
    #[cfg(target_arch = "x86_64")]
    if isa.level() >= Level::Avx2 {
        // SAFETY: an Isa exists only where the machine has the instructions.
        return unsafe { row_avx2(x, t, to) };
    }
    let _ = isa;
    row_body(x, t, to, block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn row_avx2(x: &[f32], t: usize, to: &mut Rounded<'_>) {
    row_body(x, t, to, |x| block_avx2(x));
}

#[inline(always)]
fn row_body(
    x: &[f32],
    t: usize,
    to: &mut Rounded<'_>,
    block: impl Fn(&[f32; BLOCK]) -> (f32, [i32; 2], [i8; BLOCK]),
) {
    let width = to.width;
    let quads = to.quads.chunks_exact_mut(BLOCK / QUAD * width);
    let sums = to.sums.chunks_exact_mut(width).zip(to.halves.chunks_exact_mut(2 * width));
    let outs = quads.zip(to.scales.chunks_exact_mut(width)).zip(sums);
    for (b, ((quads, scales), (sums, halves))) in outs.enumerate() {
        let x = &x[(b * BLOCK).min(x.len())..];
        let (q, of_halves);
        (scales[t], of_halves, q) = match x.first_chunk() {
            Some(x) => block(x),
            None => {
                let mut padded = [0f32; BLOCK];
                padded[..x.len()].copy_from_slice(x);
                block(&padded)
            }
        };
        sums[t] = of_halves[0].wrapping_add(of_halves[1]);
        halves[t] = of_halves[0].wrapping_mul(-SIX_ZERO);
        halves[width + t] = of_halves[1].wrapping_mul(-SIX_ZERO);
        for (quads, q) in quads.chunks_exact_mut(width).zip(q.as_chunks::<QUAD>().0) {
            quads[t] = *q;
        }
    }
}

/// [`block`] in wide registers: the same operations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn block_avx2(x: &[f32; BLOCK]) -> (f32, [i32; 2], [i8; BLOCK]) {
    use std::arch::x86_64::*;
    let sign = _mm256_set1_ps(-0.0);
    let (mut lanes, mut poison) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let mut v = [_mm256_setzero_ps(); 4];
    for n in 0..4 {
        // SAFETY: eight of 32 numbers.
        v[n] = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * n)) };
        // The second operand, when the first is NaN.
        lanes = _mm256_max_ps(_mm256_andnot_ps(sign, v[n]), lanes);
        poison = _mm256_add_ps(poison, _mm256_mul_ps(v[n], _mm256_setzero_ps()));
    }
    let (mut eight, mut nothing) = ([0f32; 8], [0f32; 8]);
    // SAFETY: eight numbers each.
    unsafe {
        _mm256_storeu_ps(eight.as_mut_ptr(), lanes);
        _mm256_storeu_ps(nothing.as_mut_ptr(), poison);
    }
    let (scale, inverse) = scales(&eight, &nothing);
    let by = _mm256_set1_ps(inverse);
    // To the nearest, ties to even: the mode every program starts in.
    let codes = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, by)));
    // Sums of pairs of each half in turn, then of fours: (first, second) in each 64 bits.
    let pairs = _mm256_hadd_epi32(_mm256_add_epi32(codes[0], codes[1]), _mm256_add_epi32(codes[2], codes[3]));
    let fours = _mm256_hadd_epi32(pairs, pairs);
    let sums = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
    let sums = [_mm_extract_epi32::<0>(sums), _mm_extract_epi32::<1>(sums)];
    let bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]), _mm256_packs_epi32(codes[2], codes[3]));
    // Packing works within halves: fours of codes lie in the order 0 2 4 6 1 3 5 7.
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    let mut q = [0i8; BLOCK];
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes) };
    (scale, sums, q)
}

/// Scale and inverse step of a block, from the largest sizes and what NaN and infinity leave behind.
#[inline(always)]
fn scales(largest: &[f32; 8], poison: &[f32; 8]) -> (f32, f32) {
    let largest = largest.iter().fold(0f32, |a, &b| if b > a { b } else { a });
    let poison: f32 = poison.iter().sum();
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    (largest * (1.0 / 127.0) + poison, inverse)
}

/// Scale, sum of codes of each half, and codes of 32 numbers, rounded to the nearest (even) code. NaN or infinity makes the scale
/// NaN.
fn block(x: &[f32; BLOCK]) -> (f32, [i32; 2], [i8; BLOCK]) {
    let mut lanes = [0f32; 8];
    let mut poison = [0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for l in 0..8 {
            let size = x[l].abs();
            lanes[l] = if size > lanes[l] { size } else { lanes[l] };
            poison[l] += x[l] * 0.0;
        }
    }
    let (scale, inverse) = scales(&lanes, &poison);
    // Within -127..=127 but for NaN, which the scale carries.
    let q = x.map(|x| (x * inverse).round_ties_even() as i32 as i8);
    let sum = |half: &[i8]| half.iter().map(|&q| i32::from(q)).sum();
    (scale, [sum(&q[..BLOCK / 2]), sum(&q[BLOCK / 2..])], q)
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
            let sum = |quads: &[[i8; 4]]| quads.as_flattened().iter().map(|&q| i32::from(q)).sum::<i32>();
            assert_eq!(g.sums, [sum(&g.quads[..8]), sum(&g.quads[8..])]);
            assert_eq!(g.halves, [0, 4, 8, 12].map(|at| -32 * sum(&g.quads[at..at + 4])));
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
