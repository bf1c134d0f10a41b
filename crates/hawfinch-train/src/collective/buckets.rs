//! Gradients on their way: as layers are finished they are put together in buckets, and each full bucket is added up over
//! the ranks while the way back through the other layers goes on.

use std::time::{Duration, Instant};

use hawfinch_kernels::adamw::CHUNK;

use super::shards::Piece;
use super::{Collective, Shards, Wire, all_reduce, reduce_scatter};
use crate::Result;

/// A gradient that nothing is added to any more.
pub(crate) struct Ready {
    /// Its place among the parameters.
    pub place: usize,
    /// Which it is of those that are trained.
    pub tensor: usize,
    pub gradient: Vec<f32>,
}

/// Numbers of a gradient that is there.
struct Span {
    ready: usize,
    piece: Piece,
}

/// How gradients are added up.
#[derive(Clone, Copy)]
pub(crate) struct How<'a> {
    pub wire: Wire,
    /// Numbers of a bucket.
    pub numbers: usize,
    /// Who gets the sum of what; none: all get all.
    pub shards: Option<&'a Shards>,
}

/// Buckets that are filled and added up.
pub(crate) struct Buckets<'a> {
    c: &'a dyn Collective,
    how: How<'a>,
    all: Vec<Ready>,
    open: Vec<Span>,
    held: usize,
    took: Duration,
}

impl<'a> Buckets<'a> {
    pub fn new(c: &'a dyn Collective, how: How<'a>) -> Self {
        Buckets { c, how, all: Vec::new(), open: Vec::new(), held: 0, took: Duration::ZERO }
    }

    /// Takes gradients; every rank the same ones in the same order.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    pub fn add(&mut self, more: Vec<Ready>) -> Result<()> {
        for ready in more {
            let (n, tensor, len) = (self.all.len(), ready.tensor, ready.gradient.len());
            self.all.push(ready);
            match self.how.shards {
                Some(shards) => shards.of(tensor).iter().try_for_each(|piece| self.put(n, *piece))?,
                None => (0..len).step_by(CHUNK).try_for_each(|from| {
                    self.put(n, Piece { tensor, from, to: len.min(from + CHUNK), owner: 0 })
                })?,
            }
        }
        Ok(())
    }

    fn put(&mut self, ready: usize, piece: Piece) -> Result<()> {
        self.open.push(Span { ready, piece });
        self.held += piece.len();
        if self.held >= self.how.numbers { self.exchange() } else { Ok(()) }
    }

    /// Adds up what is in the open bucket.
    fn exchange(&mut self) -> Result<()> {
        if self.held == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let mut spans = std::mem::take(&mut self.open);
        let held = std::mem::take(&mut self.held);
        // By owners; a stable order.
        spans.sort_by_key(|s| s.piece.owner);
        let mut numbers = Vec::with_capacity(held);
        let mut counts = vec![0; self.c.size()];
        for Span { ready, piece } in &spans {
            numbers.extend_from_slice(&self.all[*ready].gradient[piece.from..piece.to]);
            counts[piece.owner] += piece.len();
        }
        if self.how.shards.is_some() {
            let mut own = vec![0f32; counts[self.c.rank()]];
            reduce_scatter(self.c, self.how.wire, &numbers, &counts, &mut own)?;
            numbers = own;
            spans.retain(|s| s.piece.owner == self.c.rank());
        } else {
            all_reduce(self.c, self.how.wire, &mut numbers)?;
        }
        let mut rest = &numbers[..];
        for Span { ready, piece } in &spans {
            let (part, others) = rest.split_at(piece.len());
            self.all[*ready].gradient[piece.from..piece.to].copy_from_slice(part);
            rest = others;
        }
        self.took += began.elapsed();
        Ok(())
    }

    /// Adds up the last bucket and gives the gradients back, with the time that was spent.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    pub fn finish(mut self) -> Result<(Vec<Ready>, Duration)> {
        self.exchange()?;
        Ok((self.all, self.took))
    }
}
