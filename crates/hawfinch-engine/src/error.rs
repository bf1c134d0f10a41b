//! Everything that can go wrong in this crate, one sentence each.

use hawfinch_model::Printable;

/// An error of the engine: what is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A sampler setting is outside its range.
    #[error("the sampler setting `{setting}` is {value}: it must be {range}")]
    Setting {
        /// Name of the setting as in `SamplerConfig`.
        setting: &'static str,
        /// The refused value, as text.
        value: String,
        /// The accepted values, in words.
        range: &'static str,
    },
    /// A logit is NaN or +infinity.
    #[error(
        "the logit of token {id} is {value}, so no token can be sampled: the weights are damaged or the computation overflowed; `hawfinch verify` on the model tells which"
    )]
    BadLogit {
        /// The first token with such a logit.
        id: u32,
        /// Its logit.
        value: f32,
    },
    /// Every token is banned or has a logit of -infinity.
    #[error(
        "no token is left to sample from: all {vocab} logits are -infinity after bias and penalties; remove some bans"
    )]
    NothingLeft {
        /// Number of logits.
        vocab: usize,
    },
    /// A stop string is empty.
    #[error(
        "stop string number {index} is empty: it would stop every reply before its first byte; remove it"
    )]
    EmptyStop {
        /// Position in the list, from 0.
        index: usize,
    },
    /// A chat template does not parse.
    #[error("the chat template `{name}` does not parse: {}", Printable(reason))]
    TemplateSyntax {
        /// Name of the template.
        name: String,
        /// The parser's words, with the line.
        reason: String,
    },
    /// A chat template failed while it was rendered.
    #[error("the chat template `{name}` cannot render this conversation: {}", Printable(reason))]
    TemplateRender {
        /// Name of the template.
        name: String,
        /// The engine's or the template's own words.
        reason: String,
    },
    /// A chat template file cannot be read.
    #[error("cannot read the chat template {path}: {reason}")]
    TemplateFile {
        /// The path as given.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A built-in template that does not exist.
    #[error("there is no built-in chat template `{name}`: choose one of {known}, or give a file")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A grammar that cannot be followed.
    #[error("the {kind} cannot be followed: {}", Printable(reason))]
    Grammar {
        /// What kind of grammar it is.
        kind: &'static str,
        /// The grammar engine's words.
        reason: String,
    },
    /// A token id that the model does not have.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocab}: the text was encoded with another model's tokenizer"
    )]
    TokenRange {
        /// The offending id.
        id: u32,
        /// Vocabulary size of the model.
        vocab: usize,
    },
    /// The model refused or failed a step.
    #[error("{0}")]
    Model(String),
    /// A draft model of another vocabulary.
    #[error(
        "the draft model has a vocabulary of {draft} tokens, the model one of {target}: a draft model must use the model's tokenizer, so choose one of the same family"
    )]
    DraftVocab {
        /// Vocabulary size of the draft model.
        draft: usize,
        /// Vocabulary size of the model it drafts for.
        target: usize,
    },
    /// The draft model refused or failed a step.
    #[error("the draft model failed ({0}); without it the text is the same")]
    Draft(String),
    /// The tokenizer has no text for an id, or cannot encode.
    #[error("{0}")]
    Tokenizer(String),
    /// A request whose time was over before its prompt was read.
    #[error("the request waited longer than it may take: try again later, or allow more time")]
    TimedOut,
    /// A request whose prompt was not read when what computes was stopped.
    #[error(
        "the server is shutting down, or the model is taken away: send the request again to one that runs"
    )]
    Stopping,
    /// A fault of the program.
    #[error("the computation broke off by a fault of the program: the request may be sent again")]
    Broken,
    /// A turn that does not exist.
    #[error("there is no turn {turn} to go back to: this session has {turns}")]
    NoSuchTurn {
        /// The turn asked for.
        turn: usize,
        /// The number of turns held.
        turns: usize,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
