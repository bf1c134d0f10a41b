//! What trains beside a model: adapters and first states.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{data, run};
use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{DType, Isa, Pool, Real};
use hawfinch_model::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{Lora, Model, OpenOptions, Rows, Sequence, Version, metadata, synthetic};
use hawfinch_train::checkpoint;
use hawfinch_train::config::{Operands, Order, RunConfig};
use hawfinch_train::trainer::Trainer;
use hawfinch_train::tuning::{LoraInit, LoraSettings, Method, Tuning};
use hawfinch_train::{Learner, Lesson};

const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

fn weights(version: Version, dtype: DType) -> Checkpoint {
    let config = synthetic::Shape { version, layers: 2, width: 32, vocab: 64, head_size: 16 }.config();
    synthetic::checkpoint(&config, dtype, 3)
}

/// The same with matrices in another number type.
fn quantized(version: Version, dtype: DType) -> Checkpoint {
    let mut base = weights(version, DType::F32);
    for (name, tensor) in &mut base.tensors {
        if tensor.squeezed().len() == 2 && name.ends_with(".weight") && tensor.shape[1] % 32 == 0 {
            *tensor = tensor.converted(dtype).unwrap();
        }
    }
    base
}

/// An adapter whose two halves are not zero.
fn adapter(base: &Checkpoint) -> Lora {
    let settings = LoraSettings {
        rank: 3,
        alpha: 5.0,
        init: LoraInit::Zero,
        modules: Vec::new(),
        parts: vec!["ln".into(), "time".into()],
        seed: 9,
    };
    let mut lora = Tuning::lora(base, &settings, &cpu(1)).unwrap().adapter.unwrap();
    for (_, b) in lora.modules.values_mut() {
        let values: Vec<f32> = (0..b.len()).map(|n| 0.1 * (n as f32 * 1.3).sin()).collect();
        *b = StoredTensor::from_f32(&b.shape, &values);
    }
    lora
}

/// A first state that is not zero.
fn first_state(base: &Checkpoint) -> Checkpoint {
    let mut file = Checkpoint::new("a tuned state", FileFormat::Memory);
    let v4 = hawfinch_model::Config::infer(base).unwrap().version == Version::V4;
    for layer in 0..2 {
        let shape: &[usize] = if v4 { &[2, 32] } else { &[2, 16, 16] };
        let of = |n: usize| 0.3 * ((n * 7 + layer) as f32).sin() + if v4 { 0.5 } else { 0.0 };
        let values: Vec<f32> = (0..shape.iter().product()).map(of).collect();
        let tensor = StoredTensor::from_f32(shape, &values);
        file.insert(format!("blocks.{layer}.att.time_state"), tensor).unwrap();
    }
    file
}

fn tunings(base: &Checkpoint) -> [Tuning; 2] {
    [
        Tuning { method: Method::Lora, adapter: Some(adapter(base)), ..Tuning::default() },
        Tuning { method: Method::State, state: Some(first_state(base)), ..Tuning::default() },
    ]
}

fn learner<F: Real>(base: &Checkpoint, tuning: &Tuning) -> Learner<F> {
    let cpu = Cpu::with(Arc::new(Pool::new(2)), Isa::best());
    Learner::tuned(base, tuning, cpu, Precision::Full).unwrap()
}

fn ids(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|n| (n * 7 + n * n * 3 + seed) % 64).collect()
}

/// The loss of two sequences.
fn objective<F: Real>(learner: &Learner<F>, learn: bool) -> f64 {
    let (tokens, targets) = (ids(23, 1), ids(23, 4));
    let weights: Vec<f32> = (0..23).map(|n| (n % 3) as f32 * 0.25).collect();
    let targets = Targets { ids: &targets, weights: &weights, l2wrap: 0.0 };
    let lesson = Lesson { lengths: &[5, 18], tokens: &tokens, targets, initial: None, d_last: None };
    let learned = if learn { learner.learn(&lesson) } else { learner.evaluate(&lesson) };
    learned.unwrap().losses.sum
}

fn gradients<F: Real>(learner: &Learner<F>) -> BTreeMap<String, Vec<f64>> {
    learner.tape().parameters_mut().clear_gradients();
    objective(learner, true);
    let parameters = learner.tape().parameters();
    let trained = parameters.list().iter().filter(|p| p.is_trained());
    trained.map(|p| (p.name.clone(), p.gradient().iter().map(|g| g.to_f64()).collect())).collect()
}

/// Largest difference, as a part of the largest gradient of the same parameter.
fn difference(a: &BTreeMap<String, Vec<f64>>, b: &BTreeMap<String, Vec<f64>>) -> f64 {
    assert!(a.keys().eq(b.keys()) && !a.is_empty());
    let of = |(x, y): (&Vec<f64>, &Vec<f64>)| {
        let largest = x.iter().fold(1e-9, |m: f64, g| m.max(g.abs()));
        x.iter().zip(y).map(|(x, y)| (x - y).abs() / largest).fold(0.0, f64::max)
    };
    a.values().zip(b.values()).map(of).fold(0.0, f64::max)
}

#[test]
fn central_differences_of_adapters_and_first_states() {
    for version in VERSIONS {
        // f64 weights are kept as numbers, f32 weights as their file has them.
        for dtype in [DType::F64, DType::F32] {
            let base = weights(version, dtype);
            for tuning in tunings(&base) {
                let learner = learner::<f64>(&base, &tuning);
                let all = gradients(&learner);
                for (name, gradient) in &all {
                    let p = learner.tape().parameters().find(name).unwrap();
                    let largest = gradient.iter().fold(1e-6, |m: f64, g| m.max(g.abs()));
                    for n in (0..gradient.len()).step_by((gradient.len() / 6).max(1)) {
                        let moved = |by: f64| {
                            learner.tape().parameters_mut().list_mut()[p].both_mut().0[n] += by;
                            let value = objective(&learner, false);
                            learner.tape().parameters_mut().list_mut()[p].both_mut().0[n] -= by;
                            value
                        };
                        let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                        let got = gradient[n];
                        assert!(
                            (got - want).abs() < 3e-6 * largest,
                            "{version} {name}[{n}]: {got} for {want}"
                        );
                    }
                }
            }
        }
    }
}

/// The base as its file has it, and all of it in training: the adapter's gradients are the same. A quantised base, and the
/// floats that it stands for: the same again. With blocks computed again, too.
#[test]
fn a_frozen_base_gives_the_gradients_of_one_in_training() {
    for version in VERSIONS {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::Q8_0, DType::Q4_0] {
            let base = quantized(version, dtype);
            let mut floats = base.clone();
            for (name, tensor) in base.tensors.iter().filter(|(_, t)| t.dtype == dtype) {
                floats.tensors[name] = tensor.converted(DType::F32).unwrap();
            }
            for tuning in tunings(&weights(version, DType::F32)) {
                let frozen = learner::<f32>(&base, &tuning);
                assert!(frozen.tape().parameters().get("head.weight").unwrap().stored().is_some());
                let mut got = gradients(&frozen);
                let Some(lora) = &tuning.adapter else {
                    assert_eq!(difference(&got, &gradients(&learner::<f32>(&floats, &tuning))), 0.0);
                    continue;
                };
                let cpu = Cpu::with(Arc::new(Pool::new(2)), Isa::best());
                let whole =
                    Learner::<f32>::adapted(&floats, Some(lora.clone()), cpu, Precision::Full).unwrap();
                let mut want = gradients(&whole);
                want.retain(|name, _| tuning.trains(name));
                assert!(difference(&got, &want) < 1e-6, "{version} {dtype}");
                let mut again = learner::<f32>(&base, &tuning);
                again.set_recomputing(true);
                assert_eq!(difference(&got, &gradients(&again)), 0.0, "{version} {dtype}, computed again");
                // And it is no comparison of nothing.
                got.values_mut().next().unwrap()[0] += 1.0;
                assert!(difference(&got, &want) > 1e-3);
            }
        }
    }
}

fn corpus(dir: &Path) -> std::path::PathBuf {
    let name = dir.join("corpus");
    let mut writer = hawfinch_data::binidx::Writer::create(&name).unwrap();
    for document in 0..40u16 {
        let ids: Vec<u16> = (0..20 + document % 7).map(|t| 1 + (document + t * 3) % 60).chain([0]).collect();
        writer.push(&ids).unwrap();
    }
    writer.finish().unwrap();
    name
}

fn settings(out: &Path, method: Method) -> RunConfig {
    RunConfig {
        out: out.into(),
        from: Some("given".into()),
        data: Some("given".into()),
        method,
        lora_rank: 4,
        lora_alpha: Some(8.0),
        order: Order::Packed,
        ctx: 24,
        batch: 3,
        steps: Some(40),
        lr: if method == Method::State { 0.05 } else { 4e-3 },
        warmup_steps: 3,
        precision: Operands::F32,
        save_every: 100,
        eval_every: 100,
        ..RunConfig::default()
    }
}

fn cpu(threads: usize) -> Cpu<f32> {
    Cpu::with(Arc::new(Pool::new(threads)), Isa::best())
}

/// Logits of a model after some tokens.
fn logits(model: &Model) -> Vec<f32> {
    let mut state = model.new_state();
    let call =
        Sequence { tokens: &[5, 8, 11, 14], state: &mut state, logits: Rows::Last, hidden: Rows::None };
    model.forward(&mut [call]).unwrap().remove(0).logits
}

#[test]
fn runs_learn_keep_only_what_they_train_and_go_on_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    for version in [Version::V4, Version::V6, Version::V7] {
        for method in [Method::Lora, Method::State] {
            let base = weights(version, DType::BF16);
            let place = |what: &str| dir.path().join(format!("{what}-{version:?}-{method:?}"));
            let whole = settings(&place("whole"), method);
            let mut trainer = Trainer::new(whole.clone(), &base, cpu(2), data(&name, &whole)).unwrap();
            let (_, seen) = run(&mut trainer, 0);
            // The validation before the first step is the base's, and after the last it is better.
            let [before, after] = seen.evals[..].iter().map(|e| e.loss).collect::<Vec<_>>()[..] else {
                panic!("{:?}", seen.evals)
            };
            // v4's state is two numbers a channel, not a matrix a head.
            let least = if (version, method) == (Version::V4, Method::State) { 0.02 } else { 0.1 };
            assert!(after < before - least, "{version} {method:?}: {before} to {after}");
            let want = trainer.weights();
            let bits = |c: &Checkpoint| -> Vec<u32> {
                c.tensors.values().flat_map(|t| t.to_f32()).map(f32::to_bits).collect()
            };

            let parts = settings(&place("parts"), method);
            let mut trainer = Trainer::new(parts.clone(), &base, cpu(1), data(&name, &parts)).unwrap();
            run(&mut trainer, 17);
            let found = checkpoint::list(&parts.out).unwrap().pop().unwrap();
            let loaded = checkpoint::load(&found).unwrap();
            let set = data(&name, &parts);
            let mut trainer = Trainer::resume(parts.clone(), Some(&base), &loaded, cpu(3), set).unwrap();
            let (_, rest) = run(&mut trainer, 0);
            assert_eq!(rest.steps.len(), 23);
            assert!(bits(&trainer.weights()) == bits(&want), "{version} {method:?}: the same bits");

            // The file: only what is trained, and what it belongs to.
            let file = checkpoint::list(&parts.out).unwrap().pop().unwrap().model();
            let saved = hawfinch_model::format::open(&file).unwrap();
            let own = |n: &String| {
                if method == Method::Lora { n.contains(".lora_") } else { n.ends_with("time_state") }
            };
            assert!(saved.tensors.keys().all(own), "{:?}", saved.tensors.keys());
            assert_eq!(saved.metadata[metadata::KIND], method.name());
            // Beside the base it gives what the trainer has; beside another it is refused.
            let open = |base: &Checkpoint| -> hawfinch_model::Result<Vec<f32>> {
                if method == Method::Lora {
                    let loras = vec![Lora::open(&file, None)?];
                    let options = OpenOptions { loras, ..OpenOptions::default() };
                    Ok(logits(&Model::from_checkpoint(base.clone(), options, cpu(1))?))
                } else {
                    let model = Model::from_checkpoint(base.clone(), OpenOptions::default(), cpu(1))?;
                    let mut state = model.load_state(&file)?;
                    let tokens = &[5, 8, 11, 14];
                    let call = Sequence { tokens, state: &mut state, logits: Rows::Last, hidden: Rows::None };
                    Ok(model.forward(&mut [call])?.remove(0).logits)
                }
            };
            let plain =
                logits(&Model::from_checkpoint(base.clone(), OpenOptions::default(), cpu(1)).unwrap());
            let tuned = open(&base).unwrap();
            assert!(plain.iter().zip(&tuned).any(|(a, b)| (a - b).abs() > 1e-2));
            let mut other = base.clone();
            let one = other.tensors["head.weight"].to_f32().iter().map(|v| v * 1.5).collect::<Vec<_>>();
            other.tensors["head.weight"] = StoredTensor::from_f32(&base.tensors["head.weight"].shape, &one);
            let e = open(&other).unwrap_err().to_string();
            assert!(e.contains("another model"), "{e}");
        }
    }
}

/// Those that begin as something else: at first they are the base, then half of them learns, and the rest stays.
#[test]
fn pissa_and_disha_begin_as_the_base_and_keep_their_other_half() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    for (version, dtype) in
        [(Version::V7, DType::F32), (Version::V6, DType::Q8_0), (Version::V4, DType::BF16)]
    {
        for init in [LoraInit::Pissa, LoraInit::Disha] {
            let base = quantized(version, dtype);
            let what = format!("{version} {init:?}");
            let place = |run: &str| RunConfig {
                lora_init: init,
                lora_alpha: None,
                ..settings(&dir.path().join(format!("{run}-{version:?}-{init:?}")), Method::Lora)
            };
            let config = place("whole");
            let mut trainer = Trainer::new(config.clone(), &base, cpu(2), data(&name, &config)).unwrap();
            let plain =
                logits(&Model::from_checkpoint(base.clone(), OpenOptions::default(), cpu(1)).unwrap());
            let beside = |c: Checkpoint| {
                let loras = vec![Lora::from_checkpoint(c, None).unwrap()];
                let options = OpenOptions { loras, ..OpenOptions::default() };
                logits(&Model::from_checkpoint(base.clone(), options, cpu(1)).unwrap())
            };
            let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            let first = trainer.weights();
            assert_eq!(first.metadata[metadata::LORA_INIT], init.name());
            let near = apart(&plain, &beside(first.clone()));
            assert!(near < 1e-4, "{what}: {near}");
            let (_, seen) = run(&mut trainer, 0);
            let [before, after] = seen.evals[..].iter().map(|e| e.loss).collect::<Vec<_>>()[..] else {
                panic!("{:?}", seen.evals)
            };
            assert!(after < before - 0.1, "{what}: {before} to {after}");
            let last = trainer.weights();
            for ((name, a), (_, b)) in first.tensors.iter().zip(&last.tensors) {
                let (a, b, columns) = (a.to_f32(), b.to_f32(), a.shape[1]);
                let kept = |n: usize| match init {
                    LoraInit::Disha => name.ends_with("lora_A"),
                    _ if name.ends_with("lora_A") => n >= a.len() / 2,
                    _ => n % columns >= columns / 2,
                };
                let same = |n: usize| a[n].to_bits() == b[n].to_bits();
                assert!((0..a.len()).filter(|n| kept(*n)).all(same), "{what}: {name} stays");
                let learns = (0..a.len()).filter(|n| !kept(*n)).any(|n| !same(n));
                assert_eq!(learns, init == LoraInit::Pissa || name.ends_with("lora_B"), "{what}: {name}");
            }
            // What is beside the base in the trainer is what others read from the file.
            assert!(apart(&plain, &beside(last.clone())) > 1e-2, "{what}");
            // Stopped in between it comes to the same.
            let parts = place("parts");
            let mut trainer = Trainer::new(parts.clone(), &base, cpu(1), data(&name, &parts)).unwrap();
            run(&mut trainer, 9);
            let found = checkpoint::list(&parts.out).unwrap().pop().unwrap();
            let loaded = checkpoint::load(&found).unwrap();
            let set = data(&name, &parts);
            let mut trainer = Trainer::resume(parts.clone(), Some(&base), &loaded, cpu(3), set).unwrap();
            run(&mut trainer, 0);
            let bits =
                |c: &Checkpoint| -> Vec<Vec<u8>> { c.tensors.values().map(|t| t.data.to_vec()).collect() };
            assert!(bits(&trainer.weights()) == bits(&last), "{what}: the same bits");
        }
    }
}

#[test]
fn what_cannot_be_is_said() {
    let base = weights(Version::V7, DType::F32);
    let lora = |change: &dyn Fn(&mut LoraSettings)| {
        let mut settings = LoraSettings {
            rank: 4,
            alpha: 4.0,
            init: LoraInit::Zero,
            modules: vec![],
            parts: vec![],
            seed: 1,
        };
        change(&mut settings);
        Tuning::lora(&base, &settings, &cpu(1))
            .map(|t| t.adapter.unwrap().modules.len())
            .map_err(|e| e.to_string())
    };
    // Four matrices of the time mix, two of the channel mix, of two layers.
    assert_eq!(lora(&|_| {}), Ok(12));
    assert_eq!(lora(&|s| s.modules = vec!["att.key".into(), "blocks.1.ffn.value".into()]), Ok(3));
    for (change, words) in [
        (&(|s: &mut LoraSettings| s.rank = 0) as &dyn Fn(&mut LoraSettings), "`lora-rank` is 0"),
        (&|s| s.alpha = f64::NAN, "`lora-alpha` is NaN"),
        (&|s| s.modules = vec!["head".into()], "train it whole, with `head` in `train-parts`"),
        (&|s| s.modules = vec!["att.gate".into()], "no linear layer of RWKV-7: it has att.key"),
        (&|s| s.parts = vec!["mlp".into()], "there are ln, time, emb, head"),
    ] {
        let e = lora(change).unwrap_err();
        assert!(e.contains(words), "{e}");
    }
    let alone = RunConfig { from: None, ..settings(Path::new("x"), Method::State) };
    assert!(alone.check().unwrap_err().to_string().contains("say beside which with `from`"));
    let twice = RunConfig { lora_init: LoraInit::Pissa, ..settings(Path::new("x"), Method::Lora) };
    assert!(twice.check().unwrap_err().to_string().contains("no meaning with `lora-init` pissa"));
}
