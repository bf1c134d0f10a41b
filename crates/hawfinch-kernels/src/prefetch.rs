//! Lines of memory asked for before they are read. Any address may be named.

/// Into the nearest cache.
#[inline(always)]
pub fn first<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may name any address.
    unsafe {
        use std::arch::x86_64::*;
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Into the second cache, which has room for more lines under way than the first.
#[inline(always)]
pub fn second<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may name any address.
    unsafe {
        use std::arch::x86_64::*;
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) p, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Whether this processor reads weights fastest in several streams that are fetched by name. AMD's with AVX-512 does not
/// (Zen 4): it keeps some two dozen lines under way for a core that asks for them, and more where it sees one plain
/// stream. With one token, panels of 4 bits gave 31 of 34 or 43 of 58 GB/s in four streams, 33 of 34 or 56 of 58 in one.
/// AMD's without (of which Zen 3 was measured) read four streams at 37 GB/s, one at 31 (medians of fifteen in turns); a 1.5B model in int8 took
/// 55 to 62 ms a token in four, 67 to 70 in one. On Intel's (Sapphire Rapids) four streams read 28 GB/s where one read 18.
pub fn by_name() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::LazyLock;
        static BY_NAME: LazyLock<bool> =
            LazyLock::new(|| !(crate::isa::is_amd() && is_x86_feature_detected!("avx512f")));
        *BY_NAME
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}
