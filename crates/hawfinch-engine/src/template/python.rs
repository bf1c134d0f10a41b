//! What templates written for Python's Jinja expect of `tojson`: Python's spacing, no HTML escapes.

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// Writes `{"a": 1, "b": [2, 3]}`: a space after each comma and colon, as Python's `json.dumps` does.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// JSON with Python's spacing; empty when the value cannot be written, which JSON values always can.
pub(super) fn dumps(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// The filter `tojson`, with `indent` as an argument; other keywords of Python's are accepted and change nothing.
pub(super) fn tojson(value: &Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match rest.first() {
        Some(first) => Some(first.clone()),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let width = indent.filter(|v| !v.is_none()).map(usize::try_from).transpose()?;
    let Some(width) = width else {
        return Ok(dumps(value));
    };
    let spaces = " ".repeat(width.min(16));
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
    value
        .serialize(&mut Serializer::with_formatter(&mut out, formatter))
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8(out).unwrap_or_default())
}
