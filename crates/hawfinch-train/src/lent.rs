//! Numbers in memory as tensors of a checkpoint, without a copy: a checkpoint is written in the memory that a step takes.

use bytes::Bytes;
use hawfinch_kernels::DType;
use hawfinch_model::checkpoint::StoredTensor;

/// What holds numbers, as bytes.
struct Holder<T>(T);

impl<T: AsRef<[f32]>> AsRef<[u8]> for Holder<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.as_ref())
    }
}

/// f32 numbers of this shape, which `holder` keeps until the tensor is dropped.
///
/// # Panics
/// When there are not as many as the shape says.
pub(crate) fn tensor<T: AsRef<[f32]> + Send + 'static>(shape: &[usize], holder: T) -> StoredTensor {
    // Files are little-endian.
    if cfg!(target_endian = "big") {
        return StoredTensor::from_f32(shape, holder.as_ref());
    }
    let bytes = Bytes::from_owner(Holder(holder));
    StoredTensor::new(DType::F32, shape.to_vec(), bytes).expect("as many values as the shape says")
}
