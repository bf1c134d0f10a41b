//! Runs on several ranks, as threads of one process: what one process would have learned.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Seen, corpus, data, try_run};
use hawfinch_data::MaskWriter;
use hawfinch_data::binidx::Writer;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::checkpoint::Checkpoint;
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{Version, synthetic};
use hawfinch_train::checkpoint;
use hawfinch_train::collective::{Alone, Collective, Threads, Wire};
use hawfinch_train::config::{Operands, Order, RunConfig};
use hawfinch_train::plan::Job;
use hawfinch_train::trainer::{Data, End, Observer, StepReport, Trainer};
use hawfinch_train::tuning::Method;
use hawfinch_train::{Error, Result};

fn weights(version: Version) -> Checkpoint {
    // Matrices of more than one piece of 16 384 numbers, so that one tensor has several owners.
    let config = synthetic::Shape { version, layers: 3, width: 96, vocab: 200, head_size: 32 }.config();
    synthetic::checkpoint(&config, DType::F32, 3)
}

fn config(out: &Path) -> RunConfig {
    RunConfig {
        out: out.into(),
        data: Some("given".into()),
        from: Some("given".into()),
        ctx: 12,
        batch: 2,
        accumulate: 4,
        steps: Some(6),
        lr: 3e-3,
        warmup_steps: 3,
        precision: Operands::F32,
        lora_rank: 4,
        save_every: 100,
        eval_every: 3,
        eval_tokens: 100,
        // Some kilobytes: many buckets a step.
        bucket: 0.05,
        ..RunConfig::default()
    }
}

fn cpu() -> Cpu<f32> {
    Cpu::with(Arc::new(Pool::new(1)), Isa::best())
}

/// Where a run ends.
struct Outcome {
    end: End,
    weights: Vec<u32>,
    seen: Seen,
}

impl Outcome {
    fn losses(&self) -> Vec<u64> {
        self.seen.steps.iter().map(|s| s.loss.to_bits()).collect()
    }
    fn norms(&self) -> Vec<u64> {
        self.seen.steps.iter().map(|s| s.grad_norm.to_bits()).collect()
    }
}

fn bits(weights: &Checkpoint) -> Vec<u32> {
    weights.tensors.values().flat_map(|t| t.to_f32()).map(f32::to_bits).collect()
}

/// A run, new or going on from what lies in its folder, as one rank; `stop` asks it to stop after that step.
fn rank(
    c: Arc<dyn Collective>,
    name: &Path,
    config: &RunConfig,
    base: &Checkpoint,
    stop_after: u64,
) -> Result<Outcome> {
    let data = data(name, config);
    let mut trainer = match checkpoint::list(&config.out)?.pop() {
        None => Trainer::new_among(c, config.clone(), base, cpu(), data)?,
        Some(found) => {
            let loaded = checkpoint::load(&found)?;
            Trainer::resume_among(c, config.clone(), Some(base), &loaded, cpu(), data)?
        }
    };
    let (end, seen) = try_run(&mut trainer, stop_after)?;
    Ok(Outcome { end, weights: bits(&trainer.weights()), seen })
}

/// Every rank of a group does the same.
fn on_all<T: Send>(ranks: usize, work: impl Fn(Threads) -> T + Sync) -> Vec<T> {
    std::thread::scope(|s| {
        let work = &work;
        let group = Threads::group(ranks);
        let threads: Vec<_> = group.into_iter().map(|c| s.spawn(move || work(c))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn on(ranks: usize, name: &Path, config: &RunConfig, base: &Checkpoint, stop_after: u64) -> Vec<Outcome> {
    match ranks {
        1 => vec![rank(Arc::new(Alone), name, config, base, stop_after).unwrap()],
        // Only the last rank is asked to stop.
        _ => on_all(ranks, |c| {
            let stop_after = if c.rank() + 1 == ranks { stop_after } else { 0 };
            rank(Arc::new(c), name, config, base, stop_after).unwrap()
        }),
    }
}

/// Largest difference of weights that is not within `near`, as a part of all.
fn far(a: &[u32], b: &[u32], near: f32) -> f64 {
    assert_eq!(a.len(), b.len());
    let far = a.iter().zip(b).filter(|(a, b)| (f32::from_bits(**a) - f32::from_bits(**b)).abs() > near);
    far.count() as f64 / a.len() as f64
}

#[test]
fn two_ranks_are_two_micro_batches_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let cases = [
        (Version::V7, Method::Full, Order::Shuffle, false, 0),
        (Version::V7, Method::Full, Order::Packed, true, 0),
        (Version::V6, Method::Lora, Order::Shuffle, false, 0),
        (Version::V7, Method::Lora, Order::Packed, true, 7),
        (Version::V5_2, Method::State, Order::Shuffle, false, 0),
        (Version::V7, Method::State, Order::Shuffle, true, 5),
        (Version::Attention, Method::Full, Order::Packed, false, 0),
        (Version::V4, Method::Full, Order::Shuffle, false, 7),
    ];
    for (n, (version, method, order, recompute, segment)) in cases.into_iter().enumerate() {
        let base = weights(version);
        let with = |out: &str| RunConfig {
            method,
            order,
            recompute,
            segment,
            accumulate: 2,
            steps: Some(4),
            ..config(&dir.path().join(format!("{out}-{n}")))
        };
        let alone = on(1, &name, &with("alone"), &base, 0).pop().unwrap();
        for zero in [0, 1] {
            let two = on(2, &name, &RunConfig { zero, ..with(&format!("two-{zero}")) }, &base, 0);
            for (rank, outcome) in two.iter().enumerate() {
                let what = format!("{version} {method:?} {order:?} zero {zero} rank {rank}");
                assert!(outcome.weights == alone.weights, "{what}");
                assert_eq!(outcome.losses(), alone.losses(), "{what}");
                assert_eq!(outcome.norms(), alone.norms(), "{what}");
                assert_eq!(outcome.seen.evals, alone.seen.evals, "{what}");
                // Only one writes.
                assert_eq!(!outcome.seen.saved.is_empty(), rank == 0, "{what}");
            }
            let said = two[0].seen.steps[0].communication.unwrap();
            assert!(said.bytes > 0 && said.seconds > 0.0 && said.waited > 0.0);
            assert!(two[0].seen.notes.last().unwrap().contains("2 ranks"), "{:?}", two[0].seen.notes);
        }
        assert!(alone.seen.steps[0].communication.is_none());
    }
}

#[test]
fn more_ranks_and_divided_batches_are_the_same_within_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    let with = |out: &str, batch, accumulate| RunConfig {
        batch,
        accumulate,
        order: Order::Packed,
        ..config(&dir.path().join(out))
    };
    let alone = on(1, &name, &with("alone", 8, 1), &base, 0).pop().unwrap();
    for (ranks, batch, accumulate, wire, near) in [
        (2, 8, 1, Wire::F32, 1e-4),
        (4, 8, 1, Wire::F32, 1e-4),
        (4, 2, 4, Wire::F32, 1e-4),
        (2, 2, 4, Wire::F32, 1e-4),
        (3, 1, 9, Wire::F32, 1.0),
        (2, 8, 1, Wire::Bf16, 2e-3),
    ] {
        let out = format!("{ranks}-{batch}-{accumulate}-{wire:?}");
        let outcomes = on(ranks, &name, &RunConfig { wire, ..with(&out, batch, accumulate) }, &base, 0);
        for other in &outcomes {
            assert!(other.weights == outcomes[0].weights, "{out}: all ranks have the same bits");
        }
        if batch * accumulate == 8 {
            // AdamW's step is the gradient's sign where the gradient is rounding alone.
            let far = far(&alone.weights, &outcomes[0].weights, near);
            assert!(far < 0.005, "{out}: {far} of the weights differ");
            let differs = outcomes[0].weights != alone.weights;
            assert!(differs, "{out}: another order of additions gives other bits");
        }
        // Moments shared out give the same bits, whatever the wire.
        let zero = RunConfig { wire, zero: 1, ..with(&format!("zero-{out}"), batch, accumulate) };
        let shared = on(ranks, &name, &zero, &base, 0);
        assert!(shared.iter().all(|o| o.weights == outcomes[0].weights && o.norms() == outcomes[0].norms()));
        if wire == Wire::Bf16 {
            let sent = |o: &Outcome| o.seen.steps[1].communication.unwrap().bytes;
            let wide = on(2, &name, &with("wide", batch, accumulate), &base, 0);
            assert!(sent(&outcomes[0]) * 10 < sent(&wide[0]) * 6, "half the bytes");
        }
    }
}

/// Where a mask leaves one rank's last micro-batch nothing to learn, its zeros are added up in the others' order.
#[test]
fn a_rank_without_anything_to_learn_does_its_part() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("masked");
    let (mut writer, mut mask) = (Writer::create(&name).unwrap(), MaskWriter::create(&name).unwrap());
    for document in 0..40u16 {
        let ids: Vec<u16> = (0..11).map(|t| 1 + (document * 3 + t) % 60).chain([0]).collect();
        mask.push(&vec![u8::from(document % 3 == 0); ids.len()]).unwrap();
        writer.push(&ids).unwrap();
    }
    writer.finish().unwrap();
    mask.finish().unwrap();
    let base = weights(Version::V7);
    for (accumulate, method) in [(2, Method::Full), (2, Method::Lora), (4, Method::Full)] {
        let with = |out: &str| RunConfig {
            method,
            accumulate,
            batch: 1,
            order: Order::Packed,
            ..config(&dir.path().join(format!("{out}-{accumulate}-{method:?}")))
        };
        let alone = on(1, &name, &with("alone"), &base, 0).pop().unwrap();
        for zero in [0, 1] {
            let two = on(2, &name, &RunConfig { zero, ..with(&format!("two-{zero}")) }, &base, 0);
            assert!(two[0].weights == two[1].weights);
            if accumulate == 2 {
                assert!(
                    two[0].weights == alone.weights && two[0].losses() == alone.losses(),
                    "{method:?} {zero}"
                );
            }
            assert!(far(&alone.weights, &two[0].weights, 1e-4) < 0.005);
        }
    }
}

/// What `plan` says of the traffic is what is sent.
#[test]
fn plan_counts_what_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    for (ranks, method, zero, wire) in [
        (2, Method::Full, 0, Wire::F32),
        (4, Method::Full, 1, Wire::F32),
        (2, Method::Full, 0, Wire::Bf16),
        (4, Method::Full, 1, Wire::Bf16),
        (2, Method::Lora, 0, Wire::F32),
        (2, Method::State, 1, Wire::Bf16),
    ] {
        let out = dir.path().join(format!("{ranks}-{method:?}-{zero}-{wire:?}"));
        let config = RunConfig { method, zero, wire, steps: Some(4), ..config(&out) };
        let all = on(ranks, &name, &config, &base, 0);
        let job = Job {
            config: hawfinch_model::Config::infer(&base).unwrap(),
            base_bytes: base.file_bytes,
            method,
            lora: config.lora(),
            ctx: config.ctx,
            batch: config.batch,
            accumulate: config.accumulate,
            segment: 0,
            recompute: false,
            ranks,
            zero: zero > 0,
            wire: if wire == Wire::Bf16 { 2 } else { 4 },
        };
        let want = job.plan().unwrap().wire_bytes;
        // Pieces are of unequal length, so one rank sends more than another. Beside them there are some numbers a step.
        let each = all.iter().map(|o| o.seen.steps[2].communication.unwrap().bytes as f64);
        let sent = each.sum::<f64>() / ranks as f64;
        let near = (sent / want - 1.0).abs() < 0.005 || (sent - want).abs() < 2000.0;
        assert!(near, "{ranks} {method:?} {zero} {wire:?}: {sent} sent, {want} planned");
    }
}

/// Stopped on one rank, all stop and save; other numbers of ranks, with and without shared moments, go on from there.
#[test]
fn a_run_goes_on_with_other_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    // Two micro-batches on one or two ranks: sums of two, which have no order.
    let with =
        |out: &str, zero| RunConfig { accumulate: 2, steps: Some(9), zero, ..config(&dir.path().join(out)) };
    let alone = on(1, &name, &with("alone", 0), &base, 0).pop().unwrap();
    let mut losses = Vec::new();
    for (ranks, zero, stop_after) in [(2, 1, 2), (1, 0, 4), (2, 0, 6), (2, 1, 0)] {
        let outcomes = on(ranks, &name, &with("parts", zero), &base, stop_after);
        assert!(outcomes.iter().all(|o| (o.end == End::Stopped) == (stop_after > 0)));
        assert!(outcomes.iter().all(|o| o.losses() == outcomes[0].losses()));
        losses.extend(outcomes[0].losses());
        if stop_after == 0 {
            assert!(outcomes.iter().all(|o| o.weights == alone.weights));
        }
    }
    assert_eq!(losses, alone.losses());
    // And on four, by the order of the data alone.
    let with = |out: &str| RunConfig { accumulate: 4, batch: 1, ..with(out, 0) };
    let alone = on(1, &name, &with("alone-4"), &base, 0).pop().unwrap();
    let mut losses: Vec<f64> = Vec::new();
    for (ranks, stop_after) in [(2, 2), (1, 5), (4, 0)] {
        let outcomes = on(ranks, &name, &with("parts-4"), &base, stop_after);
        losses.extend(outcomes[0].seen.steps.iter().map(|s| s.loss));
    }
    let want = alone.seen.steps.iter().map(|s| s.loss);
    assert!(losses.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4 * b), "{losses:?}");
    assert_eq!(losses.len(), 9);
}

/// Segments divided over ranks: the states and their gradients are handed on exactly.
#[test]
fn a_text_may_be_shared() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    for (version, method, order) in [
        (Version::V7, Method::Full, Order::Shuffle),
        (Version::V6, Method::Lora, Order::Packed),
        (Version::V4, Method::State, Order::Packed),
        (Version::V5_1, Method::Full, Order::Packed),
    ] {
        let base = weights(version);
        let with = |out: String, sequence_ranks| RunConfig {
            method,
            order,
            segment: 5,
            sequence_ranks,
            accumulate: 2,
            ..config(&dir.path().join(format!("{version:?}-{method:?}-{out}")))
        };
        let alone = on(1, &name, &with("alone".into(), 1), &base, 0).pop().unwrap();
        // The last has more ranks than segments.
        for (ranks, sequence_ranks) in [(2, 2), (4, 2), (3, 3), (16, 16)] {
            let out = with(format!("{ranks}-{sequence_ranks}"), sequence_ranks);
            let all = on(ranks, &name, &out, &base, 0);
            assert!(all.iter().all(|o| o.weights == all[0].weights));
            for (a, b) in alone.seen.steps.iter().zip(&all[0].seen.steps) {
                let what = format!("{version} {method:?} {ranks} {sequence_ranks}: {a:?} {b:?}");
                assert!((a.loss - b.loss).abs() < 2e-5 * a.loss && a.tokens == b.tokens, "{what}");
                assert!((a.grad_norm - b.grad_norm).abs() < 2e-3 * a.grad_norm, "{what}");
            }
            let far = far(&alone.weights, &all[0].weights, 1e-4);
            assert!(far < 0.01, "{version} {method:?} {ranks} {sequence_ranks}: {far} of the weights differ");
            if (ranks, sequence_ranks) == (2, 2) {
                // Without what goes over the border it would be another run.
                let cut = RunConfig { truncate: true, ..with("cut".into(), 1) };
                let cut = on(1, &name, &cut, &base, 0).pop().unwrap();
                let apart = |o: &Outcome| (o.seen.steps[0].grad_norm - alone.seen.steps[0].grad_norm).abs();
                assert!(apart(&cut) > 20.0 * apart(&all[0]), "the comparison sees it");
            }
        }
    }
}

#[test]
fn ranks_that_differ_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    let said = |ranks: usize, change: &(dyn Fn(&mut RunConfig, &mut Checkpoint, &mut Data) + Sync)| {
        let all = on_all(ranks, |c| {
            let (mut config, mut base) = (config(&dir.path().join("x")), base.clone());
            let mut data = data(&name, &config);
            if c.rank() == 1 {
                change(&mut config, &mut base, &mut data);
            }
            Trainer::new_among(Arc::new(c), config, &base, cpu(), data).err().map(|e| e.to_string())
        });
        assert!(all.iter().all(|said| *said == all[0]), "{all:?}");
        all[0].clone().unwrap_or_default()
    };
    assert_eq!(said(2, &|_, _, _| {}), "");
    // Where files lie may differ.
    assert_eq!(said(2, &|c, _, _| c.from = Some("elsewhere".into())), "");
    let lr = said(2, &|c, _, _| c.lr = 0.5);
    assert_eq!(lr, "`lr` is 0.5 on rank 1 and 0.003 on rank 0: all ranks have to train alike");
    assert!(said(4, &|c, _, _| c.batch = 4).contains("`batch` is 4 on rank 1 and 2 on rank 0"));
    assert!(said(2, &|_, _, d| d.fingerprint += "x").starts_with("the data set is"));
    let other = said(2, &|_, base, _| {
        *base = synthetic::checkpoint(
            &synthetic::Shape { version: Version::V7, layers: 3, width: 96, vocab: 200, head_size: 32 }
                .config(),
            DType::F32,
            4,
        )
    });
    assert!(other.starts_with("the hash of the model is"), "{other}");
    // A step that cannot be shared.
    let config = RunConfig { accumulate: 3, ..config(&dir.path().join("y")) };
    let e = on_all(2, |c| {
        Trainer::new_among(Arc::new(c), config.clone(), &base, cpu(), data(&name, &config)).err()
    });
    assert!(e[1].as_ref().unwrap().to_string().contains("cannot be shared by 2 ranks"));
}

/// Breaks down after its second step.
struct Panics;

impl Observer for Panics {
    fn step(&mut self, report: &StepReport) {
        assert!(report.step < 2, "a test of what breaks down");
    }
}

/// A rank that ends takes the others with it: no one waits for ever.
#[test]
fn a_rank_that_fails_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let config = config(&dir.path().join("run"));
    let base = weights(Version::V6);
    let ends = on_all(2, |c| {
        let failing = c.rank() == 1;
        let mut trainer =
            Trainer::new_among(Arc::new(c), config.clone(), &base, cpu(), data(&name, &config)).unwrap();
        if failing {
            let run = || trainer.run(&mut Panics, &AtomicBool::new(false)).map(|_| ());
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            return format!("{}", ended.is_err());
        }
        trainer.run(&mut (), &AtomicBool::new(false)).unwrap_err().to_string()
    });
    assert!(ends[0].contains("rank 1 has ended") && ends[1] == "true", "{ends:?}");
}

/// A loss that is not finite on one rank leaves the step out on all.
#[test]
fn what_diverges_on_one_is_left_out_on_all() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    for zero in [0, 1] {
        let config = RunConfig {
            lr: 1e30,
            warmup_steps: 0,
            clip: 0.0,
            rewind_rate: 1e-17,
            steps: Some(12),
            zero,
            ..config(&dir.path().join(format!("run-{zero}")))
        };
        let two = on(2, &name, &config, &base, 0);
        assert!(two[0].seen.steps.iter().any(|s| s.skipped), "it was tested");
        let steps = |o: &Outcome| o.seen.steps.iter().map(|s| (s.step, s.skipped)).collect::<Vec<_>>();
        assert_eq!(steps(&two[0]), steps(&two[1]));
        assert!(two[0].seen.notes.iter().any(|n| n.contains("diverged")));
        assert!(two[0].weights == two[1].weights);
    }
}

/// An exchange that leaves out one bucket: every rank keeps what it had.
struct Skips {
    inner: Threads,
    left: AtomicU64,
}

impl Collective for Skips {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn size(&self) -> usize {
        self.inner.size()
    }
    fn all_to_all(&self, send: &[u8], to: &[usize], receive: &mut [u8], from: &[usize]) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let (own, n) = (to[..self.rank()].iter().sum::<usize>(), to[self.rank()]);
            receive.fill(0);
            receive[..n].copy_from_slice(&send[own..own + n]);
            return Ok(());
        }
        self.inner.all_to_all(send, to, receive, from)
    }
    fn all_gather(&self, send: &[u8], receive: &mut [u8], counts: &[usize]) -> Result<()> {
        self.inner.all_gather(send, receive, counts)
    }
    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()> {
        self.inner.broadcast(bytes, root)
    }
    fn send(&self, bytes: &[u8], to: usize) -> Result<()> {
        self.inner.send(bytes, to)
    }
    fn receive(&self, bytes: &mut [u8], from: usize) -> Result<()> {
        self.inner.receive(bytes, from)
    }
    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }
    fn sent(&self) -> u64 {
        self.inner.sent()
    }
}

#[test]
fn a_bucket_left_out_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    let with = |out: String| RunConfig {
        accumulate: 2,
        steps: Some(2),
        warmup_steps: 0,
        ..config(&dir.path().join(out))
    };
    let alone = on(1, &name, &with("alone".into()), &base, 0).pop().unwrap();
    // The head's bucket, one in the middle; all ranks leave it out.
    for left in [1, 9] {
        let out = with(format!("all-{left}"));
        let all = on_all(2, |inner| {
            let c = Skips { inner, left: AtomicU64::new(left) };
            rank(Arc::new(c), &name, &out, &base, 0).unwrap()
        });
        assert!(all[0].weights != alone.weights, "the comparison above sees it");
        // One rank alone: the others are told.
        let out = with(format!("one-{left}"));
        let all = on_all(2, |inner| {
            let left = if inner.rank() == 1 { left } else { 0 };
            rank(Arc::new(Skips { inner, left: AtomicU64::new(left) }), &name, &out, &base, 0).err()
        });
        assert!(all.iter().all(|e| matches!(e, Some(Error::Ranks(_)))), "{all:?}");
    }
}

/// Weights that drift apart are not saved as if they were one model's.
#[test]
fn weights_that_drift_apart_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let name = corpus(dir.path());
    let base = weights(Version::V7);
    let config = config(&dir.path().join("run"));
    let said = on_all(2, |c| {
        let first = c.rank() == 0;
        let mut trainer =
            Trainer::new_among(Arc::new(c), config.clone(), &base, cpu(), data(&name, &config)).unwrap();
        trainer.step().unwrap();
        if first {
            trainer.learner().tape().parameters_mut().list_mut()[3].both_mut().0[0] += 1e-6;
        }
        trainer.save(&mut ()).unwrap_err().to_string()
    });
    assert!(said[0] == said[1] && said[0].contains("hash of the weights after step 1"), "{said:?}");
    assert!(checkpoint::list(&config.out).unwrap().is_empty());
}
