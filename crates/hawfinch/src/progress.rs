//! Progress on standard error, when a person looks: nothing for what takes less than half a second,
//! nothing when standard error is not a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bar that appears only when the work lasts.
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    shown: bool,
}

impl Progress {
    /// Counts bytes up to `total`.
    pub fn bytes(what: &str, total: u64) -> Self {
        Self::new(what, total, "{msg} {bar:32} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
    }

    /// Counts things up to `total`: tokens, tensors, prompts.
    pub fn count(what: &str, total: u64) -> Self {
        Self::new(what, total, "{msg} {bar:32} {human_pos}/{human_len}, {per_sec}, {eta} left")
    }

    fn new(what: &str, total: u64, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_string());
        Progress { bar, began: Instant::now(), shown: false }
    }

    /// So much is done.
    pub fn set(&mut self, done: u64) {
        if !self.shown && self.began.elapsed() >= PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.set_position(done);
    }

    /// So much more is done.
    pub fn add(&mut self, more: u64) {
        self.set(self.bar.position() + more);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
