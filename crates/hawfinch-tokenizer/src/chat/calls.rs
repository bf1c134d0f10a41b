//! What an assistant asks of functions, as text.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

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

/// JSON with the spacing of Python's `json.dumps`, nothing escaped that need not be; empty when the value cannot be written,
/// which JSON values always can.
pub fn spaced_json(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// The text of function calls as the OpenAI API writes them: one JSON object, or an array of several.
pub fn tool_calls(calls: &[Value]) -> String {
    let plain: Vec<Value> = calls
        .iter()
        .map(|call| {
            let f = call.get("function").unwrap_or(call);
            let arguments = match f.get("arguments") {
                // The API writes arguments as a JSON text.
                Some(Value::String(s)) => {
                    serde_json::from_str(s).unwrap_or_else(|_| Value::String(s.clone()))
                }
                Some(v) => v.clone(),
                None => Value::Object(Default::default()),
            };
            serde_json::json!({ "name": f.get("name").cloned().unwrap_or_default(), "arguments": arguments })
        })
        .collect();
    match &plain[..] {
        [one] => spaced_json(one),
        many => spaced_json(&many),
    }
}
