//! A model that can go backwards: one call computes losses of a batch of sequences and adds to the gradients of the
//! parameters.

use hawfinch_kernels::Real;
use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_model::checkpoint::{Checkpoint, DecayForm};
use hawfinch_model::cpu::{Cpu, Tensor};
use hawfinch_model::ops::Batch;
use hawfinch_model::{Config, Lora, Model, OpenOptions, State};

use crate::tape::{Gradients, Losses, Part, States, Tape, Var};
use crate::tuning::{self, Method, Tuning};
use crate::{Error, Parameter, Parameters, Result};

/// Free buffers that are kept between steps: all that a step lets go of.
const BUFFERS: usize = 1 << 14;

/// Sequences to learn from: their rows one after the other.
#[derive(Clone, Copy)]
pub struct Lesson<'a, F: Real> {
    /// Tokens of each sequence; none is 0.
    pub lengths: &'a [usize],
    /// `[t]`: all tokens.
    pub tokens: &'a [u32],
    /// `[t]`: what follows each, and how much that counts.
    pub targets: Targets<'a>,
    /// The state each sequence starts from; `None` for that of the empty context (or the model's tuned state).
    pub initial: Option<&'a [State<F>]>,
    /// The gradient of something else with respect to each sequence's last state, to be added to the loss's. In v4 with
    /// respect to `aa` and `bb`, `pp` held constant.
    pub d_last: Option<&'a [State<F>]>,
}

/// What a pass gave.
pub struct Learned<F: Real> {
    /// Of each row, and their weighted sum.
    pub losses: Losses,
    /// The state after each sequence.
    pub last: Vec<State<F>>,
    /// The gradient with respect to each initial state, if `initial` was given and the pass went back. In v4 as
    /// [`Lesson::d_last`].
    pub d_initial: Vec<State<F>>,
}

/// What part of a text has from the parts beside it.
#[derive(Clone, Copy)]
pub(crate) struct Borders<'a, F: Real> {
    /// The state that the first sequence goes on from, in place of the one it would begin with.
    pub carried: Option<&'a State<F>>,
    /// The gradient with respect to the last sequence's last state, which goes on elsewhere.
    pub d_carried: Option<&'a State<F>>,
}

impl<F: Real> Default for Borders<'_, F> {
    fn default() -> Self {
        Borders { carried: None, d_carried: None }
    }
}

/// Gradients with respect to first states.
struct FirstGradients<F: Real> {
    /// Of those that were given.
    initial: Vec<State<F>>,
    /// Of the one that was carried on.
    carried: Option<State<F>>,
}

/// A model on a tape.
pub struct Learner<F: Real> {
    model: Model<Tape<F>>,
    /// The parameter of each layer that sequences begin with, where that is what is trained.
    first_state: Vec<usize>,
    /// Whether blocks are computed again on the way back, rather than all their values kept.
    recompute: bool,
}

impl<F: Real> Learner<F> {
    /// All parameters of a checkpoint, to be trained on this CPU.
    ///
    /// # Errors
    /// No model, decays in rwkv.cpp's form.
    pub fn new(checkpoint: &Checkpoint, cpu: Cpu<F>, precision: Precision) -> Result<Self> {
        Self::adapted(checkpoint, None, cpu, precision)
    }

    /// The same with an adapter, whose halves are parameters beside the model's ([`Parameters::new`] says under which
    /// names); all of both is trained.
    ///
    /// # Errors
    /// As [`Learner::new`]; an adapter of another model.
    pub fn adapted(
        checkpoint: &Checkpoint,
        adapter: Option<Lora>,
        cpu: Cpu<F>,
        precision: Precision,
    ) -> Result<Self> {
        Self::with(checkpoint, adapter, &|_| true, cpu, precision)
    }

    /// What a method trains of a model; matrices that it does not train stay as the file has them, quantised or not.
    ///
    /// # Errors
    /// As [`Learner::new`]; an adapter or a state of another model.
    pub fn tuned(
        checkpoint: &Checkpoint,
        tuning: &Tuning,
        cpu: Cpu<F>,
        precision: Precision,
    ) -> Result<Self> {
        let trains = |name: &str| tuning.trains(name);
        let mut learner = Self::with(checkpoint, tuning.adapter.clone(), &trains, cpu, precision)?;
        tuning.keep(&mut learner.tape().parameters_mut());
        // What is trained was taken over.
        learner.model.forget_adapters();
        if tuning.method == Method::Full {
            learner.model.forget_tensors();
        }
        if tuning.method != Method::State {
            return Ok(learner);
        }
        learner.config().version.needs_state(&checkpoint.path)?;
        let mut first = match &tuning.state {
            Some(file) => learner.model.state_from(file)?,
            None => learner.model.new_state(),
        };
        first.tokens = 0;
        let config = *learner.config();
        for layer in 0..config.layers {
            let name = format!("blocks.{layer}.att.time_state");
            let (shape, values) = tuning::in_file(&config, &first, layer);
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let tape = learner.model.ops();
            let parameter = Parameter::own(tape.cpu(), name.clone(), shape, &values, true);
            let mut parameters = tape.parameters_mut();
            // The model may bring one of its own, which this takes the place of.
            let place = match parameters.find(&name) {
                Some(place) => {
                    parameters.list_mut()[place] = parameter;
                    place
                }
                None => parameters.add(parameter),
            };
            drop(parameters);
            learner.first_state.push(place);
        }
        Ok(learner)
    }

    fn with(
        checkpoint: &Checkpoint,
        adapter: Option<Lora>,
        trains: &dyn Fn(&str) -> bool,
        cpu: Cpu<F>,
        precision: Precision,
    ) -> Result<Self> {
        if checkpoint.decay_form == DecayForm::Exponentiated {
            return Err(Error::request(format!(
                "{} is a file of rwkv.cpp, which holds the decays already exponentiated: train from the original model",
                checkpoint.path.display()
            )));
        }
        let cpu = cpu.keeping(BUFFERS);
        let parameters = Parameters::new(&cpu, checkpoint, adapter.as_ref(), trains)?;
        let tape = Tape::new(cpu, parameters, precision);
        let options = OpenOptions { loras: adapter.into_iter().collect(), ..OpenOptions::default() };
        let model = Model::from_checkpoint(checkpoint.clone(), options, tape)?;
        Ok(Learner { model, first_state: Vec::new(), recompute: false })
    }

    /// Whether blocks are computed again on the way back, so that a step holds one block's values and one `[t, d]` a
    /// layer. The results are the same bits.
    pub fn set_recomputing(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Version and sizes.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The model.
    pub fn model(&self) -> &Model<Tape<F>> {
        &self.model
    }

    /// The tape, with the parameters.
    pub fn tape(&self) -> &Tape<F> {
        self.model.ops()
    }

    pub(crate) fn check(&self, lesson: &Lesson<'_, F>) -> Result<()> {
        let (t, vocab) = (lesson.tokens.len(), self.config().vocab);
        let invalid = |why: String| Err(Error::request(why));
        if lesson.lengths.contains(&0) || lesson.lengths.iter().sum::<usize>() != t || t == 0 {
            return invalid(format!("{t} tokens are no sequences of {:?}", lesson.lengths));
        }
        if lesson.targets.ids.len() != t || lesson.targets.weights.len() != t {
            return invalid(format!("{t} tokens with {} targets", lesson.targets.ids.len()));
        }
        if let Some(&id) = lesson.tokens.iter().chain(lesson.targets.ids).find(|&&id| id as usize >= vocab) {
            return Err(hawfinch_model::Error::TokenRange { id, vocab }.into());
        }
        for states in [lesson.initial, lesson.d_last].into_iter().flatten() {
            self.config().version.needs_state(&self.model.checkpoint().path)?;
            if states.len() != lesson.lengths.len() {
                return invalid(format!("{} states for {} sequences", states.len(), lesson.lengths.len()));
            }
            if states.iter().any(|s| **s.layout() != **self.model.state_layout()) {
                return invalid("a state of a model of another version or size".into());
            }
        }
        Ok(())
    }

    /// The losses of these sequences; nothing is learned.
    ///
    /// # Errors
    /// A lesson whose parts do not fit together or the model.
    pub fn evaluate(&self, lesson: &Lesson<'_, F>) -> Result<Learned<F>> {
        self.check(lesson)?;
        Ok(self.evaluate_between(lesson, None))
    }

    /// The same of part of a text, the first sequence going on from a state.
    pub(crate) fn evaluate_between(&self, lesson: &Lesson<'_, F>, carried: Option<&State<F>>) -> Learned<F> {
        let tape = self.tape();
        tape.begin(false);
        let mut states = self.states(lesson, carried, false);
        let (x, _) = self.blocks(lesson, &mut states, |_, _| {});
        let losses = self.loss(&x, lesson, &mut Gradients::default());
        Learned { losses, last: states.iter().map(|s| s.read(tape)).collect(), d_initial: Vec::new() }
    }

    /// The losses of these sequences; the gradients of their weighted sum are added to those of the parameters.
    ///
    /// # Errors
    /// As [`Learner::evaluate`].
    pub fn learn(&self, lesson: &Lesson<'_, F>) -> Result<Learned<F>> {
        self.check(lesson)?;
        Ok(self.learn_between(lesson, Borders::default(), &mut |_| {}).0)
    }

    /// The same of part of a text; the gradient with respect to the state it was carried on from is the second result.
    /// `finished` is told of the head and of each block when this pass adds nothing more to their gradients.
    pub(crate) fn learn_between(
        &self,
        lesson: &Lesson<'_, F>,
        borders: Borders<'_, F>,
        finished: &mut dyn FnMut(Part),
    ) -> (Learned<F>, Option<State<F>>) {
        if self.recompute {
            self.learn_again(lesson, borders, finished)
        } else {
            self.learn_at_once(lesson, borders, finished)
        }
    }

    /// The state after the last sequence; nothing is learned and no loss computed.
    pub(crate) fn last_state(&self, lesson: &Lesson<'_, F>, carried: Option<&State<F>>) -> State<F> {
        let tape = self.tape();
        tape.begin(false);
        let mut states = self.states(lesson, carried, false);
        self.blocks(lesson, &mut states, |_, _| {});
        states.last().expect("a sequence").read(tape)
    }

    /// All values kept.
    fn learn_at_once(
        &self,
        lesson: &Lesson<'_, F>,
        borders: Borders<'_, F>,
        finished: &mut dyn FnMut(Part),
    ) -> (Learned<F>, Option<State<F>>) {
        let tape = self.tape();
        tape.begin(true);
        let initial = self.states(lesson, borders.carried, self.learns_states(lesson, borders));
        let mut states = initial.clone();
        let mut layers = 0..;
        let (x, _) =
            self.blocks(lesson, &mut states, |_, _| tape.mark(Part::Block(layers.next().unwrap_or(0))));
        tape.mark(Part::Head);
        let mut gradients = Gradients::default();
        let losses = self.loss(&x, lesson, &mut gradients);
        for layer in 0..self.config().layers {
            self.give_last(lesson, borders, &states, layer, &mut gradients);
        }
        let mut gradients = tape.backward_telling(gradients, finished);
        let mut d_first = self.empty(lesson, borders);
        for layer in 0..self.config().layers {
            self.take_initial(&initial, layer, &mut gradients, &mut d_first);
        }
        let last = states.iter().map(|s| s.read(tape)).collect();
        (Learned { losses, last, d_initial: d_first.initial }, d_first.carried)
    }

    /// One block's values at a time: each is computed again from what went into it.
    fn learn_again(
        &self,
        lesson: &Lesson<'_, F>,
        borders: Borders<'_, F>,
        finished: &mut dyn FnMut(Part),
    ) -> (Learned<F>, Option<State<F>>) {
        let tape = self.tape();
        tape.begin(false);
        let initial = self.states(lesson, borders.carried, false);
        let mut states = initial.clone();
        let mut entered: Vec<(Var<F>, Option<Var<F>>)> = Vec::new();
        let (x, _) =
            self.blocks(lesson, &mut states, |x, v_first| entered.push((x.clone(), v_first.clone())));
        let last = states.iter().map(|s| s.read(tape)).collect();
        // The head.
        tape.begin(true);
        let x = tape.leaf(tape.value(&x));
        let mut gradients = Gradients::default();
        let losses = self.loss(&x, lesson, &mut gradients);
        let mut d_x = tape.backward(gradients).take(&x);
        finished(Part::Head);
        let mut d_v_first: Option<Tensor<F>> = None;
        let mut d_first = self.empty(lesson, borders);
        for (layer, (x, v_first)) in entered.into_iter().enumerate().rev() {
            tape.begin(true);
            let x = tape.leaf(tape.value(&x));
            let v_in = v_first.map(|v| tape.leaf(tape.value(&v)));
            let first = self.states(lesson, borders.carried, self.learns_states(lesson, borders));
            let mut states = first.clone();
            let mut v_first = v_in.clone();
            let y = self.block(layer, &x, lesson.lengths, &mut states, &mut v_first);
            let mut gradients = Gradients::default();
            if let Some(d) = d_x.take() {
                gradients.give(tape, &y, d);
            }
            if let (Some(v), Some(d)) = (&v_first, d_v_first.take()) {
                // Block 0 makes it; the others hand it on.
                gradients.give(tape, v, d);
            }
            self.give_last(lesson, borders, &states, layer, &mut gradients);
            let mut gradients = tape.backward(gradients);
            d_x = gradients.take(&x);
            d_v_first = v_in.and_then(|v| gradients.take(&v));
            self.take_initial(&first, layer, &mut gradients, &mut d_first);
            finished(Part::Block(layer));
        }
        // The embedding.
        tape.begin(true);
        let x = self.model.embed(lesson.tokens);
        let mut gradients = Gradients::default();
        if let Some(d) = d_x {
            gradients.give(tape, &x, d);
        }
        tape.backward(gradients);
        (Learned { losses, last, d_initial: d_first.initial }, d_first.carried)
    }

    /// Every sequence's first state on the tape.
    fn states(&self, lesson: &Lesson<'_, F>, carried: Option<&State<F>>, leaves: bool) -> Vec<States<F>> {
        let make = if leaves { States::leaf } else { States::constant };
        let mut states = match lesson.initial {
            Some(initial) => initial.iter().map(|s| make(self.tape(), s)).collect(),
            None => {
                // One value for all: the gradients of all sequences meet there.
                let fresh = make(self.tape(), &self.first_state());
                vec![fresh; lesson.lengths.len()]
            }
        };
        if let Some(carried) = carried {
            states[0] = make(self.tape(), carried);
        }
        states
    }

    /// Whether gradients with respect to the first states are wanted.
    fn learns_states(&self, lesson: &Lesson<'_, F>, borders: Borders<'_, F>) -> bool {
        lesson.initial.is_some() || borders.carried.is_some() || !self.first_state.is_empty()
    }

    /// The state that sequences begin with.
    pub fn first_state(&self) -> State<F> {
        let mut state = self.model.new_state().cast();
        let (config, parameters) = (self.config(), self.tape().parameters());
        for (layer, &place) in self.first_state.iter().enumerate() {
            tuning::into_state(config, parameters.list()[place].value(), &mut state, layer);
        }
        state
    }

    /// A state of zeros.
    fn zeros(&self) -> State<F> {
        let mut zero = State::new(self.model.state_layout().clone());
        zero.data_mut().fill(F::ZERO);
        zero
    }

    /// States of zeros to put gradients into, as far as they are wanted.
    fn empty(&self, lesson: &Lesson<'_, F>, borders: Borders<'_, F>) -> FirstGradients<F> {
        let initial = vec![self.zeros(); lesson.initial.map_or(0, <[_]>::len)];
        FirstGradients { initial, carried: borders.carried.map(|_| self.zeros()) }
    }

    /// From the tokens to what comes out of the last block; `enter` sees what goes into each block.
    fn blocks(
        &self,
        lesson: &Lesson<'_, F>,
        states: &mut [States<F>],
        mut enter: impl FnMut(&Var<F>, &Option<Var<F>>),
    ) -> (Var<F>, Option<Var<F>>) {
        let mut x = self.model.embed(lesson.tokens);
        let mut v_first = None;
        for layer in 0..self.config().layers {
            enter(&x, &v_first);
            x = self.block(layer, &x, lesson.lengths, states, &mut v_first);
        }
        (x, v_first)
    }

    fn block(
        &self,
        layer: usize,
        x: &Var<F>,
        lengths: &[usize],
        states: &mut [States<F>],
        v_first: &mut Option<Var<F>>,
    ) -> Var<F> {
        let mut batch = Batch { lengths: lengths.to_vec(), states: states.iter_mut().collect() };
        self.model.block(layer, x, &mut batch, v_first)
    }

    fn loss(&self, x: &Var<F>, lesson: &Lesson<'_, F>, gradients: &mut Gradients<F>) -> Losses {
        let hidden = self.model.last_norm(x);
        self.tape().head_loss(&hidden, self.model.head(), lesson.targets, gradients)
    }

    /// Gives the gradients of the last states of a layer.
    fn give_last(
        &self,
        lesson: &Lesson<'_, F>,
        borders: Borders<'_, F>,
        states: &[States<F>],
        layer: usize,
        to: &mut Gradients<F>,
    ) {
        let all = lesson.d_last.unwrap_or(&[]).iter().zip(states);
        for (d, state) in all.chain(borders.d_carried.zip(states.last())) {
            for field in &d.layout().fields {
                let values = d.field(layer, field.name);
                let d = self.tape().cpu().make(1, values.len(), |y| y.copy_from_slice(values));
                to.give(self.tape(), state.field(layer, field.name), d);
            }
        }
    }

    /// Takes the gradients of the first states of a layer: those that were given, the one that was carried on, and the one
    /// that is a parameter.
    fn take_initial(
        &self,
        first: &[States<F>],
        layer: usize,
        from: &mut Gradients<F>,
        to: &mut FirstGradients<F>,
    ) {
        let mut take = |state: &States<F>, to: &mut State<F>| {
            for field in &state.layout().fields {
                if let Some(d) = from.take(state.field(layer, field.name)) {
                    to.field_mut(layer, field.name).copy_from_slice(d.data());
                }
            }
        };
        // The sequences that begin with the parameter share its values.
        let mut begin = first;
        if let Some(to) = &mut to.carried {
            take(&first[0], to);
            begin = &first[1..];
        }
        if let Some(&place) = self.first_state.get(layer)
            && to.initial.is_empty()
            && let Some(begin) = begin.first()
        {
            let mut d = self.zeros();
            take(begin, &mut d);
            let (_, d) = tuning::in_file(self.config(), &d, layer);
            let mut parameters = self.tape().parameters_mut();
            let gradient = parameters.list_mut()[place].gradient_mut();
            gradient.iter_mut().zip(d).for_each(|(to, d)| *to += d);
        }
        for (state, to) in first.iter().zip(&mut to.initial) {
            take(state, to);
        }
    }
}
