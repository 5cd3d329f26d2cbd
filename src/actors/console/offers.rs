//! The revisions of this session: what was made, and which one the user is being asked about. Plain data.
//!
//! They are nowhere else: nothing of a revision is stored before it is accepted.

use std::collections::BTreeMap;

/// Revisions of a session that are kept; of more the oldest mark's goes.
const OFFERS_KEPT: usize = 100;

/// Revisions by the mark that they are for.
#[derive(Debug, Default)]
pub struct Offers {
    made: BTreeMap<i64, String>,
    open: Option<i64>,
}

impl Offers {
    /// Offers a revision: it is the one that `/accept` takes.
    pub fn offer(&mut self, mark: i64, text: String) {
        if self.made.len() >= OFFERS_KEPT && !self.made.contains_key(&mark) {
            self.made.pop_first();
        }
        self.made.insert(mark, text);
        self.open = Some(mark);
    }

    /// Returns the mark whose revision the user is being asked about.
    pub fn open(&self) -> Option<i64> {
        self.open
    }

    /// Goes on without an answer; the revision stays for `/accept ID`. Returns the mark it is for.
    pub fn close(&mut self) -> Option<i64> {
        self.open.take()
    }

    /// Returns the revision of a mark, or the one that is offered.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, mark: Option<i64>) -> Result<(i64, String), String> {
        let Some(id) = mark.or(self.open) else {
            return Err("no revision is on offer: /medium NOTE or /critical NOTE makes one, /pending lists what waits"
                .to_owned());
        };
        match self.made.get(&id) {
            Some(text) => Ok((id, text.clone())),
            None => Err(format!(
                "there is no revision of mark {id} in this session: /fix #{id} TEXT gives the better answer"
            )),
        }
    }

    /// Whether there is a revision of a mark.
    pub fn has(&self, mark: i64) -> bool {
        self.made.contains_key(&mark)
    }

    /// Drops the revision of a mark that is gone.
    pub fn forget(&mut self, mark: i64) {
        self.made.remove(&mark);
        self.open = self.open.filter(|open| *open != mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_one_is_meant_unless_another_is_named() {
        let mut offers = Offers::default();
        assert!(offers.find(None).expect_err("none").contains("no revision is on offer"));
        offers.offer(1, "one".into());
        offers.offer(2, "two".into());
        assert_eq!(offers.find(None), Ok((2, "two".into())));
        assert_eq!(offers.find(Some(1)), Ok((1, "one".into())));
        assert_eq!(offers.close(), Some(2));
        assert!(offers.find(None).is_err(), "going on is no yes");
        assert_eq!(offers.find(Some(2)), Ok((2, "two".into())), "but it can be named later");
        assert!(offers.find(Some(3)).expect_err("none").contains("/fix #3 TEXT"));
    }

    #[test]
    fn what_is_forgotten_is_no_longer_offered_and_what_is_kept_is_bounded() {
        let mut offers = Offers::default();
        for mark in 0..=OFFERS_KEPT as i64 {
            offers.offer(mark, "text".into());
        }
        assert!(!offers.has(0) && offers.has(1));
        offers.forget(OFFERS_KEPT as i64);
        assert_eq!((offers.open(), offers.has(OFFERS_KEPT as i64)), (None, false));
    }
}
