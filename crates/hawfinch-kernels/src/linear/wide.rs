//! Products with rows as they lie, for AVX2, AVX-512 and NEON: exactly the sums of [`crate::reduce::dot`].
//!
//! Few tokens: four rows at a time, each a stream of its own, widened as they are loaded. More tokens: rows are
//! widened once into near memory, then tiles of rows × tokens are held in registers.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::cell::RefCell;

use super::Matrix;
use super::rows::{GROUP, decode_number};
#[cfg(target_arch = "x86_64")]
use super::widen_x86 as widen;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::reduce::{LANES, fold};
use crate::{DType, Isa, Level, prefetch};

/// Numbers of each row and token that tiles work through before the next: those of a tile stay in the nearest
/// cache, those of all tokens in the second.
const STRIP: usize = 512;
/// Where the next row's strip begins: the last may be longer by less than sixteen.
const STRIDE: usize = STRIP + LANES;
/// Tokens that are multiplied with rows as they are widened, where there are registers enough.
#[cfg(target_arch = "x86_64")]
const DIRECT: usize = 4;
/// How far ahead of the loads each stream is fetched, in bytes: into the second cache, which has room for more
/// lines under way than the first.
const AHEAD: usize = 1024;
/// Numbers of a row that are multiplied before those of the next row.
const RUN: usize = 128;

/// What the loops for several tokens work in.
#[derive(Default)]
struct Room {
    /// Widened strips, `[row, STRIDE]`.
    block: Vec<f32>,
    sums: Vec<f32>,
    narrow: Vec<f32>,
}

thread_local! {
    /// Used by one step after the other.
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Outputs `first .. first + count` of every token before scaling, given to `put(token, first output, values)`. False
/// when this instruction set has no loops of its own.
pub fn rows(
    isa: Isa,
    x: &[f32],
    w: Matrix<'_>,
    first: usize,
    count: usize,
    put: &mut dyn FnMut(usize, usize, &[f32]),
) -> bool {
    let i = w.inputs;
    let t = x.len() / i;
    let direct = match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => DIRECT,
        _ => 1,
    };
    if t <= direct && matches!(w.dtype, DType::BF16 | DType::F16 | DType::F32) {
        let size = w.dtype.block_bytes();
        let bytes = w.row_bytes();
        let mut j = first;
        while j < first + count {
            let n = 4.min(first + count - j);
            // Fewer than four are left: the last one stands in for those that are missing.
            let rows: [&[u8]; 4] = std::array::from_fn(|r| &w.data[(j + r.min(n - 1)) * bytes..][..bytes]);
            let mut finish = |token: usize, mut sums: [f32; 4]| {
                if !i.is_multiple_of(LANES) {
                    for (row, sum) in rows.iter().zip(&mut sums) {
                        for k in i / LANES * LANES..i {
                            *sum = decode_number(w.dtype, &row[size * k..]).mul_add(x[token * i + k], *sum);
                        }
                    }
                }
                put(token, j, &sums[..n]);
            };
            match isa.level() {
                // SAFETY: an Isa exists only where the machine has the instructions.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512::four(w.dtype, rows, x, &mut finish) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2::four(w.dtype, rows, x, &mut finish) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe {
                    with_neon::four(w.dtype, rows, x, &mut finish)
                },
                _ => return false,
            }
            j += n;
        }
        return true;
    }
    ROOM.with_borrow_mut(|room| match isa.level() {
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe {
            avx512::tiles(x, w, first, count, room, put);
            true
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe {
            avx2::tiles(x, w, first, count, room, put);
            true
        },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDotprod | Level::NeonI8mm => unsafe {
            with_neon::tiles(x, w, first, count, room, put);
            true
        },
        _ => false,
    })
}

/// Asks for numbers `at ..` of row `row`.
#[inline(always)]
fn prefetch_part(w: Matrix<'_>, row: usize, at: usize, len: usize) {
    let Some(before) = w.dtype.bytes_for(at) else { return };
    let bytes = w.row(row);
    let until = w.dtype.bytes_for(at + len).map_or(bytes.len(), |until| until.min(bytes.len()));
    for line in (before..until).step_by(64).chain(until.checked_sub(1)) {
        prefetch::second(bytes.as_ptr().wrapping_add(line));
    }
}

/// Defines the loops for one register width. `$load` gives the `n`-th register of the sixteen numbers of
/// `$dtype` at a pointer.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:path, $loadu:path, $storeu:path, $fma:path,
     $bf16:path, $f16:path, $rows:literal, $tokens:literal) => {
        mod $name {
            use super::*;

            /// Registers of sixteen numbers.
            const N: usize = LANES / $per;
            type Acc = [$reg; N];

            #[inline]
            #[target_feature(enable = $features)]
            fn folded(acc: Acc) -> f32 {
                let mut lanes = [0f32; LANES];
                for n in 0..N {
                    // SAFETY: as many numbers as `lanes` has from there.
                    unsafe { $storeu(lanes.as_mut_ptr().add(n * $per), acc[n]) };
                }
                fold(lanes)
            }

            /// Sums of four rows with each token, over the whole groups of sixteen, given to `put(token, sums)`. No more
            /// tokens than `DIRECT`.
            #[target_feature(enable = $features)]
            pub fn four(dtype: DType, rows: [&[u8]; 4], x: &[f32], put: &mut dyn FnMut(usize, [f32; 4])) {
                #[inline(always)]
                unsafe fn run<const SIZE: usize, const T: usize>(
                    rows: [&[u8]; 4],
                    x: &[f32],
                    load: impl Fn(*const u8) -> $reg,
                    fma: impl Fn($reg, $reg, $reg) -> $reg,
                    loadx: impl Fn(*const f32) -> $reg,
                    zero: $reg,
                ) -> [[Acc; 4]; T] {
                    let mut acc = [[[zero; N]; 4]; T];
                    let k = x.len() / T;
                    let whole = k / LANES * LANES;
                    assert!(rows.iter().all(|r| r.len() == k * SIZE));
                    // Rows follow each other: near their ends each stream goes on four rows further.
                    let ahead = |at: usize| {
                        let ahead = AHEAD + if at * SIZE + AHEAD < k * SIZE { 0 } else { 3 * k * SIZE };
                        rows.map(|row| row.as_ptr().wrapping_add(at * SIZE + ahead))
                    };
                    if T == 1 {
                        // One row after the other in runs of some lines, in which memory gives most.
                        for at in (0..whole).step_by(RUN) {
                            let end = whole.min(at + RUN);
                            let ahead = ahead(at);
                            for r in 0..4 {
                                let lines = (0..(end - at) * SIZE).step_by(64);
                                lines.for_each(|line| prefetch::second(ahead[r].wrapping_add(line)));
                                for at in (at..end).step_by(LANES) {
                                    for n in 0..N {
                                        let j = at + n * $per;
                                        // SAFETY: j + the register's numbers <= whole <= the length of both.
                                        let (w, x) = unsafe {
                                            (load(rows[r].as_ptr().add(j * SIZE)), loadx(x.as_ptr().add(j)))
                                        };
                                        acc[0][r][n] = fma(w, x, acc[0][r][n]);
                                    }
                                }
                            }
                        }
                        return acc;
                    }
                    let mut at = 0;
                    while at < whole {
                        if (at * SIZE).is_multiple_of(64) {
                            ahead(at).into_iter().for_each(prefetch::second);
                        }
                        for n in 0..N {
                            let j = at + n * $per;
                            let mut ws = [zero; 4];
                            for r in 0..4 {
                                // SAFETY: j + the register's numbers <= whole <= the length of all.
                                ws[r] = load(unsafe { rows[r].as_ptr().add(j * SIZE) });
                            }
                            for t in 0..T {
                                // SAFETY: as above, in token t.
                                let xs = loadx(unsafe { x.as_ptr().add(t * k + j) });
                                for r in 0..4 {
                                    acc[t][r][n] = fma(ws[r], xs, acc[t][r][n]);
                                }
                            }
                        }
                        at += LANES;
                    }
                    acc
                }
                macro_rules! tokens {
                    ($count:literal) => {{
                        let fma = |a, b, c| $fma(a, b, c);
                        // SAFETY: `run` keeps the pointer within x.
                        let loadx = |p: *const f32| unsafe { $loadu(p) };
                        let zero = $zero();
                        // SAFETY: `run` keeps the pointers within the rows and x.
                        let acc = unsafe {
                            match dtype {
                                DType::BF16 => run::<2, $count>(rows, x, |p| $bf16(p), fma, loadx, zero),
                                DType::F16 => run::<2, $count>(rows, x, |p| $f16(p), fma, loadx, zero),
                                _ => run::<4, $count>(rows, x, |p| $loadu(p.cast()), fma, loadx, zero),
                            }
                        };
                        for (t, acc) in acc.into_iter().enumerate() {
                            put(t, [folded(acc[0]), folded(acc[1]), folded(acc[2]), folded(acc[3])]);
                        }
                    }};
                }
                match x.len() * dtype.block_bytes() / rows[0].len() {
                    1 => tokens!(1),
                    2 => tokens!(2),
                    3 => tokens!(3),
                    4 => tokens!(4),
                    _ => unreachable!("no more tokens than DIRECT"),
                }
            }

            /// Adds to the sums of R rows with T tokens the products of `len` numbers, a multiple of sixteen.
            ///
            /// # Safety
            /// `w` has R rows, `stride` numbers apart, `x` T, `k` apart; `len` are left of each; `acc` holds R T groups
            /// of sixteen.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const T: usize>(
                w: *const f32,
                stride: usize,
                x: *const f32,
                k: usize,
                len: usize,
                sums: *mut f32,
            ) {
                // A register of each sixteen at a time: so many rows and tokens fit the registers, for few loads.
                for n in (0..LANES).step_by($per) {
                    let mut acc = [[$zero(); T]; R];
                    for r in 0..R {
                        for t in 0..T {
                            // SAFETY: within `sums`.
                            acc[r][t] = unsafe { $loadu(sums.add((r * T + t) * LANES + n)) };
                        }
                    }
                    for at in (n..n + len).step_by(LANES) {
                        let mut xs = [$zero(); T];
                        for t in 0..T {
                            // SAFETY: within token t.
                            xs[t] = unsafe { $loadu(x.add(t * k + at)) };
                        }
                        for r in 0..R {
                            // SAFETY: within row r.
                            let ws = unsafe { $loadu(w.add(r * stride + at)) };
                            for t in 0..T {
                                acc[r][t] = $fma(ws, xs[t], acc[r][t]);
                            }
                        }
                    }
                    for r in 0..R {
                        for t in 0..T {
                            // SAFETY: within `sums`.
                            unsafe { $storeu(sums.add((r * T + t) * LANES + n), acc[r][t]) };
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn decode(w: Matrix<'_>, row: usize, at: usize, out: &mut [f32], narrow: &mut Vec<f32>) {
                w.decode_part(row, at, out, narrow);
            }

            #[target_feature(enable = $features)]
            pub fn tiles(
                x: &[f32],
                w: Matrix<'_>,
                first: usize,
                count: usize,
                room: &mut Room,
                put: &mut dyn FnMut(usize, usize, &[f32]),
            ) {
                const { assert!(GROUP % $rows == 0 && $tokens == 3) };
                let k = w.inputs;
                let tokens = x.len() / k;
                let whole = k / LANES * LANES;
                let Room { block, sums, narrow } = room;
                block.resize(GROUP * STRIDE, 0.0);
                // [group of tokens][row][token of the group][lane]
                sums.resize(GROUP * tokens * LANES, 0.0);
                // Tokens of the group that begins with token s: two pairs rather than three and one.
                let wide = |s: usize| if tokens - s == 4 { 2 } else { (tokens - s).min($tokens) };
                for j in (first..first + count).step_by(GROUP) {
                    let n = GROUP.min(first + count - j);
                    let rows = n.next_multiple_of($rows); // those beyond n hold other numbers, not used
                    sums.fill(0.0);
                    let mut at = 0;
                    // A strip of each row at a time; with the last, what is left behind the groups of sixteen.
                    loop {
                        let len = STRIP.min(whole - at);
                        let last = at + len == whole;
                        let decoded = if last { k - at } else { len };
                        for (r, row) in block.chunks_exact_mut(STRIDE).take(n).enumerate() {
                            decode(w, j + r, at, &mut row[..decoded], narrow);
                        }
                        // Ask for the next strip, of these rows or of the next, while this one is multiplied.
                        let (row, from) = if last { (j + GROUP, 0) } else { (j, at + len) };
                        for r in row..(row + n).min(w.outputs) {
                            prefetch_part(w, r, from, STRIP);
                        }
                        let mut s = 0;
                        while s < tokens {
                            for r in (0..rows).step_by($rows) {
                                // SAFETY: rows r.., tokens s.. and the sums of both, from `at` on.
                                unsafe {
                                    let w = block.as_ptr().add(r * STRIDE);
                                    let x = x.as_ptr().add(s * k + at);
                                    let sums = sums.as_mut_ptr().add((s * GROUP + r * wide(s)) * LANES);
                                    match wide(s) {
                                        1 => tile::<$rows, 1>(w, STRIDE, x, k, len, sums),
                                        2 => tile::<$rows, 2>(w, STRIDE, x, k, len, sums),
                                        _ => tile::<$rows, $tokens>(w, STRIDE, x, k, len, sums),
                                    }
                                }
                            }
                            s += wide(s);
                        }
                        if last {
                            break;
                        }
                        at += len;
                    }
                    let mut s = 0;
                    while s < tokens {
                        for t in 0..wide(s) {
                            let mut out = [0f32; GROUP];
                            for (r, out) in out.iter_mut().take(n).enumerate() {
                                let lanes = (s * GROUP + r * wide(s) + t) * LANES;
                                let lanes: &[f32; LANES] =
                                    sums[lanes..][..LANES].try_into().expect("sixteen");
                                let w_rest = &block[r * STRIDE + whole - at..][..k - whole];
                                let x_rest = &x[(s + t) * k + whole..(s + t + 1) * k];
                                let rest = w_rest.iter().zip(x_rest);
                                *out = rest.fold(fold(*lanes), |sum, (w, x)| w.mul_add(*x, sum));
                            }
                            put(s + t, j, &out[..n]);
                        }
                        s += wide(s);
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
width!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    widen::bf16_512,
    widen::f16_512,
    8,
    3
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma,f16c",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    widen::bf16_256,
    widen::f16_256,
    4,
    3
);
#[cfg(target_arch = "aarch64")]
width!(
    with_neon,
    "neon",
    float32x4_t,
    4,
    neon::zero_ps,
    vld1q_f32,
    vst1q_f32,
    neon::fma,
    neon::bf16,
    neon::f16,
    8,
    3
);
