//! The chat template that belongs to a model, told from its version, vocabulary, name and what lies beside it.

use std::path::Path;

use hawfinch_engine::Template;
use hawfinch_engine::template::{ModelFacts, VocabKind, choose};
use hawfinch_model::{Checkpoint, Config, Model};
use hawfinch_tokenizer::Tokenizer;

/// Largest `tokenizer_config.json` that is looked into, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// The template of `--template NAME|FILE`, or the one that belongs to the model. Its replies stop at the token with
/// which this tokenizer ends a document.
pub fn template(asked: Option<&Path>, model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<Template> {
    let mut template = match asked {
        Some(asked) => named(asked, tokenizer)?,
        None => of_checkpoint(model.checkpoint(), model.config(), tokenizer)?,
    };
    // Byte-level models have no token that ends the document: their id 0 is the byte 0.
    template.stops.tokens = tokenizer.eos().into_iter().collect();
    Ok(template)
}

/// The built-in template of that name, or the file.
fn named(asked: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Template> {
    // A name; a file may be called as it likes when it is given with a folder (./world).
    match Template::builtin(asked.to_str().unwrap_or_default()) {
        Ok(template) => Ok(template),
        Err(_) if asked.exists() => {
            let template = Template::from_file(asked)?;
            Ok(if matches!(tokenizer, Tokenizer::World(_)) { template.of_world_model()? } else { template })
        }
        Err(unknown) => Err(unknown.into()),
    }
}

/// The template that belongs to a model.
///
/// # Errors
/// The file brings one that is none.
pub fn of_checkpoint(
    checkpoint: &Checkpoint,
    config: &Config,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Template> {
    let vocab = match tokenizer {
        Tokenizer::World(_) => VocabKind::World,
        Tokenizer::Bpe(_) if (50_277..=50_304).contains(&config.vocab) => VocabKind::NeoX,
        Tokenizer::Bytes(_) => VocabKind::Bytes,
        _ => VocabKind::Other,
    };
    let inside = checkpoint.metadata.get("tokenizer.chat_template").cloned();
    let chat_template = inside.or_else(|| beside(&checkpoint.path));
    let facts = ModelFacts {
        version: config.version.number()[..1].parse().unwrap_or(0),
        vocab,
        chat_template: chat_template.as_deref(),
        name: &names(&checkpoint.path, checkpoint.metadata.get("general.name")),
    };
    Ok(choose(&facts)?)
}

/// Whatever may name the family: file, folder, the name within the file.
fn names(path: &Path, inner: Option<&String>) -> String {
    let last = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let folder = path.parent().and_then(last);
    [last(path), folder, inner.cloned()].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// `chat_template` of a `tokenizer_config.json` in the model's folder.
fn beside(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    let file = folder.join("tokenizer_config.json");
    if std::fs::metadata(&file).ok()?.len() > MAX_CONFIG {
        return None;
    }
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    json.get("chat_template")?.as_str().map(str::to_owned)
}
