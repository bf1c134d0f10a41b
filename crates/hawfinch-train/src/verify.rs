//! Proof that training is the references' mathematics: gradients compared with those of an independent implementation
//! (folders as `hawfinch_model::verify::parity` reads them), in f32 and in f64, at the folder's own tolerances; new models,
//! schedules, orders of samples and data sets beside files of expected values.

mod binidx;
mod first_loss;
mod given;
mod init;
mod optimizer;
mod peft;
mod sampler;
mod schedule;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawfinch_kernels::cross_entropy::{Targets, cross_entropy};
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{Isa, Pool, Real};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;
use hawfinch_model::verify::Report;
use hawfinch_model::verify::parity::{self, Case, given_tolerance, state_of, tolerance};
use hawfinch_model::{Error as ModelError, State, Version, format};

use crate::tuning::Tuning;
use crate::{Learned, Learner, Lesson, Result};

/// The factor of L2Wrap in the references.
pub const L2WRAP: f64 = 1e-4;

/// Compares everything about training that the folder holds; what it lacks is listed as absent.
///
/// # Errors
/// A file of the folder that cannot be read or is no model.
pub fn check(pool: &Arc<Pool>, folder: &Path) -> Result<Report> {
    let mut report = Report::default();
    for name in ["meta.json", "model.pth", "case.safetensors"] {
        if !folder.join(name).is_file() {
            report.absent.push(format!("{name} (nothing about training can be compared without it)"));
        }
    }
    if report.absent.is_empty() {
        let case = Case::open(&folder.join("case.safetensors"))?;
        let checkpoint = format::open(&folder.join("model.pth"))?;
        let f32s = Tolerances::read(folder, "f32_sequential")?;
        Checks::<f32>::new(pool, "f32", &checkpoint, &Tuning::default(), &case, f32s)?.all(&mut report)?;
        let f64s = Tolerances::read(folder, "f64")?;
        Checks::<f64>::new(pool, "f64", &checkpoint, &Tuning::default(), &case, f64s)?.all(&mut report)?;
        optimizer::check(&mut report, pool, folder, &checkpoint, &case)?;
        peft::check(&mut report, pool, folder, &checkpoint)?;
    }
    Ok(report)
}

/// Files of expected values, and the folder of data sets.
const FILES: [&str; 3] = ["init.json", "schedule.json", "sampler.json"];
const BINIDX: &str = "binidx";

/// What [`check_file`] can compare at or below `dir`, in order of path: files `init.json`, `schedule.json`, `sampler.json`,
/// and texts `NAME.jsonl` beside the `NAME.bin` or `NAME.idx` that they must give. In a folder `binidx` one file of a data
/// set is enough to name it (by its `NAME.jsonl`, be it there or not).
///
/// # Errors
/// `dir` cannot be read.
pub fn find_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in parity::folders(dir)? {
        found.extend(FILES.iter().map(|name| folder.join(name)).filter(|path| path.is_file()));
        // (`.` has no name.)
        let named = std::fs::canonicalize(&folder).is_ok_and(|path| path.ends_with(BINIDX));
        let mut texts = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(|e| ModelError::io(&folder, e))? {
            let path = entry.map_err(|e| ModelError::io(&folder, e))?.path();
            let part =
                path.extension().is_some_and(|e| ["json", "jsonl", "bin", "idx"].iter().any(|x| e == *x));
            let text = path.with_extension("jsonl");
            let pair = ["bin", "idx"].iter().any(|e| path.with_extension(e).is_file());
            if part && path.is_file() && (named || (pair && text.is_file())) {
                texts.push(text);
            }
        }
        texts.sort();
        texts.dedup();
        found.extend(texts);
    }
    Ok(found)
}

/// The kinds of [`find_files`] of which there is none.
pub fn kinds_absent(found: &[PathBuf]) -> Vec<String> {
    let known = |name: &str| found.iter().any(|path| path.ends_with(name));
    let mut absent: Vec<String> =
        FILES.iter().filter(|name| !known(name)).map(|name| name.to_string()).collect();
    if !found.iter().any(|path| path.extension().is_some_and(|e| e == "jsonl")) {
        absent.push("NAME.jsonl with NAME.bin and NAME.idx".into());
    }
    absent
}

/// Compares what one of [`find_files`] says with what this program does. A value that differs is a check that failed, and its
/// note names the first, or the worst.
///
/// # Errors
/// The file cannot be read, or something in it is missing or of another kind.
pub fn check_file(pool: &Arc<Pool>, path: &Path) -> Result<Report> {
    let mut report = Report::default();
    if path.extension().is_some_and(|e| e == "jsonl") {
        binidx::check(&mut report, path)?;
        return Ok(report);
    }
    let value = json(path)?;
    let file = given::At::whole(path, &value);
    match path.file_name().and_then(|name| name.to_str()) {
        Some("init.json") => {
            init::check(&mut report, &file)?;
            first_loss::check(&mut report, &file, pool)?;
        }
        Some("schedule.json") => schedule::check(&mut report, &file)?,
        Some("sampler.json") => sampler::check(&mut report, &file)?,
        _ => return Err(ModelError::unsupported(path, "it is none of the files of expected values").into()),
    }
    Ok(report)
}

fn json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read(path).map_err(|e| ModelError::io(path, e))?;
    Ok(serde_json::from_slice(&text).map_err(|e| ModelError::damaged(path, format!("it is no JSON: {e}")))?)
}

/// Of one number type.
struct Tolerances {
    gradient: f64,
    loss: f64,
}

impl Tolerances {
    fn read(folder: &Path, group: &str) -> Result<Self> {
        let gradient = tolerance(folder, group, "grad_rel_to_tensor_max")?;
        // Losses of a folder are given to f64, of an f32 model to what that can hold.
        let loss = given_tolerance(folder, group, "loss_abs")?.unwrap_or(1e-5);
        Ok(Tolerances { gradient, loss })
    }
}

/// The checks in one number type.
struct Checks<'a, F: Real> {
    kind: &'a str,
    case: &'a Case,
    tolerances: Tolerances,
    learner: Learner<F>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    /// Each token counts for its part of the mean.
    weights: Vec<f32>,
}

/// The largest error of several tensors, and where it is.
#[derive(Default)]
struct Worst {
    error: f64,
    place: String,
    compared: usize,
}

impl Worst {
    /// The largest difference in units of the largest expected value; where all of these are 0, so must be the others.
    fn compare(&mut self, name: &str, got: &[f64], want: &[f64]) {
        let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let difference = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        let defined = got.len() == want.len() && got.iter().all(|g| g.is_finite());
        let error = match (defined, difference == 0.0) {
            (false, _) => f64::NAN,
            (true, true) => 0.0,
            (true, false) => difference / largest,
        };
        if self.compared == 0 || error.is_nan() || error > self.error {
            (self.error, self.place) = (if self.error.is_nan() { self.error } else { error }, name.into());
        }
        self.compared += 1;
    }

    fn report(self, report: &mut Report, what: String, tolerance: f64) {
        if self.compared == 0 {
            report.absent.push(what);
        } else {
            let note = format!("{} tensors, worst {}", self.compared, self.place);
            report.add(what, self.error, tolerance, note);
        }
    }
}

impl<'a, F: Real> Checks<'a, F> {
    fn new(
        pool: &Arc<Pool>,
        kind: &'a str,
        checkpoint: &Checkpoint,
        tuning: &Tuning,
        case: &'a Case,
        tolerances: Tolerances,
    ) -> Result<Self> {
        let isa = Isa::chosen().unwrap_or_else(|_| Isa::best());
        let cpu = Cpu::with(pool.clone(), isa);
        let learner = Learner::tuned(checkpoint, tuning, cpu, Precision::Full)?;
        let tokens = case.ids("tokens").unwrap_or_default();
        let targets = case.ids("targets").unwrap_or_default();
        // Weights are f32; their rounding is taken back below.
        let weights = vec![1.0; tokens.len()];
        Ok(Checks { kind, case, tolerances, learner, tokens, targets, weights })
    }

    fn all(&mut self, report: &mut Report) -> Result<()> {
        if self.tokens.is_empty() || self.targets.len() != self.tokens.len() {
            report.absent.push("tokens and targets".into());
            return Ok(());
        }
        self.loss_and_gradients(report)?;
        self.logit_gradients(report)?;
        self.l2wrap(report)?;
        self.first_state(report)?;
        self.last_state(report)
    }

    fn targets(&self, l2wrap: f64) -> Targets<'_> {
        Targets { ids: &self.targets, weights: &self.weights, l2wrap }
    }

    /// One pass; gradients are those of the sum of losses.
    fn pass(
        &self,
        initial: Option<&[State<F>]>,
        d_last: Option<&[State<F>]>,
        l2wrap: f64,
    ) -> Result<Learned<F>> {
        self.learner.tape().parameters_mut().clear_gradients();
        let (lengths, targets) = ([self.tokens.len()], self.targets(l2wrap));
        self.learner.learn(&Lesson { lengths: &lengths, tokens: &self.tokens, targets, initial, d_last })
    }

    /// Sums to means.
    fn mean(&self) -> f64 {
        1.0 / self.tokens.len() as f64
    }

    /// The gradient of a parameter, of the mean.
    fn gradient(&self, name: &str) -> Option<Vec<f64>> {
        let parameters = self.learner.tape().parameters();
        Some(parameters.get(name)?.gradient().iter().map(|g| g.to_f64() * self.mean()).collect())
    }

    fn parameter_gradients(&self, prefix: &str) -> Worst {
        let mut worst = Worst::default();
        for (name, want) in &self.case.file.tensors {
            if let Some(parameter) = name.strip_prefix(prefix) {
                let got = self.gradient(parameter).unwrap_or_default();
                worst.compare(parameter, &got, &want.to_f64());
            }
        }
        worst
    }

    /// Gradients of a state, of the mean, beside tensors `PREFIX.L.FIELD`.
    fn state_gradients(&self, prefix: &str, got: &State<F>) -> Worst {
        let (mut worst, version) = (Worst::default(), self.learner.config().version);
        // Large numbers of the sum are kept as they are: only the exponent changes.
        let state: State = got.cast();
        for layer in 0..got.layout().layers {
            for field in &got.layout().fields {
                let name = format!("{prefix}.{layer}.{}", field.name);
                if let Some(want) = self.case.tensor(&name) {
                    let got = state.as_in_files(version, layer, field.name);
                    let got: Vec<f64> = got.iter().map(|g| f64::from(*g) * self.mean()).collect();
                    worst.compare(&name, &got, &want.to_f64());
                }
            }
        }
        worst
    }

    fn what(&self, what: &str) -> String {
        format!("{what}, {}", self.kind)
    }

    fn loss(&self, report: &mut Report, what: &str, name: &str, sum: f64) {
        let what = self.what(what);
        match self.case.scalar(name) {
            None => report.absent.push(what),
            Some(want) => {
                let loss = sum * self.mean();
                let note = format!("{loss:.9} against {want:.9}");
                report.add(what, (loss - want).abs(), self.tolerances.loss, note);
            }
        }
    }

    fn loss_and_gradients(&mut self, report: &mut Report) -> Result<()> {
        // The zero state; v4's sums at the scale 1, so that their gradient is that of the sums themselves.
        let mut zero = State::new(self.learner.model().state_layout().clone());
        zero.data_mut().fill(F::ZERO);
        let learned = self.pass(Some(&[zero]), None, 0.0)?;
        self.loss(report, "loss in training", "loss", learned.losses.sum);
        let all = self.parameter_gradients("grad.");
        let known = self.learner.tape().parameters().list().len();
        if all.compared > 0 {
            let missing = known.abs_diff(all.compared);
            report.add(self.what("parameters without a gradient to compare"), missing as f64, 0.0, "");
        }
        all.report(report, self.what("gradients of all parameters"), self.tolerances.gradient);
        let state = self.state_gradients("grad_state", &learned.d_initial[0]);
        state.report(report, self.what("gradients of the initial state, zero"), self.tolerances.gradient);
        // Computing blocks again must change nothing.
        let gradients = |checks: &Self| -> Vec<F> {
            let parameters = checks.learner.tape().parameters();
            parameters.list().iter().flat_map(|p| p.gradient().to_vec()).collect()
        };
        self.pass(None, None, 0.0)?;
        let kept = gradients(self);
        self.learner.set_recomputing(true);
        self.pass(None, None, 0.0)?;
        self.learner.set_recomputing(false);
        let differ = kept.iter().zip(&gradients(self)).filter(|(a, b)| a != b).count();
        report.add(self.what("gradients that differ when blocks are computed again"), differ as f64, 0.0, "");
        Ok(())
    }

    fn logit_gradients(&self, report: &mut Report) -> Result<()> {
        let Some(logits) = self.case.tensor("logits_f32") else {
            report.absent.push(self.what("logits_f32"));
            return Ok(());
        };
        let logits = logits.to_f64();
        for (name, l2wrap) in [("dlogits_ce", 0.0), ("dlogits_l2wrap", L2WRAP)] {
            let mut worst = Worst::default();
            if let Some(want) = self.case.tensor(name) {
                let mut d: Vec<F> = logits.iter().map(|l| F::from_f64(*l)).collect();
                let mut losses = vec![0.0; self.targets.len()];
                let cpu = self.learner.tape().cpu();
                let vocab = self.learner.config().vocab;
                cross_entropy(cpu.isa(), cpu.pool(), &mut losses, &mut d, vocab, self.targets(l2wrap));
                let got: Vec<f64> = d.iter().map(|d| d.to_f64() * self.mean()).collect();
                worst.compare(name, &got, &want.to_f64());
            }
            worst.report(
                report,
                self.what(&format!("gradients of the logits ({name})")),
                self.tolerances.gradient,
            );
        }
        Ok(())
    }

    fn l2wrap(&self, report: &mut Report) -> Result<()> {
        self.pass(None, None, L2WRAP)?;
        let worst = self.parameter_gradients("grad_l2wrap.");
        worst.report(report, self.what("gradients with L2Wrap"), self.tolerances.gradient);
        Ok(())
    }

    /// The state that a case gives under a prefix.
    fn given(&self, prefix: &str) -> Result<Option<State<F>>> {
        Ok(state_of(self.case, prefix, self.learner.model())?.map(|s| s.cast()))
    }

    fn first_state(&self, report: &mut Report) -> Result<()> {
        let Some(initial) = self.given("init")? else {
            report.absent.push(self.what("init.* (an initial state)"));
            return Ok(());
        };
        let learned = self.pass(Some(&[initial]), None, 0.0)?;
        self.loss(report, "loss from an initial state, in training", "init_loss", learned.losses.sum);
        let state = self.state_gradients("init_grad_state", &learned.d_initial[0]);
        state.report(report, self.what("gradients of an initial state"), self.tolerances.gradient);
        Ok(())
    }

    fn last_state(&self, report: &mut Report) -> Result<()> {
        let (Some(initial), Some(want)) = (self.given("init")?, self.case.scalar("cot_objective")) else {
            report.absent.push(self.what("cot.* (cotangents of a last state)"));
            return Ok(());
        };
        let initial = [initial];
        // Of the mean of losses plus the last state's products, times the tokens.
        let first = self.pass(Some(&initial), None, 0.0)?;
        let last = &first.last[0];
        let tokens = self.tokens.len() as f64;
        let Some(cotangents) = self.cotangents(last)? else {
            report.absent.push(self.what("cot.* (cotangents of a last state)"));
            return Ok(());
        };
        let products: f64 =
            last.data().iter().zip(cotangents.data()).map(|(s, d)| s.to_f64() * d.to_f64()).sum();
        let objective = first.losses.sum / tokens + products;
        let note = format!("{objective:.9} against {want:.9}");
        // A sum of many terms of both signs: as exact as its largest part.
        let size = products.abs().max(want.abs()).max(1.0);
        let what = self.what("objective with a last state");
        report.add(what, (objective - want).abs() / size, self.tolerances.loss.max(1e-8), note);
        let mut scaled = cotangents;
        scaled.data_mut().iter_mut().for_each(|d| *d *= F::from_f64(tokens));
        let learned = self.pass(Some(&initial), Some(&[scaled]), 0.0)?;
        let state = self.state_gradients("cot_grad_state", &learned.d_initial[0]);
        let what = self.what("gradients of an initial state, through the last");
        state.report(report, what, self.tolerances.gradient);
        let parameters = self.parameter_gradients("cot_grad.");
        let what = self.what("gradients of parameters, through the last state");
        parameters.report(report, what, self.tolerances.gradient);
        Ok(())
    }

    /// `cot.*` as gradients of the state `last`.
    fn cotangents(&self, last: &State<F>) -> Result<Option<State<F>>> {
        if self.learner.config().version != Version::V4 {
            return self.given("cot");
        }
        // v4's are of the sums without their scale: of aa and bb they are e^pp times as large.
        let mut d = last.clone();
        d.data_mut().fill(F::ZERO);
        for layer in 0..last.layout().layers {
            for (field, name) in [("att_x", "att_x"), ("aa", "A"), ("bb", "B"), ("ffn_x", "ffn_x")] {
                let Some(tensor) = self.case.tensor(&format!("cot.{layer}.{name}")) else { return Ok(None) };
                let pp: Vec<F> = last.field(layer, "pp").to_vec();
                for (n, (d, v)) in d.field_mut(layer, field).iter_mut().zip(tensor.to_f64()).enumerate() {
                    let scale = if field == name { 1.0 } else { pp[n].to_f64().exp() };
                    *d = F::from_f64(v * scale);
                }
            }
        }
        Ok(Some(d))
    }
}
