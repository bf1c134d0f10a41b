//! Text that a command is given: as an argument, in a file, or on standard input. Bytes, not characters:
//! the tokenizers take any.

use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;

/// The bytes of a file, or of standard input for `-`.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        return stdin();
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// All of standard input.
pub fn stdin() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
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
