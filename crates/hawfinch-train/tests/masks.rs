//! What a mask leaves out has no influence on what is learned; and that a mask which lies one token off is seen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawfinch_data::MaskWriter;
use hawfinch_data::binidx::Writer;
use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{Version, synthetic};
use hawfinch_train::batches::{Batch, Batches};
use hawfinch_train::config::{Operands, Order, RunConfig};
use hawfinch_train::trainer::{Data, Trainer};
use hawfinch_train::{Learner, Lesson};

const VERSIONS: [Version; 7] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7, Version::Attention];

fn weights(version: Version) -> Checkpoint {
    let config = synthetic::Shape { version, layers: 2, width: 32, vocab: 64, head_size: 16 }.config();
    synthetic::checkpoint(&config, DType::F32, 3)
}

fn cpu() -> Cpu<f32> {
    Cpu::with(Arc::new(Pool::new(2)), Isa::best())
}

/// A document: what is asked, what is answered, what comes after that; the answer alone is to be learned.
type Document = [Vec<u16>; 3];

fn documents(count: u16, tail: u16) -> Vec<Document> {
    let ids = |first: u16, len: u16, step: u16| (0..len).map(|n| 1 + (first + n * step) % 60).collect();
    (0..count)
        .map(|n| [ids(n, 4 + n % 3, 7), ids(3 * n, 3 + n % 4, 1), ids(n + tail, 2 + n % 5, 11 + tail)])
        .collect()
}

/// Writes the documents and their mask, which lies `shift` tokens behind where it should.
fn write(name: &Path, documents: &[Document], shift: isize) -> PathBuf {
    let (mut writer, mut mask) = (Writer::create(name).unwrap(), MaskWriter::create(name).unwrap());
    for [asked, answered, after] in documents {
        let ids = [&asked[..], answered, after, &[0]].concat();
        let learned = asked.len() as isize..(asked.len() + answered.len()) as isize;
        let byte = |n: usize| u8::from(learned.contains(&(n as isize - shift)));
        mask.push(&(0..ids.len()).map(byte).collect::<Vec<u8>>()).unwrap();
        writer.push(&ids).unwrap();
    }
    mask.finish().unwrap();
    writer.finish().unwrap();
    name.into()
}

/// The bits of all gradients of a batch, as a step of the trainer weighs its targets.
fn gradients(learner: &Learner<f32>, batch: &Batch) -> Vec<u32> {
    let weight = 1.0 / batch.counted() as f32;
    let weights: Vec<f32> = batch.counts.iter().map(|c| if *c { weight } else { 0.0 }).collect();
    let targets = Targets { ids: &batch.targets, weights: &weights, l2wrap: 1e-4 };
    let lesson =
        Lesson { lengths: &batch.lengths, tokens: &batch.tokens, targets, initial: None, d_last: None };
    learner.tape().parameters_mut().clear_gradients();
    learner.learn(&lesson).unwrap();
    let parameters = learner.tape().parameters();
    let all = parameters.list().iter().flat_map(|p| p.gradient());
    let bits: Vec<u32> = all.map(|g| g.to_bits()).collect();
    assert!(bits.iter().any(|b| *b != 0));
    bits
}

/// Other targets where none counts give the same gradients, to the bit, in every version and order. `shift` moves what
/// counts before the targets are changed, as a mask of the inputs in place of the targets would.
fn targets_that_do_not_count_are_nothing(shift: isize) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let name = write(&dir.path().join("d"), &documents(9, 0), 0);
    let mut same = true;
    for version in VERSIONS {
        let learner = Learner::new(&weights(version), cpu(), Precision::Full).unwrap();
        for order in [Order::Packed, Order::Shuffle] {
            let batches = Batches::open(&name, order, 40, 1).unwrap();
            let batch = batches.batch(0, 2).unwrap();
            let mut changed = batch.clone();
            let right = batch.counts.clone();
            for (n, target) in changed.targets.iter_mut().enumerate() {
                if !right[n] {
                    *target = (*target + 1 + n as u32 % 50) % 64;
                }
            }
            let len = right.len() as isize;
            let moved = |b: Batch| Batch {
                counts: (0..len).map(|n| right[(n - shift).rem_euclid(len) as usize]).collect(),
                ..b
            };
            same &= gradients(&learner, &moved(batch)) == gradients(&learner, &moved(changed));
        }
    }
    same
}

#[test]
fn what_does_not_count_has_no_gradient() {
    assert!(targets_that_do_not_count_are_nothing(0));
    assert!(!targets_that_do_not_count_are_nothing(1), "a mask one token late passes");
    assert!(!targets_that_do_not_count_are_nothing(-1), "a mask one token early passes");
}

/// Three steps of two data sets that differ in what comes after the last learned token of each document: the weights
/// after them, to the bit, if the mask lies `shift` tokens behind where it should.
fn text_after_the_answer_is_nothing(version: Version, precision: Operands, shift: isize) -> bool {
    let steps = |tail: u16| {
        let dir = tempfile::tempdir().unwrap();
        let name = write(&dir.path().join("d"), &documents(12, tail), shift);
        // Long enough that no document goes on in the next sample: there its rest would be read without its beginning.
        let config = RunConfig {
            out: dir.path().join("run"),
            data: Some("given".into()),
            order: Order::Packed,
            ctx: 400,
            batch: 1,
            steps: Some(3),
            lr: 1e-2,
            warmup_steps: 0,
            precision,
            ..RunConfig::default()
        };
        let train = Batches::open(&name, config.order, config.ctx, config.seed).unwrap();
        let data = Data {
            fingerprint: train.fingerprint().unwrap(),
            train,
            validation: Some(Batches::in_order(&name, 400).unwrap()),
            token_bytes: None,
            probe: Vec::new(),
        };
        let mut trainer = Trainer::new(config, &weights(version), cpu(), data).unwrap();
        let losses: Vec<u64> = (0..3).map(|_| trainer.step().unwrap().loss.to_bits()).collect();
        let values = trainer.weights().tensors.values().flat_map(|t| t.to_f32()).map(f32::to_bits).collect();
        (losses, values)
    };
    let (one, other): ((_, Vec<u32>), (_, Vec<u32>)) = (steps(0), steps(5));
    one == other
}

#[test]
fn text_after_the_last_learned_token_changes_nothing() {
    for version in VERSIONS {
        assert!(text_after_the_answer_is_nothing(version, Operands::F32, 0), "{version}");
        assert!(
            !text_after_the_answer_is_nothing(version, Operands::F32, 1),
            "{version}: one token late passes"
        );
    }
    assert!(text_after_the_answer_is_nothing(Version::V7, Operands::Bf16, 0));
}

/// A run on data most of whose windows have nothing to learn: every step has a loss, validation too, and what is
/// reported is the mean over what counts.
#[test]
fn windows_without_anything_to_learn_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("d");
    let asked: Vec<u16> = (0..300).map(|n| 1 + n % 50).collect();
    write(&name, &[[asked.clone(), vec![51, 52, 53], asked.clone()]], 0);
    let config = RunConfig {
        out: dir.path().join("run"),
        data: Some("given".into()),
        ctx: 16,
        batch: 1,
        accumulate: 2,
        steps: Some(4),
        warmup_steps: 0,
        eval_tokens: 16,
        precision: Operands::F32,
        ..RunConfig::default()
    };
    let train = Batches::open(&name, config.order, config.ctx, config.seed).unwrap();
    let pass = train.samples();
    let counted: Vec<usize> = (0..pass).map(|n| train.batch(n, 1).unwrap().counted()).collect();
    assert!(counted.iter().filter(|c| **c > 0).count() <= 2 && pass > 30, "{counted:?}");
    let data = |train: Batches| Data {
        fingerprint: train.fingerprint().unwrap(),
        train,
        validation: Some(Batches::in_order(&name, 16).unwrap()),
        token_bytes: Some(vec![1; 64]),
        probe: Vec::new(),
    };
    let mut trainer = Trainer::new(config.clone(), &weights(Version::V7), cpu(), data(train)).unwrap();
    let first = trainer.evaluate().unwrap().unwrap();
    let (first, bits) = (first.loss, first.bits_per_byte);
    // A random model: each of the 64 tokens is about as likely.
    assert!((first - 64f64.ln()).abs() < 0.3 && bits.unwrap().is_finite(), "{first}");
    for step in 1..=4 {
        let report = trainer.step().unwrap();
        assert!(report.loss > 0.1 && report.grad_norm > 0.0 && !report.skipped, "{report:?}");
        let (sample, least) = (trainer.progress().sample, (step - 1) * pass);
        assert!(sample > least && sample.is_multiple_of(2), "{sample} of {pass}");
    }
    let last = trainer.evaluate().unwrap().unwrap().loss;
    assert!(last.is_finite() && last < first, "{first} {last}");
    assert!(trainer.weights().tensors.values().flat_map(|t| t.to_f32()).all(f32::is_finite));
    // A mask of nothing but a first token, which nothing foretells.
    let mut mask = MaskWriter::create(&name).unwrap();
    let mut bytes = vec![0; 604];
    bytes[0] = 1;
    mask.push(&bytes).unwrap();
    mask.finish().unwrap();
    let train = Batches::open(&name, config.order, config.ctx, config.seed).unwrap();
    let mut trainer = Trainer::new(config, &weights(Version::V7), cpu(), data(train)).unwrap();
    assert!(trainer.evaluate().unwrap().is_none());
    let said = trainer.step().unwrap_err().to_string();
    assert!(said.contains("no token to learn"), "{said}");
}

/// The loss of a step is the mean over what counts, by its definition.
#[test]
fn the_loss_of_a_step_is_of_what_counts() {
    let dir = tempfile::tempdir().unwrap();
    let name = write(&dir.path().join("d"), &documents(9, 0), 0);
    let config = RunConfig {
        out: dir.path().join("run"),
        data: Some("given".into()),
        order: Order::Packed,
        ctx: 30,
        batch: 2,
        precision: Operands::F32,
        steps: Some(1),
        warmup_steps: 0,
        ..RunConfig::default()
    };
    let train = Batches::open(&name, config.order, config.ctx, config.seed).unwrap();
    let batch = train.batch(0, 2).unwrap();
    let learner = Learner::new(&weights(Version::V7), cpu(), Precision::Full).unwrap();
    let zero = vec![0.0; batch.tokens.len()];
    let targets = Targets { ids: &batch.targets, weights: &zero, l2wrap: 0.0 };
    let lesson =
        Lesson { lengths: &batch.lengths, tokens: &batch.tokens, targets, initial: None, d_last: None };
    let each = learner.evaluate(&lesson).unwrap().losses.each;
    let counting: Vec<f64> = each.iter().zip(&batch.counts).filter(|(_, c)| **c).map(|(l, _)| *l).collect();
    let fingerprint = train.fingerprint().unwrap();
    let data = Data { fingerprint, train, validation: None, token_bytes: None, probe: Vec::new() };
    let mut trainer = Trainer::new(config, &weights(Version::V7), cpu(), data).unwrap();
    let loss = trainer.step().unwrap().loss;
    let want = counting.iter().sum::<f64>() / counting.len() as f64;
    assert!((loss - want).abs() < 1e-9, "{loss} {want}");
    let all = each.iter().sum::<f64>() / each.len() as f64;
    assert!((loss - all).abs() > 1e-6, "the mean over all is no other");
}
