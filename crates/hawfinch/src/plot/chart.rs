//! The picture of curves: title, legend with last values, axes, bands, lines, marks.
//!
//! Places and sizes are in pixels and made fine where they are drawn. Curves differ in colour (palette of Okabe and Ito,
//! which colour-blind people can tell apart) and in the shape of their marks, so that they differ in grey too.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Polygon, Rectangle};
use plotters::prelude::{BLACK, Color, DrawingArea, DrawingBackend, IntoTextStyle, RGBColor, WHITE};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{Axis, Style};
use super::canvas::{Drawing, Drawn, FINE};
use super::curves::{self, Curve, Point, View};
use super::runs::{X, Y};

/// In the order of curves; black comes last.
const COLORS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];
/// Shapes of marks: polygons about the middle, in parts of their radius; none is a circle. As many as share no factor with
/// the number of colours.
const SHAPES: [&[(f64, f64)]; 6] = [
    &[],
    &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
    &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
    &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    &[(-0.45, -1.2), (0.45, -1.2), (0.45, 1.2), (-0.45, 1.2)],
];
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

const WIDTH: i32 = 1200;
const MARGIN: i32 = 30;
const LETTERS: i32 = 20;
const TITLE: i32 = 30;
/// Where the legend begins, and its rows.
const LEGEND: i32 = 84;
const ROW: i32 = 27;
/// Where the legend's columns of numbers end.
const COLUMNS: [i32; 3] = [850, 1010, WIDTH - MARGIN];
/// The frame of the curves: its place from left and right, its height, and what lies above and below it.
const LEFT: i32 = 120;
const RIGHT: i32 = WIDTH - MARGIN;
const TALL: i32 = 580;
const ABOVE: i32 = 58;
const BELOW: i32 = 84;
/// Pixels from a mark to the next at least, and the size of one.
const APART: f64 = 14.0;
const MARK: f64 = 5.0;
/// Steps a column of pixels from which they are drawn as an area.
const DENSE: usize = 3;
/// Widths of lines in pixels.
const RAW: f64 = 0.7;
const STEPS: f64 = 1.4;
const EVALS: f64 = 2.4;
/// Pixels that a letter takes at most: those of PNG are all alike.
const LETTER: [(i32, f64); 2] = [(LETTERS, 11.1), (TITLE, 17.8)];

/// A plot of curves.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Stands above all.
    pub title: String,
    /// At least one, of which one is not empty.
    pub curves: Vec<Curve>,
    /// What they show.
    pub view: View,
}

impl Chart {
    /// Width and height in pixels: taller with more curves, for none lies under the legend.
    pub fn size(&self) -> (u32, u32) {
        (WIDTH as u32, (self.top() + TALL + BELOW) as u32)
    }

    /// The upper end of the frame.
    fn top(&self) -> i32 {
        LEGEND + ROW * (1 + self.curves.len() as i32) + ABOVE
    }

    /// What the lines are.
    fn explained(&self) -> String {
        let mut parts = Vec::new();
        let any = |f: fn(&Curve) -> bool| self.curves.iter().any(f);
        if any(|c| !c.steps.is_empty()) {
            parts.push(match (self.view.smooth, any(|c| !c.raw.is_empty())) {
                (..=1, _) => "thin: training".to_owned(),
                (n, true) => format!("thin: training, mean of {n} steps (faint: each step)"),
                (n, false) => format!("thin: training, mean of {n} steps"),
            });
        }
        if any(|c| !c.evals.is_empty()) {
            parts.push("marked: validation".into());
        }
        if any(|c| c.runs > 1) {
            parts.push("band: smallest to largest of the runs".into());
        }
        parts.join("; ")
    }

    /// The numbers of a row of the legend.
    fn numbers(&self, curve: &Curve) -> [Option<f64>; 3] {
        [curve.last_step(), curve.last_eval(), curve.best_eval(self.view.y)]
    }

    /// Both axes; `None` where nothing can be seen.
    fn axes(&self) -> Option<(Axis, String, Axis)> {
        let points = self.curves.iter().flat_map(|c| c.steps.iter().chain(&c.evals).chain(&c.raw));
        let mut xs = points.map(|p| (p.0, p.0)).reduce(|(a, b), (c, d)| (a.min(c), b.max(d)))?;
        if !self.view.log_x {
            // Every run begins there.
            xs.0 = xs.0.min(0.0);
        }
        let (low, high) = curves::height(&self.curves, self.view, xs)?;
        let (words, unit, style) = words(self.view.x, xs.1);
        let mut x = Axis::new(xs.0 / unit, xs.1 / unit, self.view.log_x, style, 9);
        (x.low, x.high) = (x.low * unit, x.high * unit);
        x.ticks.iter_mut().for_each(|t| t.0 *= unit);
        // Some room, but none below zero where nothing is.
        let pad = 0.04 * (high - low);
        let bottom = if low >= 0.0 { (low - pad).max(0.0) } else { low - pad };
        Some((x, words, Axis::new(bottom, high + pad, false, Style::Number, 8)))
    }
}

/// What is written below the horizontal axis, the size of its unit and how its numbers are written.
fn words(x: X, longest: f64) -> (String, f64, Style) {
    let unit = |units: &[(f64, &'static str)]| {
        *units.iter().rev().find(|(unit, _)| longest >= *unit).unwrap_or(&units[0])
    };
    match x {
        X::Tokens => ("tokens".into(), 1.0, Style::Count),
        X::Steps => ("steps".into(), 1.0, Style::Count),
        X::Time => {
            let (unit, name) =
                unit(&[(1.0, "seconds"), (180.0, "minutes"), (10_800.0, "hours"), (259_200.0, "days")]);
            let one = if unit == 1.0 { 1.0 } else { unit / 3.0 };
            (format!("{name} of training"), one, Style::Number)
        }
        X::Flops => {
            let (unit, name) = unit(&[
                (1.0, "FLOP"),
                (1e6, "MFLOP"),
                (1e9, "GFLOP"),
                (1e12, "TFLOP"),
                (1e15, "PFLOP"),
                (1e18, "EFLOP"),
                (1e21, "ZFLOP"),
            ]);
            (format!("computing spent in training, {name}"), unit, Style::Number)
        }
    }
}

/// A number of the legend.
pub fn shown(value: f64, y: Y) -> String {
    match y {
        Y::Loss | Y::BitsPerByte | Y::GradNorm => format!("{value:.4}"),
        Y::Probe => format!("{:.1}%", 100.0 * value),
        Y::Lr => format!("{value:.2e}"),
        Y::Speed => format!("{value:.0}"),
    }
}

/// Cuts a text to so many pixels.
fn fit(text: &str, pixels: i32, size: i32) -> String {
    let letter = LETTER.iter().find(|l| l.0 == size).map_or(f64::from(size), |l| l.1);
    let most = (f64::from(pixels) / letter) as usize;
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(3)).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

fn fine(pixels: f64) -> i32 {
    (pixels * f64::from(FINE)).round() as i32
}

/// What draws, and the frame it draws in.
struct Pen<'a, B: DrawingBackend> {
    root: &'a DrawingArea<B, Shift>,
    x: &'a Axis,
    y: &'a Axis,
    /// Upper and lower end of the frame, pixels.
    rows: Range<f64>,
}

fn write<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    text: &str,
    size: i32,
    (x, y): (i32, i32),
    (across, down): (HPos, VPos),
    color: RGBColor,
) -> Drawn<B> {
    let style = ("sans-serif", size * FINE).into_text_style(root);
    root.draw_text(text, &style.color(&color).pos(Pos::new(across, down)), (x * FINE, y * FINE))
}

impl<B: DrawingBackend> Pen<'_, B> {
    /// Where a point lies, pixels.
    fn place(&self, p: &Point) -> Point {
        let (x, y) = (self.x.share(p.0), self.y.share(p.1));
        let height = self.rows.end - self.rows.start;
        (f64::from(LEFT) + x * f64::from(RIGHT - LEFT), self.rows.end - y * height)
    }

    fn path(&self, points: &[Point], color: &impl Color, width: f64) -> Drawn<B> {
        let points: Vec<(i32, i32)> = points.iter().map(|p| (fine(p.0), fine(p.1))).collect();
        if points.len() < 2 {
            return Ok(());
        }
        self.root.draw(&PathElement::new(points, color.stroke_width(fine(width) as u32)))
    }

    /// A line through points as far as it lies in the frame; NaN interrupts it.
    fn line(&self, points: &[Point], color: &impl Color, width: f64) -> Drawn<B> {
        let places: Vec<Point> = points.iter().map(|p| self.place(p)).collect();
        for piece in places.split(|p| !p.1.is_finite()) {
            for piece in within(&thin(piece), &self.rows) {
                self.path(&piece, color, width)?;
            }
        }
        Ok(())
    }

    /// How many points at the beginning lie above the frame: a line from them would lead through nothing that was measured.
    fn above(&self, points: &[Point]) -> usize {
        points.iter().take_while(|p| self.place(p).1 < self.rows.start).count()
    }

    /// Single steps, faint: a line, or an area where several share a column of pixels.
    fn raw(&self, points: &[Point], color: RGBColor) -> Drawn<B> {
        if self.x.log || points.len() < DENSE * (RIGHT - LEFT) as usize {
            return self.line(points, &color.mix(0.25), RAW);
        }
        let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
        let columns = finite.chunk_by(|a, b| self.place(a).0.floor() == self.place(b).0.floor());
        let range: Vec<curves::Range> = columns
            .map(|c| c.iter().fold((c[0].0, f64::MAX, f64::MIN), |r, p| (r.0, r.1.min(p.1), r.2.max(p.1))))
            .collect();
        self.band(&range, &color.mix(0.2))
    }

    /// From the smallest to the largest.
    fn band(&self, range: &[curves::Range], color: &impl Color) -> Drawn<B> {
        let side = |f: fn(&curves::Range) -> f64| -> Vec<Point> {
            let places: Vec<Point> = range.iter().map(|r| self.place(&(r.0, f(r)))).collect();
            let inside = |p: &Point| (p.0, p.1.clamp(self.rows.start, self.rows.end));
            thin(&places).iter().map(inside).collect()
        };
        let around = side(|r| r.2).into_iter().chain(side(|r| r.1).into_iter().rev());
        let around: Vec<(i32, i32)> = around.map(|p| (fine(p.0), fine(p.1))).collect();
        if range.len() < 2 {
            return Ok(());
        }
        self.root.draw(&Polygon::new(around, color.filled()))
    }

    /// Marks at points, as many as there is room for, the last in any case.
    fn marks(&self, points: &[Point], number: usize, color: RGBColor) -> Drawn<B> {
        let mut free = f64::INFINITY;
        for p in points.iter().rev().map(|p| self.place(p)) {
            if p.0 <= free && p.1 >= self.rows.start && p.1 <= self.rows.end {
                mark(self.root, p, number, color)?;
                free = p.0 - APART;
            }
        }
        Ok(())
    }
}

/// A mark with a white edge, for lines of others to end at.
fn mark<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    at: Point,
    number: usize,
    color: RGBColor,
) -> Drawn<B> {
    for (size, color) in [(MARK + 1.2, WHITE), (MARK, color)] {
        let middle = (fine(at.0), fine(at.1));
        match SHAPES[number % SHAPES.len()] {
            [] => root.draw(&Circle::new(middle, fine(size), color.filled()))?,
            shape => {
                let corners = shape.iter().map(|(x, y)| (fine(at.0 + x * size), fine(at.1 + y * size)));
                root.draw(&Polygon::new(corners.collect::<Vec<_>>(), color.filled()))?;
            }
        }
    }
    Ok(())
}

/// At most four points a column of pixels, which look as all of them: the first, the lowest, the highest, the last.
fn thin(points: &[Point]) -> Vec<Point> {
    let mut out: Vec<Point> = Vec::new();
    for column in points.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        let by_height = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let [first, .., last] = column else {
            out.extend(column);
            continue;
        };
        let mut kept =
            [Some(first), column.iter().min_by(by_height), column.iter().max_by(by_height), Some(last)];
        // In their order, which is that of their addresses.
        kept.sort_by_key(|p| p.map(|p| p as *const Point as usize));
        let kept = kept.iter().flatten();
        kept.for_each(|p| out.extend((out.last() != Some(*p)).then_some(**p)));
    }
    out
}

/// The pieces of a line that lie between two rows.
fn within(points: &[Point], rows: &Range<f64>) -> Vec<Vec<Point>> {
    let inside = |p: &Point| p.1 >= rows.start && p.1 <= rows.end;
    // Where the line from `a` to `b` meets a row.
    let meets = |a: &Point, b: &Point, row: f64| (a.0 + (b.0 - a.0) * (row - a.1) / (b.1 - a.1), row);
    let mut pieces: Vec<Vec<Point>> = vec![Vec::new()];
    let mut add = |p: Point, ends: bool| {
        if let Some(piece) = pieces.last_mut() {
            piece.push(p);
        }
        if ends {
            pieces.push(Vec::new());
        }
    };
    if let Some(first) = points.first().filter(|p| inside(p)) {
        add(*first, false);
    }
    for pair in points.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        let edge = |out: &Point| if out.1 < rows.start { rows.start } else { rows.end };
        match (inside(a), inside(b)) {
            (true, true) => add(*b, false),
            (true, false) => add(meets(a, b, edge(b)), true),
            (false, true) => {
                add(meets(a, b, edge(a)), false);
                add(*b, false);
            }
            // From above to below, or outside all along.
            (false, false) if edge(a) != edge(b) => {
                add(meets(a, b, edge(a)), false);
                add(meets(a, b, edge(b)), true);
            }
            (false, false) => {}
        }
    }
    pieces.retain(|p| p.len() > 1);
    pieces
}

impl Drawing for Chart {
    fn on<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>) -> Drawn<B> {
        root.fill(&WHITE)?;
        let grey = RGBColor(0x55, 0x55, 0x55);
        let room = WIDTH - 2 * MARGIN;
        let top_left = (HPos::Left, VPos::Top);
        write(root, &fit(&self.title, room, TITLE), TITLE, (MARGIN, 14), top_left, BLACK)?;
        write(root, &fit(&self.explained(), room, LETTERS), LETTERS, (MARGIN, 52), top_left, grey)?;
        self.legend(root, grey)?;
        let Some((x, words, y)) = self.axes() else { return Ok(()) };
        let top = self.top();
        let pen = Pen { root, x: &x, y: &y, rows: f64::from(top)..f64::from(top + TALL) };
        let bottom = top + TALL;

        write(root, self.view.y.words(), LETTERS, (MARGIN, top - 34), top_left, BLACK)?;
        for (value, label) in &y.ticks {
            let row = pen.place(&(x.low, *value)).1;
            pen.path(&[(f64::from(LEFT), row), (f64::from(RIGHT), row)], &GRID, 1.0)?;
            let at = (LEFT - 12, row.round() as i32);
            write(root, label, LETTERS, at, (HPos::Right, VPos::Center), BLACK)?;
        }
        for (value, label) in &x.ticks {
            let column = pen.place(&(*value, y.low)).0;
            pen.path(&[(column, pen.rows.start), (column, pen.rows.end)], &GRID, 1.0)?;
            pen.path(&[(column, pen.rows.end), (column, pen.rows.end + 6.0)], &BLACK, 1.0)?;
            let at = (column.round() as i32, bottom + 10);
            write(root, label, LETTERS, at, (HPos::Center, VPos::Top), BLACK)?;
        }
        let middle = (HPos::Center, VPos::Top);
        write(root, &words, LETTERS, ((LEFT + RIGHT) / 2, bottom + 42), middle, BLACK)?;

        let colored = || self.curves.iter().enumerate().map(|(n, c)| (n, COLORS[n % COLORS.len()], c));
        for (_, color, curve) in colored() {
            pen.band(&curve.steps_range, &color.mix(0.2))?;
            let unseen = pen.above(&curve.evals).min(curve.evals_range.len());
            pen.band(&curve.evals_range[unseen..], &color.mix(0.2))?;
        }
        if self.view.smooth > 1 {
            for (_, color, curve) in colored() {
                pen.raw(&curve.raw, color)?;
            }
        }
        for (_, color, curve) in colored() {
            pen.line(&curve.steps, &color, STEPS)?;
        }
        for (n, color, curve) in colored() {
            let evals = &curve.evals[pen.above(&curve.evals)..];
            pen.line(evals, &color, EVALS)?;
            // Without validations, one mark at the end tells whose line it is.
            let end = &curve.steps[curve.steps.len().saturating_sub(1)..];
            let marked = if curve.evals.is_empty() { end } else { evals };
            pen.marks(marked, n, color)?;
        }
        let (left, right) = (f64::from(LEFT), f64::from(RIGHT));
        pen.path(&[(left, pen.rows.start), (left, pen.rows.end), (right, pen.rows.end)], &BLACK, 1.0)
    }
}

impl Chart {
    /// One row a curve: its mark, its name, its last values.
    fn legend<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>, grey: RGBColor) -> Drawn<B> {
        let right = (HPos::Right, VPos::Center);
        let names = ["training", "validation", "best"];
        let used: Vec<bool> =
            (0..3).map(|n| self.curves.iter().any(|c| self.numbers(c)[n].is_some())).collect();
        let middle = |row: usize| LEGEND + ROW * row as i32 + ROW / 2 + 4;
        for (n, name) in names.iter().enumerate().filter(|(n, _)| used[*n]) {
            write(root, name, LETTERS, (COLUMNS[n], middle(0)), right, grey)?;
        }
        for (n, curve) in self.curves.iter().enumerate() {
            let (row, color) = (middle(n + 1), COLORS[n % COLORS.len()]);
            let ends = [(MARGIN * FINE, row * FINE), ((MARGIN + 50) * FINE, row * FINE)];
            if curve.runs > 1 {
                let corners = [(ends[0].0, ends[0].1 - 8 * FINE), (ends[1].0, ends[1].1 + 8 * FINE)];
                root.draw(&Rectangle::new(corners, color.mix(0.2).filled()))?;
            }
            let width = if curve.evals.is_empty() { STEPS } else { EVALS };
            root.draw(&PathElement::new(ends.to_vec(), color.stroke_width(fine(width) as u32)))?;
            mark(root, (f64::from(MARGIN + 25), f64::from(row)), n, color)?;
            let runs = if curve.runs > 1 { format!(" ({} runs)", curve.runs) } else { String::new() };
            let room = COLUMNS[0] - 110 - MARGIN - 70 - (runs.len() as f64 * 11.1) as i32;
            let name = fit(&curve.name, room, LETTERS) + &runs;
            let at = (MARGIN + 66, row);
            write(root, &name, LETTERS, at, (HPos::Left, VPos::Center), BLACK)?;
            for (column, value) in COLUMNS.iter().zip(self.numbers(curve)) {
                if let Some(value) = value {
                    let text = shown(value, self.view.y);
                    write(root, &text, LETTERS, (*column, row), right, BLACK)?;
                }
            }
        }
        Ok(())
    }
}
