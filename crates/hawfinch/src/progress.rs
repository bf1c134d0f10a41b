//! Progress on standard error, when a person looks: nothing for what takes less than half a second,
//! nothing when standard error is not a terminal.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a bar that is shown is drawn anew at least: its time goes on although nothing was counted.
const REDRAW: Duration = Duration::from_millis(250);

/// A bar that appears only when the work lasts, whether or not anything was counted until then.
pub struct Progress {
    bar: ProgressBar,
    /// Shows the bar after [`PATIENCE`], unless the sender is dropped before.
    waiting: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Counts bytes up to `total`.
    pub fn bytes(what: &str, total: u64) -> Self {
        Self::new(what, Some(total), "{msg} {bar:32} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
    }

    /// Counts things up to `total`: tokens, tensors, prompts.
    pub fn count(what: &str, total: u64) -> Self {
        Self::new(what, Some(total), "{msg} {bar:32} {human_pos}/{human_len}, {per_sec}, {eta} left")
    }

    /// For work whose parts cannot be counted: that it goes on, and how long.
    pub fn time(what: &str) -> Self {
        Self::new(what, None, "{spinner} {msg}, {elapsed}")
    }

    fn new(what: &str, total: Option<u64>, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_string());
        let waiting = io::stderr().is_terminal().then(|| {
            let (sender, receiver) = channel();
            let bar = bar.clone();
            let thread = std::thread::spawn(move || {
                if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(REDRAW);
                }
            });
            (sender, thread)
        });
        Progress { bar, waiting }
    }

    /// So much is done.
    pub fn set(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    /// So much more is done.
    pub fn add(&mut self, more: u64) {
        self.bar.inc(more);
    }

    /// Does something that may write to the same terminal, with the bar out of the way.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    /// How much is done.
    #[cfg(test)]
    pub fn done(&self) -> u64 {
        self.bar.position()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.waiting.take() {
            drop(sender);
            // It ends at once; a bar must not appear after this.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}
