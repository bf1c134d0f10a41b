//! Adapters beside a model: made and dropped while it lives, chosen sequence by sequence.

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexSet;

use super::Model;
use crate::arch::Pair;
use crate::cpu::Cpu;
use crate::lora::Lora;
use crate::ops::{Apply, Ops, Weight};
use crate::{Error, Result};

/// A LoRA prepared for one model, which runs any number of them at once: [`Model::forward_adapted`]. Made by
/// [`Model::adapter`].
pub struct Adapter<O: Ops = Cpu<f32>> {
    /// The list of the model that it was made for: the very list, since it says which model that is.
    linears: Arc<IndexSet<String>>,
    /// Its pairs, by the number of the linear layer.
    pairs: Vec<Option<Pair<O::Matrix>>>,
    fingerprint: String,
    bytes: u64,
}

impl<O: Ops> Adapter<O> {
    /// That of its [LoRA](Lora::fingerprint).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Bytes of its matrices as they lie in memory, all of which a token of its sequences reads.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it adds to the linear layer of that number.
    pub(crate) fn pair(&self, number: usize) -> Option<&Pair<O::Matrix>> {
        self.pairs[number].as_ref()
    }
}

/// Rows of a step, and the adapter of the sequences that they belong to.
pub(crate) struct AdapterRows<'a, O: Ops> {
    pub rows: Range<usize>,
    pub adapter: &'a Adapter<O>,
}

impl<'a, O: Ops> AdapterRows<'a, O> {
    /// Of sequences with so many rows each, one after the other. Neighbours with the same adapter are one range.
    pub fn of(sequences: impl Iterator<Item = (usize, Option<&'a Adapter<O>>)>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut at = 0;
        for (rows, adapter) in sequences {
            let rows = at..at + rows;
            at = rows.end;
            let Some(adapter) = adapter else { continue };
            match all.last_mut() {
                Some(last) if last.rows.end == rows.start && std::ptr::eq(last.adapter, adapter) => {
                    last.rows.end = rows.end;
                }
                _ => all.push(AdapterRows { rows, adapter }),
            }
        }
        all
    }
}

impl<O: Ops + 'static> Model<O> {
    /// Prepares a LoRA to be applied to single sequences of [`Model::forward_adapted`]. It costs the memory of its own
    /// matrices; the model's weights are shared by all.
    ///
    /// # Errors
    /// A LoRA that does not fit the model, was trained beside another, or replaces whole tensors.
    pub fn adapter(&self, lora: &Lora) -> Result<Adapter<O>> {
        lora.check(&self.checkpoint, &self.config)?;
        if let Some((name, _)) = lora.replacements.first() {
            return Err(Error::Lora(format!(
                "it replaces whole tensors (`{name}`), so it needs a model of its own and cannot be chosen by sequence: open \
                 the model with it (--lora), or merge it into the model"
            )));
        }
        let half = |name: &str, weight: &_| self.ops.matrix(name, weight, Apply::Adapter);
        let of_module = |module: &String| Pair::of(lora, module, half).transpose();
        let pairs = self.linears.iter().map(of_module).collect::<Result<Vec<_>>>()?;
        let bytes = pairs.iter().flatten().map(|pair| (pair.a.bytes() + pair.b.bytes()) as u64).sum();
        Ok(Adapter { linears: self.linears.clone(), pairs, fingerprint: lora.fingerprint(), bytes })
    }

    /// The [identity](Model::identity) of what computes a sequence with that adapter: the one that a model opened with its
    /// LoRA after the LoRAs of this one would have. States of the one fit the other.
    ///
    /// # Errors
    /// An adapter that another model prepared.
    pub fn identity_with(
        &self,
        adapter: Option<&Adapter<O>>,
        progress: Option<&mut dyn FnMut(u64, u64)>,
    ) -> Result<String> {
        adapter.map_or(Ok(()), |adapter| self.check_own(adapter))?;
        let base = crate::hash::identity(&self.checkpoint, progress)?;
        let fixed = self.options.loras.iter().map(Lora::fingerprint);
        let all = fixed.chain(adapter.map(|adapter| adapter.fingerprint.clone()));
        Ok(all.fold(base, |id, fingerprint| format!("{id}+lora:{fingerprint}")))
    }

    /// Refuses an adapter that another model prepared.
    pub(super) fn check_own(&self, adapter: &Adapter<O>) -> Result<()> {
        match Arc::ptr_eq(&adapter.linears, &self.linears) {
            true => Ok(()),
            false => Err(Error::Lora(format!(
                "the adapter {} was prepared by another model than the one that it is to run with: prepare it with that one",
                adapter.fingerprint
            ))),
        }
    }
}
