//! One step at a time: schedulers of several models, and whoever else computes, take turns in the order they came.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    now: u64,
}

/// The right to compute, passed on in order. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<(Mutex<Numbers>, Condvar)>, Arc<AtomicUsize>);

/// The right, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether somebody writes replies now who did (`before`) or did not.
    pub(super) fn writes(&self, before: &mut bool, now: bool) {
        match (std::mem::replace(before, now), now) {
            (false, true) => _ = self.1.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.1.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// How many write replies, for whom others should not compute long without a break.
    pub fn writers(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    /// Waits for one's turn.
    pub fn take(&self) -> Turn<'_> {
        let mut numbers = self.lock();
        let mine = numbers.next;
        numbers.next += 1;
        while numbers.now != mine {
            numbers = self.0.1.wait(numbers).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().now += 1;
        self.0.0.1.notify_all();
    }
}

impl Turn<'_> {
    /// Lets others compute, and waits for the next turn.
    pub fn pass(&mut self) {
        let mut numbers = self.0.lock();
        if numbers.next == numbers.now + 1 {
            // Nobody waits.
            return;
        }
        let mine = numbers.next;
        numbers.next += 1;
        numbers.now += 1;
        self.0.0.1.notify_all();
        while numbers.now != mine {
            numbers = self.0.0.1.wait(numbers).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
