//! The plot that a run keeps of itself: `loss.svg` in its folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::PlotFile;
use super::chart::Chart;
use super::curves::{View, curves, usual_smooth};
use super::runs::{Asked, Run, X, Y};

/// Drawing reads all that the run wrote down: it takes at most this part of the run's time.
const PART: u32 = 100;

/// Draws the loss of a run again and again.
#[derive(Debug)]
pub struct LossPlot {
    folder: PathBuf,
    /// When it was drawn last, and how long that took.
    drawn: Option<(Instant, Duration)>,
    /// Whether it was said that it cannot be.
    complained: bool,
}

impl LossPlot {
    /// Of the run in a folder.
    pub fn new(folder: &Path) -> LossPlot {
        LossPlot { folder: folder.into(), drawn: None, complained: false }
    }

    /// Draws it if that is not too much of the run's time; at the `end` in any case. Gives what is wrong with the disk, the
    /// first time.
    pub fn draw(&mut self, end: bool) -> Option<String> {
        let began = Instant::now();
        if !end && self.drawn.is_some_and(|(at, took)| at.elapsed() < took * PART) {
            return None;
        }
        let result = loss(&self.folder);
        self.drawn = Some((Instant::now(), began.elapsed()));
        let error = result.err()?;
        let first = !std::mem::replace(&mut self.complained, true);
        first.then(|| crate::fail::sentence(&error))
    }
}

/// Draws the loss of a run into its folder, if there is any.
fn loss(folder: &Path) -> anyhow::Result<()> {
    let run = [Run::read(&Asked { label: None, path: folder.into() })?];
    let view = View { x: X::Tokens, y: Y::Loss, log_x: false, smooth: usual_smooth(&run) };
    let mut curves = curves(&run, view)?;
    curves.retain(|c| !c.is_empty());
    if curves.is_empty() {
        return Ok(());
    }
    let chart = Chart { title: run[0].name.clone(), curves, view };
    PlotFile::begin(&folder.join("loss.svg"))?.draw(chart.size(), &chart)
}
