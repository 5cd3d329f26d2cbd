//! Evaluation: what is measured of an adapter, and the gate that decides whether it may go live.

mod compare;
mod gate;
mod general;
pub(crate) mod measure;
pub(crate) mod neighbours;
mod prompted;

pub use compare::{Compared, compare};
pub use gate::{Comparison, GateConfig, GateReport, Promotion, Verdict, gate};
pub use general::{GeneralSet, routing_prompts};
pub use measure::{ItemLoss, Measurements};
pub use neighbours::NeighbourLoss;
pub use prompted::with_note;
