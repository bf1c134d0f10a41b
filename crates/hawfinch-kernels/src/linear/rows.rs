//! Products with rows as they lie, for a range of outputs: the portable form and the choice of loops.

use super::Matrix;
use crate::isa::compiled_for_each;
use crate::output::Out;
use crate::reduce::dot;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::{DType, block};
use crate::{Isa, Real};

/// Calls the macro `$run` with the name of the loops for an instruction set; `$none` where it has none of its own.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_width {
    ($isa:expr, $run:ident, $none:expr) => {
        match $isa.level() {
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 => $run!(avx512),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2 => $run!(avx2),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::Neon | $crate::Level::NeonDotprod | $crate::Level::NeonI8mm => $run!(with_neon),
            _ => $none,
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use by_width;

/// Rows decoded together, so that a block of tokens is read from near memory for all of them.
pub const GROUP: usize = 8;

/// `count` outputs, from output `first` on, of the tokens `x`, the first of which is token `from` of `y`. Calls at the same
/// time are for different outputs or tokens.
pub fn rows<F: Real>(
    isa: Isa,
    y: &Out<'_, F>,
    x: &[F],
    w: Matrix<'_>,
    (first, count): (usize, usize),
    from: usize,
) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(x) = F::as_f32s(x)
        && super::wide::rows(isa, x, w, first, count, &mut |t, j, v| {
            // SAFETY: promised by this function's callers: t and j are in their range.
            unsafe { y.put(from + t, j, v, w.scale) }
        })
    {
        return;
    }
    portable(isa, y, x, w, first, count, from);
}

compiled_for_each! {
    /// The meaning: a dot product an output.
    pub fn portable<F: Real>(
        y: &Out<'_, F>,
        x: &[F],
        w: Matrix<'_>,
        first: usize,
        count: usize,
        from: usize,
    ) = body
}

#[inline(always)]
fn body<F: Real>(y: &Out<'_, F>, x: &[F], w: Matrix<'_>, first: usize, count: usize, from: usize) {
    let i = w.inputs;
    let mut row = vec![F::ZERO; i];
    let mut narrow = Vec::new();
    let scale = F::from_f32(w.scale);
    for j in first..first + count {
        w.decode_row(j, &mut row, &mut narrow);
        for (t, x) in x.chunks_exact(i).enumerate() {
            // SAFETY: promised by `rows`'s callers.
            unsafe { y.set(from + t, j, dot(&row, x) * scale) };
        }
    }
}

/// The first number of some bytes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub fn decode_number(dtype: DType, bytes: &[u8]) -> f32 {
    let mut number = [0f32];
    block::decode(dtype, &bytes[..dtype.block_bytes()], &mut number);
    number[0]
}
