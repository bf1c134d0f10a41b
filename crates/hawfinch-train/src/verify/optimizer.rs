//! Three steps of AdamW beside those of the folder (`adam.safetensors`). An entry whose gradient is rounding alone may
//! move by a whole learning rate either way, so distances are compared by quantiles, as the folder's README says.

use std::path::Path;
use std::sync::Arc;

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{Isa, Pool};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;
use hawfinch_model::verify::Report;
use hawfinch_model::verify::parity::Case;

use crate::adamw::{self, AdamW, Rates, Settings};
use crate::groups::{Layerwise, group};
use crate::{Learner, Lesson, Result};

const STEPS: usize = 3;
/// Of |p - p'| / (learning rate of p), over all numbers.
const MEDIAN: f64 = 0.005;
const PERCENTILE_99: f64 = 0.05;
/// Relative, of losses and norms.
const RELATIVE: f64 = 1e-4;

pub(super) fn check(
    report: &mut Report,
    pool: &Arc<Pool>,
    folder: &Path,
    checkpoint: &Checkpoint,
    case: &Case,
) -> Result<()> {
    let path = folder.join("adam.safetensors");
    let (Some(tokens), Some(ids)) = (case.ids("tokens"), case.ids("targets")) else { return Ok(()) };
    let settings = settings(folder);
    let (true, Some((lr, weight_decay, adamw))) = (path.is_file(), settings) else {
        report.absent.push("adam.safetensors with `optimizer` in meta.json".into());
        return Ok(());
    };
    let want = Case::open(&path)?;
    let isa = Isa::chosen().unwrap_or_else(|_| Isa::best());
    let learner = Learner::new(checkpoint, Cpu::<f32>::with(pool.clone(), isa), Precision::Full)?;
    let version = learner.config().version;
    let rate_of = |name: &str, shape: &[usize]| group(version, Layerwise::On, name, shape);
    let tensors: Vec<_> = learner
        .tape()
        .parameters()
        .list()
        .iter()
        .map(|p| (p.name.clone(), p.value().len(), rate_of(&p.name, &p.shape)))
        .collect();
    let mut optimizer = AdamW::new(adamw, tensors);
    let weights = vec![1.0 / tokens.len() as f32; tokens.len()];
    let lengths = [tokens.len()];
    let mut losses = Vec::new();
    let mut norms = Vec::new();
    for step in 0..=STEPS {
        learner.tape().parameters_mut().clear_gradients();
        let targets = Targets { ids: &ids, weights: &weights, l2wrap: 0.0 };
        let lesson = Lesson { lengths: &lengths, tokens: &tokens, targets, initial: None, d_last: None };
        let learned = learner.learn(&lesson)?;
        losses.push(learned.losses.each.iter().sum::<f64>() / tokens.len() as f64);
        if step == STEPS {
            break;
        }
        let mut parameters = learner.tape().parameters_mut();
        let mut list: Vec<_> = parameters
            .list_mut()
            .iter_mut()
            .map(|p| {
                let (values, gradient) = p.both_mut();
                adamw::Parameter { values, gradient }
            })
            .collect();
        norms.push(optimizer.step(isa, pool, &mut list, Rates { lr, weight_decay }, 1.0)?.norm);
    }
    for (name, got) in
        [("losses", &losses[..STEPS]), ("loss_after", &losses[STEPS..]), ("grad_norms", &norms)]
    {
        let Some(expected) = want.tensor(name).map(|t| t.to_f64()) else {
            report.absent.push(format!("{name} of adam.safetensors"));
            continue;
        };
        let relative = got.iter().zip(&expected).map(|(g, w)| ((g - w) / w).abs()).fold(0.0, f64::max);
        let error = if got.len() == expected.len() { relative } else { f64::NAN };
        report.add(format!("three steps of AdamW: {name}"), error, RELATIVE, "relative");
    }
    let mut moved = Vec::new();
    for p in learner.tape().parameters().list() {
        let expected = want.values(&p.name).filter(|w| w.len() == p.value().len());
        let Some(expected) = expected else {
            report.absent.push(format!("`{}` in adam.safetensors", p.name));
            return Ok(());
        };
        let rate = lr * rate_of(&p.name, &p.shape).rate;
        moved.extend(p.value().iter().zip(expected).map(|(g, w)| f64::from((g - w).abs()) / rate));
    }
    moved.sort_by(f64::total_cmp);
    for (share, most, name) in [(0.5, MEDIAN, "median"), (0.99, PERCENTILE_99, "99th percentile")] {
        let at = ((moved.len() - 1) as f64 * share).round() as usize;
        let what = format!("three steps of AdamW: weights, {name}");
        report.add(what, moved[at], most, "distance in learning rates");
    }
    Ok(())
}

/// Learning rate, weight decay and constants of `optimizer` in `meta.json`.
fn settings(folder: &Path) -> Option<(f64, f64, Settings)> {
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("meta.json")).ok()?).ok()?;
    let of = meta.get("optimizer")?;
    let number = |key: &str| of.get(key)?.as_f64();
    let beta = |n: usize| of.get("betas")?.get(n)?.as_f64();
    let settings = Settings { beta1: beta(0)?, beta2: beta(1)?, eps: number("eps")?, clip: number("clip")? };
    Some((number("lr")?, number("weight_decay")?, settings))
}
