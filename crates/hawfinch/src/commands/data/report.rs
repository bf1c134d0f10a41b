//! The summary of a data set.

use std::fmt::Write as _;
use std::path::Path;

use hawfinch_data::{Amount, LabelSummary, SourceSummary, Summary};
use serde_json::{Value, json};

use crate::output::{printable, size, thousands};

/// Labels and sources that a table shows by name.
const SHOWN: usize = 40;

/// For a person.
pub fn text(summary: &Summary, out: &Path, seconds: f64) -> String {
    let mut text = table(summary);
    let weighted = summary.sources.iter().any(|s| s.asked_share.is_some());
    if weighted {
        let all = summary.written.tokens.max(1) as f64;
        let _ = writeln!(text, "\n  share asked   share got   tokens there   tokens written   source");
        let mut sources: Vec<&SourceSummary> = summary.sources.iter().collect();
        if sources.len() > SHOWN {
            sources.sort_by_key(|s| std::cmp::Reverse(s.tokens_written));
        }
        let rest = sources.split_off(sources.len().min(SHOWN));
        let others = SourceSummary {
            source: format!("{} others", rest.len()),
            asked_share: Some(rest.iter().filter_map(|s| s.asked_share).sum()),
            tokens_there: rest.iter().map(|s| s.tokens_there).sum(),
            tokens_written: rest.iter().map(|s| s.tokens_written).sum(),
        };
        for s in sources.into_iter().chain((!rest.is_empty()).then_some(&others)) {
            let _ = writeln!(
                text,
                "  {:>10.2}%  {:>9.2}%  {:>13}  {:>15}   {}",
                100.0 * s.asked_share.unwrap_or(0.0),
                100.0 * s.tokens_written as f64 / all,
                thousands(s.tokens_there),
                thousands(s.tokens_written),
                printable(&s.source)
            );
        }
    }
    let left_out = left_out(summary);
    if !left_out.is_empty() {
        let _ = writeln!(text, "\nleft out: {}", left_out.join(", "));
    }
    if let Some(replaced) = replaced(summary) {
        let _ = writeln!(text, "\n{replaced}");
    }
    let held_out = match &summary.held_out {
        Amount { documents: 0, .. } => String::new(),
        a => format!(", and {} of {} tokens held out", plural(a.documents, "document"), thousands(a.tokens)),
    };
    let _ = writeln!(
        text,
        "\nwrote {}.bin and .idx: {}, {} tokens ({}){held_out}, in {seconds:.1} s",
        name(out),
        plural(summary.written.documents, "document"),
        thousands(summary.written.tokens),
        size(2 * summary.written.tokens),
    );
    if let Some(learned) = learned(summary) {
        let _ =
            writeln!(text, "{learned}: {}.mask.bin and .idx; --loss-on all learns every token", name(out));
    }
    text
}

/// What is learned, if not all is.
fn learned(summary: &Summary) -> Option<String> {
    let said =
        |share: String| format!("{share} of the tokens are learned, of conversations the assistant's alone");
    summary.masked.then(|| said(share(summary.written.learned, summary.written.tokens)))
}

/// A share of tokens for a person, with as many digits as tell it from none and from all.
pub fn share(part: u64, all: u64) -> String {
    let percent = 100.0 * part as f64 / all.max(1) as f64;
    if (10.0..=99.0).contains(&percent) { format!("{percent:.0}%") } else { format!("{percent:.2}%") }
}

/// In one line: how much there is, what was left out and what was changed.
pub fn brief(summary: &Summary) -> String {
    let amount = |a: &Amount| format!("{}, {} tokens", plural(a.documents, "document"), thousands(a.tokens));
    let mut text = amount(&summary.written);
    if summary.held_out.documents > 0 {
        let _ = write!(text, "; held out: {}", amount(&summary.held_out));
    }
    let left_out = left_out(summary);
    if !left_out.is_empty() {
        let _ = write!(text, "; left out: {}", left_out.join(", "));
    }
    if let Some(replaced) = replaced(summary) {
        let _ = write!(text, "; {replaced}");
    }
    if let Some(learned) = learned(summary) {
        let _ = write!(text, "; {learned}");
    }
    text
}

fn replaced(summary: &Summary) -> Option<String> {
    let documents = plural(summary.replaced_utf8, "document");
    let said = format!("{documents} held bytes that are not UTF-8: U+FFFD stands in their place");
    (summary.replaced_utf8 > 0).then_some(said)
}

/// The name without its ending.
fn name(out: &Path) -> String {
    let (bin, _) = hawfinch_data::binidx::paths(out);
    printable(&bin.with_extension("").display().to_string())
}

fn plural(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// What was left out and why.
fn left_out(s: &Summary) -> Vec<String> {
    let all = [
        (s.duplicates, "duplicate", "duplicates"),
        (s.too_short, "document of too few tokens", "documents of too few tokens"),
        (s.too_long, "document of too many tokens", "documents of too many tokens"),
        (s.bad_lines, "line that is no document", "lines that are no document"),
        (s.invalid_utf8, "document that is not UTF-8", "documents that are not UTF-8"),
        (
            s.nothing_to_learn,
            "conversation without a reply to learn",
            "conversations without a reply to learn",
        ),
        (
            s.reasoning_left_out,
            "message's reasoning, for which the template has no place",
            "messages' reasoning, for which the template has no place",
        ),
    ];
    let some = all.into_iter().filter(|(n, ..)| *n > 0);
    some.map(|(n, one, many)| format!("{} {}", thousands(n), if n == 1 { one } else { many })).collect()
}

/// A line for each label and one for all.
fn table(summary: &Summary) -> String {
    let mut labels: Vec<&LabelSummary> = summary.labels.iter().collect();
    let mut others = LabelSummary::default();
    if labels.len() > SHOWN {
        labels.sort_by_key(|l| std::cmp::Reverse(l.written.tokens));
        others.label = format!("{} others", labels.len() - SHOWN);
        for label in labels.drain(SHOWN..) {
            others.written.join(&label.written);
            others.held_out.join(&label.held_out);
            others.duplicates += label.duplicates;
        }
    }
    if !others.label.is_empty() {
        labels.push(&others);
    }
    let all = LabelSummary {
        label: "all".into(),
        written: summary.written,
        held_out: summary.held_out,
        duplicates: summary.duplicates,
    };
    if summary.labels.len() > 1 {
        labels.push(&all);
    }
    let head =
        ["label", "documents", "tokens", "share", "learned", "characters/token", "duplicates", "held out"];
    let mut rows = vec![head.map(String::from)];
    rows.extend(labels.iter().map(|l| {
        [
            printable(&l.label),
            thousands(l.written.documents),
            thousands(l.written.tokens),
            format!("{:.2}%", 100.0 * l.written.tokens as f64 / summary.written.tokens.max(1) as f64),
            share(l.written.learned, l.written.tokens),
            l.written.characters_per_token().map_or("-".into(), |c| format!("{c:.3}")),
            thousands(l.duplicates),
            thousands(l.held_out.documents),
        ]
    }));
    // Columns of nothing but zeros, or of all, say nothing.
    let kept: Vec<usize> = (0..head.len())
        .filter(|&c| match c {
            4 => summary.masked,
            6 => summary.duplicates > 0,
            7 => summary.held_out.documents > 0,
            _ => true,
        })
        .collect();
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for &c in &kept {
            let (cell, width) = (&row[c], width(c));
            let _ = match c {
                0 => write!(line, "  {cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// For a program.
pub fn json(summary: &Summary, out: &Path, seconds: f64) -> Value {
    let mut value = serde_json::to_value(summary).unwrap_or_default();
    value["out"] = json!(name(out));
    value["seconds"] = json!(seconds);
    let per_token = |a: &Amount| json!(a.characters_per_token());
    value["characters_per_token"] = per_token(&summary.written);
    for (i, label) in summary.labels.iter().enumerate() {
        value["labels"][i]["characters_per_token"] = per_token(&label.written);
    }
    value
}
