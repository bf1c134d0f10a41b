//! The sweeps of RWKV-7 backward in registers, for heads of 32 and 64 channels: exactly the sums of `v7.rs`.

#[cfg(target_arch = "aarch64")]
use super::lanes::Neon;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Sixteen, load, store};
use super::v7::Run;
use crate::{Isa, Level};

/// Both sweeps. False when there are no loops for this instruction set and size.
pub fn sweeps(isa: Isa, mut run: Run<'_, f32>) -> bool {
    let (n, tokens) = (run.n, run.tokens);
    let short = [&run.r, &run.k, &run.v, &run.g, &run.rho, &run.b, &run.d_v];
    let more = [&run.by_v, &run.by_rho, &run.s_z, &run.s_g];
    assert!(short.into_iter().chain(more).all(|x| x.len() >= tokens * n));
    assert!([&run.w, &run.kk, &run.z].iter().all(|x| x.len() >= (tokens + 1) * n));
    assert!([&run.d, &run.last, &run.s].iter().all(|x| x.len() == n * n) && run.e.len() >= n);
    let run = &mut run;
    match (isa.level(), n) {
        // SAFETY: an Isa exists only where the machine has the instructions; the sizes were checked.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 64) => unsafe { avx512::<4, 4>(run) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 32) => unsafe { avx512::<2, 2>(run) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 64) => unsafe { avx2::<4, 1>(run) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 32) => unsafe { avx2::<2, 1>(run) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        (Level::Neon | Level::NeonDotprod | Level::NeonI8mm, 64) => unsafe { neon::<4, 1>(run) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        (Level::Neon | Level::NeonDotprod | Level::NeonI8mm, 32) => unsafe { neon::<2, 1>(run) },
        _ => return false,
    }
    true
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
unsafe fn avx512<const G: usize, const B: usize>(run: &mut Run<'_, f32>) {
    // SAFETY: the caller's promise.
    unsafe { body::<Avx512, G, B>(run) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const G: usize, const B: usize>(run: &mut Run<'_, f32>) {
    // SAFETY: the caller's promise.
    unsafe { body::<Avx2, G, B>(run) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<const G: usize, const B: usize>(run: &mut Run<'_, f32>) {
    // SAFETY: the caller's promise.
    unsafe { body::<Neon, G, B>(run) }
}

/// Partial sums of two products with each key's row.
#[repr(C, align(64))]
struct Sums([[f32; 16 * 64]; 2]);

/// Heads of 16 G channels, 16 B values at a time.
///
/// # Safety
/// The processor has the instructions of `S`; the arrays are as long as `sweeps` checks, for heads of that size.
#[inline(always)]
unsafe fn body<S: Sixteen, const G: usize, const B: usize>(run: &mut Run<'_, f32>) {
    const { assert!(G <= 4 && G.is_multiple_of(B)) };
    let n = 16 * G;
    let mut sums = Sums([[0.0; 16 * 64]; 2]);
    for token in (0..run.tokens).rev() {
        // SAFETY: the caller's promise; the token is one of the run.
        unsafe { gradient_token::<S, G, B>(run, &mut sums, token) };
        if token + 1 == run.tokens {
            run.last.copy_from_slice(run.d);
        }
    }
    for token in 0..run.tokens {
        // SAFETY: as above.
        unsafe { state_token::<S, G, B>(run, &mut sums, token) };
    }
    for key in 0..n {
        // SAFETY: rows of n numbers.
        unsafe {
            let mut sum = S::zero();
            for m in 0..G {
                let at = key * n + 16 * m;
                sum = S::load(run.s.as_ptr().add(at)).fma(S::load(run.last.as_ptr().add(at)), sum);
            }
            sum.store(sums.0[0].as_mut_ptr().add(16 * key));
        }
    }
    // SAFETY: n partial sums, n results.
    unsafe { fold::<S>(&sums.0[0], run.e.as_mut_ptr(), n) }
}

/// Of `n` sixteens.
///
/// # Safety
/// The processor has the instructions of `S`; `n`, a multiple of 16, numbers can be written, and there are as many sums.
#[inline(always)]
unsafe fn fold<S: Sixteen>(sums: &[f32; 16 * 64], to: *mut f32, n: usize) {
    for key in (0..n).step_by(16) {
        // SAFETY: the caller's promise.
        unsafe { S::fold(sums.as_ptr().add(16 * key)).store(to.add(key)) }
    }
}

/// D of one token.
///
/// # Safety
/// As for `body`; `token` is below the run's.
#[inline(always)]
unsafe fn gradient_token<S: Sixteen, const G: usize, const B: usize>(
    run: &mut Run<'_, f32>,
    sums: &mut Sums,
    token: usize,
) {
    let n = 16 * G;
    let (here, next) = (token * n, (token + 1) * n);
    let (by_v, by_rho) = (sums.0[0].as_mut_ptr(), sums.0[1].as_mut_ptr());
    // SAFETY: groups of sixteen below G, keys below n, of arrays with n numbers from `here` and `next` on.
    unsafe {
        let (w, kk) = (run.w.as_ptr().add(next), run.kk.as_ptr().add(next));
        let (r, k, b) = (run.r.as_ptr().add(here), run.k.as_ptr().add(here), run.b.as_ptr().add(here));
        for at in (0..n).step_by(16 * B) {
            let next_z: [S; B] = load(run.z.as_ptr().add(next + at));
            let g: [S; B] = load(run.g.as_ptr().add(here + at));
            let v: [S; B] = load(run.v.as_ptr().add(here + at));
            let rho: [S; B] = load(run.rho.as_ptr().add(here + at));
            let (mut d_v, mut z) = ([S::zero(); B], [S::zero(); B]);
            for key in 0..n {
                let row = run.d.as_mut_ptr().add(key * n + at);
                let (w, kk) = (S::all(*w.add(key)), S::all(*kk.add(key)));
                let (r, k, b) = (S::all(*r.add(key)), S::all(*k.add(key)), S::all(*b.add(key)));
                let mut d = [S::zero(); B];
                for m in 0..B {
                    d[m] = S::load(row.add(16 * m)).fma(w, next_z[m].fnma(kk, r.mul(g[m])));
                    d[m].store(row.add(16 * m));
                    d_v[m] = d[m].fma(k, d_v[m]);
                    z[m] = d[m].fma(b, z[m]);
                }
                let (to_v, to_rho) = (by_v.add(16 * key), by_rho.add(16 * key));
                let (mut sum_v, mut sum_rho) =
                    if at == 0 { (S::zero(), S::zero()) } else { (S::load(to_v), S::load(to_rho)) };
                for m in 0..B {
                    sum_v = d[m].fma(v[m], sum_v);
                    sum_rho = d[m].fma(rho[m], sum_rho);
                }
                sum_v.store(to_v);
                sum_rho.store(to_rho);
            }
            store(d_v, run.d_v.as_mut_ptr().add(here + at));
            store(z, run.z.as_mut_ptr().add(here + at));
        }
        fold::<S>(&sums.0[0], run.by_v.as_mut_ptr().add(here), n);
        fold::<S>(&sums.0[1], run.by_rho.as_mut_ptr().add(here), n);
    }
}

/// The state of one token.
///
/// # Safety
/// As for `body`; `token` is below the run's.
#[inline(always)]
unsafe fn state_token<S: Sixteen, const G: usize, const B: usize>(
    run: &mut Run<'_, f32>,
    sums: &mut Sums,
    token: usize,
) {
    let n = 16 * G;
    let here = token * n;
    let (s_z, s_g) = (sums.0[0].as_mut_ptr(), sums.0[1].as_mut_ptr());
    // SAFETY: groups of sixteen below G, keys below n, of arrays with n numbers from `here` on.
    unsafe {
        let (w, b, k) = (run.w.as_ptr().add(here), run.b.as_ptr().add(here), run.k.as_ptr().add(here));
        for at in (0..n).step_by(16 * B) {
            let z: [S; B] = load(run.z.as_ptr().add(here + at));
            let g: [S; B] = load(run.g.as_ptr().add(here + at));
            let v: [S; B] = load(run.v.as_ptr().add(here + at));
            let rho: [S; B] = load(run.rho.as_ptr().add(here + at));
            for key in 0..n {
                let row = run.s.as_mut_ptr().add(key * n + at);
                let (w, b, k) = (S::all(*w.add(key)), S::all(*b.add(key)), S::all(*k.add(key)));
                let (to_z, to_g) = (s_z.add(16 * key), s_g.add(16 * key));
                let (mut sum_z, mut sum_g) =
                    if at == 0 { (S::zero(), S::zero()) } else { (S::load(to_z), S::load(to_g)) };
                for m in 0..B {
                    let old = S::load(row.add(16 * m));
                    let new = old.fma(w, rho[m].fnma(b, v[m].mul(k)));
                    new.store(row.add(16 * m));
                    sum_z = old.fma(z[m], sum_z);
                    sum_g = new.fma(g[m], sum_g);
                }
                sum_z.store(to_z);
                sum_g.store(to_g);
            }
        }
        fold::<S>(&sums.0[0], run.s_z.as_mut_ptr().add(here), n);
        fold::<S>(&sums.0[1], run.s_g.as_mut_ptr().add(here), n);
    }
}
