//! Quantised block formats, bit-compatible with ggml's, and the decoding and encoding of rows of every
//! [`DType`]. One file a family: `legacy.rs` (Q4_0 … Q8_0), `k.rs` (the 256-number "K" formats; the
//! search for their codes in `k_search.rs`), `iq4.rs` (IQ4_NL, IQ4_XS).

mod iq4;
mod k;
mod k_search;
mod legacy;

use crate::DType;
use half::{bf16, f16};

/// The f32 of the same value as f16 `bits`, subnormals, infinities and NaN included, without a branch: the
/// exponent is moved by a multiplication with 2^112, so that a row is widened in vector registers.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let moved = (f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(moved | special | (bits & 0x8000) << 16)
}

/// Decodes consecutive numbers of one row: `bytes` holds exactly `out.len()` numbers of `dtype`.
///
/// # Panics
/// When the lengths disagree (a programming error: readers check lengths against the file first).
#[inline(always)]
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), dtype.bytes_for(out.len()), "{} numbers of {dtype}", out.len());
    macro_rules! each {
        ($n:literal, $f:expr) => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact($n)) {
                let b: [u8; $n] = b.try_into().expect("chunks_exact gives whole chunks");
                *o = $f(b);
            }
        };
    }
    match dtype {
        DType::F64 => each!(8, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => each!(4, f32::from_le_bytes),
        DType::F16 => each!(2, |b| widen_f16(u16::from_le_bytes(b))),
        DType::BF16 => each!(2, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        DType::I64 => each!(8, |b| i64::from_le_bytes(b) as f32),
        DType::I32 => each!(4, |b| i32::from_le_bytes(b) as f32),
        DType::I16 => each!(2, |b| i16::from_le_bytes(b) as f32),
        DType::I8 => each!(1, |b: [u8; 1]| b[0] as i8 as f32),
        DType::U8 | DType::Bool => each!(1, |b: [u8; 1]| b[0] as f32),
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => {
            legacy::decode(dtype, bytes, out);
        }
        DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K => k::decode(dtype, bytes, out),
        DType::IQ4_NL | DType::IQ4_XS => iq4::decode(dtype, bytes, out),
    }
}

/// Encodes consecutive numbers of one row (round to nearest even for F16 and BF16), appending to `out`.
/// False when hawfinch reads but does not write `dtype`.
///
/// # Panics
/// When `values` is not a whole number of blocks.
pub fn encode(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> bool {
    let len = dtype.bytes_for(values.len()).expect("a whole number of blocks");
    out.reserve(len);
    match dtype {
        DType::F64 => values.iter().for_each(|v| out.extend(f64::from(*v).to_le_bytes())),
        DType::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::F16 => values.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
        DType::BF16 => values.iter().for_each(|v| out.extend(bf16::from_f32(*v).to_le_bytes())),
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => {
            return legacy::encode(dtype, values, out);
        }
        DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K => {
            return k::encode(dtype, values, out);
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod widening {
    use super::*;

    #[test]
    fn every_f16_and_bf16_widens_to_its_value() {
        for bits in 0..=u16::MAX {
            let mut got = [0.0f32];
            decode(DType::F16, &bits.to_le_bytes(), &mut got);
            let want = f16::from_bits(bits).to_f32();
            assert!(got[0].to_bits() == want.to_bits() || (got[0].is_nan() && want.is_nan()), "{bits:x}");
            decode(DType::BF16, &bits.to_le_bytes(), &mut got);
            let want = bf16::from_bits(bits).to_f32();
            assert!(got[0].to_bits() == want.to_bits() || (got[0].is_nan() && want.is_nan()), "{bits:x}");
        }
    }
}
