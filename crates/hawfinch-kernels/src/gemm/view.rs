//! Matrices as products read them.

use std::ops::Range;

use crate::Real;

/// A matrix read through strides: number (r, c) stands at `r * row_stride + c * column_stride`; one of the strides is 1.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, F> {
    pub(super) data: &'a [F],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a, F: Real> View<'a, F> {
    /// Rows one after the other.
    ///
    /// * `data`: `[rows, columns]`
    ///
    /// # Panics
    /// When `data` has another length.
    pub fn new(data: &'a [F], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a view of [{rows}, {columns}]");
        View::strided(data, rows, columns, columns)
    }

    /// Rows that begin `row_stride` numbers apart.
    ///
    /// # Panics
    /// When rows overlap, or `data` ends before the last number.
    pub fn strided(data: &'a [F], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows <= 1 || row_stride >= columns, "rows of {columns}, {row_stride} apart");
        assert!(
            rows == 0 || columns == 0 || data.len() >= (rows - 1) * row_stride + columns,
            "a view of [{rows}, {columns}], {row_stride} apart, of {} numbers",
            data.len()
        );
        View { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// Rows as columns.
    pub fn transposed(self) -> Self {
        View {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// When there are no such columns.
    pub fn columns(self, range: Range<usize>) -> Self {
        self.transposed().rows(range).transposed()
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let data = self.data.get(range.start * self.row_stride..).unwrap_or(&[]);
        View { data, rows: range.len(), ..self }
    }

    /// Rows and columns.
    pub fn shape(self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The same of f32, when that is what the numbers are.
    pub(super) fn as_f32(self) -> Option<View<'a, f32>> {
        let View { data, rows, columns, row_stride, column_stride } = self;
        F::as_f32s(data).map(|data| View { data, rows, columns, row_stride, column_stride })
    }

    /// Number (r, c).
    #[inline(always)]
    pub(super) fn at(&self, r: usize, c: usize) -> F {
        self.data[r * self.row_stride + c * self.column_stride]
    }
}
