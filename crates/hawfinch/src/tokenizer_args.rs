//! Which tokenizer a command uses: by name, from a file, or the one that belongs to the model.

use std::path::{Path, PathBuf};

use hawfinch_model::{Checkpoint, Model, metadata};
use hawfinch_tokenizer::{Error, Tokenizer};

use crate::model_args::open_checkpoint;

/// The option `--tokenizer`.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct TokenizerOption {
    /// `world`, `bytes`, or a file: a World vocabulary, a tokenizer.json, or a model that carries its vocabulary [default:
    /// the model's own, or by its size]
    #[arg(long, value_name = "NAME|FILE")]
    tokenizer: Option<PathBuf>,
}

impl TokenizerOption {
    /// The tokenizer that was asked for, if one was.
    pub fn asked(&self) -> anyhow::Result<Option<Tokenizer>> {
        self.tokenizer.as_deref().map(named).transpose()
    }

    /// The tokenizer for a model; a model whose ids go beyond the tokenizer's is fine, the reverse is not.
    pub fn for_model(&self, model: &Model) -> anyhow::Result<Tokenizer> {
        self.for_checkpoint(model.checkpoint(), model.config().vocab)
    }

    /// As [`TokenizerOption::for_model`], for a checkpoint whose model has a vocabulary of that size.
    pub fn for_checkpoint(&self, ckpt: &Checkpoint, vocab: usize) -> anyhow::Result<Tokenizer> {
        let Some(tokenizer) = self.asked()? else { return of_checkpoint(ckpt, vocab) };
        // World has 65,530 ids; models of fewer rows, such as test models, would fail at the first such id.
        tokenizer.check_fits(vocab, self.tokenizer.as_deref().unwrap_or(&ckpt.path))?;
        Ok(tokenizer)
    }
}

/// The tokenizer that belongs to a model: the one it carries, else the one of its size.
pub fn of_checkpoint(ckpt: &Checkpoint, vocab: usize) -> anyhow::Result<Tokenizer> {
    Ok(match ckpt.metadata.get(metadata::TOKENIZER) {
        Some(carried) => Tokenizer::from_carried(carried, vocab, &ckpt.path)?,
        None => Tokenizer::for_vocab_size(vocab, Some(&ckpt.path))?,
    })
}

/// The option `--tokenizer` of commands without a model.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct DataTokenizer {
    /// `world`, `bytes`, or a file: a World vocabulary, a tokenizer.json, or a model that carries its vocabulary
    #[arg(long, value_name = "NAME|FILE", default_value = "world")]
    tokenizer: PathBuf,
}

impl DataTokenizer {
    /// The tokenizer.
    pub fn open(&self) -> anyhow::Result<Tokenizer> {
        named(&self.tokenizer)
    }
}

/// A tokenizer by its name, from a file of its own, or from a model that carries its vocabulary.
pub fn named(name: &Path) -> anyhow::Result<Tokenizer> {
    match name.to_str() {
        Some("world") => return Ok(Tokenizer::world()),
        Some("bytes") => return Ok(Tokenizer::bytes()),
        _ => {}
    }
    let error = match Tokenizer::from_file(name) {
        Ok(tokenizer) => return Ok(tokenizer),
        Err(e) => e,
    };
    if matches!(error, Error::UnknownFile(_) | Error::Io { .. })
        && let Ok(model) = open_checkpoint(name)
        && let Some(carried) = model.metadata.get(metadata::TOKENIZER)
    {
        let vocab = hawfinch_model::Config::infer(&model)?.vocab;
        return Ok(Tokenizer::from_carried(carried, vocab, name)?);
    }
    Err(error.into())
}
