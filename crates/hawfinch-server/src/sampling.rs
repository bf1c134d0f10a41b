//! The fields that all routes that generate share, and what they mean for the engine.

use crate::error::{ApiError, ApiResult};
use hawfinch_engine::{Grammar, Mirostat, SamplerConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Stop strings of a request at most, and their bytes together.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 16 << 10;
/// Token ids that end a reply at most.
const MAX_STOP_TOKENS: usize = 256;
/// Tokens with a bias at most.
const MAX_BIASES: usize = 1024;
/// Choices of a request at most.
pub const MAX_N: u32 = 64;

/// How tokens are drawn. What is not given is the default of the model's family (chat) or of the reference (completions).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct Sampling {
    /// Below 1 sharpens, above 1 flattens, 0 always takes the most probable token (and
    /// sets penalties that are not given to 0).
    #[schemars(range(min = 0))]
    pub temperature: Option<f32>,
    /// Keep the fewest most probable tokens whose probabilities reach this sum.
    #[schemars(range(min = 0, max = 1))]
    pub top_p: Option<f32>,
    /// Keep at most this many most probable tokens; 0 and below keep all.
    pub top_k: Option<i64>,
    /// Keep tokens at least this share as probable as the most probable one.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: Option<f32>,
    /// Locally typical sampling.
    #[schemars(range(min = 0, max = 1))]
    pub typical_p: Option<f32>,
    /// Taken once from the logit of every token generated before.
    pub presence_penalty: Option<f32>,
    /// Taken from a generated token's logit times its decayed count.
    pub frequency_penalty: Option<f32>,
    /// Counts are multiplied by this at every token.
    #[schemars(range(min = 0, max = 1))]
    pub penalty_decay: Option<f32>,
    /// Divides the positive and multiplies the negative logits of tokens seen before; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// The repetition penalty looks at so many last tokens; 0 looks at all.
    pub repetition_last_n: Option<u32>,
    /// Mirostat 2 in place of the truncations above: surprise to aim at, in bits.
    pub mirostat_tau: Option<f32>,
    /// Mirostat 2: learning rate.
    pub mirostat_eta: Option<f32>,
    /// The same seed gives the same text.
    pub seed: Option<i64>,
    /// Added to the logits of token ids, -100 to 100; -100 bans a token.
    pub logit_bias: Option<BTreeMap<String, f32>>,
}

impl Sampling {
    /// The sampler's settings over `defaults`, for a model of `vocab` tokens.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn over(&self, defaults: &SamplerConfig, vocab: usize) -> ApiResult<SamplerConfig> {
        let mut c = defaults.clone();
        if self.temperature == Some(0.0) {
            // Who asks for the most probable tokens asks for no penalties that he does not name.
            (c.presence_penalty, c.frequency_penalty) = (0.0, 0.0);
        }
        let set = |to: &mut f32, from: Option<f32>| *to = from.unwrap_or(*to);
        set(&mut c.temperature, self.temperature);
        set(&mut c.top_p, self.top_p);
        set(&mut c.min_p, self.min_p);
        set(&mut c.typical_p, self.typical_p);
        set(&mut c.presence_penalty, self.presence_penalty);
        set(&mut c.frequency_penalty, self.frequency_penalty);
        set(&mut c.penalty_decay, self.penalty_decay);
        set(&mut c.repetition_penalty, self.repetition_penalty);
        if let Some(k) = self.top_k {
            c.top_k = u32::try_from(k.max(0)).unwrap_or(u32::MAX);
        }
        c.repetition_last_n = self.repetition_last_n.unwrap_or(c.repetition_last_n);
        if self.mirostat_tau.is_some() || self.mirostat_eta.is_some() {
            let m = c.mirostat.unwrap_or_default();
            let (tau, eta) = (self.mirostat_tau.unwrap_or(m.tau), self.mirostat_eta.unwrap_or(m.eta));
            c.mirostat = Some(Mirostat { tau, eta });
        }
        c.seed = self.seed.map(|s| s as u64).or(c.seed);
        let biases = self.logit_bias.iter().flatten();
        if biases.clone().count() > MAX_BIASES {
            let message = format!("there are more than {MAX_BIASES} tokens in it");
            return Err(ApiError::field("logit_bias", message));
        }
        for (id, &bias) in biases {
            let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocab).ok_or_else(|| {
                let shown: String = id.chars().take(40).collect();
                let message =
                    format!("`{}` is no token id of this model, which has {vocab}", shown.escape_debug());
                ApiError::field("logit_bias", message)
            })?;
            if !(-100.0..=100.0).contains(&bias) {
                let message = format!("the bias {bias} of token {id} is not between -100 and 100");
                return Err(ApiError::field("logit_bias", message));
            }
            c.logit_bias.insert(id, if bias == -100.0 { f32::NEG_INFINITY } else { bias });
        }
        c.validate()?;
        Ok(c)
    }
}

/// One text or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The stop strings of a request, besides the template's.
///
/// # Errors
/// Too many, or an empty one.
pub fn stops(given: Option<OneOrMany>) -> ApiResult<Vec<String>> {
    let strings = match given {
        None => Vec::new(),
        Some(OneOrMany::One(s)) => vec![s],
        Some(OneOrMany::Many(all)) => all,
    };
    if strings.len() > MAX_STOPS {
        let message = format!("there are {} stop strings: at most {MAX_STOPS} are taken", strings.len());
        return Err(ApiError::field("stop", message));
    }
    if strings.iter().map(String::len).sum::<usize>() > MAX_STOP_BYTES {
        let message = format!("the stop strings have more than {MAX_STOP_BYTES} bytes together");
        return Err(ApiError::field("stop", message));
    }
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::field(
            "stop",
            "a stop string is empty: it would stop every reply before its first byte",
        ));
    }
    Ok(strings)
}

/// Fields of vLLM's API that change what a reply is: one is here, the others are refused where they ask for anything.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct OfVllm {
    /// Token ids that end a reply; their text is not part of it.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Not here.
    #[schemars(skip)]
    pub min_tokens: Option<Value>,
    /// Not here.
    #[schemars(skip)]
    pub ignore_eos: Option<Value>,
    /// Not here.
    #[schemars(skip)]
    pub prompt_logprobs: Option<Value>,
}

impl OfVllm {
    /// The token ids that end a reply of a model of `vocab` tokens, once nothing else is asked for.
    ///
    /// # Errors
    /// A field that is not here; an id that the model has not.
    pub fn stop_tokens(&self, vocab: usize) -> ApiResult<Vec<u32>> {
        let asked = |v: &Option<Value>, usual: Value| v.as_ref().is_some_and(|v| !v.is_null() && *v != usual);
        let echo = "ask /v1/completions with `echo` and `logprobs`";
        refuse(&[
            ("min_tokens", asked(&self.min_tokens, 0.into()), "a reply ends where the model ends it"),
            ("ignore_eos", asked(&self.ignore_eos, false.into()), "a reply ends where the model ends it"),
            ("prompt_logprobs", asked(&self.prompt_logprobs, Value::Null), echo),
        ])?;
        let ids = self.stop_token_ids.clone().unwrap_or_default();
        if ids.len() > MAX_STOP_TOKENS {
            let message = format!("there are {} token ids: at most {MAX_STOP_TOKENS} are taken", ids.len());
            return Err(ApiError::field("stop_token_ids", message));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            let message = format!("{id} is no token id of this model, which has {vocab}");
            return Err(ApiError::field("stop_token_ids", message));
        }
        Ok(ids)
    }
}

/// Refuses fields that ask for what is not here, when they are given.
///
/// # Errors
/// One is.
pub fn refuse(fields: &[(&str, bool, &str)]) -> ApiResult<()> {
    match fields.iter().find(|(_, given, _)| *given) {
        Some((name, _, why)) => Err(ApiError::unsupported(name, format!("`{name}` is not supported: {why}"))),
        None => Ok(()),
    }
}

/// What a stream tells besides.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct StreamOptions {
    /// Tokens, in a chunk of their own at the end.
    pub include_usage: Option<bool>,
}

/// Whether a stream tells its tokens at the end.
///
/// # Errors
/// Options of a stream for what is none.
pub fn include_usage(options: Option<&StreamOptions>, stream: bool) -> ApiResult<bool> {
    match options {
        Some(_) if !stream => {
            Err(ApiError::field("stream_options", "stream_options needs `stream` to be true"))
        }
        options => Ok(options.and_then(|o| o.include_usage).unwrap_or(false)),
    }
}

/// The number of choices.
///
/// # Errors
/// 0, or too many.
pub fn choices(n: Option<u32>, param: &str) -> ApiResult<u32> {
    match n.unwrap_or(1) {
        n @ 1..=MAX_N => Ok(n),
        n => Err(ApiError::field(param, format!("{param} is {n}: it must be between 1 and {MAX_N}"))),
    }
}

/// How the reply is to be written.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// As the model likes.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema {
        /// The schema with its name.
        json_schema: NamedSchema,
    },
    /// Text that a regular expression matches (beyond OpenAI's).
    Regex {
        /// It.
        regex: String,
    },
    /// Text of a grammar in llguidance's variant of Lark (beyond OpenAI's).
    Grammar {
        /// It.
        grammar: String,
    },
}

/// A schema as OpenAI's API names it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct NamedSchema {
    /// A name for people.
    pub name: Option<String>,
    /// The schema.
    pub schema: Option<Value>,
    /// Schemas are always kept to.
    pub strict: Option<bool>,
}

/// Grammars as vLLM's API names them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct Guided {
    /// JSON that this schema accepts, which may be written as a text.
    pub guided_json: Option<Value>,
    /// Text that this regular expression matches.
    pub guided_regex: Option<String>,
    /// One of these texts.
    pub guided_choice: Option<Vec<String>>,
    /// Text of this grammar (Lark).
    pub guided_grammar: Option<String>,
    /// The same under its newer name.
    pub structured_outputs: Option<StructuredOutputs>,
}

/// A grammar as newer versions of vLLM's API name it: one of these.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct StructuredOutputs {
    /// JSON that this schema accepts, which may be written as a text.
    pub json: Option<Value>,
    /// Text that this regular expression matches.
    pub regex: Option<String>,
    /// One of these texts.
    pub choice: Option<Vec<String>>,
    /// Text of this grammar (Lark).
    pub grammar: Option<String>,
    /// Any JSON object.
    pub json_object: Option<bool>,
    /// Not here.
    #[schemars(skip)]
    pub structural_tag: Option<Value>,
}

impl Guided {
    /// The grammars that are given, under either name.
    fn grammars(&self) -> ApiResult<Vec<Grammar>> {
        let older = (&self.guided_json, &self.guided_regex, &self.guided_choice, &self.guided_grammar);
        let mut all = Vec::new();
        named(older, ["guided_json", "guided_choice"], &mut all)?;
        let Some(newer) = &self.structured_outputs else { return Ok(all) };
        let tag = newer.structural_tag.as_ref().is_some_and(|v| !v.is_null());
        refuse(&[(
            "structured_outputs",
            tag,
            "of structural tags; give `json`, `regex`, `choice` or `grammar`",
        )])?;
        let before = all.len();
        let param = "structured_outputs";
        named((&newer.json, &newer.regex, &newer.choice, &newer.grammar), [param; 2], &mut all)?;
        if newer.json_object == Some(true) {
            all.push(Grammar::json_object());
        }
        if all.len() == before {
            let message = "it names no grammar: give `json`, `regex`, `choice`, `grammar` or `json_object`";
            return Err(ApiError::field(param, message));
        }
        Ok(all)
    }
}

type Named<'a> = (&'a Option<Value>, &'a Option<String>, &'a Option<Vec<String>>, &'a Option<String>);

/// Grammars by their kind; `params` are the fields that a wrong schema and wrong texts are in.
fn named((json, regex, choice, lark): Named<'_>, params: [&str; 2], all: &mut Vec<Grammar>) -> ApiResult<()> {
    match json {
        Some(Value::String(text)) => {
            let schema = serde_json::from_str(text);
            let schema =
                schema.map_err(|e| ApiError::field(params[0], format!("its text is no JSON: {e}")))?;
            all.push(Grammar::JsonSchema(schema));
        }
        Some(schema) if !schema.is_null() => all.push(Grammar::JsonSchema(schema.clone())),
        _ => {}
    }
    all.extend(regex.clone().map(Grammar::Regex));
    if let Some(texts) = choice {
        if texts.is_empty() || texts.iter().any(String::is_empty) {
            return Err(ApiError::field(params[1], "a choice needs texts that are not empty"));
        }
        all.push(Grammar::choice(texts));
    }
    all.extend(lark.clone().map(Grammar::Lark));
    Ok(())
}

/// The grammar that a request asks for.
///
/// # Errors
/// More than one, or one that says nothing.
pub fn grammar(format: Option<&ResponseFormat>, guided: &Guided) -> ApiResult<Option<Grammar>> {
    let by_format = match format {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some(Grammar::json_object()),
        Some(ResponseFormat::JsonSchema { json_schema }) => match &json_schema.schema {
            Some(schema) => Some(Grammar::JsonSchema(schema.clone())),
            None => return Err(ApiError::field("response_format", "`json_schema` has no `schema`")),
        },
        Some(ResponseFormat::Regex { regex }) => Some(Grammar::Regex(regex.clone())),
        Some(ResponseFormat::Grammar { grammar }) => Some(Grammar::Lark(grammar.clone())),
    };
    let mut all = by_format.into_iter().chain(guided.grammars()?);
    let first = all.next();
    match all.next() {
        Some(_) => {
            Err(ApiError::field("response_format", "a reply can follow one grammar, not several at once"))
        }
        None => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(v: Value) -> ApiResult<Option<Grammar>> {
        grammar(None, &serde_json::from_value(v).unwrap())
    }

    #[test]
    fn grammars_have_two_names_and_schemas_may_be_texts() {
        let schema = json!({"type": "integer"});
        let whole = Grammar::JsonSchema(schema.clone());
        for v in [
            json!({"guided_json": schema}),
            json!({"guided_json": schema.to_string()}),
            json!({"structured_outputs": {"json": schema}}),
            json!({"structured_outputs": {"json": schema.to_string(), "regex": null}}),
        ] {
            assert_eq!(asked(v).unwrap(), Some(whole.clone()));
        }
        assert_eq!(
            asked(json!({"structured_outputs": {"choice": ["a", "b"]}})).unwrap(),
            asked(json!({"guided_choice": ["a", "b"]})).unwrap()
        );
        assert_eq!(asked(json!({"structured_outputs": null})).unwrap(), None);
        for (v, param) in [
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"choice": []}}), "structured_outputs"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs"),
            (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "response_format"),
        ] {
            assert_eq!(asked(v).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn what_is_not_here_is_refused_where_it_asks_for_anything() {
        let tokens = |v: Value| serde_json::from_value::<OfVllm>(v).unwrap().stop_tokens(256);
        let usual = json!({"min_tokens": 0, "ignore_eos": false, "prompt_logprobs": null});
        assert!(tokens(usual).unwrap().is_empty());
        assert_eq!(tokens(json!({"stop_token_ids": [7, 255]})).unwrap(), [7, 255]);
        for (field, value) in [
            ("min_tokens", json!(3)),
            ("ignore_eos", json!(true)),
            ("prompt_logprobs", json!(0)),
            ("stop_token_ids", json!([256])),
        ] {
            let e = tokens(json!({field: value})).unwrap_err();
            assert_eq!(e.param.as_deref(), Some(field));
        }
    }
}
