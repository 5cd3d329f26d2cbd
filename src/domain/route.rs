//! Which domain a question belongs to: what is looked at, and what comes of it.

use super::DEFAULT_DOMAIN;

/// A mark as the routing of questions sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedMark {
    /// Its domain.
    pub domain: String,
    /// The question that was answered.
    pub question: String,
}

/// What questions are compared with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routes {
    /// By how much a question must score above what most of a domain's own marks do; may be
    /// negative.
    pub margin: f64,
    /// Prompts that belong to no domain.
    pub general: Vec<String>,
    /// The marks of all domains.
    pub marks: Vec<RoutedMark>,
}

/// Where a question went.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The domain whose adapters answer.
    pub domain: String,
    /// Mean cosine to the nearest questions of the domain; `None` where nothing was compared.
    pub similarity: Option<f64>,
}

impl Route {
    /// A domain that was named, or the only one there is.
    pub fn to(domain: impl Into<String>) -> Self {
        Self { domain: domain.into(), similarity: None }
    }
}

impl Default for Route {
    fn default() -> Self {
        Self::to(DEFAULT_DOMAIN)
    }
}
