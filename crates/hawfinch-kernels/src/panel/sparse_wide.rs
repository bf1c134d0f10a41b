//! Products with strips on AVX2, AVX-512 with VNNI and NEON: exactly the sums of `sparse.rs`.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::block_avx2;
use super::operands::{Q4, Q4K, Q8, by_width, offset};
use super::sparse::{NO_STRIPS, StripOf, UNIT, WIDEST, header, row_bytes};
use super::{BLOCK, Group, Kind};
#[cfg(target_arch = "aarch64")]
use crate::neon::{self, Dot, Mixed, Multiply, Plain, shift};
use crate::{Isa, prefetch};

/// Tokens that run together.
const MOST: usize = 4;

/// The inputs of a block that are not zero for all of the tokens, in order, filled up to fours with zeros.
struct Inputs<const T: usize> {
    /// Where their codes begin.
    rows: [usize; BLOCK],
    x: [[u8; BLOCK]; T],
    len: usize,
}

impl<const T: usize> Inputs<T> {
    const NONE: Self = Inputs { rows: [0; BLOCK], x: [[0; BLOCK]; T], len: 0 };

    /// Of block `b`, tokens from `token` on; asks for the numbers of `part` in the header.
    ///
    /// # Safety
    /// The processor has AVX2 or NEON.
    #[inline(always)]
    unsafe fn gather(&mut self, w: StripOf<'_>, part: &Range<usize>, x: Group<'_>, b: usize, token: usize) {
        let (at, bytes) = (w.block(b), row_bytes(w.kind, w.width));
        let codes = at + header(w.width);
        let mut all = [[0u8; BLOCK]; T];
        let mut present = 0u32;
        for t in 0..T {
            for quad in 0..BLOCK / 4 {
                let q = x.quads[(b * 8 + quad) * x.width + token + t];
                all[t][4 * quad..4 * quad + 4].copy_from_slice(&q.map(|q| q as u8));
            }
            // SAFETY: the processor has the instructions.
            present |= unsafe { not_zero(&all[t]) };
        }
        self.x = [[0; BLOCK]; T];
        self.len = present.count_ones() as usize;
        for n in 0..self.len {
            let k = present.trailing_zeros() as usize;
            present &= present - 1;
            self.rows[n] = codes + k * bytes;
            for t in 0..T {
                self.x[t][n] = all[t][k];
            }
        }
        if self.len > 0 {
            fetch_header(w, part, b);
            // Any row of the block will do beside zeros; the last one is read anyway.
            let (full, last) = (self.len.next_multiple_of(4), self.rows[self.len - 1]);
            self.rows[self.len..full].fill(last);
            self.len = full;
        }
    }
}

impl<const T: usize> Inputs<T> {
    /// Asks for bytes `bytes` of all their rows.
    #[inline(always)]
    fn fetch_all(&self, w: StripOf<'_>, bytes: &Range<usize>) {
        for row in &self.rows[..self.len] {
            bytes.clone().step_by(64).for_each(|line| fetch(w, row + line));
        }
    }
}

/// Asks for the scales of outputs `part` in block `b`.
#[inline(always)]
fn fetch_header(w: StripOf<'_>, part: &Range<usize>, b: usize) {
    let lines = |at: usize, bytes: usize| {
        (at + bytes * part.start..at + bytes * part.end).step_by(64).for_each(|at| fetch(w, at));
    };
    let at = w.block(b);
    if w.kind != Kind::Q4K {
        return lines(at, 2);
    }
    lines(at, 1);
    lines(at + w.width, 1);
    if b.is_multiple_of(8) {
        lines(at - 4 * w.width, 2);
        lines(at - 2 * w.width, 2);
    }
}

/// Bit k: whether byte k is not zero.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn not_zero(bytes: &[u8; BLOCK]) -> u32 {
    // SAFETY: 32 bytes; the caller's promise.
    unsafe {
        let bytes = _mm256_loadu_si256(bytes.as_ptr().cast());
        !_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())) as u32
    }
}

/// Bit k: whether byte k is not zero.
///
/// # Safety
/// The processor has NEON.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn not_zero(bytes: &[u8; BLOCK]) -> u32 {
    // SAFETY: 32 bytes; the caller's promise.
    unsafe {
        let places = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let [low, high] = [0, 16].map(|at| {
            let bytes = vld1q_u8(bytes.as_ptr().add(at));
            vandq_u8(vtstq_u8(bytes, bytes), places)
        });
        // The eight bits of each eight bytes, added up.
        let pairs = vpaddq_u8(low, high);
        let fours = vpaddq_u8(pairs, pairs);
        vgetq_lane_u32::<0>(vreinterpretq_u32_u8(vpaddq_u8(fours, fours)))
    }
}

/// Asks for a line of a strip.
#[inline(always)]
fn fetch(w: StripOf<'_>, at: usize) {
    prefetch::second(w.data.as_ptr().wrapping_add(at));
}

/// Outputs `part` of a strip, whole units, with all tokens of a group.
pub fn run(isa: Isa, w: StripOf<'_>, part: Range<usize>, x: Group<'_>, put: &mut dyn FnMut(usize, &[f32])) {
    assert!(w.width <= WIDEST && w.width.is_multiple_of(UNIT) && w.data.len() == w.block(w.blocks));
    assert!(part.end <= w.width && part.start.is_multiple_of(UNIT) && part.end.is_multiple_of(UNIT));
    assert!(x.quads.len() >= w.blocks * 8 * x.width && x.sums.len() >= w.blocks * x.width);
    for token in (0..x.width).step_by(MOST) {
        match x.width - token {
            1 => tokens::<1>(isa, w, &part, x, token, put),
            2 => tokens::<2>(isa, w, &part, x, token, put),
            3 => tokens::<3>(isa, w, &part, x, token, put),
            _ => tokens::<4>(isa, w, &part, x, token, put),
        }
    }
}

fn tokens<const T: usize>(
    isa: Isa,
    w: StripOf<'_>,
    part: &Range<usize>,
    x: Group<'_>,
    token: usize,
    put: &mut dyn FnMut(usize, &[f32]),
) {
    let mut sums = [[0f32; WIDEST]; T];
    // SAFETY: an Isa exists only where the machine has the instructions; `run` checked the sizes.
    unsafe {
        macro_rules! run {
            ($width:ident) => {
                match w.kind {
                    Kind::Q8 => $width::<Q8, T>(w, part, x, token, &mut sums),
                    Kind::Q4 => $width::<Q4, T>(w, part, x, token, &mut sums),
                    Kind::Q4K => $width::<Q4K, T>(w, part, x, token, &mut sums),
                    Kind::Q6K => unreachable!("{NO_STRIPS}"),
                }
            };
        }
        by_width!(isa, run)
    }
    for (t, sums) in sums.iter().enumerate() {
        put(token + t, &sums[..part.len()]);
    }
}

/// Defines the loops for one register width. A piece is what one register holds of the bytes of a row: its numbers
/// are interleaved with those of three other rows into four registers of 32-bit groups, in output order.
macro_rules! width {
    ($name:ident, $features:literal, $bytes:literal, $reg:ty, $freg:ty,
     $load:path, $set1:path, $and:path, $shift:ident, $low8:path, $high8:path, $low16:path, $high16:path,
     $set8:path, $zero:path, $to_ps:path, $loadu_ps:path, $storeu_ps:path, $set1_ps:path, $mul:path, $fma:path,
     $fnma:path, $halves:expr, $octets:expr, $accumulate:expr, $finish:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const KIND: u8, const T: usize>(
            w: StripOf<'_>,
            part: &Range<usize>,
            x: Group<'_>,
            token: usize,
            sums: &mut [[f32; WIDEST]; T],
        ) {
            /// Outputs a 32-bit register holds.
            const N: usize = $bytes / 4;
            let (width, data) = (w.width, w.data.as_ptr());
            let low = $set8(15);
            let halves_of_codes = if KIND == Q8 { 1 } else { 2 };
            // Bytes of a row that hold the outputs.
            let bytes = row_bytes(w.kind, part.start)..row_bytes(w.kind, part.end);
            let mut inputs = [Inputs::<T>::NONE, Inputs::<T>::NONE];
            // SAFETY: promised to this function.
            unsafe { inputs[0].gather(w, part, x, 0, token) };
            inputs[0].fetch_all(w, &bytes);
            for b in 0..w.blocks {
                inputs[(b + 1) % 2].len = 0;
                if b + 1 < w.blocks {
                    // SAFETY: as above.
                    unsafe { inputs[(b + 1) % 2].gather(w, part, x, b + 1, token) };
                }
                // The rows of the next block are asked for one by one while those of this one are multiplied.
                let (now, next) = (&inputs[b % 2], &inputs[(b + 1) % 2]);
                let mut scales = [0f32; T];
                let mut starts = [0i32; T];
                let mut mins = [0f32; T];
                for t in 0..T {
                    let at = b * x.width + token + t;
                    scales[t] = x.scales[at];
                    starts[t] = offset(KIND).wrapping_mul(x.sums[at]);
                    mins[t] = x.scales[at] * x.sums[at] as f32;
                }
                // Nothing to add: scales are zero too (a NaN is not).
                if now.len == 0 && scales.iter().all(|s| *s == 0.0) {
                    next.fetch_all(w, &bytes);
                    continue;
                }
                let at = w.block(b);
                let top = if KIND == Q4K { w.block(b / 8 * 8) - 4 * width } else { 0 };
                for in_row in bytes.clone().step_by($bytes) {
                    if in_row % 64 == 0 {
                        for row in &next.rows[now.len.min(next.len)..next.len] {
                            fetch(w, row + in_row);
                        }
                    }
                    for half in 0..halves_of_codes {
                        let mut dot = [[$zero(); T]; 4];
                        for four in (0..now.len).step_by(4) {
                            let mut r = [low; 4];
                            if half == 0 && in_row % 64 == 0 && four < next.len {
                                for k in 0..4 {
                                    fetch(w, next.rows[four + k] + in_row);
                                }
                            }
                            for k in 0..4 {
                                let at = now.rows[four + k] + in_row;
                                // SAFETY: a piece of a row of the strip.
                                let bytes = unsafe { $load(data.add(at).cast()) };
                                r[k] = if KIND == Q8 {
                                    bytes
                                } else if half == 0 {
                                    $and(bytes, low)
                                } else {
                                    $and($shift::<4>(bytes), low)
                                };
                            }
                            let (a, b) = ($low8(r[0], r[1]), $high8(r[0], r[1]));
                            let (c, d) = ($low8(r[2], r[3]), $high8(r[2], r[3]));
                            let q = [$low16(a, c), $high16(a, c), $low16(b, d), $high16(b, d)];
                            for t in 0..T {
                                let x = now.x[t].as_ptr().cast::<i32>();
                                // SAFETY: four of 32 bytes.
                                let x = $set1(unsafe { x.byte_add(four).read_unaligned() });
                                for i in 0..4 {
                                    dot[i][t] = $accumulate(KIND, dot[i][t], q[i], x);
                                }
                            }
                        }
                        for i in 0..4 {
                            // The first output of the register: see the order of outputs in `sparse.rs`.
                            let group = in_row / 64 * halves_of_codes + half;
                            let o = group * 64 + 16 * i + in_row % 64 / 4;
                            // SAFETY: N outputs from o on; their scales in the header.
                            unsafe {
                                let (scale, min) = if KIND == Q4K {
                                    let d = data.add(top + 2 * o);
                                    (
                                        $mul($halves(d), $octets(data.add(at + o))),
                                        $mul($halves(d.add(2 * width)), $octets(data.add(at + width + o))),
                                    )
                                } else {
                                    ($halves(data.add(at + 2 * o)), $set1_ps(0.0))
                                };
                                for t in 0..T {
                                    let sum = sums[t].as_mut_ptr().add(o - part.start);
                                    let dot = $to_ps($finish(KIND, dot[i][t], starts[t]));
                                    let mut new = $fma(dot, $mul(scale, $set1_ps(scales[t])), $loadu_ps(sum));
                                    if KIND == Q4K {
                                        new = $fnma(min, $set1_ps(mins[t]), new);
                                    }
                                    $storeu_ps(sum, new);
                                }
                            }
                            const { assert!(N == 4 || N == 8 || N == 16) };
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
width!(
    avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
    64,
    __m512i,
    __m512,
    _mm512_loadu_si512,
    _mm512_set1_epi32,
    _mm512_and_si512,
    _mm512_srli_epi16,
    _mm512_unpacklo_epi8,
    _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi16,
    _mm512_unpackhi_epi16,
    _mm512_set1_epi8,
    _mm512_setzero_si512,
    _mm512_cvtepi32_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_fnmadd_ps,
    |at: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
    |at: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))),
    |_: u8, sum, w, x| _mm512_dpbusd_epi32(sum, w, x),
    |_: u8, sum, start| _mm512_add_epi32(sum, _mm512_set1_epi32(start))
);
#[cfg(target_arch = "x86_64")]
width!(
    avx2,
    "avx2,fma,f16c",
    32,
    __m256i,
    __m256,
    _mm256_loadu_si256,
    _mm256_set1_epi32,
    _mm256_and_si256,
    _mm256_srli_epi16,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_set1_epi8,
    _mm256_setzero_si256,
    _mm256_cvtepi32_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_fnmadd_ps,
    |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
    |at: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))),
    |kind: u8, sum, w, x| if kind == Q8 {
        block_avx2::add::<Q8>(sum, w, x)
    } else {
        block_avx2::add::<Q4>(sum, w, x)
    },
    |kind: u8, sum, start| if kind == Q8 {
        sum
    } else {
        _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), _mm256_set1_epi32(start))
    }
);

#[cfg(target_arch = "aarch64")]
macro_rules! neon {
    ($name:ident, $features:literal, $multiply:ty) => {
        width!(
            $name,
            $features,
            16,
            int32x4_t,
            float32x4_t,
            vld1q_s32,
            vdupq_n_s32,
            vandq_s32,
            shift,
            neon::low8,
            neon::high8,
            neon::low16,
            neon::high16,
            neon::set8,
            neon::zero,
            vcvtq_f32_s32,
            vld1q_f32,
            vst1q_f32,
            vdupq_n_f32,
            vmulq_f32,
            neon::fma,
            neon::fnma,
            |at: *const u8| neon::f16(at),
            |at: *const u8| neon::bytes(at),
            // SAFETY: this function's features.
            |kind: u8, sum, w, x| unsafe {
                let w = if kind == Q8 && <$multiply>::SIGNED { neon::signed(w) } else { w };
                <$multiply>::add(sum, w, x)
            },
            |kind: u8, sum, start| if kind == Q8 && <$multiply>::SIGNED {
                sum
            } else {
                vaddq_s32(sum, vdupq_n_s32(start))
            }
        );
    };
}
#[cfg(target_arch = "aarch64")]
neon!(plain, "neon", Plain);
#[cfg(target_arch = "aarch64")]
neon!(dotprod, "neon,dotprod", Dot);
#[cfg(target_arch = "aarch64")]
neon!(mixed, "neon,dotprod,i8mm", Mixed);
