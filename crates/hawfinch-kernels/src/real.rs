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
    /// Logistic function 1/(1+e^-self); tends to 0 and 1 without overflow.
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

macro_rules! real {
    ($t:ty, $narrow:expr) => {
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
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                <$t>::tanh(self)
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
        }
    };
}
real!(f32, Some);
real!(f64, |_| None);
