//! What quantising each weight alone costs, which is chosen by it, and what all of it costs together.

use std::time::Instant;

use anyhow::Context;
use hawfinch_kernels::DType;
use hawfinch_model::quantize::choose::{Candidate, Limit, choose};
use hawfinch_model::quantize::quality::{Quality, Reference};
use hawfinch_model::quantize::rounding::{Rounding, encoded};
use hawfinch_model::quantize::weights::Weight;
use hawfinch_model::{Cpu, Model, StoredTensor, Trace};

use crate::fail::usage;
use crate::output::note;
use crate::progress::Progress;

/// A weight with what was found about it.
pub struct Measured {
    pub weight: Weight,
    /// Mean KL in nats when it alone is in `tried`, if that was measured.
    pub kl: Option<f64>,
    /// The block type it was tried in.
    pub tried: DType,
    /// What that does to its numbers.
    pub rounding: Rounding,
    /// Numbers stand out in it: it counts for more than it cost.
    pub outliers: bool,
    /// The type it gets.
    pub chosen: DType,
}

impl Measured {
    /// Bytes in the chosen type.
    pub fn bytes(&self) -> u64 {
        self.weight.bytes(self.chosen)
    }
}

/// Error in 4 bits of a weight in which no number stands out.
const USUAL_ERROR: f64 = 0.1;

impl Measured {
    /// What narrowing it costs, to choose by. Where numbers stand out so far that the others lose twice as much as
    /// usual, a text of some hundred tokens may not have asked for what was lost: there the KL counts by the square of
    /// that. A part that changes nothing at all is not used by the model and counts nothing.
    fn loss(&self) -> f64 {
        let times = if self.outliers { (self.rounding.error / USUAL_ERROR).powi(2) } else { 1.0 };
        times * self.kl.unwrap_or(0.0)
    }
}

/// Runs a text through the model, for [`each`] and [`together`].
pub fn trace<'m>(model: &'m Model, sequences: &[Vec<u32>]) -> anyhow::Result<Trace<'m, Cpu>> {
    let sequences: Vec<&[u32]> = sequences.iter().map(|s| &s[..]).collect();
    Ok(Trace::new(model, &sequences)?)
}

/// Tries every weight in the type that `tried` says: how its numbers change and, with a reference, what that alone
/// costs.
pub fn each(
    model: &Model,
    reference: Option<&Reference<'_, '_, Cpu>>,
    weights: Vec<Weight>,
    tried: impl Fn(&Weight) -> DType,
) -> anyhow::Result<Vec<Measured>> {
    let ops = model.ops();
    let mut bar = Progress::count("measuring weights", weights.len() as u64);
    let mut out = Vec::with_capacity(weights.len());
    for weight in weights {
        let full = original(model, &weight.name)?;
        let dtype = tried(&weight);
        let rounded = encoded(ops, &weight.name, full, dtype)?;
        let rounding = Rounding::of(full, &rounded);
        let mut make = |_: &str| Ok(rounded.clone());
        let kl = match reference {
            Some(r) => Some(r.compare(ops.pool(), &[&weight.name], &mut make)?.kl),
            None => None,
        };
        out.push(Measured { weight, kl, tried: dtype, rounding, outliers: false, chosen: dtype });
        bar.add(1);
    }
    Ok(out)
}

/// Says how long [`each`] will take, when that is long: a pass costs about half of one that begins at the first layer.
pub fn note_time(model: &Model, sequences: &[Vec<u32>], passes: usize) -> anyhow::Result<()> {
    let few = [sequences[0].clone()];
    let began = Instant::now();
    trace(model, &few)?;
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let one = began.elapsed().as_secs_f64() * tokens as f64 / few[0].len() as f64;
    let seconds = one * 0.6 * passes as f64;
    if seconds > 20.0 {
        note(format_args!(
            "measuring {passes} weights on {tokens} tokens: about {:.0} min",
            (seconds / 60.0).ceil()
        ));
    }
    Ok(())
}

/// How large the result may be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Bits a weight, embedding included; `None`: 5.
    Bits(Option<f64>),
    /// The sum of the KLs of single weights, outliers counted as in choosing.
    Kl(f64),
}

/// Bits a weight when nobody asks for others.
const BITS: f64 = 5.0;

/// Chooses narrow or wide for every weight, tried narrow before.
pub fn choose_types(measured: &mut [Measured], target: Target) -> anyhow::Result<()> {
    for m in &mut *measured {
        m.outliers = m.rounding.error > 2.0 * USUAL_ERROR && m.kl != Some(0.0);
    }
    let candidates: Vec<Candidate> = measured
        .iter()
        .map(|m| Candidate {
            narrow: m.weight.bytes(m.weight.narrow),
            wide: m.weight.bytes(m.weight.wide),
            loss: m.loss(),
        })
        .collect();
    let numbers: u64 = measured.iter().map(|m| m.weight.numbers()).sum();
    let bits = |bytes: u64| bytes as f64 * 8.0 / numbers as f64;
    let least: u64 = candidates.iter().map(|c| c.narrow).sum();
    let most: u64 = candidates.iter().map(|c| c.wide).sum();
    let limit = match target {
        Target::Kl(kl) => Limit::Loss(kl),
        Target::Bits(asked) => {
            // What was printed with three digits may be asked for.
            let slack = 5e-4;
            if let Some(b) = asked.filter(|b| !(bits(least) - slack..=bits(most) + slack).contains(b)) {
                return Err(usage(format!(
                    "--bits {b} cannot be had: this model goes from {:.3} to {:.3} bits a weight",
                    bits(least),
                    bits(most)
                )));
            }
            let bytes = (asked.unwrap_or(BITS) + slack) / 8.0 * numbers as f64;
            Limit::Bytes(bytes as u64)
        }
    };
    let wide = choose(&candidates, limit).context("no choice of types keeps to the limit")?;
    for (m, wide) in measured.iter_mut().zip(wide) {
        m.chosen = if wide { m.weight.wide } else { m.weight.narrow };
    }
    Ok(())
}

/// The weights in their chosen types.
pub fn encode_all(model: &Model, measured: &[Measured]) -> anyhow::Result<Vec<(String, StoredTensor)>> {
    let mut bar = Progress::count("encoding weights", measured.len() as u64);
    let one = |m: &Measured| {
        let name = &m.weight.name;
        let tensor = encoded(model.ops(), name, original(model, name)?, m.chosen)?;
        bar.add(1);
        Ok((name.clone(), tensor))
    };
    measured.iter().map(one).collect()
}

/// What they cost together.
pub fn together(
    reference: &Reference<'_, '_, Cpu>,
    made: &[(String, StoredTensor)],
) -> anyhow::Result<Quality> {
    let _bar = Progress::time("comparing with full precision");
    let names: Vec<&str> = made.iter().map(|(name, _)| &**name).collect();
    let mut make = |name: &str| {
        let (_, tensor) = made.iter().find(|(n, _)| n == name).expect("one of them");
        Ok(tensor.clone())
    };
    Ok(reference.compare(reference.model().ops().pool(), &names, &mut make)?)
}

fn original<'m>(model: &'m Model, name: &str) -> anyhow::Result<&'m StoredTensor> {
    model.checkpoint().get(name).with_context(|| format!("the model has no tensor `{name}`"))
}
