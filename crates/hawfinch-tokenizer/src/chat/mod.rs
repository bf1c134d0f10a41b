//! How RWKV's chat models write conversations down: the one place for the words between the turns. Training data is
//! written with them, and the templates that run a model are made of them, so that a model reads when it is used what it
//! read when it was trained.

mod calls;

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use calls::{spaced_json, tool_calls};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    #[serde(alias = "developer")]
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a function that the model called.
    #[serde(alias = "function")]
    Tool,
}

impl Role {
    /// The names of roles in chat data, in the order of [`Role::of_data`].
    pub const NAMES: &'static str =
        "system (developer), user (human), assistant (gpt, bot, model), tool (function, observation)";

    /// By the name that chat data gives it.
    pub fn of_data(name: &str) -> Option<Role> {
        Some(match name {
            "system" | "developer" => Role::System,
            "user" | "human" => Role::User,
            "assistant" | "gpt" | "bot" | "model" => Role::Assistant,
            "tool" | "function" | "observation" => Role::Tool,
            _ => return None,
        })
    }
}

/// What a format makes of an assistant's reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    /// It has no place for it.
    None,
    /// The model answers at once: the place is there and empty.
    Empty,
    /// It stands before the answer, between `<think>` and `</think>`.
    Written,
}

/// How a family of models writes conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// Its name.
    pub name: &'static str,
    /// Stands before a conversation that does not begin with a system message.
    pub preamble: &'static str,
    /// Before a system message.
    pub system: &'static str,
    /// Before what a person says.
    pub user: &'static str,
    /// The same where the conversation begins with a system message.
    pub user_after_system: &'static str,
    /// Before a function's result; `None`: as what a person says.
    pub tool: Option<&'static str>,
    /// Before a reply. The space that follows (unless this is empty) belongs to the reply: a model draws it with the
    /// first word.
    pub assistant: &'static str,
    /// After each message. Where it is empty, contents are taken as they are; else they are normalised ([`normalise`]).
    pub end: &'static str,
    /// What a prompt puts behind `assistant` for the reply to go on with, such as ` <think`.
    pub opening: &'static str,
    /// Put behind what a person says.
    pub suffix: &'static str,
    /// What becomes of reasoning.
    pub reasoning: Reasoning,
}

/// World chat, as in `API_DEMO_CHAT.py` and the World model cards. A function's result as the G1 models are trained.
const WORLD: Format = Format {
    name: "world",
    preamble: "",
    system: "System: ",
    user: "User: ",
    user_after_system: "User: ",
    tool: Some("User: Function output:\n"),
    assistant: "Assistant:",
    end: "\n\n",
    opening: "",
    suffix: "",
    reasoning: Reasoning::None,
};

/// Raven (RWKV-4, `v2/benchmark_more.py`): Bob asks, Alice answers. A system message is a paragraph before them.
const RAVEN: Format = Format {
    name: "raven",
    system: "",
    user: "Bob: ",
    user_after_system: "Bob: ",
    tool: None,
    assistant: "Alice:",
    ..WORLD
};

/// A Pile model is no chat model; a short scene (in the manner of the reference's prompts, words ours) makes it one.
const PILE_PREAMBLE: &str = "The following is a detailed conversation between Bob, who asks questions, and his \
friend Alice, who knows a great deal and answers kindly and exactly.\n\nBob: Hello Alice, do you have a moment?\n\n\
Alice: Hi Bob! Of course. What would you like to know?\n\n";

/// Instruction tuning format of the World model cards. A system message is the instruction, user messages are its
/// inputs; without one each user message is an instruction.
const INSTRUCT: Format = Format {
    name: "instruct",
    system: "Instruction: ",
    user: "Instruction: ",
    user_after_system: "Input: ",
    tool: None,
    assistant: "Response:",
    ..WORLD
};

/// No roles, no normalisation: the contents as they are, one after the other.
const COMPLETION: Format = Format {
    name: "completion",
    system: "",
    user: "",
    user_after_system: "",
    tool: None,
    assistant: "",
    end: "",
    ..WORLD
};

/// G1: the think tag is left unclosed so that the model closes it; after `<think>\n</think` it answers at once. The
/// suffixes ask for that much (models from September 2025).
const fn g1(name: &'static str, opening: &'static str, suffix: &'static str) -> Format {
    Format { name, opening, suffix, reasoning: Reasoning::Written, ..WORLD }
}

/// All formats.
static FORMATS: [Format; 10] = [
    WORLD,
    Format { reasoning: Reasoning::Empty, ..g1("g1", " <think>\n</think", "") },
    g1("g1-think", " <think", ""),
    g1("g1-think-normal", " <think", " (think)"),
    g1("g1-think-a-bit", " <think", " (think a bit)"),
    g1("g1-think-a-lot", " <think", " (think a lot)"),
    RAVEN,
    Format { name: "pile", preamble: PILE_PREAMBLE, ..RAVEN },
    INSTRUCT,
    COMPLETION,
];

/// A message on its way into a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Cow<'a, str>,
    /// What an assistant thought before it, where that is told apart.
    pub reasoning: Option<&'a str>,
}

impl<'a> Turn<'a> {
    /// Of plain words.
    pub fn new(role: Role, content: impl Into<Cow<'a, str>>) -> Self {
        Turn { role, content: content.into(), reasoning: None }
    }
}

/// A conversation as a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// The text, without what would end its last message: the document's end does.
    pub text: String,
    /// The replies in it, in bytes: each from where a prompt ends to behind what ends the turn. The token that ends the
    /// document stands behind the last byte: a last reply reaches one beyond the text.
    pub replies: Vec<Range<usize>>,
    /// Messages whose reasoning the format has no place for.
    pub reasoning_left_out: u64,
}

impl Format {
    /// All of them: `world` first.
    pub fn all() -> &'static [Format] {
        &FORMATS
    }

    /// By its name.
    pub fn named(name: &str) -> Option<&'static Format> {
        FORMATS.iter().find(|f| f.name == name)
    }

    /// The names of all, with commas.
    pub fn names() -> String {
        FORMATS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
    }

    /// Writes a conversation. What comes before a reply is what a prompt for that reply is.
    pub fn write(&self, turns: &[Turn<'_>]) -> Written {
        let mut out = Written::default();
        let after_system = turns.first().is_some_and(|t| t.role == Role::System);
        if !after_system {
            out.text += self.preamble;
        }
        let user = if after_system { self.user_after_system } else { self.user };
        for (i, turn) in turns.iter().enumerate() {
            let begin = out.text.len();
            out.text += match turn.role {
                Role::System => self.system,
                Role::User => user,
                Role::Tool => self.tool.unwrap_or(user),
                Role::Assistant => self.assistant,
            };
            let content = self.content(turn, &mut out.reasoning_left_out);
            if turn.role == Role::Assistant && !self.assistant.is_empty() {
                out.text.push(' ');
            }
            if self.end.is_empty() {
                out.text += &content
            } else {
                out.text += &normalise(&content)
            }
            let last = i + 1 == turns.len();
            if !last {
                out.text += self.end;
            }
            if turn.role == Role::Assistant {
                let prompt = begin + self.assistant.len() + self.opening.len();
                out.replies.push(prompt..out.text.len() + usize::from(last));
            }
        }
        out
    }

    /// What is said, with what this format adds to it; a reply begins with `opening` (a space aside).
    fn content<'t>(&self, turn: &'t Turn<'_>, left_out: &mut u64) -> Cow<'t, str> {
        let content = &*turn.content;
        match turn.role {
            Role::User if !self.suffix.is_empty() => {
                return format!("{}{}", content.trim_end(), self.suffix).into();
            }
            Role::Assistant => {}
            _ => return content.into(),
        }
        let given = turn.reasoning.map(str::trim).filter(|r| !r.is_empty());
        let (thought, answer) = match (self.reasoning, given) {
            (Reasoning::None, _) => {
                *left_out += u64::from(given.is_some());
                return content.into();
            }
            // Data that has it within the content.
            (_, None) => {
                thought(content).map_or((None, content), |(thought, answer)| (Some(thought), answer))
            }
            (_, given) => (given, content),
        };
        let thought = thought.map(str::trim).filter(|t| !t.is_empty());
        match (self.reasoning, thought) {
            (Reasoning::Written, Some(thought)) => format!("<think>\n{thought}\n</think>\n{answer}").into(),
            (_, thought) => {
                *left_out += u64::from(thought.is_some());
                format!("<think>\n</think>\n{answer}").into()
            }
        }
    }
}

/// Reasoning and answer of `<think>…</think>…`.
fn thought(content: &str) -> Option<(&str, &str)> {
    content.trim_start().strip_prefix("<think>")?.split_once("</think>")
}

/// Content as RWKV's chat data has it: CRLF becomes LF, runs of line breaks (blank lines, also of spaces, between
/// them) become one, white space at both ends goes. A double line break would read as the end of the turn.
pub fn normalise(content: &str) -> String {
    let mut out = String::with_capacity(content.len());
    let content = content.replace("\r\n", "\n");
    for line in content.trim().split('\n').filter(|line| !line.trim().is_empty()) {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(name: &str, turns: &[Turn<'_>]) -> (String, Vec<String>, u64) {
        let Written { mut text, replies, reasoning_left_out } = Format::named(name).unwrap().write(turns);
        // The document's end.
        text.push('∎');
        // A reply that ends the document reaches one byte into that.
        let whole = |r: Range<usize>| if r.end + 2 == text.len() { r.start..text.len() } else { r };
        let replies = replies.into_iter().map(|r| text[whole(r)].to_owned()).collect();
        (text, replies, reasoning_left_out)
    }

    #[test]
    fn replies_begin_behind_the_prompt_and_end_behind_what_ends_them() {
        use Role::{Assistant, System, Tool, User};
        let turns = [
            Turn::new(System, "Be kind."),
            Turn::new(User, " q\r\n\r\nmore "),
            Turn::new(Assistant, "a"),
            Turn::new(Tool, "5"),
            Turn::new(Assistant, " 你好 🦜\n"),
        ];
        let world = "System: Be kind.\n\nUser: q\nmore\n\nAssistant: a\n\nUser: Function output:\n5\n\nAssistant: 你好 🦜∎";
        let want = |of: &[&str]| of.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(replies("world", &turns), (world.into(), want(&[" a\n\n", " 你好 🦜∎"]), 0));
        let raven = "Be kind.\n\nBob: q\nmore\n\nAlice: a\n\nBob: 5\n\nAlice: 你好 🦜∎";
        assert_eq!(replies("raven", &turns).0, raven);
        let instruct =
            "Instruction: Be kind.\n\nInput: q\nmore\n\nResponse: a\n\nInput: 5\n\nResponse: 你好 🦜∎";
        assert_eq!(replies("instruct", &turns).0, instruct);
        let (text, said, _) = replies("completion", &turns);
        assert_eq!((&*text, said), ("Be kind. q\r\n\r\nmore a5 你好 🦜\n∎", want(&["a", " 你好 🦜\n∎"])));
        let (text, said, _) = replies("pile", &turns[1..3]);
        assert!(text.starts_with("The following is") && text.ends_with("\n\nBob: q\nmore\n\nAlice: a∎"));
        assert_eq!(said, [" a∎"]);
        // A conversation that a person ends.
        assert_eq!(replies("world", &turns[..2]).1, [""; 0]);
        assert_eq!(replies("world", &turns[1..4]).1, [" a\n\n"]);
    }

    #[test]
    fn reasoning_stands_where_the_format_has_a_place_for_it() {
        let reply = |content: &'static str, reasoning| {
            [Turn::new(Role::User, "q"), Turn { reasoning, ..Turn::new(Role::Assistant, content) }]
        };
        let both = reply("a", Some("\nlet me\n\nsee "));
        let within = reply("<think>let me\nsee</think>\n\na", None);
        let without = reply("a", None);
        for turns in [&both, &within] {
            let (text, said, left_out) = replies("g1-think-a-bit", turns);
            assert_eq!(text, "User: q (think a bit)\n\nAssistant: <think>\nlet me\nsee\n</think>\na∎");
            assert_eq!((said, left_out), (vec![">\nlet me\nsee\n</think>\na∎".to_owned()], 0));
            let (text, said, left_out) = replies("g1", turns);
            assert_eq!(text, "User: q\n\nAssistant: <think>\n</think>\na∎");
            assert_eq!((said, left_out), (vec![">\na∎".to_owned()], 1));
        }
        for (name, said) in [("g1", ">\na∎"), ("g1-think", ">\n</think>\na∎"), ("world", " a∎")] {
            let (_, replies, left_out) = replies(name, &without);
            assert_eq!((replies, left_out), (vec![said.to_owned()], 0));
        }
        let (text, _, left_out) = replies("world", &both);
        assert_eq!((&*text, left_out), ("User: q\n\nAssistant: a∎", 1));
        // What stands in the content is the content's.
        assert!(replies("world", &within).0.ends_with("Assistant: <think>let me\nsee</think>\na∎"));
        assert!(replies("g1-think", &reply("<think>no end", None)).0.ends_with("</think>\n<think>no end∎"));
    }

    #[test]
    fn names() {
        assert_eq!(Format::all()[0].name, "world");
        assert!(Format::named("qwen").is_none() && Format::names().ends_with("instruct, completion"));
        for name in Role::NAMES.split([' ', ',', '(', ')']).filter(|n| !n.is_empty()) {
            assert!(Role::of_data(name).is_some(), "{name}");
        }
        assert_eq!(Role::of_data("cat"), None);
    }
}
