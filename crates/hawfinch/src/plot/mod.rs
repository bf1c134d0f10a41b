//! Plots: what `bench --plot` and `plot` share, and the curves of training runs.
//!
//! - [`canvas`]: a drawing becomes the bytes of an SVG or PNG file; [`pixels`](self): the letters of the latter.
//! - [`runs`]: a run as its `metrics.jsonl` tells it; [`curves`]: what is drawn of runs; [`axis`]: round numbers;
//!   [`chart`]: the picture; [`summary`]: the table;
//!   [`live`]: what a run draws of itself.

pub mod axis;
pub mod canvas;
pub mod chart;
pub mod curves;
pub mod live;
mod pixels;
pub mod runs;
pub mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::fail::usage;
use crate::output::NewFile;
use canvas::{Drawing, Kind, render};

/// A plot that is to be drawn; its file is begun before the work whose results it shows.
pub struct PlotFile {
    path: PathBuf,
    kind: Kind,
    file: NewFile,
}

impl PlotFile {
    /// Begins the file.
    ///
    /// # Errors
    /// A name of another ending; a place where no file can be.
    pub fn begin(path: &Path) -> anyhow::Result<PlotFile> {
        let kind = Kind::of(path)
            .ok_or_else(|| usage(format!("the plot {} must end in .svg or .png", path.display())))?;
        let file = NewFile::create(path).map_err(|e| usage(crate::fail::sentence(&e)))?;
        Ok(PlotFile { path: path.into(), kind, file })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Draws it; `size` in pixels.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn draw(mut self, size: (u32, u32), drawing: &impl Drawing) -> anyhow::Result<()> {
        self.file.write_all(&render(self.kind, size, drawing)?)?;
        self.file.complete()
    }
}
