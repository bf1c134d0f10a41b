//! The plot of `bench`: decode speed and memory against the length of the text.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::Report;
use crate::output::size;
use crate::plot::canvas::{Drawing, Drawn, FINE};

/// Width and height in pixels.
pub const SIZE: (u32, u32) = (1200, 900);
const LETTERS: (&str, i32) = ("sans-serif", 22 * FINE);
const TITLE: (&str, i32) = ("sans-serif", 30 * FINE);
const SPEED: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const MEMORY: RGBColor = RGBColor(0xb5, 0x46, 0x1f);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);

impl Drawing for Report {
    fn on<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>) -> Drawn<B> {
        all(root, self)
    }
}

fn all<B: DrawingBackend>(root: &DrawingArea<B, Shift>, r: &Report) -> Drawn<B> {
    root.fill(&WHITE)?;
    let m = &r.model;
    root.draw_text(
        &format!("{}, {}", m.name, m.weights),
        &TITLE.into_text_style(root),
        (30 * FINE, 16 * FINE),
    )?;
    let machine = format!(
        "hawfinch {}, {}, {} threads, {}; a token reads {} of weights",
        r.hawfinch,
        r.cpu.name.as_deref().unwrap_or("unknown processor"),
        r.threads,
        r.isa,
        size(m.weight_bytes_per_token)
    );
    root.draw_text(&machine, &LETTERS.into_text_style(root).color(&BLACK.mix(0.7)), (30 * FINE, 54 * FINE))?;
    let (_, rest) = root.split_vertically(90 * FINE);
    let (upper, lower) = rest.split_vertically((SIZE.1 as i32 - 90) / 2 * FINE);
    let points = |y: &dyn Fn(&super::report::Mark) -> f64| -> Vec<(f64, f64)> {
        r.context.iter().map(|m| ((m.context as f64).log2(), y(m))).collect()
    };
    let speeds = points(&|m| m.tokens_per_second);
    panel(&upper, "decoding, tokens a second", &speeds, SPEED, &|y| match y {
        y if y < 10.0 => format!("{y:.1}"),
        y => format!("{y:.0}"),
    })?;
    let (words, memory) = match r.context.iter().all(|m| m.resident_bytes.is_some()) {
        true => ("memory of the program", points(&|m| m.resident_bytes.unwrap_or(0) as f64)),
        false => ("memory of the state", points(&|m| m.state_bytes as f64)),
    };
    panel(&lower, &format!("{words}, by tokens read before"), &memory, MEMORY, &|y| size(y as u64))
}

/// One line over the length of the text (as its logarithm to base 2), from zero up.
fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    caption: &str,
    points: &[(f64, f64)],
    color: RGBColor,
    label: &dyn Fn(f64) -> String,
) -> Drawn<B> {
    let first = points.first().map_or(0.0, |p| p.0.floor());
    let last = points.last().map_or(1.0, |p| p.0.ceil()).max(first + 1.0);
    let top = points.iter().fold(0.0, |top: f64, p| top.max(p.1)) * 1.3;
    let top = if top > 0.0 { top } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(caption, LETTERS)
        .margin(20 * FINE)
        .margin_right(50 * FINE)
        .x_label_area_size(40 * FINE)
        .y_label_area_size(130 * FINE)
        .build_cartesian_2d(first..last, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(FINE as u32))
        .axis_style(BLACK.mix(0.6).stroke_width(FINE as u32))
        .label_style(LETTERS)
        .x_labels((last - first) as usize + 1)
        .y_labels(6)
        .x_label_formatter(&|x| length(*x))
        .y_label_formatter(&|y| label(*y))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(3 * FINE as u32)))?;
    chart.draw_series(points.iter().map(|&p| Circle::new(p, 5 * FINE, color.filled())))?;
    Ok(())
}

/// `64`, `1k`, `512k`, `1M` (binary) for a whole logarithm; nothing between.
fn length(log: f64) -> String {
    match log.round() {
        n if (n - log).abs() > 1e-6 || !(0.0..63.0).contains(&n) => String::new(),
        n if n < 10.0 => (1u64 << n as u32).to_string(),
        n if n < 20.0 => format!("{}k", 1u64 << (n as u32 - 10)),
        n => format!("{}M", 1u64 << (n as u32 - 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        assert_eq!([6.0, 6.5, 10.0, 19.0, 20.0].map(length), ["64", "", "1k", "512k", "1M"]);
    }
}
