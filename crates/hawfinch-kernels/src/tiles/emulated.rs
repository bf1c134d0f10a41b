//! What tiles compute, in portable code: the meaning of `amx.rs`.
//!
//! bf16, as Intel describes `TDPBF16PS`: in a product of two tiles, the even inputs of an output are one chain of fused
//! multiply-adds from zero, the odd ones another; their sum is added to the total. To the nearest, ties to even;
//! numbers below 2^-126 count as zero, operands and results.

use super::{Beside, OutputCodes, SIDE, STEP, Sums, Tile, Tiles, TokenCodes, Totals};

/// Portable code in place of tiles.
pub struct Emulated;

impl Tiles for Emulated {
    fn blocks(&self, sums: &mut [Sums; STEP], x: &[TokenCodes; STEP], w: &[OutputCodes; STEP]) {
        for ((sums, x), w) in sums.iter_mut().zip(x).zip(w) {
            *sums = Sums([[0; SIDE]; SIDE]);
            for (sums, x) in sums.0.iter_mut().zip(x) {
                for (w, x) in w.0.iter().zip(x.0.as_chunks::<4>().0) {
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum += w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum::<i32>();
                    }
                }
            }
        }
    }

    fn bf16(&self, totals: &mut [[Totals; 2]; 2], x: [&[Tile]; 2], w: [&[Tile]; 2], parts: usize) {
        assert!(x.iter().all(|x| x.len() == w[0].len() * parts) && w[0].len() == w[1].len());
        for (totals, x) in totals.iter_mut().zip(x) {
            for (totals, w) in totals.iter_mut().zip(w) {
                for (x, w) in x.chunks_exact(parts).zip(w) {
                    x.iter().for_each(|x| product(totals, x, &w.0));
                }
            }
        }
    }

    fn bf16_beside(&self, totals: &mut [[Totals; 2]; 2], x: [&[Tile]; 2], w: &[Beside]) {
        assert!(x.iter().all(|x| x.len() == w.len()));
        for (totals, x) in totals.iter_mut().zip(x) {
            for (n, totals) in totals.iter_mut().enumerate() {
                for (x, w) in x.iter().zip(w) {
                    product(totals, x, &w.map(|row| row[n]));
                }
            }
        }
    }

    fn int8(&self, sums: &mut [[Sums; 2]; 2], x: [&[Tile]; 2], w: [&[Tile]; 2]) {
        assert!(x.iter().chain(&w).all(|t| t.len() == w[0].len()));
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sums, w) in sums.iter_mut().zip(w) {
                for (x, w) in x.iter().zip(w) {
                    for (sums, x) in sums.0.iter_mut().zip(&x.0) {
                        for (x, w) in x.as_chunks::<4>().0.iter().zip(&w.0) {
                            for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
                                let products =
                                    x.iter().zip(w).map(|(&x, &w)| i32::from(x as i8) * i32::from(w as i8));
                                *sum = sum.wrapping_add(products.sum());
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `totals += x w`.
fn product(totals: &mut Totals, x: &Tile, w: &[[u8; 64]; SIDE]) {
    for (totals, x) in totals.0.iter_mut().zip(&x.0) {
        let mut chains = [[0f32; 2]; SIDE];
        for (x, w) in x.as_chunks::<4>().0.iter().zip(w) {
            for (chains, w) in chains.iter_mut().zip(w.as_chunks::<4>().0) {
                for n in 0..2 {
                    let number = |b: &[u8; 4]| {
                        flushed(f32::from_bits(u32::from_le_bytes([0, 0, b[2 * n], b[2 * n + 1]])))
                    };
                    chains[n] = flushed(number(x).mul_add(number(w), chains[n]));
                }
            }
        }
        for (total, [even, odd]) in totals.iter_mut().zip(chains) {
            *total = flushed(*total + flushed(even + odd));
        }
    }
}

/// Zero in place of numbers too small to be normal.
fn flushed(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}
