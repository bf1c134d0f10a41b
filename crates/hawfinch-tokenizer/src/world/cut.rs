//! Smaller vocabularies of the same form: the entries that a corpus needs most.
//!
//! An entry is worth the tokens that it saves: how often it is used, times one less than the number of entries that would
//! stand in its place. Greedy matching makes these values depend on each other, so the vocabulary is cut in rounds, and each
//! round counts anew with what the last one left.

use std::fmt::Write;

use super::World;
use super::parse::Tokens;
use crate::error::{Error, Result};

/// What each round leaves of the entries that are used, in percent, until the size is reached.
const LEFT: usize = 75;

impl World {
    /// The vocabulary of at most `size` ids (id 0, the end of text, is one) that encodes a corpus in few tokens: all 256
    /// single bytes and the entries of this vocabulary that save most tokens, in their old order with new ids.
    ///
    /// `each_text` calls the function that it is given with each text of the corpus; it is called some times.
    ///
    /// # Errors
    /// `size` below 257; what `each_text` returns.
    pub fn cut<E: From<Error>>(
        &self,
        size: usize,
        threads: usize,
        mut each_text: impl FnMut(&mut dyn FnMut(Vec<u8>)) -> std::result::Result<(), E>,
    ) -> std::result::Result<World, E> {
        if size < 257 {
            let why = format!("{size} ids are too few: the 256 single bytes and the end of text need 257");
            return Err(Error::Vocabulary(why).into());
        }
        let mut now = self.of_ids(|_| true)?;
        loop {
            let counts = now.counts(threads, &mut each_text)?;
            let mut gains: Vec<(u64, u32)> = (1..now.vocab_size() as u32)
                .filter(|&id| now.token_len(id) > 1)
                .map(|id| (counts[id as usize].saturating_mul(now.pieces_without(id) - 1), id))
                .filter(|(gain, _)| *gain > 0)
                .collect();
            // The dearest first; of equals the one of the lower id.
            gains.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            let room = size - 257;
            let done = gains.len() <= room;
            gains.truncate(room.max(gains.len() * LEFT / 100));
            let mut keep = vec![false; now.vocab_size()];
            gains.iter().for_each(|&(_, id)| keep[id as usize] = true);
            let next = now.of_ids(|id| keep[id as usize] || now.token_len(id) == 1)?;
            if done || gains.len() <= room {
                return Ok(next);
            }
            now = next;
        }
    }

    /// The entries that `keep` says yes to, with ids from 1 on.
    fn of_ids(&self, keep: impl Fn(u32) -> bool) -> Result<World> {
        let mut tokens = Tokens { bytes: Vec::new(), spans: vec![(0, 0)] };
        for id in (1..self.vocab_size() as u32).filter(|&id| self.token_len(id) > 0 && keep(id)) {
            let token = self.token_bytes(id).unwrap_or_default();
            tokens.spans.push((tokens.bytes.len() as u32, token.len() as u32));
            tokens.bytes.extend_from_slice(token);
        }
        World::of_tokens(tokens)
    }

    /// How often each entry is used.
    fn counts<E>(
        &self,
        threads: usize,
        each_text: &mut impl FnMut(&mut dyn FnMut(Vec<u8>)) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<u64>, E> {
        const AT_ONCE: usize = 8 << 20;
        let mut counts = vec![0u64; self.vocab_size()];
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut count = |batch: &mut Vec<Vec<u8>>| {
            for ids in crate::many::encode_many(batch, threads, |text| self.encode(text)) {
                ids.iter().for_each(|&id| counts[id as usize] += 1);
            }
            batch.clear();
        };
        each_text(&mut |text| {
            bytes += text.len();
            batch.push(text);
            if bytes >= AT_ONCE {
                count(&mut batch);
                bytes = 0;
            }
        })?;
        count(&mut batch);
        Ok(counts)
    }

    /// In how many pieces an entry's bytes would be encoded if it were not there.
    fn pieces_without(&self, id: u32) -> u64 {
        let token = self.token_bytes(id).unwrap_or_default();
        // All but its last byte cannot match the entry itself; the rest is matched greedily, as in a text.
        let (mut at, mut pieces) = (0, 0);
        while at < token.len() {
            let text = if at == 0 { &token[..token.len() - 1] } else { &token[at..] };
            at += self.trie.longest_prefix(text).map_or(1, |(_, len)| len);
            pieces += 1;
        }
        pieces
    }

    /// The vocabulary as a file: lines `ID LITERAL LENGTH`, which [`World::from_vocabulary`] reads, and so do the reference's
    /// tokenizers.
    pub fn to_vocabulary(&self) -> String {
        let mut out = String::with_capacity(self.tokens.bytes.len() * 2 + self.vocab_size() * 12);
        for id in 1..self.vocab_size() as u32 {
            let Some(token) = self.token_bytes(id) else { continue };
            let _ = write!(out, "{id} ");
            match std::str::from_utf8(token) {
                Ok(text) => {
                    out.push('\'');
                    text.chars().for_each(|c| literal(c, &mut out));
                }
                Err(_) => {
                    out.push_str("b'");
                    for &byte in token {
                        match char::from(byte) {
                            c @ ' '..='~' => literal(c, &mut out),
                            _ => _ = write!(out, "\\x{byte:02x}"),
                        }
                    }
                }
            }
            let _ = writeln!(out, "' {}", token.len());
        }
        out
    }
}

/// A character as it stands in a Python literal with single quotation marks.
fn literal(c: char, out: &mut String) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\\' => out.push_str("\\\\"),
        '\'' => out.push_str("\\'"),
        // What some programs take for the end of a line, or cannot be seen.
        c if c.is_control() => _ = write!(out, "\\x{:02x}", u32::from(c)),
        '\u{2028}' | '\u{2029}' | '\u{FEFF}' => _ = write!(out, "\\u{:04x}", u32::from(c)),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(texts: &[&str], size: usize) -> World {
        let each = |f: &mut dyn FnMut(Vec<u8>)| -> Result<()> {
            texts.iter().for_each(|t| f(t.as_bytes().to_vec()));
            Ok(())
        };
        World::built_in().cut(size, 1, each).unwrap()
    }

    #[test]
    fn the_vocabulary_survives_its_file() {
        let world = World::built_in();
        let again = World::from_vocabulary(world.to_vocabulary().as_bytes()).unwrap();
        assert_eq!(again.vocab_size(), world.vocab_size());
        for id in 0..world.vocab_size() as u32 {
            assert_eq!(again.token_bytes(id), world.token_bytes(id), "{id}");
        }
    }

    #[test]
    fn what_saves_most_stays() {
        let texts = ["the house of the house, and the rest", "Привет привет привет"];
        let small = cut(&texts, 260);
        assert_eq!(small.vocab_size(), 260);
        for byte in 0..=255u8 {
            assert_eq!(small.token_bytes(u32::from(byte) + 1), Some(&[byte][..]));
        }
        let full = cut(&texts, 1000);
        assert!(full.vocab_size() < 300, "only what is used: {}", full.vocab_size());
        for text in texts {
            assert_eq!(full.encode(text.as_bytes()).len(), World::built_in().encode(text.as_bytes()).len());
            assert_eq!(small.decode(&small.encode(text.as_bytes())).unwrap(), text.as_bytes());
        }
        // The three entries that save most here are long ones.
        let kept: Vec<usize> = (257..260).map(|id| small.token_len(id)).collect();
        assert!(kept.iter().all(|&len| len >= 4), "{kept:?}");
    }

    #[test]
    fn larger_cuts_give_fewer_tokens() {
        let text = include_str!("mod.rs");
        let lengths: Vec<usize> =
            [257, 300, 400, 600].map(|n| cut(&[text], n).encode(text.as_bytes()).len()).to_vec();
        assert_eq!(lengths[0], text.len());
        assert!(lengths.windows(2).all(|w| w[1] < w[0]), "{lengths:?}");
    }

    #[test]
    fn too_small_a_size_is_an_error() {
        let none = |_: &mut dyn FnMut(Vec<u8>)| -> Result<()> { Ok(()) };
        assert!(World::built_in().cut(256, 1, none).is_err());
    }
}
