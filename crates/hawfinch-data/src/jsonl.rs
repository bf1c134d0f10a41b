//! A line of JSON to the text of a document.
//!
//! | fields | text |
//! | --- | --- |
//! | `text` (or the one that was asked for) | as it is |
//! | `messages`: `role`, `content`; `conversations`: `from`, `value` | a turn each, as below |
//! | `instruction` (and `input` or `context`), `prompt`, `question` or `query`; `output`, `response`, `completion` or `answer` | a question and an answer |
//!
//! Turns are written by a [`Format`], the World models' if no other is asked for: `User: …`, a blank line, `Assistant: …`.
//! Blank lines within a turn are taken out, since a blank line ends it.

use std::borrow::Cow;

use hawfinch_tokenizer::chat::{Format, Role, Turn, Written, tool_calls};
use serde_json::{Map, Value};

/// Fields that make a document, beside one that is asked for.
#[cfg(feature = "parquet")]
pub(crate) const FIELDS: [&str; 13] = [
    "text",
    "messages",
    "conversations",
    "instruction",
    "input",
    "context",
    "prompt",
    "question",
    "query",
    "output",
    "response",
    "completion",
    "answer",
];

/// What a line is.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// A document.
    Text(String),
    /// A conversation, or a question with its answer.
    Chat(Written),
    /// Nothing but blanks.
    Blank,
    /// No document, and why.
    Bad(String),
}

/// Reads a line. `field` is the only field that counts, if one was asked for.
pub(crate) fn line(line: &str, field: Option<&str>, format: &Format) -> Line {
    let line = line.trim();
    if line.is_empty() {
        return Line::Blank;
    }
    let mut object = match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Line::Bad("it is JSON, but no object".into()),
        Err(e) => return Line::Bad(format!("it is no JSON ({})", in_line(&e))),
    };
    let name = field.unwrap_or("text");
    match object.remove(name) {
        Some(Value::String(text)) => return Line::Text(text),
        Some(_) => return Line::Bad(format!("its `{name}` is no text")),
        None if field.is_some() => return Line::Bad(format!("it has no `{name}`")),
        None => {}
    }
    let turns = match (object.get("messages").or_else(|| object.get("conversations")), pair(&object, format))
    {
        (Some(Value::Array(messages)), _) => turns(messages),
        (Some(_), _) => Err("its `messages` are no list".into()),
        (None, Some(turns)) => Ok(turns),
        (None, None) => {
            let names: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
            Err(format!("it has no `text`, `messages` or instruction fields, but {}", quoted(&names)))
        }
    };
    turns.map_or_else(Line::Bad, |turns| Line::Chat(format.write(&turns)))
}

fn quoted(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { format!("`{}`", names.join("`, `")) }
}

/// An error's words; it is always in the first line.
fn in_line(e: &serde_json::Error) -> String {
    let said = e.to_string();
    said.replace(" at line 1 column ", " at character ")
}

/// Question and answer of instruction data. What an instruction is applied to follows it on a line of its own, unless the
/// format has a place for it.
fn pair<'a>(object: &'a Map<String, Value>, format: &Format) -> Option<Vec<Turn<'a>>> {
    let text = |names: &[&str]| names.iter().find_map(|n| object.get(*n)?.as_str());
    let question = text(&["instruction", "prompt", "question", "query"])?;
    let answer = Turn::new(Role::Assistant, text(&["output", "response", "completion", "answer"])?);
    let more = object.contains_key("instruction").then(|| text(&["input", "context"])).flatten();
    let apart = format.user != format.user_after_system;
    Some(match more {
        Some(more) if apart && !more.trim().is_empty() => {
            vec![Turn::new(Role::System, question), Turn::new(Role::User, more), answer]
        }
        Some(more) => vec![Turn::new(Role::User, format!("{question}\n{more}")), answer],
        None => vec![Turn::new(Role::User, question), answer],
    })
}

/// The turns of a conversation.
fn turns(messages: &[Value]) -> Result<Vec<Turn<'_>>, String> {
    if messages.is_empty() {
        return Err("its conversation is empty".into());
    }
    let mut turns = Vec::with_capacity(messages.len());
    for (n, message) in (1..).zip(messages) {
        let field = |names: [&str; 2]| names.into_iter().find_map(|n| message.get(n));
        let role = match field(["role", "from"]) {
            Some(Value::String(name)) => Role::of_data(name).ok_or_else(|| {
                let known = Role::NAMES;
                format!("its message {n} has the role `{name}`, which is not known; known are {known}")
            })?,
            _ => return Err(format!("its message {n} says no `role`")),
        };
        let calls = message.get("tool_calls").and_then(Value::as_array).filter(|calls| !calls.is_empty());
        let content: Cow<'_, str> = match (field(["content", "value"]), calls) {
            (Some(Value::String(text)), None) => text.into(),
            // Calls stand in place of words.
            (Some(Value::String(text)), Some(_)) if !text.is_empty() => text.into(),
            (None | Some(Value::Null | Value::String(_)), Some(calls)) => tool_calls(calls).into(),
            (Some(Value::Array(parts)), _) if parts.iter().all(|p| p["text"].is_string()) => {
                parts.iter().filter_map(|p| p["text"].as_str()).collect::<String>().into()
            }
            _ => return Err(format!("its message {n} has no text")),
        };
        let reasoning = field(["reasoning_content", "reasoning"]).and_then(Value::as_str);
        turns.push(Turn { role, content, reasoning });
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, field: Option<&str>) -> Line {
        line(json, field, Format::named("world").unwrap())
    }

    fn chat(json: &str, format: &str) -> Written {
        match line(json, None, Format::named(format).unwrap()) {
            Line::Chat(written) => written,
            other => panic!("{other:?}"),
        }
    }

    fn text(json: &str) -> String {
        match read(json, None) {
            Line::Text(text) | Line::Chat(Written { text, .. }) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_forms_of_the_field() {
        assert_eq!(text(r#" {"id": 1, "text": "a\n\n\nb 😀", "messages": []} "#), "a\n\n\nb 😀");
        let chat = r#"{"messages": [{"role": "system", "content": "Be kind."},
            {"role": "user", "content": " q\r\n\r\n\r\nmore \n"}, {"role": "assistant", "content": "a"},
            {"role": "tool", "content": "5"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}"#;
        let want =
            "System: Be kind.\n\nUser: q\nmore\n\nAssistant: a\n\nUser: Function output:\n5\n\nAssistant: b";
        assert_eq!(text(chat), want);
        let shared = r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#;
        assert_eq!(text(shared), "User: q\n\nAssistant: a");
        for pair in [
            r#"{"instruction": "q", "input": "", "output": "a"}"#,
            r#"{"prompt": "q", "completion": " a"}"#,
            r#"{"question": "q", "answer": "a"}"#,
            r#"{"query": "q", "response": "a"}"#,
        ] {
            assert_eq!(text(pair), "User: q\n\nAssistant: a");
        }
        let dolly = r#"{"instruction": "q", "context": "c\n\nd", "response": "a"}"#;
        assert_eq!(text(dolly), "User: q\nc\nd\n\nAssistant: a");
        assert_eq!(read(r#"{"body": "x", "text": "y"}"#, Some("body")), Line::Text("x".into()));
    }

    #[test]
    fn what_is_no_document_is_said() {
        assert_eq!(read(" \u{3000}\t", None), Line::Blank);
        for (json, word) in [
            ("{", "no JSON"),
            ("[1]", "no object"),
            (r#"{"text": 5}"#, "`text` is no text"),
            (r#"{"text": null}"#, "`text` is no text"),
            (r#"{"text": "\ud800"}"#, "no JSON"),
            (r#"{"title": "a", "url": "b"}"#, "but `title`, `url`"),
            ("{}", "but nothing"),
            (r#"{"messages": []}"#, "empty"),
            (r#"{"messages": 1}"#, "no list"),
            (
                r#"{"messages": [{"role": "cat", "content": "x"}]}"#,
                "message 1 has the role `cat`, which is not known; known are system",
            ),
            (r#"{"messages": [{"content": "x"}]}"#, "message 1 says no `role`"),
            (r#"{"messages": [{"role": "user", "content": null}]}"#, "message 1 has no text"),
        ] {
            match read(json, None) {
                Line::Bad(why) => assert!(why.contains(word), "{why}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        assert!(matches!(read(r#"{"text": "y"}"#, Some("body")), Line::Bad(w) if w.contains("no `body`")));
    }

    #[test]
    fn formats_and_what_else_a_message_holds() {
        let alpaca = r#"{"instruction": "Translate.", "input": "Haus", "output": "house"}"#;
        assert_eq!(
            chat(alpaca, "instruct").text,
            "Instruction: Translate.\n\nInput: Haus\n\nResponse: house"
        );
        let bare = r#"{"instruction": "Sing.", "input": " ", "output": "la"}"#;
        assert_eq!(chat(bare, "instruct").text, "Instruction: Sing.\n\nResponse: la");
        assert_eq!(chat(alpaca, "raven").text, "Bob: Translate.\nHaus\n\nAlice: house");
        let thought = r#"{"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "reasoning_content": "hm"}]}"#;
        assert_eq!(chat(thought, "g1-think").text, "User: q\n\nAssistant: <think>\nhm\n</think>\na");
        assert_eq!(chat(thought, "world").reasoning_left_out, 1);
        let calls = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null,
            "tool_calls": [{"function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}]}]}"#;
        let want = "User: q\n\nAssistant: {\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": 2}}";
        assert_eq!(text(calls), want);
    }
}
