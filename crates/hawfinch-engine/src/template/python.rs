//! What templates written for Python's Jinja expect of `tojson`: Python's spacing, no HTML escapes.

use hawfinch_tokenizer::chat::spaced_json;
use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// The filter `tojson`, with `indent` as an argument; other keywords of Python's are accepted and change nothing.
pub(super) fn tojson(value: &Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match rest.first() {
        Some(first) => Some(first.clone()),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let width = indent.filter(|v| !v.is_none()).map(usize::try_from).transpose()?;
    let Some(width) = width else {
        return Ok(spaced_json(value));
    };
    let spaces = " ".repeat(width.min(16));
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
    value
        .serialize(&mut Serializer::with_formatter(&mut out, formatter))
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8(out).unwrap_or_default())
}
