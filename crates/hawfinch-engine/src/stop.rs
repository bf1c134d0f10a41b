//! Where a reply ends: stop strings over the byte stream and stop tokens.
//!
//! A stop string is found wherever the borders of tokens fall, its beginning is held back until it is certain, and
//! no byte of it is ever released. The answer depends on the bytes alone, not on how they arrive.

use crate::{Error, Result};

/// What ends a reply besides its length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopRules {
    /// Texts that end the reply; they are not part of it.
    pub strings: Vec<String>,
    /// Token ids that end the reply; their text is not part of it.
    pub tokens: Vec<u32>,
}

impl StopRules {
    /// Nothing but the length ends the reply.
    pub fn none() -> Self {
        Self::default()
    }
}

/// One stop string with its failure table (Knuth, Morris, Pratt): `fail[i]` is the length of the longest proper
/// prefix of the string that is a suffix of its first `i + 1` bytes.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    fail: Vec<usize>,
    /// How many bytes of the string the stream ends with at the moment.
    matched: usize,
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut fail = vec![0; bytes.len()];
        let mut k = 0;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = fail[k - 1];
            }
            k += usize::from(bytes[i] == bytes[k]);
            fail[i] = k;
        }
        Self { bytes: bytes.to_vec(), fail, matched: 0 }
    }

    /// Takes one byte; true when the string is complete.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fail[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

/// Passes bytes on until a stop string is complete.
///
/// ```
/// # use hawfinch_engine::StopMatcher;
/// let mut stops = StopMatcher::new(&["\n\nUser:"])?;
/// let mut text = Vec::new();
/// assert_eq!(stops.push(b" Hello.\n", &mut text), None);
/// assert_eq!(text, b" Hello."); // the line break may be the start of the stop string
/// assert_eq!(stops.push(b"\nUser: hi", &mut text), Some(0));
/// assert_eq!(text, b" Hello.");
/// # Ok::<(), hawfinch_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: Vec<u8>,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings. Errors on an empty one.
    pub fn new<S: AsRef<[u8]>>(strings: &[S]) -> Result<Self> {
        if let Some(index) = strings.iter().position(|s| s.as_ref().is_empty()) {
            return Err(Error::EmptyStop { index });
        }
        let patterns = strings.iter().map(|s| Pattern::new(s.as_ref())).collect();
        Ok(Self { patterns, held: Vec::new(), stopped: false })
    }

    /// Takes bytes and appends to `out` those that cannot belong to a stop string.
    ///
    /// Returns the index of the string that is complete first (of several that end at the same byte, the longest);
    /// the bytes before it are then all in `out`, it and everything after it is dropped, and further calls release
    /// nothing.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if self.stopped {
            return None;
        }
        for &byte in bytes {
            self.held.push(byte);
            let mut keep = 0;
            let mut found: Option<usize> = None;
            for (i, p) in self.patterns.iter_mut().enumerate() {
                if p.step(byte) {
                    let longer = found.is_none() || p.bytes.len() > keep;
                    if longer {
                        found = Some(i);
                        keep = p.bytes.len();
                    }
                } else if found.is_none() {
                    keep = keep.max(p.matched);
                }
            }
            let release = self.held.len() - keep;
            out.extend(self.held.drain(..release));
            if found.is_some() {
                self.held.clear();
                self.stopped = true;
                return found;
            }
        }
        None
    }

    /// The bytes held back at the moment: the longest end of the stream that begins a stop string.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// The stream has ended: what is held back is text after all.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.reset();
    }

    /// Begins a new stream.
    pub fn reset(&mut self) {
        self.held.clear();
        self.stopped = false;
        for p in &mut self.patterns {
            p.matched = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Rng;

    /// All that may be released of `text`, and which string stopped it, by looking at every position.
    fn naive(stops: &[&str], text: &[u8]) -> (Vec<u8>, Option<usize>) {
        for end in 1..=text.len() {
            let hit = (0..stops.len())
                .filter(|&i| text[..end].ends_with(stops[i].as_bytes()))
                .max_by_key(|&i| (stops[i].len(), std::cmp::Reverse(i)));
            if let Some(i) = hit {
                return (text[..end - stops[i].len()].to_vec(), Some(i));
            }
        }
        (text.to_vec(), None)
    }

    #[test]
    fn any_split_gives_what_looking_at_everything_gives() {
        let sets: [&[&str]; 6] = [
            &["\n\nUser:", "\nUser:"],
            &["aab", "ab", "b"],
            &["aabaaab", "aaab"],
            &["abab", "ababb", "ba"],
            &["日本", "本語"],
            &[],
        ];
        let alphabets: [&[&str]; 6] = [
            &["\n", "User", ":", "U", " x"],
            &["a", "b"],
            &["a", "b"],
            &["a", "b"],
            &["日", "本", "語"],
            &["a"],
        ];
        let mut rng = Rng::new(1);
        for (stops, alphabet) in sets.iter().zip(alphabets) {
            for _ in 0..600 {
                let n = rng.next_u64() % 14;
                let text: String =
                    (0..n).map(|_| alphabet[rng.next_u64() as usize % alphabet.len()]).collect();
                let want = naive(stops, text.as_bytes());
                let mut m = StopMatcher::new(stops).unwrap();
                let (mut out, mut found) = (Vec::new(), None);
                let mut rest = text.as_bytes();
                while !rest.is_empty() && found.is_none() {
                    let (now, later) = rest.split_at(1 + rng.next_u64() as usize % rest.len());
                    found = m.push(now, &mut out);
                    assert!(want.0.starts_with(&out), "released too much of {text:?}");
                    rest = later;
                }
                if found.is_none() {
                    m.finish(&mut out);
                }
                assert_eq!((out, found), want, "{text:?} with {stops:?}");
            }
        }
    }

    #[test]
    fn holds_back_no_more_than_the_possible_beginning() {
        let mut m = StopMatcher::new(&["\n\nUser:"]).unwrap();
        let mut out = Vec::new();
        m.push("one\n".as_bytes(), &mut out);
        assert_eq!((out.as_slice(), m.held()), (&b"one"[..], &b"\n"[..]));
        m.push(b"two\n\nUse", &mut out);
        assert_eq!(out, b"one\ntwo");
        m.push(b"d", &mut out);
        assert_eq!(out, b"one\ntwo\n\nUsed");
        m.push(b"\n\n\n", &mut out);
        assert_eq!((out.as_slice(), m.held()), (&b"one\ntwo\n\nUsed\n"[..], &b"\n\n"[..]));
        assert_eq!(m.push(b"User:", &mut out), Some(0));
        assert_eq!(out, b"one\ntwo\n\nUsed\n");
        assert_eq!(m.push(b"more", &mut out), None);
        assert_eq!(out, b"one\ntwo\n\nUsed\n");
        m.reset();
        m.push(b"again", &mut out);
        assert!(out.ends_with(b"again"));
    }

    #[test]
    fn an_empty_string_is_refused() {
        assert_eq!(StopMatcher::new(&["a", ""]).unwrap_err(), Error::EmptyStop { index: 1 });
    }
}
