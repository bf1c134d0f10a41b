//! Many requests, one model: continuous batching on the ragged step.
//!
//! A [`Scheduler`] owns a thread that takes requests from a bounded queue and computes steps in which prompts being read
//! and replies being written mix. Prompts are read in chunks, so short that replies beside them go on; clients take turns.
//! Since a step's sequences do not influence each other and any division of a text gives the same bits, what a request gets
//! depends on itself alone: not on what else runs, not on what the state tree ([`crate::tree`]) knew.

mod queue;
mod request;
mod share;
mod slot;
mod stats;
#[cfg(test)]
mod tests;
mod turn;

pub use request::{Base, BatchModel, Constrained, Event, Request, Sink, Timings};
pub use stats::{Histogram, SECONDS, Stats};
pub use turn::{Turn, Turns};

use crate::generate::check_ids;
use crate::tree::cache::StateCache;
use crate::{Error, Result, StopMatcher, StopReason};
use hawfinch_tokenizer::Tokenizer;
use queue::{Queue, Who};
use slot::Slot;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Tokens of a step at most, as many as a model computes at once.
const STEP: usize = hawfinch_model::STEP_TOKENS;
/// Tokens of prompts in a step beside running replies, at least.
const CHUNK: usize = 16;
/// How much longer, in seconds, prompts may make a step beside running replies: where all wait for their prompts, where hardly
/// any does.
const DELAYS: [f64; 2] = [0.6, 0.15];
/// A text is divided for the tree where it parts from a known one only so many tokens behind a snapshot.
pub(crate) const MARK_APART: usize = 16;

/// Limits of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences that run at once.
    pub width: usize,
    /// Requests that wait.
    pub queue: usize,
}

impl Limits {
    /// Requests of one client that wait: a quarter of the places is for others than who has most.
    fn of_client(self) -> usize {
        (self.queue - self.queue / 4).max(1)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { width: 64, queue: 256 }
    }
}

/// Why a request was not taken.
#[derive(Debug)]
pub enum Refused {
    /// The queue is full; so long it might take until there is room.
    Full(Duration),
    /// The scheduler ends.
    Closing,
    /// The request is wrong.
    Wrong(Error),
}

/// A request in the queue.
struct Waiting<M: BatchModel> {
    request: Request<M>,
    since: Instant,
}

struct Shared<M: BatchModel> {
    model: Arc<M>,
    tokenizer: Tokenizer,
    cache: Arc<StateCache<M::State>>,
    limits: Limits,
    turns: Turns,
    stats: Arc<Stats>,
    queue: Mutex<Queue<Waiting<M>>>,
    wake: Condvar,
    closing: AtomicBool,
    /// When what still runs is ended.
    ending: Mutex<Option<Instant>>,
}

/// A model's scheduler. Dropping it ends what runs.
pub struct Scheduler<M: BatchModel> {
    shared: Arc<Shared<M>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: BatchModel> Scheduler<M> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        model: Arc<M>,
        tokenizer: Tokenizer,
        cache: Arc<StateCache<M::State>>,
        limits: Limits,
        turns: Turns,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            model,
            tokenizer,
            cache,
            limits,
            turns,
            stats: Arc::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            closing: AtomicBool::new(false),
            ending: Mutex::new(None),
        });
        let of = shared.clone();
        let thread = std::thread::Builder::new().name("scheduler".into()).spawn(move || of.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<M> {
        &self.shared.model
    }

    /// The state tree.
    pub fn cache(&self) -> &Arc<StateCache<M::State>> {
        &self.shared.cache
    }

    /// Counts and times.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// Whether a request might be taken now.
    pub fn has_room(&self) -> bool {
        locked(&self.shared.queue).len() < self.shared.limits.queue
    }

    /// Whether one more request of this client might be taken now.
    pub fn has_room_for(&self, client: &str) -> bool {
        let queue = locked(&self.shared.queue);
        queue.len() < self.shared.limits.queue && queue.waiting_of(client) < self.shared.limits.of_client()
    }

    /// Takes a request, or says why not.
    ///
    /// # Errors
    /// The queue is full, the scheduler is closing, or the request is wrong: an id out of range, no choice or more than
    /// run at once, an empty stop string.
    pub fn submit(&self, request: Request<M>) -> std::result::Result<(), Refused> {
        self.submit_all(vec![request])
    }

    /// Takes several requests of one client, or none of them.
    ///
    /// # Errors
    /// As [`Scheduler::submit`].
    pub fn submit_all(&self, requests: Vec<Request<M>>) -> std::result::Result<(), Refused> {
        let s = &*self.shared;
        let check = |request: &Request<M>| -> Result<()> {
            check_ids(&request.prompt, s.model.vocab())?;
            StopMatcher::new(&request.options.stops.strings)?;
            let choices = request.samplers.len();
            if choices == 0 || choices > s.limits.width {
                let range = "between 1 and the number of sequences that run at once";
                return Err(Error::Setting { setting: "n", value: choices.to_string(), range });
            }
            Ok(())
        };
        requests.iter().try_for_each(check).map_err(Refused::Wrong)?;
        let Some(first) = requests.first() else { return Ok(()) };
        let mut queue = locked(&s.queue);
        if s.closing.load(Ordering::Relaxed) {
            return Err(Refused::Closing);
        }
        let of_client = queue.waiting_of(&first.client) + requests.len();
        if queue.len() + requests.len() > s.limits.queue || of_client > s.limits.of_client() {
            s.stats.refused.fetch_add(requests.len() as u64, Ordering::Relaxed);
            return Err(Refused::Full(s.stats.expected_wait(queue.len(), s.limits.width)));
        }
        s.stats.requests.fetch_add(requests.len() as u64, Ordering::Relaxed);
        for request in requests {
            let who = (request.client.clone(), request.user.clone());
            queue.push(&who, Waiting { request, since: Instant::now() });
        }
        s.stats.queued.store(queue.len(), Ordering::Relaxed);
        drop(queue);
        s.wake.notify_all();
        Ok(())
    }

    /// Takes no more requests; what runs may go on for `grace`, then it is ended as if it had been cut off. Waits for the
    /// end.
    pub fn close(&self, grace: Duration) {
        *locked(&self.shared.ending) = Some(Instant::now() + grace);
        self.shared.closing.store(true, Ordering::Relaxed);
        drop(locked(&self.shared.queue));
        self.shared.wake.notify_all();
        if let Some(thread) = locked(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl<M: BatchModel> Drop for Scheduler<M> {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl<M: BatchModel> Shared<M> {
    fn run(&self) {
        let mut slots: Vec<Slot<M>> = Vec::new();
        let mut pace = Pace::default();
        loop {
            if slots.is_empty() {
                self.turns.writes(&mut pace.writes, false);
            }
            let Some(new) = self.admit(&slots) else { break };
            let round = AssertUnwindSafe(|| self.round(&mut slots, new, &mut pace));
            if std::panic::catch_unwind(round).is_err() {
                // A fault of this program: nothing that ran is to be trusted, what waits may still be computed.
                for slot in &slots {
                    slot.ticket.fail(Error::Broken);
                }
                slots.iter_mut().for_each(|slot| slot.ended = true);
                self.retire(&mut slots);
            }
        }
    }

    /// Begins new requests, and computes one step of all.
    fn round(&self, slots: &mut Vec<Slot<M>>, new: Vec<Waiting<M>>, pace: &mut Pace) {
        for w in new {
            let number = slots.iter().map(|s| s.number + 1).max().unwrap_or(0);
            let (model, cache) = (&*self.model, &*self.cache);
            slots.push(Slot::begin(number, model, cache, &self.tokenizer, w.request, w.since));
            let last = slots.len() - 1;
            share::begin(slots, last, &self.cache);
        }
        self.expire(slots);
        share::release(slots, &self.cache);
        self.retire(slots);
        if slots.is_empty() {
            return;
        }
        self.stats.active.store(slots.iter().map(Slot::weight).sum(), Ordering::Relaxed);
        self.step(slots, pace);
        self.retire(slots);
    }

    /// Takes requests from the queue while there is room for them; waits when nothing runs. `None` at the end.
    fn admit(&self, slots: &[Slot<M>]) -> Option<Vec<Waiting<M>>> {
        let mut queue = locked(&self.queue);
        loop {
            for gone in queue.remove(|w| w.request.sink.is_closed()) {
                drop(gone);
                self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
            }
            let now = Instant::now();
            for mut late in queue.remove(|w| w.request.deadline.is_some_and(|d| d <= now)) {
                late.request.sink.tell(Event::Failed(Error::TimedOut));
                self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
            }
            let mut taken = Vec::new();
            let mut room = self.limits.width.saturating_sub(slots.iter().map(Slot::weight).sum());
            while room > 0
                && let Some(w) = queue.pop()
            {
                // One of several choices may take more than there is: else it would wait for ever behind others.
                room = room.saturating_sub(w.request.samplers.len());
                taken.push(w);
            }
            self.stats.queued.store(queue.len(), Ordering::Relaxed);
            if !taken.is_empty() || !slots.is_empty() {
                return Some(taken);
            }
            if self.closing.load(Ordering::Relaxed) {
                return None;
            }
            self.stats.active.store(0, Ordering::Relaxed);
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends what has run out of time or listeners.
    fn expire(&self, slots: &mut [Slot<M>]) {
        let now = Instant::now();
        let closed = locked(&self.ending).is_some_and(|end| end <= now);
        for slot in slots {
            if slot.ticket.is_over() {
                slot.end_early(StopReason::Cancelled, Error::TimedOut, &self.cache);
                self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
            } else if closed || slot.ticket.deadline.is_some_and(|d| d <= now) {
                let unread = if closed { Error::Stopping } else { Error::TimedOut };
                slot.end_early(StopReason::TimedOut, unread, &self.cache);
            }
        }
    }

    /// One step of the model and what follows from it.
    fn step(&self, slots: &mut Vec<Slot<M>>, pace: &mut Pace) {
        let (mut written, mut read) = (0, 0);
        let mut reading: Vec<usize> = Vec::new();
        for (i, slot) in slots.iter_mut().enumerate().filter(|(_, s)| !s.ended) {
            if !slot.is_reading() {
                written += slot.write();
            } else if slot.left() > 0 && slot.waits.is_none() {
                reading.push(i);
            }
        }
        if !reading.is_empty() {
            let queue = locked(&self.queue);
            let mut ranks: Vec<_> = slots.iter().map(|s| queue.served_so_far(&s.ticket.who)).collect();
            drop(queue);
            share::inherit(slots, &mut ranks);
            reading.sort_by_key(|&i| ranks[i]);
            // Replies of other models wait for this step, too.
            let others = self.turns.writers() - usize::from(pace.writes);
            let mut room = pace.room(written + others, reading.len());
            // Each gets its part, so that a short prompt does not wait for a long one; the first also the rest.
            let part = (room / reading.len()).max(CHUNK);
            for &i in &reading {
                let took = slots[i].read(part.min(room));
                read += took;
                room -= took;
            }
        }
        self.turns.writes(&mut pace.writes, written > 0);
        let began;
        let fed: Vec<(Who, usize)>;
        {
            let turn = self.turns.take();
            // From now: how long others computed says nothing of this model.
            began = Instant::now();
            let (mut feeds, mut adapters, mut of) = (Vec::new(), Vec::new(), Vec::new());
            for slot in slots.iter_mut() {
                let who = slot.ticket.who.clone();
                if let Some((feed, adapter)) = slot.feed() {
                    of.push((who, feed.tokens.len()));
                    feeds.push(feed);
                    adapters.push(adapter);
                }
            }
            fed = of;
            let result =
                if feeds.is_empty() { Ok(()) } else { self.model.forward_adapted(&mut feeds, &adapters) };
            drop(turn);
            if let Err(e) = result {
                // Their states are not to be trusted any more.
                for slot in slots.iter_mut().filter(|s| !s.ended) {
                    slot.ticket.fail(e.clone());
                    slot.ended = true;
                }
                return;
            }
        }
        let took = began.elapsed().as_secs_f64();
        pace.learn(written, read, took);
        if written + read > 0 {
            self.stats.step(written, read, fed.len(), took);
        }
        let mut queue = locked(&self.queue);
        fed.iter().for_each(|(who, tokens)| queue.served(who, *tokens));
        drop(queue);
        let mut others = Vec::new();
        for slot in slots.iter_mut().filter(|s| !s.ended) {
            others.extend(slot.was_fed(&*self.model, &self.cache));
        }
        slots.extend(others);
        self.model.for_each(slots, |slot| slot.draw(&self.tokenizer, &self.cache));
    }

    /// Lets go of what has ended.
    fn retire(&self, slots: &mut Vec<Slot<M>>) {
        if slots.iter().all(|s| !s.ended) {
            return;
        }
        let mut queue = locked(&self.queue);
        let mut ended = Vec::new();
        slots.retain(|slot| {
            if slot.ended {
                ended.push(slot.ticket.clone());
            }
            !slot.ended
        });
        for ticket in ended {
            // The last of its choices.
            if Arc::strong_count(&ticket) == 1 {
                queue.ended(&ticket.who);
                self.stats.ended(ticket.times[0].elapsed());
            }
        }
    }
}

/// How fast steps are, learned from those that were.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds of a step of replies alone.
    writing: f64,
    /// Seconds a token of a prompt.
    reading: f64,
    /// Whether the last step wrote replies.
    writes: bool,
}

impl Pace {
    /// Tokens of so many prompts in a step beside so many tokens of replies.
    fn room(&self, written: usize, prompts: usize) -> usize {
        if written == 0 {
            return STEP;
        }
        let share = prompts as f64 / (prompts + written) as f64;
        let delay = DELAYS[1] + share * (DELAYS[0] - DELAYS[1]);
        let by_time = if self.reading > 0.0 { (delay / self.reading) as usize } else { CHUNK };
        by_time.clamp(CHUNK, STEP.saturating_sub(written).max(CHUNK))
    }

    fn learn(&mut self, written: usize, read: usize, seconds: f64) {
        let mix = |old: &mut f64, new: f64| *old = if *old == 0.0 { new } else { 0.8 * *old + 0.2 * new };
        match (written, read) {
            (0, 0) => {}
            (_, 0) => mix(&mut self.writing, seconds),
            (0, _) if read < CHUNK => {}
            (0, _) => mix(&mut self.reading, seconds / read as f64),
            _ => mix(&mut self.reading, ((seconds - self.writing) / read as f64).max(1e-6)),
        }
    }
}
