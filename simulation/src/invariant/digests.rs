//! Replicas at one sequence are equal in every digest, and so are their indexes at one job of one
//! generation (design.md, promise 1 and section 4: every index is a pure function of the log).
//!
//! All (partition, sequence) and (partition, generation, job) ever seen are remembered, so a
//! replica is also compared with what another one, or itself before a crash, was long ago. Broken
//! by: a window boundary off by one on replay; state and applied index saved apart; a snapshot that
//! lacks a table; anything applied twice or skipped; order that depends on time or threads.

use std::collections::BTreeMap;

use engram_core::types::{NodeId, PartitionId, Sequence};

use super::{Findings, Moment, Watcher};

/// Remembers every digest.
#[derive(Default)]
pub struct Digests {
    states: BTreeMap<(PartitionId, Sequence), (String, NodeId)>,
    topologies: BTreeMap<(PartitionId, u64, u64), (String, NodeId)>,
}

impl Watcher for Digests {
    fn name(&self) -> &'static str {
        "equal at equal sequence"
    }

    fn watch(&mut self, moment: &Moment<'_>, findings: &mut Findings<'_>) {
        for node in moment.nodes {
            for replica in &node.partitions {
                let key = (replica.partition, replica.sequence);
                let here = || (replica.digests.clone(), node.node);
                let (first, on) = self.states.entry(key).or_insert_with(here);
                if *first != replica.digests {
                    findings.report(format!(
                        "partition {} at sequence {}: node {on} has {first}, node {} has {}",
                        replica.partition, replica.sequence, node.node, replica.digests
                    ));
                }
                let Some((generation, job, digest)) = &replica.topology else {
                    continue;
                };
                let key = (replica.partition, *generation, *job);
                let here = || (digest.clone(), node.node);
                let (first, on) = self.topologies.entry(key).or_insert_with(here);
                if first != digest {
                    findings.report(format!(
                        "partition {}, generation {generation}, job {job}: the graph of node {on} is \
                         {first}, of node {} it is {digest}",
                        replica.partition, node.node
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
    use crate::observe::{NodeObservation, PartitionObservation};

    fn holding(host: usize, replica: PartitionObservation) -> NodeObservation {
        NodeObservation {
            partitions: vec![replica],
            ..node(host, Vec::new())
        }
    }

    #[test]
    fn states_are_compared_across_nodes_and_time() {
        let mut watcher = Digests::default();
        let first = [holding(0, partition(5, "a")), holding(1, partition(4, "b"))];
        assert_eq!(watch(&mut watcher, &first), []);
        assert_eq!(watch(&mut watcher, &[holding(1, partition(5, "a"))]), []);
        assert_eq!(
            watch(&mut watcher, &[holding(2, partition(4, "c"))]).len(),
            1
        );
    }

    #[test]
    fn graphs_are_compared_by_generation_and_job() {
        let mut watcher = Digests::default();
        let with = |job, digest: &str| PartitionObservation {
            topology: Some((1, job, digest.into())),
            ..partition(9, "a")
        };
        assert_eq!(watch(&mut watcher, &[holding(0, with(3, "x"))]), []);
        assert_eq!(watch(&mut watcher, &[holding(1, with(4, "y"))]), []);
        assert_eq!(watch(&mut watcher, &[holding(1, with(3, "y"))]).len(), 1);
    }
}
