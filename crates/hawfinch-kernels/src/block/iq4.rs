//! ggml's non-linear 4-bit formats, read only: codes index a fixed table of 16 values.
//!
//! IQ4_NL: 32 numbers, `d` (f16), 16 × nibbles; `d · table[q]`. IQ4_XS: 256 numbers, `d`, u16 of high
//! scale bits, 4 bytes of low scale bits, 128 × nibbles; `d · (scale(s) − 32) · table[q]` a sub-block of
//! 32. Nibble byte `j` of 32 numbers holds number `j` (low) and `j + 16` (high).

use half::f16;

use crate::DType;

/// The values, in units of the scale.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Decodes whole blocks.
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    for (b, o) in bytes.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block_len())) {
        let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
        if dtype == DType::IQ4_NL {
            thirty_two(d, &b[2..], o);
        } else {
            let high = u16::from_le_bytes([b[2], b[3]]);
            for (i, o) in o.chunks_exact_mut(32).enumerate() {
                let low = (b[4 + i / 2] >> (4 * (i % 2))) & 15;
                let scale = i32::from(low) | i32::from((high >> (2 * i)) & 3) << 4;
                thirty_two(d * (scale - 32) as f32, &b[8 + 16 * i..], o);
            }
        }
    }
}

fn thirty_two(scale: f32, q: &[u8], out: &mut [f32]) {
    for j in 0..16 {
        out[j] = scale * f32::from(TABLE[usize::from(q[j] & 15)]);
        out[j + 16] = scale * f32::from(TABLE[usize::from(q[j] >> 4)]);
    }
}
