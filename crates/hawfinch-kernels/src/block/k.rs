//! ggml's "K" block formats, 256 numbers a block in sub-blocks of 16 or 32 with quantised scales: Q2_K to
//! Q6_K. All are read; Q4_K, Q5_K and Q6_K are written too (`k_search.rs` finds their codes).
//!
//! Layout of a block (`d`, `m` f16; "6-bit pairs" are eight scales and eight minima in 12 bytes):
//!
//! | format | bytes, in order | value of code `q` in sub-block `s` |
//! |---|---|---|
//! | Q2_K | 16 × (scale nibble, minimum nibble), 64 × 2-bit codes, `d`, `m` | `d·scale(s)·q − m·min(s)` |
//! | Q3_K | 32 of third bits, 64 × 2-bit codes, 12 of 6-bit scales, `d` | `d·(scale(s) − 32)·(q − 4)` |
//! | Q4_K | `d`, `m`, 6-bit pairs, 128 × nibbles | `d·scale(s)·q − m·min(s)` |
//! | Q5_K | `d`, `m`, 6-bit pairs, 32 of fifth bits, 128 × nibbles | the same |
//! | Q6_K | 128 × low nibbles, 64 × high 2 bits, 16 × i8 scales, `d` | `d·scale(s)·(q − 32)` |

use super::k_search;
use crate::DType;

/// Numbers in a block.
pub(super) const LEN: usize = 256;

#[inline(always)]
fn read_f16(b: &[u8]) -> f32 {
    super::widen_f16(u16::from_le_bytes([b[0], b[1]]))
}

/// Decodes whole blocks; `out` is 256 numbers for each block of `bytes`. Inlined, as all that it calls, so that it is
/// compiled for the instruction set of its caller.
#[inline(always)]
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    let blocks = blocks.zip(out.as_chunks_mut::<LEN>().0);
    macro_rules! each {
        ($one:ident) => {
            for (b, o) in blocks {
                $one(b, o);
            }
        };
    }
    match dtype {
        DType::Q2_K => each!(decode_q2),
        DType::Q3_K => each!(decode_q3),
        DType::Q4_K => each!(decode_q4),
        DType::Q5_K => each!(decode_q5),
        DType::Q6_K => each!(decode_q6),
        _ => unreachable!("{dtype} is of another family"),
    }
}

/// The 32 two-bit codes of plane `p` (0 to 7) in 64 bytes: each half of the block has 32 bytes, each
/// byte four planes.
#[inline(always)]
fn plane2(q: &[u8], p: usize) -> [u8; 32] {
    let b: &[u8; 32] = q[p / 4 * 32..][..32].as_array().expect("32 bytes");
    b.map(|b| (b >> (2 * (p % 4))) & 3)
}

#[inline(always)]
fn decode_q2(b: &[u8], out: &mut [f32; LEN]) {
    let (d, m) = (read_f16(&b[80..]), read_f16(&b[82..]));
    for p in 0..8 {
        let q = plane2(&b[16..80], p);
        for h in 0..2 {
            let s = b[2 * p + h];
            let (scale, min) = (d * f32::from(s & 15), m * f32::from(s >> 4));
            for j in 0..16 {
                out[32 * p + 16 * h + j] = scale * f32::from(q[16 * h + j]) - min;
            }
        }
    }
}

#[inline(always)]
fn decode_q3(b: &[u8], out: &mut [f32; LEN]) {
    let (high, s, d) = (&b[..32], &b[96..108], read_f16(&b[108..]));
    for p in 0..8 {
        let q = plane2(&b[32..96], p);
        for h in 0..2 {
            let i = 2 * p + h;
            let low = if i < 8 { s[i] & 15 } else { s[i - 8] >> 4 };
            let scale = low | ((s[8 + i % 4] >> (2 * (i / 4))) & 3) << 4;
            let scale = d * (i32::from(scale) - 32) as f32;
            for j in 0..16 {
                let third = (high[16 * h + j] >> p) & 1;
                let code = i32::from(q[16 * h + j] | third << 2) - 4;
                out[32 * p + 16 * h + j] = scale * code as f32;
            }
        }
    }
}

/// Scale and minimum `i` of the 12 bytes of 6-bit pairs.
#[inline(always)]
pub(super) fn scale_min(s: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (s[i] & 63, s[i + 4] & 63)
    } else {
        ((s[i + 4] & 15) | (s[i - 4] >> 6) << 4, (s[i + 4] >> 4) | (s[i] >> 6) << 4)
    }
}

#[inline(always)]
fn decode_q4(b: &[u8], out: &mut [f32; LEN]) {
    let (d, m) = (read_f16(b), read_f16(&b[2..]));
    for (i, o) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        let q: &[u8; 32] = b[16 + i / 2 * 32..][..32].as_array().expect("32 bytes");
        let shift = 4 * (i % 2);
        for j in 0..32 {
            o[j] = scale * f32::from((q[j] >> shift) & 15) - min;
        }
    }
}

#[inline(always)]
fn decode_q5(b: &[u8], out: &mut [f32; LEN]) {
    let (d, m) = (read_f16(b), read_f16(&b[2..]));
    let high: &[u8; 32] = b[16..48].as_array().expect("32 bytes");
    for (i, o) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        let q: &[u8; 32] = b[48 + i / 2 * 32..][..32].as_array().expect("32 bytes");
        let shift = 4 * (i % 2);
        for j in 0..32 {
            o[j] = scale * f32::from((q[j] >> shift) & 15 | ((high[j] >> i) & 1) << 4) - min;
        }
    }
}

#[inline(always)]
fn decode_q6(b: &[u8], out: &mut [f32; LEN]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], read_f16(&b[208..]));
    for (i, o) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Each half of the block: 64 bytes of nibbles, planes 0 1 low then 2 3 high; 32 bytes of 2 bits.
        let (half, plane) = (i / 4, i % 4);
        let l: &[u8; 32] = low[64 * half + 32 * (plane % 2)..][..32].as_array().expect("32 bytes");
        let h: &[u8; 32] = high[32 * half..][..32].as_array().expect("32 bytes");
        for (part, o) in o.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(scales[2 * i + part] as i8);
            for j in 0..16 {
                let (l, h) = (l[16 * part + j], h[16 * part + j]);
                let code = (l >> (4 * (plane / 2))) & 15 | ((h >> (2 * plane)) & 3) << 4;
                o[j] = scale * (i32::from(code) - 32) as f32;
            }
        }
    }
}

/// Encodes whole blocks, appending to `out`; false (and nothing appended) for Q2_K and Q3_K.
pub(super) fn encode(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> bool {
    let blocks = values.as_chunks::<LEN>().0;
    match dtype {
        DType::Q4_K => blocks.iter().for_each(|x| {
            let c = k_search::pairs(x, 15, -1.0, 20);
            c.put_head(out);
            put_nibbles(&c.codes, out);
        }),
        DType::Q5_K => blocks.iter().for_each(|x| {
            let c = k_search::pairs(x, 31, -0.5, 15);
            c.put_head(out);
            // Bit i of byte j: the fifth bit of number j of sub-block i.
            out.extend((0..32).map(|j| (0..8).fold(0u8, |h, i| h | (c.codes[32 * i + j] >> 4) << i)));
            put_nibbles(&c.codes, out);
        }),
        DType::Q6_K => blocks.iter().for_each(|x| {
            let c = k_search::sixes(x);
            for (half, j) in (0..2).flat_map(|h| (0..64).map(move |j| (h, j))) {
                let q = &c.codes[128 * half..];
                out.push(q[j] & 15 | (q[j + 64] & 15) << 4);
            }
            for (half, j) in (0..2).flat_map(|h| (0..32).map(move |j| (h, j))) {
                let q = &c.codes[128 * half..];
                out.push((0..4).fold(0, |b, plane| b | (q[j + 32 * plane] >> 4) << (2 * plane)));
            }
            out.extend(c.scales.map(|s| s as u8));
            out.extend(c.d.to_le_bytes());
        }),
        _ => return false,
    }
    true
}

fn put_nibbles(codes: &[u8; LEN], out: &mut Vec<u8>) {
    for pair in codes.as_chunks::<64>().0 {
        out.extend((0..32).map(|j| pair[j] & 15 | (pair[j + 32] & 15) << 4));
    }
}
