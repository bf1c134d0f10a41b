//! To be written.

use crate::DType;

/// Decodes whole blocks.
pub(super) fn decode(_dtype: DType, _bytes: &[u8], _out: &mut [f32]) {
    unimplemented!()
}

/// Encodes whole blocks.
pub(super) fn encode(_dtype: DType, _values: &[f32], _out: &mut Vec<u8>) -> bool {
    false
}
