//! The client's copy of the cluster map: which node is primary of a memory's partition.
//!
//! Only a shortcut: any node forwards what is not its own, so a missing or stale map costs a hop
//! and never an answer. Learned when a space is first used, again after a hint or a failure, and
//! when it has grown old.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::{HashSlot, MemoryId, SlotRange};
use engram_proto::v1;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use crate::machine::Deadline;

/// Age at which a map is learned again.
const MAP_AGE_MAX: Duration = Duration::from_secs(30);
/// Shortest time between two attempts to learn the map of one space.
const LEARN_INTERVAL: Duration = Duration::from_millis(250);
/// Spaces whose maps are kept.
const SPACES_MAX: usize = 1_024;

#[derive(Default)]
pub(crate) struct Routes {
    spaces: RwLock<HashMap<String, Arc<SpaceRoutes>>>,
    /// Held by the one caller that learns; the others go unrouted meanwhile.
    pub(crate) learning: Mutex<()>,
}

struct SpaceRoutes {
    ranges: Vec<(SlotRange, String)>,
    /// When to learn again; moved to now by a hint or failure.
    learn_at: Deadline,
    /// Not before this, whatever happens.
    not_before: Deadline,
}

/// Where a request for one memory goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The primary's client address; none when the map knows no primary.
    Route(Option<String>),
    /// The map is missing or stale.
    Learn,
}

impl Routes {
    pub(crate) fn find(&self, space: &str, id: &str) -> Found {
        let spaces = self.spaces.read();
        let Some(routes) = spaces.get(space) else {
            return Found::Learn;
        };
        if routes.learn_at.passed() && routes.not_before.passed() {
            return Found::Learn;
        }
        // An id that is none is refused by the server, with its reason.
        let Ok(id) = MemoryId::new(id) else {
            return Found::Route(None);
        };
        Found::Route(routes.primary_of(id.hash_slot()))
    }

    /// The map of `space` is to be learned again.
    pub(crate) fn stale(&self, space: &str) {
        let mut spaces = self.spaces.write();
        if let Some(routes) = spaces.get_mut(space) {
            *routes = Arc::new(SpaceRoutes {
                ranges: routes.ranges.clone(),
                learn_at: Deadline::after(Duration::ZERO),
                not_before: routes.not_before,
            });
        }
    }

    pub(crate) fn forget(&self, space: &str) {
        self.spaces.write().remove(space);
    }

    /// Takes over what the cluster answered; empty lists keep unrouted calls from asking at once
    /// again.
    pub(crate) fn learned(&self, space: &str, nodes: &[v1::Node], partitions: &[v1::Partition]) {
        let address = |node: u64| {
            let known = nodes.iter().find(|candidate| candidate.id == node);
            known
                .map(|node| node.client_address.clone())
                .filter(|address| !address.is_empty())
        };
        let ranges = partitions.iter().filter_map(|partition| {
            let range = SlotRange {
                start: u16::try_from(partition.slot_start).ok()?,
                end: u16::try_from(partition.slot_end).ok()?,
            };
            Some((range, address(partition.primary)?))
        });
        let routes = SpaceRoutes {
            ranges: ranges.collect(),
            learn_at: Deadline::after(MAP_AGE_MAX),
            not_before: Deadline::after(LEARN_INTERVAL),
        };
        let mut spaces = self.spaces.write();
        if spaces.len() >= SPACES_MAX {
            spaces.clear();
        }
        spaces.insert(space.to_owned(), Arc::new(routes));
    }
}

impl SpaceRoutes {
    fn primary_of(&self, slot: HashSlot) -> Option<String> {
        let owner = self.ranges.iter().find(|(range, _)| range.contains(slot));
        owner.map(|(_, address)| address.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> v1::Node {
        v1::Node {
            id,
            client_address: format!("n{id}:7400"),
            ..Default::default()
        }
    }

    fn partition(slots: SlotRange, primary: u64) -> v1::Partition {
        v1::Partition {
            slot_start: slots.start.into(),
            slot_end: slots.end.into(),
            primary,
            ..Default::default()
        }
    }

    #[test]
    fn a_memory_is_routed_to_the_primary_of_its_slot() {
        let routes = Routes::default();
        assert_eq!(routes.find("s", "a"), Found::Learn);
        let slots = SlotRange::split_evenly(3);
        let partitions: Vec<v1::Partition> = slots
            .iter()
            .zip([1, 2, 3])
            .map(|(range, node)| partition(*range, node))
            .collect();
        routes.learned("s", &[node(1), node(2), node(3)], &partitions);
        for id in ["a", "b", "dog.n.02084071", "{tag}x", "{tag}y"] {
            let slot = MemoryId::new(id).expect("valid").hash_slot();
            let owner = slots
                .iter()
                .position(|range| range.contains(slot))
                .expect("covered");
            let expected = format!("n{}:7400", owner + 1);
            assert_eq!(routes.find("s", id), Found::Route(Some(expected)));
        }
        assert_eq!(routes.find("other", "a"), Found::Learn);
    }

    #[test]
    fn a_partition_without_primary_is_unrouted() {
        let routes = Routes::default();
        routes.learned("s", &[node(1)], &[partition(SlotRange::ALL, 0)]);
        assert_eq!(routes.find("s", "a"), Found::Route(None));
        assert_eq!(routes.find("s", ""), Found::Route(None));
    }

    #[test]
    fn a_stale_map_is_used_until_it_may_be_learned_again() {
        let routes = Routes::default();
        routes.learned("s", &[node(1)], &[partition(SlotRange::ALL, 1)]);
        routes.stale("s");
        assert_eq!(routes.find("s", "a"), Found::Route(Some("n1:7400".into())));
        routes.forget("s");
        assert_eq!(routes.find("s", "a"), Found::Learn);
    }
}
