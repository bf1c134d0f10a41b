//! The plot of `bench`: decode speed and memory against the length of the text.

use std::path::Path;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;

use super::pixels::Pixels;
use super::report::Report;
use crate::output::size;

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Svg,
    Png,
}

impl Kind {
    /// By the ending of the file's name.
    pub fn of(path: &Path) -> Option<Kind> {
        let ending = path.extension()?.to_str()?;
        [("svg", Kind::Svg), ("png", Kind::Png)]
            .into_iter()
            .find_map(|(e, kind)| e.eq_ignore_ascii_case(ending).then_some(kind))
    }
}

const SIZE: (u32, u32) = (1200, 900);
const LETTERS: (&str, u32) = ("sans-serif", 22);
const TITLE: (&str, u32) = ("sans-serif", 30);
const SPEED: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const MEMORY: RGBColor = RGBColor(0xb5, 0x46, 0x1f);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);

/// The bytes of the file.
pub fn draw(kind: Kind, report: &Report) -> anyhow::Result<Vec<u8>> {
    match kind {
        Kind::Svg => {
            let mut text = String::new();
            let backend = SVGBackend::with_string(&mut text, SIZE);
            all(backend.into_drawing_area(), report).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
            Ok(text.into_bytes())
        }
        Kind::Png => {
            let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
            let backend = Pixels(BitMapBackend::with_buffer(&mut pixels, SIZE));
            all(backend.into_drawing_area(), report).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, SIZE.0, SIZE.1);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&pixels)?;
            writer.finish()?;
            Ok(bytes)
        }
    }
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn all<B: DrawingBackend>(root: DrawingArea<B, Shift>, r: &Report) -> Drawn<B> {
    root.fill(&WHITE)?;
    let m = &r.model;
    root.draw_text(&format!("{}, {}", m.name, m.weights), &TITLE.into_text_style(&root), (30, 16))?;
    let machine = format!(
        "hawfinch {}, {}, {} threads, {}; a token reads {} of weights",
        r.hawfinch,
        r.cpu.name.as_deref().unwrap_or("unknown processor"),
        r.threads,
        r.isa,
        size(m.weight_bytes_per_token)
    );
    root.draw_text(&machine, &LETTERS.into_text_style(&root).color(&BLACK.mix(0.7)), (30, 54))?;
    let (_, rest) = root.split_vertically(90);
    let (upper, lower) = rest.split_vertically((SIZE.1 - 90) / 2);
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
    panel(&lower, &format!("{words}, by tokens read before"), &memory, MEMORY, &|y| size(y as u64))?;
    root.present()
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
        .margin(20)
        .margin_right(50)
        .x_label_area_size(40)
        .y_label_area_size(130)
        .build_cartesian_2d(first..last, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(BLACK.mix(0.6))
        .label_style(LETTERS)
        .x_labels((last - first) as usize + 1)
        .y_labels(6)
        .x_label_formatter(&|x| length(*x))
        .y_label_formatter(&|y| label(*y))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(3)))?;
    chart.draw_series(points.iter().map(|&p| Circle::new(p, 5, color.filled())))?;
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
    fn endings_and_lengths() {
        assert_eq!(Kind::of(Path::new("a/b.SVG")), Some(Kind::Svg));
        assert_eq!(Kind::of(Path::new("b.png")), Some(Kind::Png));
        assert_eq!(Kind::of(Path::new("b.pdf")), None);
        assert_eq!([6.0, 6.5, 10.0, 19.0, 20.0].map(length), ["64", "", "1k", "512k", "1M"]);
    }
}
