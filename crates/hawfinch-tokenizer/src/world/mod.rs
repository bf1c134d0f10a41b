//! The World tokenizer: greedy longest match of a vocabulary of byte strings.
//!
//! No normalisation, no pre-tokenisation, no special tokens: at each place of the text the longest entry of the
//! vocabulary is taken (specification: the reference tokenizer of the RWKV World models). Every single byte is an
//! entry, so encoding cannot fail.

mod cut;
mod join;
mod lanes;
mod parallel;
mod parse;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::trie::{Node, Trie};
use parse::Tokens;

/// The vocabulary of the World models, `rwkv_vocab_v20230424` (see `data/README.md` for origin and licence).
const BUILT_IN: &[u8] = include_bytes!("../../data/rwkv_vocab_v20230424.txt");

/// A vocabulary of byte strings, matched greedily.
///
/// ```
/// let world = hawfinch_tokenizer::World::built_in();
/// assert_eq!(world.encode(b"Hello world"), [33155, 40213]);
/// assert_eq!(world.decode(&[33155, 40213])?, b"Hello world");
/// # Ok::<(), hawfinch_tokenizer::Error>(())
/// ```
pub struct World {
    tokens: Tokens,
    trie: Trie,
    /// `pairs[b0 << 8 | b1]`: the node that a walk over `b0 b1` reaches. Where `b0` has no child `b1`, a node that
    /// says "one byte ago" and leads nowhere.
    pairs: Box<[Node; 1 << 16]>,
    name: &'static str,
}

impl World {
    /// The vocabulary of all World models (65,529 entries), built when first asked for and shared from then on.
    pub fn built_in() -> Arc<World> {
        static WORLD: OnceLock<Arc<World>> = OnceLock::new();
        let build = || {
            let mut world = World::from_vocabulary(BUILT_IN).expect("the built-in vocabulary is well-formed");
            world.name = "World";
            Arc::new(world)
        };
        WORLD.get_or_init(build).clone()
    }

    /// Reads a vocabulary file: lines `ID LITERAL LENGTH` (LF or CRLF), `LITERAL` a Python string or bytes literal
    /// with the escapes `\n \r \t \\ \' \" \xHH \uHHHH \UHHHHHHHH`, `LENGTH` its length in bytes.
    ///
    /// # Errors
    /// The line number and what is wrong: another form, an unknown escape, a wrong length, an empty token or one above
    /// 1023 bytes, an id that is 0, repeated or above 1,048,575, a repeated token; or a single byte that is missing
    /// (some texts could not be encoded).
    pub fn from_vocabulary(file: &[u8]) -> Result<World> {
        World::of_tokens(Tokens::parse(file)?)
    }

    fn of_tokens(tokens: Tokens) -> Result<World> {
        let keys = tokens.sorted();
        if let Some(twice) = keys.windows(2).find(|w| w[0].0 == w[1].0) {
            let (a, b, token) = (twice[0].1, twice[1].1, twice[0].0.escape_ascii());
            return Err(Error::Vocabulary(format!("ids {a} and {b} are the same token \"{token}\"")));
        }
        let trie = Trie::build(&keys)?;
        for byte in 0..=255u8 {
            if trie.longest_prefix(&[byte]).is_none() {
                return Err(Error::Vocabulary(format!(
                    "it has no token for the single byte 0x{byte:02X}, so some texts could not be encoded"
                )));
            }
        }
        let pairs = pair_table(&trie);
        Ok(World { tokens, trie, pairs, name: "World vocabulary file" })
    }

    /// `World`, or `World vocabulary file` for a vocabulary read with [`World::from_vocabulary`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is the vocabulary of the World models, entry by entry, wherever it was read from.
    pub fn is_built_in(&self) -> bool {
        let built_in = World::built_in();
        self.tokens.spans.len() == built_in.tokens.spans.len()
            && (0..self.vocab_size() as u32).all(|id| self.token_bytes(id) == built_in.token_bytes(id))
    }

    /// Highest id + 1 (65,530 for the built-in vocabulary; the models have 65,536 rows, the last six unused).
    pub fn vocab_size(&self) -> usize {
        self.tokens.spans.len()
    }

    /// The ids of a text; any bytes will do.
    pub fn encode(&self, text: &[u8]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(likely_ids(text.len()));
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of a text to `ids`.
    pub fn encode_into(&self, text: &[u8], ids: &mut Vec<u32>) {
        self.encode_range(text, 0, text.len(), ids);
    }

    /// Appends the tokens that begin in `from..to` when one begins at `from`; returns where the last one ends.
    fn encode_range(&self, text: &[u8], from: usize, to: usize, ids: &mut Vec<u32>) -> usize {
        if to - from >= lanes::MIN_TEXT {
            return self.encode_lanes(text, from, to, ids);
        }
        self.encode_one_by_one(text, from, to, ids)
    }

    /// The meaning of [`World::encode_range`].
    fn encode_one_by_one(&self, text: &[u8], from: usize, to: usize, ids: &mut Vec<u32>) -> usize {
        let mut at = from;
        while at < to
            && let Some((id, end)) = self.match_at(text, at)
        {
            ids.push(id);
            at = end;
        }
        at
    }

    /// Length in bytes of a token that exists.
    fn token_len(&self, id: u32) -> usize {
        self.tokens.spans[id as usize].1 as usize
    }

    /// The longest token at `at` and its end; `None` at the end of the text.
    #[inline(always)]
    fn match_at(&self, text: &[u8], at: usize) -> Option<(u32, usize)> {
        let Some(&[first, second]) = text.get(at..at + 2) else {
            // At most one byte is left.
            let node = self.trie.child(self.trie.root(), *text.get(at)?)?;
            return Some((node.value(), at + 1));
        };
        let mut node = self.pairs[usize::from(first) << 8 | usize::from(second)];
        let mut end = at + 2;
        while let Some(&byte) = text.get(end) {
            match self.trie.child(node, byte) {
                Some(child) => node = child,
                None => break,
            }
            end += 1;
        }
        Some((node.value(), end - node.back()))
    }

    /// The bytes of a token; empty for id 0 (end of text), `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let &(start, len) = self.tokens.spans.get(id as usize)?;
        (len != 0 || id == 0).then(|| &self.tokens.bytes[start as usize..(start + len) as usize])
    }

    /// The id of the token with exactly these bytes.
    pub fn token_id(&self, token: &[u8]) -> Option<u32> {
        self.trie.longest_prefix(token).and_then(|(id, len)| (len == token.len()).then_some(id))
    }

    /// The bytes of a text's ids. They need not be valid UTF-8: 486 tokens of the built-in vocabulary are not.
    ///
    /// # Errors
    /// [`Error::UndefinedId`] for an id without a token.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        crate::decode_with(ids, self.name, self.vocab_size(), |id| self.token_bytes(id))
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("name", &self.name).field("vocab_size", &self.vocab_size()).finish()
    }
}

/// Room that most texts of `bytes` bytes do not outgrow (2.4 bytes a token in a mixture of 200 languages).
fn likely_ids(bytes: usize) -> usize {
    bytes / 2 + 8
}

/// See [`World::pairs`].
fn pair_table(trie: &Trie) -> Box<[Node; 1 << 16]> {
    let mut pairs = vec![trie.root(); 1 << 16].into_boxed_slice();
    for (first, row) in (0..=255u8).zip(pairs.chunks_exact_mut(256)) {
        // The caller has checked that every byte is a token.
        let Some(one) = trie.child(trie.root(), first) else { continue };
        for (second, entry) in (0..=255u8).zip(row) {
            *entry = trie.child(one, second).unwrap_or_else(|| one.stop_after(1));
        }
    }
    pairs.try_into().unwrap_or_else(|_| unreachable!("the table has 65,536 entries"))
}
