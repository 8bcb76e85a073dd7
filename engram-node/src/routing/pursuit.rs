//! The pursuit of a group's leader by one request: whom to ask next.
//!
//! Hints are followed, replicas are asked in turn when there is no hint, and a node that failed is
//! passed over until the others were asked. Between rounds the request pauses.

use engram_core::types::NodeId;

/// Hints that are followed without a pause.
const HINTS_IN_A_ROW_MAX: u32 = 2;

/// Whom to ask for one request. Pure: the caller sleeps and asks.
#[derive(Debug, Default)]
pub struct Pursuit {
    hint: Option<NodeId>,
    suspect: Option<NodeId>,
    /// Said last that it does not lead: what this node believes of it is not asked for again until
    /// the others were.
    denied: Option<NodeId>,
    hints_in_a_row: u32,
    asked: usize,
}

impl Pursuit {
    /// The next node to ask. `believed` is who leads as far as this node knows.
    pub fn target(&mut self, believed: Option<NodeId>, replicas: &[NodeId]) -> Option<NodeId> {
        let trusted = |node: &NodeId| Some(*node) != self.suspect;
        if let Some(node) = self
            .hint
            .take()
            .filter(trusted)
            .or(believed.filter(|node| trusted(node) && Some(*node) != self.denied))
        {
            return Some(node);
        }
        let others: Vec<NodeId> = replicas.iter().copied().filter(trusted).collect();
        let candidates = if others.is_empty() { replicas } else { &others };
        let target = candidates
            .get(self.asked % candidates.len().max(1))
            .copied();
        self.asked += 1;
        if self.asked.is_multiple_of(replicas.len().max(1)) {
            (self.suspect, self.denied) = (None, None);
        }
        target
    }

    /// `node` named the leader, or nobody. Answers whether to pause before the next attempt.
    pub fn redirected(&mut self, node: NodeId, hint: Option<NodeId>) -> bool {
        self.denied = Some(node);
        self.hint = hint.filter(|hint| *hint != node && Some(*hint) != self.suspect);
        if self.hint.is_some() && self.hints_in_a_row < HINTS_IN_A_ROW_MAX {
            self.hints_in_a_row += 1;
            return false;
        }
        if hint.is_none() {
            // Whoever is believed to lead says that it does not: ask the others first.
            self.suspect = Some(node);
        }
        self.hints_in_a_row = 0;
        true
    }

    /// `node` did not answer, or cannot serve.
    pub fn failed(&mut self, node: NodeId) {
        self.suspect = Some(node);
        self.hints_in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    #[test]
    fn the_believed_leader_is_asked_first_and_hints_are_followed() {
        let mut pursuit = Pursuit::default();
        assert_eq!(pursuit.target(Some(B), &[A, B, C]), Some(B));
        assert!(
            !pursuit.redirected(B, Some(C)),
            "a hint is followed at once"
        );
        assert_eq!(pursuit.target(Some(B), &[A, B, C]), Some(C));
    }

    #[test]
    fn a_failed_node_is_passed_over_until_the_others_were_asked() {
        let mut pursuit = Pursuit::default();
        pursuit.failed(A);
        let asked: Vec<_> = (0..3)
            .filter_map(|_| pursuit.target(Some(A), &[A, B, C]))
            .collect();
        assert!(asked[0] != A && asked[1] != A, "{asked:?}");
        assert_eq!(
            pursuit.target(Some(A), &[A, B, C]),
            Some(A),
            "then it gets its chance again"
        );
    }

    #[test]
    fn two_nodes_that_name_each_other_make_the_request_pause() {
        let mut pursuit = Pursuit::default();
        let pauses = [(A, B), (B, A), (A, B)].map(|(from, to)| {
            let pause = pursuit.redirected(from, Some(to));
            assert_eq!(pursuit.target(None, &[A, B]), Some(to));
            pause
        });
        assert_eq!(pauses, [false, false, true]);
    }

    #[test]
    fn a_hint_to_a_node_that_failed_is_not_believed_at_once() {
        let mut pursuit = Pursuit::default();
        pursuit.failed(A);
        assert_eq!(pursuit.target(Some(A), &[A, B, C]), Some(B));
        assert!(pursuit.redirected(B, Some(A)));
        assert_eq!(pursuit.target(Some(A), &[A, B, C]), Some(C));
    }

    #[test]
    fn a_leader_that_failed_once_is_found_although_another_is_believed_to_lead() {
        let mut pursuit = Pursuit::default();
        assert_eq!(pursuit.target(Some(B), &[A, B, C]), Some(B));
        pursuit.redirected(B, Some(A));
        assert_eq!(pursuit.target(Some(B), &[A, B, C]), Some(A));
        // It does not lead yet, and will in a moment.
        pursuit.failed(A);
        let asked: Vec<_> = (0..6)
            .filter_map(|_| {
                let target = pursuit.target(Some(B), &[A, B, C]);
                target.inspect(|node| {
                    pursuit.redirected(*node, Some(A));
                })
            })
            .collect();
        assert!(asked.contains(&A), "{asked:?}");
    }

    #[test]
    fn a_lone_replica_is_asked_again() {
        let mut pursuit = Pursuit::default();
        pursuit.failed(A);
        assert_eq!(pursuit.target(None, &[A]), Some(A));
        assert_eq!(pursuit.target(None, &[]), None);
    }
}
