//! The text on which quantised weights are measured, and how it is divided.

use std::path::PathBuf;

use anyhow::bail;
use hawfinch_tokenizer::Tokenizer;

use crate::fail::usage;
use crate::input;
use crate::output::thousands;

/// Prose in a dozen languages, a chat, code, numbers: written for this purpose.
const BUILT_IN: &str = include_str!("../../data/calibration.txt");

/// Tokens of a sequence: each begins with an empty state.
pub const SEQUENCE: usize = 128;
/// Fewer tokens tell nothing.
const FEWEST: usize = 32;

/// Two parts of a text.
#[derive(Debug, PartialEq)]
pub struct Sample {
    /// On which weights are measured one by one.
    pub choosing: Vec<Vec<u32>>,
    /// On which the result is judged: other sequences, unless the text has only one.
    pub judging: Vec<Vec<u32>>,
}

impl Sample {
    /// Whether the result is judged on text that was not used to choose.
    pub fn is_fair(&self) -> bool {
        self.choosing != self.judging
    }
}

/// About so many tokens for each part, evenly from all of the given files or the built-in text.
pub fn sample(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    vocab: usize,
    tokens: usize,
) -> anyhow::Result<Sample> {
    let mut sequences = Vec::new();
    let mut total = 0;
    let mut read = |text: &[u8], name: &str| -> anyhow::Result<()> {
        let ids = tokenizer.encode(text);
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            bail!("{name} gives the token {id}, and the model knows {vocab}: give its own --tokenizer");
        }
        total += ids.len();
        let whole = ids.chunks(SEQUENCE).filter(|s| s.len() == SEQUENCE);
        let part = ids.chunks(SEQUENCE).filter(|s| s.len() < SEQUENCE && s.len() >= FEWEST);
        sequences.extend(whole.chain(part).map(<[u32]>::to_vec));
        Ok(())
    };
    if files.is_empty() {
        read(BUILT_IN.as_bytes(), "the built-in text")?;
    }
    for file in files {
        read(&input::read(file)?, &file.display().to_string())?;
    }
    if sequences.is_empty() {
        let said = match total {
            0 => "the text is empty".into(),
            n => format!("the text has only {} tokens", thousands(n as u64)),
        };
        return Err(usage(format!("{said}: give --text with at least {FEWEST}, better some thousands")));
    }
    Ok(divided(sequences, tokens.div_ceil(SEQUENCE)))
}

/// Every other sequence to each part, so many of them at most, evenly from the whole.
fn divided(sequences: Vec<Vec<u32>>, count: usize) -> Sample {
    if sequences.len() == 1 {
        return Sample { choosing: sequences.clone(), judging: sequences };
    }
    let pairs = sequences.len() / 2;
    let count = count.clamp(1, pairs);
    let at = |n: usize| 2 * (n * pairs / count);
    Sample {
        choosing: (0..count).map(|n| sequences[at(n)].clone()).collect(),
        judging: (0..count).map(|n| sequences[at(n) + 1].clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap() {
        let sequences: Vec<Vec<u32>> = (0..11).map(|n| vec![n; 3]).collect();
        for count in [1, 2, 5, 99] {
            let s = divided(sequences.clone(), count);
            assert_eq!(s.choosing.len(), count.min(5));
            assert_eq!(s.judging.len(), count.min(5));
            assert!(s.is_fair() && s.choosing.iter().all(|c| !s.judging.contains(c)));
        }
        assert!(!divided(sequences[..1].to_vec(), 4).is_fair());
    }

    #[test]
    fn the_built_in_text_is_enough() {
        let s = sample(&[], &Tokenizer::world(), 65536, 512).unwrap();
        assert_eq!((s.choosing.len(), s.judging.len()), (4, 4));
        assert!(s.choosing.iter().chain(&s.judging).all(|s| s.len() == SEQUENCE));
    }
}
