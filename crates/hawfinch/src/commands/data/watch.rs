//! How the commands look at long work, and end it.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use hawfinch_data::{Control, Error, Phase};

use crate::fail::usage;
use crate::output::note;
use crate::progress::Progress;
use crate::signal;

/// Runs work with a bar, until Ctrl-C. The first press ends it where it stands, a second one at once.
pub fn watched<T>(
    threads: Option<NonZeroUsize>,
    work: impl FnOnce(Control) -> hawfinch_data::Result<T>,
) -> hawfinch_data::Result<T> {
    let bar: Mutex<Option<(Phase, Progress)>> = Mutex::new(None);
    let progress = |phase, done, total| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            // One bar at a time: the old one goes first.
            *bar = None;
            *bar = Some((
                phase,
                match (phase, total) {
                    (Phase::Read, 0) => Progress::time("tokenising standard input"),
                    (Phase::Read, _) => Progress::bytes("tokenising", total),
                    (Phase::Write, _) => Progress::count("writing tokens", total),
                },
            ));
        }
        if let Some((_, bar)) = bar.as_mut() {
            bar.set(done);
        }
    };
    signal::catch(1);
    let threads = self::threads(threads);
    work(Control { threads, progress: &progress, stop: &signal::pressed })
}

/// Threads asked for by the option, or by the environment, or what the machine has.
fn threads(asked: Option<NonZeroUsize>) -> usize {
    let environment = || std::env::var("HAWFINCH_THREADS").ok()?.parse().ok();
    let all = || std::thread::available_parallelism().ok();
    asked.or_else(environment).or_else(all).map_or(1, NonZeroUsize::get)
}

/// The end of work that did not succeed: what was stopped says how to go on, wrong requests are wrong usage.
pub fn failed(error: Error, kept: Option<&Path>) -> anyhow::Result<ExitCode> {
    match error {
        Error::Stopped => {
            note(match kept {
                Some(work) => format!(
                    "stopped: what is done is kept in {}, and the same command goes on from there",
                    work.display()
                ),
                None => "stopped: nothing was written, the same command begins anew".into(),
            });
            Ok(ExitCode::from(signal::INTERRUPTED))
        }
        Error::Request(_) | Error::OtherWork(_) => Err(usage(error.to_string())),
        other => Err(other.into()),
    }
}
