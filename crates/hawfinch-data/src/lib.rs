//! Text to token data sets for training RWKV models.
//!
//! - [`Inputs`]: files of text, JSONL, their gzip and Zstandard forms, and Parquet, from paths, folders, patterns, standard input.
//! - [`Plan`]: these with what decides the bytes of the data set. [`build`] does the work in parts, in one run or in
//!   shards, in parallel and in memory that does not grow with the corpus (but for some bytes a document).
//! - [`binidx`]: the reference's `.bin`/`.idx` files, written byte for byte and read where they lie.
//! - [`Mask`]: which tokens of a data set are to be learned.
//! - [`sampler`]: in which order training reads them.
//!
//! Nothing here knows of models.

mod assemble;
pub mod binidx;
pub mod build;
mod control;
mod cut;
mod error;
mod feed;
mod jsonl;
mod mask;
mod new_file;
mod open;
mod part;
mod plan;
pub mod sampler;
mod source;
mod summary;
#[cfg(feature = "parquet")]
mod table;
mod tokenise;
mod zstd;

pub use assemble::held_out_name;
pub use control::{BadLines, Control, Invalid, Phase, Policy};
pub use cut::Split;
pub use error::{Error, Result};
pub use mask::{Mask, MaskWriter, mask_name};
pub use open::{Encoding, Kind};
pub use plan::{HeldOut, LossOn, Mixing, Plan, Reading, Shard};
pub use source::{InputFile, Inputs, Source};
pub use summary::{Amount, LabelSummary, SourceSummary, Summary};
