//! What a replica's disk holds is what the replica says that it holds (design.md sections 3 and 4).
//!
//! The digests that [`super::digests`] compares are kept by subtraction and addition as commands
//! are applied: a record too many or too few on disk does not show in them. So now and then all
//! records are added up. Broken by: a snapshot installed over old records; a batch that is not
//! written whole.

use super::{Findings, Moment, Watcher};

/// Compares each moment by itself.
pub struct Records;

impl Watcher for Records {
    fn name(&self) -> &'static str {
        "records are what the replica says"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            for replica in &node.partitions {
                if let Some(stored) = &replica.stored
                    && stored.held != stored.records
                {
                    findings.report(format!(
                        "partition {} at {}: node {} holds memories and edges {:032x?}, its records \
                         are {:032x?}",
                        replica.partition, replica.sequence, node.node, stored.held, stored.records
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{node, partition, watch};
    use super::*;
    use crate::observe::{NodeObservation, PartitionObservation, StoredObservation};

    #[test]
    fn records_that_are_not_what_is_said_are_found() {
        let found = |records| {
            let stored = StoredObservation {
                held: (1, 2),
                records,
            };
            let holding = NodeObservation {
                partitions: vec![PartitionObservation {
                    stored: Some(stored),
                    ..partition(5, "a")
                }],
                ..node(0, Vec::new())
            };
            watch(&mut Records, &[holding]).len()
        };
        assert_eq!(found((1, 2)), 0);
        assert_eq!(found((1, 9)), 1);
        assert_eq!(found((9, 2)), 1);
    }
}
