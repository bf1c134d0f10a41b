//! The state of a sequence on the tape: every field of every layer is a value, so gradients reach the initial state and
//! start from the final one.

use std::sync::Arc;

use hawfinch_kernels::Real;
use hawfinch_model::{State, StateLayout};

use super::{Tape, Var};

/// The state of one sequence.
pub struct States<F: Real> {
    layout: Arc<StateLayout>,
    /// Layer by layer, field by field; a tensor of one row each.
    fields: Vec<Var<F>>,
    /// Tokens consumed.
    pub tokens: u64,
}

impl<F: Real> Clone for States<F> {
    fn clone(&self) -> Self {
        States { layout: self.layout.clone(), fields: self.fields.clone(), tokens: self.tokens }
    }
}

impl<F: Real> States<F> {
    /// A state whose fields `make` gives, from their values.
    fn with(
        tape: &Tape<F>,
        from: &State<F>,
        make: impl Fn(hawfinch_model::cpu::Tensor<F>) -> Var<F>,
    ) -> Self {
        let layout = from.layout().clone();
        let mut fields = Vec::new();
        for layer in 0..layout.layers {
            for field in &layout.fields {
                let values = from.field(layer, field.name);
                fields.push(make(tape.cpu().make(1, values.len(), |y| y.copy_from_slice(values))));
            }
        }
        States { layout, fields, tokens: from.tokens }
    }

    /// A state that no gradient flows to.
    pub fn constant(tape: &Tape<F>, from: &State<F>) -> Self {
        Self::with(tape, from, |value| Var::Value(value, None))
    }

    /// A state whose gradient is wanted.
    pub fn leaf(tape: &Tape<F>, from: &State<F>) -> Self {
        Self::with(tape, from, |value| tape.leaf(value))
    }

    /// Which fields it has.
    pub fn layout(&self) -> &Arc<StateLayout> {
        &self.layout
    }

    fn place(&self, layer: usize, name: &str) -> usize {
        let field = self.layout.fields.iter().position(|f| f.name == name).expect("a field of the layout");
        layer * self.layout.fields.len() + field
    }

    /// One field of one layer.
    ///
    /// # Panics
    /// When the layout has no such field or layer.
    pub fn field(&self, layer: usize, name: &str) -> &Var<F> {
        &self.fields[self.place(layer, name)]
    }

    /// Puts another value there.
    pub(super) fn set(&mut self, layer: usize, name: &str, value: Var<F>) {
        let place = self.place(layer, name);
        self.fields[place] = value;
    }

    /// Its values.
    pub fn read(&self, tape: &Tape<F>) -> State<F> {
        let mut state = State::new(self.layout.clone());
        for layer in 0..self.layout.layers {
            for field in &self.layout.fields {
                let value = tape.value(self.field(layer, field.name));
                state.field_mut(layer, field.name).copy_from_slice(value.data());
            }
        }
        state.tokens = self.tokens;
        state
    }
}
