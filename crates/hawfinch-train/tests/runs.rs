//! Runs: what is learned, what is kept when they stop, what happens when they go wrong.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Seen, corpus, run};
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{StoredTensor, Version, synthetic};
use hawfinch_train::Channels;
use hawfinch_train::batches::Batches;
use hawfinch_train::checkpoint;
use hawfinch_train::config::{Operands, Order, RunConfig};
use hawfinch_train::schedule::Shape;
use hawfinch_train::trainer::{Data, End, Question, StepReport, Trainer};

fn weights(version: Version) -> Checkpoint {
    let config = synthetic::Shape { version, layers: 2, width: 32, vocab: 64, head_size: 16 }.config();
    synthetic::checkpoint(&config, DType::F32, 3)
}

fn config(out: &Path) -> RunConfig {
    RunConfig {
        out: out.into(),
        data: Some("given".into()),
        ctx: 24,
        batch: 3,
        steps: Some(30),
        lr: 3e-3,
        warmup_steps: 3,
        precision: Operands::F32,
        save_every: 10,
        eval_every: 10,
        ..RunConfig::default()
    }
}

fn data(name: &Path, config: &RunConfig) -> Data {
    let train = Batches::open(name, config.order, config.ctx, config.seed).unwrap();
    Data {
        fingerprint: train.fingerprint().unwrap(),
        train,
        validation: Some(Batches::in_order(name, config.ctx).unwrap()),
        probe: vec![
            Question { ids: vec![3, 4, 5, 6, 7, 8], asked: 2 },
            Question { ids: vec![20, 21, 22, 23, 50], asked: 1 },
        ],
        token_bytes: Some((0..64).map(|id| u32::from(id > 0)).collect()),
    }
}

fn cpu(threads: usize) -> Cpu<f32> {
    Cpu::with(Arc::new(Pool::new(threads)), Isa::best())
}

fn bits(weights: &Checkpoint) -> Vec<u32> {
    weights.tensors.values().flat_map(|t| t.to_f32()).map(f32::to_bits).collect()
}

#[test]
fn every_version_learns() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let versions = [Version::V4, Version::V5_1, Version::V5_2, Version::V6, Version::V7, Version::Attention];
    for version in versions {
        for order in [Order::Shuffle, Order::Packed] {
            let out = dir.path().join(format!("{}-{order:?}", version.number()));
            let config = RunConfig { order, steps: Some(60), ..config(&out) };
            let set = data(&name, &config);
            let mut trainer = Trainer::new(config, &weights(version), cpu(2), set).unwrap();
            let (end, seen) = run(&mut trainer, 0);
            assert_eq!((end, seen.steps.len(), seen.evals.len()), (End::Done, 60, 6));
            let (first, last) = (seen.steps[0].loss, seen.steps[59].loss);
            assert!(first > 3.9 && last < first - 1.2, "{version} {order:?}: {first} {last}");
            assert!(seen.evals[5].loss < seen.evals[0].loss && seen.evals[5].bits_per_byte.unwrap() > 0.0);
        }
    }
}

#[test]
fn a_run_that_stops_and_goes_on_is_the_run_that_did_not() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    for (version, order, operands) in [
        (Version::V7, Order::Shuffle, Operands::Bf16),
        (Version::V7, Order::Packed, Operands::F32),
        (Version::Attention, Order::Packed, Operands::Bf16),
    ] {
        let whole = dir.path().join(format!("whole-{version:?}-{order:?}"));
        let parts = dir.path().join(format!("parts-{version:?}-{order:?}"));
        let with = |out: &Path| RunConfig { order, precision: operands, accumulate: 2, ..config(out) };
        let mut trainer =
            Trainer::new(with(&whole), &weights(version), cpu(2), data(&name, &with(&whole))).unwrap();
        let (_, all) = run(&mut trainer, 0);
        let want = bits(&trainer.weights());
        // Stopped after 13 steps, then again after 10 more; on other numbers of threads.
        let first = with(&parts);
        let mut trainer =
            Trainer::new(first.clone(), &weights(version), cpu(1), data(&name, &first)).unwrap();
        let (end, _) = run(&mut trainer, 13);
        assert_eq!((end, trainer.progress().step), (End::Stopped, 13));
        let mut rest = Vec::new();
        for stop_after in [23, 0] {
            let found = checkpoint::list(&parts).unwrap().pop().unwrap();
            let loaded = checkpoint::load(&found).unwrap();
            let mut trainer =
                Trainer::resume(first.clone(), None, &loaded, cpu(3), data(&name, &first)).unwrap();
            let (_, seen) = run(&mut trainer, stop_after);
            rest.extend(seen.steps.iter().map(|s| (s.step, s.loss.to_bits(), s.lr.to_bits())));
            if stop_after == 0 {
                assert_eq!(trainer.progress().step, 30);
                assert!(bits(&trainer.weights()) == want, "{version} {order:?}: the same bits");
            }
        }
        let tail: Vec<_> =
            all.steps[13..].iter().map(|s| (s.step, s.loss.to_bits(), s.lr.to_bits())).collect();
        assert_eq!(rest, tail);
    }
}

/// The same samples as one batch, as micro-batches, and with blocks computed again.
#[test]
fn accumulation_is_the_large_batch() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let step = |batch: usize, accumulate: usize, recompute: bool, order: Order| {
        // A pass has six such samples, of which the last is short if documents are packed.
        let ctx = 220;
        let config = RunConfig { batch, accumulate, recompute, order, ctx, ..config(&dir.path().join("x")) };
        let set = data(&name, &config);
        let short = (0..6).filter(|n| set.train.batch(*n, 1).unwrap().counted() < ctx).count();
        assert_eq!(short, usize::from(order == Order::Packed));
        let mut trainer = Trainer::new(config, &weights(Version::V6), cpu(2), set).unwrap();
        let steps: Vec<StepReport> = (0..3).map(|_| trainer.step().unwrap()).collect();
        let values: Vec<f32> = trainer.weights().tensors.values().flat_map(|t| t.to_f32()).collect();
        (steps.iter().map(|s| s.loss).collect::<Vec<_>>(), steps[0].grad_norm, values)
    };
    // Packed samples have different numbers of tokens: each token counts the same all the same.
    for order in [Order::Shuffle, Order::Packed] {
        let (losses, norm, values) = step(6, 1, false, order);
        for (batch, accumulate, recompute) in [(3, 2, false), (1, 6, false), (6, 1, true)] {
            let (other, other_norm, moved) = step(batch, accumulate, recompute, order);
            // It shows what each token counts; of the first step, before roundings part the weights.
            assert!(
                (norm / other_norm - 1.0).abs() < 1e-5,
                "{order:?} {batch}x{accumulate}: {norm} {other_norm}"
            );
            for (a, b) in losses.iter().zip(&other) {
                assert!((a - b).abs() < 1e-5 * a, "{order:?} {batch}x{accumulate}: {losses:?} {other:?}");
            }
            let far = values.iter().zip(&moved).filter(|(a, b)| (*a - *b).abs() > 1e-4).count();
            // AdamW's step is the gradient's sign where the gradient is rounding alone.
            assert!(
                far * 200 < values.len(),
                "{order:?} {batch}x{accumulate}: {far} of {} differ",
                values.len()
            );
        }
        // What an accumulation off by one would be.
        let (fewer, ..) = step(3, 1, false, order);
        assert!((fewer[2] - losses[2]).abs() > 1e-3);
    }
}

/// Texts that go on as the data does are guessed after training, one that does not is not.
#[test]
fn a_probe_asks_for_last_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let config = RunConfig { steps: Some(150), eval_every: 50, ..config(&dir.path().join("run")) };
    let set = data(&name, &config);
    let mut trainer = Trainer::new(config, &weights(Version::V7), cpu(2), set).unwrap();
    assert_eq!(trainer.probe().unwrap(), Some(0.0));
    let (_, seen) = run(&mut trainer, 0);
    assert_eq!(seen.evals[2].probe, Some(0.5), "{:?}", seen.evals);
}

/// Channels whose key points away from all that comes are dead, the others are not; a baseline without relu² has neither.
#[test]
fn dead_channels_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let versions = [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];
    for version in versions.into_iter().chain([Version::Attention]) {
        let mut model = weights(version);
        let mut channels = 0;
        for (layer, dead) in [(0, 5), (1, 12)] {
            // All that comes is positive, and so is the row before it.
            let bias = format!("blocks.{layer}.ln2.bias");
            model.tensors[&bias] = StoredTensor::from_f32(&[32], &[20.0; 32]);
            for name in ["time_mix_k", "time_maa_k", "x_k"] {
                if let Some(mix) = model.tensors.get_mut(&format!("blocks.{layer}.ffn.{name}")) {
                    *mix = StoredTensor::from_f32(&mix.shape, &[0.5; 32]);
                }
            }
            let key = &mut model.tensors[&format!("blocks.{layer}.ffn.key.weight")];
            let rows = key.shape[0];
            let values = (0..rows * 32).map(|i| if i / 32 < dead { -1.0 } else { 1.0 }).collect::<Vec<_>>();
            *key = StoredTensor::from_f32(&[rows, 32], &values);
            channels += rows;
        }
        let config = RunConfig { lr: 0.0, lr_final: Some(0.0), ..config(&dir.path().join(version.number())) };
        let set = data(&name, &config);
        let mut trainer = Trainer::new(config, &model, cpu(2), set).unwrap();
        let want = (version != Version::Attention).then(|| 17.0 / channels as f64);
        assert_eq!(trainer.evaluate().unwrap().unwrap().dead_channels, want, "{version}");
        // Batches of training and the probe's are not looked at.
        trainer.step().unwrap();
        trainer.probe().unwrap();
        assert_eq!(trainer.evaluate().unwrap().unwrap().dead_channels, want, "{version}");
        assert_eq!(trainer.learner().tape().channels(), Channels::default());
    }
}

#[test]
fn a_run_that_diverges_goes_back_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let config = RunConfig {
        lr: 1e30,
        schedule: Shape::Constant,
        clip: 0.0,
        warmup_steps: 0,
        rewind_rate: 1e-17,
        ..config(&dir.path().join("run"))
    };
    let set = data(&name, &config);
    let mut trainer = Trainer::new(config.clone(), &weights(Version::V7), cpu(2), set).unwrap();
    let (end, seen) = run(&mut trainer, 0);
    assert_eq!((end, &seen.rewound[..]), (End::Done, &[0u64, 0][..1.max(seen.rewound.len())]));
    assert!(seen.notes[0].contains("diverged") && !seen.rewound.is_empty(), "{:?}", seen.notes);
    assert!(seen.notes[0].ends_with("at 1e-17 of its learning rate"), "{:?}", seen.notes);
    assert!(trainer.weights().tensors.values().all(|t| t.first_non_finite().is_none()));
    // One that cannot be saved gives up with a sentence.
    let config = RunConfig { rewind_rate: 1.0, out: dir.path().join("again"), ..config };
    let set = data(&name, &config);
    let mut trainer = Trainer::new(config, &weights(Version::V7), cpu(2), set).unwrap();
    let e = trainer.run(&mut Seen::default(), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(e.contains("lower learning rate"), "{e}");
}

#[test]
fn it_ends_when_validation_gets_no_better_and_keeps_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let config = RunConfig {
        lr: 0.0,
        lr_final: Some(0.0),
        schedule: Shape::Constant,
        weight_decay: 0.0,
        patience: 2,
        eval_every: 4,
        keep: 1,
        ..config(&dir.path().join("run"))
    };
    let set = data(&name, &config);
    let mut trainer = Trainer::new(config.clone(), &weights(Version::V7), cpu(1), set).unwrap();
    let (end, seen) = run(&mut trainer, 0);
    assert_eq!((end, seen.evals.len(), trainer.progress().best.unwrap().1), (End::NoBetter, 3, 4));
    let steps: Vec<u64> = checkpoint::list(&config.out).unwrap().iter().map(|f| f.step).collect();
    assert_eq!(steps, [4, 12]);
}

#[test]
fn other_data_and_other_shapes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let config = config(&dir.path().join("run"));
    let mut trainer =
        Trainer::new(config.clone(), &weights(Version::V7), cpu(1), data(&name, &config)).unwrap();
    run(&mut trainer, 3);
    let loaded = checkpoint::load(&checkpoint::list(&config.out).unwrap().pop().unwrap()).unwrap();
    let mut other = data(&name, &config);
    other.fingerprint += "x";
    let e = Trainer::resume(config.clone(), None, &loaded, cpu(1), other).err().unwrap().to_string();
    assert!(e.contains("other data"), "{e}");
    // Tokens that the model does not know.
    let few =
        synthetic::Shape { version: Version::V7, layers: 1, width: 32, vocab: 16, head_size: 16 }.config();
    let few = synthetic::checkpoint(&few, DType::F32, 1);
    let mut trainer = Trainer::new(config.clone(), &few, cpu(1), data(&name, &config)).unwrap();
    let e = trainer.step().err().unwrap().to_string();
    assert!(e.contains("vocabulary"), "{e}");
}
