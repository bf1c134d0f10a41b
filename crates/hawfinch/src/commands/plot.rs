//! `hawfinch plot`: the curves of training runs.

use std::process::ExitCode;

#[cfg(feature = "plot")]
pub use drawn::{Args, run};

#[cfg(feature = "plot")]
mod drawn {
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use super::ExitCode;
    use crate::fail::usage;
    use crate::output::{self, note};
    use crate::plot::PlotFile;
    use crate::plot::chart::Chart;
    use crate::plot::curves::{View, curves, usual_smooth};
    use crate::plot::runs::{Asked, Run, X, Y, read_all};
    use crate::plot::summary;

    /// Arguments of `plot`.
    #[derive(clap::Args, Debug)]
    #[command(
        after_help = "Training loss is a thin line, smoothed, with each step faint behind it; validation loss is \
marked. Runs of one label (seeds) are one curve: their mean, in a band from the smallest to the largest, as far as \
all of them reach. A run may still be training.

Examples:
  hawfinch plot runs/tiny
  hawfinch plot runs/a runs/b --out compare.png
  hawfinch plot small=runs/s1 small=runs/s2 large=runs/l1 large=runs/l2 --x flops --log-x
  hawfinch plot runs/a runs/b --y bits-per-byte --x time --title 'Two schedules'"
    )]
    pub struct Args {
        /// Folders of runs; NAME=RUN gives one a label, which several may have
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<String>,
        /// Where to write: a file that ends in .svg or .png [default: loss.svg in the folder of a single run, else
        /// plot.svg here; another --y names the file of a single run]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// What lies along the horizontal axis
        #[arg(long, value_enum, default_value = "tokens")]
        x: X,
        /// What lies along the vertical axis
        #[arg(long, value_enum, default_value = "loss")]
        y: Y,
        /// The horizontal axis by its logarithm
        #[arg(long)]
        log_x: bool,
        /// Steps that a point of a training curve is the mean of; 1: none [default: a hundredth of the longest run]
        #[arg(long, value_name = "N")]
        smooth: Option<usize>,
        /// What stands above the plot
        #[arg(long, value_name = "TEXT")]
        title: Option<String>,
        /// Print the table as JSON
        #[arg(long)]
        json: bool,
    }

    /// More curves than anybody tells apart.
    const MOST: usize = 42;

    /// Draws.
    pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
        let asked = args.runs.iter().map(|a| Asked::parse(a)).collect::<anyhow::Result<Vec<_>>>()?;
        if args.smooth == Some(0) {
            return Err(usage("--smooth takes a number of steps, at least 1"));
        }
        let runs = read_all(&asked)?;
        let out = place(args, &runs);
        let smooth = args.smooth.unwrap_or_else(|| usual_smooth(&runs));
        // A schedule has corners, and no noise.
        let drawn_smooth = if args.y == Y::Lr { 1 } else { smooth };
        let view = View { x: args.x, y: args.y, log_x: args.log_x, smooth: drawn_smooth };
        let rows: Vec<summary::Row> = runs.iter().map(|r| summary::row(r, smooth)).collect();
        // A run that has not begun to learn may have no checkpoint to count operations by, and needs none.
        let (begun, empty): (Vec<Run>, Vec<Run>) =
            runs.into_iter().partition(|r| !r.steps.is_empty() || !r.evals.is_empty());
        for run in &empty {
            note(format_args!("{}: nothing to draw yet, no step has been made", run.name));
        }
        let mut all = curves(&begun, view)?;
        for curve in all.iter().filter(|c| c.is_empty()) {
            note(format_args!("{}: {}", curve.name, nothing(view)));
        }
        all.retain(|c| !c.is_empty());
        if all.len() > MOST {
            let many = all.len();
            return Err(usage(format!(
                "{many} curves in one plot cannot be told apart: draw at most {MOST} at a time"
            )));
        }
        for curve in all.iter().filter(|c| c.cut) {
            let name = &curve.name;
            note(format_args!("{name}: {} runs, drawn to where the shortest of them ends", curve.runs));
        }
        if !all.is_empty() {
            let title = args.title.clone().unwrap_or_else(|| match &all[..] {
                [one] => one.name.clone(),
                _ => format!("{} by {}", args.y.short(), args.x.words()),
            });
            let chart =
                Chart { title: output::printable(&title).replace(['\n', '\t'], " "), curves: all, view };
            let file = PlotFile::begin(&out)?;
            let path = file.path().to_path_buf();
            file.draw(chart.size(), &chart)?;
            note(format_args!("wrote {}", path.display()));
        }
        if args.json {
            output::json(&rows)?;
        } else {
            let mut out = output::stdout();
            out.write_all(summary::table(&rows).as_bytes())?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Where the plot goes.
    fn place(args: &Args, runs: &[Run]) -> PathBuf {
        match (&args.out, runs) {
            (Some(path), _) => path.clone(),
            (None, [run]) => run.folder.join(format!("{}.svg", args.y.name())),
            (None, _) => Path::new("plot.svg").into(),
        }
    }

    /// Why a run that has made steps gives no curve.
    fn nothing(view: View) -> String {
        match view.y {
            Y::BitsPerByte => "nothing to draw yet, no validation has told bits a byte".into(),
            Y::Probe => "nothing to draw yet, no validation has asked a probe".into(),
            y => format!("nothing to draw yet, no {} above the axis is a number", y.words()),
        }
    }
}

/// Arguments of `plot`.
#[cfg(not(feature = "plot"))]
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folders of runs
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _runs: Vec<String>,
}

/// Says that it cannot.
#[cfg(not(feature = "plot"))]
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    Err(crate::fail::usage("this hawfinch was built without the feature `plot`"))
}
