//! Numbers that were seen, from a sender that counts from 1: everything up to a floor, and some above.

use std::collections::BTreeSet;

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    floor: u64,
    above: BTreeSet<u64>,
}

impl Seen {
    /// Whether the number is new; it is not the second time.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        if number <= self.floor || !self.above.insert(number) {
            return false;
        }
        while self.above.remove(&(self.floor + 1)) {
            self.floor += 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_new_once() {
        let mut seen = Seen::default();
        assert!([3, 1, 2, 7].into_iter().all(|number| seen.insert(number)));
        assert!(
            ![1, 2, 3, 7, 0]
                .into_iter()
                .any(|number| seen.insert(number))
        );
        assert_eq!((seen.floor, seen.above.len()), (3, 1));
    }
}
