//! Gradients of a tuned state and of an adapter's halves (`state.pth`, `lora.pth`, `peft.safetensors` of a folder).

use std::path::Path;
use std::sync::Arc;

use hawfinch_kernels::{Pool, Real};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::verify::Report;
use hawfinch_model::verify::parity::Case;
use hawfinch_model::{Lora, format};

use super::{Checks, Tolerances, Worst};
use crate::Result;
use crate::tuning::{Method, Tuning};

pub(super) fn check(
    report: &mut Report,
    pool: &Arc<Pool>,
    folder: &Path,
    checkpoint: &Checkpoint,
) -> Result<()> {
    let path = folder.join("peft.safetensors");
    if !path.is_file() {
        return Ok(());
    }
    let case = Case::open(&path)?;
    let f32s = || Tolerances::read(folder, "f32_sequential");
    let f64s = || Tolerances::read(folder, "f64");
    in_type::<f32>(report, pool, folder, checkpoint, &case, "f32", f32s)?;
    in_type::<f64>(report, pool, folder, checkpoint, &case, "f64", f64s)
}

fn in_type<F: Real>(
    report: &mut Report,
    pool: &Arc<Pool>,
    folder: &Path,
    checkpoint: &Checkpoint,
    case: &Case,
    kind: &str,
    tolerances: impl Fn() -> Result<Tolerances>,
) -> Result<()> {
    let tuned = folder.join("state.pth");
    if tuned.is_file() {
        let tuning = Tuning::from_file(Method::State, format::open(&tuned)?)?;
        let checks = Checks::<F>::new(pool, kind, checkpoint, &tuning, case, tolerances()?)?;
        let learned = checks.pass(None, None, 0.0)?;
        checks.loss(report, "loss from the tuned state, in training", "loss_state", learned.losses.sum);
        let mut worst = Worst::default();
        for layer in 0..checks.learner.config().layers {
            let name = format!("blocks.{layer}.att.time_state");
            let Some(want) = case.tensor(&format!("grad.{name}")) else { continue };
            worst.compare(&name, &checks.gradient(&name).unwrap_or_default(), &want.to_f64());
        }
        worst.report(report, checks.what("gradients of the tuned state"), checks.tolerances.gradient);
    }
    let lora = folder.join("lora.pth");
    if lora.is_file() {
        let tuning =
            Tuning { method: Method::Lora, adapter: Some(Lora::open(&lora, None)?), ..Tuning::default() };
        let checks = Checks::<F>::new(pool, kind, checkpoint, &tuning, case, tolerances()?)?;
        let learned = checks.pass(None, None, 0.0)?;
        checks.loss(report, "loss with the LoRA, in training", "loss_lora", learned.losses.sum);
        let mut worst = Worst::default();
        for (name, want) in case.file.tensors.iter().filter(|(name, _)| name.contains(".lora_")) {
            if let Some(parameter) = name.strip_prefix("grad.") {
                let got = checks.gradient(parameter).unwrap_or_default();
                worst.compare(parameter, &got, &want.to_f64());
            }
        }
        worst.report(report, checks.what("gradients of the LoRA's halves"), checks.tolerances.gradient);
    }
    Ok(())
}
