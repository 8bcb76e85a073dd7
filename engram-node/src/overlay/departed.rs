//! What replicas that have left the map took with them.
//!
//! Every replica tells what it has seen. Once one is no longer on the map, what it had seen and
//! this node has not is *unaccounted for*: it comes when the node hands over what it held, or it is
//! lost with it. What such a node accepted after it was last heard of is known to nobody; the log
//! says since when that may be.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use engram_core::types::{NodeId, OverlayContext};

/// Departed replicas of a partition that are remembered, the newest.
const DEPARTED_MAX: usize = 16;

#[derive(Clone, Debug)]
struct Heard {
    at: Duration,
    seen: OverlayContext,
}

/// Of one partition.
#[derive(Clone, Debug, Default)]
pub struct Departed {
    /// Of the others on the map.
    heard: BTreeMap<NodeId, Heard>,
    gone: VecDeque<(NodeId, OverlayContext)>,
}

/// A replica that is no longer on the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    pub node: NodeId,
    /// Since it was last heard of.
    pub silent: Duration,
    /// Changes that it had and this node has not, so far.
    pub unaccounted: u64,
}

impl Departed {
    pub fn heard(&mut self, now: Duration, node: NodeId, seen: OverlayContext) {
        self.heard.insert(node, Heard { at: now, seen });
    }

    /// Who has left since the last call.
    pub fn follow(
        &mut self,
        now: Duration,
        current: &[NodeId],
        own: impl FnOnce() -> OverlayContext,
    ) -> Vec<Departure> {
        if self.heard.keys().all(|node| current.contains(node)) {
            return Vec::new();
        }
        let own = own();
        let mut departures = Vec::new();
        self.heard.retain(|node, heard| {
            if current.contains(node) {
                return true;
            }
            departures.push(Departure {
                node: *node,
                silent: now.saturating_sub(heard.at),
                unaccounted: heard.seen.missing_in(&own),
            });
            self.gone
                .push_back((*node, std::mem::take(&mut heard.seen)));
            false
        });
        while self.gone.len() > DEPARTED_MAX {
            self.gone.pop_front();
        }
        departures
    }

    /// How many changes departed replicas had seen that this node has not. Those that have come
    /// are forgotten.
    pub fn unaccounted(&mut self, own: &OverlayContext) -> u64 {
        self.gone.retain(|(_, seen)| !own.covers_all(seen));
        let mut together = OverlayContext::default();
        for (_, seen) in &self.gone {
            together.join(seen);
        }
        together.missing_in(own)
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::ActorId;

    use super::*;

    const LEFT: NodeId = NodeId(2);
    const STAYS: NodeId = NodeId(3);

    fn seen(n: u64) -> OverlayContext {
        OverlayContext::from_parts([(ActorId([1; 16]), n)], [])
    }

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_a_departed_replica_had_is_unaccounted_for_until_it_comes() {
        let mut departed = Departed::default();
        departed.heard(second(1), LEFT, seen(7));
        departed.heard(second(9), STAYS, seen(4));
        let both = [LEFT, STAYS];
        assert_eq!(departed.follow(second(10), &both, || seen(4)), []);
        let left = departed.follow(second(11), &[STAYS], || seen(4));
        let expected = Departure {
            node: LEFT,
            silent: second(10),
            unaccounted: 3,
        };
        assert_eq!(left, [expected]);
        assert_eq!(departed.follow(second(12), &[STAYS], || seen(4)), []);
        assert_eq!(departed.unaccounted(&seen(5)), 2);
        assert_eq!(departed.unaccounted(&seen(7)), 0);
        // It came: a context that knows less, as after a restored disk, asks for nothing more.
        assert_eq!(departed.unaccounted(&seen(4)), 0);
    }

    #[test]
    fn few_departures_are_remembered() {
        let mut departed = Departed::default();
        for node in 0..100 {
            departed.heard(second(node), NodeId(node), seen(node));
            let _ = departed.follow(second(node), &[], || seen(0));
        }
        assert_eq!(departed.gone.len(), DEPARTED_MAX);
        assert_eq!(departed.unaccounted(&seen(90)), 9);
    }
}
