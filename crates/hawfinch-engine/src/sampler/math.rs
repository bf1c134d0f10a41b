//! `exp` and `ln` from additions, multiplications and bit operations only.
//!
//! The C library's versions differ between platforms in the last bit, and one bit can change which token is drawn.
//! These do the same rounded operations everywhere (Rust never fuses a multiply and an add by itself), and the
//! compiler turns `exp` over a slice into vector code for any instruction set.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has few bits, so that its product with a small integer is exact.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 rounds an f32 of small size to an integer, which then sits in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// Below this `exp` returns 0: the result would be a denormal number.
pub(crate) const EXP_MIN: f32 = -87.0;

/// e^x for x in [-inf, 88]; 0 below -87. Relative error below 2e-7 (tested).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
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

/// ln x for finite x > 0, in f64. Relative error below 1e-14 (tested).
pub(crate) fn ln(x: f64) -> f64 {
    debug_assert!(x > 0.0 && x.is_finite());
    // x = m * 2^e with m in [1/sqrt 2, sqrt 2).
    let (x, denormal) = if x < f64::MIN_POSITIVE { (x * (1u64 << 54) as f64, 54) } else { (x, 0) };
    let bits = x.to_bits();
    let mut e = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 1f64.to_bits());
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    // ln m = 2 (s + s^3/3 + s^5/5 + ...), s = (m-1)/(m+1), |s| < 0.1716: the term s^23/23 is below 1e-18.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    let mut k = 21;
    while k > 0 {
        sum = sum * s2 + 1.0 / k as f64;
        k -= 2;
    }
    (e - denormal) as f64 * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// The largest logit, or the first that is NaN or +infinity.
pub(crate) fn max_checked(logits: &[f32]) -> Result<f32, (usize, f32)> {
    const LANES: usize = 16;
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
    let mut max = f32::NEG_INFINITY;
    let mut any_bad = bad.iter().any(|&b| b != 0);
    for &x in lanes.iter().chain(rest) {
        any_bad |= x.is_nan();
        max = if x > max { x } else { max };
    }
    if any_bad || max == f32::INFINITY {
        let first = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or(0);
        return Err((first, logits.get(first).copied().unwrap_or(f32::NAN)));
    }
    Ok(max)
}

/// `out[i] = exp((logits[i] - max) / temperature)`; returns the sum of all, added in a fixed order.
///
/// `out` must be as long as `logits`.
pub(crate) fn exp_all(logits: &[f32], max: f32, temperature: f32, out: &mut [f32]) -> f64 {
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
    sum(out)
}

/// What [`exp_all`] returns at temperature 1, to the bit, without keeping the exponentials.
pub(crate) fn exp_sum(logits: &[f32], max: f32) -> f64 {
    let mut block = [0.0; 256];
    logits
        .chunks(256)
        .map(|chunk| exp_all(chunk, max, 1.0, &mut block[..chunk.len()]))
        .fold(0.0, |a, b| a + b)
}

/// Sum of `x` in a fixed order: 16 lanes of f32 over each 256 values, then f64.
pub(crate) fn sum(x: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut total = 0f64;
    for block in x.chunks(256) {
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
        total += part;
    }
    total
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
    fn ln_is_accurate() {
        for i in -1000..1000 {
            let x = 1.37f64.powi(i) * 1.000_123;
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() <= 1e-14 * want.abs().max(1.0), "ln({x}) = {got}, want {want}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert!((ln(5e-324) - 5e-324f64.ln()).abs() < 1e-10);
    }

    #[test]
    fn max_finds_and_refuses() {
        let mut v: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        assert_eq!(max_checked(&v), Ok(999.0));
        v[997] = f32::NAN;
        assert_eq!(max_checked(&v).unwrap_err().0, 997);
        v[3] = f32::NAN;
        assert_eq!(max_checked(&v).unwrap_err().0, 3);
        v[3] = 0.0;
        v[997] = f32::INFINITY;
        assert_eq!(max_checked(&v), Err((997, f32::INFINITY)));
        assert_eq!(max_checked(&[f32::NEG_INFINITY; 40]), Ok(f32::NEG_INFINITY));
    }

    #[test]
    fn sums_agree_with_plain_addition() {
        let v: Vec<f32> = (0..70_001).map(|i| 1.0 / (i as f32 + 1.0)).collect();
        let want: f64 = v.iter().map(|&x| f64::from(x)).sum();
        assert!((sum(&v) - want).abs() < 1e-5 * want);
    }
}
