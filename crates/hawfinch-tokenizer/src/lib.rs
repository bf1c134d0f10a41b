//! Text to token ids and back for RWKV models: World, GPT-NeoX BPE and raw bytes.
//!
//! Encoding takes any bytes and never fails; decoding gives bytes, which [`StreamDecoder`] turns into text without ever
//! breaking a character. Ids are `u32`. Nothing here knows of models or tensors.
//!
//! - [`Tokenizer`]: any of the three, and the choice by a model's vocabulary size.
//! - [`World`]: greedy longest match over a byte trie; the vocabulary of the World models is built in.
//! - [`Bpe`]: byte-level BPE from a Hugging Face `tokenizer.json`.
//! - [`Bytes`]: ids are bytes.
//! - [`chat`]: conversations to text, by the formats of RWKV's chat models.
//!
//! ```
//! use hawfinch_tokenizer::{StreamDecoder, Tokenizer};
//!
//! let tokenizer = Tokenizer::for_vocab_size(65536, None)?;
//! let ids = tokenizer.encode("The Eiffel tower 🦜".as_bytes());
//! assert_eq!(ids, [6699, 304, 25740, 109, 39990, 33, 3319, 167, 157]);
//!
//! let mut stream = StreamDecoder::new();
//! let mut text = String::new();
//! for id in ids {
//!     text += stream.push(tokenizer.token_bytes(id).unwrap_or_default());
//! }
//! text += stream.finish();
//! assert_eq!(text, "The Eiffel tower 🦜");
//! # Ok::<(), hawfinch_tokenizer::Error>(())
//! ```

mod bpe;
mod bytes;
pub mod chat;
mod error;
mod many;
mod stream;
#[cfg(test)]
mod testing;
mod tokenizer;
mod trie;
mod world;

pub use bpe::Bpe;
pub use bytes::Bytes;
pub use error::{Error, Result};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
pub use world::World;

/// Joins the bytes of `ids`; the common part of all decoders.
fn decode_with<'a>(
    ids: &[u32],
    name: &'static str,
    vocab_size: usize,
    token: impl Fn(u32) -> Option<&'a [u8]>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ids.len().saturating_mul(4));
    for &id in ids {
        bytes.extend_from_slice(token(id).ok_or(Error::UndefinedId { id, name, vocab_size })?);
    }
    Ok(bytes)
}
