//! Gradients of a tuned state and of an adapter's halves (`state.pth`, `lora.pth`, `peft.safetensors` of a folder).

use std::path::Path;
use std::sync::Arc;

use hawfinch_kernels::{Pool, Real};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::verify::Report;
use hawfinch_model::verify::parity::Case;
use hawfinch_model::{Lora, Version};

use super::{Checks, Tolerances, Worst};
use crate::Result;

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
        let checks = Checks::<F>::new(pool, kind, checkpoint, None, case, tolerances()?)?;
        let state = checks.learner.model().load_state(&tuned)?.cast();
        let learned = checks.pass(Some(&[state]), None, 0.0)?;
        checks.loss(report, "loss from the tuned state, in training", "loss_state", learned.losses.sum);
        let mut worst = Worst::default();
        let version = checks.learner.config().version;
        let d = learned.d_initial[0].cast::<f32>();
        for layer in 0..d.layout().layers {
            let name = format!("grad.blocks.{layer}.att.time_state");
            let Some(want) = case.tensor(&name) else { continue };
            // Files of tuned states are [head, value, key] in every version.
            let n = checks.learner.config().head_size;
            let mut got = d.as_in_files(version, layer, "wkv");
            if version != Version::V7 {
                for head in got.chunks_exact_mut(n * n) {
                    for i in 0..n {
                        for j in 0..i {
                            head.swap(i * n + j, j * n + i);
                        }
                    }
                }
            }
            let got: Vec<f64> = got.iter().map(|g| f64::from(*g) * checks.mean()).collect();
            worst.compare(&name, &got, &want.to_f64());
        }
        worst.report(report, checks.what("gradients of the tuned state"), checks.tolerances.gradient);
    }
    let lora = folder.join("lora.pth");
    if lora.is_file() {
        let adapter = Lora::open(&lora, None)?;
        let checks = Checks::<F>::new(pool, kind, checkpoint, Some(adapter), case, tolerances()?)?;
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
