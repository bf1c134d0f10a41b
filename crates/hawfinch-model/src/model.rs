//! A model: weights plus state plus tokens gives logits. One call serves prefill, decode and any mixture
//! of sequences.

mod adapter;
mod trace;

pub use adapter::Adapter;
pub(crate) use adapter::AdapterRows;
pub use trace::Trace;

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexSet;

use crate::arch::{Layer, Linear, Loader, Step, Work};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::cpu::Cpu;
use crate::lora::Lora;
use crate::ops::{Batch, Norm, Ops, Reading, Weight};
use crate::state::StateLayout;
use crate::{Error, Result, State, format};

/// Tokens that one step takes at most. Longer calls are divided into steps; the results are the same bits.
pub const STEP_TOKENS: usize = 128;

/// Which rows of a sequence's output are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rows {
    /// None: only the state.
    #[default]
    None,
    /// The last token's.
    Last,
    /// Those of so many last tokens (of all, where there are fewer).
    Tail(usize),
    /// Every token's.
    All,
}

/// One sequence of a call: its new tokens, its state, what to return.
pub struct Sequence<'a, S = State> {
    /// New tokens; at least one.
    pub tokens: &'a [u32],
    /// The state they continue from, and which they change.
    pub state: &'a mut S,
    /// Logits wanted.
    pub logits: Rows,
    /// Hidden rows wanted: the last layer's output after the final norm, which the head multiplies.
    pub hidden: Rows,
}

/// What a call returns for one sequence, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// `[rows, vocab]`
    pub logits: Vec<f32>,
    /// `[rows, width]`
    pub hidden: Vec<f32>,
}

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// LoRA files to apply (unmerged), in order.
    pub loras: Vec<Lora>,
    /// In place of the group-norm epsilon that the file implies.
    pub group_norm_eps: Option<f64>,
}

/// A model ready to run.
pub struct Model<O: Ops = Cpu<f32>> {
    checkpoint: Checkpoint,
    options: OpenOptions,
    /// Where sequences start when the checkpoint brings a tuned state.
    tuned: Option<State>,
    config: Config,
    layout: Arc<StateLayout>,
    /// The modules of its linear layers, by number.
    linears: Arc<IndexSet<String>>,
    ops: O,
    embedding: O::Matrix,
    ln0: Norm<O::Tensor>,
    layers: Vec<Layer<O>>,
    ln_out: Norm<O::Tensor>,
    head: Linear<O>,
    /// What a token costs but the head, and the head.
    work: [Work; 2],
}

impl Model {
    /// Opens a model file or folder of any format; its weights stay in the mapped file.
    ///
    /// # Errors
    /// As [`format::open`] and [`Config::infer`].
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Model::from_checkpoint(format::open(path.as_ref())?, OpenOptions::default(), Cpu::default())
    }
}

impl<O: Ops + 'static> Model<O> {
    /// Prepares the weights of a checkpoint for `ops`.
    ///
    /// # Errors
    /// Not a model of a known version, a misshapen tensor, a LoRA that does not fit, NaN in a vector.
    pub fn from_checkpoint(checkpoint: Checkpoint, options: OpenOptions, ops: O) -> Result<Self> {
        let mut config = Config::infer(&checkpoint)?;
        if let Some(eps) = options.group_norm_eps {
            if !(eps > 0.0 && eps < 1.0) {
                return Err(Error::Invalid(format!("the group-norm epsilon must lie in (0, 1), not {eps}")));
            }
            config.group_norm_eps = eps;
        }
        for lora in &options.loras {
            lora.check(&checkpoint, &config)?;
        }
        let (loras, linears, work) = (&options.loras[..], Default::default(), Default::default());
        let load = Loader { ops: &ops, checkpoint: &checkpoint, config: &config, loras, linears, work };
        let embedding = load.table("emb.weight")?;
        let ln0 = load.layer_norm("blocks.0.ln0")?;
        let layers = load.layers()?;
        let ln_out = load.layer_norm("ln_out")?;
        let body = load.work.take();
        let head = load.linear("head.weight")?;
        let work = [body, load.work.take()];
        let linears = Arc::new(load.linears.into_inner());
        let layout = Arc::new(StateLayout::new(&config));
        let tuned = crate::state_file::tuned_inside(&checkpoint, &config, &layout)?;
        Ok(Model {
            checkpoint,
            options,
            tuned,
            config,
            layout,
            linears,
            ops,
            embedding,
            ln0,
            layers,
            ln_out,
            head,
            work,
        })
    }

    /// Version and sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How it was opened.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The tensors behind the model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Lets go of the checkpoint's tensors, for a model whose operations have taken over all of them and change them: what the
    /// checkpoint says of itself stays, an [identity](Model::identity) it has no longer.
    pub fn forget_tensors(&mut self) {
        self.checkpoint.tensors.clear();
    }

    /// The same of its adapters' tensors.
    pub fn forget_adapters(&mut self) {
        self.options.loras.clear();
    }

    /// Bytes of weights, as they lie in memory, that a token reads: every matrix but the embedding, of which it reads
    /// one row, and the head only when its `logits` are wanted. A step of several tokens reads them once.
    pub fn weight_bytes(&self, logits: bool) -> u64 {
        let row = self.embedding.bytes() as u64 / self.config.vocab as u64;
        row + self.work[0].bytes + if logits { self.work[1].bytes } else { 0 }
    }

    /// Multiply-adds of a token with the weights; the head's only when its `logits` are wanted.
    pub fn multiply_adds(&self, logits: bool) -> u64 {
        self.work[0].multiply_adds + if logits { self.work[1].multiply_adds } else { 0 }
    }

    /// The model's identity: that of its [checkpoint](crate::hash::identity), then `+lora:` and a fingerprint
    /// for each LoRA file applied. A state belongs to what computed it. Hashing a large file takes a second
    /// or two the first time; `progress` is told (bytes done, bytes in all).
    ///
    /// # Errors
    /// None in practice: the model was opened from a sound checkpoint.
    pub fn identity(&self, progress: Option<&mut dyn FnMut(u64, u64)>) -> Result<String> {
        self.identity_with(None, progress)
    }

    /// The operations it runs on.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// Which fields its states have.
    pub fn state_layout(&self) -> &Arc<StateLayout> {
        &self.layout
    }

    /// The state of the empty context, on the host: zero, or the tuned state that the checkpoint brings
    /// (`blocks.L.att.time_state` beside the weights).
    pub fn new_state(&self) -> State {
        self.tuned.clone().unwrap_or_else(|| State::new(self.layout.clone()))
    }

    /// The residual stream before the first block, `[t, d]`: rows of the embedding, normalised.
    ///
    /// # Panics
    /// When an id is outside the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> O::Tensor {
        assert!(tokens.iter().all(|&id| (id as usize) < self.config.vocab), "ids within the vocabulary");
        self.ops.layer_norm(&self.ops.embedding(&self.embedding, tokens), &self.ln0)
    }

    /// The residual stream through block `layer`, whose part of the batch's states moves on. `v_first` is RWKV-7's value
    /// of layer 0 for the same tokens: block 0 sets it, later blocks read it.
    pub fn block(
        &self,
        layer: usize,
        x: &O::Tensor,
        batch: &mut Batch<'_, O::State>,
        v_first: &mut Option<O::Tensor>,
    ) -> O::Tensor {
        let mut step = Step { batch, v_first: v_first.take(), adapters: &[] };
        let x = self.layers[layer].forward(&self.ops, layer, x, &mut step);
        *v_first = step.v_first;
        x
    }

    /// What the head multiplies: the residual stream after the last block, normalised.
    pub fn last_norm(&self, x: &O::Tensor) -> O::Tensor {
        self.ops.layer_norm(x, &self.ln_out)
    }

    /// The head's weight `[v, d]`, without adapters.
    pub fn head(&self) -> &O::Matrix {
        self.head.weight()
    }

    /// Feeds every sequence's tokens, updating its state, and returns what each asked for, in order.
    /// Sequences do not influence each other, and any division of a text into calls gives the same bits.
    /// Each state's count of tokens grows by those it was fed.
    ///
    /// # Errors
    /// An id out of range, a sequence without tokens, a state of another model, a model without a state: checked before
    /// anything changes. Logits that are not finite, weights of a packed file found damaged: states have moved on by
    /// then.
    pub fn forward(&self, sequences: &mut [Sequence<'_, O::State>]) -> Result<Vec<Output>> {
        let mut outputs = vec![Output::default(); sequences.len()];
        self.forward_into(sequences, &mut outputs)?;
        Ok(outputs)
    }

    /// As [`Model::forward`], into outputs that are there, one a sequence: what they hold is replaced, their memory is
    /// used again. Steps like the last then allocate only lists of the sequences.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// When there are not as many outputs as sequences.
    pub fn forward_into(
        &self,
        sequences: &mut [Sequence<'_, O::State>],
        outputs: &mut [Output],
    ) -> Result<()> {
        self.run(sequences, &[], outputs)
    }

    /// As [`Model::forward_into`], each sequence with the adapter of its entry in `adapters`, or with none. A sequence gets
    /// what a model [opened with](OpenOptions::loras) its LoRA gives it, bit for bit, whatever runs beside it; adapters
    /// that this model was opened with apply before.
    ///
    /// # Errors
    /// As [`Model::forward`]; an adapter that another model prepared, before anything changes.
    ///
    /// # Panics
    /// When there are not as many outputs, or as many entries of `adapters`, as sequences.
    pub fn forward_adapted(
        &self,
        sequences: &mut [Sequence<'_, O::State>],
        adapters: &[Option<&Adapter<O>>],
        outputs: &mut [Output],
    ) -> Result<()> {
        assert_eq!(sequences.len(), adapters.len(), "an adapter, or none, a sequence");
        adapters.iter().flatten().try_for_each(|adapter| self.check_own(adapter))?;
        self.run(sequences, adapters, outputs)
    }

    /// The call. `adapters` may be shorter than the list of sequences: the others have none.
    fn run(
        &self,
        sequences: &mut [Sequence<'_, O::State>],
        adapters: &[Option<&Adapter<O>>],
        outputs: &mut [Output],
    ) -> Result<()> {
        assert_eq!(sequences.len(), outputs.len(), "an output a sequence");
        self.config.version.needs_state(&self.checkpoint.path)?;
        for s in &*sequences {
            if s.tokens.is_empty() {
                return Err(Error::Invalid("a sequence needs at least one token".into()));
            }
            if let Some(&id) = s.tokens.iter().find(|&&id| id as usize >= self.config.vocab) {
                return Err(Error::TokenRange { id, vocab: self.config.vocab });
            }
            let layout = self.ops.layout(s.state);
            if !std::ptr::eq(layout, &*self.layout) && *layout != *self.layout {
                return Err(Error::State("it was made for a model of another version or size".into()));
            }
        }
        for output in &mut *outputs {
            output.logits.clear();
            output.hidden.clear();
        }
        let mut done = vec![0; sequences.len()];
        loop {
            // As many tokens as a step takes, from the sequences in order.
            let mut room = STEP_TOKENS;
            let mut parts = Vec::new();
            let mut batch = Batch { lengths: Vec::new(), states: Vec::new() };
            let mut tokens = Vec::new();
            for (i, s) in sequences.iter_mut().enumerate() {
                let take = (s.tokens.len() - done[i]).min(room);
                if take > 0 {
                    tokens.extend_from_slice(&s.tokens[done[i]..done[i] + take]);
                    parts.push(Part {
                        sequence: i,
                        rest: s.tokens.len() - done[i] - take,
                        len: take,
                        logits: s.logits,
                        hidden: s.hidden,
                        first: done[i],
                        adapter: adapters.get(i).copied().flatten(),
                    });
                    batch.lengths.push(take);
                    batch.states.push(&mut *s.state);
                    room -= take;
                    done[i] += take;
                }
            }
            if parts.is_empty() {
                return self.ops.called(&self.checkpoint);
            }
            self.step(&tokens, &mut batch, &parts, outputs)?;
            for (len, state) in batch.lengths.iter().zip(&mut batch.states) {
                self.ops.count_tokens(state, *len as u64);
            }
        }
    }

    /// One step: every layer over the rows of all parts.
    fn step(
        &self,
        tokens: &[u32],
        batch: &mut Batch<'_, O::State>,
        parts: &[Part<'_, O>],
        outputs: &mut [Output],
    ) -> Result<()> {
        let o = &self.ops;
        let mut x = self.embed(tokens);
        let adapters = AdapterRows::of(parts.iter().map(|p| (p.len, p.adapter)));
        let mut step = Step { batch, v_first: None, adapters: &adapters };
        for (l, layer) in self.layers.iter().enumerate() {
            x = layer.forward(o, l, &x, &mut step);
        }
        // The final norm and the head only for the rows that somebody wants.
        let (hidden_rows, hidden_of) = chosen(parts, |p| p.hidden);
        let (logit_rows, logits_of) = chosen(parts, |p| p.logits);
        if !hidden_rows.is_empty() {
            let hidden = o.layer_norm(&o.rows(&x, &hidden_rows), &self.ln_out);
            o.read(&hidden, &mut readings(outputs, &hidden_of, |out| &mut out.hidden));
        }
        if !logit_rows.is_empty() {
            let adapters = AdapterRows::of(logits_of.iter().map(|p| (1, p.adapter)));
            step.adapters = &adapters;
            let logits = self.head.forward(o, &step, &o.layer_norm(&o.rows(&x, &logit_rows), &self.ln_out));
            let mut readings = readings(outputs, &logits_of, |out| &mut out.logits);
            o.read(&logits, &mut readings);
            if let Some(row) = readings.iter().find_map(|r| Some(r.rows.start + r.unsound?)) {
                let part = logits_of[row];
                let before: usize =
                    parts.iter().take_while(|p| p.sequence != part.sequence).map(|p| p.len).sum();
                return Err(Error::NonFiniteLogits { position: part.first + logit_rows[row] - before });
            }
        }
        Ok(())
    }
}

/// The share of one sequence in a step.
struct Part<'a, O: Ops> {
    sequence: usize,
    adapter: Option<&'a Adapter<O>>,
    /// Its first token's index in the call.
    first: usize,
    len: usize,
    /// The sequence's tokens that come after this step.
    rest: usize,
    logits: Rows,
    hidden: Rows,
}

/// What is read of a tensor whose rows are `of` those parts, into their sequences' outputs.
fn readings<'o, O: Ops>(
    outputs: &'o mut [Output],
    of: &[&Part<'_, O>],
    field: impl Fn(&'o mut Output) -> &'o mut Vec<f32>,
) -> Vec<Reading<'o>> {
    let mut outputs = outputs.iter_mut().enumerate();
    // Sequences come in order, each once.
    let each = || of.chunk_by(|a, b| a.sequence == b.sequence);
    // As long as need be: between two tokens memory is asked for lists alone, and short ones.
    let mut all = Vec::with_capacity(each().count());
    let mut at = 0;
    for rows in each() {
        let (_, output) = outputs.find(|(i, _)| *i == rows[0].sequence).expect("an output a sequence");
        all.push(Reading::new(at..at + rows.len(), field(output)));
        at += rows.len();
    }
    all
}

/// Rows of the step that are wanted, and whose they are.
fn chosen<'p, 'a, O: Ops>(
    parts: &'p [Part<'a, O>],
    want: impl Fn(&Part<'a, O>) -> Rows,
) -> (Vec<usize>, Vec<&'p Part<'a, O>>) {
    let (mut rows, mut of, mut at) = (Vec::new(), Vec::new(), 0);
    for p in parts {
        // Of the sequence's last tokens, those that are in this step.
        let last = |n: usize| n.saturating_sub(p.rest).min(p.len);
        let wanted = match want(p) {
            Rows::None => 0,
            Rows::Last => last(1),
            Rows::Tail(n) => last(n),
            Rows::All => p.len,
        };
        let wanted = at + p.len - wanted..at + p.len;
        of.extend(wanted.clone().map(|_| p));
        rows.extend(wanted);
        at += p.len;
    }
    (rows, of)
}
