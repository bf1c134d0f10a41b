//! What the next job reads first, fetched by threads that wait for it.
//!
//! Between two products there are norms, activations, recurrences: microseconds in which memory has nothing to do, as
//! it has while a thread waits for the last chunk of another. Who runs the jobs of a model in turn knows what follows:
//! it says so ([`crate::Pool::expect`]), and a thread that waits asks for those lines meanwhile. Only caches change.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::prefetch;

/// Bytes of a thread at most: they and what a step works with have room in the second cache.
const MOST: usize = 256 << 10;
/// Stretches of memory of a thread at most.
const STRETCHES: usize = 4;
/// Bytes asked for between two looks at whether there is work.
const AT_ONCE: usize = 512;

/// Addresses that a thread is to fetch. They are never read through it: what they were of may be gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads([Stretch; STRETCHES]);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stretch {
    start: usize,
    end: usize,
}

impl Reads {
    /// The first of so many bytes, in this order.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let (mut reads, mut n, mut room) = (Reads::default(), 0, MOST);
        for bytes in parts {
            let (start, len) = (bytes.as_ptr().addr(), bytes.len().min(room));
            if n > 0 && reads.0[n - 1].end == start {
                reads.0[n - 1].end += len;
            } else if n < STRETCHES && len > 0 {
                reads.0[n] = Stretch { start, end: start + len };
                n += 1;
            }
            room -= len;
            if room == 0 {
                break;
            }
        }
        reads
    }

    /// Whether there is nothing to fetch.
    pub fn is_empty(&self) -> bool {
        self == &Reads::default()
    }

    /// Where it begins.
    pub fn start(&self) -> usize {
        self.0[0].start
    }
}

/// What a pool's threads are to fetch.
pub(crate) struct Ahead(Vec<Line>);

/// What is left for one thread, on lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Line([Left; STRETCHES]);

#[derive(Default)]
struct Left {
    next: AtomicUsize,
    end: AtomicUsize,
}

impl Ahead {
    pub fn new(threads: usize) -> Self {
        Ahead((0..threads).map(|_| Line::default()).collect())
    }

    /// In place of what was set before. (A thread that fetches meanwhile may fetch some lines of either.)
    pub fn set(&self, reads: &[Reads]) {
        for (line, reads) in self.0.iter().zip(reads) {
            for (left, stretch) in line.0.iter().zip(&reads.0) {
                left.end.store(stretch.end, Ordering::Relaxed);
                left.next.store(stretch.start, Ordering::Relaxed);
            }
        }
    }

    /// Asks for some lines of what thread `me` is to fetch; when it has that, of another's.
    #[inline]
    pub fn fetch_some(&self, me: usize) {
        let (before, from) = self.0.split_at(me);
        for left in from.iter().chain(before).flat_map(|line| &line.0) {
            let (next, end) = (left.next.load(Ordering::Relaxed), left.end.load(Ordering::Relaxed));
            if next < end {
                left.next.store(next + AT_ONCE, Ordering::Relaxed);
                let lines = (next..end.min(next + AT_ONCE)).step_by(64);
                lines.for_each(|at| prefetch::second(std::ptr::without_provenance::<u8>(at)));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ahead {
        /// Bytes that are left for thread `n`.
        fn left(&self, n: usize) -> usize {
            let left =
                |l: &Left| l.end.load(Ordering::Relaxed).saturating_sub(l.next.load(Ordering::Relaxed));
            self.0[n].0.iter().map(left).sum()
        }
    }

    #[test]
    fn stretches_join_and_end_where_the_room_does() {
        let bytes = vec![0u8; MOST + 5000];
        let start = bytes.as_ptr().addr();
        let stretch = |from, to| Stretch { start: start + from, end: start + to };
        let reads = Reads::of([&bytes[..100], &bytes[100..200], &bytes[300..400]]);
        assert_eq!(reads.0[..3], [stretch(0, 200), stretch(300, 400), Stretch::default()]);
        assert_eq!(Reads::of([&bytes[..]]).0[..2], [stretch(0, MOST), Stretch::default()]);
        assert!(Reads::of([&bytes[..0]]).is_empty());
        let many = (0..9).map(|n| &bytes[200 * n..200 * n + 100]);
        assert_eq!(Reads::of(many).0[STRETCHES - 1], stretch(600, 700));
    }

    #[test]
    fn the_own_bytes_first_then_the_others_to_their_ends() {
        let bytes = vec![0u8; MOST];
        let ahead = Ahead::new(3);
        ahead.set(&[Reads::of([&bytes[..1000], &bytes[2000..2100]]), Reads::of([&bytes[..]])]);
        let left = || [0, 1, 2].map(|n| ahead.left(n));
        assert_eq!(left(), [1100, MOST, 0]);
        ahead.fetch_some(1);
        assert_eq!(left(), [1100, MOST - AT_ONCE, 0]);
        (0..3).for_each(|_| ahead.fetch_some(2));
        assert_eq!(left(), [0, MOST - AT_ONCE, 0]);
        (0..MOST / AT_ONCE + 3).for_each(|_| ahead.fetch_some(0));
        assert_eq!(left(), [0, 0, 0]);
    }
}
