//! The actors: thin shells over plain structs. A handler takes a message, calls a function of a lower layer, replies or
//! sends; no tensor and no SQL here.
//!
//! Everything that touches the database goes through [`db::Db`], off the arbiter and in order; everything that computes
//! through [`model_thread`] or the worker process. So all actors share one arbiter, and none of them ever blocks it.

pub mod base;
pub mod console;
pub mod db;
pub mod feedback;
pub mod inference;
pub mod model_thread;
pub mod queue_right;
pub mod registry;
pub mod routes;
pub mod supervisor;
pub mod training;

mod views;

#[cfg(test)]
pub(crate) mod test_kit;
