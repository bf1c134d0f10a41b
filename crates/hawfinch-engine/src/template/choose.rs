//! Which template a model wants, from what is known of it.

use super::Template;
use crate::Result;

/// Which vocabulary a model was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VocabKind {
    /// RWKV World.
    World,
    /// GPT-NeoX 20B, of the Pile and Raven models.
    NeoX,
    /// One id a byte.
    Bytes,
    /// Anything else.
    Other,
}

/// What is known of a model before it speaks.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// Architecture version: 4, 5, 6 or 7.
    pub version: u32,
    /// Vocabulary.
    pub vocab: VocabKind,
    /// The template in the file's metadata (GGUF) or beside it (`tokenizer_config.json`), if any.
    pub chat_template: Option<&'a str>,
    /// File name, repository name or `general.name`: whatever may name the family.
    pub name: &'a str,
}

/// The template for a model, and on a bad one in its metadata an error that names it.
///
/// In this order: a name with G0 or G1 (`rwkv7-g1a-0.4b…`; v7 only) gives `g1`; a template in the metadata is used
/// (llama.cpp's placeholder `rwkv-world` gives `world`); `raven`, `pile`, `instruct` or `world` in the name; then
/// the vocabulary: World gives `world`, NeoX `pile`, anything else `completion`.
///
/// Byte-level models have no end-of-document token (id 0 is the byte 0), so their template stops at none.
pub fn choose(facts: &ModelFacts<'_>) -> Result<Template> {
    let mut template = by_family(facts)?;
    if facts.vocab == VocabKind::Bytes {
        template.stops.tokens.clear();
    }
    Ok(template)
}

fn by_family(facts: &ModelFacts<'_>) -> Result<Template> {
    let name = facts.name.to_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).collect();
    if facts.version == 7 && facts.vocab == VocabKind::World && words.iter().any(|w| is_g_series(w)) {
        return Template::builtin("g1");
    }
    if let Some(source) = facts.chat_template.filter(|s| !s.trim().is_empty()) {
        if source.trim() == "rwkv-world" {
            return Template::builtin("world");
        }
        let t = Template::from_source("of the model file", source)?;
        return if facts.vocab == VocabKind::World { t.of_world_model() } else { Ok(t) };
    }
    for family in ["raven", "pile", "instruct", "world"] {
        if words.iter().any(|w| w.starts_with(family)) {
            return Template::builtin(family);
        }
    }
    Template::builtin(match facts.vocab {
        VocabKind::World => "world",
        VocabKind::NeoX => "pile",
        VocabKind::Bytes | VocabKind::Other => "completion",
    })
}

impl Template {
    /// A template of somebody else's for a World model: such templates keep World's turns, so replies end where the
    /// built-in one's do, and are drawn with its settings.
    pub fn of_world_model(mut self) -> Result<Self> {
        let world = Template::builtin("world")?;
        self.stops = world.stops;
        self.sampler = world.sampler;
        Ok(self)
    }
}

/// `g0`, `g1`, `g1a`, `g0a3`, `g1d`, …
fn is_g_series(word: &str) -> bool {
    let mut c = word.chars();
    c.next() == Some('g')
        && matches!(c.next(), Some('0' | '1'))
        && c.next().is_none_or(|x| x.is_ascii_lowercase())
        && c.all(|x| x.is_ascii_digit())
}
