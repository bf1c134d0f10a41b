//! Comparison with a folder of results that an independent implementation computed (`meta.json`,
//! `model.pth`, `model-bf16.pth`, `case.safetensors`, and where present `state.pth`, `lora.pth`,
//! `peft.safetensors`). Tolerances are the folder's own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawfinch_kernels::{Isa, Pool};
use serde_json::Value;

use super::{Report, max_abs, run, worse};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::ops::Ops;
use crate::{Cpu, Error, Lora, Model, OpenOptions, Result, State, format, log_sum_exp};

/// Every folder at or below `dir`, in order of path. Links to folders are followed, each folder is listed once.
///
/// # Errors
/// `dir` cannot be read.
pub fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    // Links may lead round in a circle.
    let mut seen = HashSet::new();
    while let Some(folder) = open.pop() {
        if !seen.insert(std::fs::canonicalize(&folder).map_err(|e| Error::io(&folder, e))?) {
            continue;
        }
        let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::io(&folder, e))?.path();
            if path.is_dir() {
                open.push(path);
            }
        }
        found.push(folder);
    }
    found.sort();
    Ok(found)
}

/// Those of [`folders`] that look like the results of one model: with a `case.safetensors`, a `meta.json`, or a
/// `peft.safetensors` beside a `model.pth`.
///
/// # Errors
/// `dir` cannot be read.
pub fn find(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = folders(dir)?;
    found.retain(|folder| {
        let has = |name: &str| folder.join(name).is_file();
        has("case.safetensors") || has("meta.json") || (has("peft.safetensors") && has("model.pth"))
    });
    Ok(found)
}

/// The tolerances of a folder's `meta.json`.
struct Tolerances {
    logits: f64,
    /// `None` where the file does not give it: then states are not compared.
    state: Option<f64>,
    loss: Option<f64>,
}

impl Tolerances {
    fn read(folder: &Path) -> Result<Tolerances> {
        let get = |key: &str| given_tolerance(folder, "f32_sequential", key);
        Ok(Tolerances {
            logits: tolerance(folder, "f32_sequential", "logits_max_abs")?,
            state: get("state_rel_to_tensor_max")?,
            loss: get("loss_abs")?,
        })
    }
}

/// As [`given_tolerance`].
///
/// # Errors
/// Also where the file does not give it.
pub fn tolerance(folder: &Path, group: &str, key: &str) -> Result<f64> {
    given_tolerance(folder, group, key)?.ok_or_else(|| {
        let pointer = format!("/recommended_tolerances/{group}/{key}");
        Error::damaged(folder.join("meta.json"), format!("it gives no tolerance at {pointer}"))
    })
}

/// One number of `recommended_tolerances` in the folder's `meta.json`, if it is there.
///
/// # Errors
/// The file cannot be read, or what stands there is no number from 0 up.
pub fn given_tolerance(folder: &Path, group: &str, key: &str) -> Result<Option<f64>> {
    let path = folder.join("meta.json");
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let meta: Value =
        serde_json::from_slice(&text).map_err(|e| Error::damaged(&path, format!("it is no JSON: {e}")))?;
    let pointer = format!("/recommended_tolerances/{group}/{key}");
    let Some(value) = meta.pointer(&pointer) else { return Ok(None) };
    let number = value.as_f64().filter(|t| t.is_finite() && *t >= 0.0);
    let number = number
        .ok_or_else(|| Error::damaged(&path, format!("its tolerance at {pointer} is no number from 0 up")))?;
    Ok(Some(number))
}

/// A file of expected values.
pub struct Case {
    /// Its tensors.
    pub file: Checkpoint,
}

impl Case {
    /// Reads one.
    ///
    /// # Errors
    /// As [`format::open`].
    pub fn open(path: &Path) -> Result<Case> {
        Ok(Case { file: format::open(path)? })
    }

    /// One of them.
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.file.get(name)
    }

    /// Its numbers.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        self.tensor(name).map(StoredTensor::to_f32)
    }

    /// Its first number.
    pub fn scalar(&self, name: &str) -> Option<f64> {
        self.tensor(name)?.to_f64().first().copied()
    }

    /// Its numbers as token ids; `None` when there are none.
    pub fn ids(&self, name: &str) -> Option<Vec<u32>> {
        // An empty list would compare nothing with nothing.
        // What is no id becomes one that no vocabulary has.
        let id = |v: f64| if v >= 0.0 && v.fract() == 0.0 { v as u32 } else { u32::MAX };
        let ids: Vec<u32> = self.tensor(name)?.to_f64().into_iter().map(id).collect();
        Some(ids).filter(|ids| !ids.is_empty())
    }
}

/// Compares everything the folder holds; what it lacks is listed as absent, but a missing `model.pth` is a check that
/// failed: without it nearly nothing is compared. With `double` the logits are
/// also computed in f64 and compared within the folder's tolerance for that (`f64`), which is the far
/// stricter proof that the mathematics is the same.
///
/// # Errors
/// A file of the folder that cannot be read or is no model.
pub fn check(folder: &Path, double: bool) -> Result<Report> {
    check_on(Cpu::<f32>::default().pool(), folder, double)
}

/// As [`check`], computing on these threads.
///
/// # Errors
/// As [`check`].
pub fn check_on(pool: &Arc<Pool>, folder: &Path, double: bool) -> Result<Report> {
    let mut report = Report::default();
    let base = folder.join("model.pth");
    if !base.is_file() {
        report.add("model.pth", f64::NAN, 0.0, "it is missing beside the results that belong to it");
    }
    if !folder.join("meta.json").exists() {
        report.absent.push("meta.json (without its tolerances nothing can be compared)".into());
        return Ok(report);
    }
    let tolerances = Tolerances::read(folder)?;
    let case_path = folder.join("case.safetensors");
    let case = if case_path.is_file() { Some(Case::open(&case_path)?) } else { None };
    match &case {
        None => report.absent.push("case.safetensors".into()),
        Some(case) => {
            if base.is_file() {
                let checkpoint = format::open(&base)?;
                check_f32(pool, &mut report, case, &tolerances, &checkpoint)?;
                if double {
                    check_f64(
                        pool,
                        &mut report,
                        case,
                        tolerance(folder, "f64", "logits_max_abs")?,
                        &checkpoint,
                    )?;
                }
            }
            let bf16 = folder.join("model-bf16.pth");
            if bf16.is_file() {
                let m = model::<f32>(pool, &format::open(&bf16)?, Vec::new())?;
                check_bf16(&mut report, case, &tolerances, &m)?;
            } else {
                report.absent.push("model-bf16.pth".into());
            }
        }
    }
    check_peft(pool, &mut report, folder, &tolerances, &base)?;
    Ok(report)
}

fn model<F: hawfinch_kernels::Real>(
    pool: &Arc<Pool>,
    checkpoint: &Checkpoint,
    loras: Vec<Lora>,
) -> Result<Model<Cpu<F>>> {
    let options = OpenOptions { loras, ..OpenOptions::default() };
    let isa = Isa::chosen().unwrap_or_else(|_| Isa::best());
    Model::from_checkpoint(checkpoint.clone(), options, Cpu::with(pool.clone(), isa))
}

fn check_f32(
    pool: &Arc<Pool>,
    report: &mut Report,
    case: &Case,
    tol: &Tolerances,
    checkpoint: &Checkpoint,
) -> Result<()> {
    let m = model::<f32>(pool, checkpoint, Vec::new())?;
    let Some(tokens) = case.ids("tokens") else {
        report.absent.push("tokens".into());
        return Ok(());
    };
    let (logits, state) = run(&m, &tokens, &[], m.new_state())?;
    compare_logits(report, case, "logits_f32", "logits, f32 weights", &logits, tol.logits);
    compare_loss(report, case, ["loss", "targets"], "loss, f32 weights", &logits, m.config().vocab, tol.loss);
    compare_state(report, case, "state", "state after the last token", &state, &m, tol.state);

    let split = [1, tokens.len() / 3, 1];
    let (parts, state_parts) = run(&m, &tokens, &split, m.new_state())?;
    let (ones, state_ones) = run(&m, &tokens, &vec![1; tokens.len()], m.new_state())?;
    let differs = worse(max_abs(&parts, &logits), max_abs(&ones, &logits));
    report.add("logits: one by one = in pieces = at once", differs, 0.0, "0 means the same bits");
    let differs = worse(max_abs(state_parts.data(), state.data()), max_abs(state_ones.data(), state.data()));
    report.add("state: one by one = in pieces = at once", differs, 0.0, "0 means the same bits");

    match case.ids("cont_tokens") {
        None => report.absent.push("cont_tokens".into()),
        Some(cont) => {
            let (logits, _) = run(&m, &cont, &[], state)?;
            compare_logits(report, case, "cont_logits", "logits of the continuation", &logits, tol.logits);
        }
    }
    match state_of(case, "init", &m)? {
        None => report.absent.push("init.* (initial state)".into()),
        Some(init) => {
            let (logits, _) = run(&m, &tokens, &[], init)?;
            compare_logits(report, case, "init_logits", "logits from an initial state", &logits, tol.logits);
            let names = ["init_loss", "targets"];
            compare_loss(
                report,
                case,
                names,
                "loss from an initial state",
                &logits,
                m.config().vocab,
                tol.loss,
            );
        }
    }
    Ok(())
}

fn check_f64(
    pool: &Arc<Pool>,
    report: &mut Report,
    case: &Case,
    tolerance: f64,
    checkpoint: &Checkpoint,
) -> Result<()> {
    let m = model::<f64>(pool, checkpoint, Vec::new())?;
    let (Some(tokens), Some(want)) = (case.ids("tokens"), case.values("logits_f32")) else { return Ok(()) };
    let (logits, _) = run(&m, &tokens, &[], m.new_state())?;
    // Both sides were rounded to f32 once: two of them may lie one step of f32 apart.
    let beyond = |(a, b): (&f32, &f32)| {
        let step = f64::from(b.abs().next_up()) - f64::from(b.abs());
        ((f64::from(*a) - f64::from(*b)).abs() - step).max(0.0)
    };
    let same_length = logits.len() == want.len();
    let finite = logits.iter().chain(&want).all(|v| v.is_finite());
    let error =
        if same_length && finite { logits.iter().zip(&want).map(beyond).fold(0.0, worse) } else { f64::NAN };
    report.add(
        "logits, f64 arithmetic",
        error,
        tolerance,
        "largest absolute error beyond the rounding to f32",
    );
    Ok(())
}

fn check_bf16(report: &mut Report, case: &Case, tol: &Tolerances, m: &Model) -> Result<()> {
    let Some(tokens) = case.ids("tokens") else { return Ok(()) };
    let (logits, _) = run(m, &tokens, &[], m.new_state())?;
    compare_logits(report, case, "logits_bf16w", "logits, bf16 weights", &logits, tol.logits);
    let names = ["loss_bf16w", "targets"];
    compare_loss(report, case, names, "loss, bf16 weights", &logits, m.config().vocab, tol.loss);
    Ok(())
}

fn check_peft(
    pool: &Arc<Pool>,
    report: &mut Report,
    folder: &Path,
    tol: &Tolerances,
    base: &Path,
) -> Result<()> {
    let (path, tuned, lora) =
        (folder.join("peft.safetensors"), folder.join("state.pth"), folder.join("lora.pth"));
    if !path.is_file() || !base.is_file() {
        for file in [&path, &tuned, &lora].into_iter().filter(|f| !f.is_file()) {
            report.absent.extend(file.file_name().map(|n| n.to_string_lossy().into_owned()));
        }
        return Ok(());
    }
    let case = Case::open(&path)?;
    let checkpoint = format::open(base)?;
    let Some(tokens) = case.ids("tokens") else {
        report.absent.push("tokens of peft.safetensors".into());
        return Ok(());
    };
    if tuned.is_file() {
        let m = model::<f32>(pool, &checkpoint, Vec::new())?;
        let (logits, state) = run(&m, &tokens, &[], m.load_state(&tuned)?)?;
        compare_logits(report, &case, "logits_state", "logits from the tuned state", &logits, tol.logits);
        let names = ["loss_state", "targets"];
        compare_loss(report, &case, names, "loss from the tuned state", &logits, m.config().vocab, tol.loss);
        compare_state(report, &case, "state_final", "state after the tuned state", &state, &m, tol.state);
    } else {
        report.absent.push("state.pth".into());
    }
    if lora.is_file() {
        let adapter = match Lora::open(&lora, None) {
            // Without the file that says its alpha the rest can still be compared.
            Err(e @ Error::Lora(_)) if !folder.join("peft.json").exists() => {
                report.absent.push(format!("peft.json ({e})"));
                return Ok(());
            }
            adapter => adapter?,
        };
        let m = model::<f32>(pool, &checkpoint, vec![adapter])?;
        let (logits, _) = run(&m, &tokens, &[], m.new_state())?;
        compare_logits(report, &case, "logits_lora", "logits with the LoRA", &logits, tol.logits);
        let names = ["loss_lora", "targets"];
        compare_loss(report, &case, names, "loss with the LoRA", &logits, m.config().vocab, tol.loss);
    } else {
        report.absent.push("lora.pth".into());
    }
    Ok(())
}

fn compare_logits(report: &mut Report, case: &Case, name: &str, what: &str, got: &[f32], tolerance: f64) {
    match case.values(name) {
        Some(want) => report.add(what, max_abs(got, &want), tolerance, "largest absolute error"),
        None => report.absent.push(name.into()),
    }
}

/// Mean cross entropy (natural logarithm) of the targets against an expected value; `names` are the
/// expected loss and the targets.
fn compare_loss(
    report: &mut Report,
    case: &Case,
    names: [&str; 2],
    what: &str,
    logits: &[f32],
    vocab: usize,
    tolerance: Option<f64>,
) {
    let Some(tolerance) = tolerance else {
        return report.absent.push(format!("a tolerance for {what} in meta.json"));
    };
    let (Some(want), Some(targets)) = (case.scalar(names[0]), case.ids(names[1])) else {
        report.absent.push(names[0].into());
        return;
    };
    let losses = logits.chunks_exact(vocab).zip(&targets).map(|(row, &t)| cross_entropy(row, t as usize));
    let loss = losses.sum::<f64>() / targets.len() as f64;
    report.add(what, (loss - want).abs(), tolerance, format!("{loss:.6} against {want:.6}"));
}

/// -log softmax(row)[target]; NaN when there is no such target.
pub(crate) fn cross_entropy(row: &[f32], target: usize) -> f64 {
    row.get(target).map_or(f64::NAN, |&v| log_sum_exp(row) - f64::from(v))
}

/// A state given as tensors `PREFIX.L.field`; `None` when the case has none.
///
/// # Errors
/// As [`Model::state_from`].
pub fn state_of<O: Ops + 'static>(case: &Case, prefix: &str, m: &Model<O>) -> Result<Option<State>> {
    let mut file = Checkpoint::new(&case.file.path, case.file.format);
    for (name, tensor) in &case.file.tensors {
        if let Some(rest) = name.strip_prefix(prefix).and_then(|r| r.strip_prefix('.')) {
            file.insert(format!("state.{rest}"), tensor.clone())?;
        }
    }
    if file.tensors.is_empty() { Ok(None) } else { m.state_from(&file).map(Some) }
}

/// Each field of each layer, relative to the largest expected value of that tensor. v4's sums are compared
/// as they are stored and without their common exponent.
fn compare_state<O: Ops + 'static>(
    report: &mut Report,
    case: &Case,
    prefix: &str,
    what: &str,
    got: &State,
    m: &Model<O>,
    tolerance: Option<f64>,
) {
    let Some(tolerance) = tolerance else {
        return report.absent.push(format!("a tolerance for the {what} in meta.json"));
    };
    let want = match state_of(case, prefix, m) {
        Ok(Some(want)) => want,
        Ok(None) => return report.absent.push(format!("{prefix}.*")),
        Err(e) => return report.add(what, f64::NAN, tolerance, e.to_string()),
    };
    let mut worst = (0.0, String::new());
    for layer in 0..got.layout().layers {
        for f in &got.layout().fields {
            let raw = |s: &State| s.field(layer, f.name).iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let mut compare = |a: &[f64], b: &[f64]| {
                let largest = b.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
                let error = a.iter().zip(b).map(|(a, b)| (a - b).abs() / largest).fold(0.0, worse);
                if worst.1.is_empty() || error.is_nan() || error > worst.0 {
                    worst = (
                        worse(worst.0, error),
                        format!("relative to the tensor's largest value; worst in layer {layer}, {}", f.name),
                    );
                }
            };
            compare(&raw(got), &raw(&want));
            if matches!(f.name, "aa" | "bb") {
                let sums = |s: &State| -> Vec<f64> {
                    let exponents = s.field(layer, "pp").iter().map(|p| f64::from(*p).exp());
                    raw(s).into_iter().zip(exponents).map(|(v, e)| v * e).collect()
                };
                compare(&sums(got), &sums(&want));
            }
        }
    }
    report.add(what, worst.0, tolerance, worst.1);
}
