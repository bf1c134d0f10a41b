//! Opening files by what they hold: plain, gzip or zstd; text, lines of JSON or Parquet.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::zstd::Frames;

/// What a file holds when it is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text, as one document or divided.
    Text,
    /// A JSON object a line.
    Jsonl,
    /// To be seen when it is read (standard input).
    Unknown,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Not at all.
    Plain,
    /// gzip, of one member or several.
    Gzip,
    /// Zstandard, of one frame or several.
    Zstd,
    /// A Parquet table, read as lines of JSON.
    Parquet,
    /// To be seen when it is read (standard input).
    Unknown,
}

/// Bytes looked at to tell what a file holds.
const HEAD: usize = 1 << 16;

/// Bytes read from the disk at a time.
const CHUNK: usize = 1 << 18;

/// Compression by the first bytes of a file.
fn encoding(head: &[u8]) -> Encoding {
    match head {
        [0x1f, 0x8b, 8, ..] => Encoding::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Encoding::Zstd,
        _ => Encoding::Plain,
    }
}

/// A sentence's end for what is not read here.
fn refused(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Some("is compressed with xz: unpack it, or pack it with zstd")
        }
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => {
            Some("is compressed with bzip2: unpack it, or pack it with zstd")
        }
        [b'P', b'K', 3, 4, ..] => Some("is a zip archive: unpack it and name the folder"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is UTF-16: turn it into UTF-8, for example with iconv"),
        _ => None,
    }
}

/// What a file holds and how it is compressed: compression by content, lines of JSON by the ending of the name
/// (`.jsonl`, `.ndjson`), and, where that says nothing (`.json`, none), by the first line.
///
/// # Errors
/// The file cannot be read, or is of a kind that is not read here.
pub(crate) fn probe(path: &Path, asked: Option<Kind>) -> Result<(Kind, Encoding)> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    file.take(8).read_to_end(&mut head).map_err(|e| Error::read(path, e))?;
    if let Some(why) = refused(&head) {
        return Err(Error::request(format!("{} {why}", path.display())));
    }
    let encoding = encoding(&head);
    if head.starts_with(b"PAR1") {
        return match cfg!(feature = "parquet") {
            true => Ok((Kind::Jsonl, Encoding::Parquet)),
            false => Err(no_parquet(path)),
        };
    }
    let kind = match asked.or_else(|| by_name(path)) {
        Some(kind) => kind,
        None => {
            let mut start = Vec::new();
            let mut stream = unpacked(File::open(path).map_err(|e| Error::read(path, e))?, encoding);
            // Damage further on is told where it is met.
            stream.by_ref().take(HEAD as u64).read_to_end(&mut start).map_err(|e| Error::read(path, e))?;
            by_content(&start).map_err(|why| Error::request(format!("{} {why}", path.display())))?
        }
    };
    Ok((kind, encoding))
}

/// By the ending of the name, that of a compression aside; `None` where the content decides.
fn by_name(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = [".gz", ".zst", ".zstd"].iter().find_map(|e| name.strip_suffix(e)).unwrap_or(&name);
    match name.rsplit_once('.') {
        Some((_, "jsonl" | "ndjson")) => Some(Kind::Jsonl),
        Some((_, "json")) | None => None,
        Some(_) => Some(Kind::Text),
    }
}

/// By the first bytes: lines of JSON if the first that is not blank is an object (one that goes beyond what was
/// looked at begins as one), else text.
fn by_content(start: &[u8]) -> std::result::Result<Kind, &'static str> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let (line, whole) = match memchr::memchr(b'\n', start) {
        Some(end) => (&start[..end], true),
        None => (start, start.len() < HEAD / 2),
    };
    if line.starts_with(b"[")
        && serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|v| v[0].is_object())
        || line.trim_ascii_end() == b"[" && start[line.len()..].trim_ascii_start().starts_with(b"{")
    {
        return Err(
            "is one JSON array: write a line for each of its objects, for example with `jq -c '.[]'`",
        );
    }
    let object =
        line.starts_with(b"{\"") && (!whole || serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok());
    Ok(if object { Kind::Jsonl } else { Kind::Text })
}

/// A reader that tells how much of the file was read.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A stream of unpacked bytes.
pub(crate) type Stream = Box<dyn Read + Send>;

/// The unpacked bytes of a file from byte `at` on (0 for a compressed one); `read` grows by what is read of the file.
pub(crate) fn stream(
    path: &Path,
    encoding: Encoding,
    at: u64,
    field: Option<&str>,
    read: &Arc<AtomicU64>,
) -> Result<Stream> {
    if encoding == Encoding::Parquet {
        return table(path, field, read);
    }
    let open = || {
        let mut file = File::open(path)?;
        if at > 0 {
            file.seek(SeekFrom::Start(at))?;
        }
        Ok(file)
    };
    let file = open().map_err(|e| Error::read(path, e))?;
    Ok(unpacked(Counted { inner: file, read: read.clone() }, encoding))
}

/// The rows of a Parquet file as lines of JSON. Of its columns those that make a document, or the one asked for.
#[cfg(feature = "parquet")]
pub(crate) fn table(path: &Path, field: Option<&str>, read: &Arc<AtomicU64>) -> Result<Stream> {
    Ok(Box::new(crate::table::Rows::open(path, field, read.clone())?))
}

#[cfg(not(feature = "parquet"))]
pub(crate) fn table(path: &Path, _field: Option<&str>, _read: &Arc<AtomicU64>) -> Result<Stream> {
    Err(no_parquet(path))
}

fn no_parquet(path: &Path) -> Error {
    Error::request(format!(
        "{} is a Parquet file, and this program was built without the feature parquet: write it as JSONL, one {{\"text\": …}} a line",
        path.display()
    ))
}

/// Standard input, unpacked, and what it holds if that is to be seen.
pub(crate) fn stdin(asked: Kind, read: &Arc<AtomicU64>) -> Result<(Stream, Kind)> {
    let fail = |e| Error::Read { path: "standard input".into(), source: e };
    let mut input: Stream = Box::new(Counted { inner: io::stdin(), read: read.clone() });
    let mut head = Vec::new();
    input.by_ref().take(8).read_to_end(&mut head).map_err(fail)?;
    if let Some(why) = refused(&head) {
        return Err(Error::request(format!("standard input {why}")));
    }
    if head.starts_with(b"PAR1") {
        return Err(Error::request("Parquet cannot be read from standard input: name the file"));
    }
    let encoding = encoding(&head);
    let mut stream = unpacked(Cursor::new(head).chain(input), encoding);
    if asked != Kind::Unknown {
        return Ok((stream, asked));
    }
    let mut start = Vec::new();
    stream.by_ref().take(HEAD as u64).read_to_end(&mut start).map_err(fail)?;
    let kind = by_content(&start).map_err(|why| Error::request(format!("standard input {why}")))?;
    Ok((Box::new(Cursor::new(start).chain(stream)), kind))
}

fn unpacked(file: impl Read + Send + 'static, encoding: Encoding) -> Stream {
    match encoding {
        // Tables are not read as a stream of bytes.
        Encoding::Plain | Encoding::Unknown | Encoding::Parquet => Box::new(file),
        Encoding::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, file)))
        }
        Encoding::Zstd => Box::new(Frames::new(BufReader::with_capacity(CHUNK, file))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_then_contents() {
        assert_eq!(by_name(Path::new("x.jsonl.GZ")), Some(Kind::Jsonl));
        assert_eq!(by_name(Path::new("x.rs")), Some(Kind::Text));
        assert_eq!(by_name(Path::new("x.json.zst")), None);
        assert_eq!(by_name(Path::new("README")), None);
        assert_eq!(by_content(b"\xef\xbb\xbf\n {\"text\": \"a\"}\nmore"), Ok(Kind::Jsonl));
        assert_eq!(by_content(b"{\n \"a\": 1\n}"), Ok(Kind::Text));
        assert_eq!(by_content(b"{\"a\" is no JSON"), Ok(Kind::Text));
        assert_eq!(by_content(b""), Ok(Kind::Text));
        assert!(by_content(b"[\n  {\"text\": 1}]").is_err() && by_content(b"[{\"text\": 1}]").is_err());
        assert_eq!(by_content(b"[1] a footnote"), Ok(Kind::Text));
        let long = [&b"{\"text\": \""[..], &vec![b'x'; HEAD]].concat();
        assert_eq!(by_content(&long[..HEAD]), Ok(Kind::Jsonl));
    }

    #[test]
    fn what_is_not_read_is_said() {
        let place = tempfile::tempdir().unwrap();
        for (bytes, word) in [
            (&b"PK\x03\x04xx"[..], "zip"),
            (b"BZh9x", "bzip2"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\xff\xfea\0", "UTF-16"),
        ] {
            let path = place.path().join("x.txt");
            std::fs::write(&path, bytes).unwrap();
            let said = probe(&path, None).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains("x.txt"), "{said}");
        }
    }
}
