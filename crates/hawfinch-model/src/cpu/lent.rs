//! Weights that are read from a packed file's mapping, and their way into huge pages.
//!
//! A mapped file lies in pages of 4 kB. After the first call, when the first token is there, a thread copies weight by
//! weight into huge pages, comparing checksums on its way; products that begin later read the copy
//! ([`Store`]). The same bytes: no result changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hawfinch_kernels::Store;

use crate::format::packed::Packed;
use crate::{Checkpoint, Result};

/// What became of the weights of a packed file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Copied {
    /// Bytes that lie in memory of their own now.
    pub bytes: u64,
    /// From the beginning of copying to its end.
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
    /// Nobody needs the copies any more.
    stop: AtomicBool,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Copying,
    Done(Copied),
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

    /// Begins to copy, once, if the checkpoint is that of a packed file.
    ///
    /// # Errors
    /// A tensor that was found damaged.
    pub fn begin(&self, checkpoint: &Checkpoint) -> Result<()> {
        let Some(packed) = &checkpoint.packed else { return Ok(()) };
        let mut state = self.shared.state();
        match &*state {
            State::Damaged(packed, n) => return Err(packed.damage(*n)),
            State::Idle => *state = State::Copying,
            _ => return Ok(()),
        }
        drop(state);
        let stores = std::mem::take(&mut *self.stores.lock().unwrap_or_else(|e| e.into_inner()));
        let (packed, shared) = (packed.clone(), self.shared.clone());
        let copying = move || shared.set(copy(&packed, &stores, &shared.stop));
        // Without a thread the weights stay where they are.
        if std::thread::Builder::new().name("copying weights".into()).spawn(copying).is_err() {
            self.shared.set(State::Done(Copied::default()));
        }
        Ok(())
    }

    /// Waits for the end of copying; `None` when it never began.
    ///
    /// # Errors
    /// A tensor that was found damaged.
    pub fn wait(&self) -> Result<Option<Copied>> {
        let mut state = self.shared.state();
        loop {
            match &*state {
                State::Idle => return Ok(None),
                State::Done(copied) => return Ok(Some(*copied)),
                State::Damaged(packed, n) => return Err(packed.damage(*n)),
                State::Copying => state = self.shared.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Checks every tensor and copies the weights among them.
fn copy(packed: &Arc<Packed>, stores: &HashMap<String, Vec<Arc<Store>>>, stop: &AtomicBool) -> State {
    let (began, mut bytes) = (Instant::now(), 0);
    for (n, (name, data)) in packed.tensors().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if !packed.is_sound(n) {
            return State::Damaged(packed.clone(), n);
        }
        let weights = stores.get(name).map_or(&[][..], |w| w);
        bytes += weights.iter().map(|w| w.copy() as u64).sum::<u64>();
        if !weights.is_empty() {
            packed.release(data);
        }
    }
    State::Done(Copied { bytes, time: began.elapsed() })
}
