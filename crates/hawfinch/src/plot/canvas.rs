//! From drawing to the bytes of a file, SVG or PNG.
//!
//! A canvas is [`FINE`] times as fine as what is seen of it: backends take whole numbers, and curves would show steps.
//! All sizes and places that are drawn with are in these fine units.

use std::cell::RefCell;
use std::path::Path;

use anyhow::anyhow;
use plotters::backend::{BitMapBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::prelude::DrawingBackend;

use super::pixels::{Pixels, letter};

/// Units of a canvas a pixel, each way.
pub const FINE: i32 = 3;

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

/// What drawing gives.
pub type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// A drawing that does not depend on the kind of file.
pub trait Drawing {
    /// Draws on a canvas of `FINE` times its size.
    fn on<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>) -> Drawn<B>;
}

/// The bytes of the file. `size`: width and height in pixels.
///
/// # Errors
/// None in practice: both kinds are drawn in memory.
pub fn render(kind: Kind, size: (u32, u32), drawing: &impl Drawing) -> anyhow::Result<Vec<u8>> {
    let fine = (size.0 * FINE as u32, size.1 * FINE as u32);
    match kind {
        Kind::Svg => {
            let mut text = String::new();
            drawn(SVGBackend::with_string(&mut text, fine), drawing)?;
            // Shown at its size; the view box stays fine.
            let width = |size: (u32, u32)| format!("<svg width=\"{}\" height=\"{}\"", size.0, size.1);
            Ok(text.replacen(&width(fine), &width(size), 1).into_bytes())
        }
        Kind::Png => {
            let mut pixels = vec![0; (fine.0 * fine.1 * 3) as usize];
            let letters = RefCell::new(Vec::new());
            let shapes = BitMapBackend::with_buffer(&mut pixels, fine);
            drawn(Pixels { shapes, letters: &letters }, drawing)?;
            let mut seen = smaller(&pixels, size);
            letters.into_inner().iter().for_each(|l| letter(l, &mut seen, size));
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&seen)?;
            writer.finish()?;
            Ok(bytes)
        }
    }
}

fn drawn<B: DrawingBackend>(backend: B, drawing: &impl Drawing) -> anyhow::Result<()> {
    let root = backend.into_drawing_area();
    let done = drawing.on(&root).and_then(|()| root.present());
    done.map_err(|e| anyhow!("cannot draw the plot: {e}"))
}

/// Each pixel the mean of its fine ones; `size` in pixels.
fn smaller(fine: &[u8], size: (u32, u32)) -> Vec<u8> {
    let (width, height, n) = (size.0 as usize, size.1 as usize, FINE as usize);
    let mut sums = vec![0u32; width * 3];
    let mut out = Vec::with_capacity(width * height * 3);
    for rows in fine.chunks_exact(width * n * 3 * n) {
        sums.fill(0);
        for row in rows.chunks_exact(width * n * 3) {
            for (sum, pixels) in sums.chunks_exact_mut(3).zip(row.chunks_exact(3 * n)) {
                for pixel in pixels.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(s, p)| *s += u32::from(*p));
                }
            }
        }
        let many = (n * n) as u32;
        out.extend(sums.iter().map(|s| ((s + many / 2) / many) as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        assert_eq!(Kind::of(Path::new("a/b.SVG")), Some(Kind::Svg));
        assert_eq!(Kind::of(Path::new("b.png")), Some(Kind::Png));
        assert_eq!(Kind::of(Path::new("b.pdf")), None);
    }

    #[test]
    fn pixels_are_means() {
        let n = FINE as usize;
        // Two pixels beside each other: one black but for a white fine pixel, one white.
        let row = |first: u8| [&[first; 3][..], &vec![0; 3 * (n - 1)], &vec![255; 3 * n]].concat();
        let fine: Vec<u8> = (0..n).flat_map(|y| row(if y == 0 { 255 } else { 0 })).collect();
        let grey = (255.0 / (n * n) as f64).round() as u8;
        assert_eq!(smaller(&fine, (2, 1)), [grey, grey, grey, 255, 255, 255]);
    }
}
