//! Counts and times of a scheduler, to be read at any moment.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Upper ends of a histogram's buckets, in seconds.
pub const SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How often a time fell into which bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One a bucket of [`SECONDS`], and one for longer times.
    counts: [AtomicU64; SECONDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = SECONDS.iter().position(|end| seconds <= *end).unwrap_or(SECONDS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts up to each end of [`SECONDS`], then of all; the sum in seconds.
    pub fn cumulative(&self) -> ([u64; SECONDS.len() + 1], f64) {
        let mut sum = 0;
        let counts = std::array::from_fn(|i| {
            sum += self.counts[i].load(Ordering::Relaxed);
            sum
        });
        (counts, self.micros.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

/// Counts and times.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests taken.
    pub requests: AtomicU64,
    /// Requests refused since the queue was full.
    pub refused: AtomicU64,
    /// Requests that ended since nobody listened any more, or too late.
    pub cancelled: AtomicU64,
    /// Requests that ended.
    pub finished: AtomicU64,
    /// Requests that wait.
    pub queued: AtomicUsize,
    /// Sequences that run.
    pub active: AtomicUsize,
    /// Tokens of prompts that were read.
    pub prompt_tokens: AtomicU64,
    /// Tokens of replies that were read (one step after they were drawn).
    pub reply_tokens: AtomicU64,
    /// Steps.
    pub steps: AtomicU64,
    /// Sequences of all steps.
    pub sequences: AtomicU64,
    /// Times of steps.
    pub step_time: Histogram,
    /// Times of requests, from submission to their end.
    pub request_time: Histogram,
}

impl Stats {
    pub(super) fn step(&self, written: usize, read: usize, sequences: usize, seconds: f64) {
        self.prompt_tokens.fetch_add(read as u64, Ordering::Relaxed);
        self.reply_tokens.fetch_add(written as u64, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.sequences.fetch_add(sequences as u64, Ordering::Relaxed);
        self.step_time.record(Duration::from_secs_f64(seconds));
    }

    pub(super) fn ended(&self, time: Duration) {
        self.finished.fetch_add(1, Ordering::Relaxed);
        self.request_time.record(time);
    }

    /// How long until there is room in the queue, by how long requests took so far.
    pub(super) fn expected_wait(&self, waiting: usize, width: usize) -> Duration {
        let (counts, sum) = self.request_time.cumulative();
        let ended = counts[SECONDS.len()];
        let each = if ended == 0 { 1.0 } else { sum / ended as f64 };
        let rounds = (waiting as f64 / width.max(1) as f64).max(1.0);
        Duration::from_secs_f64((each / width.max(1) as f64 * rounds).clamp(1.0, 60.0))
    }
}
