//! Snapshots in a folder: one file each, written beside its place and renamed, so that a file is whole or not there.

use super::Snapshot;
use super::store::{HEAD, Label, StateCodec, Store, label, label_bytes, name, names, read, record};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ENDING: &str = "state";

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
struct Known {
    bytes: u64,
    /// When it was used last, in uses.
    used: u64,
}

/// A folder of snapshots.
pub struct FileStore<S> {
    folder: PathBuf,
    codec: Arc<dyn StateCodec<S>>,
    budget: u64,
    files: Mutex<HashMap<String, Known>>,
    clock: AtomicU64,
    written: AtomicU64,
}

impl<S> std::fmt::Debug for FileStore<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl<S> FileStore<S> {
    /// Opens a folder, made if need be, that may take `budget` bytes. Returns what lies there, the oldest first; what was
    /// half written when a program ended is removed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(folder: &Path, codec: Arc<dyn StateCodec<S>>, budget: u64) -> io::Result<(Self, Vec<Label>)> {
        fs::create_dir_all(folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let ending = path.extension().and_then(|e| e.to_str());
            if ending == Some("part") {
                let _ = fs::remove_file(&path);
            } else if ending == Some(ENDING)
                && let Ok((label, bytes, time)) = labelled(&path)
                && path.file_stem().and_then(|s| s.to_str()) == Some(&name(&label.root, &label.tokens))
            {
                found.push((time, bytes, label));
            }
        }
        found.sort_by_key(|(time, ..)| *time);
        let files = found.iter().zip(1..).map(|((_, bytes, label), used)| {
            (name(&label.root, &label.tokens), Known { bytes: *bytes, used })
        });
        let store = Self {
            folder: folder.into(),
            codec,
            budget,
            files: Mutex::new(files.collect()),
            clock: AtomicU64::new(found.len() as u64 + 1),
            written: AtomicU64::new(0),
        };
        Ok((store, found.into_iter().map(|(.., label)| label).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension(ENDING)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.lock().values().map(|k| k.bytes).sum()
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes that it may take.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Removes what was not used for longest until it fits.
    fn shrink(&self) -> Vec<Label> {
        let mut gone = Vec::new();
        let mut files = self.lock();
        let mut total: u64 = files.values().map(|k| k.bytes).sum();
        while total > self.budget
            && let Some(oldest) = files.iter().min_by_key(|(_, k)| k.used).map(|(name, _)| name.clone())
        {
            let path = self.path(&oldest);
            gone.extend(labelled(&path).map(|(label, ..)| label));
            let _ = fs::remove_file(path);
            total -= files.remove(&oldest).map_or(0, |k| k.bytes);
        }
        gone
    }
}

/// Whose record a file is, without its state.
fn labelled(path: &Path) -> io::Result<(Label, u64, std::time::SystemTime)> {
    let no_record = || io::Error::new(io::ErrorKind::InvalidData, "no record");
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    let mut bytes = vec![0; HEAD];
    file.read_exact(&mut bytes)?;
    let wanted = label_bytes(&bytes, meta.len()).ok_or_else(no_record)?;
    bytes.resize(wanted, 0);
    file.read_exact(&mut bytes[HEAD..])?;
    Ok((label(&bytes, meta.len()).ok_or_else(no_record)?, meta.len(), meta.modified()?))
}

impl<S> Store<S> for FileStore<S> {
    fn put(&self, root: &str, tokens: &[u32], snapshot: &Snapshot<S>) -> Result<Vec<Label>, String> {
        let name = name(root, tokens);
        let bytes = record(&*self.codec, root, tokens, snapshot);
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let part = self.folder.join(format!("{name}.{}.{number}.part", std::process::id()));
        let path = self.path(&name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            fs::rename(&part, &path)
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&part);
            format!("a state could not be written to {}: {e}", self.folder.display())
        })?;
        self.lock().insert(name, Known { bytes: bytes.len() as u64, used: self.tick() });
        Ok(self.shrink())
    }

    fn get(&self, root: &str, tokens: &[u32]) -> Result<Option<Snapshot<S>>, String> {
        let name = name(root, tokens);
        let path = self.path(&name);
        if !self.lock().contains_key(&name) {
            return Ok(None);
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.lock().remove(&name);
                return Ok(None);
            }
            Err(e) => return Err(format!("a state could not be read from {}: {e}", path.display())),
        };
        let Some(snapshot) = read(&*self.codec, &bytes, root, tokens) else {
            // Damaged: worth nothing to anybody.
            self.lock().remove(&name);
            let _ = fs::remove_file(&path);
            return Ok(None);
        };
        let used = self.tick();
        if let Some(known) = self.lock().get_mut(&name) {
            known.used = used;
        }
        // The order of use outlives the program as the time of the file.
        let now = std::time::SystemTime::now();
        let _ = File::open(&path).and_then(|f| f.set_modified(now));
        Ok(Some(snapshot))
    }

    fn longest(&self, root: &str, tokens: &[u32], above: usize) -> Result<Option<usize>, String> {
        let files = self.lock();
        Ok(names(root, tokens, above).into_iter().find(|(_, name)| files.contains_key(name)).map(|(n, _)| n))
    }
}
