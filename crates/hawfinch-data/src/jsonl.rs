//! A line of JSON to the text of a document.
//!
//! | fields | text |
//! | --- | --- |
//! | `text` (or the one that was asked for) | as it is |
//! | `messages`: `role`, `content`; `conversations`: `from`, `value` | a turn each, as below |
//! | `instruction` (and `input` or `context`), `prompt`, `question` or `query`; `output`, `response`, `completion` or `answer` | a question and an answer |
//!
//! Turns are written as RWKV's World models read them: `User: …`, a blank line, `Assistant: …`. Blank lines within a
//! turn are taken out, since a blank line ends it.

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
    /// Nothing but blanks.
    Blank,
    /// No document, and why.
    Bad(String),
}

/// Reads a line. `field` is the only field that counts, if one was asked for.
pub(crate) fn line(line: &str, field: Option<&str>) -> Line {
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
    let text = match (object.get("messages").or_else(|| object.get("conversations")), pair(&object)) {
        (Some(Value::Array(messages)), _) => turns(messages),
        (Some(_), _) => Err("its `messages` are no list".into()),
        (None, Some((question, answer))) => Ok(format!("User: {question}\n\nAssistant: {answer}")),
        (None, None) => {
            let names: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
            Err(format!("it has no `text`, `messages` or instruction fields, but {}", quoted(&names)))
        }
    };
    text.map_or_else(Line::Bad, Line::Text)
}

fn quoted(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { format!("`{}`", names.join("`, `")) }
}

/// An error's words; it is always in the first line.
fn in_line(e: &serde_json::Error) -> String {
    let said = e.to_string();
    said.replace(" at line 1 column ", " at character ")
}

/// Question and answer of instruction data.
fn pair(object: &Map<String, Value>) -> Option<(String, String)> {
    let text = |names: &[&str]| names.iter().find_map(|n| object.get(*n)?.as_str());
    let mut question = text(&["instruction", "prompt", "question", "query"])?.to_owned();
    let answer = text(&["output", "response", "completion", "answer"])?;
    if object.contains_key("instruction")
        && let Some(more) = text(&["input", "context"])
    {
        question.push('\n');
        question += more;
    }
    Some((one_turn(&question), one_turn(answer)))
}

/// The turns of a conversation, with blank lines between them.
fn turns(messages: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    for (i, message) in messages.iter().enumerate() {
        let field = |names: [&str; 2]| names.into_iter().find_map(|n| message.get(n));
        let role = field(["role", "from"]).and_then(Value::as_str).unwrap_or_default();
        let name = match role {
            "user" | "human" => "User: ",
            "assistant" | "gpt" | "bot" | "model" => "Assistant: ",
            "system" | "developer" => "System: ",
            // As the templates of chat write what a function gave.
            "tool" | "function" | "observation" => "User: Function output:\n",
            _ => return Err(format!("its message {} has the role `{role}`, which is not known", i + 1)),
        };
        let content = match field(["content", "value"]) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) if parts.iter().all(|p| p["text"].is_string()) => {
                parts.iter().filter_map(|p| p["text"].as_str()).collect()
            }
            _ => return Err(format!("its message {} has no text", i + 1)),
        };
        if !out.is_empty() {
            out += "\n\n";
        }
        out += name;
        out += &one_turn(&content);
    }
    if out.is_empty() { Err("its conversation is empty".into()) } else { Ok(out) }
}

/// Without blanks at the ends and without blank lines: they would end the turn. What `chat` does to messages, so that
/// a model reads when it is used what it read in training.
fn one_turn(content: &str) -> String {
    let mut out = String::with_capacity(content.len());
    for line in content.replace("\r\n", "\n").trim().split('\n').filter(|line| !line.trim().is_empty()) {
        if !out.is_empty() {
            out.push('\n');
        }
        out += line;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> String {
        match line(json, None) {
            Line::Text(text) => text,
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
        assert_eq!(line(r#"{"body": "x", "text": "y"}"#, Some("body")), Line::Text("x".into()));
    }

    #[test]
    fn what_is_no_document_is_said() {
        assert_eq!(line(" \u{3000}\t", None), Line::Blank);
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
            (r#"{"messages": [{"role": "cat", "content": "x"}]}"#, "role `cat`"),
            (r#"{"messages": [{"role": "user", "content": null}]}"#, "message 1 has no text"),
        ] {
            match line(json, None) {
                Line::Bad(why) => assert!(why.contains(word), "{why}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        assert!(matches!(line(r#"{"text": "y"}"#, Some("body")), Line::Bad(w) if w.contains("no `body`")));
    }
}
