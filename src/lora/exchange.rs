//! What an adapter's `training.json` says outside of the data directory that it was made in.
//!
//! Between people goes what an adapter needs and what it achieved: never the ids of marks, nor anything that this program
//! did not write itself.

use serde_json::{Map, Value, json};

use super::LoraAdapter;
use crate::models::LoadedModel;

/// What of a record leaves, besides [`MEASURED`]: what it was made for and how.
const SHARED: [&str; 4] = ["base", "base_hash", "quantize", "params"];
/// What of its measurements leaves: sums, no items.
const MEASURED: [&str; 5] = ["kl", "final_loss", "steps", "examples", "exploded_at"];

/// Returns what of a training record is given away.
pub fn exported_record(record: &Value) -> Value {
    let mut shared = picked(record, &SHARED);
    let measured = record.get("measurements").map(|m| picked(m, &MEASURED));
    if let Some(measured) = measured.filter(|m| !m.is_empty()) {
        shared.insert("measurements".to_owned(), measured.into());
    }
    shared.into()
}

/// Returns the record of an adapter that came from elsewhere and was checked against `model`: pinned to its hash from
/// now on. What a given record says besides is kept as far as it would be given away.
pub fn imported_record(given: Option<&Value>, adapter: &LoraAdapter, model: &LoadedModel) -> Value {
    let mut record = given.map(exported_record).unwrap_or_else(|| json!({}));
    record["base"] = model.name.as_str().into();
    record["base_hash"] = model.base_hash.as_str().into();
    record["imported"] = true.into();
    record["digest"] = adapter.digest().into();
    record
}

fn picked(value: &Value, keys: &[&str]) -> Map<String, Value> {
    let pick = |key: &&str| Some(((*key).to_owned(), value.get(*key)?.clone()));
    keys.iter().filter_map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_items_and_unknown_words_do_not_leave() {
        let record = json!({
            "base": "builtin", "base_hash": "ab", "examples": [1, 2], "replay": [3], "heldout": [4],
            "params": {"rank": 4}, "note": "private", "resources": {"peak_bytes": 1},
            "measurements": {"trained": [{"id": 1, "before": 2.0, "after": 1.0}], "kl": 0.1, "steps": 7},
        });
        let shared = exported_record(&record);
        let expected = json!({
            "base": "builtin", "base_hash": "ab", "params": {"rank": 4},
            "measurements": {"kl": 0.1, "steps": 7},
        });
        assert_eq!(shared, expected);
        assert_eq!(exported_record(&json!([1])), json!({}));
    }
}
