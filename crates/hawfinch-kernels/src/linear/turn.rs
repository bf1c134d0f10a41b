//! Weights whose axes lie in the other order.

use crate::{DType, block};

/// Inputs turned at a time: what is written stays near.
const STRIP: usize = 16;

/// A matrix stored `[inputs, outputs]` as `[outputs, inputs]`: the same numbers in the same format, or for block
/// formats, whose blocks run along the wrong axis, as f32.
///
/// # Panics
/// When the bytes are not as many as the shape asks for.
pub fn turned(dtype: DType, data: &[u8], inputs: usize, outputs: usize) -> (DType, Vec<u8>) {
    if dtype.is_quantized() {
        let row = dtype.bytes_for(outputs).expect("a row is whole blocks");
        let mut values = vec![0u8; 4 * inputs * outputs];
        let mut decoded = vec![0f32; outputs];
        for (k, bytes) in data.chunks_exact(row).enumerate() {
            block::decode(dtype, bytes, &mut decoded);
            for (j, v) in decoded.iter().enumerate() {
                values[4 * (j * inputs + k)..][..4].copy_from_slice(&v.to_le_bytes());
            }
        }
        return (DType::F32, values);
    }
    let size = dtype.block_bytes();
    assert_eq!(data.len(), size * inputs * outputs);
    let mut out = vec![0u8; data.len()];
    for first in (0..inputs).step_by(STRIP) {
        let n = STRIP.min(inputs - first);
        for j in 0..outputs {
            let out = &mut out[size * (j * inputs + first)..][..size * n];
            for (k, out) in out.chunks_exact_mut(size).enumerate() {
                out.copy_from_slice(&data[size * ((first + k) * outputs + j)..][..size]);
            }
        }
    }
    (dtype, out)
}
