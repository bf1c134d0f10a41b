//! What tests of runs have in common: an observer that keeps what it is told, and a corpus.
#![allow(dead_code)] // Not every test uses all of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hawfinch_train::Result;
use hawfinch_train::batches::Batches;
use hawfinch_train::checkpoint::Found;
use hawfinch_train::config::RunConfig;
use hawfinch_train::trainer::{Data, End, EvalReport, Observer, StepReport, Trainer};

/// Documents that can be learned: runs of neighbouring tokens.
pub fn corpus(dir: &Path) -> PathBuf {
    let name = dir.join("corpus");
    let mut writer = hawfinch_data::binidx::Writer::create(&name).unwrap();
    let mut n = 7u32;
    for document in 0..60u16 {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (first, len) = (n >> 8 & 31, 5 + (n >> 16 & 31));
        let mut ids: Vec<u16> =
            (0..len).map(|t| 1 + ((first + t * (1 + u32::from(document) % 2)) % 60) as u16).collect();
        ids.push(0);
        writer.push(&ids).unwrap();
    }
    writer.finish().unwrap();
    name
}

/// A data set to learn from and to be validated on.
pub fn data(name: &Path, config: &RunConfig) -> Data {
    let train = Batches::open(name, config.order, config.ctx, config.seed).unwrap();
    Data {
        fingerprint: train.fingerprint().unwrap(),
        train,
        validation: Some(Batches::in_order(name, config.ctx).unwrap()),
        probe: Vec::new(),
        token_bytes: None,
    }
}

/// What was told.
#[derive(Default)]
pub struct Seen {
    pub steps: Vec<StepReport>,
    pub evals: Vec<EvalReport>,
    pub saved: Vec<Found>,
    pub notes: Vec<String>,
    pub rewound: Vec<u64>,
    /// Asks to stop after this step.
    pub stop_after: u64,
    pub stop: Arc<AtomicBool>,
}

impl Observer for Seen {
    fn step(&mut self, report: &StepReport) {
        self.steps.push(*report);
        if report.step == self.stop_after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn evaluated(&mut self, report: &EvalReport) {
        self.evals.push(*report);
    }
    fn saved(&mut self, found: &Found) {
        self.saved.push(found.clone());
    }
    fn note(&mut self, _: u64, text: &str) {
        self.notes.push(text.into());
    }
    fn rewound(&mut self, to: u64) {
        self.rewound.push(to);
    }
}

/// Runs to the end, or until after that step it asks to stop.
pub fn try_run(trainer: &mut Trainer, stop_after: u64) -> Result<(End, Seen)> {
    let mut seen = Seen { stop_after, ..Seen::default() };
    let stop = seen.stop.clone();
    let end = trainer.run(&mut seen, &stop)?;
    Ok((end, seen))
}

/// The same of a run that does not fail.
pub fn run(trainer: &mut Trainer, stop_after: u64) -> (End, Seen) {
    try_run(trainer, stop_after).unwrap()
}
