//! Weights that are read from a packed file's mapping: what a thread does with them after the first call.
//!
//! It compares checksums, which is not done while the file is opened, and copies weight by weight into huge pages if
//! that is wished. Products that begin later read the copy ([`Store`]): the same bytes, so no result changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hawfinch_kernels::Store;

use crate::format::packed::Packed;
use crate::{Checkpoint, Result};

/// What is done with a packed file after a model's first call, when the first token is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Background {
    /// Nothing.
    #[default]
    Nothing,
    /// Checksums are compared.
    Check,
    /// The same, and the weights copied into huge pages. A mapped file lies in pages of 4 kB or, as the file system
    /// has it, some more.
    Copy,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Checked {
    /// Bytes that were copied into memory of their own.
    pub copied: u64,
    /// From the beginning to the end.
    pub time: Duration,
}

/// The weights that a model on the CPU reads where a file is mapped.
#[derive(Default)]
pub(super) struct Lent {
    /// By the name of the tensor.
    stores: Mutex<HashMap<String, Vec<Arc<Store>>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody needs it any more.
    stop: AtomicBool,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Running,
    Done(Checked),
    /// The tensor of that number.
    Damaged(Arc<Packed>, usize),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }
}

impl Lent {
    /// Remembers a weight of the tensor `name`.
    pub fn add(&self, name: &str, store: &Arc<Store>) {
        let mut stores = self.stores.lock().unwrap_or_else(|e| e.into_inner());
        stores.entry(name.into()).or_default().push(store.clone());
    }

    /// Begins, once, if the checkpoint is that of a packed file.
    ///
    /// # Errors
    /// A tensor that was found damaged.
    pub fn begin(&self, checkpoint: &Checkpoint, copies: bool) -> Result<()> {
        let Some(packed) = &checkpoint.packed else { return Ok(()) };
        let mut state = self.shared.state();
        match &*state {
            State::Damaged(packed, n) => return Err(packed.damage(*n)),
            State::Idle => *state = State::Running,
            _ => return Ok(()),
        }
        drop(state);
        let mut stores = std::mem::take(&mut *self.stores.lock().unwrap_or_else(|e| e.into_inner()));
        if !copies {
            stores.clear();
        }
        let (packed, shared) = (packed.clone(), self.shared.clone());
        let work = move || shared.set(check(&packed, &stores, &shared.stop));
        // Without a thread the weights stay as they are.
        if std::thread::Builder::new().name("checking weights".into()).spawn(work).is_err() {
            self.shared.set(State::Done(Checked::default()));
        }
        Ok(())
    }

    /// Waits for the end; `None` when it never began.
    ///
    /// # Errors
    /// A tensor that was found damaged.
    pub fn wait(&self) -> Result<Option<Checked>> {
        let mut state = self.shared.state();
        loop {
            match &*state {
                State::Idle => return Ok(None),
                State::Done(checked) => return Ok(Some(*checked)),
                State::Damaged(packed, n) => return Err(packed.damage(*n)),
                State::Running => state = self.shared.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Checks every tensor and copies the weights that are given.
fn check(packed: &Arc<Packed>, stores: &HashMap<String, Vec<Arc<Store>>>, stop: &AtomicBool) -> State {
    let (began, mut copied) = (Instant::now(), 0);
    for (n, (name, data)) in packed.tensors().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if !packed.is_sound(n) {
            return State::Damaged(packed.clone(), n);
        }
        let weights = stores.get(name).map_or(&[][..], |w| w);
        copied += weights.iter().map(|w| w.copy() as u64).sum::<u64>();
        if !weights.is_empty() {
            packed.release(data);
        }
    }
    State::Done(Checked { copied, time: began.elapsed() })
}
