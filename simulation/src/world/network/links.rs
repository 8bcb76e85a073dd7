//! Which places reach which: cuts and clogs in force.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;

/// Something wrong with links.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing goes from the first to the second; the other way only when `both`.
    Cut {
        from: BTreeSet<Place>,
        to: BTreeSet<Place>,
        both: bool,
    },
    /// Messages between the two wait.
    Clog(Place, Place),
}

/// The state of the way from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    Cut,
    Clogged,
}

#[derive(Default)]
pub struct Links {
    next: u64,
    faults: BTreeMap<u64, Fault>,
}

impl Links {
    pub fn begin(&mut self, fault: Fault) -> u64 {
        self.next += 1;
        self.faults.insert(self.next, fault);
        self.next
    }

    pub fn end(&mut self, number: u64) {
        self.faults.remove(&number);
    }

    pub fn end_all(&mut self) {
        self.faults.clear();
    }

    pub fn way(&self, from: Place, to: Place) -> Way {
        let mut way = Way::Open;
        for fault in self.faults.values() {
            match fault {
                Fault::Cut {
                    from: one,
                    to: other,
                    both,
                } => {
                    let there = one.contains(&from) && other.contains(&to);
                    let back = *both && one.contains(&to) && other.contains(&from);
                    if there || back {
                        return Way::Cut;
                    }
                }
                Fault::Clog(one, other) => {
                    if (from, to) == (*one, *other) || (from, to) == (*other, *one) {
                        way = Way::Clogged;
                    }
                }
            }
        }
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Place = Place(0);
    const B: Place = Place(1);
    const C: Place = Place(2);

    #[test]
    fn a_one_way_cut_stops_one_way() {
        let mut links = Links::default();
        let cut = links.begin(Fault::Cut {
            from: BTreeSet::from([A]),
            to: BTreeSet::from([B, C]),
            both: false,
        });
        assert_eq!(links.way(A, B), Way::Cut);
        assert_eq!(links.way(B, A), Way::Open);
        assert_eq!(links.way(B, C), Way::Open);
        links.end(cut);
        assert_eq!(links.way(A, B), Way::Open);
    }

    #[test]
    fn a_cut_is_stronger_than_a_clog() {
        let mut links = Links::default();
        links.begin(Fault::Clog(A, B));
        assert_eq!(links.way(B, A), Way::Clogged);
        links.begin(Fault::Cut {
            from: BTreeSet::from([B]),
            to: BTreeSet::from([A]),
            both: true,
        });
        assert_eq!(links.way(A, B), Way::Cut);
        links.end_all();
        assert_eq!(links.way(A, B), Way::Open);
    }
}
