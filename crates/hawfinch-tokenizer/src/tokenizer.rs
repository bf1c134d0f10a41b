//! One type for all tokenizers, and the choice of the right one for a model.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::{Bpe, Bytes, World};

/// Largest tokenizer file that is read, in bytes (GPT-NeoX 20B's has 2.5 MB).
const MAX_FILE: u64 = 1 << 28;

/// File names of a `tokenizer.json` beside a model.
const BESIDE: [&str; 2] = ["tokenizer.json", "20B_tokenizer.json"];

/// Any of the tokenizers. Cloning is cheap: the tables are shared.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Tokenizer {
    /// Greedy longest match (World models).
    World(Arc<World>),
    /// Byte-level BPE (Pile models).
    Bpe(Arc<Bpe>),
    /// Raw bytes (byte-level models).
    Bytes(Bytes),
}

impl Tokenizer {
    /// The built-in World tokenizer. It is built at the first call (some milliseconds) and shared from then on.
    pub fn world() -> Tokenizer {
        Tokenizer::World(World::built_in())
    }

    /// Raw bytes.
    pub fn bytes() -> Tokenizer {
        Tokenizer::Bytes(Bytes)
    }

    /// The contents of a tokenizer file: a World vocabulary or a `tokenizer.json`, told apart by their first
    /// character. `None` if it is neither.
    ///
    /// # Errors
    /// What [`World::from_vocabulary`] or [`Bpe::from_tokenizer_json`] says.
    pub fn from_bytes(file: &[u8]) -> Result<Option<Tokenizer>> {
        // Both are text. A safetensors file begins with a length of eight bytes, the first of which may be a digit.
        if file.iter().take(8).any(|b| *b == 0) {
            return Ok(None);
        }
        let start = file.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(file).trim_ascii_start();
        match start.first() {
            Some(b'{') => Ok(Some(Tokenizer::Bpe(Arc::new(Bpe::from_tokenizer_json(start)?)))),
            Some(b'0'..=b'9') => Ok(Some(Tokenizer::World(Arc::new(World::from_vocabulary(file)?)))),
            _ => Ok(None),
        }
    }

    /// Reads a World vocabulary or a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 256 MiB, is neither, or is malformed; the message names the file.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        let file = read(path)?;
        match Tokenizer::from_bytes(&file) {
            Ok(Some(tokenizer)) => Ok(tokenizer),
            Ok(None) => Err(Error::UnknownFile(path.into())),
            Err(source) => Err(Error::InFile { path: path.into(), source: Box::new(source) }),
        }
    }

    /// The tokenizer of a model with `vocab_size` rows of embeddings: 65,529 to 65,536 World, 50,277 to 50,304 GPT-NeoX
    /// 20B, 256 bytes. GPT-NeoX needs a `tokenizer.json` or `20B_tokenizer.json` in the directory `beside`, or beside
    /// it if it is a file (the model).
    ///
    /// # Errors
    /// The size is none of these; the file is missing, wrong, or has more ids than the model. Each message says what
    /// to do.
    pub fn for_vocab_size(vocab_size: usize, beside: Option<&Path>) -> Result<Tokenizer> {
        match vocab_size {
            256 => Ok(Tokenizer::bytes()),
            65_529..=65_536 => Ok(Tokenizer::world()),
            50_277..=50_304 => {
                let directory = beside.map(|path| {
                    let parent =
                        path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                    if path.is_dir() { path } else { parent }
                });
                let found = directory.and_then(|directory| {
                    BESIDE.iter().map(|name| directory.join(name)).find(|path| path.is_file())
                });
                let Some(path) = found else {
                    let searched =
                        directory.map_or(String::new(), |d| format!(" (looked in {})", d.display()));
                    return Err(Error::NeoxTokenizerMissing { vocab_size, searched });
                };
                let tokenizer = Tokenizer::from_file(&path)?;
                tokenizer.check_fits(vocab_size, &path)?;
                Ok(tokenizer)
            }
            other => Err(Error::UnknownVocabSize(other)),
        }
    }

    /// The tokenizer of a model that carries its vocabulary (see [`Tokenizer::carried`]).
    ///
    /// # Errors
    /// It is no World vocabulary, or has more ids than the model's `vocab_size`.
    pub fn from_carried(vocabulary: &str, vocab_size: usize, model: &Path) -> Result<Tokenizer> {
        let world = World::from_vocabulary(vocabulary.as_bytes())
            .map_err(|source| Error::InFile { path: model.into(), source: Box::new(source) })?;
        let tokenizer = Tokenizer::World(Arc::new(world));
        tokenizer.check_fits(vocab_size, model)?;
        Ok(tokenizer)
    }

    /// The vocabulary that a model of this tokenizer must carry for others to find it: a World vocabulary that is not the
    /// built-in one, as the text of its file.
    pub fn carried(&self) -> Option<String> {
        match self {
            Tokenizer::World(world) if !world.is_built_in() => Some(world.to_vocabulary()),
            _ => None,
        }
    }

    /// Checks that a model of `vocab_size` rows has a row for each id of this tokenizer, read from `path`.
    ///
    /// # Errors
    /// [`Error::TooManyIds`] otherwise.
    pub fn check_fits(&self, vocab_size: usize, path: &Path) -> Result<()> {
        if self.vocab_size() > vocab_size {
            return Err(Error::TooManyIds { path: path.into(), highest: self.vocab_size() - 1, vocab_size });
        }
        Ok(())
    }

    /// What kind of vocabulary this is: `World`, `GPT-NeoX 20B`, `bytes`, or `World vocabulary file`, `byte-level BPE`
    /// for others of these forms.
    pub fn name(&self) -> &'static str {
        match self {
            Tokenizer::World(world) => world.name(),
            Tokenizer::Bpe(bpe) => bpe.name(),
            Tokenizer::Bytes(bytes) => bytes.name(),
        }
    }

    /// Highest id + 1. A model may have more rows, which no text uses.
    pub fn vocab_size(&self) -> usize {
        match self {
            Tokenizer::World(world) => world.vocab_size(),
            Tokenizer::Bpe(bpe) => bpe.vocab_size(),
            Tokenizer::Bytes(bytes) => bytes.vocab_size(),
        }
    }

    /// The id that ends a text: 0 for World and GPT-NeoX 20B, none for bytes.
    pub fn eos(&self) -> Option<u32> {
        match self {
            Tokenizer::World(_) => Some(0),
            Tokenizer::Bpe(bpe) => bpe.eos(),
            Tokenizer::Bytes(_) => None,
        }
    }

    /// Whether an id is a control token rather than text: World's 0, the special tokens of a `tokenizer.json`.
    pub fn is_special(&self, id: u32) -> bool {
        match self {
            Tokenizer::World(_) => id == 0,
            Tokenizer::Bpe(bpe) => bpe.is_special(id),
            Tokenizer::Bytes(_) => false,
        }
    }

    /// The ids of a text; any bytes will do.
    pub fn encode(&self, text: &[u8]) -> Vec<u32> {
        match self {
            Tokenizer::World(world) => world.encode(text),
            Tokenizer::Bpe(bpe) => bpe.encode(text),
            Tokenizer::Bytes(bytes) => bytes.encode(text),
        }
    }

    /// Appends the ids of a text to `ids`.
    pub fn encode_into(&self, text: &[u8], ids: &mut Vec<u32>) {
        match self {
            Tokenizer::World(world) => world.encode_into(text, ids),
            Tokenizer::Bpe(bpe) => bpe.encode_into(text, ids),
            Tokenizer::Bytes(bytes) => bytes.encode_into(text, ids),
        }
    }

    /// The ids of many documents, in their order, found by `threads` threads (0: as many as the machine has).
    /// Exactly what [`Tokenizer::encode`] gives for each.
    pub fn encode_many<T: AsRef<[u8]> + Sync>(&self, documents: &[T], threads: usize) -> Vec<Vec<u32>> {
        crate::many::encode_many(documents, threads, |document| self.encode(document))
    }

    /// The ids of one long document. World uses `threads` threads (0: as many as the machine has), the others one;
    /// the result is exactly [`Tokenizer::encode`]'s.
    pub fn encode_parallel(&self, text: &[u8], threads: usize) -> Vec<u32> {
        match self {
            Tokenizer::World(world) => world.encode_parallel(text, threads),
            Tokenizer::Bpe(_) | Tokenizer::Bytes(_) => self.encode(text),
        }
    }

    /// The bytes of a token; `None` for an id without one. World's 0 has no bytes, special tokens their text.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        match self {
            Tokenizer::World(world) => world.token_bytes(id),
            Tokenizer::Bpe(bpe) => bpe.token_bytes(id),
            Tokenizer::Bytes(bytes) => bytes.token_bytes(id),
        }
    }

    /// The bytes of a text's ids. They need not be valid UTF-8; [`crate::StreamDecoder`] makes text of them.
    ///
    /// # Errors
    /// [`Error::UndefinedId`] for an id without a token.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        crate::decode_with(ids, self.name(), self.vocab_size(), |id| self.token_bytes(id))
    }

    /// The text of ids, come what may: U+FFFD for each id without a token and for bytes that are not UTF-8.
    pub fn decode_lossy(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len().saturating_mul(4));
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id).unwrap_or("\u{FFFD}".as_bytes()));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    // One byte above the limit shows that there is more.
    std::fs::File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::UnknownFile(path.into()));
    }
    Ok(bytes)
}
