//! World vocabulary files: lines `ID <space> LITERAL <space> LENGTH`, the literal as Python writes a `str` or `bytes`
//! object. Line ends LF or CRLF.

use crate::error::{Error, Result};
use crate::trie::{MAX_KEY, VALUE_LIMIT};

/// Tokens of a vocabulary file: all bytes in one piece, and where each id's token lies in it.
pub(crate) struct Tokens {
    pub(crate) bytes: Vec<u8>,
    /// `spans[id]` = (start, length); length 0 where the id has no token. Its length is the highest id + 1.
    pub(crate) spans: Vec<(u32, u32)>,
}

impl Tokens {
    /// Reads a whole file. Anything may come in; see [`super::World::from_vocabulary`] for what is refused.
    pub(crate) fn parse(file: &[u8]) -> Result<Tokens> {
        let file = file.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(file);
        let file = file.strip_suffix(b"\n").unwrap_or(file);
        // A token takes no more bytes than its literal, so the file's size bounds everything below.
        if u32::try_from(file.len()).is_err() {
            return Err(Error::Vocabulary("it is larger than 4 GiB".into()));
        }
        let mut tokens = Tokens { bytes: Vec::with_capacity(file.len() / 2), spans: Vec::new() };
        for (index, line) in file.split(|&b| b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            tokens.line(line).map_err(|problem| Error::VocabularyLine { line: index + 1, problem })?;
        }
        Ok(tokens)
    }

    /// All tokens with their ids, sorted by bytes.
    pub(crate) fn sorted(&self) -> Vec<(&[u8], u32)> {
        // The first eight bytes, compared as one number, decide nearly always. Equal heads may still differ in
        // trailing zero bytes or beyond: then the tokens themselves decide.
        let token = |id: u32| {
            let (start, len) = self.spans[id as usize];
            &self.bytes[start as usize..(start + len) as usize]
        };
        let mut heads: Vec<(u64, u32)> = Vec::with_capacity(self.spans.len());
        for (id, &(_, len)) in (0..).zip(&self.spans) {
            if len != 0 {
                let mut head = [0; 8];
                for (to, from) in head.iter_mut().zip(token(id)) {
                    *to = *from;
                }
                heads.push((u64::from_be_bytes(head), id));
            }
        }
        heads.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| token(a.1).cmp(token(b.1))));
        heads.into_iter().map(|(_, id)| (token(id), id)).collect()
    }

    fn line(&mut self, line: &[u8]) -> std::result::Result<(), String> {
        const FORM: &str = "it is not of the form ID 'TOKEN' LENGTH";
        let first = line.iter().position(|&b| b == b' ').ok_or(FORM)?;
        let last = line.iter().rposition(|&b| b == b' ').ok_or(FORM)?;
        if first == last {
            return Err(FORM.into());
        }
        let id = number(&line[..first]).ok_or("the id is not a decimal number")?;
        let length = number(&line[last + 1..]).ok_or("the length is not a decimal number")?;
        if id == 0 {
            return Err("id 0 is reserved for the end of a text".into());
        }
        if id >= u64::from(VALUE_LIMIT) {
            return Err(format!("id {id} is above the highest possible, {}", VALUE_LIMIT - 1));
        }
        let id = id as usize;
        let start = self.bytes.len();
        literal(&line[first + 1..last], &mut self.bytes)?;
        let found = self.bytes.len() - start;
        if found as u64 != length {
            return Err(format!("the token has {found} bytes, but the line says {length}"));
        }
        if found == 0 {
            return Err("the token is empty".into());
        }
        if found > MAX_KEY {
            return Err(format!("the token has {found} bytes, more than {MAX_KEY}"));
        }
        if id >= self.spans.len() {
            self.spans.resize(id + 1, (0, 0));
        }
        if self.spans[id].1 != 0 {
            return Err(format!("id {id} was given to another token before"));
        }
        self.spans[id] = (start as u32, found as u32);
        Ok(())
    }
}

/// A decimal number of at most 9 digits.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

/// Appends the bytes that a Python string or bytes literal means.
fn literal(text: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), String> {
    let (is_bytes, quoted) = match text {
        [b'b', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (quote, mut rest) = match quoted {
        [q @ (b'\'' | b'"'), inner @ .., end] if q == end => (*q, inner),
        _ => return Err("the token is not a quoted Python literal".into()),
    };
    if is_bytes {
        if !rest.is_ascii() {
            return Err("a bytes literal may hold ASCII only".into());
        }
    } else if std::str::from_utf8(rest).is_err() {
        return Err("the token's literal is not valid UTF-8".into());
    }
    loop {
        // Plain stretches are copied whole.
        let plain = rest.iter().position(|&b| b == b'\\' || b == quote).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let code = match rest {
            [] => return Ok(()),
            [b'\\', code, ..] => *code,
            [b'\\'] => return Err("the literal ends inside an escape".into()),
            _ => return Err("the literal's quotation mark appears inside it".into()),
        };
        rest = &rest[2..];
        let digits = match code {
            b'n' => 0,
            b'r' => 0,
            b't' => 0,
            b'\\' | b'\'' | b'"' => 0,
            b'x' => 2,
            b'u' if !is_bytes => 4,
            b'U' if !is_bytes => 8,
            _ => return Err(format!("the escape \\{} is not known here", code.escape_ascii())),
        };
        if digits == 0 {
            out.push(match code {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            continue;
        }
        let hex = rest.get(..digits).and_then(hex).ok_or("an escape has too few hexadecimal digits")?;
        rest = &rest[digits..];
        if is_bytes {
            out.push(hex as u8); // two digits
        } else {
            let c = char::from_u32(hex).ok_or_else(|| format!("U+{hex:04X} is not a character"))?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// The value of at most 8 hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |n, &d| Some(n << 4 | char::from(d).to_digit(16)?))
}
