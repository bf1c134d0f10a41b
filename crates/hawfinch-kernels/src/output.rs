//! Where products put their results, and what is done to them while they are at hand.

use std::marker::PhantomData;

use crate::Real;
use crate::pool::Parts;

/// What follows a product, done as its outputs are stored.
#[derive(Clone, Copy, Debug, Default)]
pub enum Then<'a, F> {
    /// Nothing.
    #[default]
    Nothing,
    /// max(y, 0)², as [`crate::elementwise::Unary::ReluSquared`].
    ReluSquared,
    /// These, `[t, o]`, are added: the residual stream.
    Add(&'a [F]),
}

impl<F: Real> Then<'_, F> {
    /// Does it to `y`, which begins at number `at` of all outputs.
    #[inline(always)]
    pub(crate) fn finish(&self, y: &mut [F], at: usize) {
        match self {
            Then::Nothing => {}
            Then::ReluSquared => y.iter_mut().for_each(|y| {
                let p = if *y < F::ZERO { F::ZERO } else { *y };
                *y = p * p;
            }),
            Then::Add(x) => y.iter_mut().zip(&x[at..]).for_each(|(y, x)| *y += *x),
        }
    }
}

/// `y` `[t, o]`, of which each thread fills outputs of its own.
pub(crate) struct Out<'a, F> {
    y: Parts<F>,
    outputs: usize,
    then: Then<'a, F>,
    borrowed: PhantomData<&'a mut [F]>,
}

impl<'a, F: Real> Out<'a, F> {
    /// Over all of `y`.
    ///
    /// # Panics
    /// When what is to be added is not as long.
    pub fn new(y: &'a mut [F], outputs: usize, then: Then<'a, F>) -> Self {
        assert!(!matches!(then, Then::Add(x) if x.len() != y.len()), "what is added to a product");
        Out { y: Parts::new(y), outputs, then, borrowed: PhantomData }
    }

    /// # Safety
    /// No other thread writes output `j` of token `t`.
    #[inline(always)]
    pub unsafe fn set(&self, t: usize, j: usize, value: F) {
        let at = t * self.outputs + j;
        // SAFETY: the caller's promise.
        let y = unsafe { self.y.get(at, 1) };
        y[0] = value;
        self.then.finish(y, at);
    }

    /// Outputs `j ..` of token `t`: `sums`, times `scale`.
    ///
    /// # Safety
    /// As [`Out::set`], for all of them.
    #[inline(always)]
    pub unsafe fn put(&self, t: usize, j: usize, sums: &[f32], scale: f32) {
        let at = t * self.outputs + j;
        // SAFETY: the caller's promise.
        let y = unsafe { self.y.get(at, sums.len()) };
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = F::from_f32(sum * scale));
        self.then.finish(y, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_done_at_its_place() {
        let x = [10.0f32, 20.0, 30.0, 40.0];
        let run = |then| {
            let mut y = [0f32; 4];
            let out = Out::new(&mut y, 2, then);
            // SAFETY: one thread.
            unsafe {
                out.put(0, 0, &[1.0, -2.0], 2.0);
                out.set(1, 0, -3.0);
                out.put(1, 1, &[f32::NAN], 1.0);
            }
            y
        };
        assert_eq!(run(Then::Nothing)[..3], [2.0, -4.0, -3.0]);
        assert_eq!(run(Then::ReluSquared)[..3], [4.0, 0.0, 0.0]);
        assert_eq!(run(Then::Add(&x))[..3], [12.0, 16.0, 27.0]);
        assert!(run(Then::ReluSquared)[3].is_nan());
    }
}
