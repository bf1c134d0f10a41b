//! The table below a plot: one row a run.

use std::fmt::Write as _;

use serde::Serialize;

use super::curves::{View, curves};
use super::runs::{Run, X, Y};
use crate::output::thousands;

/// A run in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its label, or its folder's name.
    pub run: String,
    /// Its folder.
    pub folder: String,
    /// Steps made.
    pub steps: u64,
    /// Tokens trained.
    pub tokens: u64,
    /// At the end, smoothed as in the plot; nats a token.
    pub training_loss: Option<f64>,
    /// The last.
    pub validation_loss: Option<f64>,
    /// The best.
    pub best_validation_loss: Option<f64>,
    /// After so many steps.
    pub best_step: Option<u64>,
    /// Over the whole run.
    pub tokens_per_second: Option<f64>,
}

/// The numbers of a run whose training loss is the mean of so many steps.
pub fn row(run: &Run, smooth: usize) -> Row {
    let view = View { x: X::Steps, y: Y::Loss, log_x: false, smooth };
    // Steps are counted without the model: this does not fail.
    let curve = curves(std::slice::from_ref(run), view).unwrap_or_default().pop();
    let best = run.evals.iter().filter(|e| e.loss.is_finite()).min_by(|a, b| a.loss.total_cmp(&b.loss));
    let last = run.steps.last();
    let of_eval = run.evals.last();
    let finite = |n: &f64| n.is_finite();
    Row {
        run: run.name.clone(),
        folder: run.folder.display().to_string(),
        steps: last.map_or(0, |s| s.step).max(of_eval.map_or(0, |e| e.step)),
        tokens: last.map_or(0, |s| s.tokens).max(of_eval.map_or(0, |e| e.tokens)),
        training_loss: curve.and_then(|c| c.last_step()),
        validation_loss: of_eval.map(|e| e.loss).filter(finite),
        best_validation_loss: best.map(|e| e.loss),
        best_step: best.map(|e| e.step),
        tokens_per_second: last.map(|s| s.tokens as f64 / s.seconds).filter(|n| finite(n) && *n > 0.0),
    }
}

/// The table for a person; `--` stands where there is nothing yet.
pub fn table(rows: &[Row]) -> String {
    let loss = |n: Option<f64>| n.map_or("--".into(), |n| format!("{n:.4}"));
    let mut lines = vec![
        ["run", "steps", "tokens", "training", "validation", "best", "at step", "tokens/s"].map(String::from),
    ];
    lines.extend(rows.iter().map(|r| {
        [
            r.run.clone(),
            thousands(r.steps),
            thousands(r.tokens),
            loss(r.training_loss),
            loss(r.validation_loss),
            loss(r.best_validation_loss),
            r.best_step.map_or("--".into(), thousands),
            r.tokens_per_second.map_or("--".into(), |n| thousands(n.round() as u64)),
        ]
    }));
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let _ = write!(out, "{:<1$}", line[0], widths[0]);
        for (cell, width) in line[1..].iter().zip(&widths[1..]) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.push('\n');
    }
    out
}
