//! The threads that arithmetic runs on: made once, woken by a store.
//!
//! Work comes as numbered chunks. Each thread takes the chunks of its own consecutive share, then helps the
//! others with theirs, so a thread that the system has taken off its processor delays nobody by more than the
//! chunk it holds. A thread without work spins for some microseconds, then yields, then sleeps.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use crate::Reads;
use crate::ahead::Ahead;

/// Looks at the job before the first yield: some microseconds.
const SPINS: usize = 4000;
/// Yields before going to sleep: about as long as choosing a token takes.
const YIELDS: usize = 400;

/// A cache line of its own (two, which processors fetch in pairs).
#[repr(align(128))]
struct Line<T>(T);

/// Work in numbered chunks that may run at the same time.
pub trait Work: Sync {
    /// How many.
    fn chunks(&self) -> usize;
    /// Does one.
    ///
    /// # Safety
    /// `n` is below [`Work::chunks`], and no other thread does chunk `n` at the same time.
    unsafe fn chunk(&self, n: usize);
    /// What one reads from memory that is worth fetching ahead, in the order in which it does.
    fn reads(&self, _n: usize) -> &[u8] {
        &[]
    }
}

/// Does all of some work on the calling thread: for what is over sooner than other threads would wake.
pub fn run_here<W: Work>(works: &[W]) {
    for work in works {
        // SAFETY: one chunk after the other, each below the count.
        (0..work.chunks()).for_each(|n| unsafe { work.chunk(n) });
    }
}

/// None is no work.
impl<W: Work> Work for Option<W> {
    fn chunks(&self) -> usize {
        self.as_ref().map_or(0, Work::chunks)
    }
    unsafe fn chunk(&self, n: usize) {
        if let Some(work) = self {
            // SAFETY: the caller's promise.
            unsafe { work.chunk(n) }
        }
    }
    fn reads(&self, n: usize) -> &[u8] {
        self.as_ref().map_or(&[], |work| work.reads(n))
    }
}

/// The job that is open, as long as it is.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    chunks: usize,
}

struct Shared {
    /// `epoch << 32 | open << 31 | threads inside`.
    state: Line<AtomicU64>,
    job: UnsafeCell<Option<Job>>,
    /// Next chunk of each thread's share.
    next: Vec<Line<AtomicUsize>>,
    ahead: Ahead,
    /// Threads that sleep or are about to.
    asleep: AtomicUsize,
    stop: AtomicBool,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the thread that holds the pool while nobody is inside, and read only by
// threads that have entered, which the writer waits for.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is used only while its owner waits in `run`.
unsafe impl Send for Shared {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

/// A number of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    /// One job at a time.
    busy: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

impl Pool {
    /// With so many threads (at least one: the caller's). When the system grants fewer, with those.
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            next: (0..threads).map(|_| Line(AtomicUsize::new(0))).collect(),
            ahead: Ahead::new(threads),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: Mutex::new(None),
        });
        let workers: Vec<_> = (1..threads)
            .map_while(|me| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("hawfinch-{me}"))
                    .spawn(move || shared.serve(me))
                    .ok()
            })
            .collect();
        let sleepers = workers.iter().map(|w| w.thread().clone()).collect();
        Pool { shared, busy: Mutex::new(()), workers, sleepers }
    }

    /// Threads, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once for every chunk `0..chunks`, on all threads, and returns when all are done. When the
    /// pool is already at work (called from within a chunk, or by another thread), runs them all itself.
    ///
    /// # Panics
    /// When a chunk panics, after all threads have stopped.
    pub fn run(&self, chunks: usize, work: &(dyn Fn(usize) + Sync)) {
        let alone = || (0..chunks).for_each(work);
        if self.workers.is_empty() || chunks <= 1 {
            return alone();
        }
        let Ok(_guard) = self.busy.try_lock() else { return alone() };
        let s = &*self.shared;
        // SAFETY: the lifetime is erased; the pointer is used only by threads inside, for which this
        // function waits before it returns.
        let work: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: no thread is inside: the last job was closed and waited for.
        unsafe { *s.job.get() = Some(Job { work, chunks }) };
        for (me, next) in s.next.iter().enumerate() {
            next.0.store(s.share(me, chunks).start, Ordering::Relaxed);
        }
        let epoch = (s.state.0.load(Ordering::Relaxed) >> 32) + 1;
        s.state.0.store(epoch << 32 | OPEN, Ordering::SeqCst);
        if s.asleep.load(Ordering::SeqCst) > 0 {
            self.sleepers.iter().for_each(Thread::unpark);
        }
        s.take_part(0, Job { work, chunks });
        // Close: whoever has not come yet is not needed.
        let mut state = s.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while state & INSIDE != 0 {
            s.wait_a_little(0, &mut looks);
            state = s.state.0.load(Ordering::Acquire);
        }
        let panicked = s.panicked.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(payload) = panicked {
            drop(_guard);
            resume_unwind(payload);
        }
    }

    /// Does several pieces of work that do not depend on each other as one job, and returns when all are done.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn run_all<W: Work>(&self, works: &[W]) {
        self.run(works.iter().map(Work::chunks).sum(), &|mut n| {
            for work in works {
                let chunks = work.chunks();
                if n < chunks {
                    // SAFETY: each number is called once.
                    return unsafe { work.chunk(n) };
                }
                n -= chunks;
            }
        });
    }

    /// What each thread reads first when it does such work, for [`Pool::expect`] at another time.
    pub fn reads<W: Work>(&self, works: &[W]) -> impl Iterator<Item = Reads> {
        let chunks = works.iter().map(Work::chunks).sum();
        (0..self.threads()).map(move |me| {
            let share = self.shared.share(me, chunks);
            let mut first = 0;
            Reads::of(works.iter().flat_map(|work| {
                let (from, end) = (first, first + work.chunks());
                first = end;
                let own = share.start.max(from)..share.end.min(end);
                own.map(move |n| work.reads(n - from))
            }))
        })
    }

    /// Says what each thread reads first in the job after the next: threads that wait fetch it.
    pub fn expect(&self, reads: &[Reads]) {
        self.shared.ahead.set(reads);
    }

    /// Divides `data`, made of items of `item` numbers, into parts of `chunk` items (the last may be
    /// shorter) and calls `work(first_item, part)` for each.
    pub fn split<T: Send>(
        &self,
        data: &mut [T],
        item: usize,
        chunk: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let step = (item * chunk).max(1);
        let parts = Parts::new(data);
        self.run(parts.len.div_ceil(step), &|n| {
            let at = n * step;
            // SAFETY: chunks are disjoint and each number is called once.
            work(n * chunk, unsafe { parts.get(at, step.min(parts.len - at)) });
        });
    }
}

impl Pool {
    /// [`Pool::split`] of several tensors of one shape at once: `work` is given the numbers' range and their parts.
    ///
    /// # Panics
    /// When their lengths differ.
    pub fn split_all<T: Send, const N: usize>(
        &self,
        data: [&mut [T]; N],
        item: usize,
        chunk: usize,
        work: impl Fn(std::ops::Range<usize>, [&mut [T]; N]) + Sync,
    ) {
        let step = (item * chunk).max(1);
        let len = data[0].len();
        assert!(data.iter().all(|d| d.len() == len), "tensors of one shape");
        let parts = data.map(Parts::new);
        self.run(len.div_ceil(step), &|n| {
            let at = n * step..len.min((n + 1) * step);
            // SAFETY: chunks are disjoint and each number is called once.
            let own = parts.each_ref().map(|p| unsafe { p.get(at.start, at.len()) });
            work(at, own);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.sleepers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn wait_a_little(&self, me: usize, looks: &mut usize) {
        *looks += 1;
        if *looks >= SPINS {
            return std::thread::yield_now();
        }
        self.ahead.fetch_some(me);
        std::hint::spin_loop();
    }

    /// The chunks of thread `me`.
    fn share(&self, me: usize, chunks: usize) -> std::ops::Range<usize> {
        let threads = self.next.len();
        me * chunks / threads..(me + 1) * chunks / threads
    }

    /// Chunks of the own share, then of the others'.
    fn take_part(&self, me: usize, job: Job) {
        // SAFETY: the pointer is good as long as this thread is inside (or is the owner).
        let work = unsafe { &*job.work };
        let threads = self.next.len();
        let done = catch_unwind(AssertUnwindSafe(|| {
            for n in 0..threads {
                let whose = (me + n) % threads;
                let end = self.share(whose, job.chunks).end;
                loop {
                    let chunk = self.next[whose].0.fetch_add(1, Ordering::Relaxed);
                    if chunk >= end {
                        break;
                    }
                    work(chunk);
                }
            }
        }));
        if let Err(payload) = done {
            *self.panicked.lock().unwrap_or_else(|e| e.into_inner()) = Some(payload);
        }
    }

    /// The life of a worker.
    fn serve(&self, me: usize) {
        let mut seen = 0;
        let mut looks = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let state = self.state.0.load(Ordering::Acquire);
            if state >> 32 != seen && state & OPEN != 0 {
                if self
                    .state
                    .0
                    .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                {
                    seen = state >> 32;
                    // SAFETY: written before the job was opened; not written again while a thread is inside.
                    if let Some(job) = unsafe { *self.job.get() } {
                        self.take_part(me, job);
                    }
                    self.state.0.fetch_sub(1, Ordering::AcqRel);
                    looks = 0;
                }
                continue;
            }
            if looks < SPINS + YIELDS {
                self.wait_a_little(me, &mut looks);
                continue;
            }
            // Announce the sleep, then look once more: whoever opens a job sees one or is seen.
            self.asleep.fetch_add(1, Ordering::SeqCst);
            let state = self.state.0.load(Ordering::SeqCst);
            if (state >> 32 == seen || state & OPEN == 0) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            looks = 0;
        }
    }
}

/// A slice whose disjoint parts several threads fill.
pub(crate) struct Parts<T> {
    data: *mut T,
    pub len: usize,
}

// SAFETY: only disjoint parts are handed out (the contract of `get`).
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// Of a whole slice; the borrow must outlive every use.
    pub fn new(data: &mut [T]) -> Self {
        Parts { data: data.as_mut_ptr(), len: data.len() }
    }

    /// `len` numbers from `at`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap, and the slice is still borrowed.
    #[allow(clippy::mut_from_ref)] // the point of it
    pub unsafe fn get(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: within the slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }

    /// To its first number, for parts that are no slices.
    pub fn pointer(&self) -> *mut T {
        self.data
    }

    /// Writes one number.
    ///
    /// # Safety
    /// As [`Parts::get`] for one number.
    #[inline(always)]
    pub unsafe fn set(&self, at: usize, value: T) {
        debug_assert!(at < self.len);
        // SAFETY: the caller's promise.
        unsafe { *self.data.add(at) = value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for (items, item, chunk) in [(10, 3, 4), (1, 5, 8), (700, 1, 7), (0, 2, 3), (64, 2, 1)] {
                let mut data = vec![0usize; items * item];
                pool.split(&mut data, item, chunk, |first, part| {
                    for (n, v) in part.iter_mut().enumerate() {
                        *v += first * item + n + 1;
                    }
                });
                assert!(data.iter().enumerate().all(|(n, v)| *v == n + 1));
            }
        }
    }

    #[test]
    fn many_jobs_in_a_row_with_sleeps_between() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for n in 0..3000 {
            pool.run(5, &|chunk| _ = sum.fetch_add(chunk + 1, Ordering::Relaxed));
            if n % 1000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
        }
        assert_eq!(sum.into_inner(), 3000 * 15);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|n| assert!(n != 5, "five"))));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| _ = count.fetch_add(1, Ordering::Relaxed));
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn work_within_work_and_from_two_threads() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        let outer = || pool.run(4, &|_| pool.run(3, &|_| _ = count.fetch_add(1, Ordering::Relaxed)));
        std::thread::scope(|s| {
            s.spawn(outer);
            outer();
        });
        assert_eq!(count.into_inner(), 24);
    }
}
