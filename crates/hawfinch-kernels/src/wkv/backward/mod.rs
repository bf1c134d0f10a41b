//! Gradients of the recurrences (spec sections 1.5 and 11): one file a version, v5 and v6 together, one head of one
//! sequence a call.
//!
//! The forward for training keeps the state before each run of [`RUN`] tokens (v7 also what each token removes). Backward
//! takes the runs from the last to the first: it recomputes the states of a run from the one that was kept, exactly as
//! the forward did, and never divides by a decay. Sums over the values of a key are those of [`crate::reduce`], sums over
//! keys go in their order: the same bits on every instruction set.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod lanes;
mod matrix;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod matrix_wide;
#[cfg(test)]
mod tests;
mod v4;
mod v7;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod v7_wide;

pub use matrix::{wkv5_backward, wkv6_backward};
pub use v4::{Gradients4, StateGradient4, wkv4_backward};
pub use v7::wkv7_backward;

use std::slice::ChunksExactMut;

use super::Rows;
use crate::Real;
use crate::prefetch;
use crate::reduce::LANES;

/// Tokens between two states that the forward of v5 and v6 keeps.
pub const RUN: usize = 16;

/// Tokens between two states that the forward of v7 keeps.
pub const RUN7: usize = 64;

/// Numbers that a head of size `n` of v5 and v6 keeps of `t` tokens: states `[ceil(t/RUN), n, n]`.
pub const fn saved_len(t: usize, n: usize) -> usize {
    t.div_ceil(RUN) * n * n
}

/// Numbers that a head of size `n` of v7 keeps of `t` tokens: states `[ceil(t/RUN7), n, n]`, then what each token
/// removes, `[t, n]`.
pub const fn saved_len7(t: usize, n: usize) -> usize {
    states_len7(t, n) + t * n
}

/// As many of these are states.
pub(super) const fn states_len7(t: usize, n: usize) -> usize {
    t.div_ceil(RUN7) * n * n
}

/// Where the gradients of receptance, key and value go: `[t, c]` of all heads each. A call overwrites its head's part.
#[derive(Clone, Copy)]
pub struct Gradients<'a, F> {
    /// Of the receptance.
    pub r: &'a Rows<F>,
    /// Of the key.
    pub k: &'a Rows<F>,
    /// Of the value.
    pub v: &'a Rows<F>,
}

/// States as a forward keeps them; of none when nothing is to be kept.
pub(super) struct Saved<'a, F> {
    states: ChunksExactMut<'a, F>,
    run: usize,
    token: usize,
}

impl<'a, F: Real> Saved<'a, F> {
    /// For the states of `t` tokens before each run of `run`, or for none.
    pub fn new(states: &'a mut [F], run: usize, t: usize, n: usize) -> Self {
        let states_fit = states.is_empty() || states.len() == t.div_ceil(run) * n * n;
        assert!(states_fit, "room for the states that are kept");
        Saved { states: states.chunks_exact_mut(n * n), run, token: 0 }
    }

    /// The state as it is before the next token.
    #[inline(always)]
    pub fn before_token(&mut self, s: &[F]) {
        if self.token.is_multiple_of(self.run)
            && let Some(to) = self.states.next()
        {
            to.copy_from_slice(s);
        }
        self.token += 1;
    }
}

/// Arrays to work with, in one piece of memory, each beginning with a cache line.
struct Arrays<F> {
    numbers: Vec<F>,
    begin: usize,
    /// Numbers from one array to the next.
    step: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl<F: Real> Arrays<F> {
    /// `count` arrays of `len` zeros.
    fn new(count: usize, len: usize) -> Self {
        let line = LINE / size_of::<F>();
        // One line more: arrays whose beginnings are whole pages apart are taken for each other by processors.
        let step = len.next_multiple_of(line) + line;
        let numbers = vec![F::ZERO; count * step + line];
        let begin = numbers.as_ptr().align_offset(LINE).min(line);
        Arrays { numbers, begin, step }
    }

    /// All of them.
    #[inline(always)]
    fn get<const COUNT: usize>(&mut self) -> [&mut [F]; COUNT] {
        let mut arrays = self.numbers[self.begin..].chunks_exact_mut(self.step);
        std::array::from_fn(|_| arrays.next().expect("as many arrays"))
    }
}

/// Sixteen of `x` from `at` on, zeros where it ends: loops over arrays run in registers, whatever the slices are.
#[inline(always)]
fn sixteen<F: Real>(x: &[F], at: usize) -> [F; LANES] {
    let x = &x[at..];
    match x.first_chunk() {
        Some(whole) => *whole,
        None => {
            let mut part = [F::ZERO; LANES];
            part[..x.len()].copy_from_slice(x);
            part
        }
    }
}

/// The other way.
#[inline(always)]
fn put<F: Real>(x: &mut [F], at: usize, values: [F; LANES]) {
    let x = &mut x[at..];
    match x.first_chunk_mut() {
        Some(whole) => *whole = values,
        None => x.copy_from_slice(&values[..x.len()]),
    }
}

/// Copies `n` numbers from `at` on: short copies, for which a call would cost as much as what it does.
#[inline(always)]
fn copy<F: Real>(to: &mut [F], from: &[F], at: usize, n: usize) {
    let (to, from) = (&mut to[..n], &from[at..at + n]);
    for i in (0..n).step_by(LANES) {
        put(to, i, sixteen(from, i));
    }
}

/// Asks for `n` numbers of `x` from `at` on, which are read later: rows of a head lie too far apart for processors to
/// guess the next.
#[inline(always)]
fn ahead<F>(x: &[F], at: usize, n: usize) {
    for i in (0..n).step_by(LINE / size_of::<F>()) {
        prefetch::second(x.as_ptr().wrapping_add(at + i));
    }
}
