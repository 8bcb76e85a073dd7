//! Dots and contexts: the unique marks of edge changes, and sets of them (ADR 0003).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{PartitionId, Sequence};

/// A writer of overlay deltas: 128 random bits, minted at the first local write after each start
/// of a process, so that no restore or wipe can make it mark two changes alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActorId(pub [u8; 16]);

impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The mark of a change that a replica accepted on its own; `n` counts from 1 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OverlayDot {
    pub actor: ActorId,
    pub n: u64,
}

/// The unique mark of one change to edges. The order (log before overlay) is the canonical order
/// in which contributions are added up and twins are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Dot {
    /// Given at apply; the partition is named because its edges may come to rest in another one
    /// when partitions are split.
    Log {
        partition: PartitionId,
        sequence: Sequence,
        index: u32,
    },
    Overlay(OverlayDot),
}

/// A set of overlay dots: everything up to a floor per actor, plus single dots above it.
/// Kept normalised: no dot at or just above its actor's floor is listed singly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OverlayContext {
    floors: BTreeMap<ActorId, u64>,
    above: BTreeSet<OverlayDot>,
}

impl OverlayContext {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.floors.is_empty() && self.above.is_empty()
    }

    #[must_use]
    pub fn covers(&self, dot: OverlayDot) -> bool {
        dot.n <= self.floor(dot.actor) || self.above.contains(&dot)
    }

    /// Every dot of `actor` up to this number is in the set.
    #[must_use]
    pub fn floor(&self, actor: ActorId) -> u64 {
        self.floors.get(&actor).copied().unwrap_or(0)
    }

    #[must_use]
    pub fn covers_all(&self, other: &Self) -> bool {
        other
            .floors
            .iter()
            .all(|(actor, n)| self.floor(*actor) >= *n)
            && other.above.iter().all(|dot| self.covers(*dot))
    }

    /// How many dots of this are not in the other.
    #[must_use]
    pub fn missing_in(&self, other: &Self) -> u64 {
        let below = self.floors.iter().map(|(actor, floor)| {
            let from = other.floor(*actor);
            let dot = |n| OverlayDot { actor: *actor, n };
            let single = if from < *floor {
                other.above.range(dot(from + 1)..=dot(*floor)).count() as u64
            } else {
                0
            };
            floor.saturating_sub(from) - single
        });
        let above = self.above.iter().filter(|dot| !other.covers(**dot));
        below.sum::<u64>() + above.count() as u64
    }

    pub fn insert(&mut self, dot: OverlayDot) {
        if !self.covers(dot) {
            self.above.insert(dot);
            self.normalise(dot.actor);
        }
    }

    pub fn join(&mut self, other: &Self) {
        for (actor, n) in &other.floors {
            if *n > self.floor(*actor) {
                self.floors.insert(*actor, *n);
                self.normalise(*actor);
            }
        }
        for dot in &other.above {
            self.insert(*dot);
        }
    }

    /// Floors by actor, then the single dots above them.
    pub fn parts(
        &self,
    ) -> (
        impl Iterator<Item = (ActorId, u64)> + '_,
        impl Iterator<Item = OverlayDot> + '_,
    ) {
        (
            self.floors.iter().map(|(actor, n)| (*actor, *n)),
            self.above.iter().copied(),
        )
    }

    /// From its parts, in any order and with any overlap.
    #[must_use]
    pub fn from_parts(
        floors: impl IntoIterator<Item = (ActorId, u64)>,
        above: impl IntoIterator<Item = OverlayDot>,
    ) -> Self {
        let mut context = Self::default();
        for (actor, n) in floors {
            if n > context.floor(actor) {
                context.floors.insert(actor, n);
            }
        }
        above.into_iter().for_each(|dot| context.insert(dot));
        context
    }

    /// Moves dots that touch the floor into it and drops those below it.
    fn normalise(&mut self, actor: ActorId) {
        let mut floor = self.floor(actor);
        let of_actor = OverlayDot { actor, n: 0 }..=OverlayDot { actor, n: u64::MAX };
        let listed: Vec<OverlayDot> = self.above.range(of_actor).copied().collect();
        for dot in listed {
            if dot.n > floor + 1 {
                break;
            }
            floor = floor.max(dot.n);
            self.above.remove(&dot);
        }
        if floor > 0 {
            self.floors.insert(actor, floor);
        }
    }
}

/// What a replica of a partition had seen: the log up to a sequence, and overlay dots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EdgeContext {
    pub sequence: Sequence,
    pub overlay: OverlayContext,
}

impl EdgeContext {
    /// Whether the change marked `dot` is in this context. Log dots are those of one partition.
    #[must_use]
    pub fn covers(&self, dot: &Dot) -> bool {
        match dot {
            Dot::Log { sequence, .. } => *sequence <= self.sequence,
            Dot::Overlay(dot) => self.overlay.covers(*dot),
        }
    }

    pub fn join(&mut self, other: &Self) {
        self.sequence = self.sequence.max(other.sequence);
        self.overlay.join(&other.overlay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ActorId = ActorId([1; 16]);

    #[test]
    fn dots_fold_into_the_floor_in_any_order() {
        let mut context = OverlayContext::default();
        for n in [3, 1, 5, 2] {
            context.insert(OverlayDot { actor: A, n });
        }
        assert_eq!(context.floor(A), 3);
        assert!(context.covers(OverlayDot { actor: A, n: 5 }));
        assert!(!context.covers(OverlayDot { actor: A, n: 4 }));
        context.insert(OverlayDot { actor: A, n: 4 });
        assert_eq!(context, OverlayContext::from_parts([(A, 5)], []));
    }

    #[test]
    fn missing_dots_are_counted_one_by_one() {
        let dot = |n| OverlayDot { actor: A, n };
        let whole = OverlayContext::from_parts([(A, 6)], [dot(9)]);
        let part = OverlayContext::from_parts([(A, 2)], [dot(4), dot(8)]);
        // 3, 5, 6 and 9.
        assert_eq!(whole.missing_in(&part), 4);
        assert_eq!(part.missing_in(&whole), 1);
        assert_eq!(whole.missing_in(&OverlayContext::default()), 7);
        assert_eq!(whole.missing_in(&whole), 0);
    }

    #[test]
    fn joining_is_idempotent_and_commutative() {
        let dot = |n| OverlayDot { actor: A, n };
        let left = OverlayContext::from_parts([(A, 2)], [dot(6)]);
        let right = OverlayContext::from_parts([], [dot(3), dot(4), dot(9)]);
        let mut one = left.clone();
        one.join(&right);
        let mut two = right.clone();
        two.join(&left);
        assert_eq!(one, two);
        one.join(&right);
        assert_eq!(one, two);
        assert!(one.covers_all(&left) && one.covers_all(&right) && !left.covers_all(&right));
        assert_eq!(one.floor(A), 4);
    }
}
