//! What looks at the row before: token shift, and a norm with mixes.

use hawfinch_kernels::Real;
use hawfinch_kernels::elementwise::backward::MixesBackward;
use hawfinch_kernels::elementwise::{self, Toward};
use hawfinch_kernels::mixes::{Affine, Run, norm_mixes};
use hawfinch_kernels::norm::{self, backward::group_norm_backward};
use hawfinch_model::cpu::Tensor;
use hawfinch_model::ops::{Batch, Norm};

use super::elements::own;
use super::{Gradients, Source, States, Tape, Var};

/// The rows before the first ones of a batch's sequences.
struct Before<F: Real> {
    rows: Vec<Tensor<F>>,
    sources: Vec<Source>,
    lengths: Vec<usize>,
}

impl<F: Real> Before<F> {
    fn of(tape: &Tape<F>, batch: &Batch<'_, States<F>>, layer: usize, field: &str) -> Self {
        let fields = || batch.states.iter().map(|s| s.field(layer, field));
        Before {
            rows: fields().map(|x| tape.value(x)).collect(),
            sources: fields().map(|x| tape.source(x)).collect(),
            lengths: batch.lengths.clone(),
        }
    }

    /// Gives each sequence's row of `d` to the state it came from.
    fn give(&self, tape: &Tape<F>, g: &mut Gradients<F>, d: &[F]) {
        for (row, to) in d.chunks_exact(d.len() / self.lengths.len()).zip(&self.sources) {
            if *to != Source::Constant {
                g.add(tape, *to, tape.cpu.make(1, row.len(), |y| y.copy_from_slice(row)));
            }
        }
    }

    /// Adds gradients of the sequences' last rows, as new states, to those of all rows.
    fn add_last(&self, tape: &Tape<F>, d_rows: &mut [F], d_last: &[Option<Tensor<F>>]) {
        let mut end = 0;
        for (len, d) in self.lengths.iter().zip(d_last) {
            end += len;
            if let Some(d) = d {
                let c = d.channels();
                elementwise::add_to(tape.cpu.isa(), &mut d_rows[(end - 1) * c..end * c], d.data());
            }
        }
    }
}

impl<F: Real> Tape<F> {
    /// The last row of each sequence of `x`.
    fn last_rows(&self, x: &Tensor<F>, lengths: &[usize]) -> Vec<Tensor<F>> {
        let (c, mut end) = (x.channels(), 0);
        let last = |len: &usize| {
            end += len;
            self.cpu.make(1, c, |y| y.copy_from_slice(&x.data()[(end - 1) * c..end * c]))
        };
        lengths.iter().map(last).collect()
    }

    pub(super) fn shift(
        &self,
        x: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
        field: &str,
    ) -> Var<F> {
        let before = Before::of(self, batch, layer, field);
        let (of_x, x) = (self.source(x), self.value(x));
        let (t, c) = (x.rows(), x.channels());
        let y = self.cpu.make(t, c, |y| {
            let mut at = 0;
            for (len, before) in before.lengths.iter().zip(&before.rows) {
                let range = at..at + len * c;
                at = range.end;
                elementwise::token_shift(
                    &mut y[range.clone()],
                    &x.data()[range],
                    &mut before.data().to_vec(),
                );
            }
        });
        let mut made = vec![y];
        made.extend(self.last_rows(&x, &before.lengths));
        let sources: Vec<_> = before.sources.iter().copied().chain([of_x]).collect();
        let made = self.record(made, &sources, move |tape, g, d| {
            let mut d_x = tape.zeros(t, c);
            if let Some(d_y) = &d[0] {
                let (d_y, mut at) = (d_y.data(), 0);
                let mut d_before = tape.cpu.make(before.lengths.len(), c, |_| {});
                for (len, d_before) in before.lengths.iter().zip(own(&mut d_before).chunks_exact_mut(c)) {
                    let range = at..at + len * c;
                    at = range.end;
                    let (first, rest) = d_y[range.clone()].split_at(c);
                    d_before.copy_from_slice(first);
                    own(&mut d_x)[range][..rest.len()].copy_from_slice(rest);
                }
                before.give(tape, g, d_before.data());
            }
            before.add_last(tape, own(&mut d_x), &d[1..]);
            g.add(tape, of_x, d_x);
        });
        self.move_on(made, 1, batch, layer, field).swap_remove(0)
    }

    /// The first `results` values; the others become the sequences' states.
    fn move_on(
        &self,
        mut made: Vec<Var<F>>,
        results: usize,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
        field: &str,
    ) -> Vec<Var<F>> {
        for (state, last) in batch.states.iter_mut().zip(made.drain(results..)) {
            state.set(layer, field, last);
        }
        made
    }

    pub(super) fn norm_shift_mixes<const N: usize>(
        &self,
        x: &Var<F>,
        p: &Norm<Var<F>>,
        (weights, toward): ([&Var<F>; N], Toward),
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
        field: &str,
    ) -> [Var<F>; N] {
        let before = Before::of(self, batch, layer, field);
        let [of_x, of_weight, of_bias] = [x, &p.weight, &p.bias].map(|v| self.source(v));
        let of_mixes = weights.map(|w| self.source(w));
        let (isa, x, weight, bias) =
            (self.cpu.isa(), self.value(x), self.value(&p.weight), self.value(&p.bias));
        let weights = weights.map(|w| self.value(w));
        let (t, c, eps) = (x.rows(), x.channels(), F::from_f64(p.eps));
        let mut ys: [Tensor<F>; N] = std::array::from_fn(|_| self.cpu.make(t, c, |_| {}));
        let mut last = self.cpu.make(before.lengths.len(), c, |_| {});
        norm_mixes(
            isa,
            self.cpu.pool(),
            ys.each_mut().map(own),
            own(&mut last),
            x.data(),
            Affine { weight: weight.data(), bias: bias.data(), eps },
            (weights.each_ref().map(|w| w.data()), toward),
            &|s: usize| Run { rows: before.lengths[s], before: before.rows[s].data() },
            &|len, with| with(own(&mut self.cpu.make(1, len, |_| {}))),
        );
        let mut made: Vec<_> = ys.into();
        made.extend(self.last_rows(&last, &vec![1; before.lengths.len()]));
        let mut sources = vec![of_x, of_weight, of_bias];
        sources.extend(of_mixes);
        sources.extend(&before.sources);
        let made = self.record(made, &sources, move |tape, g, d| {
            // The normalised rows again, which were not kept.
            let normal = tape.by_rows(t, c, |at, y| {
                norm::group_norm(isa, y, &x.data()[at], weight.data(), bias.data(), c, eps);
            });
            let d_ys: Vec<_> = d[..N].iter().map(|d| d.clone().unwrap_or_else(|| tape.zeros(t, c))).collect();
            let mut d_rows = tape.cpu.make(t, c, |_| {});
            let mut d_before = tape.cpu.make(before.lengths.len(), c, |_| {});
            let mut d_weights = tape.cpu.make(N, c, |_| {});
            let mixes = MixesBackward {
                d_rows: own(&mut d_rows),
                d_before: own(&mut d_before),
                d_weights: own(&mut d_weights),
                rows: normal.data(),
                before: &before.rows.iter().map(|b| b.data()).collect::<Vec<_>>(),
                lengths: &before.lengths,
                weights: &weights.each_ref().map(|w| w.data()),
                toward,
                d_ys: &d_ys.iter().map(|d| d.data()).collect::<Vec<_>>(),
            };
            mixes.run(isa, tape.cpu.pool());
            before.give(tape, g, d_before.data());
            before.add_last(tape, own(&mut d_rows), &d[N..]);
            for (to, d) in of_mixes.iter().zip(d_weights.data().chunks_exact(c)) {
                g.add(tape, *to, tape.cpu.make(1, c, |y| y.copy_from_slice(d)));
            }
            let mut d = [t, 1, 1].map(|rows| tape.cpu.make(rows, c, |_| {}));
            let [d_x, d_weight, d_bias] = d.each_mut().map(own);
            let (x, pool) = (x.data(), tape.cpu.pool());
            group_norm_backward(isa, pool, d_x, d_weight, d_bias, x, weight.data(), d_rows.data(), c, eps);
            [of_x, of_weight, of_bias].into_iter().zip(d).for_each(|(to, d)| g.add(tape, to, d));
        });
        let mut mixes = self.move_on(made, N, batch, layer, field).into_iter();
        std::array::from_fn(|_| mixes.next().expect("a mix a weight"))
    }
}
