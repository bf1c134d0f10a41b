//! The state tree for many threads: behind a lock, with a folder for what does not fit in memory and a store that several
//! programs share. A thread of its own writes; nobody who computes waits for a disk or a network.

use super::files::FileStore;
use super::store::{Label, Store};
use super::{Evicted, Found, Snapshot, StateTree};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a text can start.
#[derive(Debug, Clone)]
pub struct Start<S> {
    /// The snapshot, and after how many of the text's tokens it stands.
    pub from: Option<(usize, Arc<Snapshot<S>>)>,
    /// How many of its first tokens lie on a known path.
    pub known: usize,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Texts that started from a snapshot.
    pub hits: AtomicU64,
    /// Texts that started from nothing.
    pub misses: AtomicU64,
    /// Snapshots that came into memory from the folder.
    pub from_files: AtomicU64,
    /// From the shared store.
    pub from_shared: AtomicU64,
    /// Snapshots that left memory.
    pub evicted: AtomicU64,
    /// Times that a store could not be written or read.
    pub failures: AtomicU64,
}

/// What the writing thread is to do.
enum Job<S> {
    File(Evicted<S>),
    Share(Evicted<S>),
    /// Tell when everything before is done.
    Done(Sender<()>),
}

/// Of a snapshot that is on its way to the folder: what tells it from others.
type Key = (Arc<str>, Vec<u32>);

struct Shared<S> {
    tree: Mutex<StateTree<S>>,
    files: Option<FileStore<S>>,
    shared: Option<Arc<dyn Store<S>>>,
    /// What left memory and is not in the folder yet.
    leaving: Mutex<HashMap<Key, Arc<Snapshot<S>>>>,
    counts: Counts,
    state_bytes: usize,
    /// Told of failures, in words.
    report: Box<dyn Fn(&str) + Send + Sync>,
}

/// The state tree with its stores.
pub struct StateCache<S: Send + Sync + 'static> {
    inner: Arc<Shared<S>>,
    jobs: Mutex<Option<Sender<Job<S>>>>,
    waiting: Arc<AtomicUsize>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Snapshots that may wait to be written; beyond it, what leaves memory is forgotten.
const WAITING: usize = 64;

/// Fewer tokens than these are read again sooner than a file is written.
const WORTH: usize = 48;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Send + Sync + 'static> StateCache<S> {
    /// A cache of `budget` bytes of memory for snapshots of `state_bytes`; `files` with what was found in it, and a store
    /// shared with others, if there are. `report` is told of stores that fail.
    pub fn new(
        state_bytes: usize,
        budget: usize,
        files: Option<(FileStore<S>, Vec<Label>)>,
        shared: Option<Arc<dyn Store<S>>>,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        let mut tree = StateTree::new(state_bytes, budget, files.is_some());
        let (files, labels) = files.map_or((None, Vec::new()), |(f, l)| (Some(f), l));
        for label in labels {
            tree.insert_stored(&label.root, &label.tokens, label.logits);
        }
        let inner = Arc::new(Shared {
            tree: Mutex::new(tree),
            files,
            shared,
            leaving: Mutex::default(),
            counts: Counts::default(),
            state_bytes,
            report: Box::new(report),
        });
        let (sender, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (of, left) = (inner.clone(), waiting.clone());
        let writer =
            std::thread::Builder::new().name("states".into()).spawn(move || write(&of, &receiver, &left));
        Self {
            inner,
            jobs: Mutex::new(writer.is_ok().then_some(sender)),
            waiting,
            writer: Mutex::new(writer.ok()),
        }
    }

    /// A cache in memory alone.
    pub fn in_memory(state_bytes: usize, budget: usize) -> Self {
        Self::new(state_bytes, budget, None, None, |_| ())
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    /// Snapshots in memory and in the folder, bytes in memory, bytes in the folder.
    pub fn sizes(&self) -> ([usize; 2], usize, u64) {
        let tree = locked(&self.inner.tree);
        (tree.len(), tree.bytes(), self.inner.files.as_ref().map_or(0, FileStore::bytes))
    }

    /// The deepest snapshot that a text can start from, read from the folder into memory if it lies there.
    pub fn find(&self, root: &Arc<str>, tokens: &[u32]) -> Start<S> {
        let whole = tokens.len();
        let mut first = None;
        loop {
            let found = locked(&self.inner.tree).find(root, tokens);
            let known = *first.get_or_insert(found.known);
            match found.found {
                Found::Nothing => return Start { from: None, known },
                Found::Memory(snapshot) => return Start { from: Some((found.at, snapshot)), known },
                Found::Stored => {
                    let tokens = &tokens[..found.at];
                    let usable = |s: &Arc<Snapshot<S>>| found.at < whole || !s.logits.is_empty();
                    if let Some(snapshot) = self.fetch(root, tokens).filter(usable) {
                        self.inner.counts.from_files.fetch_add(1, Ordering::Relaxed);
                        self.put(root, tokens, snapshot.clone());
                        return Start { from: Some((found.at, snapshot)), known };
                    }
                    // Gone or damaged: the next best.
                    locked(&self.inner.tree).remove_stored(root, tokens);
                }
            }
        }
    }

    /// Counts a text that started, from a snapshot or from nothing.
    pub fn count_start(&self, known: bool) {
        let counts = &self.inner.counts;
        let count = if known { &counts.hits } else { &counts.misses };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A snapshot that left memory.
    fn fetch(&self, root: &Arc<str>, tokens: &[u32]) -> Option<Arc<Snapshot<S>>> {
        if let Some(snapshot) = locked(&self.inner.leaving).get(&(root.clone(), tokens.to_vec())) {
            return Some(snapshot.clone());
        }
        match self.inner.files.as_ref()?.get(root, tokens) {
            Ok(snapshot) => snapshot.map(Arc::new),
            Err(why) => {
                self.inner.failed(&why);
                None
            }
        }
    }

    /// Asks the shared store for a deeper snapshot than is known here, and takes it over. Waits for the network.
    pub fn ask_others(&self, root: &Arc<str>, tokens: &[u32]) {
        let Some(shared) = &self.inner.shared else { return };
        let known = match locked(&self.inner.tree).find(root, tokens) {
            found if matches!(found.found, Found::Nothing) => 0,
            found => found.at,
        };
        if known >= tokens.len() {
            return;
        }
        let ask = |tokens: &[u32]| match shared.longest(root, tokens, known)? {
            Some(at) => shared.get(root, &tokens[..at]).map(|s| s.map(|s| (at, s))),
            None => Ok(None),
        };
        let mut asked = ask(tokens);
        if let Ok(Some((at, snapshot))) = &asked
            && *at == tokens.len()
            && snapshot.logits.is_empty()
        {
            // Of no use for this text.
            asked = ask(&tokens[..tokens.len() - 1]);
        }
        match asked {
            Ok(Some((at, snapshot))) => {
                self.inner.counts.from_shared.fetch_add(1, Ordering::Relaxed);
                self.put(root, &tokens[..at], Arc::new(snapshot));
            }
            Ok(None) => {}
            Err(why) => self.inner.failed(&why),
        }
    }

    /// Keeps a snapshot of the state after `tokens`.
    pub fn put(&self, root: &Arc<str>, tokens: &[u32], snapshot: Arc<Snapshot<S>>) {
        let evicted = locked(&self.inner.tree).insert(root, tokens, snapshot);
        for e in evicted {
            self.inner.counts.evicted.fetch_add(1, Ordering::Relaxed);
            if self.inner.files.is_none() {
                continue;
            }
            if e.tokens.len() < WORTH || self.waiting.load(Ordering::Relaxed) >= WAITING {
                locked(&self.inner.tree).remove_stored(&e.root, &e.tokens);
                continue;
            }
            locked(&self.inner.leaving).insert((e.root.clone(), e.tokens.clone()), e.snapshot.clone());
            self.send(Job::File(e));
        }
    }

    /// As [`StateCache::put`], and gives it to the shared store: other programs may go on from here.
    pub fn share(&self, root: &Arc<str>, tokens: &[u32], snapshot: Arc<Snapshot<S>>) {
        if self.inner.shared.is_some() && self.waiting.load(Ordering::Relaxed) < WAITING {
            self.send(Job::Share(Evicted {
                root: root.clone(),
                tokens: tokens.to_vec(),
                snapshot: snapshot.clone(),
            }));
        }
        self.put(root, tokens, snapshot);
    }

    fn send(&self, job: Job<S>) {
        if let Some(jobs) = &*locked(&self.jobs) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let _ = jobs.send(job);
        }
    }

    /// Waits until everything that was given to the stores so far is there.
    pub fn settle(&self) {
        let (sender, receiver) = channel();
        self.send(Job::Done(sender));
        let _ = receiver.recv();
    }

    /// Writes what is only in memory to the folder, what was used last first, as much as fits there and within `time`.
    pub fn save_all(&self, time: Duration) {
        let until = Instant::now() + time;
        self.settle();
        let Some(files) = &self.inner.files else { return };
        let mut room = files.budget();
        while Instant::now() < until
            && let Some(e) = {
                let mut tree = locked(&self.inner.tree);
                tree.next_unsaved(|tokens| tokens >= WORTH)
            }
        {
            // What was used less lately must not push out what was written just now.
            let bytes = self.inner.state_bytes as u64 + 4 * (e.tokens.len() + e.snapshot.logits.len()) as u64;
            if bytes > room {
                return;
            }
            room -= bytes;
            if let Err(why) = files.put(&e.root, &e.tokens, &e.snapshot) {
                self.inner.failed(&why);
                return;
            }
        }
    }
}

impl<S: Send + Sync + 'static> Drop for StateCache<S> {
    fn drop(&mut self) {
        locked(&self.jobs).take();
        if let Some(writer) = locked(&self.writer).take() {
            let _ = writer.join();
        }
    }
}

impl<S> Shared<S> {
    fn failed(&self, why: &str) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        (self.report)(why);
    }
}

fn write<S>(of: &Shared<S>, jobs: &Receiver<Job<S>>, waiting: &AtomicUsize) {
    for job in jobs {
        match job {
            Job::File(e) => {
                match of.files.as_ref().map_or(Ok(Vec::new()), |f| f.put(&e.root, &e.tokens, &e.snapshot)) {
                    Ok(gone) => {
                        let mut tree = locked(&of.tree);
                        gone.iter().for_each(|label| tree.remove_stored(&label.root, &label.tokens));
                    }
                    Err(why) => {
                        // Not kept after all.
                        locked(&of.tree).remove_stored(&e.root, &e.tokens);
                        of.failed(&why);
                    }
                }
                let mut leaving = locked(&of.leaving);
                let key = (e.root, e.tokens);
                // A newer one of the same text may be on its way.
                if leaving.get(&key).is_some_and(|s| Arc::ptr_eq(s, &e.snapshot)) {
                    leaving.remove(&key);
                }
            }
            Job::Share(e) => {
                if let Some(Err(why)) = of.shared.as_ref().map(|s| s.put(&e.root, &e.tokens, &e.snapshot)) {
                    of.failed(&why);
                }
            }
            Job::Done(tell) => {
                let _ = tell.send(());
            }
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
