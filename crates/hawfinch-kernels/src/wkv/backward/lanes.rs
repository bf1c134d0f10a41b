//! Sixteen f32 numbers in registers, as many as an instruction set needs for them: loops over these are written once.
//!
//! Everything here is a function, nothing a closure: it has to be inlined where the instructions are known.

/// Sixteen numbers: the partial sums of [`crate::reduce`].
///
/// Every function asks that the processor has the instructions of the implementor, and those with pointers that the
/// numbers they speak of can be read or written.
pub trait Sixteen: Copy {
    /// Zeros.
    unsafe fn zero() -> Self;
    /// One number sixteen times.
    unsafe fn all(x: f32) -> Self;
    /// Sixteen from memory.
    unsafe fn load(p: *const f32) -> Self;
    /// Sixteen to memory.
    unsafe fn store(self, p: *mut f32);
    /// Products.
    unsafe fn mul(self, b: Self) -> Self;
    /// self · b + c, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// -(self · b) + c, rounded once.
    unsafe fn fnma(self, b: Self, c: Self) -> Self;
    /// Of sixteen times sixteen numbers, what [`crate::reduce::fold`] makes of each sixteen.
    unsafe fn fold(p: *const f32) -> Self;
    /// Writes sixteen times sixteen numbers as columns: number j of sixteen i goes to `to + j * stride + i`.
    unsafe fn turn(from: *const f32, to: *mut f32, stride: usize);
}

/// G sixteens that follow each other.
///
/// # Safety
/// As for [`Sixteen`].
#[inline(always)]
pub unsafe fn load<S: Sixteen, const G: usize>(p: *const f32) -> [S; G] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut numbers = [S::zero(); G];
        for m in 0..G {
            numbers[m] = S::load(p.add(16 * m));
        }
        numbers
    }
}

/// G sixteens that follow each other, to memory.
///
/// # Safety
/// As for [`Sixteen`].
#[inline(always)]
pub unsafe fn store<S: Sixteen, const G: usize>(numbers: [S; G], p: *mut f32) {
    for m in 0..G {
        // SAFETY: the caller's promise.
        unsafe { numbers[m].store(p.add(16 * m)) }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

/// Functions of the trait that are one expression each.
macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: what the trait asks for.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Sixteen;

    /// A register of AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    /// Two of AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    impl Sixteen for Avx512 {
        functions! {
            zero() -> Self = Avx512(_mm512_setzero_ps());
            all(x: f32) -> Self = Avx512(_mm512_set1_ps(x));
            load(p: *const f32) -> Self = Avx512(_mm512_loadu_ps(p));
            store(self: Self, p: *mut f32) = _mm512_storeu_ps(p, self.0);
            mul(self: Self, b: Self) -> Self = Avx512(_mm512_mul_ps(self.0, b.0));
            fma(self: Self, b: Self, c: Self) -> Self = Avx512(_mm512_fmadd_ps(self.0, b.0, c.0));
            fnma(self: Self, b: Self, c: Self) -> Self = Avx512(_mm512_fnmadd_ps(self.0, b.0, c.0));
            fold(p: *const f32) -> Self = {
                let (a, b) = (twos512(p), twos512(p.add(2 * 16)));
                Avx512(_mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b)))
            };
            turn(from: *const f32, to: *mut f32, stride: usize) = turn(from, to, stride);
        }
    }

    impl Sixteen for Avx2 {
        functions! {
            zero() -> Self = Avx2(_mm256_setzero_ps(), _mm256_setzero_ps());
            all(x: f32) -> Self = Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x));
            load(p: *const f32) -> Self = Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)));
            store(self: Self, p: *mut f32) = {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            };
            mul(self: Self, b: Self) -> Self = Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1));
            fma(self: Self, b: Self, c: Self) -> Self =
                Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1));
            fnma(self: Self, b: Self, c: Self) -> Self =
                Avx2(_mm256_fnmadd_ps(self.0, b.0, c.0), _mm256_fnmadd_ps(self.1, b.1, c.1));
            fold(p: *const f32) -> Self = Avx2(fold256(p), fold256(p.add(8 * 16)));
            turn(from: *const f32, to: *mut f32, stride: usize) = turn(from, to, stride);
        }
    }

    // A fold adds lanes l and l + 8, l and l + 4, and so on; each step packs the sums of two registers into one, so that
    // those of sixteens in a row come to lie in a row.

    functions! {
        // Lanes l and l + 8 of sixteens 0 and 4: halves come from memory.
        eights512(p: *const f32) -> __m512 = {
            let (a, b) = (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(4 * 16)));
            let (c, d) = (_mm256_loadu_ps(p.add(8)), _mm256_loadu_ps(p.add(4 * 16 + 8)));
            _mm512_add_ps(
                _mm512_insertf32x8::<1>(_mm512_castps256_ps512(a), b),
                _mm512_insertf32x8::<1>(_mm512_castps256_ps512(c), d),
            )
        };
        // Lanes l and l + 4 of sixteens 0, 4, 8 and 12.
        fours512(p: *const f32) -> __m512 = {
            let (a, b) = (eights512(p), eights512(p.add(8 * 16)));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
        };
        // Lanes l and l + 2 of these and the sixteens after each.
        twos512(p: *const f32) -> __m512 = {
            let (a, b) = (_mm512_castps_pd(fours512(p)), _mm512_castps_pd(fours512(p.add(16))));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        };
        eights256(p: *const f32) -> __m256 = _mm256_add_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)));
        // Of sixteens 0 and 4.
        fours256(p: *const f32) -> __m256 = {
            let (a, b) = (eights256(p), eights256(p.add(4 * 16)));
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
        };
        twos256(p: *const f32) -> __m256 = {
            let (a, b) = (_mm256_castps_pd(fours256(p)), _mm256_castps_pd(fours256(p.add(16))));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
        };
        fold256(p: *const f32) -> __m256 = {
            let (a, b) = (twos256(p), twos256(p.add(2 * 16)));
            _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b))
        };
    }

    /// Blocks of four by four: short registers store as much in a cycle as long ones.
    #[inline(always)]
    unsafe fn turn(from: *const f32, to: *mut f32, stride: usize) {
        for i in (0..16).step_by(4) {
            for j in (0..16).step_by(4) {
                // SAFETY: the caller's promise.
                unsafe {
                    let from = from.add(i * 16 + j);
                    let (mut a, mut b) = (_mm_loadu_ps(from), _mm_loadu_ps(from.add(16)));
                    let (mut c, mut d) = (_mm_loadu_ps(from.add(32)), _mm_loadu_ps(from.add(48)));
                    _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                    let to = to.add(j * stride + i);
                    _mm_storeu_ps(to, a);
                    _mm_storeu_ps(to.add(stride), b);
                    _mm_storeu_ps(to.add(2 * stride), c);
                    _mm_storeu_ps(to.add(3 * stride), d);
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Sixteen;

    /// Four registers.
    #[derive(Clone, Copy)]
    pub struct Neon(float32x4_t, float32x4_t, float32x4_t, float32x4_t);

    impl Sixteen for Neon {
        functions! {
            zero() -> Self = Self::all(0.0);
            all(x: f32) -> Self = Neon(vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x));
            load(p: *const f32) -> Self =
                Neon(vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12)));
            store(self: Self, p: *mut f32) = {
                vst1q_f32(p, self.0);
                vst1q_f32(p.add(4), self.1);
                vst1q_f32(p.add(8), self.2);
                vst1q_f32(p.add(12), self.3);
            };
            mul(self: Self, b: Self) -> Self = Neon(
                vmulq_f32(self.0, b.0),
                vmulq_f32(self.1, b.1),
                vmulq_f32(self.2, b.2),
                vmulq_f32(self.3, b.3),
            );
            fma(self: Self, b: Self, c: Self) -> Self = Neon(
                vfmaq_f32(c.0, self.0, b.0),
                vfmaq_f32(c.1, self.1, b.1),
                vfmaq_f32(c.2, self.2, b.2),
                vfmaq_f32(c.3, self.3, b.3),
            );
            fnma(self: Self, b: Self, c: Self) -> Self = Neon(
                vfmsq_f32(c.0, self.0, b.0),
                vfmsq_f32(c.1, self.1, b.1),
                vfmsq_f32(c.2, self.2, b.2),
                vfmsq_f32(c.3, self.3, b.3),
            );
            fold(p: *const f32) -> Self =
                Neon(fold4(p), fold4(p.add(4 * 16)), fold4(p.add(8 * 16)), fold4(p.add(12 * 16)));
            turn(from: *const f32, to: *mut f32, stride: usize) = turn(from, to, stride);
        }
    }

    // A fold adds lanes l and l + 8, l and l + 4, and so on.

    functions! {
        // Down to lanes l and l + 4.
        fours(p: *const f32) -> float32x4_t = {
            let low = vaddq_f32(vld1q_f32(p), vld1q_f32(p.add(8)));
            vaddq_f32(low, vaddq_f32(vld1q_f32(p.add(4)), vld1q_f32(p.add(12))))
        };
        // Lanes l and l + 2 of two sixteens.
        twos(p: *const f32) -> float32x4_t = {
            let (a, b) = (vreinterpretq_f64_f32(fours(p)), vreinterpretq_f64_f32(fours(p.add(16))));
            let (low, high) = (vzip1q_f64(a, b), vzip2q_f64(a, b));
            vaddq_f32(vreinterpretq_f32_f64(low), vreinterpretq_f32_f64(high))
        };
        // Of four sixteens.
        fold4(p: *const f32) -> float32x4_t = {
            let (a, b) = (twos(p), twos(p.add(2 * 16)));
            vaddq_f32(vuzp1q_f32(a, b), vuzp2q_f32(a, b))
        };
    }

    /// Blocks of four by four.
    #[inline(always)]
    unsafe fn turn(from: *const f32, to: *mut f32, stride: usize) {
        for i in (0..16).step_by(4) {
            for j in (0..16).step_by(4) {
                // SAFETY: the caller's promise.
                unsafe {
                    let from = from.add(i * 16 + j);
                    let a = vtrnq_f32(vld1q_f32(from), vld1q_f32(from.add(16)));
                    let b = vtrnq_f32(vld1q_f32(from.add(32)), vld1q_f32(from.add(48)));
                    let to = to.add(j * stride + i);
                    vst1q_f32(to, vcombine_f32(vget_low_f32(a.0), vget_low_f32(b.0)));
                    vst1q_f32(to.add(stride), vcombine_f32(vget_low_f32(a.1), vget_low_f32(b.1)));
                    vst1q_f32(to.add(2 * stride), vcombine_f32(vget_high_f32(a.0), vget_high_f32(b.0)));
                    vst1q_f32(to.add(3 * stride), vcombine_f32(vget_high_f32(a.1), vget_high_f32(b.1)));
                }
            }
        }
    }
}
