//! What a data set is made of, as numbers.

use serde::Serialize;

/// Some documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Amount {
    /// Documents; one that is repeated counts each time.
    pub documents: u64,
    /// Tokens, end tokens included.
    pub tokens: u64,
    /// Those of them that are to be learned.
    pub learned: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Characters of text.
    pub characters: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, record: &crate::part::Record, times: u64) {
        self.documents += times;
        self.tokens += times * u64::from(record.tokens);
        self.learned += times * u64::from(record.learned);
        self.bytes += times * u64::from(record.bytes);
        self.characters += times * u64::from(record.chars);
    }

    /// Adds another.
    pub fn join(&mut self, other: &Amount) {
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.learned += other.learned;
        self.bytes += other.bytes;
        self.characters += other.characters;
    }

    /// Characters per token, end tokens not counted; `None` without tokens.
    pub fn characters_per_token(&self) -> Option<f64> {
        let tokens = self.tokens.saturating_sub(self.documents);
        (tokens > 0).then(|| self.characters as f64 / tokens as f64)
    }
}

/// Documents of one label: a language, a kind of text.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LabelSummary {
    /// Its name.
    pub label: String,
    /// What the data set holds of it.
    pub written: Amount,
    /// What the held-out data set holds of it.
    pub held_out: Amount,
    /// Documents left out because an equal text came before.
    pub duplicates: u64,
}

/// Documents of one source, where sources have weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SourceSummary {
    /// The file, folder or pattern.
    pub source: String,
    /// Its share of the tokens as asked for, 0 to 1; `None`: no weights.
    pub asked_share: Option<f64>,
    /// Tokens there are, without duplicates and what is held out.
    pub tokens_there: u64,
    /// Tokens in the data set.
    pub tokens_written: u64,
}

/// What a data set is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// By label, in the order of the sources.
    pub labels: Vec<LabelSummary>,
    /// By source.
    pub sources: Vec<SourceSummary>,
    /// All that was written.
    pub written: Amount,
    /// All that was held out.
    pub held_out: Amount,
    /// Documents left out because an equal text came before.
    pub duplicates: u64,
    /// Documents left out for too few tokens.
    pub too_short: u64,
    /// Documents left out for too many tokens.
    pub too_long: u64,
    /// Lines left out because they are no document.
    pub bad_lines: u64,
    /// Documents left out because they are not UTF-8.
    pub invalid_utf8: u64,
    /// Conversations left out because nothing in them is to be learned.
    pub nothing_to_learn: u64,
    /// Messages whose reasoning was left out because the template has no place for it.
    pub reasoning_left_out: u64,
    /// Whether a mask says which tokens are to be learned, beside the data set and the held-out one.
    pub masked: bool,
    /// Documents in which U+FFFD stands for what is not UTF-8.
    pub replaced_utf8: u64,
}
