//! Prompt look-up: where did the text say the same before, and how did it go on there?

use super::{Ask, Drafter};
use crate::Result;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Lengths of the endings that are looked up, longest first.
const LENGTHS: [usize; 4] = [5, 4, 3, 2];

/// Guesses that the text goes on as it did after the last place that ends as it does now, in prompt or reply: longer
/// endings first, from five tokens to two. Good where texts repeat themselves: code, editing, summaries with quotes.
///
/// Every ending is kept by its hash with the place behind its last occurrence: a look-up takes no longer in a long
/// text; some 100 bytes a token.
#[derive(Debug, Clone, Default)]
pub struct NgramDrafter {
    text: Vec<u32>,
    hasher: RandomState,
    /// Hash of n tokens → where the text went on after them. What it says is compared before it is believed.
    behind: HashMap<u64, u32>,
}

impl NgramDrafter {
    /// That has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the text went on after an earlier place that ends as it ends now.
    fn earlier(&self) -> Option<usize> {
        let end = self.text.len();
        LENGTHS.iter().filter(|&&n| n < end).find_map(|&n| {
            let ending = &self.text[end - n..];
            let at = *self.behind.get(&self.hasher.hash_one(ending))? as usize;
            // The place may be of a text that was left since.
            (at < end && at >= n && self.text[at - n..at] == *ending).then_some(at)
        })
    }

    fn push(&mut self, token: u32) {
        // The endings before the new token are places to go on from only now that something follows them.
        let end = self.text.len();
        if let Ok(at) = u32::try_from(end) {
            for n in LENGTHS.into_iter().filter(|&n| n <= end) {
                self.behind.insert(self.hasher.hash_one(&self.text[end - n..]), at);
            }
        }
        self.text.push(token);
    }
}

impl Drafter for NgramDrafter {
    fn begin(&mut self, text: &[u32]) -> Result<()> {
        let common = self.text.iter().zip(text).take_while(|(a, b)| a == b).count();
        self.text.truncate(common);
        self.advance(&text[common..]);
        Ok(())
    }

    fn advance(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&t| self.push(t));
    }

    fn propose(&mut self, ask: &Ask<'_>, drafts: &mut Vec<u32>) -> Result<()> {
        let Some(from) = self.earlier() else { return Ok(()) };
        for i in 0..ask.most {
            // A place so near that it reaches the end: a text that repeats itself goes on doing so.
            let at = from + i;
            let token = if at < self.text.len() { self.text[at] } else { drafts[at - self.text.len()] };
            drafts.push(token);
            if ask.stop_tokens.contains(&token) {
                break;
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Drafter> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sampler;
    use crate::{Rng, SamplerConfig};

    fn drafts(drafter: &mut NgramDrafter, most: usize) -> Vec<u32> {
        let sampler = sampler(SamplerConfig::greedy(), 1);
        let mut drafts = Vec::new();
        drafter.propose(&Ask { most, sampler: &sampler, stop_tokens: &[99] }, &mut drafts).unwrap();
        drafts
    }

    /// The definition: the last earlier place behind the longest ending that occurs earlier.
    fn searched(text: &[u32], most: usize) -> Vec<u32> {
        for n in LENGTHS.into_iter().filter(|&n| n < text.len()) {
            let ending = &text[text.len() - n..];
            if let Some(at) = (n..text.len()).rev().find(|&at| &text[at - n..at] == ending) {
                let mut all = text.to_vec();
                (0..most).for_each(|i| all.push(all[at + i]));
                return all[text.len()..].to_vec();
            }
        }
        Vec::new()
    }

    #[test]
    fn the_longest_ending_and_its_last_place_count() {
        let mut rng = Rng::new(3);
        for letters in [2, 3, 8] {
            let mut drafter = NgramDrafter::new();
            let mut text = Vec::new();
            for _ in 0..400 {
                assert_eq!(drafts(&mut drafter, 6), searched(&text, 6), "{text:?}");
                let token = (rng.next_u64() % letters) as u32;
                text.push(token);
                drafter.advance(&[token]);
            }
        }
    }

    #[test]
    fn a_stop_token_is_the_last_draft() {
        let mut drafter = NgramDrafter::new();
        drafter.begin(&[1, 2, 3, 99, 4, 1, 2]).unwrap();
        assert_eq!(drafts(&mut drafter, 9), [3, 99]);
        assert_eq!(drafts(&mut drafter, 1), [3]);
        drafter.begin(&[]).unwrap();
        assert!(drafts(&mut drafter, 9).is_empty());
    }

    #[test]
    fn a_text_that_was_left_is_not_quoted() {
        let mut drafter = NgramDrafter::new();
        drafter.begin(&[1, 2, 3, 4, 5, 1, 2, 7, 7]).unwrap();
        // Back to before the second `1 2`, and another way on.
        drafter.begin(&[1, 2, 3, 4, 5, 8, 1, 2]).unwrap();
        let got = drafts(&mut drafter, 3);
        assert!(got.is_empty() || got == [3, 4, 5], "{got:?}");
        drafter.advance(&[3, 4]);
        assert_eq!(drafts(&mut drafter, 3), [5, 8, 1]);
    }
}
