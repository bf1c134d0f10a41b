//! Operations on one channel of one token at a time, and those that only move numbers.

use hawfinch_kernels::Real;
use hawfinch_kernels::elementwise::{self, Binary, Unary, backward};

use super::products::decode_rows;
use super::{ADDED, Matrix, Source, Tape, Var};

impl<F: Real> Tape<F> {
    pub(super) fn function(&self, f: Unary, x: &Var<F>) -> Var<F> {
        let (isa, of_x, x) = (self.cpu.isa(), self.source(x), self.value(x));
        let (t, c) = (x.rows(), x.channels());
        let y = self.by_rows(t, c, |at, y| elementwise::unary(isa, f, y, &x.data()[at]));
        // All but one are known by what they gave.
        let kept = if f == Unary::Silu { x } else { y.clone() };
        let result = y.clone();
        self.record_one(result, &[of_x], move |tape, g, d_y| {
            let d_x = tape.by_rows(t, c, |at, d_x| {
                let (kept, y) = (&kept.data()[at.clone()], &y.data()[at.clone()]);
                backward::unary_backward(isa, f, d_x, kept, y, &d_y.data()[at]);
            });
            g.add(tape, of_x, d_x);
        })
    }

    pub(super) fn function_of_two(&self, f: Binary, a: &Var<F>, b: &Var<F>) -> Var<F> {
        let (of_a, of_b) = (self.source(a), self.source(b));
        let (isa, a, b) = (self.cpu.isa(), self.value(a), self.value(b));
        let (t, c) = (a.rows(), a.channels());
        let one_row = b.rows() == 1 && t > 1;
        let y = self.by_rows(t, c, |at, y| {
            let b = if one_row { b.data() } else { &b.data()[at.clone()] };
            elementwise::binary(isa, f, y, &a.data()[at], b);
        });
        // Sums need no operands to go back.
        let kept = if f == Binary::Add { None } else { Some((a, b)) };
        self.record_one(y, &[of_a, of_b], move |tape, g, d_y| {
            let pool = tape.cpu.pool();
            match kept {
                None if one_row => {
                    let d_b = tape.cpu.make(1, c, |d| backward::sum_rows(isa, pool, d, d_y.data()));
                    g.add(tape, of_b, d_b);
                    g.add(tape, of_a, d_y);
                }
                None => {
                    g.add(tape, of_b, d_y.clone());
                    g.add(tape, of_a, d_y);
                }
                Some((a, b)) if one_row => {
                    let (mut d_a, mut d_b) = (tape.cpu.make(t, c, |_| {}), tape.cpu.make(1, c, |_| {}));
                    let (of_row, of_all) = (own(&mut d_b), own(&mut d_a));
                    backward::binary_row_backward(
                        isa,
                        pool,
                        f,
                        of_all,
                        of_row,
                        a.data(),
                        b.data(),
                        d_y.data(),
                    );
                    g.add(tape, of_b, d_b);
                    g.add(tape, of_a, d_a);
                }
                Some((a, b)) => {
                    let mut d = [t, t].map(|rows| tape.cpu.make(rows, c, |_| {}));
                    pool.split_all(d.each_mut().map(own), c, ADDED.div_ceil(c), |at, [d_a, d_b]| {
                        let (a, b) = (&a.data()[at.clone()], &b.data()[at.clone()]);
                        backward::binary_backward(isa, f, d_a, d_b, a, b, &d_y.data()[at]);
                    });
                    let [d_a, d_b] = d;
                    g.add(tape, of_b, d_b);
                    g.add(tape, of_a, d_a);
                }
            }
        })
    }

    pub(super) fn sum_scaled(&self, a: &Var<F>, b: &Var<F>, s: f64) -> Var<F> {
        let (of_a, of_b) = (self.source(a), self.source(b));
        let (isa, a, b, s) = (self.cpu.isa(), self.value(a), self.value(b), F::from_f64(s));
        let (t, c) = (a.rows(), a.channels());
        let y = self.by_rows(t, c, |at, y| {
            elementwise::add_scaled(isa, y, &a.data()[at.clone()], &b.data()[at], s);
        });
        self.record_one(y, &[of_a, of_b], move |tape, g, d_y| {
            let d_b = tape.by_rows(t, c, |at, d| {
                d.iter_mut().zip(&d_y.data()[at]).for_each(|(d, d_y)| *d = s * *d_y);
            });
            g.add(tape, of_b, d_b);
            g.add(tape, of_a, d_y);
        })
    }

    /// `a` with `s b` added to as many rows as `b` has, from row `first` on.
    pub(super) fn sum_scaled_rows(&self, a: &Var<F>, b: &Var<F>, s: f64, first: usize) -> Var<F> {
        let (of_a, of_b) = (self.source(a), self.source(b));
        let (isa, a, b, s) = (self.cpu.isa(), self.value(a), self.value(b), F::from_f64(s));
        let (t, c) = (a.rows(), a.channels());
        let at = first * c..(first + b.rows()) * c;
        let y = self.cpu.make(t, c, |y| {
            y.copy_from_slice(a.data());
            elementwise::add_scaled_to(isa, &mut y[at.clone()], b.data(), s);
        });
        self.record_one(y, &[of_a, of_b], move |tape, g, d_y| {
            let d_b = tape.cpu.make(at.len() / c, c, |d| {
                d.iter_mut().zip(&d_y.data()[at]).for_each(|(d, d_y)| *d = s * *d_y);
            });
            g.add(tape, of_b, d_b);
            g.add(tape, of_a, d_y);
        })
    }

    pub(super) fn between(&self, from: &Var<F>, to: &Var<F>, weight: &Var<F>) -> Var<F> {
        let sources = [self.source(from), self.source(to), self.source(weight)];
        let [of_from, of_to, of_weight] = sources;
        let (isa, from, to, weight) = (self.cpu.isa(), self.value(from), self.value(to), self.value(weight));
        let (t, c) = (from.rows(), from.channels());
        let one_row = weight.rows() == 1 && t > 1;
        let y = self.by_rows(t, c, |at, y| {
            let weight = if one_row { weight.data() } else { &weight.data()[at.clone()] };
            elementwise::lerp(isa, y, &from.data()[at.clone()], &to.data()[at], weight);
        });
        self.record_one(y, &sources, move |tape, g, d_y| {
            let mut d_from = tape.cpu.make(t, c, |_| {});
            let mut d_to = tape.cpu.make(t, c, |_| {});
            let mut d_weight = tape.cpu.make(if one_row { 1 } else { t }, c, |_| {});
            let d = [own(&mut d_from), own(&mut d_to), own(&mut d_weight)];
            let (from, to, weight, d_y) = (from.data(), to.data(), weight.data(), d_y.data());
            let [a, b, w] = d;
            match one_row {
                true => backward::lerp_row_backward(isa, tape.cpu.pool(), a, b, w, from, to, weight, d_y),
                false => tape.cpu.pool().split_all([a, b, w], c, ADDED.div_ceil(c), |at, [a, b, w]| {
                    let (from, to, weight) = (&from[at.clone()], &to[at.clone()], &weight[at.clone()]);
                    backward::lerp_backward(isa, a, b, w, from, to, weight, &d_y[at]);
                }),
            }
            g.add(tape, of_from, d_from);
            g.add(tape, of_to, d_to);
            g.add(tape, of_weight, d_weight);
        })
    }

    pub(super) fn scaled_key(&self, k: &Var<F>, a: &Var<F>, k_a: &Var<F>) -> Var<F> {
        let sources = [self.source(k), self.source(a), self.source(k_a)];
        let (isa, k, a, k_a) = (self.cpu.isa(), self.value(k), self.value(a), self.value(k_a));
        let (t, c) = (k.rows(), k.channels());
        let y = self.by_rows(t, c, |at, y| {
            elementwise::scale_key(isa, y, &k.data()[at.clone()], &a.data()[at], k_a.data());
        });
        self.record_one(y, &sources, move |tape, g, d_y| {
            let mut d = [t, t, 1].map(|rows| tape.cpu.make(rows, c, |_| {}));
            let [d_k, d_a, d_k_a] = d.each_mut().map(own);
            let (k, a, k_a) = (k.data(), a.data(), k_a.data());
            backward::scale_key_backward(isa, tape.cpu.pool(), d_k, d_a, d_k_a, k, a, k_a, d_y.data());
            sources.into_iter().zip(d).for_each(|(to, d)| g.add(tape, to, d));
        })
    }

    pub(super) fn current_bonus(&self, y: &Var<F>, rkv: [&Var<F>; 3], r_k: &Var<F>, heads: usize) -> Var<F> {
        let [of_r, of_k, of_v] = rkv.map(|x| self.source(x));
        let (of_y, of_r_k) = (self.source(y), self.source(r_k));
        let (isa, y, rkv, r_k) = (self.cpu.isa(), self.value(y), rkv.map(|x| self.value(x)), self.value(r_k));
        let (t, c) = (y.rows(), y.channels());
        let n = c / heads;
        let made = self.by_rows(t, c, |at, to| {
            let [r, k, v] = rkv.each_ref().map(|x| &x.data()[at.clone()]);
            elementwise::bonus(isa, to, &y.data()[at], r, k, v, r_k.data(), n);
        });
        self.record_one(made, &[of_y, of_r, of_k, of_v, of_r_k], move |tape, g, d_y| {
            let mut d = [t, t, t, 1].map(|rows| tape.cpu.make(rows, c, |_| {}));
            let [d_r, d_k, d_v, d_r_k] = d.each_mut().map(own);
            let x = rkv.each_ref().map(|x| x.data());
            backward::bonus_backward(
                isa,
                tape.cpu.pool(),
                [d_r, d_k, d_v],
                d_r_k,
                x,
                r_k.data(),
                d_y.data(),
                n,
            );
            [of_r, of_k, of_v, of_r_k].into_iter().zip(d).for_each(|(to, d)| g.add(tape, to, d));
            g.add(tape, of_y, d_y);
        })
    }

    pub(super) fn some_columns(&self, x: &Var<F>, start: usize, len: usize) -> Var<F> {
        let (of_x, x) = (self.source(x), self.value(x));
        let (t, c) = (x.rows(), x.channels());
        let y = self.cpu.make(t, len, |y| {
            for (y, x) in y.chunks_exact_mut(len).zip(x.data().chunks_exact(c)) {
                y.copy_from_slice(&x[start..start + len]);
            }
        });
        self.record_one(y, &[of_x], move |tape, g, d_y| {
            let d_x = tape.cpu.make(t, c, |d_x| {
                d_x.fill(F::ZERO);
                for (d_x, d_y) in d_x.chunks_exact_mut(c).zip(d_y.data().chunks_exact(len)) {
                    d_x[start..start + len].copy_from_slice(d_y);
                }
            });
            g.add(tape, of_x, d_x);
        })
    }

    pub(super) fn some_rows(&self, x: &Var<F>, rows: &[usize]) -> Var<F> {
        let (of_x, x) = (self.source(x), self.value(x));
        let (t, c) = (x.rows(), x.channels());
        let y = self.cpu.make(rows.len(), c, |y| {
            for (y, &r) in y.chunks_exact_mut(c).zip(rows) {
                y.copy_from_slice(&x.data()[r * c..(r + 1) * c]);
            }
        });
        let rows = rows.to_vec();
        self.record_one(y, &[of_x], move |tape, g, d_y| {
            let mut d_x = tape.zeros(t, c);
            for (d_y, &r) in d_y.data().chunks_exact(c).zip(&rows) {
                elementwise::add_to(tape.cpu.isa(), &mut own(&mut d_x)[r * c..(r + 1) * c], d_y);
            }
            g.add(tape, of_x, d_x);
        })
    }

    pub(super) fn look_up(&self, table: &Matrix, tokens: &[u32]) -> Var<F> {
        let (p, c) = (table.parameter, table.inputs);
        let parameters = self.parameters();
        let table = &parameters.list()[p];
        let y = self.cpu.make(tokens.len(), c, |y| {
            for (y, &id) in y.chunks_exact_mut(c).zip(tokens) {
                match table.stored() {
                    Some(stored) => decode_rows(stored, id as usize, c, y),
                    None => y.copy_from_slice(&table.value()[id as usize * c..][..c]),
                }
            }
        });
        let of_table =
            if parameters.list()[p].is_trained() { Source::Parameter(p) } else { Source::Constant };
        drop(parameters);
        let tokens = tokens.to_vec();
        self.record_one(y, &[of_table], move |tape, _, d_y| {
            let mut parameters = tape.parameters_mut();
            let d_table = parameters.list_mut()[p].gradient_mut();
            for (d_y, &id) in d_y.data().chunks_exact(c).zip(&tokens) {
                elementwise::add_to(tape.cpu.isa(), &mut d_table[id as usize * c..][..c], d_y);
            }
        })
    }
}

/// The numbers of a tensor that was just made.
pub(super) fn own<F: Real>(tensor: &mut hawfinch_model::cpu::Tensor<F>) -> &mut [F] {
    tensor.get_mut().expect("just made")
}
