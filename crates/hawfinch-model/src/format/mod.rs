//! One module a file format: bytes of a file → [`Checkpoint`], and back for the formats we write.
//!
//! Every reader is a pure function of untrusted bytes: it never panics, never runs anything the file
//! says, and never allocates by a length it has not compared with the file's own.

pub mod ai00;
mod detect;
mod encode;
pub mod ggml;
pub mod gguf;
mod gguf_container;
mod gguf_names;
mod gguf_write;
mod huggingface;
mod le;
pub mod packed;
mod pickle;
pub mod pth;
mod pth_write;
pub mod safetensors;
mod save;
mod save_made;
mod webrwkv;

pub(crate) use save::replace_file;
pub use save::{SaveFormat, SaveOptions, remove_unfinished, save};
pub use save_made::{MadeTensor, save_made};

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use crate::checkpoint::{Checkpoint, FileFormat};
use crate::{Config, Error, Result};

/// Opens a checkpoint in whatever format it is, told from its content, never from its name: a file, or
/// a folder with one. Tensors get official names; they stay in the mapped file.
///
/// # Errors
/// No such file, a folder without exactly one model, and as [`read`].
pub fn open(path: &Path) -> Result<Checkpoint> {
    if path.is_dir() {
        return huggingface::open(path);
    }
    translate(open_file(path)?)
}

/// A file with the names that stand in it.
fn open_file(path: &Path) -> Result<Checkpoint> {
    let map = map(path)?;
    let mut ckpt = read_file(path, Bytes::from_owner(Mapped(map.clone())))?;
    ckpt.files = vec![path.into()];
    if let Some(packed) = ckpt.packed.as_mut().and_then(Arc::get_mut) {
        packed.is_mapped_by(map);
    }
    Ok(ckpt)
}

/// The bytes of a file with the names that stand in it.
fn read_file(path: &Path, file: Bytes) -> Result<Checkpoint> {
    let ckpt = detect::read_any(path, file.clone())?;
    let is_packed = ckpt.format == FileFormat::Safetensors && packed::recognise(&ckpt.metadata);
    if is_packed { packed::unfold(ckpt, &file) } else { Ok(ckpt) }
}

/// Whether a file's content is a model, or would be if it were whole: a damaged one counts; a file of no known format
/// or of other tensors, a state and a LoRA do not.
pub fn is_model(path: &Path) -> bool {
    let opened = open(path).and_then(|c| Config::infer(&c));
    !matches!(opened, Err(Error::NotAModel { .. } | Error::Io { .. }))
}

/// As [`open`], for a file that should hold a state: where it is no file of any format, that is what is said.
///
/// # Errors
/// As [`open`].
pub fn open_state(path: &Path) -> Result<Checkpoint> {
    if path.is_dir() {
        return Err(Error::not_a_state(path, "it is a folder"));
    }
    match open(path) {
        // The format of no model is the format of no state either.
        Err(Error::NotAModel { path, why }) => Err(Error::NotAState { path, why }),
        other => other,
    }
}

/// As [`open`], from a file's bytes; `path` appears in messages only.
///
/// # Errors
/// Bytes of no known format, and what the format's reader finds wrong.
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    translate(read_file(path, file)?)
}

/// Official names for tensors that a program named in its own way. Formats with names of their own
/// (GGUF, ggml) have them translated by their readers.
fn translate(mut ckpt: Checkpoint) -> Result<Checkpoint> {
    if !matches!(ckpt.format, FileFormat::Pth | FileFormat::Safetensors) {
        return Ok(ckpt);
    }
    unwrap_names(&mut ckpt);
    if ckpt.format == FileFormat::Safetensors && webrwkv::recognise(&ckpt) {
        return webrwkv::translate(ckpt);
    }
    huggingface::translate(ckpt)
}

/// Takes away what training wrappers put before every name.
fn unwrap_names(ckpt: &mut Checkpoint) {
    const WRAPPERS: [&str; 4] = ["_forward_module.", "module.", "_orig_mod.", "model."];
    if !ckpt.tensors.keys().any(|k| k.ends_with(".emb.weight")) {
        return;
    }
    // Wrappers may be nested, but not deeper than there are kinds.
    for _ in WRAPPERS {
        let wrapper = WRAPPERS.into_iter().find(|w| ckpt.tensors.keys().all(|k| k.starts_with(w)));
        let Some(w) = wrapper else { return };
        let tensors = std::mem::take(&mut ckpt.tensors);
        ckpt.tensors = tensors.into_iter().map(|(k, t)| (k[w.len()..].to_string(), t)).collect();
    }
}

/// Maps a file into memory. The mapping is shared by every tensor cut from it.
///
/// # Errors
/// What the system says; a path that is no regular file; an empty file.
pub fn map_file(path: &Path) -> Result<Bytes> {
    Ok(Bytes::from_owner(Mapped(map(path)?)))
}

/// A mapping that bytes are cut from.
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn map(path: &Path) -> Result<Arc<Mmap>> {
    // Asked before it is opened: opening a pipe waits for somebody to write.
    if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        return Err(Error::not_a_model(path, "it is not a regular file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, e))?;
    if meta.len() == 0 {
        return Err(Error::not_a_model(path, "the file is empty"));
    }
    // SAFETY: the mapping is private and read-only. As with every mapped file, truncating or rewriting it
    // while a model is open is undefined; hawfinch itself replaces files by rename, never in place.
    let map = unsafe { memmap2::MmapOptions::new().map(&file) }.map_err(|e| Error::io(path, e))?;
    Ok(Arc::new(map))
}
