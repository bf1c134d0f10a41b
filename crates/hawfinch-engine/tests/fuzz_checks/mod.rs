//! What must hold of any chat template, the one parser of untrusted text in this crate. The target in
//! `fuzz/` calls it on what the fuzzer makes up, `fuzz_replay.rs` on what it has found.
#![allow(dead_code)] // each fuzz target calls one of them

use hawfinch_engine::{Message, Template};

fn sentence(error: impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 3000, "an error of {} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "control characters in an error: {text:?}");
}

/// The source of a template: it parses or not, renders or not, and comes to an end.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    // The documented gap: repetition (`*`) is bounded by the template engine at 100 million only.
    if source.contains('*') && source.split(|c: char| !c.is_ascii_digit()).any(|n| n.len() > 4) {
        return;
    }
    let template = match Template::from_source("input", source) {
        Ok(template) => template,
        Err(e) => return sentence(e),
    };
    let call =
        serde_json::json!({"type": "function", "function": {"name": "f", "arguments": {"a": [1, null]}}});
    let mut asks = Message::assistant("");
    asks.tool_calls.push(call);
    let history = [Message::system("Be brief."), Message::user("Hi <b>\n"), asks, Message::tool("42")];
    let tool = serde_json::json!({
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "array"}}}},
    });
    for (messages, tools, open) in [(&history[..], &[tool][..], true), (&[], &[], false)] {
        match template.render(messages, tools, open) {
            Ok(text) => drop(template.clean(&text)),
            Err(e) => sentence(e),
        }
    }
    match template.continuation(&history[1..2], &Message::assistant("Yes?"), &[Message::user("No.")], &[]) {
        Ok(_) => {}
        Err(e) => sentence(e),
    }
}

/// (name, source) that the target starts from.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<(String, Vec<u8>)> = ["plain", "world", "pile", "raven", "g1-think", "g1-no-think"]
        .into_iter()
        .filter_map(|name| {
            Some((name.to_string(), Template::builtin(name).ok()?.source().as_bytes().to_vec()))
        })
        .collect();
    assert!(out.len() >= 3);
    for (name, source) in [
        (
            "chatml",
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}\
             {% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}",
        ),
        (
            "tools",
            "{%- if tools %}{{ tools | tojson(indent=2) }}{% for t in tools %}{{ t.function.name ~ loop.index0 }}\
             {% endfor %}{%- elif not messages -%}{{ raise_exception('none') }}{%- else %}x{% endif %}",
        ),
        (
            "values",
            "{% set ns = namespace(n=0, s='') %}{% for i in range(3) %}{% set ns.n = ns.n + i * 2 %}{% if loop.last %}\
             {% break %}{% endif %}{% endfor %}{{ [1, 2.5, 'a', none, true, {'k': (1, 2)}] | list | length }}\
             {{ 'a,b'.split(',')[::-1] | join('-') | upper | replace('A', 'b') }}{{ 7 // 2 % 3 ** 2 }}\
             {{ messages | map(attribute='role') | unique | sort | first | default('x') }}",
        ),
        (
            "macros",
            "{% macro m(a, b=2) %}{{ a * b }}{{ caller() if caller }}{% endmacro %}{{ m(2) }}{% call m('x') %}y\
             {% endcall %}{% filter indent(2) %}a\nb{% endfilter %}{% set x %}t{% endset %}{{ x is string and \
             'a' in x or x is defined }}{% raw %}{{ }}{% endraw %}{# c #}{% with a=1 %}{{ a }}{% endwith %}",
        ),
        (
            "filters",
            "{{ 'abc' | center(9) }}{{ 'a' * 5 }}{{ '%s %d' | format('a', 3) }}{{ [3, 1] | sort | batch(2) | list }}\
             {{ 3.14159 | round(2) }}{{ 'x y'.title().strip().startswith('X') }}{{ {'a': 1}.items() | list }}\
             {{ range(10) | slice(3) | list }}{{ dict(a=1) | dictsort }}{{ 'a' ~ 1 ~ none }}{{ 'q' | string | e }}",
        ),
    ] {
        out.push((name.to_string(), source.as_bytes().to_vec()));
    }
    out
}
