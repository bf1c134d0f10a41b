//! The report for a person.

use std::fmt::Write as _;

use super::report::{Mark, Report, Speed};
use crate::output::{printable, size};

/// All of it.
pub fn text(r: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<13} {value}");
    };
    line("hawfinch", format!("{} on {}", r.hawfinch, r.system));
    line("processor", r.cpu.name.clone().unwrap_or_else(|| "unknown".into()));
    line("computing", format!("{}, {}", r.isa, count(r.threads, "thread")));
    line("load", load(r));
    let m = &r.model;
    let made = if m.made_up { " (random weights, made up in memory)" } else { "" };
    line(
        "model",
        format!(
            "{}{made}: {}, {} layers × {}, {} parameters, {}",
            printable(&m.name),
            m.version,
            m.layers,
            m.width,
            large(m.parameters as f64),
            m.weights
        ),
    );
    line(
        "a token",
        format!(
            "reads {} of weights, takes {} multiply-adds; the state is {}",
            size(m.weight_bytes_per_token),
            large(m.multiply_adds_per_token as f64),
            size(m.state_bytes)
        ),
    );
    line("opened in", time(r.load_seconds));
    line(
        "first token",
        format!(
            "{} after opening began, with a prompt of {} tokens",
            time(r.first_token.seconds),
            r.first_token.prompt_tokens
        ),
    );
    if let Some(p) = &r.packed {
        let copied = match p.copied_bytes {
            0 => "checksums compared".into(),
            n => format!("checksums compared and {} copied into huge pages", size(n)),
        };
        let memory = p.resident_bytes.map_or(String::new(), |n| format!(", {} of memory", size(n)));
        let since = time(p.since_opening_seconds);
        line(
            "packed file",
            format!("{copied} in {}: {since} after opening began{memory}", time(p.checked_seconds)),
        );
    }
    line("memory", memory(r));
    let l = &r.limits;
    line(
        "limits here",
        format!(
            "reading memory {}, at best {} ({} a thread); multiplying f32 {}/s, at best {}/s",
            gigabytes(l.read_bytes_per_second),
            gigabytes(l.best_read_bytes_per_second),
            count(l.read_streams_per_thread, "stream"),
            large(l.multiply_adds_per_second),
            large(l.best_multiply_adds_per_second)
        ),
    );
    if !r.decode.is_empty() {
        head(&mut out, "decode", "A STEP");
        r.decode.iter().for_each(|s| row(&mut out, &format!("{} at once", s.n), s));
    }
    if !r.prefill.is_empty() {
        head(&mut out, "prefill", "1ST TOKEN");
        r.prefill.iter().for_each(|s| row(&mut out, &format!("{} tokens", s.n), s));
    }
    if !r.context.is_empty() {
        context(&mut out, &r.context);
    }
    out.push_str(
        "\nMedians of rounds; each round measures what memory and processor can do at most right before the model:\n\
         OF READ and OF PEAK are shares of that (PEAK: f32; products of small integers and of bf16 may pass it).\n",
    );
    for w in &r.warnings {
        let _ = writeln!(out, "Note: {w}");
    }
    out
}

fn load(r: &Report) -> String {
    let average = match r.load_average {
        Some([a, b, c]) => format!("{a:.2} {b:.2} {c:.2} when it began"),
        None => "unknown".into(),
    };
    match r.others_used_processors {
        Some(n) => format!("{average}; other programs took {n:.2} processors meanwhile"),
        None => average,
    }
}

fn memory(r: &Report) -> String {
    let m = &r.memory;
    let known = |n: Option<u64>| n.map_or_else(|| "unknown".into(), size);
    let made = match m.made_up_bytes {
        0 => String::new(),
        n => format!(" (of it {} the made-up checkpoint)", size(n)),
    };
    format!("{} opened, {} at most{made}", known(m.opened_bytes), known(m.peak_bytes))
}

fn head(out: &mut String, what: &str, step: &str) {
    let _ = writeln!(
        out,
        "\n{what:<13} {:>9} {:>9} {step:>10} {:>11} {:>8} {:>11} {:>8}",
        "TOK/S", "BEST", "WEIGHTS", "OF READ", "MULT-ADDS", "OF PEAK"
    );
}

fn row(out: &mut String, name: &str, s: &Speed) {
    let _ = writeln!(
        out,
        "  {name:<11} {:>9} {:>9} {:>10} {:>11} {:>8} {:>11} {:>8}",
        digits(s.tokens_per_second),
        digits(s.best_tokens_per_second),
        time(s.seconds.median),
        gigabytes(s.weight_bytes_per_second),
        percent(s.percent_of_read),
        format!("{}/s", large(s.multiply_adds_per_second)),
        percent(s.percent_of_multiply)
    );
}

fn context(out: &mut String, marks: &[Mark]) {
    let _ = writeln!(
        out,
        "\n{:<13} {:>9} {:>9} {:>10} {:>11} {:>8} {:>11}",
        "after", "TOK/S", "BEST", "A STEP", "MEMORY", "OF READ", "STATE"
    );
    for m in marks {
        let _ = writeln!(
            out,
            "  {:<11} {:>9} {:>9} {:>10} {:>11} {:>8} {:>11}",
            format!("{} tokens", m.context),
            digits(m.tokens_per_second),
            digits(1.0 / m.step_seconds.min),
            time(m.step_seconds.median),
            m.resident_bytes.map_or_else(|| "-".into(), size),
            percent(m.percent_of_read),
            size(m.state_bytes)
        );
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Three digits or so.
fn digits(x: f64) -> String {
    match x.abs() {
        a if a < 9.995 => format!("{x:.2}"),
        a if a < 99.95 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}

/// With a unit: `1.53 G`.
fn large(x: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (unit, name) = units.into_iter().find(|(unit, _)| x >= *unit).unwrap_or((1.0, ""));
    format!("{} {name}", digits(x / unit)).trim_end().to_owned()
}

fn percent(x: f64) -> String {
    if x < 9.95 { format!("{x:.1}%") } else { format!("{x:.0}%") }
}

fn gigabytes(x: f64) -> String {
    format!("{} GB/s", digits(x / 1e9))
}

/// Seconds for a person.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{} µs", digits(s * 1e6)),
        s if s < 1.0 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0.0, 9.994, 9.996, 99.96, 1234.5].map(digits), ["0.00", "9.99", "10.0", "100", "1234"]);
        assert_eq!([0.000_02, 0.0971, 12.0].map(time), ["20.0 µs", "97.1 ms", "12.0 s"]);
        assert_eq!([712.0, 712_704.0, 1.53e9].map(large), ["712", "713 k", "1.53 G"]);
        assert_eq!([4.96, 83.4, 101.0].map(percent), ["5.0%", "83%", "101%"]);
    }
}
