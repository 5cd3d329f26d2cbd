//! `[domains.NAME] adapters`: which adapters answer in a domain, and how much each counts.

use super::DomainSection;
use crate::domain::{AdapterId, WeightedAdapter};

/// Stands for the adapter that is live in the domain, whatever it is called.
const LIVE: &str = "live";

/// A term of a domain's mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// The adapter; `None` is the one that is live in the domain.
    pub adapter: Option<AdapterId>,
    /// Factor of its output.
    pub weight: f64,
}

impl DomainSection {
    /// Returns what answers in the domain: the live adapter alone unless a list says otherwise. The entries were checked when
    /// the configuration was read.
    pub fn mixture(&self) -> Vec<Term> {
        let entries = self.adapters.iter().flatten();
        let terms: Vec<Term> = entries.filter_map(|text| term(text).ok()).collect();
        if terms.is_empty() { vec![Term { adapter: None, weight: 1.0 }] } else { terms }
    }
}

/// Reads `ID`, `ID:WEIGHT`, `live` or `live:WEIGHT`.
pub(super) fn term(text: &str) -> Result<Term, String> {
    let WeightedAdapter { id, weight } = text.parse()?;
    Ok(Term { adapter: (id.as_str() != LIVE).then_some(id), weight })
}
