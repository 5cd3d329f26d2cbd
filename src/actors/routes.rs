//! What questions are routed by, as the feedback actor knows it and the thread of the model reads it.

use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::{RoutedMark, Routes};

/// The marks to route by; empty while nothing is routed. It outlives the actors.
#[derive(Clone, Default)]
pub struct RouteTable(Arc<RwLock<Arc<Routes>>>);

impl RouteTable {
    /// Makes a table without marks: what is not routed, or not yet.
    pub fn new(margin: f64, general: Vec<String>) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(Routes { margin, general, marks: Vec::new() }))))
    }

    /// Returns what is in force; the same pointer as long as nothing changes.
    pub fn get(&self) -> Arc<Routes> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the marks, if they are others.
    pub fn set_marks(&self, marks: Vec<RoutedMark>) {
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if routes.marks != marks {
            *routes = Arc::new(Routes { marks, ..Routes::clone(&routes) });
        }
    }
}
