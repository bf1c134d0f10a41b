//! Names of the metadata that hawfinch writes into its own files: what the tensors alone do not say.
//! In safetensors they are `__metadata__`, in `.pth` the record `hawfinch.json`, in GGUF key-values.

/// Every key of ours starts so; other keys of a file are kept when read, not when written.
pub const PREFIX: &str = "hawfinch.";
/// RWKV version, as [`crate::Version::number`] says it.
pub const VERSION: &str = "hawfinch.version";
/// Epsilon of the group norm after WKV.
pub const GROUP_NORM_EPS: &str = crate::config::META_GROUP_NORM_EPS;
/// Head size.
pub const HEAD_SIZE: &str = "hawfinch.head_size";
/// Rows of the embedding.
pub const VOCABULARY: &str = "hawfinch.vocabulary";
/// The vocabulary of a model whose tokenizer is not one of those known by their size: a World vocabulary file's text,
/// lines `ID LITERAL LENGTH`.
pub const TOKENIZER: &str = "hawfinch.tokenizer";
/// Number type of most numbers of the file's linear weights, as [`hawfinch_kernels::DType::name`] says it.
pub const DTYPE: &str = "hawfinch.dtype";
/// Hash of the model that this one was made from, with its scheme (`sha256:…`).
pub const SOURCE_HASH: &str = "hawfinch.source_hash";
/// Block types that the matrices went through since that model, in order (`q8_0`, or `q8_0, q4_0`; `mixed of
/// q4_k/q8_0` where they differ by tensor); kept when they become floating-point numbers again.
pub const QUANTIZED: &str = "hawfinch.quantized";
/// Version of hawfinch that wrote the file.
pub const WRITER: &str = "hawfinch.writer";
/// What the file is, when it is not a model: `state` (a live one, or one that was trained), `lora`.
pub const KIND: &str = "hawfinch.kind";
/// Tokens that a state has consumed.
pub const TOKENS: &str = "hawfinch.tokens";
/// Tokens that the state had consumed at which a saved conversation began.
pub const START_TOKENS: &str = "hawfinch.start_tokens";
/// alpha of a LoRA: its products count alpha / rank.
pub const LORA_ALPHA: &str = "hawfinch.lora_alpha";
/// Rank of a LoRA, or its ranks.
pub const LORA_RANK: &str = "hawfinch.lora_rank";
/// What a LoRA began as, if that is not zero: `pissa` (its second half is what was taken out of the model), `disha` (A is a row
/// of identities).
pub const LORA_INIT: &str = "hawfinch.lora_init";
/// What was merged into the model.
pub const MERGED: &str = "hawfinch.merged";
/// What a file was trained on: tokens, documents, a checksum.
pub const DATA: &str = "hawfinch.data";
/// Identity of the model that a state or an adapter belongs to.
pub const MODEL: &str = "hawfinch.model";
