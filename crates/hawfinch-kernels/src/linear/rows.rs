//! Products with rows as they lie, for a range of outputs: the portable form and the choice of loops.

use super::Matrix;
use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::reduce::dot;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::{DType, block};
use crate::{Isa, Real};

/// Rows decoded together, so that a block of tokens is read from near memory for all of them.
pub const GROUP: usize = 8;

/// `y` `[t, o]`, of which each thread fills columns of its own.
pub struct Out<F> {
    y: Parts<F>,
    outputs: usize,
}

impl<F: Real> Out<F> {
    /// Over all of `y`; borrowed as long as it is used.
    pub fn new(y: &mut [F], outputs: usize) -> Self {
        Out { y: Parts::new(y), outputs }
    }

    /// # Safety
    /// No other thread writes output `j` of token `t`.
    #[inline(always)]
    pub unsafe fn set(&self, t: usize, j: usize, value: F) {
        // SAFETY: the caller's promise.
        unsafe { self.y.set(t * self.outputs + j, value) }
    }

    /// Outputs `j ..` of token `t`.
    ///
    /// # Safety
    /// As [`Out::set`], for all of them.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, t: usize, j: usize, len: usize) -> &mut [F] {
        // SAFETY: the caller's promise.
        unsafe { self.y.get(t * self.outputs + j, len) }
    }
}

/// Outputs `first .. first + count` of every token. Calls at the same time are for different outputs.
pub fn rows<F: Real>(isa: Isa, y: &Out<F>, x: &[F], w: Matrix<'_>, first: usize, count: usize) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(x) = F::as_f32s(x)
        && super::wide::rows(isa, x, w, first, count, &mut |t, j, v| {
            // SAFETY: promised by this function's callers: j is in their range.
            let y = unsafe { y.part(t, j, v.len()) };
            y.iter_mut().zip(v).for_each(|(y, v)| *y = F::from_f32(*v));
        })
    {
        return;
    }
    portable(isa, y, x, w, first, count);
}

compiled_for_each! {
    /// The meaning: a dot product an output.
    pub fn portable<F: Real>(y: &Out<F>, x: &[F], w: Matrix<'_>, first: usize, count: usize) = body
}

#[inline(always)]
fn body<F: Real>(y: &Out<F>, x: &[F], w: Matrix<'_>, first: usize, count: usize) {
    let i = w.inputs;
    let mut row = vec![F::ZERO; i];
    let mut narrow = Vec::new();
    let scale = F::from_f32(w.scale);
    for j in first..first + count {
        w.decode_row(j, &mut row, &mut narrow);
        for (t, x) in x.chunks_exact(i).enumerate() {
            // SAFETY: promised by `rows`'s callers.
            unsafe { y.set(t, j, dot(&row, x) * scale) };
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
