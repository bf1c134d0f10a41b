//! What a run is: every setting, with its default. As TOML it is flat, one key a setting; the command line has a flag of
//! the same name for each.

use std::path::PathBuf;

use hawfinch_data::LossOn;
use hawfinch_kernels::gemm::Precision;
use hawfinch_model::Version;
use serde::{Deserialize, Serialize};

use crate::adamw::Settings;
use crate::collective::Wire;
use crate::groups::Layerwise;
use crate::schedule::{Length, Schedule, Shape};
use crate::tuning::{LoraInit, LoraSettings, Method};
use crate::{Error, Result, Segments};

/// In which order samples are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Windows of the context's length in a seeded shuffle, for data of any size.
    #[default]
    Shuffle,
    /// The reference's order, for data that is large enough for it.
    MagicPrime,
    /// Whole documents, each from a fresh state.
    Packed,
}

/// Number type of the operands of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operands {
    /// bf16, sums in f32; weights and moments are f32 all the same.
    #[default]
    Bf16,
    /// f32.
    F32,
}

impl From<Operands> for Precision {
    fn from(operands: Operands) -> Precision {
        match operands {
            Operands::Bf16 => Precision::Bf16,
            Operands::F32 => Precision::Full,
        }
    }
}

/// All settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct RunConfig {
    /// Folder of the run: checkpoints, metrics, plots.
    pub out: PathBuf,
    /// The model to start from; without one, a new model of the sizes below.
    pub from: Option<PathBuf>,
    /// RWKV version of a new model: 4, 5.0, 5.1, 5.2, 6 or 7; `attention`: the transformer to compare them with.
    pub version: String,
    /// Its layers.
    pub layers: usize,
    /// Its width.
    pub width: usize,
    /// Its head size.
    pub head_size: usize,
    /// Inner width of its channel mix; by default the reference's.
    pub ffn_width: Option<usize>,
    /// Rows of its embedding; by default what the tokenizer needs.
    pub vocab: Option<usize>,
    /// `world`, `bytes`, or a vocabulary file; by default that of the model in `from`, else `world`.
    pub tokenizer: Option<String>,

    /// What is trained: the model, a LoRA beside it, or the state that texts begin with.
    pub method: Method,
    /// LoRA: rank of the products.
    pub lora_rank: usize,
    /// LoRA: the product counts alpha / rank; by default as much as the rank.
    pub lora_alpha: Option<f64>,
    /// LoRA: what it begins as.
    pub lora_init: LoraInit,
    /// LoRA: which linear layers; none for all but the head.
    pub lora_modules: Vec<String>,
    /// LoRA: what is trained whole beside it: `ln`, `time`, `emb`, `head`.
    pub train_parts: Vec<String>,

    /// A data set: NAME of NAME.bin and NAME.idx.
    pub data: Option<PathBuf>,
    /// Text files to make one of (as `data build` takes them), in the folder of the run.
    pub text: Vec<String>,
    /// How conversations in `text` are written, as `data build --template` says it; by default as the model in
    /// `from` is talked with, else `world`.
    pub template: Option<String>,
    /// What is learned of conversations in `text`; by default the assistant's words.
    pub loss_on: Option<LossOn>,
    /// A data set for validation; by default what was held out of `data`, if it lies beside it.
    pub validation: Option<PathBuf>,
    /// Part of the documents of `text` that is held out for validation.
    pub held_out: f64,
    /// In which order samples are read.
    pub order: Order,
    /// Tokens of a sample.
    pub ctx: usize,
    /// Samples of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulate: usize,
    /// Tokens of a micro-batch that are computed at a time, gradients carried back from part to part; 0: all.
    pub segment: usize,
    /// Whether gradients end at the borders of segments: an approximation.
    pub truncate: bool,
    /// Seed of the initialisation and of the order of samples.
    pub seed: u64,

    /// Steps of the run.
    pub steps: Option<u64>,
    /// Tokens of the run, in place of steps.
    pub tokens: Option<u64>,
    /// Passes over the data, in place of steps.
    pub epochs: Option<f64>,

    /// How the learning rate goes.
    pub schedule: Shape,
    /// Learning rate after warm-up.
    pub lr: f64,
    /// Learning rate at the end.
    pub lr_final: Option<f64>,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// What the first step of warm-up is multiplied by.
    pub warmup_start: f64,
    /// Whether a resumed run warms up again, as the references do.
    pub warmup_again: bool,
    /// `wsd`: the part of the run in which the rate goes down.
    pub decay_fraction: f64,
    /// Weight decay of the matrices.
    pub weight_decay: f64,
    /// Where weight decay goes.
    pub weight_decay_final: Option<f64>,
    /// Which parameters learn faster.
    pub layerwise: Layerwise,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Longest global gradient; 0: any.
    pub clip: f64,
    /// Factor of L2Wrap; 0: none.
    pub l2wrap: f64,

    /// Number type of the operands of matrix products.
    pub precision: Operands,
    /// Whether blocks are computed again on the way back: slower, in far less memory.
    pub recompute: bool,

    /// Several ranks: how many share the segments of each micro-batch, handing states on.
    pub sequence_ranks: usize,
    /// Several ranks: how gradients travel.
    pub wire: Wire,
    /// Several ranks: 1 shares the optimiser's moments out among them (ZeRO, stage 1); 0: all have all.
    pub zero: u8,
    /// Several ranks: megabytes of gradients that are added up at a time.
    pub bucket: f64,

    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints that are kept, the best beside them.
    pub keep: usize,
    /// Steps between validations; 0: none but the last.
    pub eval_every: u64,
    /// Tokens of a validation at most.
    pub eval_tokens: u64,
    /// Steps between sample texts; 0: none.
    pub sample_every: u64,
    /// What sample texts begin with.
    pub prompt: String,
    /// A JSONL file of texts (`text`) whose last words are to be guessed at each validation.
    pub probe: Option<PathBuf>,
    /// Validations without a better loss after which the run ends; 0: never.
    pub patience: u32,
    /// Bad steps in a row after which the run goes back to its last checkpoint; 0: it never does.
    pub rewind_after: u32,
    /// What the learning rate is multiplied by then.
    pub rewind_rate: f64,
}

impl Default for RunConfig {
    fn default() -> Self {
        let (schedule, adam) = (Schedule::default(), Settings::default());
        RunConfig {
            out: "runs/new".into(),
            from: None,
            version: "7".into(),
            layers: 12,
            width: 768,
            head_size: 64,
            ffn_width: None,
            vocab: None,
            tokenizer: None,
            method: Method::default(),
            lora_rank: 32,
            lora_alpha: None,
            lora_init: LoraInit::Zero,
            lora_modules: Vec::new(),
            train_parts: Vec::new(),
            data: None,
            text: Vec::new(),
            validation: None,
            held_out: 0.0,
            template: None,
            loss_on: None,
            order: Order::default(),
            ctx: 512,
            batch: 8,
            accumulate: 1,
            segment: 0,
            truncate: false,
            seed: 1,
            steps: None,
            tokens: None,
            epochs: None,
            schedule: schedule.shape,
            lr: schedule.lr_init,
            lr_final: None,
            warmup_steps: schedule.warmup_steps,
            warmup_start: schedule.warmup_start,
            warmup_again: schedule.warmup_again,
            decay_fraction: schedule.decay_fraction,
            weight_decay: schedule.weight_decay,
            weight_decay_final: schedule.weight_decay_final,
            layerwise: Layerwise::default(),
            beta1: adam.beta1,
            beta2: adam.beta2,
            eps: adam.eps,
            clip: adam.clip,
            l2wrap: crate::verify::L2WRAP,
            precision: Operands::default(),
            recompute: false,
            sequence_ranks: 1,
            wire: Wire::default(),
            zero: 0,
            bucket: 25.0,
            save_every: 500,
            keep: 2,
            eval_every: 500,
            eval_tokens: 1 << 18,
            sample_every: 0,
            prompt: "\n".into(),
            probe: None,
            patience: 0,
            rewind_after: 3,
            rewind_rate: 0.5,
        }
    }
}

impl RunConfig {
    /// The version of a new model.
    ///
    /// # Errors
    /// There is no such version.
    pub fn rwkv_version(&self) -> Result<Version> {
        Version::from_number(&self.version).ok_or_else(|| {
            let known = "4, 5.0, 5.1, 5.2, 6, 7, attention";
            Error::request(format!("version `{}` is none of those there are ({known})", self.version))
        })
    }

    /// How micro-batches are divided.
    pub fn segments(&self) -> Segments {
        Segments { tokens: self.segment, truncated: self.truncate }
    }

    /// What a new adapter is like.
    pub fn lora(&self) -> LoraSettings {
        LoraSettings {
            rank: self.lora_rank,
            alpha: self.lora_alpha.unwrap_or(self.lora_rank as f64),
            init: self.lora_init,
            modules: self.lora_modules.clone(),
            parts: self.train_parts.clone(),
            seed: self.seed,
        }
    }

    /// Tokens of a step, over all micro-batches.
    pub fn tokens_per_step(&self) -> u64 {
        (self.ctx * self.batch * self.accumulate) as u64
    }

    /// How the learning rate goes.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            shape: self.schedule,
            lr_init: self.lr,
            lr_final: self.lr_final.unwrap_or(self.lr / 10.0),
            warmup_steps: self.warmup_steps,
            warmup_start: self.warmup_start,
            warmup_again: self.warmup_again,
            decay_fraction: self.decay_fraction,
            weight_decay: self.weight_decay,
            weight_decay_final: self.weight_decay_final,
        }
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> Settings {
        Settings { beta1: self.beta1, beta2: self.beta2, eps: self.eps, clip: self.clip }
    }

    /// How long the run is over data of so many tokens.
    ///
    /// # Errors
    /// None, or more than one, of `steps`, `tokens` and `epochs` is given.
    pub fn length(&self, data_tokens: u64) -> Result<Length> {
        let per = self.tokens_per_step();
        match (self.steps, self.tokens, self.epochs) {
            (Some(steps), None, None) => Ok(Length::of_steps(steps, per)),
            (None, Some(tokens), None) => Ok(Length::of_tokens(tokens, per)),
            (None, None, Some(epochs)) if epochs > 0.0 && epochs.is_finite() => {
                Ok(Length::of_tokens(((data_tokens as f64 * epochs) as u64).max(1), per))
            }
            (None, None, Some(epochs)) => {
                Err(Error::request(format!("{epochs} epochs are no length of a run")))
            }
            (None, None, None) => {
                Err(Error::request("say how long the run is: give one of `steps`, `tokens` and `epochs`"))
            }
            _ => Err(Error::request("give only one of `steps`, `tokens` and `epochs`")),
        }
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// One sentence: what does not make sense.
    pub fn check(&self) -> Result<()> {
        self.rwkv_version()?;
        self.adamw().check()?;
        if self.method != Method::Full && self.from.is_none() {
            return Err(Error::request(format!(
                "`method` is {}, which trains something beside a model: say beside which with `from`",
                self.method.name()
            )));
        }
        if self.lora_init != LoraInit::Zero && self.lora_alpha.is_some() {
            return Err(Error::request(format!(
                "`lora-alpha` has no meaning with `lora-init` {}, whose product counts once: leave it out",
                self.lora_init.name()
            )));
        }
        if self.data.is_some() && (self.template.is_some() || self.loss_on.is_some()) {
            return Err(Error::request(
                "`template` and `loss-on` say how `text` becomes a data set; `data` is one already, whose mask says what is learned: leave them out",
            ));
        }
        let positive = [
            ("layers", self.layers),
            ("width", self.width),
            ("head-size", self.head_size),
            ("ctx", self.ctx),
            ("batch", self.batch),
            ("accumulate", self.accumulate),
            ("keep", self.keep),
            ("lora-rank", self.lora_rank),
            ("sequence-ranks", self.sequence_ranks),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::request(format!("`{key}` is 0; it must be at least 1")));
        }
        let limits =
            [("layers", self.layers, 1024), ("width", self.width, 1 << 16), ("ctx", self.ctx, 1 << 24)];
        if let Some((key, value, most)) = limits.iter().find(|(_, value, most)| value > most) {
            return Err(Error::request(format!("`{key}` is {value}; at most {most} makes sense")));
        }
        if self.sequence_ranks > 1 && (self.segment == 0 || self.truncate) {
            return Err(Error::request(
                "`sequence-ranks` divides a micro-batch at the borders of its segments, over which gradients go back: set `segment` to the tokens of one, and `truncate` to false",
            ));
        }
        if self.zero > 1 {
            return Err(Error::request(format!("`zero` is {}; it is 0 or 1", self.zero)));
        }
        // A message has at most 2 GB.
        if !(self.bucket > 0.0 && self.bucket <= 500.0) {
            let why = format!("`bucket` is {}; it must be above 0 and at most 500 (megabytes)", self.bucket);
            return Err(Error::request(why));
        }
        if self.save_every == 0 {
            return Err(Error::request(
                "`save-every` is 0; a run that never saves loses all when it is stopped",
            ));
        }
        if !(0.0..0.5).contains(&self.held_out) {
            let why = format!("`held-out` is {}; it must be a part below 0.5, such as 0.01", self.held_out);
            return Err(Error::request(why));
        }
        if !(self.l2wrap >= 0.0 && self.l2wrap.is_finite()) {
            return Err(Error::request(format!("`l2wrap` is {}; the references use 1e-4", self.l2wrap)));
        }
        if !(self.rewind_rate > 0.0 && self.rewind_rate <= 1.0) {
            return Err(Error::request(format!(
                "`rewind-rate` is {}; it must be above 0, at most 1",
                self.rewind_rate
            )));
        }
        match (&self.data, self.text.is_empty()) {
            (None, true) => {
                Err(Error::request("say what to train on: `data` (a data set) or `text` (files of text)"))
            }
            (Some(_), false) => Err(Error::request("give `data` or `text`, not both")),
            _ => Ok(()),
        }
    }
}
