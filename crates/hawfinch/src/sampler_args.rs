//! The sampler's settings on the command line, one struct for every command that generates.

use hawfinch_engine::{Mirostat, SamplerConfig};

use crate::fail::usage;

/// Sampling options; what is not given is the default of the command or of the model's family.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Sampling options")]
pub struct SamplerOptions {
    /// Below 1 sharpens, above 1 flattens, 0 always takes the most probable token
    #[arg(long, short = 't', value_name = "T")]
    temperature: Option<f32>,
    /// Keep the fewest most probable tokens whose probabilities reach this sum
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep at most this many most probable tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep tokens at least this share as probable as the most probable one
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Keep the tokens whose surprise is nearest to the expected one, up to this sum of probabilities
    #[arg(long, value_name = "P")]
    typical: Option<f32>,
    /// Mirostat 2 in place of the truncations above: surprise to aim at, in bits (5 is usual)
    #[arg(long, value_name = "TAU")]
    mirostat_tau: Option<f32>,
    /// Mirostat 2: learning rate (0.1 is usual)
    #[arg(long, value_name = "ETA")]
    mirostat_eta: Option<f32>,
    /// Taken once from the logit of every token generated before
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Taken from a generated token's logit times its decayed count
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Counts are multiplied by this at every token
    #[arg(long, value_name = "X")]
    penalty_decay: Option<f32>,
    /// Divides the positive and multiplies the negative logits of tokens seen before; 1 is off
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// The repetition penalty looks at this many last tokens; 0 looks at all
    #[arg(long, value_name = "N")]
    repetition_last_n: Option<u32>,
    /// Add V to the logit of token ID; -inf bans it (repeatable)
    #[arg(long, value_name = "ID=V", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Random numbers to use: the same seed gives the same text
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Always the most probable token, without penalties
    #[arg(long, conflicts_with_all = ["temperature", "top_p", "top_k", "mirostat_tau"])]
    greedy: bool,
}

fn parse_bias(s: &str) -> Result<(u32, f32), String> {
    let said = || "give it as ID=V, as in 261=-1.5 or 0=-inf".to_string();
    let (id, value) = s.split_once(['=', ':']).ok_or_else(said)?;
    Ok((id.trim().parse().map_err(|_| said())?, value.trim().parse().map_err(|_| said())?))
}

impl SamplerOptions {
    /// `defaults` with what was given in their place.
    pub fn over(&self, defaults: SamplerConfig) -> anyhow::Result<SamplerConfig> {
        let mut c = if self.greedy {
            let SamplerConfig { logit_bias, top_logprobs, seed, .. } = defaults;
            SamplerConfig { logit_bias, top_logprobs, seed, ..SamplerConfig::greedy() }
        } else {
            defaults
        };
        fn set<T: Copy>(to: &mut T, from: Option<T>) {
            if let Some(v) = from {
                *to = v;
            }
        }
        set(&mut c.temperature, self.temperature);
        set(&mut c.top_p, self.top_p);
        set(&mut c.top_k, self.top_k);
        set(&mut c.min_p, self.min_p);
        set(&mut c.typical_p, self.typical);
        set(&mut c.presence_penalty, self.presence_penalty);
        set(&mut c.frequency_penalty, self.frequency_penalty);
        set(&mut c.penalty_decay, self.penalty_decay);
        set(&mut c.repetition_penalty, self.repetition_penalty);
        set(&mut c.repetition_last_n, self.repetition_last_n);
        c.seed = self.seed.or(c.seed);
        c.logit_bias.extend(self.logit_bias.iter().copied());
        if self.mirostat_tau.is_some() || self.mirostat_eta.is_some() {
            let m = c.mirostat.unwrap_or_default();
            c.mirostat = Some(Mirostat {
                tau: self.mirostat_tau.unwrap_or(m.tau),
                eta: self.mirostat_eta.unwrap_or(m.eta),
            });
        }
        c.validate().map_err(|e| usage(e.to_string()))?;
        Ok(c)
    }
}

/// The settings that something gives, whatever it is given over, under the names that the HTTP API has for them.
#[cfg(feature = "serve")]
pub fn given(
    over: impl Fn(SamplerConfig) -> anyhow::Result<SamplerConfig>,
) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    use serde_json::{Map, Value};
    // No field of one is that of the other: what is the same over both was given.
    let other = SamplerConfig {
        temperature: 0.75,
        top_k: 7,
        top_p: 0.75,
        min_p: 0.25,
        typical_p: 0.75,
        mirostat: Some(Mirostat { tau: 2.0, eta: 0.5 }),
        presence_penalty: 0.25,
        frequency_penalty: 0.25,
        penalty_decay: 0.75,
        repetition_penalty: 1.25,
        repetition_last_n: 3,
        logit_bias: [(u32::MAX, 1.0)].into(),
        seed: Some(1),
        top_logprobs: 3,
    };
    let fields = |c: SamplerConfig| match serde_json::to_value(c) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (mut one, two) = (fields(over(SamplerConfig::default())?), fields(over(other)?));
    let (mirostat, bias) = (one.remove("mirostat"), one.remove("logit_bias"));
    one.retain(|name, value| two.get(name) == Some(value));
    if let Some(m) = mirostat.filter(Value::is_object) {
        for (name, field) in [("mirostat_tau", "tau"), ("mirostat_eta", "eta")] {
            one.insert(name.into(), m[field].clone());
        }
    }
    if let Some(Value::Object(mut bias)) = bias
        && !bias.is_empty()
    {
        // The API bans a token by -100.
        bias.values_mut().filter(|v| v.is_string()).for_each(|v| *v = (-100).into());
        one.insert("logit_bias".into(), bias.into());
    }
    Ok(one)
}

/// Changes one setting by its name on the command line, as `/set` of the chat does.
pub fn set_one(config: &mut SamplerConfig, name: &str, value: &str) -> anyhow::Result<()> {
    let mut c = config.clone();
    let number = || value.parse::<f32>().map_err(|_| usage(format!("{name} takes a number, not `{value}`")));
    let whole =
        || value.parse::<u32>().map_err(|_| usage(format!("{name} takes a whole number, not `{value}`")));
    match name.replace('_', "-").as_str() {
        "temperature" => c.temperature = number()?,
        "top-p" => c.top_p = number()?,
        "top-k" => c.top_k = whole()?,
        "min-p" => c.min_p = number()?,
        "typical" => c.typical_p = number()?,
        "mirostat-tau" => c.mirostat = Some(Mirostat { tau: number()?, ..c.mirostat.unwrap_or_default() }),
        "mirostat-eta" => c.mirostat = Some(Mirostat { eta: number()?, ..c.mirostat.unwrap_or_default() }),
        "presence-penalty" => c.presence_penalty = number()?,
        "frequency-penalty" => c.frequency_penalty = number()?,
        "penalty-decay" => c.penalty_decay = number()?,
        "repetition-penalty" => c.repetition_penalty = number()?,
        "repetition-last-n" => c.repetition_last_n = whole()?,
        "seed" => {
            let seed =
                value.parse().map_err(|_| usage(format!("seed takes a whole number, not `{value}`")))?;
            c.seed = Some(seed);
        }
        _ => return Err(usage(format!("there is no setting `{name}`: {SETTINGS}"))),
    }
    c.validate().map_err(|e| usage(e.to_string()))?;
    *config = c;
    Ok(())
}

/// The names that [`set_one`] knows.
pub const SETTINGS: &str = "temperature, top-p, top-k, min-p, typical, mirostat-tau, mirostat-eta, presence-penalty, \
    frequency-penalty, penalty-decay, repetition-penalty, repetition-last-n, seed";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: SamplerOptions,
    }

    fn over(args: &[&str]) -> anyhow::Result<SamplerConfig> {
        let args = std::iter::once("x").chain(args.iter().copied());
        Command::try_parse_from(args)?.options.over(SamplerConfig::chat())
    }

    #[test]
    fn only_what_is_given_changes() {
        assert_eq!(over(&[]).unwrap(), SamplerConfig::chat());
        let c = over(&["--top-k", "5", "--presence-penalty", "-0.5", "--mirostat-tau", "3", "--seed", "9"])
            .unwrap();
        let expected = SamplerConfig {
            top_k: 5,
            presence_penalty: -0.5,
            mirostat: Some(Mirostat { tau: 3.0, eta: 0.1 }),
            seed: Some(9),
            ..SamplerConfig::chat()
        };
        assert_eq!(c, expected);
        assert_eq!(over(&["--greedy"]).unwrap(), SamplerConfig::greedy());
        let c = over(&["--logit-bias", "0=-inf", "--logit-bias", "7=1.5"]).unwrap();
        assert_eq!(c.logit_bias, [(0, f32::NEG_INFINITY), (7, 1.5)].into());
    }

    #[cfg(feature = "serve")]
    #[test]
    fn what_is_given_has_the_names_of_the_api() {
        let options = |args: &[&str]| {
            let args = std::iter::once("x").chain(args.iter().copied());
            let options = Command::try_parse_from(args).unwrap().options;
            serde_json::Value::from(given(|c| options.over(c)).unwrap())
        };
        assert_eq!(options(&[]), serde_json::json!({}));
        let got =
            options(&["--top-k", "5", "--mirostat-tau", "3", "--logit-bias", "0=-inf", "--temperature", "1"]);
        assert_eq!(got["logit_bias"], serde_json::json!({"0": -100}));
        assert_eq!(
            (&got["top_k"], &got["temperature"], &got["mirostat_tau"]),
            (&5.into(), &1.0.into(), &3.0.into())
        );
        assert_eq!(got.as_object().unwrap().len(), 5);
        assert_eq!(options(&["--greedy"])["temperature"], 0.0);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for args in [
            &["--temperature", "-1"][..],
            &["--temperature", "x"],
            &["--top-p", "2"],
            &["--logit-bias", "7"],
            &["--logit-bias", "7=inf"],
            &["--greedy", "--top-k", "3"],
        ] {
            over(args).unwrap_err();
        }
    }

    #[test]
    fn every_setting_named_can_be_set() {
        for name in SETTINGS.split(", ") {
            let mut c = SamplerConfig::default();
            set_one(&mut c, name, "1").unwrap();
            set_one(&mut c, &name.replace('-', "_"), "nonsense").unwrap_err();
        }
        assert!(set_one(&mut SamplerConfig::default(), "top-q", "1").is_err());
    }
}
