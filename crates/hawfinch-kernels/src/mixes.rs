//! Layer norm, token shift and mixes in one pass: what every half of a block begins with. A row is normalised, mixed
//! with the normalised row before it and handed out, without going through memory in between.

use crate::elementwise::{self, Toward};
use crate::norm::group_norm;
use crate::pool::Parts;
use crate::{Isa, Pool, Real};

/// Numbers of a chunk of work at least: some microseconds.
const CHUNK: usize = 1 << 14;

/// The rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a, F> {
    /// How many; at least one.
    pub rows: usize,
    /// The normalised row before the first, `[c]`.
    pub before: &'a [F],
}

/// Parameters of a layer norm, `[c]` each.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, F> {
    /// Factor.
    pub weight: &'a [F],
    /// Term.
    pub bias: &'a [F],
    /// Added to the variance.
    pub eps: F,
}

/// Normalises every row and mixes it with the normalised row before it: exactly [`group_norm`] over whole rows, then
/// [`elementwise::token_shift`], then [`elementwise::lerp`] with each of the weights.
///
/// * `ys`: N times `[t, c]`, overwritten
/// * `last`: `[sequences, c]`, receives the last normalised row of each sequence
/// * `x`: `[t, c]`, the rows of `runs` one after the other
/// * `weights`: N times `[c]`
/// * `spare`: gives room for so many numbers, and is given it back
///
/// # Panics
/// When the lengths disagree.
#[allow(clippy::too_many_arguments)]
pub fn norm_mixes<'a, F: Real, const N: usize>(
    isa: Isa,
    pool: &Pool,
    ys: [&mut [F]; N],
    last: &mut [F],
    x: &[F],
    norm: Affine<'_, F>,
    (weights, toward): ([&[F]; N], Toward),
    runs: &(impl Fn(usize) -> Run<'a, F> + Sync),
    spare: &(impl Fn(usize, &mut dyn FnMut(&mut [F])) + Sync),
) {
    let c = norm.weight.len();
    assert!(c > 0 && x.len().is_multiple_of(c) && last.len().is_multiple_of(c), "norm_mixes: rows");
    assert!(
        ys.iter().all(|y| y.len() == x.len()) && weights.iter().all(|w| w.len() == c),
        "norm_mixes: shapes"
    );
    let (t, sequences) = (x.len() / c, last.len() / c);
    assert_eq!((0..sequences).map(|s| runs(s).rows).sum::<usize>(), t, "norm_mixes: sequences");
    let (ys, last) = (ys.map(Parts::new), Parts::new(last));
    let rows = CHUNK.div_ceil(c * (N + 1)).min(t.max(1));
    let normalised = |y: &mut [F], row: usize| {
        group_norm(isa, y, &x[row * c..(row + 1) * c], norm.weight, norm.bias, c, norm.eps);
    };
    pool.run(t.div_ceil(rows), &|n| {
        let (from, to) = (n * rows, t.min((n + 1) * rows));
        spare(2 * c, &mut |room| {
            let (mut before, mut row) = room.split_at_mut(c);
            // The sequence of the first row, and that row's place in it.
            let (mut s, mut at) = (0, from);
            while at >= runs(s).rows {
                at -= runs(s).rows;
                s += 1;
            }
            match at {
                0 => before.copy_from_slice(runs(s).before),
                _ => normalised(before, from - 1),
            }
            for r in from..to {
                normalised(row, r);
                // SAFETY: each row belongs to one chunk.
                let mut ys = ys.each_ref().map(|y| unsafe { y.get(r * c, c) });
                elementwise::mixes(isa, &mut ys, row, before, &weights, toward);
                at += 1;
                if at == runs(s).rows {
                    // SAFETY: so does the last of each sequence.
                    unsafe { last.get(s * c, c) }.copy_from_slice(row);
                    (s, at) = (s + 1, 0);
                    if s < sequences {
                        before.copy_from_slice(runs(s).before);
                    }
                } else {
                    std::mem::swap(&mut before, &mut row);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn it_is_norm_then_shift_then_lerp() {
        let c = 21;
        let lengths = [1usize, 3, 700, 2, 1100];
        let t: usize = lengths.iter().sum();
        let x = values(t * c, 1);
        let (weight, bias, mixes) = (values(c, 2), values(c, 3), [values(c, 4), values(c, 5), values(c, 6)]);
        let before: Vec<Vec<f32>> = (0..lengths.len()).map(|s| values(c, 10 + s as u32)).collect();
        let mut normal = vec![0f32; t * c];
        group_norm(Isa::SCALAR, &mut normal, &x, &weight, &bias, c, 1e-5);
        let mut shifted = vec![0f32; t * c];
        let (mut at, mut ends) = (0, Vec::new());
        for (s, len) in lengths.iter().enumerate() {
            let (range, mut previous) = (at * c..(at + len) * c, before[s].clone());
            elementwise::token_shift(&mut shifted[range.clone()], &normal[range], &mut previous);
            ends.extend(previous);
            at += len;
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                for toward in [Toward::Row, Toward::Before] {
                    let mut ys: [Vec<f32>; 3] = std::array::from_fn(|_| vec![0f32; t * c]);
                    let mut last = vec![0f32; lengths.len() * c];
                    norm_mixes(
                        isa,
                        &Pool::new(threads),
                        ys.each_mut().map(|y| &mut y[..]),
                        &mut last,
                        &x,
                        Affine { weight: &weight, bias: &bias, eps: 1e-5 },
                        (mixes.each_ref().map(|m| &m[..]), toward),
                        &|s| Run { rows: lengths[s], before: &before[s] },
                        &|len, with| with(&mut vec![f32::NAN; len]),
                    );
                    assert_eq!(last, ends, "{isa}");
                    for (y, mix) in ys.iter().zip(&mixes) {
                        let mut want = vec![0f32; t * c];
                        let (from, to) =
                            if toward == Toward::Row { (&shifted, &normal) } else { (&normal, &shifted) };
                        elementwise::lerp(Isa::SCALAR, &mut want, from, to, mix);
                        assert_eq!(*y, want, "{isa} {toward:?} {threads} threads");
                    }
                }
            }
        }
    }
}
