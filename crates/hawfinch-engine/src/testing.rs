//! Models for the tests of sessions, chats and batches: one whose logits depend on everything it has read, one that
//! says what it is told to say.

use crate::schedule::BatchModel as _;
use crate::{Feed, LanguageModel, Result, Rng, Sampler, SamplerConfig, Uncounted};
use hawfinch_tokenizer::Tokenizer;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Logits are a hash of all tokens read, in order.
pub(crate) struct HashModel(pub usize);

impl LanguageModel for HashModel {
    type State = u64;
    fn vocab(&self) -> usize {
        self.0
    }
    fn new_state(&self) -> u64 {
        1
    }
    fn forward(&self, feeds: &mut [Feed<'_, u64>]) -> Result<()> {
        for f in feeds {
            assert!(!f.tokens.is_empty());
            let unwanted = f.tokens.len() - f.logits.rows();
            let mut logits = f.logits.buffer();
            if let Some(l) = &mut logits {
                l.clear();
            }
            for (i, &t) in f.tokens.iter().enumerate() {
                *f.state = Rng::new(f.state.wrapping_mul(31).wrapping_add(u64::from(t))).next_u64();
                if let Some(l) = &mut logits
                    && i >= unwanted
                {
                    let mut rng = Rng::new(*f.state);
                    l.extend((0..self.0).map(|_| rng.next_f64() as f32 * 6.0));
                }
            }
        }
        Ok(())
    }
}

/// What a scripted model wants to say after a text: the rest of its reply; nothing left is token 0.
type Script = fn(&str) -> String;

/// Says what `script` makes of the text read so far, and counts the tokens it is fed.
pub(crate) struct ScriptModel {
    pub tokenizer: Tokenizer,
    pub script: Script,
    pub fed: AtomicUsize,
}

impl ScriptModel {
    pub fn new(tokenizer: Tokenizer, script: Script) -> Self {
        Self { tokenizer, script, fed: AtomicUsize::new(0) }
    }
    pub fn fed(&self) -> usize {
        self.fed.load(Ordering::Relaxed)
    }
}

impl LanguageModel for ScriptModel {
    type State = Vec<u32>;
    fn vocab(&self) -> usize {
        self.tokenizer.vocab_size() + 3
    }
    fn new_state(&self) -> Vec<u32> {
        Vec::new()
    }
    fn forward(&self, feeds: &mut [Feed<'_, Vec<u32>>]) -> Result<()> {
        for f in feeds {
            assert!(!f.tokens.is_empty());
            let unwanted = f.tokens.len() - f.logits.rows();
            let mut logits = f.logits.buffer();
            if let Some(l) = &mut logits {
                l.clear();
            }
            self.fed.fetch_add(f.tokens.len(), Ordering::Relaxed);
            for (i, &t) in f.tokens.iter().enumerate() {
                f.state.push(t);
                if let Some(l) = &mut logits
                    && i >= unwanted
                {
                    l.extend(self.after(f.state));
                }
            }
        }
        Ok(())
    }
}

impl ScriptModel {
    /// The logits after these tokens.
    fn after(&self, read: &[u32]) -> Vec<f32> {
        let text = read_text(&self.tokenizer, read);
        // A character may be half read; the script then continues from the bytes that are there.
        let valid = text.iter().rposition(|&b| b < 0x80).map_or(0, |at| at + 1);
        let whole = std::str::from_utf8(&text).map_or(valid, str::len);
        let rest = (self.script)(std::str::from_utf8(&text[..whole]).unwrap());
        let half = text.len() - whole;
        // What a script cannot go on from (a wrong draft) ends the document.
        let rest = rest.as_bytes().get(half..).unwrap_or_default();
        let next = self.tokenizer.encode(rest).first().copied().unwrap_or(0);
        let mut logits = vec![0.0; self.vocab()];
        logits[next as usize] = 60.0;
        logits
    }
}

/// The bytes of tokens, the end of document being none.
pub(crate) fn read_text(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|&t| tokenizer.token_bytes(t).unwrap_or_default().to_vec()).collect()
}

pub(crate) fn sampler(config: SamplerConfig, seed: u64) -> Sampler {
    Sampler::new(SamplerConfig { seed: Some(seed), ..config }, Uncounted::none()).unwrap()
}

/// As [`HashModel`] over bytes, with adapters (numbers that go into the hash), counting the tokens it is fed.
#[derive(Default)]
pub(crate) struct BatchHash {
    pub fed: AtomicUsize,
    /// Sequences of the largest step.
    pub widest: AtomicUsize,
}

impl LanguageModel for BatchHash {
    type State = u64;
    fn vocab(&self) -> usize {
        256
    }
    fn new_state(&self) -> u64 {
        1
    }
    fn forward(&self, feeds: &mut [Feed<'_, u64>]) -> Result<()> {
        let none = vec![None; feeds.len()];
        self.forward_adapted(feeds, &none)
    }
}

impl crate::schedule::BatchModel for BatchHash {
    type Adapter = u64;
    fn forward_adapted(&self, feeds: &mut [Feed<'_, u64>], adapters: &[Option<&u64>]) -> Result<()> {
        self.widest.fetch_max(feeds.len(), Ordering::Relaxed);
        for (f, adapter) in feeds.iter_mut().zip(adapters) {
            self.fed.fetch_add(f.tokens.len(), Ordering::Relaxed);
            *f.state ^= adapter.copied().unwrap_or(0);
            HashModel(256).forward(std::slice::from_mut(f))?;
            *f.state ^= adapter.copied().unwrap_or(0);
        }
        Ok(())
    }
}
