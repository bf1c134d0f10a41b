//! Products with rows as they lie and several tokens, for AVX2, AVX-512 and NEON: exactly the sums of
//! [`crate::reduce::dot`].
//!
//! Rows are widened and tokens copied into near memory, then tiles of rows × tokens are held in registers. What is
//! copied lies in parts: of every sixteen numbers, those that the first register holds, then those of the second. A tile
//! multiplies a part of its rows and tokens, so that lines are read whole and few sums are loaded.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::Matrix;
use super::rows::{GROUP, by_width, decode_number};
#[cfg(target_arch = "x86_64")]
use super::widen_x86 as widen;
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::reduce::LANES;
#[cfg(target_arch = "aarch64")]
use crate::reduce::fold;
use crate::{DType, Isa, block, prefetch};

/// Tokens that are copied at a time: strips of these fill most of a second cache of 512 kB. (24, 36 and 72 were measured
/// to be no faster on one.)
const BLOCK: usize = 48;
/// Numbers of a row that are multiplied before the next, at most, where sums must be kept between.
const SHORT: usize = 1024;
/// Rows of a chunk of work at most, for all of which tokens are copied: what is kept between is bounded.
const MOST: usize = 1024;
/// The same where sums must be kept. (64, 128 and 192 were measured to be slower, though sums of fewer lie nearer.)
const MOST_KEPT: usize = 256;
/// Rows that are worth copying tokens for.
const LEAST: usize = 64;
/// Chunks that a product gives each thread, where rows and tokens are enough: one of them is the most that others wait
/// for a thread that comes late.
const CHUNKS: usize = 16;
/// The same where there are so few that tokens are copied for less than [`LEAST`].
const FEW_CHUNKS: usize = 2;

/// Outputs and tokens of a chunk of work, for so many threads, outputs, inputs and tokens.
pub fn chunk((isa, threads): (Isa, usize), o: usize, i: usize, t: usize) -> (usize, usize) {
    let tokens = t.div_ceil(t.div_ceil(BLOCK)).next_multiple_of(3);
    // Rows of all blocks of tokens, shared by the threads.
    let shared = o * t.div_ceil(tokens) / threads;
    let least = (shared / FEW_CHUNKS).clamp(2 * GROUP, LEAST);
    let most = if i > strip(isa) { MOST_KEPT } else { MOST };
    let rows = (shared / CHUNKS).clamp(least, most);
    (o.div_ceil(o.div_ceil(rows)).next_multiple_of(GROUP), tokens)
}

/// Numbers that begin at a cache line, so that no load of a register touches two.
#[derive(Default)]
struct Aligned(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl Aligned {
    /// So many numbers, of any content.
    fn sized(&mut self, numbers: usize) -> &mut [f32] {
        let lines = numbers.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LANES]));
        }
        // SAFETY: a line is so many numbers and nothing else.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), numbers) }
    }
}

/// What the loops work in.
#[derive(Default)]
struct Room {
    /// Widened strips of a group of rows, `[part, row, stride]`.
    rows: Aligned,
    /// Strips of the tokens, `[part, token, stride]`.
    tokens: Aligned,
    /// `[group of rows][part][tile of rows][tile of tokens][row][token][lane of the part]`; where a strip is all of a
    /// row, of one group.
    sums: Aligned,
    /// What is done, `[token, output]`.
    outputs: Aligned,
    /// Numbers of a strip of a row in block formats.
    decoded: Vec<f32>,
}

thread_local! {
    /// Used by one step after the other.
    static ROOM: RefCell<Room> = RefCell::default();
}

/// The longest strip.
fn strip(isa: Isa) -> usize {
    macro_rules! longest {
        ($width:ident) => {
            $width::STRIP
        };
    }
    by_width!(isa, longest, SHORT)
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
    ROOM.with_borrow_mut(|room| {
        for (n, x) in x.chunks(BLOCK * w.inputs).enumerate() {
            let put = &mut |t: usize, sums: &[f32]| put(n * BLOCK + t, first, sums);
            macro_rules! run {
                ($width:ident) => {
                    // SAFETY: an Isa exists only where the machine has the instructions.
                    unsafe { $width::tiles(x, w, first, count, room, put) }
                };
            }
            by_width!(isa, run, return false);
        }
        true
    })
}

/// Strips of rows that will be widened next. Their lines are asked for some at a time while others are multiplied: asked
/// for all at once they would wait for one another, and what is multiplied for them.
struct Next<'a> {
    data: &'a [u8],
    /// Bytes of a row, and of them the strip's.
    row: usize,
    strip: usize,
    /// Where the strip of the row at hand begins, which line of it is next, and where the last row ends.
    from: usize,
    at: usize,
    end: usize,
}

impl<'a> Next<'a> {
    fn new(w: Matrix<'a>, rows: Range<usize>, strip: Range<usize>) -> Self {
        let row = w.row_bytes();
        let from = rows.start * row + strip.start;
        Next { data: w.data, row, strip: strip.len(), from, at: 0, end: rows.end.min(w.outputs) * row }
    }

    /// Asks for the next so many lines.
    #[inline(always)]
    fn fetch(&mut self, lines: usize) {
        for _ in 0..lines {
            if self.from >= self.end {
                return;
            }
            prefetch::second(self.data.as_ptr().wrapping_add(self.from + self.at));
            self.at += 64;
            if self.at >= self.strip {
                self.at = 0;
                self.from += self.row;
            }
        }
    }
}

/// Defines the loops for one register width. `$bf16` and `$f16` give a register of widened numbers, `$folded` eight
/// sums; a tile has `$rows` rows and three tokens.
macro_rules! width {
    ($name:ident, $features:literal, $reg:ty, $per:literal, $zero:path, $loadu:path, $storeu:path, $fma:path,
     $bf16:path, $f16:path, $folded:path, $rows:literal) => {
        mod $name {
            use super::*;

            /// Parts: registers of sixteen numbers.
            const N: usize = LANES / $per;
            /// Tokens of a tile.
            const T: usize = 3;
            /// Numbers of each row and token that are multiplied before the next: a part of a tile's rows fills half of
            /// the nearest cache.
            pub const STRIP: usize = N * 4096 / $rows;

            /// Adds to the sums of R rows with T tokens, or where they `begin` to nothing, the products of a part.
            ///
            /// # Safety
            /// `w` has R rows, `stride` numbers apart, `x` T likewise; `len` are there of each, whole registers; `sums`
            /// holds R T registers.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const T: usize>(
                w: *const f32,
                x: *const f32,
                stride: usize,
                len: usize,
                sums: *mut f32,
                begin: bool,
            ) {
                let mut acc = [[$zero(); T]; R];
                if !begin {
                    for r in 0..R {
                        for t in 0..T {
                            // SAFETY: within `sums`.
                            acc[r][t] = unsafe { $loadu(sums.add((r * T + t) * $per)) };
                        }
                    }
                }
                for at in (0..len).step_by($per) {
                    let mut xs = [$zero(); T];
                    for t in 0..T {
                        // SAFETY: within token t.
                        xs[t] = unsafe { $loadu(x.add(t * stride + at)) };
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
                        unsafe { $storeu(sums.add((r * T + t) * $per), acc[r][t]) };
                    }
                }
            }

            /// Writes `len` numbers of SIZE bytes, whole groups of sixteen, into their parts, which begin `apart` numbers
            /// apart.
            ///
            /// # Safety
            /// So many numbers can be read from `from`; the parts have room for theirs.
            #[inline(always)]
            unsafe fn part<const SIZE: usize>(
                from: *const u8,
                len: usize,
                to: *mut f32,
                apart: usize,
                load: impl Fn(*const u8) -> $reg,
                store: impl Fn(*mut f32, $reg),
            ) {
                for at in (0..len).step_by(LANES) {
                    for n in 0..N {
                        // SAFETY: the caller's promise.
                        unsafe { store(to.add(n * apart + at / N), load(from.add((at + n * $per) * SIZE))) };
                    }
                }
            }

            /// `part` for numbers of `dtype`, or in block formats for those decoded from `bytes` into `decoded`.
            ///
            /// # Safety
            /// `bytes` holds `len` numbers, a multiple of sixteen; the parts have room for theirs.
            #[target_feature(enable = $features)]
            unsafe fn parted(
                dtype: DType,
                bytes: &[u8],
                len: usize,
                to: *mut f32,
                apart: usize,
                decoded: &mut Vec<f32>,
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    let (from, store) = (bytes.as_ptr(), |p: *mut f32, v| $storeu(p, v));
                    match dtype {
                        DType::BF16 => part::<2>(from, len, to, apart, |p| $bf16(p), store),
                        DType::F16 => part::<2>(from, len, to, apart, |p| $f16(p), store),
                        DType::F32 => part::<4>(from, len, to, apart, |p| $loadu(p.cast()), store),
                        _ => {
                            decoded.resize(len, 0.0);
                            block::decode(dtype, bytes, decoded);
                            part::<4>(decoded.as_ptr().cast(), len, to, apart, |p| $loadu(p.cast()), store)
                        }
                    }
                }
            }

            /// Sums of a group's rows with one of `t` tokens, whose first register lies at `at` in each tile of rows, those of
            /// the rows after it `wide` registers apart.
            #[inline]
            #[target_feature(enable = $features)]
            fn group_sums(sums: &[f32], t: usize, at: usize, wide: usize) -> [f32; GROUP] {
                let mut acc = [[$zero(); N]; GROUP];
                for r in 0..GROUP {
                    let (tile, row) = (r / $rows * $rows, r % $rows);
                    for p in 0..N {
                        let register = (p * GROUP + tile) * t + at + row * wide;
                        // SAFETY: a register of the sums.
                        acc[r][p] = unsafe { $loadu(sums[register * $per..][..$per].as_ptr()) };
                    }
                }
                $folded(acc)
            }

            /// All outputs of a range, a strip after the other, with each a group of rows after the other.
            #[target_feature(enable = $features)]
            pub fn tiles(
                x: &[f32],
                w: Matrix<'_>,
                first: usize,
                count: usize,
                room: &mut Room,
                put: &mut dyn FnMut(usize, &[f32]),
            ) {
                const { assert!(GROUP % $rows == 0) };
                let k = w.inputs;
                let whole = k / LANES * LANES;
                let t = x.len() / k;
                let bytes = |numbers| w.dtype.bytes_for(numbers).expect("a strip is whole blocks");
                let strips = if whole <= STRIP { 1 } else { whole.div_ceil(SHORT.min(STRIP)) };
                // Whole blocks of every format.
                let strip = whole.div_ceil(strips).next_multiple_of(256).min(whole);
                // No power of two, which would lie in few sets of the caches.
                let stride = strip.next_multiple_of(LANES * N) / N + LANES;
                let group = N * GROUP * t * $per;
                let Room { rows, tokens, sums, outputs, decoded } = room;
                let rows = rows.sized(N * GROUP * stride);
                let tokens = tokens.sized(N * t * stride);
                let sums = sums.sized(if strips == 1 { group } else { count.div_ceil(GROUP) * group });
                let outputs = outputs.sized(t * count);
                // Tokens of the tile that begins with token s: two pairs rather than three and one.
                let wide = |s: usize| if t - s == 4 { 2 } else { (t - s).min(T) };
                let mut at = 0;
                loop {
                    let len = strip.min(whole - at);
                    let last = at + len == whole;
                    for (s, x) in x.chunks_exact(k).enumerate() {
                        let x = &x[at..at + len];
                        // The hardware asks for no token after the next.
                        (0..len)
                            .step_by(LANES)
                            .for_each(|n| prefetch::first(x.as_ptr().wrapping_add(2 * k + n)));
                        let to = tokens[s * stride..].as_mut_ptr();
                        // SAFETY: the strip's numbers; its parts lie within `tokens`.
                        unsafe {
                            let (load, store) =
                                (|p: *const u8| $loadu(p.cast()), |p: *mut f32, v| $storeu(p, v));
                            part::<4>(x.as_ptr().cast(), len, to, t * stride, load, store);
                        }
                    }
                    for (g, j) in (first..first + count).step_by(GROUP).enumerate() {
                        let n = GROUP.min(first + count - j);
                        for r in 0..n {
                            let strip = &w.row(j + r)[bytes(at)..bytes(at + len)];
                            let to = rows[r * stride..].as_mut_ptr();
                            // SAFETY: the strip's numbers; its parts lie within `rows`.
                            unsafe { parted(w.dtype, strip, len, to, GROUP * stride, decoded) };
                        }
                        let (row, from) = match j + GROUP < first + count {
                            true => (j + GROUP, at),
                            false if last => (j + GROUP, 0),
                            false => (first, at + len),
                        };
                        let ahead = bytes(from)..bytes(whole.min(from + strip));
                        let tiles = N * n.div_ceil($rows) * t.div_ceil(T);
                        let lines = (GROUP * ahead.len()).div_ceil(64 * tiles);
                        let mut next = Next::new(w, row..row + GROUP, ahead);
                        let sums = &mut sums[if strips == 1 { 0 } else { g * group }..][..group];
                        for p in 0..N {
                            for r in (0..n).step_by($rows) {
                                let mut s = 0;
                                while s < t {
                                    next.fetch(lines);
                                    // SAFETY: part p of a tile's rows, beyond n of any content, and tokens, and their sums.
                                    unsafe {
                                        let w = rows.as_ptr().add((p * GROUP + r) * stride);
                                        let x = tokens.as_ptr().add((p * t + s) * stride);
                                        let sums =
                                            sums.as_mut_ptr().add(((p * GROUP + r) * t + s * $rows) * $per);
                                        match wide(s) {
                                            1 => tile::<$rows, 1>(w, x, stride, len / N, sums, at == 0),
                                            2 => tile::<$rows, 2>(w, x, stride, len / N, sums, at == 0),
                                            _ => tile::<$rows, T>(w, x, stride, len / N, sums, at == 0),
                                        }
                                    }
                                    s += wide(s);
                                }
                            }
                        }
                        if !last {
                            continue;
                        }
                        let mut s = 0;
                        while s < t {
                            for of in 0..wide(s) {
                                let at = s * $rows + of;
                                let sums = group_sums(sums, t, at, wide(s));
                                let out = &mut outputs[(s + of) * count + j - first..][..n];
                                for (r, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                                    *out = (whole..k).fold(sum, |sum, at| {
                                        let w = decode_number(w.dtype, &w.row(j + r)[bytes(at)..]);
                                        w.mul_add(x[(s + of) * k + at], sum)
                                    });
                                }
                            }
                            s += wide(s);
                        }
                    }
                    if last {
                        break;
                    }
                    at += len;
                }
                outputs.chunks_exact(count).enumerate().for_each(|(t, outputs)| put(t, outputs));
            }
        }
    };
}

/// [`fold`] of eight sums at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
fn folded_512(acc: [[__m512; 1]; GROUP]) -> [f32; GROUP] {
    let mut eights = [_mm256_setzero_ps(); GROUP];
    for (eight, [a]) in eights.iter_mut().zip(acc) {
        *eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
    }
    folded_eights(eights)
}

/// [`fold`] of eight sums at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn folded_256(acc: [[__m256; 2]; GROUP]) -> [f32; GROUP] {
    let mut eights = [_mm256_setzero_ps(); GROUP];
    for (eight, [a, b]) in eights.iter_mut().zip(acc) {
        *eight = _mm256_add_ps(a, b);
    }
    folded_eights(eights)
}

/// What is left of [`fold`] after its first step.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn folded_eights(a: [__m256; GROUP]) -> [f32; GROUP] {
    // Of sums n and n + 4.
    let mut fours = [_mm256_setzero_ps(); 4];
    for n in 0..4 {
        let (low, high) = (a[n], a[n + 4]);
        fours[n] = _mm256_add_ps(
            _mm256_permute2f128_ps::<0x20>(low, high),
            _mm256_permute2f128_ps::<0x31>(low, high),
        );
    }
    // Of sums 0, 1, 4, 5 and of 2, 3, 6, 7.
    let mut twos = [_mm256_setzero_ps(); 2];
    for n in 0..2 {
        let (a, b) = (fours[2 * n], fours[2 * n + 1]);
        twos[n] = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
    }
    let [a, b] = twos;
    let ones = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
    let mut out = [0f32; GROUP];
    // SAFETY: as many numbers as `out` has.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), ones) };
    out
}

/// [`fold`] of eight sums at once.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn folded_neon(acc: [[float32x4_t; 4]; GROUP]) -> [f32; GROUP] {
    acc.map(|acc| {
        let mut lanes = [0f32; LANES];
        for (lanes, acc) in lanes.chunks_exact_mut(4).zip(acc) {
            // SAFETY: four numbers.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), acc) };
        }
        fold(lanes)
    })
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
    folded_512,
    8
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
    folded_256,
    4
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
    folded_neon,
    8
);
