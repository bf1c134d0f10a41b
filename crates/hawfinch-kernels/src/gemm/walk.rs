//! Lines of memory that are fetched while something else is computed.

use super::View;
use crate::prefetch;

/// Bytes of a line.
const LINE: usize = 64;

/// A walk through the lines of memory of part of a matrix.
#[derive(Clone, Copy, Default)]
pub struct Walk {
    /// The next line.
    at: usize,
    /// Where this row ends.
    end: usize,
    /// Bytes of a row, and from one to the next.
    row: usize,
    stride: usize,
    /// Rows that are left.
    rows: usize,
}

impl Walk {
    /// Through all of `x`, in the order in which it lies.
    pub fn new<F>(x: View<'_, F>) -> Walk {
        let (rows, numbers, stride) = match x.column_stride {
            1 => (x.rows, x.columns, x.row_stride),
            _ => (x.columns, x.rows, x.column_stride),
        };
        if rows * numbers == 0 {
            return Walk::default();
        }
        let (start, row) = (x.data.as_ptr().addr(), numbers * size_of::<F>());
        Walk { at: start / LINE * LINE, end: start + row, row, stride: stride * size_of::<F>(), rows }
    }

    /// Fetches the next line, if there is one.
    #[inline(always)]
    pub fn fetch(&mut self) {
        if self.rows > 0 {
            prefetch::second(std::ptr::without_provenance::<u8>(self.at));
            self.at += LINE;
            if self.at >= self.end {
                self.rows -= 1;
                self.end = self.end.wrapping_add(self.stride);
                self.at = self.end.wrapping_sub(self.row) / LINE * LINE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_met_once() {
        let data = vec![0f32; 40 * 50];
        for (x, turned) in [
            (View::new(&data, 40, 50).rows(3..9).columns(7..41), false),
            (View::new(&data, 40, 50).columns(5..21), true),
        ] {
            let want: Vec<usize> = (0..x.rows)
                .flat_map(|r| {
                    let number = |c: usize| x.data.as_ptr().wrapping_add(r * x.row_stride + c).addr();
                    let (from, to) = (number(0), number(x.columns - 1));
                    (from / LINE..=to / LINE).map(|line| line * LINE)
                })
                .collect();
            let mut walk = Walk::new(if turned { x.transposed() } else { x });
            let mut met = Vec::new();
            while walk.rows > 0 {
                met.push(walk.at);
                walk.fetch();
            }
            assert_eq!(met, want);
        }
        Walk::default().fetch();
        assert_eq!(Walk::new(View::new(&data[..0], 0, 5)).rows, 0);
    }
}
