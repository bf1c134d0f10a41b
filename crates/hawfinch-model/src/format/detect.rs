//! Which format a file is in, from its first bytes; extensions lie.

use std::path::Path;

use bytes::Bytes;

use super::{ai00, ggml, gguf, pth, safetensors};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Reads a file's bytes in whatever format they are, names untranslated except where the format itself
/// has others (GGUF).
pub(super) fn read_any(path: &Path, file: Bytes) -> Result<Checkpoint> {
    match &file[..file.len().min(8)] {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => return pth::read(path, file),
        head if ai00::recognise(head) => return ai00::read(path, file),
        head if gguf::is_gguf(head) => return gguf::read(path, file),
        head if ggml::is_ggml(head) => return ggml::read(path, file),
        _ => {}
    }
    // A header's length may begin like another format's magic: 0x0480 is a pickle's.
    if is_safetensors(&file) {
        return safetensors::read(path, file);
    }
    if let Some(why) = recognise_other(&file) {
        return Err(Error::not_a_model(path, why));
    }
    if looks_like_safetensors(&file) {
        return safetensors::read(path, file);
    }
    Err(Error::not_a_model(
        path,
        "its first bytes are of no format hawfinch reads (.pth, .safetensors, .st, GGUF, rwkv.cpp's .bin, or a \
         Hugging Face folder); was the download complete?",
    ))
}

/// A header that begins like one and ends within the file.
fn is_safetensors(file: &[u8]) -> bool {
    let length = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    let room = file.len().saturating_sub(8) as u64;
    file.get(8) == Some(&b'{') && length.is_some_and(|n| (2..=room).contains(&n))
}

fn looks_like_safetensors(file: &[u8]) -> bool {
    let length = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    match (length, file.get(8)) {
        // A header of `{` and a plausible length, or a length that only damage explains.
        (Some(n), Some(b'{')) => n >= 2 || n == 0,
        (Some(n), None) => (2..=safetensors::MAX_HEADER).contains(&n),
        _ => false,
    }
}

/// What people give in place of a model, in a sentence that says what it is.
fn recognise_other(file: &[u8]) -> Option<String> {
    let head = &file[..file.len().min(4096)];
    if head.starts_with(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.") {
        return Some(
            "it is a PyTorch file in the format from before version 1.6, which is not a zip archive; load it with \
             torch and save it again"
                .into(),
        );
    }
    if head.starts_with(b"\x80") && head.get(1).is_some_and(|v| (2..=5).contains(v)) {
        return Some("it is a bare pickle, not a checkpoint that torch.save wrote".into());
    }
    for (magic, what) in [
        (&b"\x1f\x8b"[..], "a gzip archive: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
        (b"\xfd7zXZ\0", "an xz archive: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
        (b"Rar!", "a RAR archive: unpack it first"),
        (b"\x89HDF", "an HDF5 file, which no RWKV model comes in"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"%PDF", "a PDF document"),
        (b"\x7fELF", "a program"),
    ] {
        if head.starts_with(magic) {
            return Some(format!("it is {what}"));
        }
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some("it is a tar archive: unpack it first".into());
    }
    let text = text_of(head)?;
    let start = text.trim_start_matches('\u{feff}').trim_start();
    let lower = start.get(..start.len().min(200)).unwrap_or(start).to_ascii_lowercase();
    Some(if start.starts_with("version https://git-lfs") {
        "it is a Git LFS pointer, not the model itself: run `git lfs pull`, or download the file from its page".into()
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.starts_with("<?xml")
    {
        "it is a web page: the download went wrong (a login page or an error page was saved)".into()
    } else if start.starts_with('{') || start.starts_with('[') {
        "it is a JSON file; give the folder it is in, or the file with the weights".into()
    } else {
        "it is a text file".into()
    })
}

/// The head of a text file: UTF-8 (cut anywhere) without control characters.
fn text_of(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(t) => t,
        Err(e) if e.error_len().is_none() && e.valid_up_to() > 0 => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b');
    (!text.chars().any(control)).then_some(text)
}
