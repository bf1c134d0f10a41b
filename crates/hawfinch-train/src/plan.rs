//! What a run will need before it is begun: memory of each rank, bytes between ranks, operations of a step.
//!
//! Weights, gradients, moments and what goes over the wire are counted. What a step keeps of its tokens is measured: steps of
//! models of the same proportions, 128 to 255 channels wide and two and four layers deep, are run and the bytes of their
//! tensors taken, which grow with width, layers and tokens alone.

use std::sync::Arc;

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::cpu::Cpu;
use hawfinch_model::names::{self, Param, Role};
use hawfinch_model::{Config, StateLayout, synthetic};

use crate::tuning::{LoraInit, LoraSettings, Method, Tuning};
use crate::{Error, Learner, Lesson, Result};

/// A run to be.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model's version and sizes.
    pub config: Config,
    /// Bytes of the model's file, which a method that trains beside it keeps as they are.
    pub base_bytes: u64,
    /// What is trained.
    pub method: Method,
    /// What an adapter is like.
    pub lora: LoraSettings,
    /// Tokens of a sample.
    pub ctx: usize,
    /// Samples of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step, over all ranks.
    pub accumulate: usize,
    /// Tokens that are computed at a time; 0: a micro-batch.
    pub segment: usize,
    /// Whether blocks are computed again on the way back.
    pub recompute: bool,
    /// Processes that share a step.
    pub ranks: usize,
    /// Whether each rank holds only its part of the moments.
    pub zero: bool,
    /// Bytes of a number on the wire: 4, or 2 for bf16.
    pub wire: usize,
}

/// What it needs. Bytes are of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Plan {
    /// Numbers that are trained.
    pub trained: u64,
    /// Numbers of the model.
    pub parameters: u64,
    /// f32 weights that are trained, and small ones that are not.
    pub weights: u64,
    /// The base as its file has it.
    pub base: u64,
    /// Gradients, f32; with several micro-batches also their sum.
    pub gradients: u64,
    /// Both moments of AdamW, f32.
    pub moments: u64,
    /// Where they are shared out: all of them, which rank 0 gathers for a checkpoint.
    pub gathered: u64,
    /// What is kept of the tokens for the way back, and what is computed with.
    pub activations: u64,
    /// Rows of logits held at a time.
    pub logits: u64,
    /// States at the borders of segments.
    pub states: u64,
    /// All of these.
    pub memory: u64,
    /// Bytes of activations a token.
    pub bytes_per_token: f64,
    /// Tokens of a step, over all ranks.
    pub tokens: u64,
    /// Floating-point operations of a step, of each rank.
    pub operations: f64,
    /// Bytes that each rank sends a step.
    pub wire_bytes: f64,
    /// Those of them that travel while the last micro-batch's way back goes on.
    pub gradient_bytes: f64,
    /// Micro-batches of each rank.
    pub micro_batches: usize,
}

/// Bytes of logits held at a time, at most (`tape/loss.rs`).
const LOGITS: u64 = 4 << 23;
/// Tokens of the steps that are measured.
const TOKENS: usize = 128;

impl Job {
    /// Works it out.
    ///
    /// # Errors
    /// Settings that make no sense together.
    pub fn plan(&self) -> Result<Plan> {
        let c = &self.config;
        let counts = [
            ("ctx", self.ctx),
            ("batch", self.batch),
            ("accumulate", self.accumulate),
            ("ranks", self.ranks),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(Error::request(format!("`{name}` is 0; it must be at least 1")));
        }
        let samples = self.batch * self.accumulate;
        let shared = self.accumulate.is_multiple_of(self.ranks)
            || self.accumulate == 1 && self.batch.is_multiple_of(self.ranks);
        if !shared {
            return Err(Error::request(format!(
                "a step of {} × {} samples (`accumulate` × `batch`) cannot be shared by {} ranks: set `accumulate` to a multiple of them, or `accumulate` to 1 and `batch` to a multiple of them",
                self.accumulate, self.batch, self.ranks
            )));
        }
        let parameters = c.parameters(true);
        let trained = self.trained();
        let small = match self.method {
            Method::Full => 0,
            _ => small(c),
        };
        // What one rank computes at a time.
        let (micro, batch) = match self.accumulate.is_multiple_of(self.ranks) {
            true => (self.accumulate / self.ranks, self.batch),
            false => (1, samples / self.ranks),
        };
        let micro_tokens = (self.ctx * batch) as u64;
        let at_once = if self.segment > 0 { micro_tokens.min(self.segment as u64) } else { micro_tokens };
        let [fixed, per_token] = self.measured()?;
        let row = 4 * c.vocab as u64;
        let state = 4 * c.state_len() as u64;
        let borders =
            if self.segment > 0 { micro_tokens.div_ceil(self.segment as u64) } else { batch as u64 };
        let multiply_adds = linear_numbers(c) as f64;
        // Forward and to what went in, and to the weights that are trained; a block again; the way there of segments.
        let mut products = 2.0;
        if self.method == Method::Full {
            products += 1.0;
        }
        if self.recompute {
            products += 1.0;
        }
        if self.segment > 0 && micro_tokens > self.segment as u64 {
            products += 1.0;
        }
        let tokens = (self.ctx * samples) as u64;
        let part = |bytes: u64| if self.zero { bytes.div_ceil(self.ranks as u64) } else { bytes };
        // Gradients to whoever adds them up, and the sums back, or, where each rank updates its part, the new values.
        let back = if self.zero { 4 } else { self.wire };
        let others = (self.ranks - 1) as f64 / self.ranks as f64;
        let mut plan = Plan {
            trained,
            parameters,
            weights: 4 * (trained + small),
            base: if self.method == Method::Full { 0 } else { self.base_bytes },
            gradients: 4 * trained * if micro > 1 { 2 } else { 1 },
            moments: part(8 * trained),
            gathered: if self.zero && self.ranks > 1 { 8 * trained } else { 0 },
            activations: (fixed + per_token * at_once as f64) as u64,
            logits: LOGITS.max(row).min(row * at_once),
            states: state * borders,
            memory: 0,
            bytes_per_token: per_token,
            tokens,
            operations: 2.0 * products * multiply_adds * tokens as f64 / self.ranks as f64,
            wire_bytes: others * (trained * (self.wire + back) as u64) as f64,
            gradient_bytes: others
                * (trained * if self.zero { self.wire } else { self.wire + back } as u64) as f64,
            micro_batches: micro,
        };
        plan.memory = plan.weights
            + plan.gathered
            + plan.base
            + plan.gradients
            + plan.moments
            + plan.activations
            + plan.logits
            + plan.states;
        Ok(plan)
    }

    /// Numbers that are trained.
    fn trained(&self) -> u64 {
        let c = &self.config;
        match self.method {
            Method::Full => c.parameters(true),
            Method::State => {
                let layout = StateLayout::new(c);
                // But for the token shift's part and the exponent.
                let tuned = layout.fields.iter().filter(|f| !["att_x", "ffn_x", "pp"].contains(&f.name));
                (c.layers * tuned.map(|f| f.shape.iter().product::<usize>()).sum::<usize>()) as u64
            }
            Method::Lora => {
                let r = self.lora.rank as u64;
                let chosen = |name: &str| {
                    let own =
                        names::split_block(name).map_or(name, |(_, own)| own).trim_end_matches(".weight");
                    match &self.lora.modules[..] {
                        [] => !matches!(own, "head" | "emb"),
                        some => some.iter().any(|m| m == own),
                    }
                };
                // Of PiSSA the frozen half has gradients and moments too, which stay zero; of DiSHA, A has none.
                let numbers = |[o, i]: [u64; 2]| match self.lora.init {
                    LoraInit::Zero => r * (o + i),
                    LoraInit::Pissa => 2 * r * (o + i),
                    LoraInit::Disha => r * o,
                };
                matrices(c).filter(|(name, _)| chosen(name)).map(|(_, shape)| numbers(shape)).sum()
            }
        }
    }

    /// Bytes of tensors that do not depend on the tokens, and those that a token takes, of the whole model.
    fn measured(&self) -> Result<[f64; 2]> {
        let c = &self.config;
        // A model of the same proportions, so many times narrower.
        let narrower = (c.width / 128).max(1);
        let times = narrower as f64;
        let peak = |layers: usize, tokens: usize| -> Result<f64> {
            let mut small = *c;
            small.layers = layers;
            small.width = c.width / narrower;
            if c.heads > 1 {
                small.head_size =
                    if small.width.is_multiple_of(c.head_size) { c.head_size } else { small.width };
                small.heads = small.width / small.head_size;
            } else {
                small.head_size = small.head_size.min(small.width);
            }
            small.att_width = small.width;
            small.ffn_width = (c.ffn_width / narrower).max(1);
            small.vocab = 64;
            let rank = |r: usize| if r == 0 { 0 } else { (r / narrower).max(1) };
            let ranks = &mut small.ranks;
            for r in [&mut ranks.mix, &mut ranks.decay, &mut ranks.learn, &mut ranks.value, &mut ranks.gate] {
                *r = rank(*r);
            }
            let weights = synthetic::checkpoint(&small, DType::F32, 1);
            let cpu = Cpu::<f32>::with(Arc::new(Pool::new(1)), Isa::best());
            let tuning = match self.method {
                Method::Full => Tuning::default(),
                Method::State => Tuning::state(),
                Method::Lora => {
                    let rank = (self.lora.rank / narrower).max(1);
                    let lora = LoraSettings { rank, parts: Vec::new(), ..self.lora.clone() };
                    Tuning::lora(&weights, &lora, &cpu)?
                }
            };
            let mut learner = Learner::tuned(&weights, &tuning, cpu, Precision::Full)?;
            learner.set_recomputing(self.recompute);
            let ids: Vec<u32> = (0..tokens as u32).map(|n| n % 60 + 1).collect();
            let weights = vec![1.0; tokens];
            let targets = Targets { ids: &ids, weights: &weights, l2wrap: 0.0 };
            let lesson = Lesson { lengths: &[tokens], tokens: &ids, targets, initial: None, d_last: None };
            learner.tape().cpu().take_peak();
            let before = learner.tape().cpu().take_peak();
            learner.learn(&lesson)?;
            Ok(learner.tape().cpu().take_peak().saturating_sub(before) as f64)
        };
        let of_token = |layers| -> Result<f64> {
            Ok((peak(layers, 2 * TOKENS)? - peak(layers, TOKENS)?) / TOKENS as f64)
        };
        let (two, four) = (of_token(2)?, of_token(4)?);
        let per_layer = (four - two) / 2.0;
        let beside = two - 2.0 * per_layer;
        let fixed = (peak(2, TOKENS)? - two * TOKENS as f64).max(0.0);
        // 64 entries of logits a token are counted elsewhere.
        let beside = (beside - 4.0 * 64.0).max(0.0);
        Ok([fixed * times, times * (per_layer * c.layers as f64 + beside)])
    }
}

/// Axes of a parameter.
fn shape<'c>(c: &'c Config, p: &'static Param) -> impl Iterator<Item = usize> + 'c {
    p.shape.iter().map(|d| c.dim(*d))
}

/// Linear weights of a model with `[out, in]`.
fn matrices(c: &Config) -> impl Iterator<Item = (String, [u64; 2])> {
    let all = names::all_params(c.version, c.layers).into_iter();
    all.filter(|(_, p)| p.role == Role::Matrix).filter_map(|(name, p)| {
        let shape: Vec<usize> = shape(c, p).collect();
        <[usize; 2]>::try_from(shape).ok().map(|[o, i]| (name, [o as u64, i as u64]))
    })
}

/// Numbers that are multiplied a token: linear and low-rank weights, head included, embedding not.
fn linear_numbers(c: &Config) -> u64 {
    let all = names::all_params(c.version, c.layers).into_iter();
    all.filter(|(name, p)| p.role != Role::Vector && name != "emb.weight")
        .map(|(_, p)| shape(c, p).product::<usize>() as u64)
        .sum()
}

/// Numbers of vectors, which are held in f32 whatever is trained.
fn small(c: &Config) -> u64 {
    let all = names::all_params(c.version, c.layers).into_iter();
    all.filter(|(_, p)| p.role == Role::Vector).map(|(_, p)| shape(c, p).product::<usize>() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_model::Version;

    fn job(version: Version, layers: usize, width: usize) -> Job {
        let config = synthetic::Shape { version, layers, width, vocab: 512, head_size: 64 }.config();
        Job {
            base_bytes: 2 * config.parameters(true),
            config,
            method: Method::Full,
            lora: LoraSettings {
                rank: 8,
                alpha: 8.0,
                init: LoraInit::Zero,
                modules: Vec::new(),
                parts: Vec::new(),
                seed: 1,
            },
            ctx: 256,
            batch: 1,
            accumulate: 1,
            segment: 0,
            recompute: false,
            ranks: 1,
            zero: false,
            wire: 4,
        }
    }

    /// Tensors of a real step beside what the plan says, from a model of the same proportions.
    #[test]
    fn activations_are_what_a_step_keeps() {
        for version in [Version::V4, Version::V5_2, Version::V6, Version::V7] {
            for (recompute, method) in
                [(false, Method::Full), (true, Method::Full), (false, Method::Lora), (false, Method::State)]
            {
                let job = Job { recompute, method, ..job(version, 3, 256) };
                let plan = job.plan().unwrap();
                let weights = synthetic::checkpoint(&job.config, DType::BF16, 1);
                let cpu = Cpu::<f32>::with(Arc::new(Pool::new(2)), Isa::best());
                let tuning = match method {
                    Method::Full => Tuning::default(),
                    Method::State => Tuning::state(),
                    Method::Lora => Tuning::lora(&weights, &job.lora, &cpu).unwrap(),
                };
                let mut learner = Learner::tuned(&weights, &tuning, cpu, Precision::Full).unwrap();
                learner.set_recomputing(recompute);
                assert_eq!(
                    learner.tape().parameters().trained_numbers(),
                    plan.trained,
                    "{version} {method:?}"
                );
                let ids: Vec<u32> = (0..256u32).map(|n| n * 7 % 512).collect();
                let weights = vec![1.0; 256];
                let targets = Targets { ids: &ids, weights: &weights, l2wrap: 0.0 };
                let lesson = Lesson { lengths: &[256], tokens: &ids, targets, initial: None, d_last: None };
                learner.tape().cpu().take_peak();
                let before = learner.tape().cpu().take_peak();
                learner.learn(&lesson).unwrap();
                let held = (learner.tape().cpu().take_peak() - before) as f64;
                let said = (plan.activations + plan.logits) as f64;
                let off = said / held;
                assert!((0.75..1.35).contains(&off), "{version} {method:?} {recompute}: {said} for {held}");
            }
        }
    }

    #[test]
    fn ranks_share_what_they_can() {
        let one = job(Version::V7, 2, 128);
        let alone = one.plan().unwrap();
        let four = Job { ranks: 4, accumulate: 8, zero: true, wire: 2, ..one.clone() }.plan().unwrap();
        assert_eq!((alone.wire_bytes, four.moments), (0.0, alone.moments.div_ceil(4)));
        // Gradients in bf16, new values in f32.
        assert_eq!(four.wire_bytes, 0.75 * 6.0 * alone.trained as f64);
        assert_eq!((four.gradient_bytes, four.micro_batches), (0.75 * 2.0 * alone.trained as f64, 2));
        // Two micro-batches a rank of eight in all.
        assert!(
            (four.operations / alone.operations - 2.0).abs() < 1e-9 && four.gradients == 2 * alone.gradients
        );
        let e = Job { ranks: 3, ..one }.plan().unwrap_err().to_string();
        assert!(e.contains("1 × 1 samples (`accumulate` × `batch`) cannot be shared by 3 ranks"), "{e}");
    }
}
