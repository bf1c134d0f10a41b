//! What a person can set about sampling, its defaults and its ranges.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of mirostat version 2 (Basu et al. 2021), which replaces all other truncation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirostat {
    /// Target surprise in bits a token; 5 is usual.
    #[serde(default = "Mirostat::default_tau")]
    pub tau: f32,
    /// Learning rate of the threshold; 0.1 is usual.
    #[serde(default = "Mirostat::default_eta")]
    pub eta: f32,
}

impl Mirostat {
    fn default_tau() -> f32 {
        5.0
    }
    fn default_eta() -> f32 {
        0.1
    }
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: Self::default_tau(), eta: Self::default_eta() }
    }
}

/// How tokens are chosen from logits. `Default` gives the defaults of the reference's `rwkv` Python package.
///
/// The steps, in order: logit bias, repetition penalty, presence and frequency penalty (all on logits), softmax,
/// top-p, top-k, min-p, typical, then probabilities to the power 1/temperature (the reference applies temperature
/// last, so it never changes which tokens are candidates). With `mirostat` the steps after softmax are replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Divides the exponent: below 1 sharpens, above 1 flattens, 0 always takes the best token.
    pub temperature: f32,
    /// Keep at most this many best tokens; 0 keeps all, 1 always takes the best.
    pub top_k: u32,
    /// Keep the fewest best tokens whose probabilities reach this sum, with all that tie with the last of them;
    /// 1 keeps all, 0 always takes the best.
    pub top_p: f32,
    /// Keep tokens at least this share as probable as the best; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to the expected one until their probabilities reach this sum
    /// (locally typical sampling, Meister et al. 2022); 1 keeps all.
    pub typical_p: f32,
    /// Mirostat version 2 instead of the truncations above.
    pub mirostat: Option<Mirostat>,
    /// Taken once from the logit of every token that was generated before.
    pub presence_penalty: f32,
    /// Taken from a generated token's logit times its (decayed) count.
    pub frequency_penalty: f32,
    /// Counts are multiplied by this before each new token is counted.
    pub penalty_decay: f32,
    /// Divides positive and multiplies negative logits of generated tokens (CTRL, Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// The repetition penalty looks at this many last tokens; 0 looks at all.
    pub repetition_last_n: u32,
    /// Added to the logit of a token id; -infinity bans it. In JSON -infinity is written as `"-inf"`.
    #[serde(with = "bias")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Also report this many most probable tokens with each sample.
    pub top_logprobs: u32,
    /// Decides the random numbers; without one each sampler picks its own (`Sampler::seed` tells it).
    pub seed: Option<u64>,
}

impl Default for SamplerConfig {
    /// Temperature 1, top-p 0.85, penalties 0.2 and 0.2 with decay 0.996 (`PIPELINE_ARGS` of the `rwkv` package).
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 0.85,
            min_p: 0.0,
            typical_p: 1.0,
            mirostat: None,
            presence_penalty: 0.2,
            frequency_penalty: 0.2,
            penalty_decay: 0.996,
            repetition_penalty: 1.0,
            repetition_last_n: 0,
            logit_bias: BTreeMap::new(),
            top_logprobs: 0,
            seed: None,
        }
    }
}

/// The most `top_logprobs` that can be asked for.
pub const MAX_TOP_LOGPROBS: u32 = 128;

impl SamplerConfig {
    /// Always the most probable token, with no penalties: the deterministic setting tests and evaluations use.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::pure() }
    }

    /// The model's own distribution: temperature 1, no truncation, no penalty.
    pub fn pure() -> Self {
        Self { top_p: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, ..Self::default() }
    }

    /// Settings of the reference's chat demonstration (`API_DEMO_CHAT.py`): 1 / 0.3 / 0.5 / 0.5 / 0.996.
    pub fn chat() -> Self {
        Self { top_p: 0.3, presence_penalty: 0.5, frequency_penalty: 0.5, ..Self::default() }
    }

    /// Settings of the reference's Raven chat (`v2/chat.py`): 1.2 / 0.5 / 0.4 / 0.4 / 0.996.
    pub fn raven() -> Self {
        Self {
            temperature: 1.2,
            top_p: 0.5,
            presence_penalty: 0.4,
            frequency_penalty: 0.4,
            ..Self::default()
        }
    }

    /// Refuses the first setting outside its range, naming the range.
    pub fn validate(&self) -> Result<()> {
        let range = |setting, value: f32, ok: bool, range| {
            if ok { Ok(()) } else { Err(Error::Setting { setting, value: value.to_string(), range }) }
        };
        let unit = |x: f32| (0.0..=1.0).contains(&x);
        let t = self.temperature;
        range("temperature", t, t.is_finite() && t >= 0.0, "a finite number of at least 0")?;
        range("top_p", self.top_p, unit(self.top_p), "between 0 and 1")?;
        range("min_p", self.min_p, unit(self.min_p), "between 0 and 1")?;
        let typical = self.typical_p;
        range("typical_p", typical, typical > 0.0 && typical <= 1.0, "above 0 and at most 1")?;
        if let Some(m) = self.mirostat {
            range("mirostat.tau", m.tau, m.tau.is_finite() && m.tau >= 0.0, "a finite number of at least 0")?;
            range("mirostat.eta", m.eta, unit(m.eta), "between 0 and 1")?;
        }
        range(
            "presence_penalty",
            self.presence_penalty,
            self.presence_penalty.is_finite(),
            "a finite number",
        )?;
        range(
            "frequency_penalty",
            self.frequency_penalty,
            self.frequency_penalty.is_finite(),
            "a finite number",
        )?;
        range("penalty_decay", self.penalty_decay, unit(self.penalty_decay), "between 0 and 1")?;
        let r = self.repetition_penalty;
        range("repetition_penalty", r, r.is_finite() && r > 0.0, "a finite number above 0 (1 is off)")?;
        for &bias in self.logit_bias.values() {
            let ok = bias.is_finite() || bias == f32::NEG_INFINITY;
            range("logit_bias", bias, ok, "a finite number, or -infinity to ban the token")?;
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            let value = self.top_logprobs.to_string();
            return Err(Error::Setting { setting: "top_logprobs", value, range: "between 0 and 128" });
        }
        Ok(())
    }
}

/// Logit biases in JSON: numbers, or `"-inf"` since JSON has no infinity.
mod bias {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::SerializeMap};
    use std::collections::BTreeMap;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bias {
        Number(f32),
        Word(String),
    }

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<u32, f32>, s: S) -> Result<S::Ok, S::Error> {
        let mut out = s.serialize_map(Some(map.len()))?;
        for (id, &bias) in map {
            match bias == f32::NEG_INFINITY {
                true => out.serialize_entry(id, "-inf")?,
                false => out.serialize_entry(id, &bias)?,
            }
        }
        out.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u32, f32>, D::Error> {
        // Ids arrive as text: JSON keys are strings.
        let raw = BTreeMap::<String, Bias>::deserialize(d)?;
        let mut map = BTreeMap::new();
        for (id, bias) in raw {
            let number = id
                .parse::<u32>()
                .map_err(|_| D::Error::custom(format!("logit_bias: `{id}` is not a token id")))?;
            let value = match bias {
                Bias::Number(x) => x,
                Bias::Word(w) if w == "-inf" => f32::NEG_INFINITY,
                Bias::Word(w) => {
                    return Err(D::Error::custom(format!(
                        "logit_bias of token {id}: `{w}` is not a number or \"-inf\""
                    )));
                }
            };
            map.insert(number, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_reference_packages() {
        let c = SamplerConfig::default();
        assert_eq!((c.temperature, c.top_p, c.top_k), (1.0, 0.85, 0));
        assert_eq!((c.presence_penalty, c.frequency_penalty, c.penalty_decay), (0.2, 0.2, 0.996));
        let c = SamplerConfig::chat();
        assert_eq!((c.temperature, c.top_p), (1.0, 0.3));
        assert_eq!((c.presence_penalty, c.frequency_penalty, c.penalty_decay), (0.5, 0.5, 0.996));
        for c in [SamplerConfig::raven(), SamplerConfig::greedy(), SamplerConfig::pure(), c] {
            c.validate().unwrap();
        }
    }

    #[test]
    fn out_of_range_values_are_refused_by_name() {
        type Spoil = fn(&mut SamplerConfig);
        let bad: &[(&str, Spoil)] = &[
            ("temperature", |c| c.temperature = f32::NAN),
            ("temperature", |c| c.temperature = -0.1),
            ("temperature", |c| c.temperature = f32::INFINITY),
            ("top_p", |c| c.top_p = 1.01),
            ("top_p", |c| c.top_p = f32::NAN),
            ("min_p", |c| c.min_p = -1.0),
            ("typical_p", |c| c.typical_p = 0.0),
            ("mirostat.tau", |c| c.mirostat = Some(Mirostat { tau: -1.0, eta: 0.1 })),
            ("mirostat.eta", |c| c.mirostat = Some(Mirostat { tau: 5.0, eta: f32::NAN })),
            ("presence_penalty", |c| c.presence_penalty = f32::NAN),
            ("frequency_penalty", |c| c.frequency_penalty = f32::INFINITY),
            ("penalty_decay", |c| c.penalty_decay = 1.5),
            ("repetition_penalty", |c| c.repetition_penalty = 0.0),
            ("logit_bias", |c| c.logit_bias = [(3, f32::INFINITY)].into()),
            ("top_logprobs", |c| c.top_logprobs = 129),
        ];
        for (name, spoil) in bad {
            let mut c = SamplerConfig::default();
            spoil(&mut c);
            let said = c.validate().unwrap_err().to_string();
            assert!(said.contains(&format!("`{name}`")) && said.contains("must be"), "{said}");
        }
    }

    #[test]
    fn json_round_trip_keeps_bans() {
        let c = SamplerConfig {
            logit_bias: [(7, 1.5), (0, f32::NEG_INFINITY)].into(),
            mirostat: Some(Mirostat::default()),
            seed: Some(9),
            ..SamplerConfig::default()
        };
        let text = serde_json::to_string(&c).unwrap();
        assert_eq!(serde_json::from_str::<SamplerConfig>(&text).unwrap(), c);
        let partial: SamplerConfig = serde_json::from_str(r#"{"temperature": 0.5, "mirostat": {}}"#).unwrap();
        assert_eq!(partial.temperature, 0.5);
        assert_eq!(partial.mirostat, Some(Mirostat { tau: 5.0, eta: 0.1 }));
        for wrong in
            [r#"{"temprature": 1}"#, r#"{"logit_bias": {"x": 1}}"#, r#"{"logit_bias": {"1": "inf"}}"#]
        {
            assert!(serde_json::from_str::<SamplerConfig>(wrong).is_err(), "{wrong}");
        }
    }
}
