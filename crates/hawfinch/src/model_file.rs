//! A model's file to be written: which format and number type, and the writing of it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hawfinch_kernels::DType;
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::{Checkpoint, Config, metadata};
use hawfinch_tokenizer::Tokenizer;

use crate::fail::usage;
use crate::output;
use crate::progress::Progress;
use crate::tokenizer_args::{TokenizerOption, of_checkpoint};

/// A file that a model is to be written to.
pub struct ModelFile {
    path: PathBuf,
    /// Its format.
    pub format: SaveFormat,
    /// Number type of the weights, if another than they have.
    pub dtype: Option<DType>,
}

impl ModelFile {
    /// The file at `path`, which may be there already only with `force`; in the format that was asked for or its extension says,
    /// with weights in the number type of that name. `advice` follows what is said of an extension that says none.
    ///
    /// # Errors
    /// It is there, no format, a number type that the format has not.
    pub fn new(
        path: &Path,
        force: bool,
        asked: Option<SaveFormat>,
        dtype: Option<&str>,
        advice: &str,
    ) -> anyhow::Result<ModelFile> {
        output::may_write(path, force)?;
        let format = asked.or_else(|| SaveFormat::from_extension(path)).ok_or_else(|| {
            usage(format!(
                "{} names no format that hawfinch writes: end it in .pth, .safetensors, .gguf or .packed.safetensors{advice}",
                path.display()
            ))
        })?;
        let dtype = dtype.map(|name| parse_dtype(name, format)).transpose()?;
        Ok(ModelFile { path: path.into(), format, dtype })
    }

    /// Writes it and returns its bytes.
    ///
    /// # Errors
    /// A vocabulary that cannot be found; what the system says.
    pub fn write(&self, ckpt: &Checkpoint, tokenizer: &TokenizerOption) -> anyhow::Result<u64> {
        let vocabulary = if self.format == SaveFormat::Gguf { world_tokens(tokenizer, ckpt)? } else { None };
        let mut bar = None;
        let mut tell = |done, total| {
            bar.get_or_insert_with(|| Progress::bytes("writing", total)).set(done);
        };
        let options = SaveOptions {
            format: self.format,
            dtype: self.dtype,
            vocabulary: vocabulary.as_deref(),
            progress: Some(&mut tell),
        };
        format::save(&self.path, ckpt, options)?;
        drop(bar);
        let there = std::fs::metadata(&self.path);
        Ok(there.with_context(|| format!("cannot read {} back", self.path.display()))?.len())
    }
}

/// A number type that may be asked for by name in a format.
pub fn parse_dtype(name: &str, format: SaveFormat) -> anyhow::Result<DType> {
    let known = DType::from_name(name);
    known.filter(|d| format.writes(*d)).ok_or_else(|| {
        let all: Vec<&str> = DType::ALL.into_iter().filter(|d| format.writes(*d)).map(DType::name).collect();
        let gguf_only = known.is_some_and(|d| SaveFormat::Gguf.writes(d));
        let but = if gguf_only { " (GGUF holds it)" } else { "" };
        usage(format!(
            "`{name}` is no number type that is written into this format{but}: choose one of {}",
            all.join(", ")
        ))
    })
}

/// The World vocabulary, for a model that was trained with it: GGUF files carry theirs.
fn world_tokens(asked: &TokenizerOption, ckpt: &Checkpoint) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
    let Ok(config) = Config::infer(ckpt) else { return Ok(None) };
    let tokenizer = match asked.asked()? {
        Some(t) => t,
        None if ckpt.metadata.contains_key(metadata::TOKENIZER)
            || (65_529..=65_536).contains(&config.vocab) =>
        {
            of_checkpoint(ckpt, config.vocab)?
        }
        None => return Ok(None),
    };
    let bytes = |id| tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    Ok(matches!(tokenizer, Tokenizer::World(_))
        .then(|| (0..tokenizer.vocab_size() as u32).map(bytes).collect()))
}
