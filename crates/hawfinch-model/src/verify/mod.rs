//! Proof that a model is computed right: against itself (any division of a text gives the same bits,
//! states survive a round trip, no weight is NaN) and, in [`parity`], against what an independent
//! implementation computed, in [`pth`] what one wrote.

pub mod parity;
pub mod pth;

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::ops::Ops;
use crate::quantize::Quant;
use crate::{Cpu, Error, Model, Result, Rows, Sequence, State, log_sum_exp};

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// What was compared with what.
    pub what: String,
    /// The largest error found.
    pub error: f64,
    /// The largest error allowed.
    pub tolerance: f64,
    /// Words to add: units, where the largest error was.
    pub note: String,
}

impl Check {
    /// Within tolerance. An error that is NaN is not.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What was found out about one model or folder.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Report {
    /// Checks in the order they ran.
    pub checks: Vec<Check>,
    /// Parts that were not there to compare with.
    pub absent: Vec<String>,
}

impl Report {
    /// At least one check, and all passed.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::passed)
    }

    /// The report of something that could not even be read.
    pub fn unreadable(error: &dyn std::error::Error) -> Report {
        let mut report = Report::default();
        report.add("readable", f64::NAN, 0.0, error.to_string());
        report
    }

    /// Adds what another found of the same model or folder.
    pub fn join(&mut self, other: Report) {
        self.checks.extend(other.checks);
        self.absent.extend(other.absent);
    }

    /// Adds a check.
    pub fn add(&mut self, what: impl Into<String>, error: f64, tolerance: f64, note: impl Into<String>) {
        self.checks.push(Check { what: what.into(), error, tolerance, note: note.into() });
    }
}

/// Logits of every token, fed in pieces of the given lengths (the rest in one), and the state after.
pub(crate) fn run<O: Ops + 'static>(
    model: &Model<O>,
    tokens: &[u32],
    pieces: &[usize],
    state: State,
) -> Result<(Vec<f32>, State)> {
    let mut own = model.ops().state(&state);
    let mut logits = Vec::new();
    let mut rest = tokens;
    let lengths = pieces.iter().copied().chain(std::iter::once(usize::MAX));
    for len in lengths {
        let (piece, after) = rest.split_at(len.min(rest.len()));
        rest = after;
        if piece.is_empty() {
            continue;
        }
        let mut call = [Sequence { tokens: piece, state: &mut own, logits: Rows::All, hidden: Rows::None }];
        for out in model.forward(&mut call)? {
            logits.extend(out.logits);
        }
    }
    Ok((logits, model.ops().read_state(&own)))
}

/// The checks that need nothing but the model. `tokens` is how many tokens to feed (at least 2);
/// `progress` is told what happens next.
///
/// Weights or logits that are not finite, and a state that cannot be written and read back, are failed checks
/// of the report, not errors.
///
/// # Errors
/// What [`Model::forward`] says.
pub fn against_itself(model: &Model, tokens: usize, mut progress: impl FnMut(&str)) -> Result<Report> {
    let mut report = Report::default();
    if let Some(packed) = &model.checkpoint().packed {
        progress("comparing checksums");
        let damage = packed.check_all().err();
        let note = damage.as_ref().map_or(String::new(), ToString::to_string);
        report.add("packed tensors that are damaged", f64::from(u8::from(damage.is_some())), 0.0, note);
        // Nothing more can be said of it.
        if damage.is_some() {
            return Ok(report);
        }
    }
    progress("reading every weight");
    let bad = first_bad_tensor(model.checkpoint());
    report.add(
        "weights that are NaN or infinite",
        bad.len() as f64,
        0.0,
        bad.first().cloned().unwrap_or_default(),
    );
    match divisions_agree(model, tokens, progress, &mut report) {
        // Nothing can be compared with NaN.
        Err(Error::NonFiniteLogits { position }) => {
            report.add("logits that are NaN or infinite", 1.0, 0.0, format!("after token {position}"));
        }
        other => other?,
    }
    Ok(report)
}

/// Any division of a text gives the same bits; the state survives its file; f32 is near f64.
fn divisions_agree(
    model: &Model,
    tokens: usize,
    mut progress: impl FnMut(&str),
    report: &mut Report,
) -> Result<()> {
    let vocab = model.config().vocab as u64;
    let mut random = crate::Rng::new(1);
    let ids: Vec<u32> = (0..tokens.max(2)).map(|_| (random.next_u64() % vocab) as u32).collect();

    progress("one token at a time");
    let ones = vec![1; ids.len()];
    let (sequential, state_sequential) = run(model, &ids, &ones, model.new_state())?;
    progress("all at once");
    let (whole, state_whole) = run(model, &ids, &[], model.new_state())?;
    progress("in pieces");
    let third = (ids.len() / 3).max(1);
    let (split, state_split) = run(model, &ids, &[third, 1], model.new_state())?;
    let bits = "largest difference of any logit; 0 means the same bits";
    report.add("logits: all at once = one by one", max_abs(&whole, &sequential), 0.0, bits);
    report.add("logits: in pieces = one by one", max_abs(&split, &sequential), 0.0, bits);
    report.add(
        "state: all at once = one by one",
        max_abs(state_whole.data(), state_sequential.data()),
        0.0,
        "",
    );
    report.add(
        "state: in pieces = one by one",
        max_abs(state_split.data(), state_sequential.data()),
        0.0,
        "",
    );

    progress("beside another sequence");
    let other: Vec<u32> = ids.iter().rev().copied().collect();
    let (mut a, mut b) = (model.new_state(), model.new_state());
    let mut call = [
        Sequence { tokens: &other, state: &mut b, logits: Rows::All, hidden: Rows::None },
        Sequence { tokens: &ids, state: &mut a, logits: Rows::All, hidden: Rows::None },
    ];
    let out = model.forward(&mut call)?;
    report.add("logits: beside another sequence = alone", max_abs(&out[1].logits, &whole), 0.0, bits);

    progress("state to a file and back");
    match round_trip(model, &state_whole) {
        Ok(error) => report.add("state: saved and loaded", error, 0.0, ""),
        // For want of a place for the file the other checks are not lost.
        Err(e) => report.add("state: saved and loaded", f64::NAN, 0.0, e.to_string()),
    }

    progress("in double precision");
    // The same weights, quantised alike; activations keep their precision.
    let cpu = Cpu::default().quantizing(model.ops().quant());
    let wide: Model<Cpu<f64>> =
        Model::from_checkpoint(model.checkpoint().clone(), model.options().clone(), cpu)?;
    let few = &ids[..ids.len().min(8)];
    let (exact, _) = run(&wide, few, &[], wide.new_state())?;
    let got = &whole[..exact.len()];
    if let Some(to) = rounded_activations(model) {
        let to = match to {
            Activations::Bytes => "8 bits",
            Activations::Bf16 => "bf16",
        };
        report.add(
            format!("logits: activations of {to} against f64"),
            divergence(&exact, got, model.config().vocab),
            ROUNDED_KL,
            format!("mean KL in nats; the weights of this model are multiplied with activations of {to}"),
        );
        return Ok(());
    }
    let scale = exact.iter().fold(1.0f64, |m, v| m.max(f64::from(v.abs())));
    report.add(
        "logits: f32 against f64 arithmetic",
        max_abs(got, &exact) / scale,
        1e-3,
        "relative to the largest logit, at least 1",
    );
    Ok(())
}

/// What rounding activations to 8 bits or bf16 may change at most: mean KL in nats of the next token's distribution. It finds
/// wrong arithmetic, which costs whole nats, and is no mark of quality: on random ids, as here, trained models of 64
/// channels reach 9e-4 with 8-bit and 0.025 with 4-bit weights, those of random weights more.
const ROUNDED_KL: f64 = 0.1;

/// Largest mean KL of a model to the one it was made from, in nats, by the bits of its narrowest weights. Trained
/// models of 64 to 128 channels, where a block is half a row, stay within (docs/quantization.md); wide ones stay far
/// below.
const KL_OF_FLOATS: f64 = 1e-3;
const KL_OF_8_BITS: f64 = 0.01;
const KL_OF_4_BITS: f64 = 0.25;

/// The report of a model compared with the one it was made from. What is allowed depends on the types of its weights.
pub fn against_model(model: &Model, quality: &crate::quantize::quality::Quality) -> Report {
    let stored = model.checkpoint().tensors.values().filter(|t| t.dtype.is_quantized());
    let stored = stored.map(|t| t.dtype.bits()).fold(f64::MAX, f64::min);
    let on_load = match model.ops().quant() {
        None => f64::MAX,
        Some(Quant::Bf16) => 16.0,
        Some(Quant::Int8) => 8.5,
        Some(_) => 4.5,
    };
    let (tolerance, types) = match stored.min(on_load) {
        b if b >= 16.0 => (KL_OF_FLOATS, "floats"),
        b if b >= 8.0 => (KL_OF_8_BITS, "8 bits"),
        _ => (KL_OF_4_BITS, "fewer than 8 bits"),
    };
    let mut report = Report::default();
    let change = 100.0 * (quality.rounded_perplexity / quality.perplexity - 1.0);
    let note = format!(
        "nats over {} tokens, allowed for {types}; same likeliest token {:.1} %, largest {:.1e}, perplexity {change:+.2} %",
        quality.tokens,
        100.0 * quality.same_top,
        quality.largest_kl
    );
    report.add("next tokens: mean KL to the other model", quality.kl, tolerance, note);
    report
}

/// What some products round activations to, the coarser first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Activations {
    Bytes,
    Bf16,
}

/// To what some products of a model round their activations at the coarsest.
fn rounded_activations(model: &Model) -> Option<Activations> {
    let on_load = model.ops().quant().map(|quant| match quant {
        Quant::Bf16 => Activations::Bf16,
        _ => Activations::Bytes,
    });
    let stored = model.checkpoint().tensors.values().filter_map(|t| {
        let in_blocks = hawfinch_kernels::panel::Kind::of(t.dtype).is_some();
        let bf16 = || t.is_bf16_panels().then_some(Activations::Bf16);
        in_blocks.then_some(Activations::Bytes).or_else(bf16)
    });
    stored.chain(on_load).min()
}

/// Mean over the rows of KL(p‖q) in nats, of logits `[rows, vocab]`; NaN when the lengths differ.
pub fn divergence(p: &[f32], q: &[f32], vocab: usize) -> f64 {
    if p.len() != q.len() || vocab == 0 {
        return f64::NAN;
    }
    let each = p.chunks_exact(vocab).zip(q.chunks_exact(vocab)).map(|(p, q)| {
        let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
        let term = |(&p, &q): (&f32, &f32)| {
            let (p, q) = (f64::from(p) - zp, f64::from(q) - zq);
            p.exp() * (p - q)
        };
        p.iter().zip(q).map(term).sum::<f64>()
    });
    each.sum::<f64>() / (p.len() / vocab).max(1) as f64
}

/// Logits that another program computed for `ids`: raw little-endian f32 of the last token, or a safetensors
/// file with a tensor `logits` `[ids, vocab]` of all of them.
///
/// # Errors
/// Ids out of range; a file that holds another number of logits.
pub fn against_logits(model: &Model, ids: &[u32], file: &Path, tolerance: f64) -> Result<Report> {
    let vocab = model.config().vocab;
    let (got, _) = run(model, ids, &[], model.new_state())?;
    let bytes = crate::format::map_file(file)?;
    let want: Vec<f32> = if bytes.len() == 4 * vocab {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    } else {
        let length = bytes.len();
        let read = crate::format::safetensors::read(file, bytes);
        // A raw file of another length is the likelier mistake than a damaged safetensors file.
        let file = read.map_err(|e| {
            let raw = format!(
                "it is no safetensors file, and as raw f32 logits of {vocab} tokens it would have {} bytes, not {length}",
                4 * vocab
            );
            if file.extension().is_some_and(|x| x == "safetensors") { e } else { Error::damaged(file, raw) }
        })?;
        let tensor =
            file.get("logits").ok_or_else(|| Error::damaged(&file.path, "it has no tensor `logits`"))?;
        if tensor.shape != [ids.len(), vocab] {
            let expected = format!("[{}, {vocab}]", ids.len());
            return Err(Error::Shape { name: "logits".into(), found: tensor.shape.clone(), expected });
        }
        tensor.to_f32()
    };
    let from =
        got.len().checked_sub(want.len()).ok_or_else(|| Error::Invalid("give at least one id".into()))?;
    let mut report = Report::default();
    report.add("logits: as expected", max_abs(&got[from..], &want), tolerance, "largest absolute error");
    Ok(report)
}

fn round_trip(model: &Model, state: &State) -> Result<f64> {
    let name = format!("hawfinch-verify-{}.safetensors", std::process::id());
    let path = std::env::temp_dir().join(name);
    let result = (|| {
        model.save_state(state, &path)?;
        Ok(max_abs(model.load_state(&path)?.data(), state.data()))
    })();
    let _ = std::fs::remove_file(&path);
    result
}

/// Names of the tensors that hold a value that is not finite, with the place.
pub fn first_bad_tensor(ckpt: &Checkpoint) -> Vec<String> {
    let bad = ckpt.tensors.iter().filter(|(_, t)| t.dtype.is_float() || t.dtype.is_quantized());
    bad.filter_map(|(name, t)| t.first_non_finite().map(|(i, v)| format!("`{name}` holds {v} at index {i}")))
        .collect()
}

/// Largest absolute difference; NaN when one of the two has a NaN or the lengths differ.
pub(crate) fn max_abs(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, worse)
}

/// The larger error, where NaN is the worst of all.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
