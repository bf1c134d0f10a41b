//! The recurrences.

use std::ops::Range;

use hawfinch_kernels::elementwise::backward::sum_rows;
use hawfinch_kernels::wkv::{
    self, Gradients as Rkv, Gradients4, Head, Rows, State4, StateGradient4, saved_len, saved_len7,
};
use hawfinch_kernels::{Isa, Real};
use hawfinch_model::cpu::Tensor;
use hawfinch_model::ops::Batch;

use super::elements::own;
use super::{Source, States, Tape, Var};

/// A recurrence with a matrix for a state. Operands beside receptance, key and value: some of them one a token (`tokens`,
/// `[t, c]`), the others parameters (`vectors`, one or a head's channels a head).
trait Recurrence<F: Real> {
    /// Numbers that a head keeps for the way back.
    fn saved(t: usize, n: usize) -> usize;
    fn forward(isa: Isa, y: &Rows<F>, at: At<'_, F>, x: Head<'_, F>, tokens: &[&[F]], vectors: &[&[F]]);
    fn backward(
        isa: Isa,
        d: Rkv<'_, F>,
        d_tokens: &[&Rows<F>],
        d_vectors: &mut [&mut [F]],
        at: Back<'_, F>,
        x: Head<'_, F>,
        tokens: &[&[F]],
        vectors: &[&[F]],
    );
}

/// What a forward changes beside its output.
struct At<'a, F> {
    state: &'a mut [F],
    saved: &'a mut [F],
}

/// What a backward starts from.
struct Back<'a, F> {
    d_state: &'a mut [F],
    saved: &'a [F],
    d_y: &'a [F],
}

/// One head of one sequence on the way back.
struct BackJob<'a, F> {
    sequence: usize,
    head: usize,
    d_state: &'a mut [F],
    /// Its part of the gradient of each parameter.
    d_vectors: Vec<&'a mut [F]>,
}

struct V5;
struct V6;
struct V7;

impl<F: Real> Recurrence<F> for V5 {
    fn saved(t: usize, n: usize) -> usize {
        saved_len(t, n)
    }
    fn forward(isa: Isa, y: &Rows<F>, at: At<'_, F>, x: Head<'_, F>, _: &[&[F]], vectors: &[&[F]]) {
        wkv::wkv5_saving(isa, y, at.state, at.saved, x, vectors[0], vectors[1]);
    }
    fn backward(
        isa: Isa,
        d: Rkv<'_, F>,
        _: &[&Rows<F>],
        d_vectors: &mut [&mut [F]],
        at: Back<'_, F>,
        x: Head<'_, F>,
        _: &[&[F]],
        vectors: &[&[F]],
    ) {
        let [d_decay, d_bonus] = d_vectors else { unreachable!("two parameters") };
        wkv::wkv5_backward(isa, d, d_decay, d_bonus, at.d_state, at.saved, at.d_y, x, vectors[0], vectors[1]);
    }
}

impl<F: Real> Recurrence<F> for V6 {
    fn saved(t: usize, n: usize) -> usize {
        saved_len(t, n)
    }
    fn forward(isa: Isa, y: &Rows<F>, at: At<'_, F>, x: Head<'_, F>, tokens: &[&[F]], vectors: &[&[F]]) {
        wkv::wkv6_saving(isa, y, at.state, at.saved, x, tokens[0], vectors[0]);
    }
    fn backward(
        isa: Isa,
        d: Rkv<'_, F>,
        d_tokens: &[&Rows<F>],
        d_vectors: &mut [&mut [F]],
        at: Back<'_, F>,
        x: Head<'_, F>,
        tokens: &[&[F]],
        vectors: &[&[F]],
    ) {
        let (raw, bonus) = (tokens[0], vectors[0]);
        wkv::wkv6_backward(isa, d, d_tokens[0], d_vectors[0], at.d_state, at.saved, at.d_y, x, raw, bonus);
    }
}

impl<F: Real> Recurrence<F> for V7 {
    fn saved(t: usize, n: usize) -> usize {
        saved_len7(t, n)
    }
    fn forward(isa: Isa, y: &Rows<F>, at: At<'_, F>, x: Head<'_, F>, tokens: &[&[F]], _: &[&[F]]) {
        wkv::wkv7_saving(isa, y, at.state, at.saved, x, tokens[0], tokens[1], tokens[2]);
    }
    fn backward(
        isa: Isa,
        d: Rkv<'_, F>,
        d_tokens: &[&Rows<F>],
        _: &mut [&mut [F]],
        at: Back<'_, F>,
        x: Head<'_, F>,
        tokens: &[&[F]],
        _: &[&[F]],
    ) {
        let [d_om, d_kk, d_a] = d_tokens else { unreachable!("three operands") };
        let [om, kk, a] = tokens else { unreachable!("three operands") };
        wkv::wkv7_backward(isa, d, d_om, d_kk, d_a, at.d_state, at.saved, at.d_y, x, om, kk, a);
    }
}

/// Where the sequences of a batch lie in tensors `[t, c]`.
pub(super) fn ranges(lengths: &[usize], c: usize) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |len: &usize| {
        end += len * c;
        end - len * c..end
    };
    lengths.iter().map(range).collect()
}

impl<F: Real> Tape<F> {
    /// Rows of each sequence of a tensor, of which threads fill different heads.
    pub(super) fn rows_of(ranges: &[Range<usize>], y: &mut [F]) -> Vec<Rows<F>> {
        // SAFETY: the sequences' parts are disjoint, each head of each is computed by one call, and the tensor outlives
        // the calls that fill it.
        ranges.iter().map(|range| unsafe { Rows::new(&mut y[range.clone()]) }).collect()
    }

    fn recur<R: Recurrence<F>>(
        &self,
        rkv: [&Var<F>; 3],
        tokens: &[&Var<F>],
        vectors: &[&Var<F>],
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        let isa = self.cpu.isa();
        let all = || rkv.iter().chain(tokens).chain(vectors).copied();
        let states = || batch.states.iter().map(|s| s.field(layer, "wkv"));
        let sources: Vec<Source> = all().chain(states()).map(|x| self.source(x)).collect();
        let operands: Vec<Tensor<F>> = all().map(|x| self.value(x)).collect();
        let (per_token, t, c) = (3 + tokens.len(), operands[0].rows(), operands[0].channels());
        let shape = &batch.states[0].layout().field("wkv").expect("a matrix state").shape;
        let (heads, n) = (shape[0], shape[2]);
        let lengths = batch.lengths.clone();
        let places = ranges(&lengths, c);
        let keep = self.recording().on && sources.iter().any(|s| *s != Source::Constant);
        let mut saved: Vec<Tensor<F>> = lengths
            .iter()
            .map(|&len| self.cpu.make(heads, if keep { R::saved(len, n) } else { 1 }, |_| {}))
            .collect();
        let mut last: Vec<Tensor<F>> = states()
            .map(|s| self.cpu.make(1, heads * n * n, |y| y.copy_from_slice(self.value(s).data())))
            .collect();
        let mut y = self.cpu.make(t, c, |_| {});
        let rows = Self::rows_of(&places, own(&mut y));
        let mut jobs = Vec::new();
        for (s, (saved, state)) in saved.iter_mut().zip(&mut last).enumerate() {
            let len = if keep { R::saved(lengths[s], n) } else { 1 };
            let parts = own(saved).chunks_exact_mut(len).zip(own(state).chunks_exact_mut(n * n));
            jobs.extend(parts.enumerate().map(|(head, (saved, state))| {
                (s, head, At { state, saved: if keep { saved } else { &mut [] } })
            }));
        }
        let slices = |at: &Range<usize>| -> (Vec<&[F]>, Vec<&[F]>) {
            let (tokens, vectors) = operands.split_at(per_token);
            (
                tokens.iter().map(|x| &x.data()[at.clone()]).collect(),
                vectors.iter().map(|x| x.data()).collect(),
            )
        };
        self.cpu.pool().split(&mut jobs, 1, 1, |_, jobs| {
            for (s, head, at) in jobs {
                let (tokens, vectors) = slices(&places[*s]);
                let x = Head { r: tokens[0], k: tokens[1], v: tokens[2], head: *head, n, c };
                let at = At { state: at.state, saved: at.saved };
                R::forward(isa, &rows[*s], at, x, &tokens[3..], &vectors);
            }
        });
        drop(jobs);
        let made = [y].into_iter().chain(last).collect();
        let of = sources.clone();
        let mut made = self.record(made, &sources, move |tape, g, d| {
            let d_y = d[0].clone().unwrap_or_else(|| tape.zeros(t, c));
            // The gradient of each last state becomes that of the first.
            let mut d_states: Vec<Tensor<F>> = d[1..]
                .iter()
                .map(|d| {
                    tape.cpu.make(1, heads * n * n, |to| match d {
                        Some(d) => to.copy_from_slice(d.data()),
                        None => to.fill(F::ZERO),
                    })
                })
                .collect();
            let mut d_tokens: Vec<Tensor<F>> = (0..per_token).map(|_| tape.cpu.make(t, c, |_| {})).collect();
            // Of each sequence; added up below.
            let mut d_vectors: Vec<Tensor<F>> = operands[per_token..]
                .iter()
                .map(|v| tape.cpu.make(lengths.len(), v.channels(), |_| {}))
                .collect();
            let rows: Vec<Vec<Rows<F>>> =
                d_tokens.iter_mut().map(|d| Self::rows_of(&places, own(d))).collect();
            let mut jobs: Vec<BackJob<'_, F>> = Vec::new();
            for (s, d_state) in d_states.iter_mut().enumerate() {
                let parts = own(d_state).chunks_exact_mut(n * n).enumerate();
                jobs.extend(parts.map(|(head, d_state)| BackJob {
                    sequence: s,
                    head,
                    d_state,
                    d_vectors: Vec::new(),
                }));
            }
            for d in &mut d_vectors {
                let each = d.channels() / heads;
                for (job, part) in jobs.iter_mut().zip(own(d).chunks_exact_mut(each)) {
                    job.d_vectors.push(part);
                }
            }
            let (operands, saved) = (&operands, &saved);
            tape.cpu.pool().split(&mut jobs, 1, 1, |_, jobs| {
                for BackJob { sequence: s, head, d_state, d_vectors } in jobs {
                    let at = &places[*s];
                    let tokens: Vec<&[F]> =
                        operands[..per_token].iter().map(|x| &x.data()[at.clone()]).collect();
                    let vectors: Vec<&[F]> = operands[per_token..].iter().map(|x| x.data()).collect();
                    let x = Head { r: tokens[0], k: tokens[1], v: tokens[2], head: *head, n, c };
                    let d: Vec<&Rows<F>> = rows.iter().map(|r| &r[*s]).collect();
                    let len = R::saved(lengths[*s], n);
                    let back = Back {
                        d_state,
                        saved: &saved[*s].data()[*head * len..(*head + 1) * len],
                        d_y: &d_y.data()[at.clone()],
                    };
                    let rkv = Rkv { r: d[0], k: d[1], v: d[2] };
                    R::backward(isa, rkv, &d[3..], d_vectors, back, x, &tokens[3..], &vectors);
                }
            });
            drop(jobs);
            let d_vectors = d_vectors.into_iter().map(|d| tape.summed(d));
            let d = d_tokens.into_iter().chain(d_vectors).chain(d_states);
            of.iter().zip(d).for_each(|(to, d)| g.add(tape, *to, d));
        });
        let y = made.remove(0);
        for (state, last) in batch.states.iter_mut().zip(made) {
            state.set(layer, "wkv", last);
        }
        y
    }

    /// The sum of a tensor's rows.
    fn summed(&self, d: Tensor<F>) -> Tensor<F> {
        if d.rows() == 1 {
            return d;
        }
        self.cpu.make(1, d.channels(), |sum| sum_rows(self.cpu.isa(), self.cpu.pool(), sum, d.data()))
    }

    pub(super) fn constant_decay(
        &self,
        rkv: [&Var<F>; 3],
        time_decay: &Var<F>,
        bonus: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.recur::<V5>(rkv, &[], &[time_decay, bonus], batch, layer)
    }

    pub(super) fn own_decay(
        &self,
        rkv: [&Var<F>; 3],
        d: &Var<F>,
        bonus: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.recur::<V6>(rkv, &[d], &[bonus], batch, layer)
    }

    pub(super) fn delta_rule(
        &self,
        rkv: [&Var<F>; 3],
        tokens: [&Var<F>; 3],
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        self.recur::<V7>(rkv, &tokens, &[], batch, layer)
    }

    /// RWKV-4. Gradients of a state's `aa` and `bb` are with `pp` held constant; it has none: loss depends on
    /// aa·e^pp and bb·e^pp alone.
    pub(super) fn means(
        &self,
        k: &Var<F>,
        v: &Var<F>,
        time_decay: &Var<F>,
        time_first: &Var<F>,
        batch: &mut Batch<'_, States<F>>,
        layer: usize,
    ) -> Var<F> {
        const FIELDS: [&str; 3] = ["aa", "bb", "pp"];
        let isa = self.cpu.isa();
        let mut sources: Vec<Source> = [k, v, time_decay, time_first].map(|x| self.source(x)).into();
        let [k, v, decay, first] = [k, v, time_decay, time_first].map(|x| self.value(x));
        let (t, c) = (k.rows(), k.channels());
        let places = ranges(&batch.lengths, c);
        let starts: Vec<[Tensor<F>; 3]> =
            batch.states.iter().map(|s| FIELDS.map(|f| self.value(s.field(layer, f)))).collect();
        for s in &batch.states {
            sources.extend(FIELDS[..2].iter().map(|f| self.source(s.field(layer, f))));
        }
        let mut lasts: Vec<Tensor<F>> =
            starts.iter().flatten().map(|x| self.cpu.make(1, c, |y| y.copy_from_slice(x.data()))).collect();
        let mut y = self.cpu.make(t, c, |_| {});
        for (at, last) in places.iter().zip(lasts.chunks_exact_mut(3)) {
            let [aa, bb, pp] = last else { unreachable!("three fields") };
            let (y, k, v) = (&mut own(&mut y)[at.clone()], &k.data()[at.clone()], &v.data()[at.clone()]);
            let state = State4 { aa: own(aa), bb: own(bb), pp: own(pp) };
            wkv::wkv4(isa, self.cpu.pool(), y, state, k, v, decay.data(), first.data());
        }
        let exponents: Vec<Tensor<F>> = lasts.iter().skip(2).step_by(3).cloned().collect();
        let made = [y].into_iter().chain(lasts).collect();
        let of = sources.clone();
        let mut made = self.record(made, &sources, move |tape, g, d| {
            let d_y = d[0].clone().unwrap_or_else(|| tape.zeros(t, c));
            let mut d_kv = [tape.cpu.make(t, c, |_| {}), tape.cpu.make(t, c, |_| {})];
            let mut d_vectors = [0, 1].map(|_| tape.cpu.make(places.len(), c, |_| {}));
            let mut d_states = Vec::new();
            for (s, at) in places.iter().enumerate() {
                let mut sums = [0, 1].map(|n| match &d[1 + 3 * s + n] {
                    Some(d) => tape.cpu.make(1, c, |y| y.copy_from_slice(d.data())),
                    None => tape.zeros(1, c),
                });
                let mut exponent = tape.cpu.make(1, c, |y| {
                    y.iter_mut().zip(exponents[s].data()).for_each(|(y, pp)| *y = -*pp);
                });
                let [d_k, d_v] = d_kv.each_mut().map(|d| &mut own(d)[at.clone()]);
                let [d_decay, d_first] = d_vectors.each_mut().map(|d| &mut own(d)[s * c..(s + 1) * c]);
                let d = Gradients4 { k: d_k, v: d_v, time_decay: d_decay, time_first: d_first };
                let [a, b] = sums.each_mut().map(own);
                let d_s = StateGradient4 { a, b, exponent: own(&mut exponent) };
                let [aa, bb, pp] = starts[s].each_ref().map(|x| x.data());
                let (d_y, k, v) = (&d_y.data()[at.clone()], &k.data()[at.clone()], &v.data()[at.clone()]);
                let pool = tape.cpu.pool();
                wkv::wkv4_backward(isa, pool, d, d_s, [aa, bb, pp], d_y, k, v, decay.data(), first.data());
                for mut sum in sums {
                    let scale = exponent.data().iter().zip(pp);
                    own(&mut sum).iter_mut().zip(scale).for_each(|(d, (&e, &pp))| *d *= (e + pp).exp());
                    d_states.push(sum);
                }
            }
            let d_vectors = d_vectors.into_iter().map(|d| tape.summed(d));
            let d = d_kv.into_iter().chain(d_vectors).chain(d_states);
            of.iter().zip(d).for_each(|(to, d)| g.add(tape, *to, d));
        });
        let y = made.remove(0);
        let mut made = made.into_iter();
        for state in &mut batch.states {
            for (field, last) in FIELDS.iter().zip(made.by_ref()) {
                state.set(layer, field, last);
            }
        }
        y
    }
}
