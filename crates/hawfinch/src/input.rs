//! Text that a command is given: as an argument, in a file, or on standard input. Bytes, not characters:
//! the tokenizers take any.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::output::size;
use crate::progress::Progress;

/// Longest text that a command takes as one piece. Devices without an end stop here.
const MAX_BYTES: u64 = 4 << 30;

/// The bytes of a file, or of standard input for `-`.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        return stdin();
    }
    let shown = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let bytes = file.metadata().map_or(0, |m| m.len());
    let _bar = Progress::time(&format!("reading {shown} ({})", size(bytes)));
    whole(file, &shown)
}

/// All of standard input.
pub fn stdin() -> anyhow::Result<Vec<u8>> {
    whole(io::stdin().lock(), "standard input")
}

/// Everything that a reader gives, within bounds.
fn whole(from: impl Read, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("{name} is longer than {} GiB: give it in parts", MAX_BYTES >> 30);
    }
    Ok(bytes)
}

/// The texts of a file, none of them empty: each line is one; of a .jsonl file each line's "text".
pub fn texts(file: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let content = read(file)?;
    let json = file.extension().is_some_and(|e| e == "jsonl");
    let content = content.strip_suffix(b"\n").unwrap_or(&content);
    // Some editors begin a file with a mark of its encoding; of a text it may be a part.
    let content = if json { content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content) } else { content };
    let mut texts = Vec::new();
    for (n, line) in content.split(|&b| b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if json && line.trim_ascii().is_empty() {
            continue;
        }
        let text = if json {
            let value: Value = serde_json::from_slice(line)
                .with_context(|| format!("{} line {} is not valid JSON", file.display(), n + 1))?;
            let text = value.get("text").and_then(Value::as_str);
            text.with_context(|| format!("{} line {} has no \"text\"", file.display(), n + 1))?
                .as_bytes()
                .to_vec()
        } else {
            line.to_vec()
        };
        if text.is_empty() {
            bail!("{} line {} is empty", file.display(), n + 1);
        }
        texts.push(text);
    }
    if texts.is_empty() {
        bail!("{} holds no texts", file.display());
    }
    Ok(texts)
}

/// Text in which what a terminal would not show is written as an escape: `\n`, `\t`, `\xff`.
pub fn escaped(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '"' => out.push(c),
                c if c.is_control() || c == '\\' => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| out += &format!("\\x{b:02x}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_show_every_byte() {
        assert_eq!(escaped("é\n\t\\ 'q' 你".as_bytes()), "é\\n\\t\\\\ 'q' 你");
        assert_eq!(escaped(b"a\xff\xe4"), "a\\xff\\xe4");
    }
}
