//! Text from a stream of tokens, never breaking a character in two.

/// Turns the bytes of tokens, pushed one after another, into text. What is handed out in all is
/// [`String::from_utf8_lossy`] of all bytes together, however they were cut.
///
/// ```
/// let mut stream = hawfinch_tokenizer::StreamDecoder::new();
/// assert_eq!(stream.push(b"caf\xC3"), "caf");
/// assert_eq!(stream.push(b"\xA9!"), "é!");
/// assert_eq!(stream.push(b"\xE4\xBD"), "");
/// assert_eq!(stream.finish(), "\u{FFFD}");
/// ```
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// The beginning of a character (at most three bytes), followed by the bytes of the current push.
    bytes: Vec<u8>,
    text: String,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> StreamDecoder {
        // Room for any World token, so that pushing does not allocate.
        StreamDecoder { bytes: Vec::with_capacity(256), text: String::with_capacity(768) }
    }

    /// Takes a token's bytes; returns all text that is certain now (it may be empty). An incomplete character at the
    /// end is held back until the next push. Invalid bytes become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> &str {
        self.text.clear();
        self.bytes.extend_from_slice(bytes);
        let mut rest = self.bytes.as_slice();
        let mut held = 0;
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    match error.error_len() {
                        Some(invalid) => {
                            self.text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[invalid..];
                        }
                        None => {
                            held = after.len();
                            break;
                        }
                    }
                }
            }
        }
        self.bytes.drain(..self.bytes.len() - held);
        &self.text
    }

    /// Whether the beginning of a character is held back.
    pub fn is_pending(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Ends the text: U+FFFD if an incomplete character was held back, else nothing. The decoder is then at the start
    /// of a new text.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if self.is_pending() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.bytes.clear();
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn any_split_gives_the_lossy_text_of_the_whole() {
        let mut random = Random::new(6);
        let samples = [
            "aé你🦜".as_bytes(),
            b"\xFF\xC0\x80",
            b"\xED\xA0\x80",
            b"\xF4\x90\x80",
            b"\xF0\x9F",
            b"\xE4\xBD",
            b"\x80",
        ];
        let mut stream = StreamDecoder::new();
        for _ in 0..5_000 {
            let mut whole = Vec::new();
            for _ in 0..random.below(6) {
                if random.below(3) == 0 {
                    whole.push(random.next() as u8);
                } else {
                    let sample = samples[random.below(samples.len())];
                    whole.extend_from_slice(&sample[..random.below(sample.len() + 1)]);
                }
            }
            let mut text = String::new();
            let mut rest = whole.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(random.below(rest.len().min(4) + 1));
                text.push_str(stream.push(piece));
                assert!(stream.bytes.len() <= 3);
                rest = after;
            }
            text.push_str(stream.finish());
            assert_eq!(text, String::from_utf8_lossy(&whole), "{}", whole.escape_ascii());
        }
    }

    #[test]
    fn text_comes_as_early_as_possible() {
        let mut stream = StreamDecoder::new();
        let parrot = "🦜".as_bytes();
        for byte in &parrot[..3] {
            assert_eq!(stream.push(&[*byte]), "");
            assert!(stream.is_pending());
        }
        assert_eq!(stream.push(&parrot[3..]), "🦜");
        assert!(!stream.is_pending());
        // A byte that cannot continue the character ends it at once.
        assert_eq!(stream.push(b"\xE4"), "");
        assert_eq!(stream.push(b"a"), "\u{FFFD}a");
        assert_eq!(stream.finish(), "");
    }
}
