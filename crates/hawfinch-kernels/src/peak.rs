//! What the machine can do at most, measured: bytes read and multiply-adds a second. Every speed is printed
//! beside these, taken in the same run.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::Level;
use crate::isa::compiled_for_each;
use crate::{Isa, Pool, prefetch};

/// Seconds of the fastest of as many runs as fit in `budget`, at least three: what disturbs a measurement only
/// ever slows it.
pub fn fastest(budget: Duration, mut run: impl FnMut()) -> f64 {
    let (began, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || began.elapsed() < budget {
        let at = Instant::now();
        run();
        best = best.min(at.elapsed().as_secs_f64());
        runs += 1;
    }
    best.max(1e-9)
}

/// Bytes a second that the threads of `pool` read from `data` (take far more than the caches hold), each in
/// `streams` streams of its own, fetched ahead.
pub fn read_bandwidth(isa: Isa, pool: &Pool, data: &[u8], streams: usize, budget: Duration) -> f64 {
    let (_, words, _) = bytemuck::pod_align_to::<u8, u64>(data);
    let threads = pool.threads();
    let part = words.len() / threads / streams;
    let time = fastest(budget, || {
        pool.run(threads, &|me| {
            let own = &words[me * part * streams..];
            let mut sum = [0; 8];
            match streams {
                1 => read::<1>(isa, &mut sum, own, part),
                2 => read::<2>(isa, &mut sum, own, part),
                8 => read::<8>(isa, &mut sum, own, part),
                _ => read::<4>(isa, &mut sum, own, part),
            }
            black_box(sum);
        });
    });
    (part * threads * streams.min(8) * 8) as f64 / time
}

fn read<const S: usize>(isa: Isa, sum: &mut [u64; 8], words: &[u64], part: usize) {
    let streams: [&[u64]; S] = std::array::from_fn(|s| &words[s * part..(s + 1) * part]);
    sums(isa, sum, &streams, part);
}

compiled_for_each! {
    fn sums(total: &mut [u64; 8], streams: &[&[u64]], part: usize) = sums_body
}

#[inline(always)]
fn sums_body(total: &mut [u64; 8], streams: &[&[u64]], part: usize) {
    // A page's share of each stream in turn: short enough to be streams, long enough to be loops.
    const RUN: usize = 64;
    let mut sum = [0u64; 8];
    for at in (0..part / RUN * RUN).step_by(RUN) {
        for stream in streams {
            for line in 0..RUN / 8 {
                prefetch::first(stream.as_ptr().wrapping_add(at + line * 8 + 256));
            }
            for words in stream[at..at + RUN].chunks_exact(8) {
                for l in 0..8 {
                    sum[l] = sum[l].wrapping_add(words[l]);
                }
            }
        }
    }
    *total = sum;
}

/// f32 multiply-adds a second of all threads, operands in registers.
pub fn multiply_adds(isa: Isa, pool: &Pool, budget: Duration) -> f64 {
    let mut done = 0.0;
    let time = fastest(budget, || done = multiply_adds_once(isa, pool));
    done / time
}

/// Multiply-adds of bf16 a second of all threads by the instruction for pairs, operands in registers. `None` where there
/// is none.
pub fn pairs(isa: Isa, pool: &Pool, budget: Duration) -> Option<f64> {
    let mut done = Some(0.0);
    let time = fastest(budget, || done = pairs_once(isa, pool));
    done.map(|done| done / time)
}

/// Rounds of a chunk: some microseconds.
const ROUNDS: usize = 5_000;
/// Chunks for each thread, so that one that comes late does less.
const CHUNKS: usize = 8;

/// Runs what [`multiply_adds`] times, once; how many they were.
pub fn multiply_adds_once(isa: Isa, pool: &Pool) -> f64 {
    once(pool, &|| match isa.level() {
        // SAFETY: an Isa exists only where the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { chains512(black_box(0.999), ROUNDS) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { chains256(black_box(0.999), ROUNDS) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe { chains128(black_box(0.999), ROUNDS) },
        _ => chains(black_box(0.999), ROUNDS),
    })
}

/// Runs what [`pairs`] times, once; how many they were.
pub fn pairs_once(isa: Isa, pool: &Pool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if isa.level() == Level::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the machine has the instructions.
        return Some(once(pool, &|| unsafe { chains_of_pairs(black_box(0.999), ROUNDS) }));
    }
    let _ = (isa, pool);
    None
}

/// Rounds of chains, on all threads; `chains` gives the multiply-adds of one.
fn once(pool: &Pool, chains: &(dyn Fn() -> usize + Sync)) -> f64 {
    let numbers = AtomicUsize::new(0);
    let chunks = pool.threads() * CHUNKS;
    pool.run(chunks, &|_| numbers.store(chains(), Ordering::Relaxed));
    (chunks * ROUNDS * numbers.into_inner()) as f64
}

/// Multiply-adds a second of all threads by tiles, operands in tiles: of 8 bits and of bf16. `None` where the machine's
/// tiles are not used.
pub fn tiles(isa: Isa, pool: &Pool, budget: Duration) -> Option<[f64; 2]> {
    #[cfg(target_arch = "x86_64")]
    if isa.tiles() == crate::isa::TileCode::Machine {
        const ROUNDS: usize = 20_000;
        let threads = pool.threads();
        return Some([false, true].map(|bf16| {
            let done = AtomicUsize::new(0);
            let time = fastest(budget, || {
                pool.run(threads, &|_| {
                    done.store(
                        crate::tiles::amx::Configured::new(isa).multiply(bf16, ROUNDS),
                        Ordering::Relaxed,
                    );
                });
            });
            (threads * done.into_inner()) as f64 / time
        }));
    }
    let _ = (isa, pool, budget);
    None
}

/// Independent chains of multiply-adds: enough to hide their latency.
const CHAINS: usize = 12;

fn chains(a: f32, rounds: usize) -> usize {
    let mut acc = [1.0f32; CHAINS];
    for _ in 0..rounds {
        acc.iter_mut().for_each(|v| *v = v.mul_add(a, 1e-3));
    }
    black_box(acc).len()
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn chains128(a: f32, rounds: usize) -> usize {
    use std::arch::aarch64::*;
    let (a, b) = (vdupq_n_f32(a), vdupq_n_f32(1e-3));
    // Four units with a latency of four.
    let mut acc = [vdupq_n_f32(1.0); 16];
    for _ in 0..rounds {
        for v in &mut acc {
            *v = vfmaq_f32(b, *v, a);
        }
    }
    black_box(acc).len() * 4
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains256(a: f32, rounds: usize) -> usize {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(a), _mm256_set1_ps(1e-3));
    let mut acc = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..rounds {
        for v in &mut acc {
            *v = _mm256_fmadd_ps(*v, a, b);
        }
    }
    black_box(acc).len() * 8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains512(a: f32, rounds: usize) -> usize {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(a), _mm512_set1_ps(1e-3));
    let mut acc = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..rounds {
        for v in &mut acc {
            *v = _mm512_fmadd_ps(*v, a, b);
        }
    }
    black_box(acc).len() * 16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn chains_of_pairs(a: f32, rounds: usize) -> usize {
    use std::arch::x86_64::*;
    let a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(a), _mm512_set1_ps(-a));
    let mut acc = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..rounds {
        for v in &mut acc {
            *v = _mm512_dpbf16_ps(*v, a, a);
        }
    }
    black_box(acc).len() * 32
}
