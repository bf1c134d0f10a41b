//! Replies that must follow a grammar: a JSON schema, a regular expression or a context-free grammar, on the bytes of
//! tokens, by the `llguidance` engine.
//!
//! A [`Grammars`] is made once for a tokenizer; it compiles a [`Grammar`] into a [`Constraint`], which says before each
//! token which ones may come, and which ones must come without a choice: these are fed together, not one by one.

use crate::{Error, Result};
use hawfinch_tokenizer::Tokenizer;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// Bytes of a grammar's text at most.
const MAX_SOURCE: usize = 128 << 10;
/// Stack of the thread that compiles one: the engine descends into rules that use rules as deep as they go, and a source of that
/// many bytes can go some ten thousand deep. (Pages that it does not reach are never there.)
const STACK: usize = 1 << 30;

/// What a reply must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema accepts (draft 2020-12, without remote references).
    JsonSchema(Value),
    /// Text that a regular expression matches whole (the syntax of Rust's `regex` crate).
    Regex(String),
    /// Text of a context-free grammar in llguidance's variant of Lark; its first rule is `start`.
    Lark(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Grammar::JsonSchema(json!({"type": "object"}))
    }

    /// One of these texts.
    pub fn choice<S: AsRef<str>>(texts: &[S]) -> Self {
        let quoted: Vec<String> = texts.iter().map(|t| json!(t.as_ref()).to_string()).collect();
        Grammar::Lark(format!("start: {}", quoted.join(" | ")))
    }

    /// The kind, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
        }
    }

    fn body(&self) -> GrammarWithLexer {
        match self {
            Grammar::JsonSchema(schema) => {
                let mut schema = match schema {
                    Value::Bool(true) => json!({}),
                    other => other.clone(),
                };
                if let Value::Object(map) = &mut schema {
                    // One way to write each value: no model can lose itself in white space, and more is forced.
                    map.entry("x-guidance").or_insert_with(
                        || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
                    );
                }
                GrammarWithLexer::from_json_schema(schema)
            }
            Grammar::Regex(text) => GrammarWithLexer::from_regex(text),
            Grammar::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
        }
    }
}

/// A tokenizer as the grammar engine sees it.
struct Environment {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }
    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.tokenizer.encode(text)
    }
    fn tokenize_is_canonical(&self) -> bool {
        true
    }
}

/// Compiles grammars for one tokenizer. Cloning is cheap.
#[derive(Clone)]
pub struct Grammars {
    factory: Arc<ParserFactory>,
    /// The tokens that a model can choose.
    vocab: usize,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model of `vocab` logits.
    ///
    /// # Errors
    /// The vocabulary is one that the engine cannot work with.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let failed = |e: String| Error::Grammar { kind: "grammar", reason: e };
        // One id more for the end of a text, for models that have none.
        let mut words: Vec<Vec<u8>> =
            (0..vocab as u32).map(|id| tokenizer.token_bytes(id).unwrap_or_default().to_vec()).collect();
        (0..vocab as u32).filter(|&id| tokenizer.is_special(id)).for_each(|id| words[id as usize].clear());
        let end = tokenizer.eos().unwrap_or(vocab as u32);
        words.resize(words.len().max(end as usize + 1), Vec::new());
        let build = || {
            let info = TokRxInfo::new(words.len() as u32, end);
            let trie = TokTrie::from(&info, &words);
            let environment: TokEnv = Arc::new(Environment { trie, tokenizer: tokenizer.clone() });
            let capabilities = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&environment, capabilities, &slices)?;
            *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
            factory.quiet();
            Ok::<_, anyhow::Error>(factory)
        };
        let factory = caught(build)?.map_err(|e| failed(in_one_line(&e)))?;
        Ok(Self { factory: Arc::new(factory), vocab })
    }

    /// Compiles a grammar; with `space` a reply may begin with one space, as replies of World models do.
    ///
    /// # Errors
    /// It does not parse, asks for what is not supported, is too large, or nothing can ever satisfy it.
    pub fn compile(&self, grammar: &Grammar, space: bool) -> Result<Constraint> {
        let failed = |reason: String| Error::Grammar { kind: grammar.kind(), reason };
        let size = match grammar {
            Grammar::JsonSchema(schema) => schema.to_string().len(),
            Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
        };
        if size > MAX_SOURCE {
            return Err(failed(format!("it has {size} bytes, at most {MAX_SOURCE} are taken")));
        }
        let mut body = grammar.body();
        body.name = Some("body".into());
        let mut whole = TopLevelGrammar::from_grammar(body);
        if space {
            let outer = GrammarWithLexer::from_lark("start: SPACE? @body\nSPACE: \" \"\n".into());
            whole.grammars.insert(0, outer);
        }
        let make = || {
            let made = caught(AssertUnwindSafe(|| self.factory.create_parser(whole)))?;
            let matcher = Matcher::new(made);
            if let Some(reason) = matcher.get_error() {
                return Err(failed(reason.split_whitespace().collect::<Vec<_>>().join(" ")));
            }
            let mut constraint =
                Constraint { matcher, mask: SimpleVob::new(), vocab: self.vocab, kind: grammar.kind() };
            // What cannot begin is told now, not when the model has been asked.
            let ends = matches!(constraint.allowed()?, Allowed::End);
            if ends && !constraint.matcher.is_accepting().unwrap_or(false) {
                return Err(failed("no text can satisfy it".into()));
            }
            Ok(constraint)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK);
            let thread = thread
                .spawn_scoped(scope, make)
                .map_err(|e| failed(format!("there is no thread to read it: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(failed("the grammar engine broke on it".into())))
        })
    }
}

/// Which tokens may come next.
#[derive(Debug)]
pub enum Allowed<'a> {
    /// Those whose bit is set, as [`crate::Sampler::sample_within`] takes them.
    Tokens(&'a [u32]),
    /// None: the text is complete.
    End,
}

/// Where a reply stands in its grammar.
pub struct Constraint {
    matcher: Matcher,
    mask: SimpleVob,
    vocab: usize,
    kind: &'static str,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Clone for Constraint {
    /// Independent of the first: nothing is shared that either changes.
    fn clone(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            mask: SimpleVob::new(),
            vocab: self.vocab,
            kind: self.kind,
        }
    }
}

impl Constraint {
    fn failed(&self, reason: impl ToString) -> Error {
        let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Error::Grammar { kind: self.kind, reason }
    }

    /// The tokens that may come next, the one that ends a text among them where it may end.
    ///
    /// # Errors
    /// The grammar has become too complex, or no token of the vocabulary can go on.
    pub fn allowed(&mut self) -> Result<Allowed<'_>> {
        if self.matcher.is_stopped() {
            return match self.matcher.get_error() {
                Some(reason) => Err(self.failed(reason)),
                None => Ok(Allowed::End),
            };
        }
        let matcher = &mut self.matcher;
        let mask = caught(AssertUnwindSafe(|| matcher.compute_mask()))?;
        self.mask = mask.map_err(|e| self.failed(in_one_line(&e)))?;
        let words = self.mask.as_slice();
        let whole = words.iter().take(self.vocab / 32).any(|w| *w != 0);
        let part = words.get(self.vocab / 32).is_some_and(|w| w & ((1u32 << (self.vocab % 32)) - 1) != 0);
        if whole || part {
            return Ok(Allowed::Tokens(self.mask.as_slice()));
        }
        match self.matcher.is_accepting() {
            Ok(true) => Ok(Allowed::End),
            _ => Err(self.failed("no token can go on from here")),
        }
    }

    /// Takes a token that was allowed.
    ///
    /// # Errors
    /// It was not.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        let matcher = &mut self.matcher;
        caught(AssertUnwindSafe(|| matcher.consume_token(id)))?.map_err(|e| self.failed(in_one_line(&e)))
    }

    /// The tokens that must come next whatever the model says, taken at once.
    pub fn forced(&mut self) -> Vec<u32> {
        let matcher = &mut self.matcher;
        let mut tokens = caught(AssertUnwindSafe(|| matcher.consume_ff_tokens())).unwrap_or_default();
        tokens.retain(|&id| (id as usize) < self.vocab);
        tokens
    }
}

/// The engine reads what strangers write: a panic in it is an error of this request.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| Error::Grammar { kind: "grammar", reason: "the grammar engine broke on it".into() })
}

fn in_one_line(e: &anyhow::Error) -> String {
    format!("{e:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplerConfig, Uncounted};

    /// What a model of random logits writes under a grammar, and how many tokens it chose.
    fn write(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64) -> (String, usize, usize) {
        let vocab = tokenizer.vocab_size();
        let grammars = Grammars::new(tokenizer, vocab).unwrap();
        let mut c = grammars.compile(grammar, true).unwrap();
        let config = SamplerConfig { seed: Some(seed), ..SamplerConfig::pure() };
        let mut sampler = Sampler::new(config, Uncounted::none()).unwrap();
        let mut rng = hawfinch_model::Rng::new(seed);
        let (mut text, mut chosen, mut forced) = (Vec::new(), 0, 0);
        for _ in 0..400 {
            let logits: Vec<f32> = (0..vocab).map(|_| rng.next_f64() as f32 * 3.0).collect();
            let Allowed::Tokens(allowed) = c.allowed().unwrap() else { break };
            let id = sampler.sample_within(&logits, Some(allowed)).unwrap().id;
            chosen += 1;
            if Some(id) == tokenizer.eos() {
                break;
            }
            c.accept(id).unwrap();
            text.extend_from_slice(tokenizer.token_bytes(id).unwrap());
            for id in c.forced() {
                forced += 1;
                text.extend_from_slice(tokenizer.token_bytes(id).unwrap());
            }
        }
        (String::from_utf8(text).unwrap(), chosen, forced)
    }

    fn person() -> Grammar {
        Grammar::JsonSchema(json!({
            "type": "object",
            "properties": {
                "first_name": {"type": "string", "maxLength": 4},
                "favourite_colour": {"enum": ["red", "grün", "青"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 150}
            },
            "required": ["first_name", "favourite_colour", "age"],
            "additionalProperties": false
        }))
    }

    #[test]
    fn random_models_write_what_the_schema_accepts() {
        for tokenizer in [Tokenizer::world(), Tokenizer::bytes()] {
            for seed in 0..5 {
                let (text, chosen, forced) = write(&tokenizer, &person(), seed);
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
                assert!(["red", "grün", "青"].contains(&value["favourite_colour"].as_str().unwrap()));
                assert!(value["age"].as_u64().unwrap() <= 150 && value["first_name"].is_string());
                assert!(forced > 4, "{forced} of {} tokens were forced", chosen + forced);
            }
        }
    }

    #[test]
    fn regular_expressions_choices_and_grammars() {
        let tokenizer = Tokenizer::world();
        let date = Grammar::Regex("[0-9]{4}-[01][0-9]".into());
        let (text, ..) = write(&tokenizer, &date, 1);
        assert!(text.trim_start().len() == 7 && text.trim_start().as_bytes()[4] == b'-', "{text:?}");
        let (text, ..) = write(&tokenizer, &Grammar::choice(&["ja", "nein \"doch\"", "日本"]), 2);
        assert!(["ja", "nein \"doch\"", "日本"].contains(&text.trim_start()), "{text:?}");
        let sums = "start: NUMBER (\"+\" NUMBER){1,3}\nNUMBER: /[0-9]{1,3}/\n";
        let (text, ..) = write(&tokenizer, &Grammar::Lark(sums.into()), 3);
        assert!(text.trim_start().split('+').all(|n| n.parse::<u32>().is_ok()), "{text:?}");
    }

    #[test]
    fn what_cannot_be_is_said() {
        let grammars = Grammars::new(&Tokenizer::world(), 65536).unwrap();
        let says = |g: &Grammar| grammars.compile(g, true).unwrap_err().to_string();
        assert!(says(&Grammar::Regex("(".into())).contains("regular expression"));
        assert!(says(&Grammar::Lark("start: nothing_of_that_name".into())).contains("grammar"));
        assert!(says(&Grammar::JsonSchema(json!({"type": "flower"}))).contains("JSON schema"));
        assert!(says(&Grammar::JsonSchema(json!({"enum": []}))).contains("JSON schema"));
        assert!(says(&Grammar::JsonSchema(json!(false))).contains("JSON schema"));
        let never = json!({"type": "integer", "minimum": 5, "maximum": 3});
        assert!(says(&Grammar::JsonSchema(never)).contains("JSON schema"));
        // Whatever goes very deep is compiled or refused.
        let chain: String = (0..3000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
        let _ = grammars.compile(&Grammar::Lark(format!("start: r0\n{chain}r3000: \"x\"")), true);
        let tokens: String = (0..3000).map(|i| format!("T{i}: T{}\n", i + 1)).collect();
        let _ = grammars.compile(&Grammar::Lark(format!("start: T0\n{tokens}T3000: \"x\"")), true);
        let mut defs = serde_json::Map::new();
        for i in 0..1500 {
            let next =
                json!({"type": "object", "properties": {"x": {"$ref": format!("#/$defs/a{}", i + 1)}}});
            defs.insert(format!("a{i}"), next);
        }
        defs.insert("a1500".into(), json!({"type": "string"}));
        let _ = grammars.compile(&Grammar::JsonSchema(json!({"$ref": "#/$defs/a0", "$defs": defs})), true);
        let deep = format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000));
        let _ = grammars.compile(&Grammar::Regex(deep), true);
        let large = "a".repeat(MAX_SOURCE + 1);
        assert!(says(&Grammar::Regex(large)).contains("bytes"));
    }
}
