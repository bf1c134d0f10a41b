//! Decoding of Q6_K on AVX2: the head of nearly every 4-bit GGUF file. The same numbers as `k.rs`.

use std::arch::x86_64::*;

use super::k::LEN;
use super::widen_f16;

/// Bytes of a block.
const BYTES: usize = 210;

/// Decodes whole blocks of Q6_K; `out` is 256 numbers for each block of `bytes`.
///
/// # Panics
/// When the lengths disagree.
#[inline]
#[target_feature(enable = "avx2")]
pub fn decode_q6(bytes: &[u8], out: &mut [f32]) {
    let (blocks, outs) = (bytes.as_chunks::<BYTES>().0, out.as_chunks_mut::<LEN>().0);
    assert!(blocks.len() == outs.len() && outs.as_flattened().len() == blocks.len() * LEN, "blocks of Q6_K");
    let (nibble, pair, zero) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3), _mm256_set1_epi8(32));
    for (b, out) in blocks.iter().zip(outs) {
        let d = widen_f16(u16::from_le_bytes([b[208], b[209]]));
        for half in 0..2 {
            // SAFETY: 64 bytes of nibbles from 0 and 64, 32 of pairs from 128 and 160, within the block.
            let (first, second, high) = unsafe {
                let at = b.as_ptr();
                (
                    _mm256_loadu_si256(at.add(64 * half).cast()),
                    _mm256_loadu_si256(at.add(64 * half + 32).cast()),
                    _mm256_loadu_si256(at.add(128 + 32 * half).cast()),
                )
            };
            let low = |v| _mm256_and_si256(v, nibble);
            let upper = |v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), nibble);
            let bits = |v| _mm256_slli_epi16::<4>(_mm256_and_si256(v, pair));
            let planes = [
                _mm256_or_si256(low(first), bits(high)),
                _mm256_or_si256(low(second), bits(_mm256_srli_epi16::<2>(high))),
                _mm256_or_si256(upper(first), bits(_mm256_srli_epi16::<4>(high))),
                _mm256_or_si256(upper(second), bits(_mm256_srli_epi16::<6>(high))),
            ];
            for plane in 0..4 {
                let codes = _mm256_sub_epi8(planes[plane], zero);
                let parts = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
                let sub = 8 * half + 2 * plane;
                for part in 0..2 {
                    let scale = _mm256_set1_ps(d * f32::from(b[192 + sub + part] as i8));
                    let eights = [parts[part], _mm_srli_si128::<8>(parts[part])];
                    for n in 0..2 {
                        let value = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eights[n]));
                        let at = 16 * (sub + part) + 8 * n;
                        // SAFETY: eight numbers from there, 8 + 8 + 240 = 256 at most.
                        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_mul_ps(scale, value)) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, block};

    #[test]
    fn it_is_the_portable_decoding() {
        if !std::is_x86_feature_detected!("avx2") {
            return;
        }
        let mut s = 7u32;
        let mut bytes: Vec<u8> = (0..5 * BYTES)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                (s >> 24) as u8
            })
            .collect();
        // Scales that are finite.
        bytes.chunks_exact_mut(BYTES).for_each(|b| b[209] &= 0xbf);
        let (mut want, mut got) = (vec![0f32; 5 * LEN], vec![0f32; 5 * LEN]);
        block::decode(DType::Q6_K, &bytes, &mut want);
        // SAFETY: the processor has AVX2.
        unsafe { decode_q6(&bytes, &mut got) };
        assert!(want.iter().any(|v| v.abs() > 1.0));
        assert_eq!(
            got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            want.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }
}
