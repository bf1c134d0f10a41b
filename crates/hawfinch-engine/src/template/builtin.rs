//! The built-in templates: how the formats of [`hawfinch_tokenizer::chat`], whose words they take, run a model.

use super::{Template, reply::Rule};
use crate::{Error, Result, SamplerConfig, StopRules};
use hawfinch_tokenizer::chat::{Format, Reasoning};
use serde_json::Value;

/// World chat, as in `API_DEMO_CHAT.py` and the World model cards: `User: …`, blank line, `Assistant:` without a
/// space behind it (the space belongs to the reply's first token). Tools as the G1 models are trained: a system
/// turn lists them, results come back as a user turn.
const WORLD: &str = r#"
{%- if tool_lines %}{% set tool_text = "Tools:\n" ~ tool_lines | join("\n") ~ "\nReturn only a JSON function call." %}{% endif %}
{%- set first_is_system = messages and messages[0].role == "system" %}
{%- if tool_lines and not first_is_system %}{{ SYSTEM_NAME ~ tool_text ~ "\n\n" }}{% endif %}
{%- for m in messages %}
{%- if m.role == "system" %}
{{- SYSTEM_NAME ~ m.content }}
{%- if loop.first and tool_lines %}{{ "\n" ~ tool_text }}{% endif %}
{{- "\n\n" }}
{%- elif m.role == "user" %}
{{- USER_NAME ~ m.content ~ "\n\n" }}
{%- elif m.role == "tool" %}
{{- TOOL_NAME ~ m.content ~ "\n\n" }}
{%- else %}
{{- ASSISTANT_NAME ~ " " ~ m.content ~ "\n\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ASSISTANT_NAME ~ OPENING }}{% endif -%}
"#;

/// Raven, Pile and the instruction format: a name before each message.
const PLAIN: &str = r#"
{%- set has_system = messages and messages[0].role == "system" %}
{%- if PREAMBLE and not has_system %}{{ PREAMBLE }}{% endif %}
{%- for m in messages %}
{%- if m.role == "system" %}
{{- SYSTEM_NAME ~ m.content ~ "\n\n" }}
{%- elif m.role == "assistant" %}
{{- ASSISTANT_NAME ~ " " ~ m.content ~ "\n\n" }}
{%- elif has_system %}
{{- INPUT_NAME ~ m.content ~ "\n\n" }}
{%- else %}
{{- USER_NAME ~ m.content ~ "\n\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ASSISTANT_NAME }}{% endif -%}
"#;

/// No roles, no normalisation: the contents as they are, one after the other.
const COMPLETION: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

const WORLD_STOPS: &[&str] = &["\n\nUser:", "\nUser:"];
/// The reference's Raven programs end a reply at the first blank line.
const RAVEN_STOPS: &[&str] = &["\n\n", "\nBob:", "\nAlice:"];
const INSTRUCT_STOPS: &[&str] = &["\n\nInstruction:", "\n\nInput:", "\n\nResponse:", "\nInstruction:"];

/// What a format needs to run a model: source, stop strings, sampler.
fn running(format: &Format) -> (&'static str, &'static [&'static str], SamplerConfig) {
    match format.name {
        "raven" | "pile" => (PLAIN, RAVEN_STOPS, SamplerConfig::raven()),
        "instruct" => (PLAIN, INSTRUCT_STOPS, SamplerConfig::default()),
        "completion" => (COMPLETION, &[], SamplerConfig::default()),
        _ => (WORLD, WORLD_STOPS, SamplerConfig::chat()),
    }
}

impl Template {
    /// The names of the built-in templates.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        Format::all().iter().map(|f| f.name)
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
        let Some(f) = Format::named(name) else {
            return Err(Error::UnknownTemplate { name: name.to_owned(), known: Format::names() });
        };
        let (source, stops, sampler) = running(f);
        // The format's words become literals, so that `source()` is a whole template that works anywhere.
        let words = [
            ("PREAMBLE", f.preamble),
            ("SYSTEM_NAME", f.system),
            ("USER_NAME", f.user),
            ("INPUT_NAME", f.user_after_system),
            ("TOOL_NAME", f.tool.unwrap_or(f.user)),
            ("ASSISTANT_NAME", f.assistant),
            ("OPENING", f.opening),
        ];
        let literal = |source: String, (name, word): (&str, &str)| source.replace(name, &format!("{word:?}"));
        let mut t = Self::from_source(f.name, &words.into_iter().fold(source.to_owned(), literal))?;
        let plain = f.end.is_empty();
        t.stops = StopRules { strings: stops.iter().map(|s| (*s).to_owned()).collect(), tokens: vec![0] };
        t.sampler = sampler;
        t.normalise = !plain;
        t.rule = Rule { trim: !plain, reasoning: f.reasoning != Reasoning::None };
        t.opening = f.opening.trim_start();
        t.suffix = f.suffix;
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
