//! The tape: an implementor of the operations ([`hawfinch_model::ops::Ops`]) that runs them on the CPU, notes what they
//! did, and replays it backwards. So the architectures that run are those that train.
//!
//! Each operation stands once, its forward with the closure that goes back: `attention.rs`, `elements.rs`, `norms.rs`,
//! `products.rs`, `shift.rs`, `wkv.rs`; `loss.rs` is the head with the loss, `channels.rs` looks on. `ops.rs` ties them to the contract.

mod attention;
mod channels;
mod elements;
mod loss;
mod norms;
mod ops;
mod products;
mod shift;
mod states;
mod wkv;

use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hawfinch_kernels::Real;
use hawfinch_kernels::elementwise::{self, Binary};
use hawfinch_kernels::gemm::Precision;
use hawfinch_model::cpu::{Cpu, Tensor};

use crate::Parameters;

pub use channels::Channels;
pub use loss::Losses;
pub use products::Matrix;
pub use states::States;

/// A value on the tape. Cloning it copies a handle.
#[derive(Clone)]
pub enum Var<F: Real> {
    /// A parameter that is a vector, by its place in [`Parameters`]; its value is looked up when it is used.
    Parameter(usize),
    /// e to the power of one.
    ExpParameter(usize),
    /// A value, and its number on the tape if gradients flow through it.
    Value(Tensor<F>, Option<usize>),
}

/// Where a gradient goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: a constant.
    Constant,
    Parameter(usize),
    /// The gradient of e to the power of a parameter.
    ExpParameter(usize),
    Value(usize),
}

/// What goes back through one operation.
type Back<F> = Box<dyn FnOnce(&Tape<F>, &mut Gradients<F>) + Send>;

/// Parameters whose gradients are finished at the same time on the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The head and the norm before it: first.
    Head,
    /// A block, from the last to the first.
    Block(usize),
    /// The embedding with its norm, and tuned first states: when the way back is over.
    Rest,
}

impl Part {
    /// That of the parameter of this name.
    pub fn of(name: &str) -> Part {
        if name.starts_with("head.") || name.starts_with("ln_out.") {
            return Part::Head;
        }
        let block = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
        match block.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
            Some((layer, rest)) if !rest.starts_with("ln0.") && rest != "att.time_state" => {
                Part::Block(layer)
            }
            _ => Part::Rest,
        }
    }
}

enum Step<F: Real> {
    Back(Back<F>),
    /// What was recorded from here on belongs to the part; before it, nothing does.
    Mark(Part),
}

struct Recording<F: Real> {
    on: bool,
    /// Values numbered so far.
    values: usize,
    steps: Vec<Step<F>>,
}

/// The operations, recorded. See the module.
pub struct Tape<F: Real> {
    cpu: Cpu<F>,
    precision: Precision,
    parameters: RwLock<Parameters<F>>,
    recording: Mutex<Recording<F>>,
    /// Channels that fired, while that is noted.
    fired: Mutex<Option<channels::Fired>>,
}

impl<F: Real> Tape<F> {
    /// Over these parameters, on this CPU; matrix products in this precision. It does not record yet.
    pub fn new(cpu: Cpu<F>, parameters: Parameters<F>, precision: Precision) -> Self {
        let recording = Mutex::new(Recording { on: false, values: 0, steps: Vec::new() });
        let parameters = RwLock::new(parameters);
        Tape { cpu, precision, parameters, recording, fired: Mutex::new(None) }
    }

    /// What does the arithmetic.
    pub fn cpu(&self) -> &Cpu<F> {
        &self.cpu
    }

    /// The parameters.
    pub fn parameters(&self) -> RwLockReadGuard<'_, Parameters<F>> {
        self.parameters.read().unwrap_or_else(|e| e.into_inner())
    }

    /// The parameters, to change.
    pub fn parameters_mut(&self) -> RwLockWriteGuard<'_, Parameters<F>> {
        self.parameters.write().unwrap_or_else(|e| e.into_inner())
    }

    fn recording(&self) -> MutexGuard<'_, Recording<F>> {
        self.recording.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Begins anew: forgets what was recorded, and records from now on, or not.
    pub fn begin(&self, record: bool) {
        *self.recording() = Recording { on: record, values: 0, steps: Vec::new() };
    }

    /// A value whose gradient is wanted.
    pub fn leaf(&self, value: Tensor<F>) -> Var<F> {
        let mut recording = self.recording();
        recording.values += 1;
        Var::Value(value, Some(recording.values - 1))
    }

    /// The tensor behind a value.
    pub fn value(&self, x: &Var<F>) -> Tensor<F> {
        match x {
            Var::Parameter(p) => self.parameters().list()[*p].tensor(),
            Var::ExpParameter(p) => {
                let parameters = self.parameters();
                let raw = parameters.list()[*p].value();
                self.cpu.make(1, raw.len(), |y| y.iter_mut().zip(raw).for_each(|(y, v)| *y = v.exp()))
            }
            Var::Value(value, _) => value.clone(),
        }
    }

    /// Goes back through all that was recorded, from the gradients given, adding to those of the parameters; returns
    /// those of the leaves. Nothing is recorded any more afterwards.
    pub fn backward(&self, gradients: Gradients<F>) -> Gradients<F> {
        self.backward_telling(gradients, &mut |_| {})
    }

    /// Says that what is recorded from here on is of a part.
    pub(crate) fn mark(&self, part: Part) {
        let mut recording = self.recording();
        if recording.on {
            recording.steps.push(Step::Mark(part));
        }
    }

    /// As [`Tape::backward`]; `finished` is told of each marked part when the way back has come to its mark.
    pub(crate) fn backward_telling(
        &self,
        mut gradients: Gradients<F>,
        finished: &mut dyn FnMut(Part),
    ) -> Gradients<F> {
        let steps = std::mem::take(&mut self.recording().steps);
        for step in steps.into_iter().rev() {
            match step {
                Step::Back(step) => step(self, &mut gradients),
                Step::Mark(part) => finished(part),
            }
        }
        self.recording().on = false;
        gradients
    }

    fn source(&self, x: &Var<F>) -> Source {
        match x {
            Var::Parameter(p) if self.parameters().list()[*p].is_trained() => Source::Parameter(*p),
            Var::ExpParameter(p) if self.parameters().list()[*p].is_trained() => Source::ExpParameter(*p),
            Var::Value(_, Some(id)) => Source::Value(*id),
            _ => Source::Constant,
        }
    }

    /// What an operation made, with its way back if one of its `sources` wants a gradient: `back` is given the gradients
    /// of what was made, at least one of which is there.
    fn record(
        &self,
        made: Vec<Tensor<F>>,
        sources: &[Source],
        back: impl FnOnce(&Tape<F>, &mut Gradients<F>, Vec<Option<Tensor<F>>>) + Send + 'static,
    ) -> Vec<Var<F>> {
        let mut recording = self.recording();
        if !recording.on || sources.iter().all(|s| *s == Source::Constant) {
            return made.into_iter().map(|value| Var::Value(value, None)).collect();
        }
        let ids = recording.values..recording.values + made.len();
        recording.values = ids.end;
        let of = ids.clone();
        recording.steps.push(Step::Back(Box::new(move |tape, gradients| {
            let d: Vec<_> = of.map(|id| gradients.take_id(id)).collect();
            if d.iter().any(Option::is_some) {
                back(tape, gradients, d);
            }
        })));
        made.into_iter().zip(ids).map(|(value, id)| Var::Value(value, Some(id))).collect()
    }

    /// [`Tape::record`] of one result.
    fn record_one(
        &self,
        made: Tensor<F>,
        sources: &[Source],
        back: impl FnOnce(&Tape<F>, &mut Gradients<F>, Tensor<F>) + Send + 'static,
    ) -> Var<F> {
        let back = |tape: &Tape<F>, gradients: &mut Gradients<F>, d: Vec<Option<Tensor<F>>>| {
            back(tape, gradients, d.into_iter().flatten().next().expect("a gradient that is there"));
        };
        self.record(vec![made], sources, back).swap_remove(0)
    }

    /// `rows × channels` zeros.
    fn zeros(&self, rows: usize, channels: usize) -> Tensor<F> {
        self.cpu.make(rows, channels, |y| y.fill(F::ZERO))
    }

    /// A tensor filled by rows on all threads: `fill` is given the range of numbers and their place.
    fn by_rows(
        &self,
        rows: usize,
        channels: usize,
        fill: impl Fn(std::ops::Range<usize>, &mut [F]) + Sync,
    ) -> Tensor<F> {
        self.cpu.by_rows(rows, channels, fill)
    }
}

/// Numbers that a thread adds up at a time.
const ADDED: usize = 1 << 13;

/// Gradients on their way back.
pub struct Gradients<F: Real> {
    of: Vec<Option<Tensor<F>>>,
}

impl<F: Real> Default for Gradients<F> {
    fn default() -> Self {
        Gradients { of: Vec::new() }
    }
}

impl<F: Real> Gradients<F> {
    /// Adds `d` to the gradient of `x`; nothing if no gradient flows there.
    pub fn give(&mut self, tape: &Tape<F>, x: &Var<F>, d: Tensor<F>) {
        self.add(tape, tape.source(x), d);
    }

    /// The gradient that has arrived at `x`, which must not be a parameter.
    pub fn take(&mut self, x: &Var<F>) -> Option<Tensor<F>> {
        match x {
            Var::Value(_, Some(id)) => self.take_id(*id),
            _ => None,
        }
    }

    fn take_id(&mut self, id: usize) -> Option<Tensor<F>> {
        self.of.get_mut(id).and_then(Option::take)
    }

    fn add(&mut self, tape: &Tape<F>, to: Source, d: Tensor<F>) {
        match to {
            Source::Constant => {}
            Source::Parameter(p) => {
                let mut parameters = tape.parameters_mut();
                elementwise::add_to(tape.cpu.isa(), parameters.list_mut()[p].gradient_mut(), d.data());
            }
            Source::ExpParameter(p) => {
                let exp = tape.value(&Var::ExpParameter(p));
                let d = tape.by_rows(1, d.channels(), |at, y| {
                    elementwise::binary(
                        tape.cpu.isa(),
                        Binary::Mul,
                        y,
                        &d.data()[at.clone()],
                        &exp.data()[at],
                    );
                });
                self.add(tape, Source::Parameter(p), d);
            }
            Source::Value(id) => {
                if self.of.len() <= id {
                    self.of.resize_with(id + 1, || None);
                }
                self.of[id] = Some(match self.of[id].take() {
                    None => d,
                    Some(there) => tape.sum(there, d),
                });
            }
        }
    }
}

impl<F: Real> Tape<F> {
    /// a + b, in the place of one of them if nobody else holds it.
    fn sum(&self, mut a: Tensor<F>, mut b: Tensor<F>) -> Tensor<F> {
        let (isa, c) = (self.cpu.isa(), a.channels());
        if a.get_mut().is_none() {
            std::mem::swap(&mut a, &mut b);
        }
        let Some(sum) = a.get_mut() else {
            return self.by_rows(a.rows(), c, |at, y| {
                elementwise::add_scaled(isa, y, &a.data()[at.clone()], &b.data()[at], F::ONE);
            });
        };
        self.cpu.pool().split(sum, c, ADDED.div_ceil(c), |first, y| {
            elementwise::add_to(isa, y, &b.data()[first * c..first * c + y.len()]);
        });
        a
    }
}
