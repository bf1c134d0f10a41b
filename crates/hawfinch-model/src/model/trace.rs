//! A text run through a model once, with what went into every layer kept: what a change of some weights makes of
//! the logits is then computed from the first changed layer on.

use std::collections::BTreeMap;

use super::{Model, STEP_TOKENS};
use crate::arch::{Loader, Step};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::names::split_block;
use crate::ops::{Batch, Ops, Reading};
use crate::{Error, Result};

/// Makes a tensor by name when its layer is reached.
pub type Make<'a> = dyn FnMut(&str) -> Result<StoredTensor> + 'a;

/// Takes logits: the index of the first row, and rows of `vocab` numbers, a row a token.
pub type Take<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Sequences that were run through a model from their beginning.
pub struct Trace<'m, O: Ops> {
    model: &'m Model<O>,
    tokens: Vec<u32>,
    lengths: Vec<usize>,
    /// `[tokens, d]`: what went into each layer, and what came out of the last.
    inputs: Vec<O::Tensor>,
    /// v7: the value of layer 0.
    v_first: Option<O::Tensor>,
}

impl<'m, O: Ops + 'static> Trace<'m, O> {
    /// Runs the sequences, all in one step: memory grows with their tokens (layers × width × 4 bytes a token stay).
    ///
    /// # Errors
    /// An id out of range, a sequence without tokens.
    pub fn new(model: &'m Model<O>, sequences: &[&[u32]]) -> Result<Self> {
        if sequences.is_empty() || sequences.iter().any(|s| s.is_empty()) {
            return Err(Error::Invalid("a sequence needs at least one token".into()));
        }
        let tokens = sequences.concat();
        let vocab = model.config.vocab;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::TokenRange { id, vocab });
        }
        let o = &model.ops;
        let x = o.layer_norm(&o.embedding(&model.embedding, &tokens), &model.ln0);
        let mut trace = Trace {
            model,
            tokens,
            lengths: sequences.iter().map(|s| s.len()).collect(),
            inputs: vec![x],
            v_first: None,
        };
        let mut states = trace.states();
        let mut batch = Batch { lengths: trace.lengths.clone(), states: states.iter_mut().collect() };
        let mut step = Step { batch: &mut batch, v_first: None, adapters: &[] };
        for (l, layer) in model.layers.iter().enumerate() {
            let x = layer.forward(o, l, &trace.inputs[l], &mut step);
            trace.inputs.push(x);
        }
        trace.v_first = step.v_first;
        Ok(trace)
    }

    /// The tokens of all sequences, one after the other: row `n` of the logits belongs to token `n`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The token that follows each token in its sequence; `None` after the last.
    pub fn next_tokens(&self) -> Vec<Option<u32>> {
        let mut next: Vec<_> = self.tokens.iter().skip(1).copied().map(Some).collect();
        next.push(None);
        let mut end = 0;
        for len in &self.lengths {
            end += len;
            next[end - 1] = None;
        }
        next
    }

    /// The sequences.
    pub fn sequences(&self) -> Vec<&[u32]> {
        let mut rest = &self.tokens[..];
        let take = |&len: &usize| {
            let (sequence, after) = rest.split_at(len);
            rest = after;
            sequence
        };
        self.lengths.iter().map(take).collect()
    }

    /// The model.
    pub fn model(&self) -> &'m Model<O> {
        self.model
    }

    /// Logits of every token with the tensors `changed` (official names) as `make` gives them, in pieces to `take`.
    /// A layer's tensors are made when it is reached and dropped after it.
    ///
    /// # Errors
    /// What `make` says, tensors that do not fit the model, logits that are not finite.
    pub fn logits(&self, changed: &[&str], make: &mut Make, take: &mut Take) -> Result<()> {
        let model = self.model;
        let o = &model.ops;
        let mut by_layer: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        let mut outside = Vec::new();
        for &name in changed {
            match split_block(name) {
                Some((layer, rest)) if !rest.starts_with("ln0.") => {
                    by_layer.entry(layer).or_default().push(name)
                }
                _ => outside.push(name),
            }
        }
        let mut checkpoint = model.checkpoint.clone();
        for &name in &outside {
            checkpoint.tensors.insert(name.into(), make(name)?);
        }
        let changes = |prefix: &str| outside.iter().any(|n| n.starts_with(prefix));
        let enters = changes("emb.") || changes("blocks.0.ln0.");
        let (first, mut x) = if enters {
            let load = self.loader(&checkpoint);
            let table = load.table("emb.weight")?;
            (0, o.layer_norm(&o.embedding(&table, &self.tokens), &load.layer_norm("blocks.0.ln0")?))
        } else {
            let first = by_layer.keys().next().copied().unwrap_or(model.layers.len());
            (first, self.inputs[first].clone())
        };
        let mut states = self.states();
        let mut batch = Batch { lengths: self.lengths.clone(), states: states.iter_mut().collect() };
        // Layer 0 makes it anew.
        let v_first = if first == 0 { None } else { self.v_first.clone() };
        let mut step = Step { batch: &mut batch, v_first, adapters: &[] };
        for (l, layer) in model.layers.iter().enumerate().skip(first) {
            let Some(names) = by_layer.get(&l) else {
                x = layer.forward(o, l, &x, &mut step);
                continue;
            };
            let mut changed = checkpoint.clone();
            for &name in names {
                changed.tensors.insert(name.into(), make(name)?);
            }
            x = self.loader(&changed).layer(l)?.forward(o, l, &x, &mut step);
        }
        let made = self.loader(&checkpoint);
        let new_norm = if changes("ln_out.") { Some(made.layer_norm("ln_out")?) } else { None };
        let new_head = if changes("head.") { Some(made.linear("head.weight")?) } else { None };
        let (norm, head) =
            (new_norm.as_ref().unwrap_or(&model.ln_out), new_head.as_ref().unwrap_or(&model.head));
        let rows: Vec<usize> = (0..self.tokens.len()).collect();
        let mut values = Vec::new();
        for rows in rows.chunks(STEP_TOKENS) {
            values.clear();
            let logits = head.forward(o, &step, &o.layer_norm(&o.rows(&x, rows), norm));
            let mut reading = [Reading::new(0..rows.len(), &mut values)];
            o.read(&logits, &mut reading);
            if let Some(row) = reading[0].unsound {
                return Err(Error::NonFiniteLogits { position: rows[0] + row });
            }
            take(rows[0], &values);
        }
        Ok(())
    }

    /// A fresh state for every sequence.
    fn states(&self) -> Vec<O::State> {
        let start = self.model.new_state();
        self.lengths.iter().map(|_| self.model.ops.state(&start)).collect()
    }

    /// What prepares parts of the model from other tensors, in the model's own way.
    fn loader<'a>(&'a self, checkpoint: &'a Checkpoint) -> Loader<'a, O> {
        let (ops, config, loras) = (&self.model.ops, &self.model.config, &self.model.options.loras);
        // Its layers keep the numbers that they have in the model.
        let linears = (*self.model.linears).clone().into();
        Loader { ops, checkpoint, config, loras, linears, work: Default::default() }
    }
}
