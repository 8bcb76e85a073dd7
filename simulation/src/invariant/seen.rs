//! A replica goes on to have what it had seen, its sequence and the dots of local changes, for as
//! long as its process lives (design.md section 3: a session token is covered or it is not, and
//! section 5: the overlay survives a snapshot).
//!
//! What one replica alone has seen is lost with it. Broken by: a snapshot whose installation takes
//! the overlay with it; adopted changes dropped before the log has them.

use std::collections::BTreeMap;

use engram_core::types::{EdgeContext, NodeId, PartitionId};

use super::{Findings, Moment, Watcher};

/// Remembers what each replica had seen last, by node, process and partition.
#[derive(Default)]
pub struct Seen {
    last: BTreeMap<(NodeId, u64, PartitionId), EdgeContext>,
}

impl Watcher for Seen {
    fn name(&self) -> &'static str {
        "what was seen stays seen"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            // A replica that went and came again begins anew.
            let here = |id: &PartitionId| node.partitions.iter().any(|one| one.partition == *id);
            self.last.retain(|(of, incarnation, partition), _| {
                *of != node.node || (*incarnation == node.incarnation && here(partition))
            });
            for replica in &node.partitions {
                let key = (node.node, node.incarnation, replica.partition);
                let before = self.last.insert(key, replica.seen.clone());
                if let Some(before) = before
                    && !(replica.seen.sequence >= before.sequence
                        && replica.seen.overlay.covers_all(&before.overlay))
                {
                    findings.report(format!(
                        "partition {} on node {}: it had seen {before:?}, and now {:?}",
                        replica.partition, node.node, replica.seen
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{ActorId, OverlayContext, Sequence};

    use super::super::trial::{node, partition, watch};
    use super::*;
    use crate::observe::{NodeObservation, PartitionObservation};

    fn at(incarnation: u64, sequence: u64, dots: u64) -> NodeObservation {
        let actor = ActorId([3; 16]);
        let seen = EdgeContext {
            sequence: Sequence(sequence),
            overlay: OverlayContext::from_parts([(actor, dots)], []),
        };
        NodeObservation {
            incarnation,
            partitions: vec![PartitionObservation {
                seen,
                ..partition(sequence, "")
            }],
            ..node(0, Vec::new())
        }
    }

    #[test]
    fn dots_that_are_gone_are_found_but_not_across_a_restart() {
        let mut watcher = Seen::default();
        assert_eq!(watch(&mut watcher, &[at(1, 5, 3)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 7, 3)]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 9, 2)]).len(), 1);
        assert_eq!(watch(&mut watcher, &[at(2, 4, 0)]), []);
    }

    #[test]
    fn a_replica_that_went_and_came_again_begins_anew() {
        let mut watcher = Seen::default();
        assert_eq!(watch(&mut watcher, &[at(1, 5, 3)]), []);
        assert_eq!(watch(&mut watcher, &[node(0, Vec::new())]), []);
        assert_eq!(watch(&mut watcher, &[at(1, 1, 0)]), []);
    }
}
