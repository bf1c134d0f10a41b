//! Channels of the channel mix that never fire: relu² leaves zero of them whatever the token, so that they do nothing, and
//! no gradient reaches what feeds them.

use std::collections::BTreeMap;

use hawfinch_kernels::Real;
use hawfinch_model::cpu::Tensor;

use super::Tape;

/// By parameter (the matrix after relu²): which of its inputs were not zero for some token.
pub(super) type Fired = BTreeMap<usize, Vec<bool>>;

/// Channels that a thread looks at: those of a row in a few lines of cache.
const TOGETHER: usize = 256;

/// Which channels of the channel mix fired, over all layers; none in a version without relu².
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels(pub Vec<bool>);

impl Channels {
    /// The part of them that is dead, 0 to 1; `None` where there are none.
    pub fn dead_share(&self) -> Option<f64> {
        let dead = self.0.iter().filter(|fired| !**fired).count();
        (!self.0.is_empty()).then(|| dead as f64 / self.0.len() as f64)
    }

    /// Adds those that fired elsewhere; of a model that has seen nothing there are none.
    pub fn join(&mut self, other: &Channels) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(fired, there)| *fired |= there);
    }
}

impl<F: Real> Tape<F> {
    /// From now on notes which channels fire, until [`Tape::channels`] asks.
    pub fn watch_channels(&self) {
        *self.fired.lock().unwrap_or_else(|e| e.into_inner()) = Some(Fired::new());
    }

    /// What was noted since [`Tape::watch_channels`]; nothing is noted any more.
    pub fn channels(&self) -> Channels {
        let fired = self.fired.lock().unwrap_or_else(|e| e.into_inner()).take().unwrap_or_default();
        Channels(fired.into_values().flatten().collect())
    }

    /// Looks at what a matrix after relu² is multiplied with, `[t, c]`.
    pub(super) fn look_at_channels(&self, parameter: usize, x: &Tensor<F>) {
        let mut fired = self.fired.lock().unwrap_or_else(|e| e.into_inner());
        let Some(fired) = fired.as_mut() else { return };
        let c = x.channels();
        let fired = fired.entry(parameter).or_insert_with(|| vec![false; c]);
        self.cpu.pool().split(fired, 1, TOGETHER, |first, fired| {
            for row in x.data().chunks_exact(c) {
                fired.iter_mut().zip(&row[first..]).for_each(|(fired, x)| *fired |= *x != F::ZERO);
            }
        });
    }
}
