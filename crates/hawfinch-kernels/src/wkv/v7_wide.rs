//! One token of RWKV-7 with heads of 64 channels on AVX2, AVX-512 and NEON: exactly the sums of `v7.rs`.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::USUAL;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::{Isa, Level};

/// What one token brings to a head.
pub struct Token<'a> {
    pub r: &'a [f32; USUAL],
    pub k: &'a [f32; USUAL],
    pub v: &'a [f32; USUAL],
    pub w: &'a [f32; USUAL],
    pub kk: &'a [f32; USUAL],
    pub b: &'a [f32; USUAL],
}

/// Updates the state `[key, value]`, reads it into `y` and says what was `removed`. False when this instruction set has
/// no loops of its own.
#[inline(always)]
pub fn step(
    isa: Isa,
    y: &mut [f32; USUAL],
    removed: &mut [f32; USUAL],
    s: &mut [f32],
    x: &Token<'_>,
) -> bool {
    assert_eq!(s.len(), USUAL * USUAL);
    match isa.level() {
        // SAFETY: an Isa exists only where the machine has the instructions; the state's size was checked.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(y, removed, s, x) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(y, removed, s, x) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe { with_neon(y, removed, s, x) },
        _ => return false,
    }
    true
}

/// Values are independent of each other: as many as four registers hold are taken through all keys at a time.
macro_rules! width {
    ($name:ident, $features:literal, $per:literal, $set1:path, $zero:path, $load:path, $store:path, $mul:path,
     $fma:path, $fnma:path) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(y: &mut [f32; USUAL], out: &mut [f32; USUAL], s: &mut [f32], x: &Token<'_>) {
            const N: usize = 4;
            for at in (0..USUAL).step_by(N * $per) {
                // SAFETY: columns at .. at + N registers of each row of the state.
                unsafe {
                    let s = s.as_mut_ptr().add(at);
                    let mut removed = [$zero(); N];
                    for j in 0..USUAL {
                        let kk = $set1(x.kk[j]);
                        for n in 0..N {
                            removed[n] = $fma($load(s.add(j * USUAL + n * $per)), kk, removed[n]);
                        }
                    }
                    let mut v = [$zero(); N];
                    for n in 0..N {
                        v[n] = $load(x.v.as_ptr().add(at + n * $per));
                    }
                    let mut sum = [$zero(); N];
                    for j in 0..USUAL {
                        let (w, b, k, r) = ($set1(x.w[j]), $set1(x.b[j]), $set1(x.k[j]), $set1(x.r[j]));
                        for n in 0..N {
                            let row = s.add(j * USUAL + n * $per);
                            let change = $fnma(removed[n], b, $mul(v[n], k));
                            let new = $fma($load(row), w, change);
                            $store(row, new);
                            sum[n] = $fma(new, r, sum[n]);
                        }
                    }
                    for n in 0..N {
                        $store(y.as_mut_ptr().add(at + n * $per), sum[n]);
                        $store(out.as_mut_ptr().add(at + n * $per), removed[n]);
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
width!(
    avx512,
    "avx512f",
    16,
    _mm512_set1_ps,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_fnmadd_ps
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma",
    8,
    _mm256_set1_ps,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_fnmadd_ps
);
#[cfg(target_arch = "aarch64")]
width!(
    with_neon,
    "neon",
    4,
    vdupq_n_f32,
    neon::zero_ps,
    vld1q_f32,
    vst1q_f32,
    vmulq_f32,
    neon::fma,
    neon::fnma
);
