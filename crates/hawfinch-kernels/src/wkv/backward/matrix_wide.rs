//! The rows of RWKV-5 and 6 backward in registers, for heads of 32 and 64 channels: exactly the sums of `matrix.rs`.

use super::RUN;
#[cfg(target_arch = "aarch64")]
use super::lanes::Neon;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Sixteen, load, store};
use super::matrix::{Run, SCRATCH};
use crate::{Isa, Level};

/// The gradients of a run. False when there are no loops for this instruction set and size.
pub fn rows(isa: Isa, mut run: Run<'_, f32>, s: &[f32], d_s: &mut [f32]) -> bool {
    let (n, len) = (run.n, RUN * run.n);
    assert!(s.len() == n * n && d_s.len() == n * n && run.tokens <= RUN);
    let all = [&run.r, &run.k, &run.v, &run.w, &run.g, &run.d_r, &run.d_k, &run.d_v, &run.d_w];
    assert!(all.iter().all(|x| x.len() >= len) && run.u.len() == n);
    assert!(run.now.len() >= RUN && run.scratch.len() >= SCRATCH);
    let run = &mut run;
    match (isa.level(), n) {
        // SAFETY: an Isa exists only where the machine has the instructions; the sizes were checked.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 64) => unsafe { avx512::<4, 2>(run, s, d_s) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 32) => unsafe { avx512::<2, 4>(run, s, d_s) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 64) => unsafe { avx2::<4, 1>(run, s, d_s) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 32) => unsafe { avx2::<2, 2>(run, s, d_s) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        (Level::Neon | Level::NeonDotprod | Level::NeonI8mm, 64) => unsafe { neon::<4>(run, s, d_s) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        (Level::Neon | Level::NeonDotprod | Level::NeonI8mm, 32) => unsafe { neon::<2>(run, s, d_s) },
        _ => return false,
    }
    true
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
unsafe fn avx512<const G: usize, const R: usize>(run: &mut Run<'_, f32>, s: &[f32], d_s: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { body::<Avx512, G, R>(run, s, d_s) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const G: usize, const R: usize>(run: &mut Run<'_, f32>, s: &[f32], d_s: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { body::<Avx2, G, R>(run, s, d_s) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<const G: usize>(run: &mut Run<'_, f32>, s: &[f32], d_s: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { body::<Neon, G, 1>(run, s, d_s) }
}

/// The most numbers that rows at a time and the values of each make.
const AT_A_TIME: usize = 128;

/// Partial sums of sixteen tokens.
const SUMS: usize = 16 * 16;

/// What is in the scratch: states before each token, partial sums of products of rows, and results of sixteen keys, key
/// by key.
const PARTIAL: usize = AT_A_TIME * RUN;
const BLOCKS: usize = PARTIAL + 2 * AT_A_TIME / 32 * SUMS;
const _: () = assert!(BLOCKS + 3 * SUMS <= SCRATCH && RUN == 16);

/// Heads of 16 G channels, R keys at a time.
///
/// # Safety
/// The processor has the instructions of `S`; the arrays are as long as `rows` checks, for heads of that size.
#[inline(always)]
unsafe fn body<S: Sixteen, const G: usize, const R: usize>(
    run: &mut Run<'_, f32>,
    s: &[f32],
    d_s: &mut [f32],
) {
    const { assert!(16 * G * R <= AT_A_TIME && 16 % R == 0 && G > 1) };
    let n = 16 * G;
    let before = run.scratch.as_mut_ptr();
    // SAFETY: within the scratch, whose size is checked; of n numbers a token, and sixteen of `now`.
    let (sums, blocks) = unsafe { (before.add(PARTIAL), before.add(BLOCKS)) };
    let (r, k, w) = (run.r.as_ptr(), run.k.as_ptr(), run.w.as_ptr());
    let (v, g, d_v) = (run.v.as_ptr(), run.g.as_ptr(), run.d_v.as_mut_ptr());
    // SAFETY: as above.
    unsafe {
        let (currents, u) = (sums.add(SUMS), run.u.as_ptr());
        for token in 0..run.tokens {
            let (mut now, mut current) = (S::zero(), S::zero());
            for m in 0..G {
                let at = token * n + 16 * m;
                now = S::load(v.add(at)).fma(S::load(g.add(at)), now);
                current = S::load(r.add(at)).mul(S::load(u.add(16 * m))).fma(S::load(k.add(at)), current);
            }
            now.store(sums.add(16 * token));
            current.store(currents.add(16 * token));
        }
        S::fold(sums).store(run.now.as_mut_ptr());
        S::fold(currents).store(sums);
        for token in 0..run.tokens {
            let current = S::all(*sums.add(token));
            for m in 0..G {
                let at = token * n + 16 * m;
                current.mul(S::load(g.add(at))).store(d_v.add(at));
            }
        }
    }
    for key in (0..n).step_by(R) {
        // SAFETY: rows key .. key + R of n numbers, tokens below RUN, and groups of sixteen below G.
        unsafe {
            let mut row = [[S::zero(); G]; R];
            for q in 0..R {
                row[q] = load(s.as_ptr().add((key + q) * n));
            }
            for token in 0..run.tokens {
                let at = token * n;
                let g: [S; G] = load(g.add(at));
                for q in 0..R {
                    store(row[q], before.add((q * RUN + token) * n));
                    let mut sum = S::zero();
                    for m in 0..G {
                        sum = row[q][m].fma(g[m], sum);
                    }
                    sum.store(sums.add(q * SUMS + 16 * token));
                }
                let v: [S; G] = load(v.add(at));
                for q in 0..R {
                    let (k, w) = (S::all(*k.add(at + key + q)), S::all(*w.add(at + key + q)));
                    for m in 0..G {
                        row[q][m] = w.fma(row[q][m], k.mul(v[m]));
                    }
                }
            }
            let to = key % 16;
            for q in 0..R {
                S::fold(sums.add(q * SUMS)).store(blocks.add(16 * (to + q)));
            }
            let mut d_row = [[S::zero(); G]; R];
            for q in 0..R {
                d_row[q] = load(d_s.as_ptr().add((key + q) * n));
            }
            for token in (0..run.tokens).rev() {
                let at = token * n;
                let v: [S; G] = load(v.add(at));
                for q in 0..R {
                    let (mut by_v, mut by_s) = (S::zero(), S::zero());
                    for m in 0..G {
                        by_v = d_row[q][m].fma(v[m], by_v);
                        by_s = d_row[q][m].fma(S::load(before.add((q * RUN + token) * n + 16 * m)), by_s);
                    }
                    by_v.store(sums.add(2 * q * SUMS + 16 * token));
                    by_s.store(sums.add((2 * q + 1) * SUMS + 16 * token));
                }
                let mut by_k = [S::zero(); R];
                for q in 0..R {
                    by_k[q] = S::all(*k.add(at + key + q));
                }
                for m in 0..G {
                    let d_v = d_v.add(at + 16 * m);
                    let mut sum = S::load(d_v);
                    for q in 0..R {
                        sum = by_k[q].fma(d_row[q][m], sum);
                    }
                    sum.store(d_v);
                }
                let g: [S; G] = load(g.add(at));
                for q in 0..R {
                    let (r, w) = (S::all(*r.add(at + key + q)), S::all(*w.add(at + key + q)));
                    for m in 0..G {
                        d_row[q][m] = w.fma(d_row[q][m], r.mul(g[m]));
                    }
                }
            }
            for q in 0..R {
                store(d_row[q], d_s.as_mut_ptr().add((key + q) * n));
                for kind in 0..2 {
                    S::fold(sums.add((2 * q + kind) * SUMS))
                        .store(blocks.add((1 + kind) * SUMS + 16 * (to + q)));
                }
            }
            if to + R == 16 {
                let d = [&mut *run.d_r, &mut *run.d_k, &mut *run.d_w];
                for kind in 0..3 {
                    S::turn(blocks.add(kind * SUMS), d[kind].as_mut_ptr().add(key + R - 16), n);
                }
            }
        }
    }
}
