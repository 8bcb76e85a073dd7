//! Which evidence may be folded: what every current replica has passed (ADR 0003).
//!
//! A frontier is the log's context at a sequence. Folding under it makes removals that have not
//! reached it conflicts, so none of those may be on its way any more. A replica says where it is
//! ([`ReplicaPosition`]): removals that it issues from then on have reached its sequence, and those
//! from before are among the dots that it has seen. Once the log has these dots, the replica has
//! passed the sequence for good: its position is *settled*. Replicas that are not on the cluster
//! map are not waited for; what they bring when they return is reported.
//!
//! A base does not know whose evidence it holds, unless a second attempt was known by then. So a
//! frontier is one that the log had some time ago: whoever repeats a call within that time meets the
//! first attempt, and counts once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use engram_core::planted;
use engram_core::types::{EdgeContext, NodeId, OverlayContext, Sequence};

/// Contexts of the own log that are kept to choose from.
const CONTEXTS_KEPT: usize = 16;

#[derive(Clone, Debug, Default)]
struct Known {
    settled: Option<Sequence>,
    /// A position whose dots the log does not have yet.
    waiting: Option<(Sequence, OverlayContext)>,
}

/// What the primary knows of the replicas of one partition.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    replicas: BTreeMap<NodeId, Known>,
    /// Of the own log, and since when it has had them, the oldest first.
    contexts: VecDeque<(Duration, EdgeContext)>,
}

impl Frontier {
    /// A replica told where it is. One that is behind its own past was set back (or this is old
    /// news): it counts from there, and what it lost is not waited for.
    pub fn heard(&mut self, node: NodeId, sequence: Sequence, seen: OverlayContext) {
        let known = self.replicas.entry(node).or_default();
        let went_back = known.settled.is_some_and(|settled| sequence < settled);
        let lost = known
            .waiting
            .as_ref()
            .is_some_and(|(_, before)| !seen.covers_all(before));
        if went_back || lost {
            *known = Known::default();
        }
        known.waiting.get_or_insert((sequence, seen));
    }

    /// The log has grown to this context.
    pub fn grown(&mut self, now: Duration, log: &EdgeContext) {
        for known in self.replicas.values_mut() {
            if let Some((sequence, seen)) = known.waiting.take() {
                if log.overlay.covers_all(&seen) && sequence <= log.sequence {
                    known.settled = Some(sequence);
                } else {
                    known.waiting = Some((sequence, seen));
                }
            }
        }
        let last = self.contexts.back().map(|(_, context)| context.sequence);
        if last.is_none_or(|last| last < log.sequence) {
            self.contexts.push_back((now, log.clone()));
        }
        if self.contexts.len() > CONTEXTS_KEPT {
            self.thin_out();
        }
    }

    /// Every second context goes, so that old and new ones stay.
    fn thin_out(&mut self) {
        let mut keep = false;
        self.contexts.retain(|_| {
            keep = !keep;
            keep
        });
    }

    /// The furthest frontier that all of these replicas have passed, and that the log has had since
    /// `before`.
    #[must_use]
    pub fn stable(
        &self,
        replicas: impl IntoIterator<Item = NodeId>,
        before: Option<Duration>,
    ) -> Option<&EdgeContext> {
        let settled = |node: NodeId| self.replicas.get(&node).and_then(|known| known.settled);
        let counts = |node: &NodeId| !planted!("fold-past-the-unheard") || settled(*node).is_some();
        let passed = replicas
            .into_iter()
            .filter(counts)
            .map(settled)
            .reduce(|least, next| least.zip(next).map(|(a, b)| a.min(b)))??;
        let before = before?;
        let reached = |(since, context): &&(Duration, EdgeContext)| {
            context.sequence <= passed && *since <= before
        };
        let found = self.contexts.iter().rev().find(reached);
        found.map(|(_, context)| context)
    }

    /// Forgets replicas that are no longer on the map.
    pub fn retain(&mut self, is_current: impl Fn(NodeId) -> bool) {
        self.replicas.retain(|node, _| is_current(*node));
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::ActorId;

    use super::*;

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    const NOW: Duration = Duration::from_secs(100);

    fn seen(n: u64) -> OverlayContext {
        OverlayContext::from_parts([(ActorId([1; 16]), n)], [])
    }

    fn log(sequence: u64, n: u64) -> EdgeContext {
        EdgeContext {
            sequence: Sequence(sequence),
            overlay: seen(n),
        }
    }

    #[test]
    fn a_frontier_is_what_all_have_passed() {
        let mut frontier = Frontier::default();
        frontier.grown(NOW, &log(5, 0));
        frontier.heard(NODES[0], Sequence(9), seen(0));
        frontier.heard(NODES[1], Sequence(7), seen(0));
        frontier.grown(NOW, &log(9, 0));
        assert_eq!(
            frontier.stable(NODES, Some(NOW)),
            None,
            "the third was never heard of"
        );
        frontier.heard(NODES[2], Sequence(8), seen(0));
        assert_eq!(frontier.stable(NODES, Some(NOW)), None, "not settled yet");
        frontier.grown(NOW, &log(10, 0));
        assert_eq!(frontier.stable(NODES, Some(NOW)), Some(&log(5, 0)));
        assert_eq!(frontier.stable([NODES[0]], Some(NOW)), Some(&log(9, 0)));
    }

    #[test]
    fn a_position_counts_when_the_log_has_what_it_had_seen() {
        let mut frontier = Frontier::default();
        let stable = |frontier: &Frontier| frontier.stable([NODES[0]], Some(NOW)).cloned();
        frontier.grown(NOW, &log(3, 0));
        // Removals that it issued before may be among these dots.
        frontier.heard(NODES[0], Sequence(3), seen(2));
        frontier.grown(NOW, &log(4, 1));
        assert_eq!(stable(&frontier), None);
        frontier.heard(NODES[0], Sequence(4), seen(7));
        frontier.grown(NOW, &log(5, 2));
        assert_eq!(stable(&frontier), Some(log(3, 0)));
    }

    #[test]
    fn a_replica_that_was_set_back_is_waited_for() {
        let mut frontier = Frontier::default();
        frontier.grown(NOW, &log(3, 0));
        frontier.heard(NODES[0], Sequence(8), seen(0));
        frontier.grown(NOW, &log(8, 0));
        assert_eq!(frontier.stable([NODES[0]], Some(NOW)), Some(&log(8, 0)));
        frontier.heard(NODES[0], Sequence(2), seen(0));
        assert_eq!(frontier.stable([NODES[0]], Some(NOW)), None);
        // That position settles, and no frontier that is kept is as old.
        frontier.grown(NOW, &log(8, 0));
        assert_eq!(frontier.stable([NODES[0]], Some(NOW)), None);
        // What it had seen is lost with its disk: the log will never have it.
        frontier.heard(NODES[0], Sequence(9), seen(4));
        frontier.heard(NODES[0], Sequence(9), seen(0));
        frontier.grown(NOW, &log(9, 0));
        assert_eq!(frontier.stable([NODES[0]], Some(NOW)), Some(&log(9, 0)));
    }

    #[test]
    fn contexts_to_choose_from_are_bounded() {
        let mut frontier = Frontier::default();
        for sequence in 1..1_000 {
            frontier.grown(NOW, &log(sequence, 0));
            assert!(frontier.contexts.len() <= CONTEXTS_KEPT);
        }
        frontier.heard(NODES[0], Sequence(999), seen(0));
        frontier.grown(NOW, &log(999, 0));
        assert_eq!(frontier.stable([NODES[0]], Some(NOW)), Some(&log(999, 0)));
    }

    #[test]
    fn what_the_log_has_had_for_a_short_time_is_not_folded() {
        let mut frontier = Frontier::default();
        let at = Duration::from_secs;
        frontier.grown(at(10), &log(5, 0));
        frontier.grown(at(20), &log(6, 0));
        frontier.heard(NODES[0], Sequence(6), seen(0));
        frontier.grown(at(21), &log(6, 0));
        let stable = |before| frontier.stable([NODES[0]], before);
        assert_eq!(stable(None), None, "the process is younger than that");
        assert_eq!(stable(Some(at(9))), None);
        assert_eq!(stable(Some(at(19))), Some(&log(5, 0)));
        assert_eq!(stable(Some(at(20))), Some(&log(6, 0)));
    }
}
