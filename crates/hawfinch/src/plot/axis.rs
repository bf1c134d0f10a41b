//! Axes with round numbers.

/// How numbers of an axis are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// With `k`, `M`, `B` and `T`: tokens, steps.
    Count,
    /// As they are, or with a power of ten where they are small or large.
    Number,
}

/// An axis from `low` to `high`, which are finite and differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Its beginning.
    pub low: f64,
    /// Its end.
    pub high: f64,
    /// By the logarithm; both ends are above 0 then.
    pub log: bool,
    /// Values that have a label.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Over these values, which are finite. `many`: how many labels there is room for.
    pub fn new(low: f64, high: f64, log: bool, style: Style, many: usize) -> Axis {
        let (low, high) = apart(low, high, log);
        let ticks = if log { logarithmic(low, high, many) } else { linear(low, high, many) };
        let largest = ticks.iter().fold(0.0f64, |m, t| m.max(t.abs()));
        let labels = ticks.iter().enumerate().map(|(n, &tick)| {
            let beside = ticks[n.saturating_sub(1)..].iter().take(3).filter(|t| **t != tick);
            let step = beside.fold(high - low, |least, t| least.min((t - tick).abs()));
            if log {
                text(tick, tick, step.min(tick), style, true)
            } else {
                text(tick, largest, step, style, false)
            }
        });
        let ticks = ticks.iter().copied().zip(labels.collect::<Vec<_>>()).collect();
        Axis { low, high, log, ticks }
    }

    /// Where a value lies, 0 at the beginning and 1 at the end.
    pub fn share(&self, value: f64) -> f64 {
        match self.log {
            true => (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10()),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

/// The ends, moved apart where they are one.
fn apart(low: f64, high: f64, log: bool) -> (f64, f64) {
    let enough = 1e-9 * low.abs().max(high.abs()).max(1e-30);
    match (high - low > enough, log) {
        (true, _) => (low, high),
        (false, true) => (low / 2.0, low * 2.0),
        (false, false) if low == 0.0 => (0.0, 1.0),
        (false, false) => (low - 0.1 * low.abs(), low + 0.1 * low.abs()),
    }
}

/// The step of 1, 2 or 5 times a power of ten that gives at most so many ticks.
fn round_step(span: f64, many: usize) -> f64 {
    let least = span / many.max(1) as f64;
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

fn linear(low: f64, high: f64, many: usize) -> Vec<f64> {
    let step = round_step(high - low, many);
    let first = (low / step - 1e-6).ceil();
    let last = (high / step + 1e-6).floor();
    // As many as there is room for, and one.
    (0..=many).map(|n| first + n as f64).take_while(|n| *n <= last).map(|n| n * step).collect()
}

fn logarithmic(low: f64, high: f64, many: usize) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within = |value: &f64| *value >= low * (1.0 - 1e-9) && *value <= high * (1.0 + 1e-9);
    let decades = |factors: &[f64], every: i32| -> Vec<f64> {
        let powers = (first..=last).filter(|p| p.rem_euclid(every) == 0);
        powers.flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p))).filter(within).collect()
    };
    let tries = [(&[1.0, 2.0, 5.0][..], 1), (&[1.0, 3.0], 1), (&[1.0], 1), (&[1.0], 2), (&[1.0], 5)];
    let all: Vec<Vec<f64>> = tries.iter().map(|(factors, every)| decades(factors, *every)).collect();
    match all.into_iter().find(|t| t.len() <= many) {
        Some(ticks) if ticks.len() >= 3 => ticks,
        // Less than a decade: round numbers, though not evenly apart.
        _ if high / low < 10.0 => linear(low, high, many),
        Some(ticks) => ticks,
        None => decades(&[1.0], (last - first) / many.max(1) as i32 + 1),
    }
}

/// A number beside others up to `largest`, told to the precision of `step`; `short`: without zeros at its end.
fn text(value: f64, largest: f64, step: f64, style: Style, short: bool) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    let unit = units.into_iter().find(|(unit, _)| largest >= *unit);
    match (style, unit) {
        (Style::Count, Some((unit, name))) if largest < 1e16 => {
            format!("{}{name}", plain(value / unit, step / unit, short))
        }
        _ if (1e-3..1e5).contains(&largest) => plain(value, step, short),
        _ => {
            let power = value.abs().log10().floor();
            let unit = 10f64.powf(power);
            format!("{}e{power}", plain(value / unit, step / unit, short))
        }
    }
}

/// With as many decimals as the step has.
fn plain(value: f64, step: f64, short: bool) -> String {
    // Less than the smallest digit is a rounding.
    let decimals = (-(step.log10() + 1e-6).floor()).clamp(0.0, 6.0) as usize;
    let shown = format!("{value:.decimals$}");
    match short && shown.contains('.') {
        true => shown.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, log: bool, style: Style) -> Vec<String> {
        Axis::new(low, high, log, style, 8).ticks.into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round() {
        use Style::{Count, Number};
        assert_eq!(
            labels(0.0, 1.49e9, false, Count),
            ["0", "0.2B", "0.4B", "0.6B", "0.8B", "1.0B", "1.2B", "1.4B"]
        );
        assert_eq!(labels(1.0, 12.0, false, Count), ["2", "4", "6", "8", "10", "12"]);
        assert_eq!(labels(512.0, 6144.0, false, Count), ["1k", "2k", "3k", "4k", "5k", "6k"]);
        assert_eq!(labels(2.31, 2.62, false, Number), ["2.35", "2.40", "2.45", "2.50", "2.55", "2.60"]);
        assert_eq!(labels(0.0, 6e-4, false, Number), ["0", "1e-4", "2e-4", "3e-4", "4e-4", "5e-4", "6e-4"]);
        assert_eq!(labels(500.0, 2e6, true, Count), ["1k", "3k", "10k", "30k", "100k", "300k", "1M"]);
        assert_eq!(labels(1.0, 1e9, true, Count), ["1", "100", "10k", "1M", "100M"]);
        assert_eq!(labels(300.0, 900.0, true, Count), ["300", "400", "500", "600", "700", "800", "900"]);
        assert_eq!(labels(1.0, 100.0, true, Number), ["1", "2", "5", "10", "20", "50", "100"]);
    }

    #[test]
    fn any_ends_give_an_axis() {
        let ends = [0.0, 1e-300, 1e-12, 0.1, 1.0, 3.0, 1e5, 1e15, 1e18, 1e30];
        for low in ends {
            for high in ends.into_iter().filter(|h| *h >= low) {
                for log in [false, true] {
                    if log && low == 0.0 {
                        continue;
                    }
                    let axis = Axis::new(low, high, log, Style::Count, 7);
                    assert!(axis.low < axis.high && axis.ticks.len() <= 8, "{low} to {high}: {axis:?}");
                    let (first, last) = (axis.share(axis.low), axis.share(axis.high));
                    assert!(
                        first.abs() < 1e-9 && (last - 1.0).abs() < 1e-9,
                        "{low} to {high}: {first} {last}"
                    );
                    let inside = axis.ticks.iter().all(|t| (-1e-3..1.001).contains(&axis.share(t.0)));
                    assert!(inside, "{low} to {high}: {axis:?}");
                }
            }
        }
    }
}
