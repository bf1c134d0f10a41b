//! Rotary positions (Su et al. 2021, RoFormer): queries and keys are turned by angles that grow with their position, so
//! that their products depend on how far apart they are.

use crate::isa::compiled_for_each;
use crate::wkv::Head;
use crate::{Isa, Real};

/// The slowest pair turns by one radian in nearly so many positions.
const BASE: f64 = 10_000.0;

/// Turns of the positions from 0 on, of heads of `n` channels: channels i and i + n/2 (rounded down) are a pair, turned
/// by position · 10000^(-2i/n). Of an odd number the last is not turned.
pub struct Rotary<F> {
    n: usize,
    /// `[t, n/2]`
    cos: Vec<F>,
    /// `[t, n/2]`
    sin: Vec<F>,
}

impl<F: Real> Rotary<F> {
    /// Of `t` positions.
    pub fn new(t: usize, n: usize) -> Self {
        let half = n / 2;
        let (mut cos, mut sin) = (vec![F::ZERO; t * half], vec![F::ZERO; t * half]);
        for i in 0..half {
            let angle = BASE.powf(-2.0 * i as f64 / n as f64);
            let (c, s) = (angle.cos(), angle.sin());
            // Turn by turn in f64: off by some 1e-16 a position, and no sine of a large angle.
            let (mut x, mut y) = (1.0f64, 0.0f64);
            for at in (i..t * half).step_by(half) {
                (cos[at], sin[at]) = (F::from_f64(x), F::from_f64(y));
                (x, y) = (x * c - y * s, x * s + y * c);
            }
        }
        Rotary { n, cos, sin }
    }

    /// One head's rows of a tensor `[t, c]`, turned: `[t, n]`.
    pub(super) fn turned(&self, isa: Isa, from: &[F], x: &Head<'_, F>) -> Vec<F> {
        let mut rows = super::gathered(from, x);
        self.turn(isa, &mut rows, 0);
        rows
    }

    /// Turns rows `[m, n]`, the first of them at position `first`.
    fn turn(&self, isa: Isa, rows: &mut [F], first: usize) {
        let (cos, sin) = self.of(rows, first);
        turn(isa, rows, cos, sin, self.n, F::ONE);
    }

    /// Turns rows `[m, n]` back: what gradients of turned rows are to the rows.
    pub(super) fn turn_back(&self, isa: Isa, rows: &mut [F], first: usize) {
        let (cos, sin) = self.of(rows, first);
        turn(isa, rows, cos, sin, self.n, -F::ONE);
    }

    fn of(&self, rows: &[F], first: usize) -> (&[F], &[F]) {
        let (half, m) = (self.n / 2, rows.len() / self.n);
        let at = first * half..(first + m) * half;
        assert!(rows.len() == m * self.n && at.end <= self.cos.len(), "rotary: as many positions");
        (&self.cos[at.clone()], &self.sin[at])
    }
}

compiled_for_each! {
    fn turn<F: Real>(rows: &mut [F], cos: &[F], sin: &[F], n: usize, way: F) = turn_body
}

#[inline(always)]
fn turn_body<F: Real>(rows: &mut [F], cos: &[F], sin: &[F], n: usize, way: F) {
    let half = n / 2;
    if half == 0 {
        return;
    }
    let turns = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (row, (cos, sin)) in rows.chunks_exact_mut(n).zip(turns) {
        let (a, b) = row.split_at_mut(half);
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            let (x, y, sin) = (*a, *b, *sin * way);
            *a = (-y).mul_add(sin, x * *cos);
            *b = x.mul_add(sin, y * *cos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_positions_times_frequencies() {
        let (t, n) = (5000, 10);
        let rotary = Rotary::<f64>::new(t, n);
        for i in 0..5 {
            let angle = 10_000f64.powf(-2.0 * i as f64 / n as f64);
            for at in [0, 1, 77, 4999] {
                let (cos, sin) = (rotary.cos[at * 5 + i], rotary.sin[at * 5 + i]);
                let want = at as f64 * angle;
                assert!((cos - want.cos()).abs() < 1e-11 && (sin - want.sin()).abs() < 1e-11, "{i} {at}");
            }
        }
    }

    /// Products of turned rows depend on how far apart they are, and turning back gives the rows.
    #[test]
    fn products_depend_on_the_distance() {
        let rotary = Rotary::<f64>::new(40, 7);
        let row = |seed: f64| (0..7).map(|i| (i as f64 * 1.7 + seed).sin()).collect::<Vec<_>>();
        let at = |seed: f64, position: usize| {
            let mut row = row(seed);
            rotary.turn(Isa::best(), &mut row, position);
            row
        };
        let product = |i, j| at(0.3, i).iter().zip(at(1.1, j)).map(|(a, b)| a * b).sum::<f64>();
        assert!((product(9, 4) - product(37, 32)).abs() < 1e-12);
        assert!((product(9, 4) - product(9, 5)).abs() > 1e-3);
        let mut there = at(0.3, 21);
        rotary.turn_back(Isa::best(), &mut there, 21);
        assert!(there.iter().zip(row(0.3)).all(|(a, b)| (a - b).abs() < 1e-14));
        assert_eq!(at(0.3, 21)[6], row(0.3)[6], "the odd one");
    }
}
