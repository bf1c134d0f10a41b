//! ggml's first block formats, 32 numbers a block: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Layout of a block, all little-endian (`d` scale, `m` minimum, both f16; `q` codes):
//!
//! | format | bytes | value of code `q` |
//! |---|---|---|
//! | Q4_0 | `d`, 16 × nibbles | `d · (q − 8)` |
//! | Q4_1 | `d`, `m`, 16 × nibbles | `d · q + m` |
//! | Q5_0 | `d`, u32 of fifth bits, 16 × nibbles | `d · (q − 16)` |
//! | Q5_1 | `d`, `m`, u32 of fifth bits, 16 × nibbles | `d · q + m` |
//! | Q8_0 | `d`, 32 × i8 | `d · q` |
//!
//! Nibble byte `j` holds number `j` (low) and `j + 16` (high); bit `j` of the fifth bits belongs to
//! number `j`. Encoding follows ggml's reference quantisers, byte for byte.

use half::f16;

use crate::DType;

/// Numbers in a block.
const LEN: usize = 32;
const HALF: usize = LEN / 2;

#[inline(always)]
fn read_f16(b: &[u8]) -> f32 {
    super::widen_f16(u16::from_le_bytes([b[0], b[1]]))
}

/// Decodes whole blocks; `out` is 32 numbers for each block of `bytes`. Inlined, as all that it calls, so that it is
/// compiled for the instruction set of its caller.
#[inline(always)]
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    let outs = out.as_chunks_mut::<LEN>().0.iter_mut();
    match dtype {
        DType::Q4_0 => {
            for (b, o) in blocks.zip(outs) {
                let d = read_f16(b);
                let q = nibbles(&b[2..]);
                for j in 0..LEN {
                    o[j] = d * (i32::from(q[j]) - 8) as f32;
                }
            }
        }
        DType::Q4_1 => {
            for (b, o) in blocks.zip(outs) {
                let (d, m) = (read_f16(b), read_f16(&b[2..]));
                let q = nibbles(&b[4..]);
                for j in 0..LEN {
                    o[j] = d * f32::from(q[j]) + m;
                }
            }
        }
        DType::Q5_0 => {
            for (b, o) in blocks.zip(outs) {
                let d = read_f16(b);
                let q = five_bits(&b[2..]);
                for j in 0..LEN {
                    o[j] = d * (i32::from(q[j]) - 16) as f32;
                }
            }
        }
        DType::Q5_1 => {
            for (b, o) in blocks.zip(outs) {
                let (d, m) = (read_f16(b), read_f16(&b[2..]));
                let q = five_bits(&b[4..]);
                for j in 0..LEN {
                    o[j] = d * f32::from(q[j]) + m;
                }
            }
        }
        DType::Q8_0 => {
            for (b, o) in blocks.zip(outs) {
                let d = read_f16(b);
                let q: &[u8; LEN] = b[2..].as_array().expect("34 bytes a block");
                for j in 0..LEN {
                    o[j] = d * f32::from(q[j] as i8);
                }
            }
        }
        _ => unreachable!("{dtype} is of another family"),
    }
}

/// The 32 codes of 16 nibble bytes.
#[inline(always)]
fn nibbles(b: &[u8]) -> [u8; LEN] {
    let b: &[u8; HALF] = b[..HALF].as_array().expect("16 bytes");
    let mut q = [0; LEN];
    for j in 0..HALF {
        q[j] = b[j] & 15;
        q[j + HALF] = b[j] >> 4;
    }
    q
}

/// The 32 codes of a u32 of fifth bits and 16 nibble bytes.
#[inline(always)]
fn five_bits(b: &[u8]) -> [u8; LEN] {
    let high = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let mut q = nibbles(&b[4..]);
    for j in 0..LEN {
        q[j] |= ((high >> j) as u8 & 1) << 4;
    }
    q
}

/// Encodes whole blocks as ggml's reference quantisers do, appending to `out`. Always true: every format
/// of this family can be written.
pub(super) fn encode(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> bool {
    for x in values.as_chunks::<LEN>().0 {
        match dtype {
            DType::Q4_0 => {
                let (d, q) = symmetric(x, 8);
                put_f16(d, out);
                put_nibbles(&q, out);
            }
            DType::Q4_1 => {
                let (d, m, q) = affine(x, 15);
                put_f16(d, out);
                put_f16(m, out);
                put_nibbles(&q, out);
            }
            DType::Q5_0 => {
                let (d, q) = symmetric(x, 16);
                put_f16(d, out);
                put_five_bits(&q, out);
            }
            DType::Q5_1 => {
                let (d, m, q) = affine(x, 31);
                put_f16(d, out);
                put_f16(m, out);
                put_five_bits(&q, out);
            }
            DType::Q8_0 => {
                let amax = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
                let d = amax / 127.0;
                let id = inverse(d);
                put_f16(d, out);
                // Rust's `round`, like C's, takes halves away from zero.
                out.extend(x.iter().map(|v| (v * id).round() as i8 as u8));
            }
            _ => unreachable!("{dtype} is of another family"),
        }
    }
    true
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Scale and codes of the formats without a minimum: the number of largest magnitude becomes exactly
/// code 0, `-half` steps from zero, so the scale carries its sign.
fn symmetric(x: &[f32; LEN], half: u8) -> (f32, [u8; LEN]) {
    let mut max = 0.0f32;
    for &v in x {
        if v.abs() > max.abs() {
            max = v;
        }
    }
    let d = max / -f32::from(half);
    let id = inverse(d);
    let offset = f32::from(half) + 0.5;
    (d, x.map(|v| ((v * id + offset) as i8 as u8).min(2 * half - 1)))
}

/// Scale, minimum and codes of the formats with a minimum.
fn affine(x: &[f32; LEN], top: u8) -> (f32, f32, [u8; LEN]) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &v in x {
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
    }
    let d = (max - min) / f32::from(top);
    let id = inverse(d);
    (d, min, x.map(|v| (((v - min) * id + 0.5) as u8).min(top)))
}

fn put_f16(v: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(v).to_le_bytes());
}

fn put_nibbles(q: &[u8; LEN], out: &mut Vec<u8>) {
    out.extend((0..HALF).map(|j| (q[j] & 15) | (q[j + HALF] << 4)));
}

fn put_five_bits(q: &[u8; LEN], out: &mut Vec<u8>) {
    let high = (0..LEN).fold(0u32, |h, j| h | u32::from(q[j] >> 4) << j);
    out.extend(high.to_le_bytes());
    put_nibbles(q, out);
}

#[cfg(test)]
mod tests {
    use crate::DType;
    use crate::block::{decode, encode};

    /// Deterministic numbers in −1..1.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn the_error_is_within_a_step_of_each_format() {
        // Steps a block of numbers in -a..a can need: 2a/15, 2a/31 with a minimum (half a step of error);
        // a/8, a/16 without (a whole step at the far end, where the code would be 2·half); a/127.
        for (dtype, bound) in [
            (DType::Q4_0, 1.0 / 8.0),
            (DType::Q4_1, 1.0 / 15.0),
            (DType::Q5_0, 1.0 / 16.0),
            (DType::Q5_1, 1.0 / 31.0),
            (DType::Q8_0, 0.5 / 127.0),
        ] {
            for scale in [0.05f32, 1.0, 300.0] {
                let x: Vec<f32> = noise(32 * 64, 7).iter().map(|v| v * scale).collect();
                let mut bytes = Vec::new();
                assert!(encode(dtype, &x, &mut bytes));
                let mut y = vec![0.0; x.len()];
                decode(dtype, &bytes, &mut y);
                let worst = x.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale;
                // f16 scales add a relative 2^-11 of the largest value.
                assert!(worst <= bound + 1e-3, "{dtype} at {scale}: {worst}");
                assert!(worst > bound * 0.2, "{dtype}: a test that would not notice a wrong scale");
            }
        }
    }

    #[test]
    fn zeros_and_constants_survive() {
        for dtype in [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0] {
            for c in [0.0f32, 1.0, -2.0] {
                let mut bytes = Vec::new();
                assert!(encode(dtype, &[c; 64], &mut bytes));
                let mut y = [f32::NAN; 64];
                decode(dtype, &bytes, &mut y);
                y.iter().for_each(|v| assert!((v - c).abs() <= c.abs() * 1e-3, "{dtype} {c}: {v}"));
            }
        }
    }

    #[test]
    fn not_a_number_does_not_panic() {
        let mut x = noise(32, 3);
        x[5] = f32::NAN;
        x[9] = f32::INFINITY;
        for dtype in [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0] {
            let mut bytes = Vec::new();
            assert!(encode(dtype, &x, &mut bytes));
            assert_eq!(bytes.len(), dtype.block_bytes());
        }
    }
}
