//! Speculative decoding on the command line: what guesses, and how far.

use std::path::PathBuf;
use std::sync::Arc;

use hawfinch_engine::speculate::{ModelDrafter, NgramDrafter};
use hawfinch_engine::{Feed, LanguageModel, Result, Speculation};
use hawfinch_model::{Model, State};

use crate::model_args::ModelOptions;
use crate::progress::Progress;
use crate::runner::{FIRST_PIECE, read_in_pieces};
use crate::signal;

/// The name of what needs no model; a file of that name is given with its folder (`./ngram`).
const NGRAM: &str = "ngram";

/// Options of commands that write one text at a time.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Speculation options")]
pub struct SpeculateOptions {
    /// Guess tokens ahead and verify them in one step, which gives the same text sooner: `ngram` (as the text went
    /// on before) or a smaller model of the same vocabulary
    #[arg(long, value_name = "ngram|MODEL")]
    speculate: Option<PathBuf>,
    /// Guess at most so many tokens a step; fewer are guessed, or none, where more do not pay
    #[arg(long, value_name = "K", default_value_t = 16, requires = "speculate", value_parser = clap::value_parser!(u16).range(1..=256))]
    draft_tokens: u16,
}

impl SpeculateOptions {
    /// Whether it was asked for.
    pub fn is_given(&self) -> bool {
        self.speculate.is_some()
    }

    /// What was asked for, for this model, which was opened with these options.
    pub fn open(&self, options: &ModelOptions, model: &Model) -> anyhow::Result<Option<Guessing>> {
        let Some(what) = &self.speculate else { return Ok(None) };
        let most = usize::from(self.draft_tokens);
        if what.as_os_str() == NGRAM {
            return Ok(Some(Guessing {
                speculation: Speculation::new(NgramDrafter::new(), most),
                files: Vec::new(),
            }));
        }
        let draft = options.open_draft(what, model)?;
        let files = draft.checkpoint().files.clone();
        let drafter = ModelDrafter::new(Draft(Arc::new(draft)), model.config().vocab)?;
        Ok(Some(Guessing { speculation: Speculation::new(drafter, most), files }))
    }
}

/// What guesses.
pub struct Guessing {
    /// For the session.
    pub speculation: Speculation,
    /// The draft model's files, which are read while it runs: nothing may be written over them.
    pub files: Vec<PathBuf>,
}

/// A draft model as the commands run it: Ctrl-C stops its reading, and a long one shows a bar.
#[derive(Clone)]
struct Draft(Arc<Model>);

impl LanguageModel for Draft {
    type State = State;

    fn vocab(&self) -> usize {
        self.0.config().vocab
    }

    fn new_state(&self) -> State {
        self.0.new_state()
    }

    fn state_bytes(&self) -> usize {
        self.0.state_bytes()
    }

    fn cancelled(&self) -> bool {
        signal::pressed()
    }

    fn forward(&self, feeds: &mut [Feed<'_, State>]) -> Result<()> {
        let tokens: usize = feeds.iter().map(|f| f.tokens.len()).sum();
        if tokens <= FIRST_PIECE {
            return LanguageModel::forward(&*self.0, feeds);
        }
        read_in_pieces(&self.0, feeds, &mut Progress::count("the draft model reads", tokens as u64))
    }
}
