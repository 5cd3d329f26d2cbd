//! A loss curve in one line.

use crate::domain::CurvePoint;

/// From the lowest loss to the highest.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the losses in at most `columns` bars, each the mean of its steps; empty where there is none.
pub fn sparkline(points: &[CurvePoint], columns: usize) -> String {
    let losses: Vec<f64> = points.iter().map(|p| p.loss).filter(|loss| loss.is_finite()).collect();
    let columns = columns.min(losses.len());
    let mean = |column: usize| {
        let part = &losses[column * losses.len() / columns..(column + 1) * losses.len() / columns];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..columns).map(mean).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let top = (BARS.len() - 1) as f64;
    let bar = |mean: f64| match high > low {
        true => BARS[((mean - low) / (high - low) * top).round() as usize],
        false => BARS[0],
    };
    means.into_iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(losses: &[f64]) -> Vec<CurvePoint> {
        let point =
            |(i, loss): (usize, &f64)| CurvePoint { step: i + 1, loss: *loss, learning_rate: 0.1 };
        losses.iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_falling_loss_is_a_falling_line() {
        assert_eq!(sparkline(&curve(&[8.0, 4.5, 1.0]), 10), "█▅▁");
        assert_eq!(sparkline(&curve(&[9.0, 7.0, 2.0, 0.0]), 2), "█▁");
        assert_eq!(sparkline(&curve(&[1.0, 1.0]), 10), "▁▁");
        assert_eq!(sparkline(&curve(&[f64::NAN]), 10), "");
        assert_eq!(sparkline(&[], 10), "");
    }
}
