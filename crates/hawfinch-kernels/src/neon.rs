//! NEON registers as the kernels use them: loads that widen, codes put into order, and the three ways to multiply
//! bytes, by what the processor has. The intrinsics of the dot products are not stable: these are written out.

use std::arch::aarch64::*;
use std::arch::asm;

/// Multiplies bytes: in each 32-bit lane of a register four codes of one output, of another four activations.
pub trait Multiply {
    /// Codes are signed. Otherwise they are unsigned; activations are signed in any case.
    const SIGNED: bool;

    /// `sum` plus, in each lane, the sum of four products.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn add(sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t;

    /// The same with lane L of `x` for all.
    ///
    /// # Safety
    /// As [`Multiply::add`].
    unsafe fn add_lane<const L: i32>(sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t;
}

/// Every NEON: products of 16 bits, added in pairs. At most 2 · 128 · 127, which fits.
pub struct Plain;

impl Multiply for Plain {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn add(sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: every processor of this architecture has the instructions.
        unsafe {
            let (w, x) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            let high = vmull_high_s8(w, x);
            vpadalq_s16(sum, vpaddq_s16(low, high))
        }
    }

    #[inline(always)]
    unsafe fn add_lane<const L: i32>(sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: every processor of this architecture has the instructions.
        unsafe { Self::add(sum, w, vdupq_laneq_s32::<L>(x)) }
    }
}

/// The dot product of signed bytes (`dotprod`).
pub struct Dot;

impl Multiply for Dot {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn add(mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: the caller's promise; changes one register.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    #[inline(always)]
    unsafe fn add_lane<const L: i32>(mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) sum, in(vreg) w, in(vreg) x, const L,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// The dot product of unsigned with signed bytes (`i8mm`).
pub struct Mixed;

impl Multiply for Mixed {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn add(mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: the caller's promise; changes one register.
        unsafe {
            asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    #[inline(always)]
    unsafe fn add_lane<const L: i32>(mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) sum, in(vreg) w, in(vreg) x, const L,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// Adds the products of two rows of eight unsigned bytes with two rows of eight signed ones (`i8mm`): `sum` is
/// `[row of w, row of x]`.
///
/// # Safety
/// The processor has the instruction.
#[inline(always)]
pub unsafe fn multiply_rows(mut sum: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise; changes one register.
    unsafe {
        asm!("usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Adds the products of one register of codes with four activations each of T tokens.
///
/// # Safety
/// `x` is the first of T tokens; the processor has M's instruction.
#[inline(always)]
pub unsafe fn multiply<M: Multiply, const T: usize>(
    dot: &mut [int32x4_t; T],
    w: int32x4_t,
    x: *const [i8; 4],
) {
    for first in (0..T).step_by(4) {
        // SAFETY: so many tokens are left; the lanes are of those.
        unsafe {
            let x = fours(x.add(first), T - first);
            dot[first] = M::add_lane::<0>(dot[first], w, x);
            if first + 1 < T {
                dot[first + 1] = M::add_lane::<1>(dot[first + 1], w, x);
            }
            if first + 2 < T {
                dot[first + 2] = M::add_lane::<2>(dot[first + 2], w, x);
            }
            if first + 3 < T {
                dot[first + 3] = M::add_lane::<3>(dot[first + 3], w, x);
            }
        }
    }
}

/// Four activations of each of up to four tokens, the first of `count`; zeros for those that are missing.
///
/// # Safety
/// `x` is the first of `count` tokens, at least one.
#[inline(always)]
pub unsafe fn fours(x: *const [i8; 4], count: usize) -> int32x4_t {
    let x: *const i32 = x.cast();
    // SAFETY: no more than `count` are read; a vector load asks for the alignment of bytes only.
    unsafe {
        let none = vdupq_n_s32(0);
        match count {
            1 => vsetq_lane_s32::<0>(x.read_unaligned(), none),
            2 => vcombine_s32(vld1_s32(x), vget_low_s32(none)),
            3 => vcombine_s32(vld1_s32(x), vset_lane_s32::<0>(x.add(2).read_unaligned(), vget_low_s32(none))),
            _ => vld1q_s32(x),
        }
    }
}

/// Four f16.
///
/// # Safety
/// 8 bytes can be read.
#[inline(always)]
pub unsafe fn f16(p: *const u8) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.cast()))) }
}

/// Four bf16.
///
/// # Safety
/// 8 bytes can be read.
#[inline(always)]
pub unsafe fn bf16(p: *const u8) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
}

/// Four bytes.
///
/// # Safety
/// 4 bytes can be read.
#[inline(always)]
pub unsafe fn bytes(p: *const u8) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let four = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four))))
    }
}

/// Four signed bytes.
///
/// # Safety
/// 4 bytes can be read.
#[inline(always)]
pub unsafe fn signed_bytes(p: *const u8) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let four = vreinterpret_s8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four))))
    }
}

macro_rules! on_registers {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        $(#[$meta])*
        #[inline(always)]
        pub fn $name($($arg: $ty),*) -> $out {
            // SAFETY: registers only; every processor of this architecture has the instructions.
            unsafe { $body }
        }
    )*};
}

on_registers! {
    /// 0 in all lanes.
    fn zero() -> int32x4_t = vdupq_n_s32(0);
    /// 0 in all lanes.
    fn zero_ps() -> float32x4_t = vdupq_n_f32(0.0);
    /// A byte in all places.
    fn set8(v: u8) -> int32x4_t = vreinterpretq_s32_u8(vdupq_n_u8(v));
    /// The bytes of the lower halves, in turn.
    fn low8(a: int32x4_t, b: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_s8(vzip1q_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
    /// The bytes of the upper halves, in turn.
    fn high8(a: int32x4_t, b: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_s8(vzip2q_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
    /// The pairs of bytes of the lower halves, in turn.
    fn low16(a: int32x4_t, b: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_s16(vzip1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)));
    /// The pairs of bytes of the upper halves, in turn.
    fn high16(a: int32x4_t, b: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_s16(vzip2q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)));
    /// Unsigned codes with an offset of 128, signed.
    fn signed(w: int32x4_t) -> int32x4_t = veorq_s32(w, vreinterpretq_s32_u8(vdupq_n_u8(0x80)));
    /// a b + c
    fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
    /// -a b + c
    fn fnma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmsq_f32(c, a, b);
}

/// The lower halves of bytes.
#[inline(always)]
pub fn low4(a: int32x4_t) -> int32x4_t {
    // SAFETY: registers only, as above.
    unsafe { vandq_s32(a, set8(15)) }
}

/// The low six bits of bytes.
#[inline(always)]
pub fn low6(a: int32x4_t) -> int32x4_t {
    // SAFETY: registers only, as above.
    unsafe { vandq_s32(a, set8(63)) }
}

/// The bytes of `b` shifted right, below what is left of those of `a`.
#[inline(always)]
pub fn insert<const BITS: i32>(a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: registers only, as above.
    unsafe { vreinterpretq_s32_u8(vsriq_n_u8::<BITS>(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))) }
}

/// The bytes shifted right.
#[inline(always)]
pub fn shift<const BITS: i32>(a: int32x4_t) -> int32x4_t {
    // SAFETY: registers only, as above.
    unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<BITS>(vreinterpretq_u8_s32(a))) }
}
