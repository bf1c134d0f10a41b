//! A run of two processes under mpirun: the bits of one. This program starts itself again as the ranks.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{Version, synthetic};
use hawfinch_mpi::Mpi;
use hawfinch_train::batches::Batches;
use hawfinch_train::collective::{Alone, Collective, Wire, all_reduce, all_reduce_f64, gather};
use hawfinch_train::config::{Operands, RunConfig};
use hawfinch_train::trainer::{Data, End, Observer, StepReport, Trainer};

/// Tells the ranks where to work.
const FOLDER: &str = "HAWFINCH_MPI_TEST";

fn main() {
    match std::env::var_os(FOLDER) {
        Some(folder) => as_rank(Path::new(&folder)),
        None => outside(),
    }
}

fn config(out: &Path) -> RunConfig {
    RunConfig {
        out: out.into(),
        data: Some("given".into()),
        ctx: 12,
        batch: 2,
        accumulate: 2,
        steps: Some(5),
        lr: 3e-3,
        warmup_steps: 2,
        precision: Operands::F32,
        bucket: 0.05,
        ..RunConfig::default()
    }
}

#[derive(Default)]
struct Seen(Vec<StepReport>);

impl Observer for Seen {
    fn step(&mut self, report: &StepReport) {
        self.0.push(*report);
    }
}

/// The bits of a run's weights and losses.
fn run(c: Arc<dyn Collective>, folder: &Path, config: RunConfig) -> (Vec<u32>, Vec<u64>, u64) {
    let shape = synthetic::Shape { version: Version::V7, layers: 2, width: 96, vocab: 64, head_size: 32 };
    let weights = synthetic::checkpoint(&shape.config(), DType::F32, 3);
    let train = Batches::open(&folder.join("corpus"), config.order, config.ctx, config.seed).unwrap();
    let data = Data {
        fingerprint: train.fingerprint().unwrap(),
        train,
        validation: None,
        probe: Vec::new(),
        token_bytes: None,
    };
    let cpu = Cpu::with(Arc::new(Pool::new(1)), Isa::best());
    let mut trainer = Trainer::new_among(c, config, &weights, cpu, data).unwrap();
    let mut seen = Seen::default();
    assert_eq!(trainer.run(&mut seen, &AtomicBool::new(false)).unwrap(), End::Done);
    let bits = trainer.weights().tensors.values().flat_map(|t| t.to_f32()).map(f32::to_bits).collect();
    let sent = seen.0.iter().filter_map(|s| s.communication).map(|c| c.bytes).sum();
    (bits, seen.0.iter().map(|s| s.loss.to_bits()).collect(), sent)
}

fn as_rank(folder: &Path) {
    let c: Arc<dyn Collective> = Arc::new(Mpi::start().unwrap());
    assert_eq!(c.size(), 2, "two ranks");
    assert!(Mpi::start().is_err(), "once");
    let me = c.rank();
    // The calls, one by one.
    let mut numbers: Vec<f32> = (0..7).map(|n| (n * (me + 1)) as f32).collect();
    all_reduce(&*c, Wire::F32, &mut numbers).unwrap();
    assert_eq!(numbers, [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0]);
    all_reduce(&*c, Wire::Bf16, &mut numbers).unwrap();
    assert_eq!(numbers, [0.0, 6.0, 12.0, 18.0, 24.0, 30.0, 36.0]);
    let mut wide = [0.5, me as f64];
    all_reduce_f64(&*c, &mut wide).unwrap();
    assert_eq!(wide, [1.0, 1.0]);
    assert_eq!(gather(&*c, &vec![7; me * 3]).unwrap(), [vec![], vec![7; 3]]);
    // Nothing to say by anybody: an empty slice's address means something else to Open MPI.
    assert_eq!(gather(&*c, &[]).unwrap(), [[0u8; 0], []]);
    c.all_to_all(&[], &[0, 0], &mut [], &[0, 0]).unwrap();
    c.broadcast(&mut [], 0).unwrap();
    let mut said = [me as u8; 4];
    c.broadcast(&mut said, 1).unwrap();
    assert_eq!(said, [1; 4]);
    if me == 0 {
        c.send(&[5, 6], 1).unwrap();
    } else {
        let mut got = [0; 2];
        c.receive(&mut got, 0).unwrap();
        assert_eq!(got, [5, 6]);
    }
    c.barrier().unwrap();
    assert!(c.sent() > 0 && c.works_from_any_thread());
    // And runs.
    let (alone, losses, _) = run(Arc::new(Alone), folder, config(&folder.join(format!("alone-{me}"))));
    for zero in [0, 1] {
        let out = RunConfig { zero, ..config(&folder.join(format!("zero-{zero}"))) };
        let (weights, of, sent) = run(c.clone(), folder, out);
        assert!(weights == alone && of == losses && sent > 0, "zero {zero}, rank {me}");
    }
    let rounded = RunConfig { wire: Wire::Bf16, ..config(&folder.join("rounded")) };
    let (weights, _, _) = run(c.clone(), folder, rounded);
    assert!(weights != alone);
    println!("rank {me} is content");
}

fn outside() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = hawfinch_data::binidx::Writer::create(&dir.path().join("corpus")).unwrap();
    for document in 0..40u16 {
        let mut ids: Vec<u16> = (0..20).map(|t| 1 + (document * 7 + t) % 60).collect();
        ids.push(0);
        writer.push(&ids).unwrap();
    }
    writer.finish().unwrap();
    let out = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"])
        .arg(std::env::current_exe().unwrap())
        .env(FOLDER, dir.path())
        .env("HAWFINCH_THREADS", "1")
        .output()
        .expect("mpirun is installed");
    let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{wrong}");
    assert!(said.contains("rank 0 is content") && said.contains("rank 1 is content"), "{said}");
    println!("two processes are one to the bit");
}
