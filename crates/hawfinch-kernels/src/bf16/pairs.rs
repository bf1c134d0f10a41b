//! Pairs of bf16 by AVX512-BF16: eight tokens × thirty-two outputs in registers.

use std::arch::x86_64::*;

use super::tokens::Line;
use super::{BLOCK_BYTES, DEPTH, FEW, HALF, Next, ROWS, Strip, Tokens};

/// Tokens of a tile at most.
const T: usize = 8;

/// Sums of every panel and token, `[panel, token, output]`.
///
/// # Safety
/// The machine has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub unsafe fn strip(strip: Strip<'_>, x: &Tokens, sums: &mut [[f32; ROWS]]) {
    let Strip { blocks, data, .. } = strip;
    let depth = if x.tokens() <= FEW { blocks } else { DEPTH };
    let tiles = x.groups().map(|g| g.width.div_ceil(T)).sum::<usize>();
    for (panel, sums) in data.chunks_exact(blocks * BLOCK_BYTES).zip(sums.chunks_exact_mut(x.tokens())) {
        for from in (0..blocks).step_by(depth) {
            let count = depth.min(blocks - from);
            let (w, rest) = panel[from * BLOCK_BYTES..].split_at(count * BLOCK_BYTES);
            let mut next = Next::new(&rest[..rest.len().min(depth * BLOCK_BYTES)]);
            let share = next.lines.div_ceil(tiles * count);
            for group in x.groups() {
                let lines = &group.lines[from * group.width..][..count * group.width];
                let sums = &mut sums[group.first..][..group.width];
                let mut t = 0;
                for sums in sums.chunks_mut(T) {
                    // SAFETY: the machine has the instructions; so many blocks of so many tokens are there.
                    unsafe {
                        let x = lines.as_ptr().add(t);
                        let tile = match sums.len() {
                            1 => tile::<1>,
                            2 => tile::<2>,
                            3 => tile::<3>,
                            4 => tile::<4>,
                            5 => tile::<5>,
                            6 => tile::<6>,
                            7 => tile::<7>,
                            _ => tile::<T>,
                        };
                        tile(
                            w.as_ptr(),
                            x,
                            group.width,
                            count,
                            sums.as_mut_ptr(),
                            from == 0,
                            (&mut next, share),
                        );
                    }
                    t += T;
                }
            }
        }
    }
}

/// Adds to the sums of a panel with N tokens, or where they `begin` to nothing, the products of some blocks.
///
/// # Safety
/// `w` has so many blocks; `x` N lines of each, of one block `width` lines after those of the one before; `sums` is those
/// of N tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const N: usize>(
    w: *const u8,
    x: *const Line,
    width: usize,
    blocks: usize,
    sums: *mut [f32; ROWS],
    begin: bool,
    (next, share): (&mut Next, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; N];
        if !begin {
            for (t, acc) in acc.iter_mut().enumerate() {
                let sums = sums.add(t).cast::<f32>();
                *acc = [_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(HALF))];
            }
        }
        for b in 0..blocks {
            next.fetch(share);
            let (w, x) = (w.add(b * BLOCK_BYTES), x.add(b * width).cast::<i32>());
            for p in 0..HALF {
                let pairs = |at: usize| {
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.add(at).cast()))
                };
                let w = [pairs(p * 128), pairs(p * 128 + 64)];
                for (t, acc) in acc.iter_mut().enumerate() {
                    let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x.add(t * HALF + p)));
                    acc[0] = _mm512_dpbf16_ps(acc[0], w[0], x);
                    acc[1] = _mm512_dpbf16_ps(acc[1], w[1], x);
                }
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            let sums = sums.add(t).cast::<f32>();
            _mm512_storeu_ps(sums, acc[0]);
            _mm512_storeu_ps(sums.add(HALF), acc[1]);
        }
    }
}
