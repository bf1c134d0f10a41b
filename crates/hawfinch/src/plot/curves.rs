//! What is drawn of runs: smoothed training curves, validations, and for runs of one label their mean and spread.

use super::runs::{Run, X, Y};

/// A place in the plot; `y` may be NaN, where a curve is interrupted.
pub type Point = (f64, f64);
/// A place and the smallest and largest value there.
pub type Range = (f64, f64, f64);

/// Larger numbers are damage, not losses, and would leave no room for the others.
const LARGEST: f64 = 1e30;

/// What runs of one label give.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// The label.
    pub name: String,
    /// So many runs.
    pub runs: usize,
    /// Every step, where there is one run.
    pub raw: Vec<Point>,
    /// Steps, smoothed.
    pub steps: Vec<Point>,
    /// Their spread, where there are several runs.
    pub steps_range: Vec<Range>,
    /// Validations.
    pub evals: Vec<Point>,
    /// Their spread.
    pub evals_range: Vec<Range>,
    /// Some runs go on after the shortest, where the curve ends.
    pub cut: bool,
}

impl Curve {
    /// Whether there is nothing to see.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.evals.is_empty()
    }

    /// The last value of steps, smoothed.
    pub fn last_step(&self) -> Option<f64> {
        self.steps.last().map(|p| p.1)
    }

    /// The last validation.
    pub fn last_eval(&self) -> Option<f64> {
        self.evals.last().map(|p| p.1)
    }

    /// The best validation.
    pub fn best_eval(&self, y: Y) -> Option<f64> {
        best(y, self.evals.iter().map(|p| p.1))
    }
}

/// The best of some values.
pub fn best(y: Y, values: impl Iterator<Item = f64>) -> Option<f64> {
    let less = y.less_is_better()?;
    values.filter(|v| v.is_finite()).reduce(|a, b| if (b < a) == less { b } else { a })
}

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Along the horizontal axis.
    pub x: X,
    /// Along the vertical axis.
    pub y: Y,
    /// Whether the horizontal axis is logarithmic: it leaves out what is not above 0.
    pub log_x: bool,
    /// Steps that a smoothed value is the mean of.
    pub smooth: usize,
}

/// Steps to smooth over if nobody says: a hundredth of the longest run.
pub fn usual_smooth(runs: &[Run]) -> usize {
    let longest = runs.iter().map(|r| r.steps.len()).max().unwrap_or(0);
    (longest / 100).clamp(1, 1000)
}

/// The curves of runs, in their order: one a label, and one for each run without.
///
/// # Errors
/// Operations are to be counted, and a run does not know its model.
pub fn curves(runs: &[Run], view: View) -> anyhow::Result<Vec<Curve>> {
    let mut curves: Vec<(bool, Vec<Curve>)> = Vec::new();
    for run in runs {
        let curve = single(run, view)?;
        let same =
            |(labelled, all): &&mut (bool, Vec<Curve>)| run.labelled && *labelled && all[0].name == run.name;
        match curves.iter_mut().find(same) {
            Some((_, all)) => all.push(curve),
            None => curves.push((run.labelled, vec![curve])),
        }
    }
    Ok(curves.into_iter().map(|(_, all)| together(all)).collect())
}

/// The curve of a run.
fn single(run: &Run, view: View) -> anyhow::Result<Curve> {
    let flops = if view.x == X::Flops { run.flops_per_token()? } else { 0.0 };
    let shown = |x: f64| x.is_finite() && (!view.log_x || x > 0.0);
    let sound = |y: f64| if y.abs() <= LARGEST { y } else { f64::NAN };
    let steps =
        run.steps.iter().filter_map(|r| Some((run.x_of_step(view.x, r, flops), sound(view.y.of_step(r)?))));
    // Before the axis is cut: what lies left of it counts in means.
    let all: Vec<Point> = steps.collect();
    let smoothed = smooth(&all, view.smooth).into_iter().filter(|p| shown(p.0)).collect();
    let evals =
        run.evals.iter().filter_map(|r| Some((run.x_of_eval(view.x, r, flops), sound(view.y.of_eval(r)?))));
    Ok(Curve {
        name: run.name.clone(),
        runs: 1,
        raw: all.iter().copied().filter(|p| shown(p.0)).collect(),
        steps: smoothed,
        evals: evals.filter(|p| shown(p.0) && p.1.is_finite()).collect(),
        ..Curve::default()
    })
}

/// Means over `many` finite values around each, of which nothing lags behind. Near the beginning over fewer, as many
/// before as after: losses fall fast there. At the end over those there are.
fn smooth(points: &[Point], many: usize) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    if many <= 1 {
        return finite;
    }
    // Sums from the start, of differences to the first: little is lost where values are close to each other.
    let first = finite.first().map_or(0.0, |p| p.1);
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(finite.iter().scan(0.0, |sum, p| {
            *sum += p.1 - first;
            Some(*sum)
        }))
        .collect();
    let half = many / 2;
    let mean = |n: usize| {
        let reach = half.min(n);
        let (from, to) = (n - reach, (n + reach + 1).min(finite.len()));
        first + (sums[to] - sums[from]) / (to - from) as f64
    };
    finite.iter().enumerate().map(|(n, p)| (p.0, mean(n))).collect()
}

/// One curve of the curves of one label.
fn together(mut all: Vec<Curve>) -> Curve {
    if all.len() == 1 {
        return all.remove(0);
    }
    // A run without points has nothing to say of the others.
    let of = |f: fn(&Curve) -> &[Point]| -> Vec<&[Point]> {
        all.iter().map(f).filter(|points| !points.is_empty()).collect()
    };
    let (steps, steps_range) = spread(&of(|c| &c.steps));
    let (evals, evals_range) = spread(&of(|c| &c.evals));
    let end = |points: &[Point]| points.last().map_or(f64::NEG_INFINITY, |p| p.0);
    let longest = all.iter().map(|c| end(&c.steps)).fold(f64::NEG_INFINITY, f64::max);
    let cut = end(&steps) < longest - 0.01 * longest.abs();
    Curve {
        name: all[0].name.clone(),
        runs: all.len(),
        raw: Vec::new(),
        steps,
        steps_range,
        evals,
        evals_range,
        cut,
    }
}

/// Mean and range at the places of the first, as far as all reach.
fn spread(all: &[&[Point]]) -> (Vec<Point>, Vec<Range>) {
    let Some(first) = all.first() else { return Default::default() };
    let points = first.iter().filter_map(|&(x, _)| {
        let values: Vec<f64> = all.iter().map(|points| at(points, x)).collect::<Option<_>>()?;
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(((x, mean), (x, low, high)))
    });
    points.unzip()
}

/// The value of a curve at a place; that of an end up to half a piece outside (steps of runs end at other times), nothing
/// farther out. The places go up.
fn at(points: &[Point], x: f64) -> Option<f64> {
    let after = points.partition_point(|p| p.0 < x);
    let outside = |end: &Point, inner: Option<&Point>| {
        let reach = inner.map_or(0.0, |inner| (inner.0 - end.0).abs() / 2.0);
        ((end.0 - x).abs() <= reach).then_some(end.1)
    };
    match (points[..after].last(), points.get(after)) {
        (_, Some(next)) if next.0 == x => Some(next.1),
        (Some(before), Some(next)) => {
            Some(before.1 + (next.1 - before.1) * (x - before.0) / (next.0 - before.0))
        }
        (None, Some(first)) => outside(first, points.get(1)),
        (Some(last), None) => outside(last, after.checked_sub(2).and_then(|n| points.get(n))),
        (None, None) => None,
    }
}

/// Where the vertical axis begins and ends; `None` where nothing is finite.
///
/// Losses begin so high that the rest would be a line at the bottom: what comes before a fiftieth of the axis is left out
/// if it takes much room, and so are the outermost of single steps.
pub fn height(curves: &[Curve], view: View, (low_x, high_x): (f64, f64)) -> Option<(f64, f64)> {
    let later = low_x + (high_x - low_x) / 50.0;
    let ends = |from: f64| {
        let mut values: Vec<f64> = Vec::new();
        for c in curves {
            values.extend(c.steps.iter().chain(&c.evals).filter(|p| p.0 >= from).map(|p| p.1));
            let ranges = c.steps_range.iter().chain(&c.evals_range).filter(|p| p.0 >= from);
            values.extend(ranges.flat_map(|p| [p.1, p.2]));
            let finite = c.raw.iter().filter(|p| p.0 >= from && p.1.is_finite());
            let mut raw: Vec<f64> = finite.map(|p| p.1).collect();
            raw.sort_by(f64::total_cmp);
            let outer = raw.len() / 200;
            values.extend(raw.get(outer).into_iter().chain(raw.get(raw.len().wrapping_sub(1 + outer))));
        }
        let span = values.into_iter().map(|v| (v, v));
        span.reduce(|(low, high), (l, h)| (low.min(l), high.max(h)))
    };
    let all = ends(f64::NEG_INFINITY)?;
    let falls = matches!(view.y, Y::Loss | Y::BitsPerByte | Y::GradNorm) && !view.log_x;
    match ends(later) {
        Some(rest) if falls && all.1 - all.0 > 1.6 * (rest.1 - rest.0) && rest.1 > rest.0 => Some(rest),
        _ => Some(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_train::metrics::{Eval, Train};

    fn run(name: &str, losses: &[f64]) -> Run {
        let step = |n: usize, loss: f64| Train {
            step: n as u64 + 1,
            tokens: 10 * (n as u64 + 1),
            loss,
            lr: 0.1,
            weight_decay: 0.0,
            grad_norm: 1.0,
            seconds: 2.0 * (n as f64 + 1.0),
            tokens_per_second: 5.0,
            skipped: false,
            communication: None,
        };
        let steps = losses.iter().enumerate().map(|(n, l)| step(n, *l)).collect();
        let eval = |step: u64| Eval { step, tokens: 10 * step, loss: step as f64, ..Eval::default() };
        Run { name: name.into(), labelled: true, folder: ".".into(), steps, evals: vec![eval(0), eval(2)] }
    }

    const VIEW: View = View { x: X::Tokens, y: Y::Loss, log_x: false, smooth: 1 };

    #[test]
    fn means_do_not_lag() {
        let line: Vec<Point> = (0..20).map(|n| (f64::from(n), 3.0 * f64::from(n))).collect();
        for many in [1, 2, 5, 8] {
            let smoothed = smooth(&line, many);
            // A line stays what it is but for the end, where nothing comes after.
            for (n, p) in smoothed[..20 - many].iter().enumerate() {
                assert!((p.1 - line[n].1).abs() < 1e-9, "{many}: {p:?}");
            }
        }
        assert_eq!(smooth(&line, 5)[19].1, 3.0 * 18.0);
        let gaps = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)];
        assert_eq!(smooth(&gaps, 3), [(0.0, 1.0), (2.0, 2.0)]);
        assert_eq!(smooth(&[], 9), []);
    }

    #[test]
    fn places_are_as_asked() {
        let one = [run("a", &[4.0, f64::INFINITY, 2.0])];
        let curve = |x: X, log_x: bool| curves(&one, View { x, log_x, ..VIEW }).unwrap().remove(0);
        let tokens = curve(X::Tokens, false);
        assert!(tokens.raw[1].1.is_nan());
        assert_eq!(tokens.steps, [(10.0, 4.0), (30.0, 2.0)]);
        assert_eq!(tokens.evals, [(0.0, 0.0), (20.0, 2.0)]);
        assert_eq!(curve(X::Time, false).evals, [(0.0, 0.0), (4.0, 2.0)]);
        // Nothing is at zero by the logarithm.
        assert_eq!(curve(X::Steps, true).evals, [(2.0, 2.0)]);
        assert_eq!(
            (tokens.last_step(), tokens.last_eval(), tokens.best_eval(Y::Loss)),
            (Some(2.0), Some(2.0), Some(0.0))
        );
        assert_eq!(best(Y::Probe, [0.1, 0.4, f64::NAN, 0.2].into_iter()), Some(0.4));
    }

    #[test]
    fn seeds_are_one_curve_as_far_as_all_reach() {
        let runs =
            [run("a", &[4.0, 3.0, 2.0, 1.0]), run("b", &[9.0]), run("a", &[6.0, 5.0, 1.0]), run("a", &[])];
        let found = curves(&runs, VIEW).unwrap();
        assert_eq!(found.iter().map(|c| (&*c.name, c.runs)).collect::<Vec<_>>(), [("a", 3), ("b", 1)]);
        assert_eq!(found[0].steps, [(10.0, 5.0), (20.0, 4.0), (30.0, 1.5)]);
        assert_eq!(found[0].steps_range, [(10.0, 4.0, 6.0), (20.0, 3.0, 5.0), (30.0, 1.0, 2.0)]);
        assert!(found[0].cut && found[0].raw.is_empty() && !found[1].cut);
        // Between two places by a straight line.
        assert_eq!(at(&[(0.0, 1.0), (4.0, 3.0)], 1.0), Some(1.5));
        for (x, y) in [(-3.0, None), (-2.0, Some(1.0)), (0.0, Some(1.0)), (6.0, Some(3.0)), (7.0, None)] {
            assert_eq!(at(&[(0.0, 1.0), (4.0, 3.0)], x), y);
        }
        assert_eq!((at(&[(1.0, 2.0)], 1.0), at(&[(1.0, 2.0)], 1.5)), (Some(2.0), None));
    }

    #[test]
    fn the_axis_leaves_the_fall_out() {
        let mut losses: Vec<f64> = (0..500).map(|n| 3.0 - f64::from(n) / 500.0).collect();
        losses[0] = 11.0;
        let mut found = run("a", &losses);
        found.evals.clear();
        let found = curves(&[found], VIEW).unwrap();
        let (low, high) = height(&found, VIEW, (10.0, 5000.0)).unwrap();
        assert!(low < 2.1 && (2.9..3.0).contains(&high), "{low} {high}");
        let log = View { log_x: true, ..VIEW };
        assert_eq!(height(&found, log, (10.0, 5000.0)).unwrap().1, 11.0);
        assert_eq!(height(&[], VIEW, (0.0, 1.0)), None);
    }
}
