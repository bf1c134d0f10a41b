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

/// Channels of the channel mix over all layers; none in a version without relu².
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// How many there are.
    pub all: usize,
    /// How many of them were zero for every token.
    pub dead: usize,
}

impl Channels {
    /// The part of them that is dead, 0 to 1; `None` where there are none.
    pub fn dead_share(&self) -> Option<f64> {
        (self.all > 0).then(|| self.dead as f64 / self.all as f64)
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
        let each = fired.values().flatten();
        Channels { all: each.clone().count(), dead: each.filter(|fired| !**fired).count() }
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
