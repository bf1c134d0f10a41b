//! From logits to one token: penalties, truncation, temperature and the draw.
//!
//! [`SamplerConfig`] says what is wanted, [`Sampler`] does it and holds what changes from token to token
//! ([`SamplerState`]: counts, random numbers, mirostat's threshold). The arithmetic is fixed: own `exp` and `ln`,
//! sums in a fixed order, candidates in the order of their ids, no hash map. The same logits and the same seed
//! therefore give the same tokens on every platform; what can still differ is the logits themselves.

mod config;
mod math;
mod select;
#[cfg(test)]
mod tests;

pub use config::{MAX_TOP_LOGPROBS, Mirostat, SamplerConfig};
pub use hawfinch_model::Rng;

use crate::{Error, Result};
use hawfinch_kernels::{Isa, softmax};
use select::{Candidate, Candidates, Selector};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

/// Weights further than this (in logits) from the raw maximum are computed anew instead of corrected.
const RESHIFT: f32 = 20.0;

/// The tokens that add nothing to a count: those whose text is a substring of `" \t0123456789"`.
///
/// So `1`, `12` and a single space, but not `21` or two spaces. The reference exempts them because digits and
/// spaces must be able to repeat. Such a token still enters the list of generated tokens, so from then on it takes
/// the presence penalty. A token with empty text is a substring too, as in the reference; one without any text
/// (`None`) is not.
#[derive(Debug, Clone, Default)]
pub struct Uncounted(Arc<[u32]>);

impl Uncounted {
    /// Looks at the text of each id below `vocab`.
    pub fn from_texts<B: AsRef<[u8]>>(vocab: usize, mut text: impl FnMut(u32) -> Option<B>) -> Self {
        const EXEMPT: &[u8] = b" \t0123456789";
        let ids = (0..vocab as u32).filter(|&id| {
            text(id).is_some_and(|t| {
                let t = t.as_ref();
                t.is_empty() || EXEMPT.windows(t.len()).any(|w| w == t)
            })
        });
        Self(ids.collect())
    }

    /// No token is exempt.
    pub fn none() -> Self {
        Self::default()
    }

    /// The exempt ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }
}

/// How often a token was generated, decayed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Count {
    id: u32,
    count: f64,
}

/// Everything in a sampler that changes from token to token; a snapshot of it continues exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplerState {
    rng: Rng,
    /// In order of first generation.
    counts: Vec<Count>,
    /// The last `repetition_last_n` tokens, when that is not 0.
    window: VecDeque<u32>,
    /// All tokens seen, ascending, when `repetition_last_n` is 0 and the penalty is on.
    seen: Vec<u32>,
    /// Mirostat's threshold in bits.
    mu: f64,
}

/// Buffers reused from token to token.
#[derive(Debug, Default)]
struct Scratch {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    touched: Vec<u32>,
    candidates: Candidates,
    blocks: Vec<f64>,
    selector: Selector,
}

/// What draws are compiled for; results do not depend on it.
static ISA: LazyLock<Isa> = LazyLock::new(|| Isa::chosen().unwrap_or_else(|_| Isa::best()));

thread_local! {
    /// A thread's, not a sampler's: those of dozens of sequences that are drawn for in turns (a MB each) would have left
    /// the processor's caches before they are used again.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token's id.
    pub id: u32,
    /// Natural logarithm of its probability in the model's raw distribution: the softmax of the logits as they came,
    /// before bias, penalties, truncation and temperature.
    pub logprob: f32,
    /// The `top_logprobs` most probable tokens of the raw distribution, best first, equal ones by ascending id.
    pub top: Vec<(u32, f32)>,
}

/// A configuration and the state of one sequence.
///
/// ```
/// use hawfinch_engine::{Sampler, SamplerConfig, Uncounted};
/// let config = SamplerConfig { seed: Some(1), ..SamplerConfig::default() };
/// let mut sampler = Sampler::new(config, Uncounted::none())?;
/// let logits = [0.0, 2.0, 1.0, -1.0]; // from the model, one a token
/// let sampled = sampler.sample(&logits)?;
/// sampler.accept(sampled.id);
/// # Ok::<(), hawfinch_engine::Error>(())
/// ```
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    uncounted: Uncounted,
    seed: u64,
    state: SamplerState,
}

impl Clone for Sampler {
    fn clone(&self) -> Self {
        let Self { config, uncounted, seed, state } = self;
        Self { config: config.clone(), uncounted: uncounted.clone(), seed: *seed, state: state.clone() }
    }

    /// Keeps the buffers that are there.
    fn clone_from(&mut self, source: &Self) {
        self.config.clone_from(&source.config);
        self.uncounted.clone_from(&source.uncounted);
        self.seed = source.seed;
        self.state.clone_from(&source.state);
    }
}

impl Sampler {
    /// A sampler that has seen nothing. Errors when the configuration is out of range.
    pub fn new(config: SamplerConfig, uncounted: Uncounted) -> Result<Self> {
        config.validate()?;
        let seed = config.seed.unwrap_or_else(Rng::fresh_seed);
        let mu = 2.0 * f64::from(config.mirostat.unwrap_or_default().tau);
        let state = SamplerState {
            rng: Rng::new(seed),
            counts: Vec::with_capacity(256),
            window: VecDeque::with_capacity((config.repetition_last_n as usize).min(4096)),
            seen: Vec::new(),
            mu,
        };
        Ok(Self { config, uncounted, seed, state })
    }

    /// The configuration in force.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// The seed in force, also when the configuration named none.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Changes the settings but keeps counts and, unless `config.seed` names another seed, the random numbers.
    pub fn reconfigure(&mut self, config: SamplerConfig) -> Result<()> {
        config.validate()?;
        if let Some(seed) = config.seed
            && seed != self.seed
        {
            self.reseed(seed);
        }
        if config.mirostat != self.config.mirostat {
            self.state.mu = 2.0 * f64::from(config.mirostat.unwrap_or_default().tau);
        }
        self.config = config;
        Ok(())
    }

    /// Starts the random numbers of `seed`.
    pub fn reseed(&mut self, seed: u64) {
        self.seed = seed;
        self.state.rng = Rng::new(seed);
    }

    /// A snapshot of what changes from token to token.
    pub fn state(&self) -> &SamplerState {
        &self.state
    }

    /// Goes back (or over) to a snapshot.
    pub fn restore(&mut self, state: SamplerState) {
        self.state = state;
    }

    /// Forgets the counts of the presence and frequency penalties: the reference starts each reply so.
    pub fn reset_counts(&mut self) {
        self.state.counts.clear();
    }

    /// Tells the repetition penalty of tokens that were read, not generated. The presence and frequency penalties,
    /// as in the reference, count generated tokens only.
    pub fn observe(&mut self, tokens: &[u32]) {
        if self.config.repetition_penalty != 1.0 {
            let keep = match self.config.repetition_last_n as usize {
                0 => tokens.len(),
                n => n.min(tokens.len()),
            };
            for &id in &tokens[tokens.len() - keep..] {
                self.remember(id);
            }
        }
    }

    /// Knows what another sampler has observed, as if it had been told itself.
    pub fn observe_as(&mut self, other: &Sampler) {
        self.state.window.clone_from(&other.state.window);
        self.state.seen.clone_from(&other.state.seen);
    }

    /// Counts a generated token: all counts decay, then the token's own grows by one (by nothing for [`Uncounted`]).
    pub fn accept(&mut self, id: u32) {
        let mut known = None;
        for (i, c) in self.state.counts.iter_mut().enumerate() {
            c.count *= f64::from(self.config.penalty_decay);
            if c.id == id {
                known = Some(i);
            }
        }
        let add = if self.uncounted.contains(id) { 0.0 } else { 1.0 };
        match known {
            Some(i) => self.state.counts[i].count += add,
            None => self.state.counts.push(Count { id, count: add }),
        }
        if self.config.repetition_penalty != 1.0 {
            self.remember(id);
        }
    }

    fn remember(&mut self, id: u32) {
        let n = self.config.repetition_last_n as usize;
        if n > 0 {
            while self.state.window.len() >= n {
                self.state.window.pop_front();
            }
            self.state.window.push_back(id);
        } else if let Err(at) = self.state.seen.binary_search(&id) {
            self.state.seen.insert(at, id);
        }
    }

    /// Draws a token from `logits` (one a token of the vocabulary; left as they are). Does not count it: call
    /// [`Sampler::accept`] for a token that becomes part of the text.
    ///
    /// Uses one random number, or none when the best token is taken anyway (temperature 0, top-k 1 or top-p 0; then
    /// the lowest id wins a tie). Tokens whose probability is below e^-87 of the best one's are never drawn.
    ///
    /// Errors: a logit that is NaN or +infinity; all logits -infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Sampled> {
        self.sample_within(logits, None)
    }

    /// As [`Sampler::sample`], drawing only among the tokens whose bit is set in `allowed` (bit `id % 32` of word
    /// `id / 32`; ids beyond it are not allowed). The log-probabilities told are still those of the raw distribution.
    ///
    /// Errors also when no token is allowed that has a logit above -infinity.
    pub fn sample_within(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<Sampled> {
        SCRATCH.with_borrow_mut(|scratch| self.sample_with(scratch, logits, allowed))
    }

    fn sample_with(
        &mut self,
        scratch: &mut Scratch,
        logits: &[f32],
        allowed: Option<&[u32]>,
    ) -> Result<Sampled> {
        let Self { config, state, .. } = self;
        let bad = |(id, value)| Error::BadLogit { id: id as u32, value };
        let nothing = || Error::NothingLeft { vocab: logits.len() };
        let raw_max = softmax::largest(*ISA, logits).map_err(bad)?;
        if raw_max == f32::NEG_INFINITY {
            return Err(nothing());
        }
        scratch.weights.resize(logits.len(), 0.0);
        let raw_total = softmax::exp_all(*ISA, logits, raw_max, 1.0, &mut scratch.weights);
        let log_total = math::ln(raw_total);
        let logprob = |id: u32| {
            let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (f64::from(logit - raw_max) - log_total) as f32
        };
        let top = top_logprobs(logits, config.top_logprobs as usize, logprob);

        let changed = adjust(config, state, logits, &mut scratch.adjusted, &mut scratch.touched);
        if let Some(allowed) = allowed {
            if !changed {
                scratch.adjusted.extend_from_slice(logits);
            }
            forbid_others(&mut scratch.adjusted, allowed);
        }
        let (logits, max, shift, total) = if allowed.is_some() {
            let adjusted = &scratch.adjusted[..];
            let max = softmax::largest(*ISA, adjusted).map_err(bad)?;
            if max == f32::NEG_INFINITY {
                return Err(nothing());
            }
            (adjusted, max, max, softmax::exp_all(*ISA, adjusted, max, 1.0, &mut scratch.weights))
        } else if changed {
            let adjusted = &scratch.adjusted[..];
            let max = softmax::largest(*ISA, adjusted).map_err(bad)?;
            if max == f32::NEG_INFINITY {
                return Err(nothing());
            }
            if (max - raw_max).abs() <= RESHIFT {
                for &id in &scratch.touched {
                    scratch.weights[id as usize] = softmax::exp(adjusted[id as usize] - raw_max);
                }
                (adjusted, max, raw_max, softmax::sum(*ISA, &scratch.weights))
            } else {
                (adjusted, max, max, softmax::exp_all(*ISA, adjusted, max, 1.0, &mut scratch.weights))
            }
        } else {
            (logits, raw_max, raw_max, raw_total)
        };

        let t = config.temperature;
        let id = if t == 0.0 || (config.mirostat.is_none() && (config.top_k == 1 || config.top_p == 0.0)) {
            select::argmax(logits, max)
        } else if let Some(m) = config.mirostat {
            let (total, best) = match t == 1.0 {
                true => (total, softmax::exp(max - shift)),
                false => (softmax::exp_all(*ISA, logits, max, t, &mut scratch.weights), 1.0),
            };
            // Surprise <= mu bits means weight >= total * 2^-mu; the best token always stays.
            let limit = -state.mu * std::f64::consts::LN_2;
            let floor = (total * f64::from(softmax::exp(limit.clamp(-87.0, 80.0) as f32))) as f32;
            select::gather(&scratch.weights, floor.min(best).max(f32::MIN_POSITIVE), &mut scratch.candidates);
            let (id, probability) = select::draw(&scratch.candidates, &mut state.rng, &mut scratch.blocks);
            let surprise = -math::ln(probability.max(f64::MIN_POSITIVE)) / std::f64::consts::LN_2;
            state.mu -= f64::from(m.eta) * (surprise - f64::from(m.tau));
            id
        } else {
            let softmax =
                Softmax { logits, weights: &scratch.weights, max, best: softmax::exp(max - shift), total };
            truncate(config, softmax, &mut scratch.candidates, &mut scratch.selector);
            if t != 1.0 {
                for c in scratch.candidates.iter_mut() {
                    c.weight = softmax::exp((logits[c.id as usize] - max) / t);
                }
            }
            select::draw(&scratch.candidates, &mut state.rng, &mut scratch.blocks).0
        };
        Ok(Sampled { id, logprob: logprob(id), top })
    }

    /// The candidates and probabilities that [`Sampler::sample`] would draw from, for tests.
    #[cfg(test)]
    pub(crate) fn distribution(&mut self, logits: &[f32]) -> Vec<(u32, f64)> {
        self.sample(logits).unwrap();
        let weight = |c: &Candidate| f64::from(c.weight);
        SCRATCH.with_borrow(|Scratch { candidates, .. }| {
            let total: f64 = candidates.iter().map(weight).sum();
            candidates.iter().map(|c| (c.id, weight(c) / total)).collect()
        })
    }
}

/// Writes the logits after bias and penalties to `adjusted` and the changed ids to `touched`.
///
/// False, and both empty, when no setting changes anything.
fn adjust(
    config: &SamplerConfig,
    state: &SamplerState,
    logits: &[f32],
    adjusted: &mut Vec<f32>,
    touched: &mut Vec<u32>,
) -> bool {
    adjusted.clear();
    touched.clear();
    let vocab = logits.len() as u32;
    let repeats = config.repetition_penalty != 1.0;
    let penalties = config.presence_penalty != 0.0 || config.frequency_penalty != 0.0;
    let changed = !config.logit_bias.is_empty()
        || (repeats && !(state.seen.is_empty() && state.window.is_empty()))
        || (penalties && !state.counts.is_empty());
    if !changed {
        return false;
    }
    adjusted.extend_from_slice(logits);
    // Grows when the counts' own buffer does, not with each new token.
    let (seen, biased) = (state.seen.capacity() + state.window.capacity(), config.logit_bias.len());
    touched.reserve(state.counts.capacity() + seen + biased);
    if repeats {
        touched.extend(&state.seen);
        touched.extend(&state.window);
        touched.sort_unstable();
        touched.dedup();
    }
    // Settings at the edge of their range may carry a sound logit beyond f32's: it stays at the end of it.
    let within = |x: f32| x.min(f32::MAX);
    for (&id, &bias) in config.logit_bias.range(..vocab) {
        let x = &mut adjusted[id as usize];
        *x = within(*x + bias);
    }
    if repeats {
        for &id in touched.iter().filter(|&&id| id < vocab) {
            let x = &mut adjusted[id as usize];
            *x = within(if *x > 0.0 {
                *x / config.repetition_penalty
            } else {
                *x * config.repetition_penalty
            });
        }
    }
    touched.extend(config.logit_bias.range(..vocab).map(|(&id, _)| id));
    if penalties {
        let (presence, frequency) = (f64::from(config.presence_penalty), f64::from(config.frequency_penalty));
        for c in state.counts.iter().filter(|c| c.id < vocab) {
            let penalty = (presence + c.count * frequency) as f32;
            let x = &mut adjusted[c.id as usize];
            *x = within(*x - penalty.clamp(-f32::MAX, f32::MAX));
            touched.push(c.id);
        }
    }
    touched.retain(|&id| id < vocab);
    true
}

/// What [`Sampler::sample`] would tell of `id` if it had drawn it: its raw log-probability and those of the `top` best.
///
/// # Errors
/// As there.
pub fn raw_logprob(logits: &[f32], id: u32, top: usize) -> Result<Sampled> {
    let max =
        softmax::largest(*ISA, logits).map_err(|(id, value)| Error::BadLogit { id: id as u32, value })?;
    if max == f32::NEG_INFINITY {
        return Err(Error::NothingLeft { vocab: logits.len() });
    }
    let total = math::ln(softmax::exp_sum(*ISA, logits, max));
    let logprob = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (f64::from(logit - max) - total) as f32
    };
    Ok(Sampled { id, logprob: logprob(id), top: top_logprobs(logits, top, logprob) })
}

/// Sets the logits of the tokens that are not allowed to -infinity.
fn forbid_others(logits: &mut [f32], allowed: &[u32]) {
    for (word, logits) in logits.chunks_mut(32).enumerate() {
        let bits = allowed.get(word).copied().unwrap_or(0);
        if bits != u32::MAX {
            for (i, x) in logits.iter_mut().enumerate() {
                if bits >> i & 1 == 0 {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// What truncation needs to know of the distribution.
struct Softmax<'a> {
    logits: &'a [f32],
    /// exp(logit - shift) of each token.
    weights: &'a [f32],
    /// The largest logit.
    max: f32,
    /// Its weight.
    best: f32,
    /// The sum of all weights.
    total: f64,
}

/// Leaves in `candidates` what survives top-p, top-k, min-p and typical sampling, in that order; at least the best.
fn truncate(
    config: &SamplerConfig,
    softmax: Softmax<'_>,
    candidates: &mut Candidates,
    selector: &mut Selector,
) {
    let Softmax { logits, weights, max, best, total } = softmax;
    let k = match config.top_k as usize {
        0 => usize::MAX,
        k => k,
    };
    // Written so that rounding cannot push the floor above the best token itself.
    let floor = (config.min_p * best).min(best).max(f32::MIN_POSITIVE);
    let target = if config.top_p < 1.0 { f64::from(config.top_p) * total } else { f64::INFINITY };
    // Look ever deeper, until the sum or the number that is wanted lies above the threshold.
    for depth in [1.0 / 64.0, 1.0 / 16384.0, 0.0] {
        let threshold = (best * depth).max(floor);
        if depth > 0.0 && target == f64::INFINITY && k == usize::MAX {
            continue;
        }
        let mass = select::gather(weights, threshold, candidates);
        if mass >= target || candidates.len() >= k || threshold <= floor {
            break;
        }
    }
    if target < f64::INFINITY
        && let Some(key) =
            selector.threshold(candidates.iter().map(|c| (c.weight.to_bits(), c.weight)), target)
    {
        candidates.retain(|c| c.weight.to_bits() >= key);
    }
    if candidates.len() > k
        && let Some(key) = selector.threshold(candidates.iter().map(|c| (c.weight.to_bits(), 1.0)), k as f64)
    {
        // Of the tokens that tie with the k-th, those with the lowest ids stay.
        let above = candidates.iter().filter(|c| c.weight.to_bits() > key).count();
        let mut ties = k - above;
        candidates.retain(|c| {
            let tie = c.weight.to_bits() == key;
            let keep = c.weight.to_bits() > key || (tie && ties > 0);
            ties -= usize::from(tie && keep);
            keep
        });
    }
    if config.typical_p < 1.0 {
        // Surprise minus expected surprise: the normalisation cancels, so no logarithm is needed.
        let mass: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
        let depth = |c: &Candidate| f64::from(max - logits[c.id as usize]);
        let mean = candidates.iter().map(|c| f64::from(c.weight) * depth(c)).sum::<f64>() / mass;
        let key = |c: &Candidate| 0x7fff_ffff - ((depth(c) - mean).abs() as f32).to_bits();
        let target = f64::from(config.typical_p) * mass;
        if let Some(limit) = selector.threshold(candidates.iter().map(|c| (key(c), c.weight)), target) {
            candidates.retain(|c| key(c) >= limit);
        }
    }
}

/// The `n` largest logits, best first, equal ones by ascending id, with their log-probabilities.
fn top_logprobs(logits: &[f32], n: usize, logprob: impl Fn(u32) -> f32) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    let mut least = f32::NEG_INFINITY;
    for (id, &x) in logits.iter().enumerate() {
        if best.len() < n || x > least {
            let at = best.partition_point(|&(_, y)| y >= x);
            best.insert(at, (id as u32, x));
            best.truncate(n);
            least = best.last().map_or(f32::NEG_INFINITY, |b| b.1);
        }
    }
    for b in &mut best {
        b.1 = logprob(b.0);
    }
    best
}
