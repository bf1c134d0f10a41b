//! The quality report: what each weight became and why, and what it all costs.

use std::collections::BTreeMap;
use std::fmt::Write;

use hawfinch_model::quantize::quality::Quality;
use serde_json::{Value, json};

use super::measure::Measured;
use super::sample::Sample;
use crate::output::{size, thousands};

/// All that is known at the end.
pub struct Report<'a> {
    pub weights: &'a [Measured],
    /// Matrices that stay as they are: name, type, reason.
    pub kept: Vec<String>,
    pub sample: &'a Sample,
    pub quality: Quality,
}

fn tokens(sequences: &[Vec<u32>]) -> usize {
    sequences.iter().map(Vec::len).sum()
}

impl Report<'_> {
    /// Sum of what each alone costs in the chosen type, if all was measured in that.
    fn predicted(&self) -> Option<f64> {
        self.weights.iter().map(|m| if m.chosen == m.tried { m.kl } else { Some(0.0) }).sum()
    }

    fn bytes(&self) -> u64 {
        self.weights.iter().map(Measured::bytes).sum()
    }

    fn numbers(&self) -> u64 {
        self.weights.iter().map(|m| m.weight.numbers()).sum()
    }

    fn bits(&self) -> f64 {
        self.bytes() as f64 * 8.0 / self.numbers().max(1) as f64
    }

    /// Weights and their numbers by type.
    fn by_type(&self) -> BTreeMap<&'static str, (usize, u64)> {
        let mut out = BTreeMap::new();
        for m in self.weights {
            let entry: &mut (usize, u64) = out.entry(m.chosen.name()).or_default();
            entry.0 += 1;
            entry.1 += m.weight.numbers();
        }
        out
    }

    /// The most sensitive first; in official order where nothing was measured.
    fn sorted(&self) -> Vec<&Measured> {
        let mut rows: Vec<&Measured> = self.weights.iter().collect();
        rows.sort_by(|a, b| b.kl.unwrap_or(0.0).total_cmp(&a.kl.unwrap_or(0.0)));
        rows
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let longest = self.weights.iter().map(|m| m.weight.name.len()).max().unwrap_or(0);
        let tried: Vec<&str> = self.weights.iter().map(|m| m.tried.name()).collect();
        let alone = match tried.first() {
            Some(first) if tried.iter().all(|t| t == first) => format!("KL in {first}"),
            _ => "KL in blocks".into(),
        };
        let _ = writeln!(
            out,
            "{:<longest$}  {:<5} {:>12} {:>7} {:>8} {:>10}",
            "weight", "type", alone, "peak", "error", "size"
        );
        for m in self.sorted() {
            let kl = m.kl.map_or("-".into(), |kl| format!("{kl:.2e}"));
            let why = if m.outliers { "  outliers" } else { "" };
            let _ = writeln!(
                out,
                "{:<longest$}  {:<5} {kl:>12} {:>7.1} {:>7.1}% {:>10}{why}",
                m.weight.name,
                m.chosen.name(),
                m.rounding.peak,
                100.0 * m.rounding.error,
                size(m.bytes()),
            );
        }
        out.push('\n');
        for kept in &self.kept {
            let _ = writeln!(out, "stays as it is: {kept}");
        }
        let types: Vec<String> = self
            .by_type()
            .iter()
            .map(|(name, (n, numbers))| {
                format!(
                    "{name}: {n} ({:.0}% of the numbers)",
                    100.0 * *numbers as f64 / self.numbers() as f64
                )
            })
            .collect();
        let q = &self.quality;
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<17}{value}");
        };
        line("types", types.join(", "));
        line("size", format!("{}, {:.3} bits a weight", size(self.bytes()), self.bits()));
        let predicted =
            self.predicted().map_or(String::new(), |p| format!(" (the sum of single ones: {p:.2e})"));
        line("mean KL", format!("{:.2e} nats{predicted}", q.kl));
        line("largest KL", format!("{:.2e} nats", q.largest_kl));
        line("same likeliest", format!("{:.1}% of tokens", 100.0 * q.same_top));
        let change = 100.0 * (q.rounded_perplexity / q.perplexity - 1.0);
        line(
            "perplexity",
            format!("{:.4}, in full precision {:.4} ({change:+.2}%)", q.rounded_perplexity, q.perplexity),
        );
        let judged = match (self.sample.is_fair(), self.weights.iter().any(|m| m.kl.is_some())) {
            (true, true) => format!(
                "{} tokens, others than the {} used to measure weights",
                thousands(q.tokens as u64),
                thousands(tokens(&self.sample.choosing) as u64)
            ),
            (false, true) => format!(
                "{} tokens, the same that weights were measured on: the text has no more",
                thousands(q.tokens as u64)
            ),
            _ => format!("{} tokens", thousands(q.tokens as u64)),
        };
        line("judged on", judged);
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let weight = |m: &&Measured| {
            json!({
                "name": m.weight.name,
                "shape": m.weight.shape,
                "type": m.chosen.name(),
                "tried": m.tried.name(),
                "kl": m.kl,
                "peak": m.rounding.peak,
                "error": m.rounding.error,
                "outliers": m.outliers,
                "bytes": m.bytes(),
            })
        };
        json!({
            "weights": self.sorted().iter().map(weight).collect::<Vec<_>>(),
            "kept": self.kept,
            "bits": self.bits(),
            "bytes": self.bytes(),
            "predicted_kl": self.predicted(),
            "quality": self.quality,
            "tokens_measured_on": tokens(&self.sample.choosing),
            "judged_on_other_text": self.sample.is_fair(),
        })
    }
}
