//! Norms.

use hawfinch_kernels::Real;
use hawfinch_kernels::norm::{self, backward};
use hawfinch_model::ops::Norm;

use super::elements::own;
use super::{Tape, Var};

impl<F: Real> Tape<F> {
    pub(super) fn norm(&self, x: &Var<F>, p: &Norm<Var<F>>, groups: usize) -> Var<F> {
        let sources = [self.source(x), self.source(&p.weight), self.source(&p.bias)];
        let (isa, x, weight, bias) =
            (self.cpu.isa(), self.value(x), self.value(&p.weight), self.value(&p.bias));
        let (t, c, eps) = (x.rows(), x.channels(), F::from_f64(p.eps));
        let n = c / groups;
        let y = self.by_rows(t, c, |at, y| {
            norm::group_norm(isa, y, &x.data()[at], weight.data(), bias.data(), n, eps);
        });
        self.record_one(y, &sources, move |tape, g, d_y| {
            let mut d = [t, 1, 1].map(|rows| tape.cpu.make(rows, c, |_| {}));
            let [d_x, d_weight, d_bias] = d.each_mut().map(own);
            let (x, weight, d_y, pool) = (x.data(), weight.data(), d_y.data(), tape.cpu.pool());
            backward::group_norm_backward(isa, pool, d_x, d_weight, d_bias, x, weight, d_y, n, eps);
            sources.into_iter().zip(d).for_each(|(to, d)| g.add(tape, to, d));
        })
    }

    pub(super) fn unit_heads(&self, x: &Var<F>, heads: usize) -> Var<F> {
        let (isa, of_x, x) = (self.cpu.isa(), self.source(x), self.value(x));
        let (t, c) = (x.rows(), x.channels());
        let n = c / heads;
        let y = self.by_rows(t, c, |at, y| norm::l2_normalize(isa, y, &x.data()[at], n));
        self.record_one(y, &[of_x], move |tape, g, d_y| {
            let d_x = tape.by_rows(t, c, |at, d_x| {
                backward::l2_normalize_backward(isa, d_x, &x.data()[at.clone()], &d_y.data()[at], n);
            });
            g.add(tape, of_x, d_x);
        })
    }
}
