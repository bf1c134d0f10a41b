//! Hugging Face `tokenizer.json` files: what of them is implemented, checked and brought into plain form. Everything
//! that would change the ids and is not implemented is refused by name.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::trie::{MAX_KEY, VALUE_LIMIT};

use super::merge::{Merge, Merges};

/// A checked file.
pub(super) struct Spec {
    /// Bytes of each id.
    pub(super) tokens: Vec<Option<Box<[u8]>>>,
    /// Ids of the single bytes. Vocabularies often lack the 13 bytes that no UTF-8 has.
    pub(super) byte_ids: [Option<u32>; 256],
    pub(super) merges: Merges,
    /// Take a word that is a token as it is, without merging. Empty if the file does not ask for it.
    pub(super) whole_words: HashMap<Box<[u8]>, u32>,
    pub(super) added: Vec<Added>,
    pub(super) nfc: bool,
}

/// A token that is found in the text before anything is split or merged.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    /// Found in the normalised text rather than in the text as given.
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Head {
    model: HeadModel,
}

#[derive(Deserialize)]
struct HeadModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Pair>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Joined(String),
    Split(String, String),
}

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::TokenizerJson(what.into()))
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("without a type")
}

impl Spec {
    pub(super) fn parse(file: &[u8]) -> Result<Spec> {
        let unreadable = |e: serde_json::Error| Error::TokenizerJson(format!("it cannot be read: {e}"));
        // Other model types hold other fields: ask for the type before the rest is taken apart.
        let head: Head = serde_json::from_slice(file).map_err(unreadable)?;
        if let Some(kind) = head.model.kind.filter(|kind| kind != "BPE") {
            return refuse(format!("its model is of type {kind}; only byte-level BPE is implemented"));
        }
        let file: File = serde_json::from_slice(file).map_err(unreadable)?;
        let nfc = normalizer(&file.normalizer)?;
        pre_tokenizer(&file.pre_tokenizer)?;
        post_processor(&file.post_processor)?;
        if kind(&file.decoder) != "ByteLevel" {
            return refuse(format!("its decoder is {}; only ByteLevel is implemented", kind(&file.decoder)));
        }
        if !file.truncation.is_null() || !file.padding.is_null() {
            return refuse("it truncates or pads, which is not implemented (set both to null)");
        }
        model_options(&file.model)?;
        tables(file.model, file.added_tokens, nfc)
    }
}

/// Whether the text is brought into NFC.
fn normalizer(value: &Value) -> Result<bool> {
    match (value, kind(value)) {
        (Value::Null, _) => Ok(false),
        (_, "NFC") => Ok(true),
        (_, other) => refuse(format!("its normalizer is {other}; only NFC or none is implemented")),
    }
}

fn pre_tokenizer(value: &Value) -> Result<()> {
    let flag = |name: &str, default| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    match kind(value) {
        "ByteLevel" if flag("add_prefix_space", true) => refuse(
            "its ByteLevel pre-tokenizer adds a blank before the text (add_prefix_space), which is not implemented",
        ),
        "ByteLevel" if !flag("use_regex", true) => refuse(
            "its ByteLevel pre-tokenizer does not split words (use_regex is false), which is not implemented",
        ),
        "ByteLevel" => Ok(()),
        other => refuse(format!("its pre-tokenizer is {other}; only ByteLevel is implemented")),
    }
}

/// Only post-processors that leave the ids as they are.
fn post_processor(value: &Value) -> Result<()> {
    match (value, kind(value)) {
        (Value::Null, _) | (_, "ByteLevel") => Ok(()),
        (_, "TemplateProcessing") => {
            let pieces = value.get("single").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            if matches!(pieces, [one] if one.get("Sequence").is_some()) {
                return Ok(());
            }
            refuse(
                "its post-processor adds tokens around the text (TemplateProcessing), which is not implemented",
            )
        }
        (_, other) => refuse(format!("its post-processor is {other}; only ByteLevel or none is implemented")),
    }
}

fn model_options(model: &Model) -> Result<()> {
    if model.dropout.is_some_and(|p| p != 0.0) {
        return refuse("its model drops merges at random (dropout), which is not implemented");
    }
    let present = |affix: &Option<String>| affix.as_ref().is_some_and(|a| !a.is_empty());
    if present(&model.continuing_subword_prefix) || present(&model.end_of_word_suffix) {
        return refuse(
            "its model marks word parts (continuing_subword_prefix or end_of_word_suffix), which is not implemented",
        );
    }
    if model.byte_fallback {
        return refuse("its model falls back to byte tokens (byte_fallback), which is not implemented");
    }
    Ok(())
}

fn tables(model: Model, added: Vec<Added>, nfc: bool) -> Result<Spec> {
    let alphabet = alphabet();
    let byte_of: HashMap<char, u8> = (0..=255).map(|b: u8| (alphabet[usize::from(b)], b)).collect();
    let mut tokens: Vec<Option<Box<[u8]>>> = Vec::new();
    for (text, &id) in &model.vocab {
        // A token with other characters stands for its own UTF-8.
        let bytes: Option<Box<[u8]>> = text.chars().map(|c| byte_of.get(&c).copied()).collect();
        let bytes = bytes.unwrap_or_else(|| text.as_bytes().into());
        put(&mut tokens, id, bytes)?;
    }
    let vocab = |text: &str| model.vocab.get(text).copied();
    let byte_ids: [Option<u32>; 256] =
        std::array::from_fn(|byte| vocab(alphabet[byte].encode_utf8(&mut [0; 4])));
    for (byte, id) in byte_ids.iter().enumerate() {
        if id.is_none() && !matches!(byte, 0xC0 | 0xC1 | 0xF5..) {
            return refuse(format!(
                "its vocabulary has no token for the single byte 0x{byte:02X} ({:?}), so it is not byte-level",
                alphabet[byte]
            ));
        }
    }
    let mut merges = Merges::with_capacity(model.merges.len());
    for (rank, pair) in (0..).zip(&model.merges) {
        let (left, right) = match pair {
            Pair::Split(left, right) => (left.as_str(), right.as_str()),
            Pair::Joined(text) => match text.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => (left, right),
                _ => return refuse(format!("merge {rank} is not two tokens with a blank between: {text:?}")),
            },
        };
        let whole = format!("{left}{right}");
        match (vocab(left), vocab(right), vocab(&whole)) {
            (Some(left), Some(right), Some(id)) => merges.insert(left, right, Merge { rank, id }),
            _ => {
                return refuse(format!(
                    "merge {rank} ({left:?} and {right:?}) uses tokens that the vocabulary lacks"
                ));
            }
        }
    }
    let mut whole_words = HashMap::new();
    if model.ignore_merges {
        whole_words = (0..).zip(&tokens).filter_map(|(id, t)| Some((t.clone()?, id))).collect();
    }
    for token in &added {
        let Added { id, content, single_word, lstrip, rstrip, .. } = token;
        if *single_word || *lstrip || *rstrip {
            return refuse(format!(
                "its added token {content:?} has single_word, lstrip or rstrip set, which is not implemented"
            ));
        }
        if content.is_empty() || content.len() > MAX_KEY {
            return refuse(format!(
                "its added token with id {id} has {} bytes (1 to {MAX_KEY} are possible)",
                content.len()
            ));
        }
        match vocab(content) {
            Some(in_vocab) if in_vocab == *id => tokens[*id as usize] = Some(content.as_bytes().into()),
            Some(in_vocab) => {
                return refuse(format!(
                    "its added token {content:?} has id {id}, but {in_vocab} in the vocabulary"
                ));
            }
            None => put(&mut tokens, *id, content.as_bytes().into())?,
        }
    }
    Ok(Spec { tokens, byte_ids, merges, whole_words, added, nfc })
}

fn put(tokens: &mut Vec<Option<Box<[u8]>>>, id: u32, bytes: Box<[u8]>) -> Result<()> {
    // The added tokens' trie stores id + 1.
    if id >= VALUE_LIMIT - 1 {
        return refuse(format!("the id {id} is above the highest possible, {}", VALUE_LIMIT - 2));
    }
    let index = id as usize;
    if index >= tokens.len() {
        tokens.resize(index + 1, None);
    }
    if tokens[index].is_some() {
        return refuse(format!("the id {id} is given to two tokens"));
    }
    tokens[index] = Some(bytes);
    Ok(())
}

/// The characters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves, the others
/// for U+0100 and up, in order.
fn alphabet() -> [char; 256] {
    let mut spare = 0x100..;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte as u8),
        _ => spare.next().and_then(char::from_u32).unwrap_or('\u{FFFD}'),
    })
}
