//! Checkpoints of a run: folders `step-00000500` that hold the weights (`model.safetensors`, which every command opens; of
//! runs that train something beside a model `adapter.safetensors` or `state.safetensors`), the optimiser's moments (`optimizer.safetensors`) and where the run stood (`progress.json`).
//!
//! A folder gets its name when all of it is on the disk, so whatever happens to the process, the newest folder of such a
//! name is whole.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hawfinch_model::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::metadata;
use serde::{Deserialize, Serialize};

use crate::adamw::AdamW;
use crate::{Error, Result};

/// What is trained, by what the file says it is: weights, a LoRA, a state.
const WEIGHTS: [(Option<&str>, &str); 3] = [
    (None, "model.safetensors"),
    (Some("lora"), "adapter.safetensors"),
    (Some("state"), "state.safetensors"),
];

/// The name of the file for what is trained.
fn file_name(of: &Checkpoint) -> &'static str {
    let kind = of.metadata.get(metadata::KIND).map(String::as_str);
    WEIGHTS.iter().find(|(k, _)| *k == kind).unwrap_or(&WEIGHTS[0]).1
}

const OPTIMIZER: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.json";
/// What names of checkpoints begin with.
const STEP: &str = "step-";
/// A checkpoint of the same step that a newer one is about to replace.
const OLD: &str = ".replaced";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// Steps of the run, skipped ones too.
    pub step: u64,
    /// Tokens that were learned from.
    pub tokens: u64,
    /// The next sample to read.
    pub sample: u64,
    /// Steps that the optimiser made.
    pub updates: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Smoothed loss, nats a token.
    pub smooth_loss: Option<f64>,
    /// Steps that were left out since their loss or gradients were not finite.
    pub skipped: u64,
    /// Times the run went back to a checkpoint.
    pub rewinds: u32,
    /// What that has made of the learning rate: a factor.
    pub rate_factor: f64,
    /// The best validation loss, and its step.
    pub best: Option<(f64, u64)>,
    /// Validations since the best.
    pub since_best: u32,
    /// Fingerprint of the data set.
    pub data: String,
    /// Seed of the order of samples.
    pub seed: u64,
}

impl Progress {
    /// Of a run that has not begun.
    pub fn new(data: String, seed: u64) -> Self {
        Progress { data, seed, rate_factor: 1.0, ..Progress::default() }
    }
}

/// A checkpoint that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

impl Found {
    /// The file of weights, of the adapter or of the state.
    pub fn model(&self) -> PathBuf {
        let there = WEIGHTS.iter().map(|(_, name)| self.path.join(name)).find(|path| path.is_file());
        there.unwrap_or_else(|| self.path.join(WEIGHTS[0].1))
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |e| hawfinch_model::Error::io(path, e).into()
}

/// All checkpoints of a run, oldest first; none where there is no such folder.
///
/// # Errors
/// The folder cannot be read.
pub fn list(run: &Path) -> Result<Vec<Found>> {
    let entries = match fs::read_dir(run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error(run)(e)),
    };
    let mut found: Vec<Found> = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error(run))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let replaced = name.ends_with(OLD);
        let digits = name.strip_prefix(STEP).map(|d| d.strip_suffix(OLD).unwrap_or(d));
        let Some(step) = digits.and_then(|d| d.parse().ok()) else { continue };
        if !path.join(PROGRESS).is_file() {
            continue;
        }
        match found.iter_mut().find(|f| f.step == step) {
            // Both are there only if the replacement was cut off after it was whole.
            Some(other) if !replaced => other.path = path,
            Some(_) => {}
            None => found.push(Found { step, path }),
        }
    }
    found.sort_by_key(|f| f.step);
    Ok(found)
}

/// Writes a checkpoint and returns its folder.
///
/// # Errors
/// What the system says (a full disk); nothing that was there is changed then.
pub fn write(run: &Path, model: &Checkpoint, optimizer: &mut AdamW, progress: &Progress) -> Result<Found> {
    fs::create_dir_all(run).map_err(io_error(run))?;
    let path = run.join(format!("{STEP}{:08}", progress.step));
    let part = run.join(format!(".{STEP}{:08}.{}.part", progress.step, std::process::id()));
    let _ = fs::remove_dir_all(&part);
    let result = fill(&part, model, optimizer, progress).and_then(|()| {
        let old = path.with_file_name(format!("{STEP}{:08}{OLD}", progress.step));
        if path.exists() {
            let _ = fs::remove_dir_all(&old);
            fs::rename(&path, &old).map_err(io_error(&path))?;
        }
        fs::rename(&part, &path).map_err(io_error(&path))?;
        sync_folder(run);
        let _ = fs::remove_dir_all(&old);
        Ok(())
    });
    if let Err(e) = result {
        let _ = fs::remove_dir_all(&part);
        return Err(e);
    }
    Ok(Found { step: progress.step, path })
}

fn fill(part: &Path, model: &Checkpoint, optimizer: &mut AdamW, progress: &Progress) -> Result<()> {
    fs::create_dir_all(part).map_err(io_error(part))?;
    let options =
        || SaveOptions { format: SaveFormat::Safetensors, dtype: None, vocabulary: None, progress: None };
    format::save(&part.join(file_name(model)), model, options())?;
    let names: Vec<String> = optimizer.moments().iter().map(|m| m.name.clone()).collect();
    optimizer.lend(|moments| -> Result<()> {
        let mut file = Checkpoint::new(part, FileFormat::Memory);
        for (name, [m, v]) in names.iter().zip(moments) {
            file.insert(format!("m.{name}"), m)?;
            file.insert(format!("v.{name}"), v)?;
        }
        Ok(format::save(&part.join(OPTIMIZER), &file, options())?)
    })?;
    let text = serde_json::to_vec_pretty(progress).expect("numbers and strings");
    let path = part.join(PROGRESS);
    let mut file = fs::File::create(&path).map_err(io_error(&path))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io_error(&path))?;
    sync_folder(part);
    Ok(())
}

/// Makes names last on systems where folders can be synchronised; elsewhere it does nothing.
fn sync_folder(path: &Path) {
    if let Ok(folder) = fs::File::open(path) {
        let _ = folder.sync_all();
    }
}

/// What a checkpoint holds.
pub struct Loaded {
    /// Weights, adapter or state.
    pub model: Checkpoint,
    /// Where the run stood.
    pub progress: Progress,
    moments: Checkpoint,
}

impl Loaded {
    /// Gives its moments to an optimiser.
    ///
    /// # Errors
    /// They are of other tensors.
    pub fn restore(&self, optimizer: &mut AdamW) -> Result<()> {
        optimizer.restore(self.progress.updates, |name| self.moments_of(name))
    }

    /// Both moments of a tensor.
    pub(crate) fn moments_of(&self, name: &str) -> Option<(Vec<f32>, Vec<f32>)> {
        let moment = |kind: &str| self.moments.get(&format!("{kind}.{name}")).map(StoredTensor::to_f32);
        Some((moment("m")?, moment("v")?))
    }
}

/// Reads a checkpoint.
///
/// # Errors
/// A file of it is missing or damaged.
pub fn load(found: &Found) -> Result<Loaded> {
    let path = found.path.join(PROGRESS);
    let text = fs::read(&path).map_err(io_error(&path))?;
    let progress = serde_json::from_slice(&text).map_err(|e| {
        hawfinch_model::Error::damaged(&path, format!("it does not say where a run stood: {e}"))
    })?;
    let model = format::open(&found.model())?;
    let moments = format::open(&found.path.join(OPTIMIZER))?;
    Ok(Loaded { model, progress, moments })
}

/// Removes all checkpoints but the newest `keep` and that of step `best`.
///
/// # Errors
/// As [`list`]; one that cannot be removed is left.
pub fn prune(run: &Path, keep: usize, best: Option<u64>) -> Result<()> {
    let found = list(run)?;
    let old = found.len().saturating_sub(keep.max(1));
    for checkpoint in &found[..old] {
        if Some(checkpoint.step) != best {
            let _ = fs::remove_dir_all(&checkpoint.path);
        }
    }
    // What earlier processes left half done.
    for entry in fs::read_dir(run).map_err(io_error(run))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".step-") && name.ends_with(".part") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::Settings;
    use crate::groups::Group;

    fn model(value: f32) -> Checkpoint {
        let mut model = Checkpoint::new("m", FileFormat::Memory);
        model.insert("w", StoredTensor::from_f32(&[2], &[value, -value])).unwrap();
        model
    }

    fn optimizer() -> AdamW {
        let group = Group { rate: 1.0, decays: false };
        AdamW::new(Settings::default(), [("w".to_string(), 2, group)])
    }

    fn at(step: u64) -> Progress {
        Progress { step, ..Progress::new("d".into(), 1) }
    }

    #[test]
    fn what_was_written_comes_back_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        for step in [5, 10, 15, 20] {
            write(dir.path(), &model(step as f32), &mut optimizer(), &at(step)).unwrap();
        }
        prune(dir.path(), 2, Some(5)).unwrap();
        let steps: Vec<u64> = list(dir.path()).unwrap().iter().map(|f| f.step).collect();
        assert_eq!(steps, [5, 15, 20]);
        let loaded = load(list(dir.path()).unwrap().last().unwrap()).unwrap();
        assert_eq!((loaded.progress.step, loaded.model.get("w").unwrap().to_f32()[0]), (20, 20.0));
        loaded.restore(&mut optimizer()).unwrap();
    }

    #[test]
    fn half_written_ones_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &model(1.0), &mut optimizer(), &at(1)).unwrap();
        // A process that died while it wrote the next, and one that died between two renames.
        fs::create_dir(dir.path().join(".step-00000002.77.part")).unwrap();
        fs::create_dir(dir.path().join("step-00000003")).unwrap();
        fs::rename(dir.path().join("step-00000001"), dir.path().join("step-00000001.replaced")).unwrap();
        let found = list(dir.path()).unwrap();
        assert_eq!(found.iter().map(|f| f.step).collect::<Vec<_>>(), [1]);
        assert_eq!(load(&found[0]).unwrap().progress.step, 1);
        write(dir.path(), &model(2.0), &mut optimizer(), &at(1)).unwrap();
        let found = list(dir.path()).unwrap();
        assert_eq!(load(&found[0]).unwrap().model.get("w").unwrap().to_f32()[0], 2.0);
        prune(dir.path(), 3, None).unwrap();
        assert!(!dir.path().join(".step-00000002.77.part").exists());
    }

    #[test]
    fn what_cannot_be_written_leaves_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &model(1.0), &mut optimizer(), &at(1)).unwrap();
        let mut bad = model(3.0);
        bad.decay_form = hawfinch_model::checkpoint::DecayForm::Exponentiated;
        assert!(write(dir.path(), &bad, &mut optimizer(), &at(2)).is_err());
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
