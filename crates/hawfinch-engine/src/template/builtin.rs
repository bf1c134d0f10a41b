//! The built-in templates: sources, stop strings, reply rules and where each comes from.

use super::{Template, python, reply::Rule};
use crate::{Error, Result, SamplerConfig, StopRules};
use serde_json::Value;

/// World chat, as in `API_DEMO_CHAT.py` and the World model cards: `User: …`, blank line, `Assistant:` without a
/// space behind it (the space belongs to the reply's first token). Tools as the G1 models are trained: a system
/// turn lists them, results come back as a user turn.
const WORLD: &str = r#"
{%- if tool_lines %}{% set tool_text = "Tools:\n" ~ tool_lines | join("\n") ~ "\nReturn only a JSON function call." %}{% endif %}
{%- set first_is_system = messages and messages[0].role == "system" %}
{%- if tool_lines and not first_is_system %}{{ "System: " ~ tool_text ~ "\n\n" }}{% endif %}
{%- for m in messages %}
{%- if m.role == "system" %}
{{- "System: " ~ m.content }}
{%- if loop.first and tool_lines %}{{ "\n" ~ tool_text }}{% endif %}
{{- "\n\n" }}
{%- elif m.role == "user" %}
{{- "User: " ~ m.content ~ "\n\n" }}
{%- elif m.role == "tool" %}
{{- "User: Function output:\n" ~ m.content ~ "\n\n" }}
{%- else %}
{{- "Assistant: " ~ m.content ~ "\n\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "Assistant:" ~ OPENING }}{% endif -%}
"#;

/// Raven (RWKV-4, `v2/benchmark_more.py`): Bob asks, Alice answers. A system message is a paragraph before them.
const RAVEN: &str = r#"
{%- if PREAMBLE and not (messages and messages[0].role == "system") %}{{ PREAMBLE }}{% endif %}
{%- for m in messages %}
{%- if m.role == "system" %}
{{- m.content ~ "\n\n" }}
{%- elif m.role == "assistant" %}
{{- "Alice: " ~ m.content ~ "\n\n" }}
{%- else %}
{{- "Bob: " ~ m.content ~ "\n\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}Alice:{% endif -%}
"#;

/// A Pile model is no chat model; a short scene (in the manner of the reference's prompts, words ours) makes it one.
const PILE_PREAMBLE: &str = "The following is a detailed conversation between Bob, who asks questions, and his \
friend Alice, who knows a great deal and answers kindly and exactly.\n\nBob: Hello Alice, do you have a moment?\n\n\
Alice: Hi Bob! Of course. What would you like to know?\n\n";

/// Instruction tuning format of the World model cards. A system message is the instruction, user messages are its
/// inputs; without one each user message is an instruction.
const INSTRUCT: &str = r#"
{%- set has_system = messages and messages[0].role == "system" %}
{%- for m in messages %}
{%- if m.role == "system" %}
{{- "Instruction: " ~ m.content ~ "\n\n" }}
{%- elif m.role == "assistant" %}
{{- "Response: " ~ m.content ~ "\n\n" }}
{%- elif has_system %}
{{- "Input: " ~ m.content ~ "\n\n" }}
{%- else %}
{{- "Instruction: " ~ m.content ~ "\n\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}Response:{% endif -%}
"#;

/// No roles, no normalisation: the contents as they are, one after the other.
const COMPLETION: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

/// One built-in template.
struct Builtin {
    name: &'static str,
    source: &'static str,
    opening: &'static str,
    suffix: &'static str,
    preamble: &'static str,
    stops: &'static [&'static str],
    reasoning: bool,
    sampler: fn() -> SamplerConfig,
}

const WORLD_STOPS: &[&str] = &["\n\nUser:", "\nUser:"];
/// The reference's Raven programs end a reply at the first blank line.
const RAVEN_STOPS: &[&str] = &["\n\n", "\nBob:", "\nAlice:"];

const fn g1(name: &'static str, opening: &'static str, suffix: &'static str) -> Builtin {
    Builtin {
        name,
        source: WORLD,
        opening,
        suffix,
        preamble: "",
        stops: WORLD_STOPS,
        reasoning: true,
        sampler: SamplerConfig::chat,
    }
}

/// G1: the think tag is left unclosed so that the model closes it; after `<think>\n</think` it answers at once.
const BUILTINS: &[Builtin] = &[
    Builtin { reasoning: false, ..g1("world", "", "") },
    g1("g1", " <think>\n</think", ""),
    g1("g1-think", " <think", ""),
    g1("g1-think-normal", " <think", " (think)"),
    g1("g1-think-a-bit", " <think", " (think a bit)"),
    g1("g1-think-a-lot", " <think", " (think a lot)"),
    Builtin { sampler: SamplerConfig::raven, stops: RAVEN_STOPS, source: RAVEN, ..PLAIN_RAVEN },
    Builtin { name: "pile", preamble: PILE_PREAMBLE, ..PLAIN_RAVEN },
    Builtin {
        name: "instruct",
        source: INSTRUCT,
        stops: &["\n\nInstruction:", "\n\nInput:", "\n\nResponse:", "\nInstruction:"],
        sampler: SamplerConfig::default,
        ..PLAIN_RAVEN
    },
    Builtin {
        name: "completion",
        source: COMPLETION,
        stops: &[],
        sampler: SamplerConfig::default,
        ..PLAIN_RAVEN
    },
];

const PLAIN_RAVEN: Builtin = Builtin {
    name: "raven",
    source: RAVEN,
    opening: "",
    suffix: "",
    preamble: "",
    stops: RAVEN_STOPS,
    reasoning: false,
    sampler: SamplerConfig::raven,
};

impl Template {
    /// The names of the built-in templates.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTINS.iter().map(|b| b.name)
    }

    /// A built-in template:
    ///
    /// |name|for|
    /// |-|-|
    /// |`world`|World models, v4 to v7, and G1 without any think tag|
    /// |`g1`|G1, answering at once (closed think tag)|
    /// |`g1-think`|G1, thinking first|
    /// |`g1-think-normal`, `-a-bit`, `-a-lot`|the same with the suffix that asks for that much (models from September 2025)|
    /// |`raven`|RWKV-4 Raven|
    /// |`pile`|RWKV-4 Pile: as Raven after a short scene|
    /// |`instruct`|Instruction, Input, Response|
    /// |`completion`|no chat: the text goes on|
    pub fn builtin(name: &str) -> Result<Self> {
        let Some(b) = BUILTINS.iter().find(|b| b.name == name) else {
            let known: Vec<&str> = Self::builtin_names().collect();
            return Err(Error::UnknownTemplate { name: name.to_owned(), known: known.join(", ") });
        };
        // The two parameters become literals, so that `source()` is a whole template that works anywhere.
        let source = b.source.replace("OPENING", &format!("{:?}", b.opening));
        let source = source.replace("PREAMBLE", &format!("{:?}", b.preamble));
        let mut t = Self::from_source(b.name, &source)?;
        let plain = b.name == "completion";
        t.stops = StopRules { strings: b.stops.iter().map(|s| (*s).to_owned()).collect(), tokens: vec![0] };
        t.sampler = (b.sampler)();
        t.normalise = !plain;
        t.rule = Rule { trim: !plain, reasoning: b.reasoning };
        t.opening = b.opening.trim_start();
        t.suffix = b.suffix;
        Ok(t)
    }
}

/// `- name(arg: type, …): description` for a function definition as in the OpenAI API.
pub(super) fn tool_line(tool: &Value) -> String {
    let f = tool.get("function").unwrap_or(tool);
    let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut arguments = Vec::new();
    if let Some(Value::Object(properties)) = f.get("parameters").and_then(|p| p.get("properties")) {
        for (name, schema) in properties {
            let kind = match schema.get("type") {
                Some(Value::String(s)) => s.clone(),
                Some(Value::Array(kinds)) => {
                    kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")
                }
                _ => "any".to_owned(),
            };
            arguments.push(format!("{name}: {kind}"));
        }
    }
    let line = format!("- {}({})", text(f.get("name")), arguments.join(", "));
    match text(f.get("description")) {
        d if d.trim().is_empty() => line,
        d => format!("{line}: {}", d.split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

/// The text of function calls: one JSON object, or an array of several.
pub(super) fn tool_calls(calls: &[Value]) -> String {
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
        [one] => python::dumps(one),
        many => python::dumps(&many),
    }
}
