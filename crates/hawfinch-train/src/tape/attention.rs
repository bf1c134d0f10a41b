//! Softmax attention.

use hawfinch_kernels::Real;
use hawfinch_kernels::attention::{Rotary, attention_backward};
use hawfinch_kernels::wkv::{Gradients as Qkv, Head, Rows};

use super::elements::own;
use super::wkv::ranges;
use super::{Tape, Var};

impl<F: Real> Tape<F> {
    /// Sequences of these lengths, each from its first token. Nothing of the forward is kept but its operands.
    pub(super) fn attend(&self, qkv: [&Var<F>; 3], heads: usize, scale: f64, lengths: &[usize]) -> Var<F> {
        let sources = qkv.map(|x| self.source(x));
        let [q, k, v] = qkv.map(|x| self.value(x));
        let y = self.cpu.attend([&q, &k, &v], heads, scale, lengths);
        let (t, c) = (q.rows(), q.channels());
        let n = c / heads;
        let places = ranges(lengths, c);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        self.record_one(y, &sources, move |tape, g, d_y| {
            let rotary = Rotary::new(longest, n);
            let mut d = [0, 1, 2].map(|_| tape.cpu.make(t, c, |_| {}));
            let rows: [Vec<Rows<F>>; 3] = d.each_mut().map(|d| Self::rows_of(&places, own(d)));
            tape.cpu.pool().run(places.len() * heads, &|job| {
                let (s, head) = (job / heads, job % heads);
                let at = || places[s].clone();
                let x = Head { r: &q.data()[at()], k: &k.data()[at()], v: &v.data()[at()], head, n, c };
                let [r, k, v] = rows.each_ref().map(|rows| &rows[s]);
                let d_y = &d_y.data()[at()];
                attention_backward(tape.cpu.isa(), Qkv { r, k, v }, x, &rotary, F::from_f64(scale), d_y);
            });
            drop(rows);
            sources.into_iter().zip(d).for_each(|(to, d)| g.add(tape, to, d));
        })
    }
}
