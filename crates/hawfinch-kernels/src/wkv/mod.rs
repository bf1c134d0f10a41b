//! The WKV recurrences: one file a version, one sequence a call, any number of tokens, the state updated
//! in place. Decays are taken as the checkpoint's raw parameters and exponentiated inside, in the
//! number type of the state.
//!
//! Heads (channels, for v4) do not see each other. Operands are whole rows `[t, c]` with `c` all channels, and
//! a call computes some of the heads, whose part of the state it is given: so heads are divided over threads.
//!
//! Token by token is the meaning and the default. [`chunked`] has the matrix form, with the figures that decided.

mod backward;
pub mod chunked;
mod v4;
mod v5;
mod v6;
mod v7;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod v7_wide;

pub use backward::{
    Gradients, Gradients4, RUN, RUN7, StateGradient4, saved_len, saved_len7, wkv4_backward, wkv5_backward,
    wkv6_backward, wkv7_backward,
};
pub use v4::{State4, wkv4};
pub use v5::{wkv5, wkv5_saving};
pub use v6::{wkv6, wkv6_saving};
pub use v7::{wkv7, wkv7_saving};

use crate::Real;
use crate::pool::Parts;
use crate::reduce::dot3;

/// Output rows `[t, c]` of which several threads fill different heads at the same time.
pub struct Rows<F> {
    parts: Parts<F>,
}

impl<F: Real> Rows<F> {
    /// Over a whole tensor.
    ///
    /// # Safety
    /// As long as it is used the tensor stays borrowed, and calls that run at the same time are for different
    /// heads.
    pub unsafe fn new(y: &mut [F]) -> Self {
        Rows { parts: Parts::new(y) }
    }

    /// `n` numbers from `at`.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) fn at(&self, at: usize, n: usize) -> &mut [F] {
        // SAFETY: promised to `new`: no other call is for this head, and no call holds two parts.
        unsafe { self.parts.get(at, n) }
    }
}

/// Operands of one head: `r`, `k`, `v` are `[t, c]` of all heads.
#[derive(Clone, Copy)]
pub struct Head<'a, F> {
    /// Receptance; of attention the query.
    pub r: &'a [F],
    /// Key.
    pub k: &'a [F],
    /// Value.
    pub v: &'a [F],
    /// Which head.
    pub head: usize,
    /// Channels of a head.
    pub n: usize,
    /// Channels in a row.
    pub c: usize,
}

impl<F> Head<'_, F> {
    /// Tokens.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.r.len() / self.c
    }

    /// Where each token's numbers of this head begin.
    #[inline(always)]
    pub(crate) fn tokens(&self) -> impl Iterator<Item = usize> + use<F> {
        let (head, n, c) = (self.head, self.n, self.c);
        (0..self.r.len() / c).map(move |t| t * c + head * n)
    }

    /// Where this head's numbers of token `t` begin.
    #[inline(always)]
    pub(crate) fn at(&self, t: usize) -> usize {
        t * self.c + self.head * self.n
    }
}

/// The head size of every released model: the loops are compiled for it once more.
const USUAL: usize = 64;

/// Zeros to work with: on the stack as long as they are no more than `SMALL`, and there aligned to the widest
/// registers: rows of a state that cross cache lines cost a tenth of the time.
#[repr(C, align(64))]
struct Scratch<F, const SMALL: usize> {
    small: [F; SMALL],
    large: Vec<F>,
    len: usize,
}

impl<F: Real, const SMALL: usize> Scratch<F, SMALL> {
    fn new(len: usize) -> Self {
        let large = if len <= SMALL { Vec::new() } else { vec![F::ZERO; len] };
        Scratch { small: [F::ZERO; SMALL], large, len }
    }

    #[inline(always)]
    fn get(&mut self) -> &mut [F] {
        if self.len <= SMALL { &mut self.small[..self.len] } else { &mut self.large }
    }
}

/// One token of one head of v5 and v6, S `[key, value]`: reads y = rᵀ(S + u k vᵀ), then
/// S ← diag(w) S + k vᵀ. All `[n]`, `s` `[n, n]`.
#[inline(always)]
fn matrix_step<F: Real>(y: &mut [F], s: &mut [F], r: &[F], k: &[F], v: &[F], w: &[F], u: &[F]) {
    match <&[F; USUAL]>::try_from(v) {
        Ok(v) => {
            let mut sum = [F::ZERO; USUAL];
            matrix_rows(&mut sum, s, r, k, v, w, u);
            y.copy_from_slice(&sum);
        }
        Err(_) => matrix_rows(y, s, r, k, v, w, u),
    }
}

#[inline(always)]
fn matrix_rows<F: Real>(y: &mut [F], s: &mut [F], r: &[F], k: &[F], v: &[F], w: &[F], u: &[F]) {
    let n = v.len();
    let current = dot3(r, u, k);
    y.iter_mut().zip(v).for_each(|(y, &v)| *y = current * v);
    for (i, row) in s.chunks_exact_mut(n).enumerate() {
        let (ri, ki, wi) = (r[i], k[i], w[i]);
        for j in 0..n {
            y[j] = ri.mul_add(row[j], y[j]);
            row[j] = wi.mul_add(row[j], ki * v[j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `head` for each head of tensors `[t, h*n]`.
    pub fn run_heads<F: Real>(
        y: &mut [F],
        s: &mut [F],
        [r, k, v]: [&[F]; 3],
        n: usize,
        head: impl Fn(&Rows<F>, &mut [F], Head<'_, F>),
    ) {
        let c = s.len() / n;
        // SAFETY: one call at a time.
        let rows = unsafe { Rows::new(y) };
        for (h, s) in s.chunks_exact_mut(n * n).enumerate() {
            head(&rows, s, Head { r, k, v, head: h, n, c });
        }
    }
}
