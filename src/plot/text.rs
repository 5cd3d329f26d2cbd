//! Loss curves in characters.

use unicode_width::UnicodeWidthStr;

use super::scale::Scale;
use super::{Bounds, Curve, MAX_CURVES, X_AXIS, Y_AXIS};
use crate::text::{printable_line, shortened};

/// What the points of the curves are drawn with: plain characters, of one column in every terminal.
const GLYPHS: [char; MAX_CURVES] = ['*', 'o', '+', 'x', '#', '@', '%', '&', '=', '$', '~', '^'];
/// Rows of the field: enough for a curve, few enough for a terminal of 24.
const ROWS: usize = 13;
/// About so many marks on the axis of losses, and a mark of steps in so many columns.
const LOSS_MARKS: usize = 4;
const COLUMNS_PER_MARK: usize = 16;
/// A plot is never narrower, however narrow the terminal.
const MIN_WIDTH: usize = 30;
/// A wider one shows no more.
const MAX_WIDTH: usize = 120;
/// Between two entries of the legend.
const GAP: &str = "   ";

/// Draws curves into a field of at most `width` columns, with axes and a legend; `None` where there is no point to draw.
pub fn text(curves: &[Curve], width: usize) -> Option<String> {
    let width = width.clamp(MIN_WIDTH, MAX_WIDTH);
    let bounds = Bounds::of(curves)?;
    let losses = Scale::losses(bounds.losses.0, bounds.losses.1, LOSS_MARKS);
    let labels: Vec<String> = losses.ticks.iter().map(|tick| losses.label(*tick)).collect();
    let margin = labels.iter().map(|label| label.width()).max().unwrap_or(0);
    // The label, a blank and the axis.
    let columns = width - (margin + 2).min(width / 2);
    let steps = Scale::steps(bounds.steps.0, bounds.steps.1, columns / COLUMNS_PER_MARK);
    let field = Field::draw(curves, &steps, &losses, columns);

    let mut lines = vec![Y_AXIS.to_owned()];
    for (row, cells) in field.rows().enumerate() {
        let mark = losses.ticks.iter().position(|tick| row_of(&losses, *tick) == row);
        let (label, axis) = mark.map_or(("", '│'), |mark| (labels[mark].as_str(), '┤'));
        lines.push(format!("{label:>margin$} {axis}{cells}").trim_end().to_owned());
    }
    let indent = " ".repeat(margin + 1);
    let (axis, names) = step_axis(&steps, columns);
    lines.push(format!("{indent}└{axis}"));
    lines.push(format!("{indent} {names}").trim_end().to_owned());
    lines.push(format!("{indent} {X_AXIS:^columns$}").trim_end().to_owned());
    lines.extend(legend(curves, width));
    Some(lines.join("\n"))
}

/// The row of a loss, from the top.
fn row_of(losses: &Scale, loss: f64) -> usize {
    let from_below = (losses.share(loss) * (ROWS - 1) as f64).round() as usize;
    (ROWS - 1).saturating_sub(from_below)
}

/// Which curves go through each cell.
struct Field {
    columns: usize,
    cells: Vec<Vec<usize>>,
}

impl Field {
    fn draw(curves: &[Curve], steps: &Scale, losses: &Scale, columns: usize) -> Self {
        let mut cells = vec![Vec::new(); ROWS * columns];
        for (index, curve) in curves.iter().enumerate() {
            for (column, loss) in heights(curve, steps, columns).into_iter().enumerate() {
                if let Some(loss) = loss {
                    cells[row_of(losses, loss) * columns + column].push(index);
                }
            }
        }
        Self { columns, cells }
    }

    /// The rows as text. Curves that share a cell take turns from column to column.
    fn rows(&self) -> impl Iterator<Item = String> + '_ {
        self.cells.chunks(self.columns).map(|row| {
            let cell = |(column, curves): (usize, &Vec<usize>)| match curves.len() {
                0 => ' ',
                count => GLYPHS[curves[column % count] % MAX_CURVES],
            };
            row.iter().enumerate().map(cell).collect()
        })
    }
}

/// The loss of a curve at each column: the mean of the steps that fall into it, or, where none does, what lies on the
/// line between its neighbours; `None` beyond the ends.
fn heights(curve: &Curve, steps: &Scale, columns: usize) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0usize); columns];
    for (step, loss) in curve.values() {
        let column = (steps.share(step) * (columns - 1) as f64).round() as usize;
        let (sum, count) = &mut sums[column.min(columns - 1)];
        *sum += loss;
        *count += 1;
    }
    let mut heights: Vec<Option<f64>> =
        sums.iter().map(|&(sum, count)| (count > 0).then(|| sum / count as f64)).collect();
    let known: Vec<(usize, f64)> =
        heights.iter().enumerate().filter_map(|(column, loss)| Some((column, (*loss)?))).collect();
    for pair in known.windows(2) {
        let ((left, from), (right, to)) = (pair[0], pair[1]);
        for (index, height) in heights[left + 1..right].iter_mut().enumerate() {
            let share = (index + 1) as f64 / (right - left) as f64;
            *height = Some(from + (to - from) * share);
        }
    }
    heights
}

/// The line of the axis of steps, and the line of its marks' names below.
fn step_axis(steps: &Scale, columns: usize) -> (String, String) {
    let mut axis = vec!['─'; columns];
    let mut names = vec![' '; columns];
    let mut free_from = 0;
    for tick in &steps.ticks {
        let column = (steps.share(*tick) * (columns - 1) as f64).round() as usize;
        let name = steps.label(*tick);
        // Centred below its mark, but inside the field.
        let start = column.saturating_sub(name.len() / 2).min(columns - name.len().min(columns));
        if start < free_from || start + name.len() > columns {
            continue;
        }
        axis[column.min(columns - 1)] = '┬';
        names.splice(start..start + name.len(), name.chars());
        free_from = start + name.len() + 1;
    }
    (axis.into_iter().collect(), names.into_iter().collect())
}

/// The legend, in lines of at most `width` columns; a curve without a point says so.
fn legend(curves: &[Curve], width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for (index, curve) in curves.iter().enumerate() {
        let empty = if curve.values().next().is_none() { " (no steps)" } else { "" };
        let glyph = GLYPHS[index % MAX_CURVES];
        let label = shortened(&printable_line(&curve.label), width - 2 - empty.len());
        let entry = format!("{glyph} {label}{empty}");
        if !line.is_empty() && line.width() + GAP.len() + entry.width() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push_str(GAP);
        }
        line.push_str(&entry);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CurvePoint;

    fn curve(label: &str, steps: usize, rate: f64) -> Curve {
        let point = |step: usize| CurvePoint {
            step,
            loss: 4.0 * (-rate * (step - 1) as f64).exp(),
            learning_rate: 1e-3,
        };
        Curve { label: label.to_owned(), points: (1..=steps).map(point).collect() }
    }

    fn columns_of(plot: &str) -> usize {
        plot.lines().map(|line| line.width()).max().unwrap()
    }

    #[test]
    fn a_curve_falls_from_the_upper_left_to_the_lower_right() {
        let plot = text(&[curve("3 gentle", 40, 0.1)], 50).unwrap();
        let expected = "\
loss, nats per token
4 ┤*
  │ *
  │  *
3 ┤   **
  │     *
  │      **
2 ┤        *
  │         ***
  │            ***
1 ┤               ****
  │                   ******
  │                         *************
0 ┤                                      *********
  └┬─────────────────────┬───────────────────────┬
   1                    20                      40
                        step
* 3 gentle";
        assert_eq!(plot, expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let long = "12 lora_20261123_023320_7450_and_more_of_a_name_than_anybody_gives";
        let curves = [curve(long, 300, 0.02), curve("2 b", 3, 0.5), curve("3 c", 120, 0.0)];
        for width in [30, 50, 80, 200] {
            let plot = text(&curves, width).unwrap();
            assert!(columns_of(&plot) <= width.min(MAX_WIDTH), "{width}:\n{plot}");
            assert!(plot.chars().all(|c| !c.is_control() || c == '\n'), "no escapes");
            for glyph in ['*', 'o', '+'] {
                assert!(plot.contains(glyph), "{glyph} at {width}:\n{plot}");
            }
        }
        assert!(columns_of(&text(&curves, 1).unwrap()) <= MIN_WIDTH);
    }

    #[test]
    fn curves_that_lie_on_each_other_are_both_seen() {
        let same = [curve("1 a", 30, 0.1), curve("2 b", 30, 0.1)];
        let plot = text(&same, 80).unwrap();
        let field: String = plot.lines().filter(|line| line.contains(['│', '┤'])).collect();
        assert!(field.contains('*') && field.contains('o'), "{plot}");
    }

    #[test]
    fn nothing_and_nonsense_are_not_drawn() {
        assert_eq!(text(&[], 80), None);
        let empty = Curve { label: "1 a".to_owned(), points: Vec::new() };
        assert_eq!(text(std::slice::from_ref(&empty), 80), None);
        let mut one = curve("2 b", 1, 0.1);
        let plot = text(&[empty, one.clone()], 80).unwrap();
        assert!(plot.contains("* 1 a (no steps)") && plot.contains("o 2 b"), "{plot}");
        one.points[0].loss = f64::NAN;
        assert_eq!(text(&[one], 80), None);
    }
}
