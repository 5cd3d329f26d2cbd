//! An adapter with a weight, as users write it.

use std::fmt;
use std::str::FromStr;

use super::{AdapterId, InvalidAdapterId};

/// Largest weight of an adapter in `ID:WEIGHT`: beyond it the adapter drowns the base.
const MAX_ADAPTER_WEIGHT: f64 = 10.0;

/// An adapter and how much it counts.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedAdapter {
    /// The adapter.
    pub id: AdapterId,
    /// Factor of its output.
    pub weight: f64,
}

impl FromStr for WeightedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, weight) = match text.split_once(':') {
            Some((id, weight)) => (id, weight.parse().unwrap_or(f64::NAN)),
            None => (text, 1.0),
        };
        if !(weight > 0.0 && weight <= MAX_ADAPTER_WEIGHT) {
            return Err(format!(
                "the weight must be a number above 0, up to {MAX_ADAPTER_WEIGHT}: write ID:WEIGHT, as in rust:0.5"
            ));
        }
        let id = id.parse().map_err(|error: InvalidAdapterId| error.to_string())?;
        Ok(Self { id, weight })
    }
}

/// As it is written; a weight of 1 goes without saying.
impl fmt::Display for WeightedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.weight == 1.0 {
            write!(f, "{}", self.id)
        } else {
            write!(f, "{}:{}", self.id, self.weight)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_may_have_a_weight() {
        let parse = |text: &str| text.parse::<WeightedAdapter>();
        assert_eq!(parse("rust").unwrap().weight, 1.0);
        assert_eq!(parse("rust:0.5").unwrap().weight, 0.5);
        assert_eq!(parse("rust:0.5").unwrap().to_string(), "rust:0.5");
        assert_eq!(parse("rust:1").unwrap().to_string(), "rust");
        for bad in ["rust:0", "rust:-1", "rust:", "rust:x", "rust:nan", "rust:11", "../rust", ":1"]
        {
            assert!(parse(bad).is_err(), "{bad:?} must be refused");
        }
    }
}
