//! Several sequences in one row of tokens, without padding, none of which sees another.

use std::ops::Range;

use candle_core::{Result, bail};

/// A part of a packing: queries and the keys that they see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Rows of the sequence's own tokens.
    pub rows: Range<usize>,
    /// So many rows from the first on are seen before them: the prefix that all sequences share.
    pub prefix: usize,
}

/// Sequences behind each other in one row of tokens.
///
/// What all of them begin with (a system prompt) is there once, in front: each sequence sees that prefix and itself,
/// causally. Positions count from the sequence's own beginning, so the result is that of computing each alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    ids: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Span>,
    prefix: usize,
    /// Per sequence, the rows of its own tokens.
    sequences: Vec<Range<usize>>,
}

impl Packing {
    /// Packs sequences of token ids; `share` lets their common beginning be computed once.
    ///
    /// # Errors
    /// No sequence, or an empty one.
    pub fn new(sequences: &[&[u32]], share: bool) -> Result<Self> {
        if sequences.is_empty() || sequences.iter().any(|s| s.is_empty()) {
            bail!("a packing needs sequences of one token at least");
        }
        let prefix = if share && sequences.len() > 1 { common_prefix(sequences) } else { 0 };
        let mut packing = Self {
            ids: sequences[0][..prefix].to_vec(),
            positions: (0..prefix as u32).collect(),
            spans: Vec::new(),
            prefix,
            sequences: Vec::new(),
        };
        if prefix > 0 {
            packing.spans.push(Span { rows: 0..prefix, prefix: 0 });
        }
        for sequence in sequences {
            let from = packing.ids.len();
            packing.ids.extend_from_slice(&sequence[prefix..]);
            packing.positions.extend(prefix as u32..sequence.len() as u32);
            let rows = from..packing.ids.len();
            if !rows.is_empty() {
                packing.spans.push(Span { rows: rows.clone(), prefix });
            }
            packing.sequences.push(rows);
        }
        Ok(packing)
    }

    /// Returns the token ids, one a row.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns the position of each row in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Returns the parts, in the order of their rows, which they cover without a gap.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether there is no row; there always is one.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the row of a sequence's token.
    pub fn row(&self, sequence: usize, token: usize) -> usize {
        if token < self.prefix {
            token
        } else {
            self.sequences[sequence].start + token - self.prefix
        }
    }
}

fn common_prefix(sequences: &[&[u32]]) -> usize {
    let first = sequences[0];
    let shared =
        |other: &&[u32]| first.iter().zip(other.iter()).take_while(|(a, b)| a == b).count();
    sequences[1..].iter().map(shared).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_begin_with_is_there_once() {
        let packing = Packing::new(&[&[7, 8, 1, 2], &[7, 8, 3], &[7, 8]], true).unwrap();
        assert_eq!(packing.ids(), [7, 8, 1, 2, 3]);
        assert_eq!(packing.positions(), [0, 1, 2, 3, 2]);
        let spans: Vec<_> = packing.spans().iter().map(|s| (s.rows.clone(), s.prefix)).collect();
        assert_eq!(spans, [(0..2, 0), (2..4, 2), (4..5, 2)]);
        assert_eq!((packing.row(0, 1), packing.row(0, 2), packing.row(1, 2)), (1, 2, 4));
        assert_eq!(packing.row(2, 1), 1);
    }

    #[test]
    fn nothing_is_shared_unless_asked_for() {
        let packing = Packing::new(&[&[7, 8], &[7, 9, 4]], false).unwrap();
        assert_eq!(packing.ids(), [7, 8, 7, 9, 4]);
        assert_eq!(packing.row(1, 0), 2);
        assert!(Packing::new(&[], false).is_err() && Packing::new(&[&[]], false).is_err());
    }
}
