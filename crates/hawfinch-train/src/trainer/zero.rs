//! Moments shared out among ranks: updates of a part, and checkpoints of the whole.

use std::collections::HashMap;

use hawfinch_kernels::adamw::sums_of_squares;

use super::Trainer;
use crate::Result;
use crate::adamw::{self, AdamW, Rates};
use crate::checkpoint::{self, Found, Loaded};
use crate::collective::all_gather;
use crate::tuning;

impl Trainer {
    /// As [`AdamW::step`], each rank its own part; the gradient's length, or nothing if it was not finite.
    pub(super) fn update_shards(&mut self, rates: Rates) -> Result<Option<f64>> {
        let Trainer { learner, optimizer, ranks, config, .. } = self;
        let Some(shards) = ranks.shards.take() else { return Ok(None) };
        let rank = ranks.collective.rank();
        let tape = learner.tape();
        let (isa, pool) = (tape.cpu().isa(), tape.cpu().pool().clone());
        let mut parameters = tape.parameters_mut();
        // Squares of every piece, by the rank that has its gradient.
        let mut own: Vec<adamw::Parameter<'_>> = Vec::new();
        let trained = parameters.list_mut().iter_mut().filter(|p| p.is_trained());
        for (tensor, p) in trained.enumerate() {
            let (mut values, gradient) = p.both_mut();
            for piece in shards.of(tensor) {
                let (part, rest) = values.split_at_mut(piece.len());
                values = rest;
                if piece.owner == rank {
                    own.push(adamw::Parameter { values: part, gradient: &gradient[piece.from..piece.to] });
                }
            }
        }
        let gradients: Vec<&[f32]> = own.iter().map(|p| p.gradient).collect();
        let squares = sums_of_squares(isa, &pool, &gradients);
        let counts: Vec<usize> = (0..ranks.size()).map(|r| shards.owned(r).count()).collect();
        let mut all = vec![0f64; shards.all().len()];
        let bytes: Vec<usize> = counts.iter().map(|n| 8 * n).collect();
        ranks.timed(|c| {
            c.all_gather(bytemuck::cast_slice(&squares), bytemuck::cast_slice_mut(&mut all), &bytes)
        })?;
        // In the order in which one process adds them.
        let mut next: Vec<usize> =
            counts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
        let sums: Vec<f64> = (0..shards.tensors())
            .map(|tensor| {
                let parts = shards.of(tensor).iter().map(|piece| {
                    next[piece.owner] += 1;
                    all[next[piece.owner] - 1]
                });
                parts.sum()
            })
            .collect();
        let norm = sums.iter().sum::<f64>().sqrt();
        let finite = sums.iter().all(|s| s.is_finite());
        if finite {
            optimizer.step_of_length(isa, &pool, &mut own, rates, 1.0, norm);
            drop(own);
            // The new values of every piece, some pieces at a time.
            let numbers = (config.bucket * 1e6 / 4.0) as usize;
            let places: Vec<usize> = (0..ranks.parts.len()).filter(|n| ranks.parts[*n].is_some()).collect();
            let mut rest = shards.all();
            while !rest.is_empty() {
                let ends = rest.iter().scan(0, |held, p| {
                    *held += p.len();
                    Some(*held)
                });
                let (group, others) = rest.split_at(ends.take_while(|held| *held <= numbers).count().max(1));
                rest = others;
                let mut send = Vec::new();
                let mut counts = vec![0; ranks.collective.size()];
                for piece in group {
                    counts[piece.owner] += piece.len();
                    if piece.owner == rank {
                        let (values, _) = parameters.list_mut()[places[piece.tensor]].both_mut();
                        send.extend_from_slice(&values[piece.from..piece.to]);
                    }
                }
                let mut new = vec![0f32; counts.iter().sum()];
                ranks.timed(|c| all_gather(c, &send, &mut new, &counts))?;
                let mut next: Vec<usize> =
                    counts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
                for piece in group {
                    let at = next[piece.owner];
                    next[piece.owner] += piece.len();
                    let (values, _) = parameters.list_mut()[places[piece.tensor]].both_mut();
                    values[piece.from..piece.to].copy_from_slice(&new[at..at + piece.len()]);
                }
            }
            for p in parameters.list_mut().iter_mut().filter(|p| tuning::is_tuned_state(&p.name)) {
                let shape = p.shape.clone();
                tuning::mend(p.both_mut().0, &shape);
            }
        }
        drop(parameters);
        ranks.shards = Some(shards);
        Ok(finite.then_some(norm))
    }

    /// Whether moments are shared out.
    pub(super) fn is_sharded(&self) -> bool {
        self.ranks.shards.is_some()
    }

    /// Takes moments from a checkpoint: all of them, or this rank's.
    pub(super) fn restore(&mut self, from: &Loaded) -> Result<()> {
        let Some(shards) = &self.ranks.shards else { return from.restore(&mut self.optimizer) };
        let mut own = shards.owned(self.ranks.collective.rank());
        let mut last: Option<(usize, Vec<f32>, Vec<f32>)> = None;
        self.optimizer.restore(from.progress.updates, |_| {
            let piece = own.next()?;
            let (name, len, _) = &self.ranks.tensors[piece.tensor];
            if last.as_ref().is_none_or(|l| l.0 != piece.tensor) {
                let (m, v) = from.moments_of(name).filter(|(m, v)| m.len() == *len && v.len() == *len)?;
                last = Some((piece.tensor, m, v));
            }
            let (_, m, v) = last.as_ref()?;
            Some((m[piece.from..piece.to].to_vec(), v[piece.from..piece.to].to_vec()))
        })
    }

    /// Writes a checkpoint on rank 0, all moments in it, and removes old ones.
    pub(super) fn write(&mut self) -> Result<Option<Found>> {
        self.agree_on_values()?;
        let mut gathered = self.gather_moments()?;
        let Trainer { config, optimizer, progress, ranks, learner, metadata, .. } = self;
        ranks.only_first(|| {
            let parameters = learner.tape().parameters();
            let weights = parameters.lent(metadata.clone(), |p| tuning::is_saved(config.method, p));
            drop(parameters);
            let optimizer = gathered.as_mut().unwrap_or(optimizer);
            let found = checkpoint::write(&config.out, &weights, optimizer, progress)?;
            checkpoint::prune(&config.out, config.keep, progress.best.map(|(_, step)| step))?;
            Ok(found)
        })
    }

    /// On rank 0 the moments of all, where they are shared out.
    fn gather_moments(&mut self) -> Result<Option<AdamW>> {
        /// Pieces of a message: 32 MB.
        const PIECES: usize = 256;
        let Some(shards) = &self.ranks.shards else { return Ok(None) };
        let (c, own) = (&*self.ranks.collective, self.optimizer.moments());
        if c.rank() > 0 {
            for group in own.chunks(PIECES) {
                let numbers: Vec<f32> =
                    group.iter().flat_map(|p| [&p.m[..], &p.v]).flatten().copied().collect();
                c.send(bytemuck::cast_slice(&numbers), 0)?;
            }
            return Ok(None);
        }
        let mut all: Vec<(Vec<f32>, Vec<f32>)> =
            self.ranks.tensors.iter().map(|t| (vec![0.0; t.1], vec![0.0; t.1])).collect();
        for (piece, of) in shards.owned(0).zip(own) {
            let (m, v) = &mut all[piece.tensor];
            m[piece.from..piece.to].copy_from_slice(&of.m);
            v[piece.from..piece.to].copy_from_slice(&of.v);
        }
        for rank in 1..c.size() {
            let pieces: Vec<_> = shards.owned(rank).collect();
            for group in pieces.chunks(PIECES) {
                let mut numbers = vec![0f32; group.iter().map(|p| 2 * p.len()).sum()];
                c.receive(bytemuck::cast_slice_mut(&mut numbers), rank)?;
                let mut rest = &numbers[..];
                for piece in group {
                    let (m, v) = &mut all[piece.tensor];
                    for to in [m, v] {
                        let (part, others) = rest.split_at(piece.len());
                        to[piece.from..piece.to].copy_from_slice(part);
                        rest = others;
                    }
                }
            }
        }
        let mut optimizer = AdamW::new(*self.optimizer.settings(), self.ranks.tensors.iter().cloned());
        let names = self.ranks.tensors.iter().map(|t| t.0.clone());
        let mut all: HashMap<String, _> = names.zip(all).collect();
        optimizer.restore(self.optimizer.steps(), |name| all.remove(name))?;
        Ok(Some(optimizer))
    }
}
