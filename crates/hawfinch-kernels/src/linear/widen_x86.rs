//! Loads of 16-bit numbers, widened to f32.

use std::arch::x86_64::*;

/// Sixteen bf16.
///
/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
pub unsafe fn bf16_512(p: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    let bits = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
}

/// Sixteen f16.
///
/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
pub unsafe fn f16_512(p: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}

/// Eight bf16.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn bf16_256(p: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    let bits = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
}

/// Eight f16.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn f16_256(p: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}
