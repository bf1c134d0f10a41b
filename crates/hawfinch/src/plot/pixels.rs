//! Drawing into pixels with letters that are built in: `plotters` would ask the system for a font.

use std::cell::RefCell;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters::backend::BitMapBackend;
use plotters::prelude::DrawingBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};

use super::canvas::FINE;

type Drawn<'a> = Result<(), DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

/// `plotters`' pixels, with Noto Sans Mono. Letters are made for the size at which they are seen: they wait until the
/// rest was made smaller.
pub struct Pixels<'a> {
    /// Everything but letters, in fine units.
    pub shapes: BitMapBackend<'a>,
    /// The letters.
    pub letters: &'a RefCell<Vec<Letters>>,
}

/// A text that is to be drawn.
pub struct Letters {
    text: String,
    height: RasterHeight,
    color: BackendColor,
    /// Upper left corner, in pixels.
    at: (i32, i32),
}

/// The size of letters that comes next to the one wished (in fine units).
fn height<S: BackendTextStyle>(style: &S) -> RasterHeight {
    if style.size() < 28.0 * f64::from(FINE) { RasterHeight::Size20 } else { RasterHeight::Size32 }
}

/// Width and height in pixels.
fn extent(text: &str, height: RasterHeight) -> (i32, i32) {
    let width = get_raster_width(FontWeight::Regular, height) * text.chars().count();
    (width as i32, height.val() as i32)
}

/// Draws a text over pixels of red, green and blue, as far as it lies on them.
pub fn letter(letters: &Letters, pixels: &mut [u8], size: (u32, u32)) {
    let Letters { text, height, color, at: (left, top) } = letters;
    let mut left = *left;
    for c in text.chars() {
        let Some(letter) = get_raster(c, FontWeight::Regular, *height)
            .or_else(|| get_raster('?', FontWeight::Regular, *height))
        else {
            continue;
        };
        for (y, row) in (*top..).zip(letter.rows()) {
            for (x, &ink) in (left..).zip(row).filter(|(_, ink)| **ink > 0) {
                let on = (0..size.0 as i32).contains(&x) && (0..size.1 as i32).contains(&y);
                if !on {
                    continue;
                }
                let alpha = color.alpha * f64::from(ink) / 255.0;
                let start = 3 * (y as usize * size.0 as usize + x as usize);
                let (r, g, b) = color.rgb;
                for (there, new) in pixels[start..start + 3].iter_mut().zip([r, g, b]) {
                    *there = (f64::from(*there) * (1.0 - alpha) + f64::from(new) * alpha).round() as u8;
                }
            }
        }
        left += letter.width() as i32;
    }
}

impl<'a> DrawingBackend for Pixels<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.shapes.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.shapes.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.shapes.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.shapes.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn<'a> {
        self.shapes.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.shapes.draw_rect(upper_left, bottom_right, style, fill)
    }

    /// One four-cornered piece after the other: `plotters` makes one polygon of a line, whose inner corners lie far off where
    /// the line turns sharply.
    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn<'a> {
        let half = f64::from(style.stroke_width()) / 2.0;
        let mut before: Option<BackendCoord> = None;
        for to in path {
            if let Some(from) = before.filter(|from| *from != to) {
                let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
                let scale = half / dx.hypot(dy);
                let (x, y) = (-dy * scale, dx * scale);
                let corner = |at: BackendCoord, side: f64| {
                    ((f64::from(at.0) + side * x).round() as i32, (f64::from(at.1) + side * y).round() as i32)
                };
                let corners = [corner(from, 1.0), corner(to, 1.0), corner(to, -1.0), corner(from, -1.0)];
                self.shapes.fill_polygon(corners, &style.color())?;
            }
            // Fills what is missing where two pieces meet; what shines through would show it.
            if half >= 2.0 && before.is_some() && style.color().alpha == 1.0 {
                self.shapes.draw_circle(to, half as u32, &style.color(), true)?;
            }
            before = Some(to);
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, pos: BackendCoord) -> Drawn<'a> {
        let height = height(style);
        let (width, rows) = extent(text, height);
        let anchor = style.anchor();
        let left = pos.0 / FINE
            - match anchor.h_pos {
                HPos::Left => 0,
                HPos::Center => width / 2,
                HPos::Right => width,
            };
        let top = pos.1 / FINE
            - match anchor.v_pos {
                VPos::Top => 0,
                VPos::Center => rows / 2,
                VPos::Bottom => rows,
            };
        let (text, color) = (text.to_owned(), style.color());
        self.letters.borrow_mut().push(Letters { text, height, color, at: (left, top) });
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        let (width, height) = extent(text, height(style));
        Ok(((width * FINE) as u32, (height * FINE) as u32))
    }
}
