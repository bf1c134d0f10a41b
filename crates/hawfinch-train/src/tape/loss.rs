//! The head and the loss in one: logits of a few rows at a time, never of all.

use hawfinch_kernels::Real;
use hawfinch_kernels::cross_entropy::{Targets, cross_entropy};
use hawfinch_kernels::gemm::View;

use super::elements::own;
use super::{Gradients, Matrix, Source, Tape, Var};

/// Numbers of logits that are held at a time, at most (but for one row): 32 MB of f32.
const HELD: usize = 1 << 23;
/// Rows of logits at a time at most.
const ROWS: usize = 1024;

/// What the head made of its rows.
pub struct Losses {
    /// -log p(target) of each row, in nats.
    pub each: Vec<f64>,
    /// Their weighted sum.
    pub sum: f64,
    /// Whether the target has the largest logit of its row; empty where the tape records.
    pub right: Vec<bool>,
}

impl<F: Real> Tape<F> {
    /// Cross-entropy of `head · hidden` with the targets. When the tape records, gradients of the weighted sum of losses
    /// go into `gradients` (of `hidden`) and into the head's at once.
    ///
    /// * `hidden`: `[t, d]`
    ///
    /// # Panics
    /// When a target is outside the vocabulary, or there are not as many as rows.
    pub fn head_loss(
        &self,
        hidden: &Var<F>,
        head: &Matrix,
        targets: Targets<'_>,
        gradients: &mut Gradients<F>,
    ) -> Losses {
        let (of_hidden, hidden) = (self.source(hidden), self.value(hidden));
        let (t, d, v) = (hidden.rows(), head.inputs, head.outputs);
        assert!(targets.ids.len() == t && targets.weights.len() == t, "a target and a weight a row");
        let record = self.recording().on;
        let trained = self.parameters().list()[head.parameter].is_trained();
        let (isa, pool) = (self.cpu.isa(), self.cpu.pool());
        let mut each = vec![0.0; t];
        let mut right = Vec::new();
        let mut d_hidden = (record && of_hidden != Source::Constant).then(|| self.cpu.make(t, d, |_| {}));
        let step = (HELD / v).clamp(1, ROWS);
        for from in (0..t).step_by(step) {
            let to = t.min(from + step);
            let x = View::new(&hidden.data()[from * d..to * d], to - from, d);
            let mut logits = self.cpu.make(to - from, v, |_| {});
            self.forward_product(own(&mut logits), x, head);
            if !record {
                let rows = logits.data().chunks_exact(v).zip(&targets.ids[from..to]);
                right.extend(rows.map(|(row, &id)| row.iter().all(|l| *l <= row[id as usize])));
            }
            let part =
                Targets { ids: &targets.ids[from..to], weights: &targets.weights[from..to], ..targets };
            cross_entropy(isa, pool, &mut each[from..to], own(&mut logits), v, part);
            if !record {
                continue;
            }
            let d_logits = View::new(logits.data(), to - from, v);
            if let Some(d_hidden) = &mut d_hidden {
                self.backward_product(&mut own(d_hidden)[from * d..to * d], d_logits, head);
            }
            if trained {
                head.add_gradient(self, d_logits, x);
            }
        }
        if let Some(d_hidden) = d_hidden {
            gradients.add(self, of_hidden, d_hidden);
        }
        let sum = each.iter().zip(targets.weights).map(|(l, w)| l * f64::from(*w)).sum();
        Losses { each, sum, right }
    }
}
