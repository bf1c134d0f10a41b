//! What a draw from logits needs of all of them: the largest, exponentials, sums.
//!
//! From additions, multiplications and bit operations only, in a fixed order: the C library's `exp` differs between platforms
//! in the last bit, and one bit can change which token is drawn. Every instruction set does the same rounded operations (Rust
//! never fuses a multiply and an add by itself).

use crate::Isa;
use crate::isa::compiled_for_each;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has few bits, so that its product with a small integer is exact.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 rounds an f32 of small size to an integer, which then sits in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// Below this `exp` returns 0: the result would be a denormal number.
pub const EXP_MIN: f32 = -87.0;

/// e^x for x in [-inf, 88]; 0 below -87. Relative error below 2e-7 (tested).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let c = if x > EXP_MIN { x } else { EXP_MIN };
    let shifted = c * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = c - n * LN2_HI - n * LN2_LO;
    // Taylor polynomial of degree 7 on |r| <= ln(2)/2: the remainder is below 6e-9.
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let y = p * scale;
    if x > EXP_MIN { y } else { 0.0 }
}

/// Numbers that are looked at together.
const LANES: usize = 16;
/// Numbers that are added up in f32 before they are added in f64.
const BLOCK: usize = 256;

/// The largest of `logits`, `[v]`; -infinity where there are none.
///
/// # Errors
/// The first that is NaN or +infinity, with its place.
pub fn largest(isa: Isa, logits: &[f32]) -> Result<f32, (usize, f32)> {
    let (mut max, mut nan) = (f32::NEG_INFINITY, false);
    look(isa, logits, &mut max, &mut nan);
    if nan || max == f32::INFINITY {
        let first = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or(0);
        return Err((first, logits.get(first).copied().unwrap_or(f32::NAN)));
    }
    Ok(max)
}

compiled_for_each! {
    fn look(logits: &[f32], max: &mut f32, nan: &mut bool) = look_body
}

#[inline(always)]
fn look_body(logits: &[f32], max: &mut f32, nan: &mut bool) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut bad = [0u32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let x = chunk[i];
            lanes[i] = if x > lanes[i] { x } else { lanes[i] };
            bad[i] |= u32::from(x.is_nan());
        }
    }
    *nan = bad.iter().any(|&b| b != 0);
    for &x in lanes.iter().chain(rest) {
        *nan |= x.is_nan();
        *max = if x > *max { x } else { *max };
    }
}

/// `out[i] = exp((logits[i] - max) / temperature)`, both `[v]`; returns the sum of all, added in a fixed order.
pub fn exp_all(isa: Isa, logits: &[f32], max: f32, temperature: f32, out: &mut [f32]) -> f64 {
    let mut total = 0.0;
    exps(isa, logits, max, temperature, out, &mut total);
    total
}

/// What [`exp_all`] returns at temperature 1, to the bit, without keeping the exponentials.
pub fn exp_sum(isa: Isa, logits: &[f32], max: f32) -> f64 {
    let mut block = [0.0; BLOCK];
    logits
        .chunks(BLOCK)
        .map(|chunk| exp_all(isa, chunk, max, 1.0, &mut block[..chunk.len()]))
        .fold(0.0, |a, b| a + b)
}

/// Sum of `x` in a fixed order: 16 lanes of f32 over each 256 values, then f64.
pub fn sum(isa: Isa, x: &[f32]) -> f64 {
    let mut total = 0.0;
    sums(isa, x, &mut total);
    total
}

compiled_for_each! {
    fn exps(logits: &[f32], max: f32, temperature: f32, out: &mut [f32], total: &mut f64) = exps_body
}

#[inline(always)]
fn exps_body(logits: &[f32], max: f32, temperature: f32, out: &mut [f32], total: &mut f64) {
    // Added up while they are near.
    for (logits, out) in logits.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        if temperature == 1.0 {
            for (o, &x) in out.iter_mut().zip(logits) {
                *o = exp(x - max);
            }
        } else {
            // A division, not a product with 1/temperature: that is infinite for tiny temperatures, and 0 * inf is NaN.
            for (o, &x) in out.iter_mut().zip(logits) {
                *o = exp((x - max) / temperature);
            }
        }
        *total += block_sum(out);
    }
}

compiled_for_each! {
    fn sums(x: &[f32], total: &mut f64) = sums_body
}

#[inline(always)]
fn sums_body(x: &[f32], total: &mut f64) {
    x.chunks(BLOCK).for_each(|block| *total += block_sum(block));
}

#[inline(always)]
fn block_sum(block: &[f32]) -> f64 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    let mut part = 0f64;
    for &v in lanes.iter().chain(rest) {
        part += f64::from(v);
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_flushes() {
        let mut x = -86.9f32;
        while x < 88.0 {
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            assert!((got - want).abs() <= 2e-7 * want, "exp({x}) = {got}, want {want}");
            x += 0.003_1;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
    }

    #[test]
    fn the_largest_is_found_or_refused() {
        for isa in Isa::available() {
            largest_on(isa);
        }
    }

    fn largest_on(isa: Isa) {
        let mut v: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        assert_eq!(largest(isa, &v), Ok(999.0));
        v[997] = f32::NAN;
        assert_eq!(largest(isa, &v).unwrap_err().0, 997);
        v[3] = f32::NAN;
        assert_eq!(largest(isa, &v).unwrap_err().0, 3);
        v[3] = 0.0;
        v[997] = f32::INFINITY;
        assert_eq!(largest(isa, &v), Err((997, f32::INFINITY)));
        assert_eq!(largest(isa, &[f32::NEG_INFINITY; 40]), Ok(f32::NEG_INFINITY));
    }

    #[test]
    fn sums_agree_with_plain_addition() {
        let isa = Isa::best();
        let v: Vec<f32> = (0..70_001).map(|i| 1.0 / (i as f32 + 1.0)).collect();
        let want: f64 = v.iter().map(|&x| f64::from(x)).sum();
        assert!((sum(isa, &v) - want).abs() < 1e-5 * want);
    }

    /// Every instruction set, to the bit, and the exponentials one by one.
    #[test]
    fn instruction_sets_agree() {
        let scalar = Isa::new(crate::Level::Scalar).unwrap();
        for n in [0, 1, 15, 16, 255, 257, 4099] {
            let logits: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1009) as f32 / 37.0 - 20.0).collect();
            let max = largest(scalar, &logits).unwrap();
            for temperature in [1.0, 0.7, 1e-40] {
                let mut want = vec![0.0; n];
                let total = exp_all(scalar, &logits, max, temperature, &mut want);
                let single: Vec<f32> = logits.iter().map(|&x| exp((x - max) / temperature)).collect();
                assert_eq!(want, single);
                for isa in Isa::available() {
                    let mut out = vec![1.0; n];
                    assert_eq!(largest(isa, &logits), Ok(max));
                    assert_eq!(exp_all(isa, &logits, max, temperature, &mut out).to_bits(), total.to_bits());
                    assert_eq!(out, want);
                    assert_eq!(sum(isa, &out).to_bits(), total.to_bits());
                    if temperature == 1.0 {
                        assert_eq!(exp_sum(isa, &logits, max).to_bits(), total.to_bits());
                    }
                }
            }
        }
    }
}
