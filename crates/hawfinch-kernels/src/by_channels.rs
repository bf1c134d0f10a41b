//! Work on some channels of every row: how gradients of parameters, which are sums over rows, are divided over the
//! threads, so that no sum depends on how many there are.

use crate::{Pool, Real};

/// Channels of a block at most.
pub(crate) const BLOCK: usize = 64;
/// Rows that are added up before they are added to the rest: sums of thousands of numbers lose less.
const RUN: usize = 64;
/// Numbers below which the calling thread does all.
const ALONE: usize = 1 << 14;

/// Some channels of every row of tensors `[t, c]`.
#[derive(Clone, Copy)]
pub(crate) struct Channels {
    /// Rows.
    pub t: usize,
    /// Channels of a row.
    pub c: usize,
    /// The first of this block.
    pub first: usize,
    /// How many: [`BLOCK`] at most.
    pub len: usize,
}

impl Channels {
    /// Where the block's numbers of each row lie.
    #[inline(always)]
    pub fn rows(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.t).map(move |row| self.row(row))
    }

    /// Where its numbers of one row lie.
    #[inline(always)]
    pub fn row(self, row: usize) -> std::ops::Range<usize> {
        let at = row * self.c + self.first;
        at..at + self.len
    }

    /// Where its numbers of a vector `[c]` lie.
    #[inline(always)]
    pub fn own(self) -> std::ops::Range<usize> {
        self.first..self.first + self.len
    }
}

/// Calls `work` for every block of `size` (at most [`BLOCK`]) channels of tensors `[t, c]`.
pub(crate) fn by_channels(pool: &Pool, (t, c): (usize, usize), size: usize, work: impl Fn(Channels) + Sync) {
    let block = |n: usize| {
        let first = n * size;
        work(Channels { t, c, first, len: size.min(c - first) });
    };
    let blocks = c.div_ceil(size);
    if t * c <= ALONE { (0..blocks).for_each(block) } else { pool.run(blocks, &block) }
}

/// Sums over rows of a block's channels.
pub(crate) struct Sums<F> {
    run: [F; BLOCK],
    total: [F; BLOCK],
    rows: usize,
}

impl<F: Real> Sums<F> {
    pub fn new() -> Self {
        Sums { run: [F::ZERO; BLOCK], total: [F::ZERO; BLOCK], rows: 0 }
    }

    /// The sums of this run of rows, to add a row's numbers to.
    #[inline(always)]
    pub fn row(&mut self) -> &mut [F; BLOCK] {
        if self.rows == RUN {
            self.flush();
        }
        self.rows += 1;
        &mut self.run
    }

    #[inline(always)]
    fn flush(&mut self) {
        for (total, run) in self.total.iter_mut().zip(&mut self.run) {
            *total += *run;
            *run = F::ZERO;
        }
        self.rows = 0;
    }

    /// All rows' sums.
    #[inline(always)]
    pub fn write(mut self, to: &mut [F]) {
        self.flush();
        to.copy_from_slice(&self.total[..to.len()]);
    }
}
