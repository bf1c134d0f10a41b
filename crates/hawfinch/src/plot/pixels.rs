//! Drawing into pixels with letters that are built in: `plotters` would ask the system for a font.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters::backend::BitMapBackend;
use plotters::prelude::DrawingBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};

type Drawn<'a> = Result<(), DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

/// `plotters`' pixels, with Noto Sans Mono.
pub struct Pixels<'a>(pub BitMapBackend<'a>);

/// The size of letters that comes next to the one wished.
fn height<S: BackendTextStyle>(style: &S) -> RasterHeight {
    if style.size() < 28.0 { RasterHeight::Size20 } else { RasterHeight::Size32 }
}

fn extent(text: &str, height: RasterHeight) -> (i32, i32) {
    let width = get_raster_width(FontWeight::Regular, height) * text.chars().count();
    (width as i32, height.val() as i32)
}

impl<'a> DrawingBackend for Pixels<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.0.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn<'a> {
        self.0.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.0.draw_rect(upper_left, bottom_right, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, pos: BackendCoord) -> Drawn<'a> {
        let height = height(style);
        let (width, rows) = extent(text, height);
        let anchor = style.anchor();
        let mut left = pos.0
            - match anchor.h_pos {
                HPos::Left => 0,
                HPos::Center => width / 2,
                HPos::Right => width,
            };
        let top = pos.1
            - match anchor.v_pos {
                VPos::Top => 0,
                VPos::Center => rows / 2,
                VPos::Bottom => rows,
            };
        let color = style.color();
        for c in text.chars() {
            let Some(letter) = get_raster(c, FontWeight::Regular, height)
                .or_else(|| get_raster('?', FontWeight::Regular, height))
            else {
                continue;
            };
            for (y, row) in letter.rows().enumerate() {
                for (x, &ink) in row.iter().enumerate().filter(|(_, ink)| **ink > 0) {
                    let alpha = color.alpha * f64::from(ink) / 255.0;
                    let at = (left + x as i32, top + y as i32);
                    self.0.draw_pixel(at, BackendColor { alpha, ..color })?;
                }
            }
            left += letter.width() as i32;
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        let (width, height) = extent(text, height(style));
        Ok((width as u32, height as u32))
    }
}
