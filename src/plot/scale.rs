//! Axes: what they span, and where their marks are.

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    /// The value at its beginning.
    pub low: f64,
    /// The value at its end; greater.
    pub high: f64,
    /// The values that are marked, ascending.
    pub ticks: Vec<f64>,
    /// Digits after the point of a mark.
    decimals: usize,
}

impl Scale {
    /// Spans losses: from 0, or from a mark below the least where that is far from 0, to a mark above the greatest.
    pub fn losses(low: f64, high: f64, marks: usize) -> Self {
        // A curve that loses less than half on its way shows nothing above an axis from 0.
        let from = if low >= 0.0 && low < high / 2.0 { 0.0 } else { low };
        let step = nice_step(high - from, high.abs(), marks);
        // Half a mark more at most: an axis that ends far above its curve wastes room.
        let half = step / 2.0;
        Self::marked((from / half).floor() * half, (high / half).ceil() * half, step)
    }

    /// Spans steps, from the first to the last.
    pub fn steps(low: f64, high: f64, marks: usize) -> Self {
        let step = nice_step(high - low, 1.0, marks).max(1.0);
        let mut scale = Self::marked(low, high.max(low + 1.0), step);
        // The first and the last step say more than their round neighbours.
        scale.ticks.retain(|tick| tick - low >= step / 2.0 && high - tick >= step / 2.0);
        scale.ticks.insert(0, low);
        if high > low {
            scale.ticks.push(high);
        }
        scale
    }

    fn marked(low: f64, high: f64, step: f64) -> Self {
        let high = if high > low { high } else { low + step };
        let first = (low / step).ceil();
        let count = ((high / step).floor() - first).max(0.0) as usize;
        let ticks = (0..=count).map(|i| (first + i as f64) * step).collect();
        Self { low, high, ticks, decimals: decimals(step) }
    }

    /// Where a value lies: 0 at the beginning, 1 at the end.
    pub fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Writes a mark.
    pub fn label(&self, value: f64) -> String {
        format!("{value:.*}", self.decimals)
    }
}

/// Returns 1, 2 or 5 times a power of ten that cuts a span into about `marks` parts; `size` serves where there is no span.
fn nice_step(span: f64, size: f64, marks: usize) -> f64 {
    let span = if span > 0.0 { span } else { size.max(f64::MIN_POSITIVE) };
    let raw = span / marks.max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|&factor| raw <= factor * power * 1.0001);
    nice.unwrap_or(10.0) * power
}

/// Digits after the point that tell two marks of this distance apart.
fn decimals(step: f64) -> usize {
    /// More tell nothing about a loss in single precision.
    const MOST: f64 = 8.0;
    // 0.2 needs one digit although its logarithm is above -1.
    (-(step.log10() + 1e-9).floor()).clamp(0.0, MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_hold_all_values() {
        let scale = Scale::losses(0.0069, 4.58, 4);
        assert_eq!((scale.low, scale.high), (0.0, 5.0));
        assert_eq!(scale.ticks, [0.0, 2.0, 4.0]);
        assert_eq!(scale.label(2.0), "2");
        let scale = Scale::losses(1.31, 1.44, 4);
        assert!(scale.low <= 1.31 && scale.high >= 1.44 && scale.low > 1.0, "{scale:?}");
        assert_eq!(scale.label(scale.ticks[0]), "1.30");
    }

    #[test]
    fn one_value_has_an_axis_too() {
        for scale in
            [Scale::losses(0.0, 0.0, 4), Scale::losses(2.5, 2.5, 4), Scale::steps(3.0, 3.0, 4)]
        {
            assert!(scale.high > scale.low && !scale.ticks.is_empty(), "{scale:?}");
        }
    }

    #[test]
    fn steps_are_marked_at_both_ends() {
        assert_eq!(Scale::steps(1.0, 60.0, 4).ticks, [1.0, 20.0, 40.0, 60.0]);
        assert_eq!(Scale::steps(1.0, 3.0, 4).ticks, [1.0, 2.0, 3.0]);
        assert_eq!(Scale::steps(1.0, 2.0, 4).ticks, [1.0, 2.0]);
    }
}
