//! The number type of activations: every operation is written once over [`Real`], for f32 (running)
//! and f64 (checking).

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// f32 or f64.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + Sum
    + bytemuck::Pod
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Nearest value of this type.
    fn from_f64(v: f64) -> Self;
    /// Exact for f32 and f64.
    fn from_f32(v: f32) -> Self;
    /// Widened to f64.
    fn to_f64(self) -> f64;
    /// Nearest f32.
    fn to_f32(self) -> f32;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// e^self
    fn exp(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The larger of the two; the other one if one is NaN.
    fn max(self, other: Self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// `values` as f32, when that is what they are.
    fn as_f32_slice(values: &mut [Self]) -> Option<&mut [f32]>;
    /// The same for values only read.
    fn as_f32s(values: &[Self]) -> Option<&[f32]>;
    /// Logistic function 1/(1+e^-self); tends to 0 and 1 without overflow.
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

macro_rules! real {
    ($t:ty, $narrow:expr, $narrow_ref:expr, $exp:expr, $tanh:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn from_f32(v: f32) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                <$t>::mul_add(self, a, b)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                <$t>::max(self, other)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
            #[inline(always)]
            fn as_f32_slice(values: &mut [Self]) -> Option<&mut [f32]> {
                $narrow(values)
            }
            #[inline(always)]
            fn as_f32s(values: &[Self]) -> Option<&[f32]> {
                $narrow_ref(values)
            }
        }
    };
}
real!(f32, Some, Some, exp32, tanh32);
real!(f64, |_| None, |_| None, f64::exp, f64::tanh);

/// Adding and subtracting it rounds a small f32 to the nearest integer, which its low bits then hold.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23
/// ln 2 in two parts; the first has so few bits that its products with small integers are exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// (p, n) with e^x = 2^n (1 + p), |p| < 0.42, for |x| < 2^15; NaN gives NaN in p.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = rounded.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
    let rounded = rounded - ROUNDER;
    let r = (-rounded).mul_add(LN_2[0], x);
    let r = (-rounded).mul_add(LN_2[1], r);
    // e^r - 1 by its series: |r| < 0.3466, so the first term left out is below 2^-27.
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    (p.mul_add(r * r, r), n)
}

/// 2^n for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x within two units in the last place (subnormal results: of the smallest normal number's last place), the
/// same bits on every machine; written so that it runs in vector registers.
#[inline(always)]
fn exp32(x: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (p, n) = exp_parts(x);
    let half = n >> 1;
    (1.0 + p) * power_of_two(half) * power_of_two(n - half)
}

/// tanh x = m / (m + 2) with m = e^2x - 1, computed without cancellation for small x.
#[inline(always)]
fn tanh32(x: f32) -> f32 {
    let x = if x > 10.0 { 10.0 } else { x };
    let x = if x < -10.0 { -10.0 } else { x };
    let (p, n) = exp_parts(2.0 * x);
    let scale = power_of_two(n);
    let m = p.mul_add(scale, scale - 1.0);
    m / (m + 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the nearest f32.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = (want as f32).abs().max(f32::MIN_POSITIVE);
        (f64::from(got) - want).abs() / f64::from(near.next_up() - near)
    }

    #[test]
    fn exp_and_tanh_are_within_two_units() {
        let (mut worst_exp, mut worst_tanh) = (0f64, 0f64);
        for i in -800_000..800_000 {
            let x = i as f32 * 1.1e-4;
            if x > -87.0 {
                worst_exp = worst_exp.max(ulps(Real::exp(x), f64::from(x).exp()));
            }
            let small = x * x * x * 1e-4;
            for x in [x * 0.2, small] {
                worst_tanh = worst_tanh.max(ulps(Real::tanh(x), f64::from(x).tanh()));
            }
        }
        assert!(worst_exp <= 2.0, "exp: {worst_exp}");
        assert!(worst_tanh <= 3.0, "tanh: {worst_tanh}");
    }

    #[test]
    fn extremes_are_what_they_should_be() {
        let exp = |x: f32| Real::exp(x);
        let tanh = |x: f32| Real::tanh(x);
        assert_eq!([exp(0.0), exp(-0.0), exp(-200.0), exp(f32::NEG_INFINITY)], [1.0, 1.0, 0.0, 0.0]);
        assert_eq!([exp(89.0), exp(1e30), exp(f32::INFINITY)], [f32::INFINITY; 3]);
        assert!(exp(88.7) < f32::MAX && exp(88.7) > 3e38);
        assert!((exp(-95.0) / 5.52e-42 - 1.0).abs() < 0.01, "subnormal results");
        assert_eq!([tanh(0.0), tanh(f32::INFINITY), tanh(-1e30)], [0.0, 1.0, -1.0]);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!([Real::sigmoid(-1e4f32), Real::sigmoid(1e4f32)], [0.0, 1.0]);
    }
}
