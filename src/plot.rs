//! Loss curves as pictures: of characters for a terminal, SVG and PNG for a file.

mod picture;
mod scale;
mod spark;
mod text;

pub use picture::{Format, PlotError, picture};
pub use spark::sparkline;
pub use text::text;

use crate::domain::CurvePoint;

/// The most curves in one plot: so many can be told apart.
pub const MAX_CURVES: usize = 12;

/// What the axes show.
const X_AXIS: &str = "step";
const Y_AXIS: &str = "loss, nats per token";

/// The loss curve of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What the legend calls it.
    pub label: String,
    /// Its steps, in order.
    pub points: Vec<CurvePoint>,
}

/// The smallest and largest step and loss of all curves that have a point.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bounds {
    steps: (f64, f64),
    losses: (f64, f64),
}

impl Bounds {
    /// `None` where no curve has a point.
    fn of(curves: &[Curve]) -> Option<Self> {
        let mut bounds: Option<Self> = None;
        for (step, loss) in curves.iter().flat_map(Curve::values) {
            let now = bounds.get_or_insert(Self { steps: (step, step), losses: (loss, loss) });
            now.steps = (now.steps.0.min(step), now.steps.1.max(step));
            now.losses = (now.losses.0.min(loss), now.losses.1.max(loss));
        }
        bounds
    }
}

impl Curve {
    /// The points that can be drawn, as step and loss.
    fn values(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.points.iter().filter(|p| p.loss.is_finite()).map(|p| (p.step as f64, p.loss))
    }
}
