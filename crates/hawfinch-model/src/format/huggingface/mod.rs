//! Hugging Face: folders of one or many weight files with a `config.json`, and the names that
//! transformers' RWKV models give the parameters. Folders are in [`folder`], the names of
//! RWKV-4/5/6 models (`rwkv.blocks.N.attention…`) in [`names`], flash-linear-attention's in [`fla`].

mod fla;
mod folder;
mod names;

pub(super) use folder::open;

use crate::Result;
use crate::checkpoint::{Checkpoint, FileFormat};

/// Gives a checkpoint with Hugging Face names its official ones; any other is returned as it is.
pub(super) fn translate(mut ckpt: Checkpoint) -> Result<Checkpoint> {
    if names::recognise(&ckpt) {
        ckpt.format = FileFormat::HuggingFace;
        return names::translate(ckpt);
    }
    if fla::recognise(&ckpt) {
        ckpt.format = FileFormat::HuggingFace;
        return fla::translate(ckpt);
    }
    Ok(ckpt)
}
