//! A safe face on the crate `gemm`: views into slices, checked once, and one matrix product.

use std::marker::PhantomData;
use std::ops::Range;

/// A matrix inside a slice: element `(r, c)` lies at `r · row_stride + c · col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Views `data` as `rows` rows of `cols` elements that begin `stride` elements apart.
    ///
    /// # Panics
    /// If the matrix does not lie within `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, stride), "matrix beyond its slice");
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// Views all of `data` as rows of `cols` elements.
    pub fn whole(data: &'a [f32], cols: usize) -> Self {
        Self::new(data, data.len() / cols.max(1), cols, cols)
    }

    /// Returns the number of columns.
    pub fn width(&self) -> usize {
        self.cols
    }

    /// Returns the number of rows.
    pub fn height(&self) -> usize {
        self.rows
    }

    /// Returns an element.
    ///
    /// # Panics
    /// If it is beyond the slice.
    #[inline(always)]
    pub fn at(&self, row: usize, col: usize) -> f32 {
        self.data[row * self.row_stride + col * self.col_stride]
    }

    /// Returns the transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Returns the rows of a range.
    ///
    /// # Panics
    /// If the range is beyond the matrix.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows beyond the matrix");
        let from = (range.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[from..], rows: range.len(), ..self }
    }

    /// Returns the columns of a range.
    ///
    /// # Panics
    /// If the range is beyond the matrix.
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }
}

/// A row-major matrix inside a slice that is written to; parts of it can be written in parallel.
#[derive(Debug)]
pub struct ViewMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut` to its elements, and `f32` may be sent and shared; parts of one matrix never share an element.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// Views `data` as `rows` rows of `cols` elements that begin `stride` elements apart.
    ///
    /// # Panics
    /// If the matrix does not lie within `data`, or rows overlap.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, stride), "matrix beyond its slice");
        assert!(stride >= cols, "rows overlap");
        Self { start: data.as_mut_ptr(), rows, cols, stride, slice: PhantomData }
    }

    /// Views all of `data` as rows of `cols` elements.
    pub fn whole(data: &'a mut [f32], cols: usize) -> Self {
        let rows = data.len() / cols.max(1);
        Self::new(data, rows, cols, cols)
    }

    /// Splits into blocks of at most `width` columns, with the column that each begins at.
    pub fn col_blocks(self, width: usize) -> Vec<(usize, ViewMut<'a>)> {
        let width = width.max(1);
        let block = |from: usize| {
            let cols = width.min(self.cols - from);
            // SAFETY: `from < cols`, so with any row there is such an element; blocks share no column.
            let start = if self.rows == 0 { self.start } else { unsafe { self.start.add(from) } };
            (from, ViewMut { start, cols, ..self })
        };
        (0..self.cols).step_by(width).map(block).collect()
    }

    /// Splits into blocks of at most `height` rows, with the row that each begins at.
    pub fn row_blocks(self, height: usize) -> Vec<(usize, ViewMut<'a>)> {
        let height = height.max(1);
        let block = |from: usize| {
            let rows = height.min(self.rows - from);
            // SAFETY: row `from` begins within the slice; blocks share no row, and rows do not overlap.
            let start = if self.cols == 0 {
                self.start
            } else {
                unsafe { self.start.add(from * self.stride) }
            };
            (from, ViewMut { start, rows, ..self })
        };
        (0..self.rows).step_by(height).map(block).collect()
    }

    /// Splits before column `at`.
    ///
    /// # Panics
    /// If there are fewer columns.
    pub fn split_cols(self, at: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        assert!(at <= self.cols, "columns beyond the matrix");
        let empty = self.rows == 0 || at == self.cols;
        // SAFETY: there is such an element; the two share no column.
        let start = if empty { self.start } else { unsafe { self.start.add(at) } };
        (ViewMut { cols: at, ..self }, ViewMut { start, cols: self.cols - at, ..self })
    }

    /// Splits before each of the rows `starts`, the first of which is 0.
    ///
    /// # Panics
    /// If they do not rise from 0, or lie beyond the matrix.
    pub fn split_rows(self, starts: &[usize]) -> Vec<ViewMut<'a>> {
        assert!(starts.first().is_none_or(|&s| s == 0) && starts.is_sorted(), "rows out of order");
        let ends = starts.iter().skip(1).copied().chain([self.rows]);
        let part = |(&from, to): (&usize, usize)| {
            assert!(from <= to && to <= self.rows, "rows beyond the matrix");
            let empty = from == to || self.cols == 0;
            // SAFETY: row `from` begins within the slice; parts share no row, and rows do not overlap.
            let start =
                if empty { self.start } else { unsafe { self.start.add(from * self.stride) } };
            ViewMut { start, rows: to - from, ..self }
        };
        starts.iter().zip(ends).map(part).collect()
    }

    /// Borrows the rows of a range.
    ///
    /// # Panics
    /// If the range is beyond the matrix.
    pub fn rows(&mut self, range: Range<usize>) -> ViewMut<'_> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows beyond the matrix");
        let empty = range.is_empty() || self.cols == 0;
        // SAFETY: the row begins within the slice, and `&mut self` keeps every other access away.
        let start =
            if empty { self.start } else { unsafe { self.start.add(range.start * self.stride) } };
        ViewMut { start, rows: range.len(), ..*self }
    }

    /// Returns a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "no such row");
        if self.cols == 0 {
            return &mut [];
        }
        // SAFETY: the row lies within the slice, and `&mut self` keeps every other access away.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.cols) }
    }
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    if isize::try_from(stride).is_err() {
        return false;
    }
    rows == 0
        || cols == 0
        || (rows - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(cols))
            .is_some_and(|n| n <= len)
}

/// Computes `dst = alpha · lhs rhs`, added to what `dst` holds if `accumulate`. One thread.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(dst: &mut ViewMut<'_>, lhs: View<'_>, rhs: View<'_>, alpha: f32, accumulate: bool) {
    assert!(
        dst.rows == lhs.rows && dst.cols == rhs.cols && lhs.cols == rhs.rows,
        "{} x {} is not {} x {} times {} x {}",
        dst.rows,
        dst.cols,
        lhs.rows,
        lhs.cols,
        rhs.rows,
        rhs.cols
    );
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    if lhs.cols == 0 {
        if !accumulate {
            (0..dst.rows).for_each(|r| dst.row(r).fill(0.0));
        }
        return;
    }
    // SAFETY: the views were checked against their slices when they were made, the shapes fit (above), and `dst` is
    // borrowed exclusively, so it overlaps neither operand. Strides fit `isize`, which was checked with them.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            lhs.cols,
            dst.start,
            1,
            dst.stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_beyond_their_slice_are_refused() {
        let data = [0f32; 12];
        for (rows, cols, stride) in [(4, 4, 3), (2, 7, 6), (1, 13, 0), (2, 2, usize::MAX)] {
            let view = std::panic::catch_unwind(|| View::new(&data, rows, cols, stride));
            assert!(view.is_err(), "{rows} x {cols} by {stride}");
        }
        let overlapping = std::panic::catch_unwind(|| {
            ViewMut::new(&mut [0f32; 12], 3, 4, 3);
        });
        assert!(overlapping.is_err());
    }

    #[test]
    fn empty_views_give_empty_rows_and_products() {
        let mut empty = ViewMut::new(&mut [], 5, 0, 10);
        assert!(empty.row(3).is_empty());
        let mut out = [7f32; 6];
        let (lhs, rhs) = (View::new(&[], 2, 0, 0), View::new(&[], 0, 3, 3));
        product(&mut ViewMut::whole(&mut out, 3), lhs, rhs, 1.0, true);
        assert_eq!(out, [7.0; 6]);
        product(&mut ViewMut::whole(&mut out, 3), lhs, rhs, 1.0, false);
        assert_eq!(out, [0.0; 6]);
    }

    #[test]
    fn parts_share_no_element_and_cover_all() {
        let mut data = [0f32; 35];
        for (from, mut part) in ViewMut::whole(&mut data, 7).col_blocks(3) {
            (0..5).for_each(|r| part.row(r).iter_mut().for_each(|x| *x += 1.0 + from as f32));
        }
        let mut rows = ViewMut::whole(&mut data, 7).split_rows(&[0, 2, 2]);
        assert_eq!(rows.len(), 3);
        (0..2).for_each(|r| rows[0].row(r).iter_mut().for_each(|x| *x += 100.0));
        let row = |r: usize| data[7 * r..7 * r + 7].to_vec();
        assert_eq!(row(0), [101.0, 101.0, 101.0, 104.0, 104.0, 104.0, 107.0]);
        assert_eq!(row(4), [1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 7.0]);
    }
}
