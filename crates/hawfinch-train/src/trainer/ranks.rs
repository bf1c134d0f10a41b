//! A run on several ranks: who computes what of a step, and what they tell each other.
//!
//! A step is the same whatever the number of ranks: `batch` and `accumulate` are those of all ranks together, every token
//! of the step counts the same, and each micro-batch's gradient is one number that is added to the others'.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::elementwise::add_to;
use xxhash_rust::xxh64::Xxh64;

use super::Trainer;
use crate::adamw::{self, AdamW};
use crate::batches::Batch;
use crate::collective::buckets::{Buckets, How, Ready};
use crate::collective::{self, Collective, Communication, Fact, Shards, all_reduce_f64};
use crate::config::RunConfig;
use crate::groups::Group;
use crate::segments::{Along, Way};
use crate::tape::Part;
use crate::{Channels, Error, Learned, Learner, Lesson, Parameters, Result};

/// Samples of a step that one rank learns from at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The first, from the first of the step.
    pub from: u64,
    pub count: usize,
}

/// What a rank has of each step.
pub(super) fn shares(config: &RunConfig, ranks: usize, rank: usize) -> Result<Vec<Share>> {
    let (batch, accumulate, along) = (config.batch, config.accumulate, config.sequence_ranks);
    if !ranks.is_multiple_of(along) {
        return Err(Error::request(format!(
            "`sequence-ranks` is {along}, and {ranks} ranks cannot be divided into groups of so many: start a multiple of {along}"
        )));
    }
    // Those of a group learn from the same samples.
    let (ranks, rank) = (ranks / along, rank / along);
    if accumulate.is_multiple_of(ranks) {
        let own = (rank..accumulate).step_by(ranks);
        return Ok(own.map(|n| Share { from: (n * batch) as u64, count: batch }).collect());
    }
    if accumulate == 1 && batch.is_multiple_of(ranks) {
        let count = batch / ranks;
        return Ok(vec![Share { from: (rank * count) as u64, count }]);
    }
    let what = if along > 1 { "groups of ranks" } else { "ranks" };
    Err(Error::request(format!(
        "a step of {accumulate} × {batch} samples (`accumulate` × `batch`) cannot be shared by {ranks} {what}: set `accumulate` to a multiple of {ranks}, or `accumulate` to 1 and `batch` to a multiple of {ranks}"
    )))
}

/// The ranks of a run, as one of them sees them.
pub(super) struct Ranks {
    pub collective: Arc<dyn Collective>,
    pub shares: Vec<Share>,
    /// Who keeps which moments, if they are shared out.
    pub shards: Option<Shards>,
    /// Of the tensors that are trained: what the optimiser knows of them.
    pub tensors: Vec<(String, usize, Group)>,
    /// Of each parameter that is trained: which of these it is, and when its gradient is finished.
    pub parts: Vec<Option<(usize, Part)>>,
    /// How many share the segments of a micro-batch.
    along: usize,
    /// Gradients of the micro-batches before the last.
    sums: Vec<Vec<f32>>,
    /// What was said in this step.
    spent: Communication,
    /// And since this process began.
    total: Communication,
    /// Bytes sent until the last step.
    sent: u64,
}

impl Ranks {
    pub fn new(
        collective: Arc<dyn Collective>,
        config: &RunConfig,
        parameters: &Parameters<f32>,
        tensors: Vec<(String, usize, Group)>,
    ) -> Result<Ranks> {
        let shares = shares(config, collective.size(), collective.rank())?;
        let lengths: Vec<usize> = tensors.iter().map(|t| t.1).collect();
        let shards = (config.zero > 0).then(|| Shards::new(&lengths, collective.size()));
        let mut tensor = 0;
        let parts = parameters.list().iter().map(|p| {
            p.is_trained().then(|| {
                tensor += 1;
                (tensor - 1, Part::of(&p.name))
            })
        });
        let parts = parts.collect();
        Ok(Ranks {
            collective,
            shares,
            shards,
            tensors,
            parts,
            along: config.sequence_ranks,
            sums: Vec::new(),
            spent: Communication::default(),
            total: Communication::default(),
            sent: 0,
        })
    }

    pub fn size(&self) -> usize {
        self.collective.size()
    }

    /// How many learn from different samples, and which of them this one is.
    pub fn groups(&self) -> (usize, usize) {
        (self.size() / self.along, self.collective.rank() / self.along)
    }

    /// Whether this one counts the tokens of its samples, which are those of its group.
    pub fn counts(&self) -> bool {
        self.collective.rank().is_multiple_of(self.along)
    }

    /// Its place in its group, where there is one.
    fn place<'a>(&self, c: &'a dyn Collective) -> Option<Along<'a>> {
        (self.along > 1).then(|| Along { c, place: c.rank() % self.along, of: self.along })
    }

    /// Whether this one writes and talks.
    pub fn first(&self) -> bool {
        self.collective.rank() == 0
    }

    /// The optimiser of this rank.
    pub fn optimizer(&self, settings: adamw::Settings) -> AdamW {
        match &self.shards {
            None => AdamW::new(settings, self.tensors.iter().cloned()),
            Some(shards) => {
                let own = shards.owned(self.collective.rank());
                AdamW::new(settings, own.map(|p| (String::new(), p.len(), self.tensors[p.tensor].2)))
            }
        }
    }

    /// Says something to all and waits for the answer.
    pub fn timed<T>(&mut self, say: impl FnOnce(&dyn Collective) -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let said = say(&*self.collective);
        let took = began.elapsed().as_secs_f64();
        self.spent += Communication { seconds: took, waited: took, bytes: 0 };
        said
    }

    /// Sums over all ranks.
    pub fn sums<const N: usize>(&mut self, mut of: [f64; N]) -> Result<[f64; N]> {
        if self.size() > 1 {
            self.timed(|c| all_reduce_f64(c, &mut of))?;
        }
        Ok(of)
    }

    /// Numbers of which every rank has some, the others being 0, on all.
    pub fn fill(&mut self, numbers: &mut [f64]) -> Result<()> {
        if self.size() > 1 {
            self.timed(|c| all_reduce_f64(c, numbers))?;
        }
        Ok(())
    }

    /// Adds what fired on other ranks.
    pub fn all_channels(&mut self, channels: &mut Channels) -> Result<()> {
        if self.size() > 1 {
            let own: Vec<u8> = channels.0.iter().map(|fired| u8::from(*fired)).collect();
            for there in self.timed(|c| collective::gather(c, &own))? {
                channels.join(&Channels(there.iter().map(|fired| *fired > 0).collect()));
            }
        }
        Ok(())
    }

    /// Whether this one computes the n-th of things that are shared out.
    pub fn has(&self, n: usize) -> bool {
        n % self.size() == self.collective.rank()
    }

    /// Whether one of them says yes.
    pub fn any(&mut self, yes: bool) -> Result<bool> {
        Ok(self.sums([f64::from(u8::from(yes))])?[0] > 0.0)
    }

    /// What this step spent; nothing where one process works alone.
    pub fn step_done(&mut self) -> Option<Communication> {
        let sent = self.collective.sent();
        self.spent.bytes = sent - std::mem::replace(&mut self.sent, sent);
        let spent = std::mem::take(&mut self.spent);
        self.total += spent;
        (self.size() > 1).then_some(spent)
    }

    /// A sentence about what was said in a run of so many seconds; none where one process works alone.
    pub fn summary(&self, seconds: f64) -> Option<String> {
        let Communication { seconds: said, waited, bytes } = self.total;
        (self.size() > 1).then(|| {
            format!(
                "{} ranks: {said:.1} s of {seconds:.1} s in exchanges, {waited:.1} s of them waited for ({:.1}% of the run), {:.3} GB sent by rank 0",
                self.size(),
                100.0 * waited / seconds.max(1e-9),
                bytes as f64 / 1e9
            )
        })
    }

    /// What rank 0 did with something that only it does.
    ///
    /// # Errors
    /// On every rank, what went wrong there.
    pub fn only_first<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        if self.size() == 1 {
            return work().map(Some);
        }
        let done = self.first().then(work).transpose();
        let said = done.as_ref().err().map_or(String::new(), ToString::to_string);
        let said = self.timed(|c| collective::gather(c, said.as_bytes()))?.swap_remove(0);
        if !self.first() && !said.is_empty() {
            return Err(Error::request(format!("rank 0 says: {}", String::from_utf8_lossy(&said))));
        }
        done
    }
}

/// Settings that name files: each machine may have them elsewhere. What is in them is compared.
const PLACES: [&str; 7] = ["out", "from", "data", "text", "validation", "probe", "tokenizer"];

/// What tells these values from others.
fn hash(parameters: &Parameters<f32>, trained: bool) -> u64 {
    let mut sum = Xxh64::new(0);
    for p in parameters.list().iter().filter(|p| !trained || p.is_trained()) {
        sum.update(p.name.as_bytes());
        match p.stored() {
            None => sum.update(bytemuck::cast_slice(p.value())),
            Some(stored) => sum.update(&stored.data),
        }
    }
    sum.digest()
}

/// Sums up the losses of those tokens of a batch that count.
pub(super) fn loss(learned: &Learned<f32>, batch: &Batch) -> f64 {
    let counting = learned.losses.each.iter().zip(&batch.counts).filter(|(_, c)| **c);
    counting.map(|(l, _)| l).sum()
}

/// Adds to the gradients of one micro-batch; `finished` is told of parts as their gradients are.
fn learn_one(
    learner: &Learner<f32>,
    config: &RunConfig,
    batch: &Batch,
    weight: f32,
    along: Option<(Along<'_>, Way<f32>)>,
    finished: &mut dyn FnMut(Part),
) -> Result<f64> {
    if along.is_none() && batch.counted() == 0 {
        // Its gradients are the zeros that are there; ranks that have some finish their parts in this order.
        finished(Part::Head);
        (0..learner.config().layers).rev().for_each(|layer| finished(Part::Block(layer)));
        return Ok(0.0);
    }
    let learned = as_lesson(config, batch, weight, |lesson| match along {
        Some((along, way)) => learner.way_back(lesson, way, Some(along), finished),
        None => learner.learn_in_segments_telling(lesson, config.segments(), finished),
    })?;
    Ok(loss(&learned, batch))
}

/// A micro-batch as what can be learned, each of its tokens that count with this weight.
fn as_lesson<T>(
    config: &RunConfig,
    batch: &Batch,
    weight: f32,
    learn: impl FnOnce(&Lesson<'_, f32>) -> T,
) -> T {
    let weights: Vec<f32> = batch.counts.iter().map(|c| if *c { weight } else { 0.0 }).collect();
    let targets = Targets { ids: &batch.targets, weights: &weights, l2wrap: config.l2wrap };
    learn(&Lesson { lengths: &batch.lengths, tokens: &batch.tokens, targets, initial: None, d_last: None })
}

impl Trainer {
    /// Compares what has to be the same on all ranks.
    pub(super) fn agree(&self) -> Result<()> {
        let ranks = &self.ranks;
        if ranks.size() == 1 {
            return Ok(());
        }
        let settings = serde_json::to_value(&self.config).expect("settings are plain values");
        let settings = settings.as_object().expect("keys and values").iter();
        let mut facts: Vec<Fact> =
            vec![("the version of the program".into(), env!("CARGO_PKG_VERSION").into())];
        facts.extend(
            settings
                .filter(|(k, _)| !PLACES.contains(&k.as_str()))
                .map(|(k, v)| (format!("`{k}`"), v.to_string())),
        );
        let (p, d) = (&self.progress, &self.data);
        let parameters = self.learner.tape().parameters();
        facts.extend([
            ("the data set".into(), d.fingerprint.clone()),
            (
                "the validation set".into(),
                d.validation.as_ref().map_or(Ok("none".into()), |v| v.fingerprint())?,
            ),
            ("the probe".into(), {
                let mut sum = Xxh64::new(0);
                d.probe.iter().flat_map(|q| &q.ids).for_each(|id| sum.update(&id.to_le_bytes()));
                format!("{} texts, {:016x}", d.probe.len(), sum.digest())
            }),
            ("the step it stands at".into(), p.step.to_string()),
            ("the sample it reads next".into(), p.sample.to_string()),
            ("the hash of the model".into(), format!("{:016x}", hash(&parameters, false))),
        ]);
        collective::agree(&*ranks.collective, &facts)
    }

    /// Compares the values in training, which are the same bits on all ranks unless something is broken.
    pub(super) fn agree_on_values(&self) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let hash = hash(&self.learner.tape().parameters(), true);
        let fact =
            (format!("the hash of the weights after step {}", self.progress.step), format!("{hash:016x}"));
        collective::agree(&*self.ranks.collective, &[fact])
    }

    /// Gradients of the whole step, from this rank's micro-batches; the sums of their tokens' losses. Each micro-batch's
    /// gradient is one number that is added to those before it.
    pub(super) fn learn(&mut self, batches: &[Batch], weight: f32) -> Result<Vec<f64>> {
        let mut losses = Vec::new();
        let collective = self.ranks.collective.clone();
        // Along a text the way there of all micro-batches first: while one rank is at the second, the next is at the first.
        let mut ways = Vec::new();
        if let Some(along) = self.ranks.place(&*collective) {
            let how = self.config.segments();
            for batch in batches {
                let there = |lesson: &Lesson<'_, f32>| self.learner.way_there(lesson, how, Some(along));
                ways.push((along, as_lesson(&self.config, batch, weight, there)?));
            }
        }
        let mut ways = ways.into_iter();
        for (n, batch) in batches.iter().enumerate() {
            let way = ways.next();
            self.learner.tape().parameters_mut().clear_gradients();
            let last = n + 1 == batches.len();
            if last && self.ranks.size() > 1 {
                losses.push(self.learn_and_exchange(batch, weight, way, n > 0)?);
                break;
            }
            losses.push(learn_one(&self.learner, &self.config, batch, weight, way, &mut |_| {})?);
            if batches.len() > 1 {
                self.add_up(n == 0, last);
            }
        }
        Ok(losses)
    }

    /// Adds the gradients to those of the micro-batches before; after the last, the sum is in their place.
    fn add_up(&mut self, first: bool, last: bool) {
        let tape = self.learner.tape();
        let isa = tape.cpu().isa();
        let mut parameters = tape.parameters_mut();
        let sums = &mut self.ranks.sums;
        sums.resize_with(parameters.list().len(), Vec::new);
        for (p, sum) in parameters.list_mut().iter_mut().zip(sums).filter(|(p, _)| p.is_trained()) {
            let len = p.len();
            let gradient = p.gradient_vec();
            if first {
                std::mem::swap(gradient, sum);
                gradient.resize(len, 0.0);
            } else if last {
                add_to(isa, gradient, sum);
            } else {
                add_to(isa, sum, gradient);
            }
        }
    }

    /// The last micro-batch of a step: as gradients are finished they are added up over the ranks.
    fn learn_and_exchange(
        &mut self,
        batch: &Batch,
        weight: f32,
        way: Option<(Along<'_>, Way<f32>)>,
        add: bool,
    ) -> Result<f64> {
        // States and their gradients go from rank to rank until the way back is over: nothing else is said meanwhile.
        let meanwhile = way.is_none();
        let (learner, config, ranks) = (&self.learner, &self.config, &mut self.ranks);
        let collective = ranks.collective.clone();
        let tape = learner.tape();
        let mut taken = vec![false; ranks.parts.len()];
        let (parts, sums) = (&ranks.parts, &ranks.sums);
        // Takes what is finished: a part, or all that is left.
        let mut take = |part: Option<Part>| -> Vec<Ready> {
            let isa = tape.cpu().isa();
            let mut parameters = tape.parameters_mut();
            let mut ready = Vec::new();
            for (place, p) in parameters.list_mut().iter_mut().enumerate() {
                let Some((tensor, of)) = parts[place] else { continue };
                if taken[place] || part.is_some_and(|part| part != of) {
                    continue;
                }
                taken[place] = true;
                let mut gradient = std::mem::take(p.gradient_vec());
                if add {
                    add_to(isa, &mut gradient, &sums[place]);
                }
                ready.push(Ready { place, tensor, gradient });
            }
            ready
        };
        let numbers = ((config.bucket * 1e6 / 4.0) as usize).max(1);
        let how = How { wire: config.wire, numbers, shards: ranks.shards.as_ref() };
        let (to, from) = mpsc::channel::<Vec<Ready>>();
        let work = || {
            let mut buckets = Buckets::new(&*collective, how);
            from.into_iter().try_for_each(|ready| buckets.add(ready))?;
            buckets.finish()
        };
        let (loss, done, waited) = std::thread::scope(|s| -> Result<_> {
            let (mut thread, mut later) = (None, None);
            if meanwhile && collective.works_from_any_thread() {
                thread = Some(s.spawn(work));
            } else {
                later = Some(work);
            }
            // What cannot be sent has an error waiting behind it.
            let loss = learn_one(learner, config, batch, weight, way, &mut |part| {
                if meanwhile {
                    let _ = to.send(take(Some(part)));
                }
            });
            if loss.is_ok() {
                let _ = to.send(take(None));
            }
            drop(to);
            let began = Instant::now();
            let done = match (thread, later) {
                (Some(thread), _) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                (None, Some(work)) => work(),
                (None, None) => unreachable!("one of both"),
            };
            Ok((loss?, done?, began.elapsed()))
        })?;
        let (ready, took) = done;
        let mut parameters = tape.parameters_mut();
        for Ready { place, gradient, .. } in ready {
            *parameters.list_mut()[place].gradient_vec() = gradient;
        }
        ranks.spent += Communication { seconds: took.as_secs_f64(), waited: waited.as_secs_f64(), bytes: 0 };
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shared_without_a_gap() {
        let config = |batch, accumulate| RunConfig { batch, accumulate, ..RunConfig::default() };
        for (batch, accumulate, ranks) in [(3, 1, 1), (3, 4, 1), (3, 4, 2), (4, 1, 2), (8, 1, 4), (1, 6, 3)] {
            let all = (0..ranks).flat_map(|r| shares(&config(batch, accumulate), ranks, r).unwrap());
            let mut samples: Vec<u64> = all.flat_map(|s| s.from..s.from + s.count as u64).collect();
            samples.sort_unstable();
            assert!(samples.into_iter().eq(0..(batch * accumulate) as u64));
        }
        for (batch, accumulate) in [(3, 1), (4, 3), (3, 5)] {
            let said = shares(&config(batch, accumulate), 2, 0).unwrap_err().to_string();
            assert!(said.contains("`accumulate` to a multiple of 2"), "{said}");
        }
    }
}
