//! Packing on AVX2 and AVX-512: words of neighbouring rows or columns, word by word, turned in registers where they lie
//! the other way.

use std::arch::x86_64::*;

use super::{View, rounded};

/// What words are, and by which instructions they are made.
#[derive(Clone, Copy)]
pub enum Pack {
    Numbers512,
    Rounded512,
    Pairs512,
    Numbers256,
    Rounded256,
}

impl Pack {
    /// Writes the words of `x`, `[lanes, numbers]`, word by word: `width` lanes, a multiple of eight, zeros where there are
    /// fewer.
    ///
    /// # Panics
    /// When `to` is too short.
    ///
    /// # Safety
    /// The machine has the instructions that `self` names.
    pub unsafe fn eights(self, to: &mut [f32], width: usize, x: View<'_, f32>) {
        self.groups(to, width, x, 8, |to, x| {
            // SAFETY: the machine has the instructions; so many words of a group, `width` apart, are within `to`.
            unsafe {
                match self {
                    Pack::Numbers512 | Pack::Numbers256 => numbers256::<false>(to, width, x),
                    Pack::Rounded512 | Pack::Rounded256 => numbers256::<true>(to, width, x),
                    Pack::Pairs512 => pairs256(to, width, x),
                }
            }
        });
    }

    /// The same of a width that is a multiple of sixteen.
    ///
    /// # Panics
    /// When `to` is too short.
    ///
    /// # Safety
    /// The machine has the instructions that `self` names.
    pub unsafe fn sixteens(self, to: &mut [f32], width: usize, x: View<'_, f32>) {
        if matches!(self, Pack::Numbers256 | Pack::Rounded256) {
            // SAFETY: the caller's promise.
            return unsafe { self.eights(to, width, x) };
        }
        self.groups(to, width, x, 16, |to, x| {
            // SAFETY: as above.
            unsafe {
                match self {
                    Pack::Pairs512 => pairs512(to, width, x),
                    Pack::Rounded512 => numbers512::<true>(to, width, x),
                    _ => numbers512::<false>(to, width, x),
                }
            }
        });
    }

    #[inline(always)]
    fn groups(
        self,
        to: &mut [f32],
        width: usize,
        x: View<'_, f32>,
        group: usize,
        pack: impl Fn(*mut f32, View<'_, f32>),
    ) {
        let words = if matches!(self, Pack::Pairs512) { x.columns.div_ceil(2) } else { x.columns };
        assert!(width.is_multiple_of(group) && x.rows <= width && to.len() >= words * width);
        assert!(x.row_stride == 1 || x.column_stride == 1);
        for at in (0..width).step_by(group) {
            pack(to[at..].as_mut_ptr(), x.rows(at.min(x.rows)..x.rows.min(at + group)));
        }
    }
}

/// So many of the first lanes.
fn first(lanes: usize) -> __mmask16 {
    ((1u32 << lanes.min(16)) - 1) as __mmask16
}

/// # Safety
/// `to` has `width` words for each number; `x` has at most sixteen rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn numbers512<const ROUNDED: bool>(to: *mut f32, width: usize, x: View<'_, f32>) {
    let number = |v: __m512| if ROUNDED { rounded512(v) } else { v };
    let from = x.data.as_ptr();
    if x.rows == 0 {
        for k in 0..x.columns {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to.add(k * width), _mm512_setzero_ps()) };
        }
    } else if x.row_stride == 1 {
        let lanes = first(x.rows);
        for k in 0..x.columns {
            // SAFETY: so many lanes of number k.
            unsafe {
                let v = _mm512_maskz_loadu_ps(lanes, from.add(k * x.column_stride));
                _mm512_storeu_ps(to.add(k * width), number(v));
            }
        }
    } else {
        for at in (0..x.columns).step_by(16) {
            let left = (x.columns - at).min(16);
            let numbers = first(left);
            let mut v = [_mm512_setzero_ps(); 16];
            for lane in 0..16 {
                if lane < x.rows {
                    // SAFETY: so many numbers are left of this lane.
                    let row = unsafe { _mm512_maskz_loadu_ps(numbers, from.add(lane * x.row_stride + at)) };
                    v[lane] = number(row);
                }
            }
            // SAFETY: so many words are left.
            unsafe { store512(to.add(at * width), width, v, left) };
        }
    }
}

/// # Safety
/// `to` has `width` words for each pair; `x` has at most sixteen rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pairs512(to: *mut f32, width: usize, x: View<'_, f32>) {
    let from = x.data.as_ptr();
    if x.rows == 0 {
        for k in 0..x.columns.div_ceil(2) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to.add(k * width), _mm512_setzero_ps()) };
        }
    } else if x.row_stride == 1 {
        let lanes = first(x.rows);
        // From the sixteen of one number and the sixteen of the next to pairs.
        let mut order = [0i16; 32];
        for n in 0..32 {
            order[n] = (n / 2 + n % 2 * 16) as i16;
        }
        // SAFETY: 64 bytes.
        let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
        for k in (0..x.columns).step_by(2) {
            let next = if k + 1 < x.columns { lanes } else { 0 };
            // SAFETY: so many lanes of numbers k and, where there is one, k + 1.
            unsafe {
                let even = _mm512_maskz_loadu_ps(lanes, from.add(k * x.column_stride));
                let odd = _mm512_maskz_loadu_ps(next, from.wrapping_add((k + 1) * x.column_stride));
                let pairs = _mm512_permutexvar_epi16(order, pack512(odd, even));
                _mm512_storeu_si512(to.add(k / 2 * width).cast(), pairs);
            }
        }
    } else {
        for at in (0..x.columns).step_by(32) {
            let left = (x.columns - at).min(32);
            let [low, high] = [first(left), first(left.saturating_sub(16))];
            let mut v = [_mm512_setzero_ps(); 16];
            for lane in 0..16 {
                if lane < x.rows {
                    let row = from.wrapping_add(lane * x.row_stride + at);
                    // SAFETY: so many numbers are left of this lane.
                    let [low, high] = unsafe {
                        [_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row.wrapping_add(16))]
                    };
                    v[lane] = _mm512_castsi512_ps(pack512(high, low));
                }
            }
            // SAFETY: so many words are left.
            unsafe { store512(to.add(at / 2 * width), width, v, left.div_ceil(2)) };
        }
    }
}

/// Writes pairs of `x`, `[lanes, numbers]`, lane by lane: sixteen words each.
///
/// * `x`: at most sixteen lanes of at most 32 numbers
///
/// # Panics
/// When `to` is too short.
///
/// # Safety
/// The machine has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub unsafe fn rows_of_pairs(to: &mut [f32], x: View<'_, f32>) {
    assert!(x.rows <= 16 && x.columns <= 32 && to.len() >= x.rows * 16);
    let mut pairs = [_mm512_setzero_ps(); 16];
    if x.column_stride == 1 {
        let [low, high] = [first(x.columns), first(x.columns.saturating_sub(16))];
        for lane in 0..x.rows {
            let row = x.data.as_ptr().wrapping_add(lane * x.row_stride);
            // SAFETY: so many numbers of this lane.
            let [low, high] = unsafe {
                [_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row.wrapping_add(16))]
            };
            pairs[lane] = _mm512_castsi512_ps(pack512(high, low));
        }
    } else {
        let mut words = [0f32; 256];
        // SAFETY: the machine has the instructions; sixteen words for each of sixteen pairs.
        unsafe {
            pairs512(words.as_mut_ptr(), 16, x);
            for pair in 0..16 {
                pairs[pair] = _mm512_loadu_ps(words[pair * 16..].as_ptr());
            }
        }
        pairs = turned512(pairs);
    }
    for lane in 0..x.rows {
        // SAFETY: sixteen words.
        unsafe { _mm512_storeu_ps(to[lane * 16..].as_mut_ptr(), pairs[lane]) };
    }
}

/// bf16 of the numbers of `low`, then of those of `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pack512(high: __m512, low: __m512) -> __m512i {
    // SAFETY: registers of the same size; any bits are integers.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Each number rounded to bf16 and widened again.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded512(v: __m512) -> __m512 {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    // No number stays none: rounding could carry its bits into the sign.
    let none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    let kept = _mm512_mask_or_epi32(up, none, bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_castsi512_ps(_mm512_and_si512(kept, _mm512_set1_epi32(-0x1_0000)))
}

/// Stores the first `count` of the columns of sixteen rows, `width` apart.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store512(to: *mut f32, width: usize, v: [__m512; 16], count: usize) {
    let turned = turned512(v);
    for k in 0..16 {
        if k < count {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to.add(k * width), turned[k]) };
        }
    }
}

/// Rows as columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned512(v: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    // In every quarter of a register four rows by four columns are turned: fours[4 g + j] has in quarter q column 4 q + j
    // of rows 4 g ..
    let mut fours = [zero; 16];
    for g in 0..4 {
        let [a, b, c, d] = [v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]];
        let [ab, cd] = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)].map(|v| _mm512_castps_pd(v));
        let [ef, gh] = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)].map(|v| _mm512_castps_pd(v));
        fours[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        fours[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        fours[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ef, gh));
        fours[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ef, gh));
    }
    // Quarters of the four registers that have the same columns.
    let mut turned = [zero; 16];
    for j in 0..4 {
        let even = _mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]);
        let odd = _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]);
        let even_below = _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]);
        let odd_below = _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j]);
        turned[j] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
        turned[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
        turned[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even_below);
        turned[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_below);
    }
    turned
}

/// # Safety
/// `to` has `width` words for each number; `x` has at most eight rows.
#[target_feature(enable = "avx2")]
unsafe fn numbers256<const ROUNDED: bool>(to: *mut f32, width: usize, x: View<'_, f32>) {
    let number = |v: __m256| if ROUNDED { rounded256(v) } else { v };
    let from = x.data.as_ptr();
    let mut k = 0;
    if x.rows == 8 && x.row_stride == 1 {
        while k < x.columns {
            // SAFETY: eight lanes of number k.
            unsafe {
                let v = _mm256_loadu_ps(from.add(k * x.column_stride));
                _mm256_storeu_ps(to.add(k * width), number(v));
            }
            k += 1;
        }
    } else if x.row_stride == 1 {
        // Panels of rows have six.
        let lanes: [i32; 8] = std::array::from_fn(|lane| if lane < x.rows { -1 } else { 0 });
        // SAFETY: 32 bytes.
        let lanes = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) };
        while k < x.columns {
            // SAFETY: so many lanes of number k; the others are not read.
            unsafe {
                let v = _mm256_maskload_ps(from.add(k * x.column_stride), lanes);
                _mm256_storeu_ps(to.add(k * width), number(v));
            }
            k += 1;
        }
    } else if x.column_stride == 1 {
        while k + 8 <= x.columns {
            let mut v = [_mm256_setzero_ps(); 8];
            for lane in 0..8 {
                if lane < x.rows {
                    // SAFETY: eight numbers are left of this lane.
                    v[lane] = number(unsafe { _mm256_loadu_ps(from.add(lane * x.row_stride + k)) });
                }
            }
            for (n, v) in turned256(v).into_iter().enumerate() {
                // SAFETY: eight words are left.
                unsafe { _mm256_storeu_ps(to.add((k + n) * width), v) };
            }
            k += 8;
        }
    }
    // What is left.
    for k in k..x.columns {
        for lane in 0..8 {
            let v = match lane < x.rows {
                true if ROUNDED => rounded(x.at(lane, k)),
                true => x.at(lane, k),
                false => 0.0,
            };
            // SAFETY: lane of word k.
            unsafe { *to.add(k * width + lane) = v };
        }
    }
}

/// # Safety
/// `to` has `width` words for each pair; `x` has at most eight rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
unsafe fn pairs256(to: *mut f32, width: usize, x: View<'_, f32>) {
    let from = x.data.as_ptr();
    let mut k = 0;
    if x.rows == 8 && x.row_stride == 1 {
        // From the eight of one number and the eight of the next to pairs.
        let order = _mm256_setr_epi16(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
        while k + 2 <= x.columns {
            // SAFETY: eight lanes of numbers k and k + 1.
            unsafe {
                let even = _mm256_loadu_ps(from.add(k * x.column_stride));
                let odd = _mm256_loadu_ps(from.add((k + 1) * x.column_stride));
                let pairs = _mm256_permutexvar_epi16(order, pack256(odd, even));
                _mm256_storeu_si256(to.add(k / 2 * width).cast(), pairs);
            }
            k += 2;
        }
    } else if x.column_stride == 1 {
        while k + 16 <= x.columns {
            let mut v = [_mm256_setzero_ps(); 8];
            for lane in 0..8 {
                if lane < x.rows {
                    let row = from.wrapping_add(lane * x.row_stride + k);
                    // SAFETY: sixteen numbers are left of this lane.
                    let [low, high] = unsafe { [_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(8))] };
                    v[lane] = _mm256_castsi256_ps(pack256(high, low));
                }
            }
            for (n, v) in turned256(v).into_iter().enumerate() {
                // SAFETY: eight words are left.
                unsafe { _mm256_storeu_ps(to.add((k / 2 + n) * width), v) };
            }
            k += 16;
        }
    }
    // What is left.
    for k in (k..x.columns).step_by(2) {
        for lane in 0..8 {
            let bits = |k: usize| match lane < x.rows && k < x.columns {
                true => u32::from(half::bf16::from_f32(x.at(lane, k)).to_bits()),
                false => 0,
            };
            // SAFETY: lane of word k / 2.
            unsafe { *to.add(k / 2 * width + lane) = f32::from_bits(bits(k) | bits(k + 1) << 16) };
        }
    }
}

/// As [`pack512`].
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
fn pack256(high: __m256, low: __m256) -> __m256i {
    // SAFETY: registers of the same size; any bits are integers.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm256_cvtne2ps_pbh(high, low)) }
}

/// As [`rounded512`].
#[inline]
#[target_feature(enable = "avx2")]
fn rounded256(v: __m256) -> __m256 {
    let bits = _mm256_castps_si256(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let none = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), none);
    _mm256_and_ps(kept, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000)))
}

/// Rows as columns.
#[inline]
#[target_feature(enable = "avx2")]
fn turned256(v: [__m256; 8]) -> [__m256; 8] {
    // In each half of a register four rows by four columns are turned: fours[4 g + j] has in half h column 4 h + j of
    // rows 4 g ..
    let mut fours = [_mm256_setzero_ps(); 8];
    for g in 0..2 {
        let [a, b, c, d] = [v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]];
        let [ab, cd] = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)].map(|v| _mm256_castps_pd(v));
        let [ef, gh] = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)].map(|v| _mm256_castps_pd(v));
        fours[4 * g] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        fours[4 * g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
        fours[4 * g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ef, gh));
        fours[4 * g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ef, gh));
    }
    std::array::from_fn(|n| {
        let (low, high) = (fours[n % 4], fours[4 + n % 4]);
        if n < 4 {
            _mm256_permute2f128_ps::<0x20>(low, high)
        } else {
            _mm256_permute2f128_ps::<0x31>(low, high)
        }
    })
}
