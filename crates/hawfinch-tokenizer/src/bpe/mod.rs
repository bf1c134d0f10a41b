//! Byte-level BPE as GPT-NeoX 20B uses it (RWKV-4 Pile, RWKV-7 Pile), from a Hugging Face `tokenizer.json`.
//!
//! In order: added tokens that are matched as given (`<|endoftext|>`); Unicode normalisation (NFC) of what lies
//! between; added tokens that are matched normalised (runs of blanks); the GPT-2 split into words; the merges of each
//! word's bytes. The leftmost added token wins, the longest of those that begin at one place.
//!
//! Normalisation and the classes of letters and numbers follow the Unicode version of the crates `unicode-normalization`
//! and `unicode-properties`. The Python package `tokenizers` has older tables, so ids may differ where a text uses
//! combining marks that are newer than those (of 7,020 texts, half of them random characters, three did).

mod json;
mod merge;
mod split;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::error::{Error, Result};
use crate::trie::Trie;
use json::{Added, Spec};
use merge::Mix;

/// A byte-level BPE tokenizer.
pub struct Bpe {
    spec: Spec,
    /// Added tokens matched in the text as given, and in the normalised text.
    raw: Finder,
    normalized: Finder,
    name: &'static str,
}

/// A part of a text on the way to ids.
enum Piece<'t> {
    Token(u32),
    Text(Cow<'t, str>),
    /// Not UTF-8.
    Bytes(&'t [u8]),
}

impl Bpe {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::TokenizerJson`] says what is malformed, contradictory or not implemented. Implemented are: model `BPE`
    /// (merges as `"a b"` or `["a", "b"]`, `ignore_merges`) whose vocabulary has all 256 byte letters; normalizer `NFC`
    /// or none; pre-tokenizer and decoder `ByteLevel`; added tokens without strip options; post-processors that add
    /// nothing.
    pub fn from_tokenizer_json(file: &[u8]) -> Result<Bpe> {
        let spec = Spec::parse(file)?;
        let raw = Finder::new(spec.added.iter().filter(|a| !a.normalized), false)?;
        let normalized = Finder::new(spec.added.iter().filter(|a| a.normalized), spec.nfc)?;
        let neox = spec.tokens.len() == 50_277
            && matches!(&spec.tokens[50_254], Some(blanks) if **blanks == [b' '; 24])
            && matches!(&spec.tokens[0], Some(end) if **end == *b"<|endoftext|>");
        let name = if neox { "GPT-NeoX 20B" } else { "byte-level BPE" };
        Ok(Bpe { spec, raw, normalized, name })
    }

    /// `GPT-NeoX 20B`, or `byte-level BPE` for other vocabularies.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Highest id + 1 (50,277 for GPT-NeoX 20B; models have up to 50,304 rows).
    pub fn vocab_size(&self) -> usize {
        self.spec.tokens.len()
    }

    /// The id that ends a text: the special token `<|endoftext|>` or, where there is none, `</s>`.
    pub fn eos(&self) -> Option<u32> {
        let special = |text| self.spec.added.iter().find(|a| a.special && a.content == text).map(|a| a.id);
        special("<|endoftext|>").or_else(|| special("</s>"))
    }

    /// Whether the id is a special token of the file (`<|endoftext|>`, `<|padding|>`).
    pub fn is_special(&self, id: u32) -> bool {
        self.spec.added.iter().any(|a| a.special && a.id == id)
    }

    /// The ids of a text. Bytes that are not UTF-8 are merged by themselves, each stretch as one word, so that every
    /// input has ids; a byte that the vocabulary lacks (no UTF-8 has it: 0xC0, 0xC1, 0xF5 to 0xFF in GPT-NeoX 20B) is
    /// encoded as U+FFFD. Special tokens written out in the text become their ids. (NFC may change the text: then
    /// decoding gives the normalised one.)
    pub fn encode(&self, text: &[u8]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of a text to `ids`.
    pub fn encode_into(&self, text: &[u8], ids: &mut Vec<u32>) {
        let mut pieces = Vec::new();
        for chunk in text.utf8_chunks() {
            self.raw.split(chunk.valid(), &mut pieces, |text, pieces| {
                match if self.spec.nfc { nfc(text) } else { Cow::Borrowed(text) } {
                    Cow::Borrowed(text) => {
                        self.normalized
                            .split(text, pieces, |text, pieces| pieces.push(Piece::Text(text.into())));
                    }
                    Cow::Owned(text) => {
                        let mut owned = Vec::new();
                        self.normalized
                            .split(&text, &mut owned, |t, owned| owned.push(Piece::Text(t.into())));
                        pieces.extend(owned.into_iter().map(Piece::into_owned));
                    }
                }
            });
            if !chunk.invalid().is_empty() {
                pieces.push(Piece::Bytes(chunk.invalid()));
            }
        }
        let mut words =
            Words { spec: &self.spec, seen: HashMap::with_hasher(Mix::default()), scratch: Vec::new() };
        for piece in &pieces {
            match piece {
                Piece::Token(id) => ids.push(*id),
                Piece::Text(text) => split::words(text).for_each(|word| words.encode(word.as_bytes(), ids)),
                Piece::Bytes(bytes) => words.merge(bytes, ids),
            }
        }
    }

    /// The bytes of a token (of an added token: its text); `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.spec.tokens.get(id as usize)?.as_deref()
    }

    /// The bytes of a text's ids, special tokens written out.
    ///
    /// # Errors
    /// [`Error::UndefinedId`] for an id without a token.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        crate::decode_with(ids, self.name, self.vocab_size(), |id| self.token_bytes(id))
    }
}

impl std::fmt::Debug for Bpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bpe").field("name", &self.name).field("vocab_size", &self.vocab_size()).finish()
    }
}

impl Piece<'_> {
    /// For pieces of a text that does not live on.
    fn into_owned<'t>(self) -> Piece<'t> {
        match self {
            Piece::Token(id) => Piece::Token(id),
            Piece::Text(text) => Piece::Text(Cow::Owned(text.into_owned())),
            Piece::Bytes(_) => unreachable!("splitting a str gives no bytes"),
        }
    }
}

fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
}

/// Encodes words and remembers those of this call.
struct Words<'a> {
    spec: &'a Spec,
    /// Where in the ids of this call a word was encoded before.
    seen: HashMap<&'a [u8], (usize, usize), Mix>,
    scratch: Vec<u32>,
}

impl<'a> Words<'a> {
    fn encode(&mut self, word: &'a [u8], ids: &mut Vec<u32>) {
        // Long words hardly come again; and the memory of one call has a bound.
        const LONGEST: usize = 64;
        const MOST: usize = 1 << 18;
        let start = ids.len();
        if let Some(&(from, to)) = self.seen.get(word) {
            ids.extend_from_within(from..to);
            return;
        }
        if let Some(&id) = self.spec.whole_words.get(word) {
            ids.push(id);
        } else {
            self.merge(word, ids);
        }
        if word.len() <= LONGEST && self.seen.len() < MOST {
            self.seen.insert(word, (start, ids.len()));
        }
    }

    /// The merges of any bytes.
    fn merge(&mut self, word: &[u8], ids: &mut Vec<u32>) {
        let id = |byte: u8| self.spec.byte_ids[usize::from(byte)];
        self.scratch.clear();
        for &byte in word {
            match id(byte) {
                Some(id) => self.scratch.push(id),
                None => self.scratch.extend("\u{FFFD}".bytes().filter_map(id)),
            }
        }
        self.spec.merges.apply(&mut self.scratch);
        ids.extend_from_slice(&self.scratch);
    }
}

/// Finds added tokens in a text.
struct Finder {
    /// Values are id + 1.
    trie: Trie,
    /// Whether a token begins with this byte.
    first: [bool; 256],
}

impl Finder {
    fn new<'a>(added: impl Iterator<Item = &'a Added>, normalize: bool) -> Result<Finder> {
        let texts: Vec<(Cow<'_, str>, u32)> = added
            .map(|a| (if normalize { nfc(&a.content) } else { Cow::Borrowed(a.content.as_str()) }, a.id + 1))
            .collect();
        let mut keys: Vec<(&[u8], u32)> =
            texts.iter().map(|(text, value)| (text.as_bytes(), *value)).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find(|w| w[0].0 == w[1].0) {
            let text = twice[0].0.escape_ascii();
            return Err(Error::TokenizerJson(format!("its added token \"{text}\" appears twice")));
        }
        if keys.iter().any(|(key, _)| key.len() > crate::trie::MAX_KEY) {
            return Err(Error::TokenizerJson("an added token is too long when normalised".into()));
        }
        let mut first = [false; 256];
        for (key, _) in &keys {
            first[usize::from(key[0])] = true;
        }
        Ok(Finder { trie: Trie::build(&keys)?, first })
    }

    /// Pushes the added tokens of `text`, and hands on what lies between them.
    fn split<'t>(
        &self,
        text: &'t str,
        pieces: &mut Vec<Piece<'t>>,
        mut between: impl FnMut(&'t str, &mut Vec<Piece<'t>>),
    ) {
        let bytes = text.as_bytes();
        let (mut done, mut at) = (0, 0);
        while at < bytes.len() {
            if self.first[usize::from(bytes[at])]
                && let Some((value, len)) = self.trie.longest_prefix(&bytes[at..])
            {
                if done < at {
                    between(&text[done..at], pieces);
                }
                pieces.push(Piece::Token(value - 1));
                at += len;
                done = at;
            } else {
                at += 1;
            }
        }
        if done < text.len() {
            between(&text[done..], pieces);
        }
    }
}
