//! Gradients of whole models against central differences in f64, and what a batch of several sequences is.

use std::sync::Arc;

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::cpu::Cpu;
use hawfinch_model::ops::{Apply, LoraRows, Ops};
use hawfinch_model::{State, Version, synthetic};
use hawfinch_train::{Gradients, Learner, Lesson, Parameters, Segments, Tape};

const VERSIONS: [Version; 7] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7, Version::Attention];

fn learner(version: Version) -> Learner<f64> {
    let config = synthetic::Shape { version, layers: 2, width: 16, vocab: 24, head_size: 8 }.config();
    let checkpoint = synthetic::checkpoint(&config, DType::F64, 5);
    Learner::new(&checkpoint, Cpu::with(Arc::new(Pool::new(2)), Isa::best()), Precision::Full).unwrap()
}

fn ids(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|n| (n * 7 + n * n * 3 + seed) % 24).collect()
}

/// Two sequences of a batch, from states of their own.
fn objective(learner: &Learner<f64>, initial: &[State<f64>], learn: bool) -> (f64, Vec<State<f64>>) {
    let (tokens, targets) = (ids(23, 1), ids(23, 4));
    let weights: Vec<f32> = (0..23).map(|n| (n % 3) as f32 * 0.25).collect();
    let targets = Targets { ids: &targets, weights: &weights, l2wrap: 0.0 };
    let initial = Some(initial).filter(|_| learner.config().version.has_state());
    let lesson = Lesson { lengths: &[5, 18], tokens: &tokens, targets, initial, d_last: None };
    let learned = if learn { learner.learn(&lesson) } else { learner.evaluate(&lesson) }.unwrap();
    (learned.losses.sum, learned.d_initial)
}

fn states(learner: &Learner<f64>) -> Vec<State<f64>> {
    let mut states = vec![State::new(learner.model().state_layout().clone()); 2];
    for (s, state) in states.iter_mut().enumerate() {
        for layer in 0..2 {
            for field in state.layout().clone().fields.iter() {
                let positive = field.name == "bb";
                for (n, v) in state.field_mut(layer, field.name).iter_mut().enumerate() {
                    let wave = ((n * 5 + s * 3 + layer) as f64 * 0.7).sin();
                    *v = if positive { 1.0 + 0.3 * wave } else { 0.4 * wave };
                }
            }
        }
    }
    states
}

#[test]
fn every_parameter_and_every_state_of_every_version() {
    for version in VERSIONS {
        let learner = learner(version);
        let initial = states(&learner);
        let (_, d_initial) = objective(&learner, &initial, true);
        let h = 1e-5;
        let count = learner.tape().parameters().list().len();
        for p in 0..count {
            let (name, gradient) = {
                let parameters = learner.tape().parameters();
                (parameters.list()[p].name.clone(), parameters.list()[p].gradient().to_vec())
            };
            let largest = gradient.iter().fold(1e-6, |m: f64, g| m.max(g.abs()));
            let step = (gradient.len() / 12).max(1);
            for n in (0..gradient.len()).step_by(step) {
                let moved = |by: f64| {
                    learner.tape().parameters_mut().list_mut()[p].both_mut().0[n] += by;
                    let (value, _) = objective(&learner, &initial, false);
                    learner.tape().parameters_mut().list_mut()[p].both_mut().0[n] -= by;
                    value
                };
                let want = (moved(h) - moved(-h)) / (2.0 * h);
                assert!(
                    (gradient[n] - want).abs() < 2e-6 * largest,
                    "{version} {name}[{n}]: {} for {want}",
                    gradient[n]
                );
            }
        }
        for (s, d) in d_initial.iter().enumerate() {
            for layer in 0..2 {
                for field in d.layout().fields.iter().filter(|f| f.name != "pp") {
                    let gradient = d.field(layer, field.name);
                    let largest = gradient.iter().fold(1e-6, |m: f64, g| m.max(g.abs()));
                    for n in (0..gradient.len()).step_by((gradient.len() / 8).max(1)) {
                        let moved = |by: f64| {
                            let mut initial = initial.clone();
                            initial[s].field_mut(layer, field.name)[n] += by;
                            objective(&learner, &initial, false).0
                        };
                        let want = (moved(h) - moved(-h)) / (2.0 * h);
                        assert!(
                            (gradient[n] - want).abs() < 2e-6 * largest,
                            "{version} state {s} {layer} {}[{n}]: {} for {want}",
                            field.name,
                            gradient[n]
                        );
                    }
                }
            }
        }
    }
}

/// Gradients of sequences in one batch and the sum of those one by one; `lengths` is how the batch is divided.
fn together_and_alone(version: Version, lengths: &[usize], recompute: bool) -> f64 {
    let mut learner = learner(version);
    learner.set_recomputing(recompute);
    let (tokens, targets) = (ids(30, 2), ids(30, 9));
    let weights = [1.0 / 30.0; 30];
    let gradients = |runs: &[(usize, &[usize])]| -> Vec<f64> {
        learner.tape().parameters_mut().clear_gradients();
        for (at, lengths) in runs {
            let of = *at..at + lengths.iter().sum::<usize>();
            let targets = Targets { ids: &targets[of.clone()], weights: &weights[of.clone()], l2wrap: 1e-4 };
            let lesson = Lesson { lengths, tokens: &tokens[of], targets, initial: None, d_last: None };
            learner.learn(&lesson).unwrap();
        }
        learner.tape().parameters().list().iter().flat_map(|p| p.gradient().to_vec()).collect()
    };
    let together = gradients(&[(0, lengths)]);
    let alone = gradients(&[(0, &[7]), (7, &[1]), (8, &[22])]);
    let largest = alone.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
    together.iter().zip(&alone).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max)
}

#[test]
fn documents_in_a_batch_do_not_see_each_other() {
    for version in VERSIONS {
        for recompute in [false, true] {
            let apart = together_and_alone(version, &[7, 1, 22], recompute);
            assert!(apart < 1e-12, "{version}: {apart}");
        }
        // A border at which the state is not reset is seen.
        let across = together_and_alone(version, &[8, 22], false);
        assert!(across > 1e-4, "{version}: {across}");
    }
}

/// Gradients through segments of a text, the last state's handed back, are those of the whole text.
#[test]
fn a_text_in_segments_is_the_text() {
    for version in VERSIONS.into_iter().filter(|v| v.has_state()) {
        for recompute in [false, true] {
            let mut learner = learner(version);
            learner.set_recomputing(recompute);
            let (tokens, targets) = (ids(40, 3), ids(40, 8));
            let weights = [1.0 / 40.0; 40];
            let mut start = states(&learner);
            start.truncate(1);
            let pass = |of: std::ops::Range<usize>, from: &[State<f64>], d_last: Option<&[State<f64>]>| {
                let targets =
                    Targets { ids: &targets[of.clone()], weights: &weights[of.clone()], l2wrap: 0.0 };
                let lengths = [of.len()];
                let lesson =
                    Lesson { lengths: &lengths, tokens: &tokens[of], targets, initial: Some(from), d_last };
                learner.learn(&lesson).unwrap()
            };
            let gradients = || -> Vec<f64> {
                let parameters = learner.tape().parameters();
                parameters.list().iter().flat_map(|p| p.gradient().to_vec()).collect()
            };
            learner.tape().parameters_mut().clear_gradients();
            let whole = pass(0..40, &start, None);
            let want = gradients();
            let middle = pass(0..17, &start, None).last;
            learner.tape().parameters_mut().clear_gradients();
            let second = pass(17..40, &middle, None);
            let first = pass(0..17, &start, Some(&second.d_initial));
            let largest = want.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
            let apart =
                |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart(&gradients(), &want) < 1e-11 * largest, "{version}");
            assert!(apart(first.d_initial[0].data(), whole.d_initial[0].data()) < 1e-11, "{version}");
        }
    }
}

/// The baseline has no state to start from or to end in, and says so.
#[test]
fn a_model_without_a_state_refuses_one() {
    let learner = learner(Version::Attention);
    let state = [State::new(learner.model().state_layout().clone())];
    let targets = Targets { ids: &[1, 2], weights: &[0.5; 2], l2wrap: 0.0 };
    let lesson = Lesson { lengths: &[2], tokens: &[3, 1], targets, initial: None, d_last: None };
    assert!(learner.learn(&lesson).is_ok());
    for lesson in [Lesson { initial: Some(&state), ..lesson }, Lesson { d_last: Some(&state), ..lesson }] {
        let e = learner.learn(&lesson).err().unwrap().to_string();
        assert!(e.contains("keeps no state"), "{e}");
    }
}

/// Losses of earlier tokens do not depend, bit for bit, on later ones: in the model of every version.
#[test]
fn later_tokens_change_no_earlier_loss() {
    for version in VERSIONS {
        let learner = learner(version);
        let losses = |tokens: &[u32]| {
            let targets = Targets { ids: &ids(40, 4), weights: &[1.0; 40], l2wrap: 0.0 };
            let lesson = Lesson { lengths: &[40], tokens, targets, initial: None, d_last: None };
            learner.evaluate(&lesson).unwrap().losses.each
        };
        let tokens = ids(40, 1);
        let mut other = tokens.clone();
        other[33] = (other[33] + 5) % 24;
        let (a, b) = (losses(&tokens), losses(&other));
        assert!(a[..33] == b[..33], "{version}: what comes before");
        assert!(a[33..].iter().zip(&b[33..]).all(|(a, b)| a != b), "{version}: it and what comes after");
    }
}

/// Gradients, losses and last state of sequences at once and in segments. A gradient that is not carried over a border (as
/// when it is asked for) is another one.
#[test]
fn segments_are_the_whole_text() {
    for version in VERSIONS.into_iter().filter(|v| v.has_state()) {
        for recompute in [false, true] {
            let mut learner = learner(version);
            learner.set_recomputing(recompute);
            let (tokens, targets) = (ids(40, 2), ids(40, 9));
            let weights: Vec<f32> = (0..40).map(|n| 0.02 + 0.01 * (n % 4) as f32).collect();
            let of = |how: Segments, learn: bool| {
                learner.tape().parameters_mut().clear_gradients();
                let targets = Targets { ids: &targets, weights: &weights, l2wrap: 1e-4 };
                // A text over four segments, one that ends in the next, short ones.
                let lengths = &[25, 8, 1, 2, 4];
                let lesson = Lesson { lengths, tokens: &tokens, targets, initial: None, d_last: None };
                let learned = if learn {
                    learner.learn_in_segments(&lesson, how)
                } else {
                    learner.evaluate_in_segments(&lesson, how)
                };
                let learned = learned.unwrap();
                let parameters = learner.tape().parameters();
                let gradients: Vec<f64> =
                    parameters.list().iter().flat_map(|p| p.gradient().to_vec()).collect();
                let last: Vec<f64> = learned.last.last().unwrap().data().to_vec();
                (gradients, learned.losses.each, learned.losses.sum, last)
            };
            let cut = |tokens| Segments { tokens, truncated: false };
            let (want, each, sum, last) = of(cut(0), true);
            let largest = want.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
            let off = |got: &[f64]| {
                let by = got.iter().zip(&want).map(|(a, b)| (a - b).abs() / largest);
                by.fold(0.0, f64::max)
            };
            let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-11);
            for tokens in [7, 10, 16] {
                let (got, got_each, got_sum, got_last) = of(cut(tokens), true);
                assert!(off(&got) < 1e-10, "{version}, {tokens} at a time: {}", off(&got));
                assert!(near(&got_each, &each) && near(&got_last, &last) && (got_sum - sum).abs() < 1e-11);
                let (_, seen, ..) = of(cut(tokens), false);
                assert!(near(&seen, &each));
                let (cut_off, truncated_each, ..) = of(Segments { tokens, truncated: true }, true);
                assert!(off(&cut_off) > 1e-6, "{version}: {}", off(&cut_off));
                assert!(near(&truncated_each, &each));
            }
        }
    }
}

/// A LoRA of some rows: forward and back as the operations that it is made of on these rows, and nothing on the others.
#[test]
fn a_lora_of_some_rows_is_its_products_there() {
    let config =
        synthetic::Shape { version: Version::V7, layers: 1, width: 16, vocab: 24, head_size: 8 }.config();
    let checkpoint = synthetic::checkpoint(&config, DType::F64, 5);
    let (a, b) = ("blocks.0.att.key.weight", "blocks.0.att.value.weight");
    let of = |on_rows: bool| {
        let cpu = Cpu::with(Arc::new(Pool::new(1)), Isa::best());
        let parameters = Parameters::new(&cpu, &checkpoint, None, &|_| true).unwrap();
        let tape: Tape<f64> = Tape::new(cpu, parameters, Precision::Full);
        let matrix = |name| tape.matrix(name, checkpoint.get(name).unwrap(), Apply::Linear).unwrap();
        let (at_a, at_b) = (matrix(a), matrix(b));
        let wave = |rows: usize, step: f64| {
            tape.cpu().make(rows, 16, |y| {
                y.iter_mut().enumerate().for_each(|(n, y)| *y = (n as f64 * step).sin());
            })
        };
        tape.begin(true);
        let (x, y) = (tape.leaf(wave(5, 0.7)), tape.leaf(wave(5, 0.3)));
        let mut back = Gradients::default();
        let z = if on_rows {
            let lora = LoraRows { rows: 1..3, a: &at_a, b: &at_b, scale: 1.5 };
            let z = tape.add_loras(y.clone(), &x, &[lora]);
            back.give(&tape, &z, wave(5, 1.1));
            let z = tape.value(&z);
            z.data().to_vec()
        } else {
            let [x, y_some, y] = [tape.rows(&x, &[1, 2]), tape.rows(&y, &[1, 2]), tape.rows(&y, &[0, 3, 4])];
            let z = tape.add_scaled(&y_some, &tape.linear(&tape.linear(&x, &at_a), &at_b), 1.5);
            let d = tape.leaf(wave(5, 1.1));
            back.give(&tape, &z, tape.value(&tape.rows(&d, &[1, 2])));
            back.give(&tape, &y, tape.value(&tape.rows(&d, &[0, 3, 4])));
            let (z, y) = (tape.value(&z), tape.value(&y));
            [&y.data()[..16], z.data(), &y.data()[16..]].concat()
        };
        let mut d = tape.backward(back);
        let [d_x, d_y] = [x, y].map(|v| d.take(&v).unwrap().data().to_vec());
        let parameters = tape.parameters();
        let [d_a, d_b] = [a, b].map(|name| parameters.get(name).unwrap().gradient().to_vec());
        assert!(d_a.iter().chain(&d_b).any(|d| d.abs() > 0.1));
        [z, d_x, d_y, d_a, d_b]
    };
    assert_eq!(of(true), of(false));
}
