//! Looking at the nodes from outside, between two ticks.

use engram_core::partition::Partition;
use engram_core::types::GroupId;
use engram_node::control::ClusterMap;
use engram_node::server::Server;

use super::World;
use super::node::Node;
use crate::observe::{
    GroupObservation, LogObservation, MapObservation, NodeObservation, PartitionObservation,
    StoredObservation,
};
use crate::plan::Host;

impl World {
    /// All nodes that serve.
    #[must_use]
    pub fn observe(&self) -> Vec<NodeObservation> {
        self.observe_all(false)
    }

    /// As [`World::observe`], and with what the partitions' records on disk come to, which takes
    /// long.
    #[must_use]
    pub fn observe_records(&self) -> Vec<NodeObservation> {
        self.observe_all(true)
    }

    fn observe_all(&self, with_records: bool) -> Vec<NodeObservation> {
        let observed = self.nodes.iter().filter_map(|node| {
            // What a failed write or damage left behind is the node's to find.
            let with_records = with_records && node.platter.is_sound();
            node.with_server(|server| observe_node(node, server, with_records))
        });
        observed.collect()
    }

    /// The entries `first..end` of a group's log that a node has on its disk.
    #[must_use]
    pub fn log(&self, host: Host, group: GroupId, first: u64, end: u64) -> Vec<LogObservation> {
        // A damaged log is the node's to find: it has no entries to compare.
        let node = self.nodes.get(host.0);
        let node = node.filter(|node| !node.platter.reads_wrong());
        let entries = node.and_then(|node| {
            let before = first.saturating_sub(1);
            node.with_server(|server| server.consensus().log_entries(group, before, end))
        });
        let entries = entries.and_then(Result::ok).unwrap_or_default();
        let mut previous = None;
        let mut observed = Vec::new();
        for entry in entries {
            let follows = |before: &(u64, u64)| before.0 + 1 == entry.index;
            if entry.index >= first {
                observed.push(LogObservation {
                    index: entry.index,
                    term: entry.term,
                    content: entry.content,
                    previous_term: previous.filter(follows).map(|(_, term)| term),
                });
            }
            previous = Some((entry.index, entry.term));
        }
        observed
    }
}

fn observe_node(node: &Node, server: &Server, with_records: bool) -> NodeObservation {
    let map = server.plane().map();
    let consensus = server.consensus();
    let groups = consensus.status();
    NodeObservation {
        host: node.host,
        node: server.node(),
        incarnation: node.lives(),
        disk_was_damaged: node.platter.was_damaged(),
        damaged: consensus.damaged(),
        map: map.is_founded().then(|| observe_map(&map)),
        groups: groups
            .into_iter()
            .map(|group| GroupObservation {
                group: group.group,
                repairs: group.repairs,
                deletions: group.deletions,
                term: group.term,
                stored_term: consensus.stored_term(group.group).ok().flatten(),
                leads: group.leads,
                last_log_index: group.last_log_index,
                committed_index: group.committed_index,
                applied_index: group.applied_index,
                voters: group.voters,
                learners: group.learners,
                stopped: group.stopped,
            })
            .collect(),
        partitions: server
            .replicas()
            .partitions()
            .into_iter()
            .map(|(group, partition)| {
                let purged = server.replicas().cleared().of(partition.id());
                PartitionObservation {
                    purging: purged < partition.purges().last,
                    ..observe_partition(group, &partition, with_records)
                }
            })
            .collect(),
    }
}

fn observe_map(map: &ClusterMap) -> MapObservation {
    let placed = map.partitions().map(|(space, partition)| {
        let place = (partition.group, space.config.space, space.replicas);
        (partition.id, place)
    });
    MapObservation {
        index: map.index,
        nodes: map.nodes.keys().copied().collect(),
        groups: map
            .groups
            .values()
            .map(|group| (group.id, group.replicas.clone()))
            .collect(),
        dropping: map
            .groups
            .keys()
            .flat_map(|group| map.dropping_of(*group))
            .collect(),
        partitions: placed.collect(),
    }
}

fn observe_partition(
    group: GroupId,
    partition: &Partition,
    with_records: bool,
) -> PartitionObservation {
    let status = partition.summary();
    let topology = partition
        .topology()
        .map(|(at, digest)| (at.generation, at.jobs, digest.to_string()));
    let overlay = format!("{:?}", partition.overlay_context());
    let log = u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at: usize| status.log_hash[at]));
    PartitionObservation {
        space: partition.config().space,
        partition: partition.id(),
        group,
        sequence: status.sequence,
        digests: format!(
            "log {log:016x} memories {} {:032x} edges {} {:032x} requests {:032x}",
            status.memories,
            status.memory_digest,
            status.edges,
            status.edge_digest,
            status.request_digest
        ),
        topology,
        overlay: format!("{:016x}", super::trace::digest(overlay.as_bytes())),
        seen: partition.context(),
        stored: with_records.then(|| observe_stored(partition)).flatten(),
        jobs: usize::try_from(partition.jobs_waiting()).unwrap_or(usize::MAX),
        purging: false,
    }
}

fn observe_stored(partition: &Partition) -> Option<StoredObservation> {
    let (records, view) = partition.recompute_digests().ok()?;
    let held = view.digests();
    Some(StoredObservation {
        held: (held.memory, held.edge),
        records: (records.memory, records.edge),
    })
}
