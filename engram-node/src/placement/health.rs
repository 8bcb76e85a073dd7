//! How long nodes have been down: what the grace period is measured with. A pure step.
//!
//! Kept by whoever leads the control plane; a new leader begins to measure anew, so a failover never
//! makes the period shorter.

use std::collections::BTreeMap;
use std::time::Duration;

use engram_core::types::NodeId;

use super::planner::{Health, Healths};
use crate::control::{ClusterMap, NodeState};
use crate::membership::{Liveness, LivenessView};

/// Since when each node is down.
#[derive(Debug, Default)]
pub struct Downtimes {
    down_since: BTreeMap<NodeId, Duration>,
}

impl Downtimes {
    /// The health of all nodes of the map at `now`. A node in maintenance is never given up on.
    pub fn observe(
        &mut self,
        map: &ClusterMap,
        liveness: &LivenessView,
        now: Duration,
        grace: Duration,
    ) -> Healths {
        self.down_since
            .retain(|node, _| map.nodes.contains_key(node));
        let nodes = map.nodes.values();
        let health = nodes.map(|node| {
            let believed = liveness.get(&node.id).copied();
            let health = match believed.unwrap_or(Liveness::Suspect) {
                Liveness::Dead => {
                    let since = *self.down_since.entry(node.id).or_insert(now);
                    let over = now.saturating_sub(since) >= grace;
                    match over && node.state != NodeState::Maintenance {
                        true => Health::Gone,
                        false => Health::Dead,
                    }
                }
                Liveness::Suspect => Health::Suspect,
                Liveness::Alive => {
                    self.down_since.remove(&node.id);
                    Health::Alive
                }
            };
            (node.id, health)
        });
        health.collect()
    }
}

/// Health as a view shows it, when nobody measures how long.
#[must_use]
pub fn snapshot(map: &ClusterMap, liveness: &LivenessView) -> Healths {
    Downtimes::default().observe(map, liveness, Duration::ZERO, Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ControlCommand;
    use crate::control::apply::apply;
    use crate::control::samples;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_is_given_up_on_after_the_grace_period_only() {
        let mut map = ClusterMap::default();
        for command in samples::commands().into_iter().take(3) {
            apply(&mut map, &command).outcome.expect("accepted");
        }
        let (node, mut times) = (NodeId(2), Downtimes::default());
        let dead: LivenessView = [(node, Liveness::Dead)].into();
        let alive: LivenessView = [(node, Liveness::Alive)].into();
        let mut health = |map: &ClusterMap, view: &LivenessView, seconds| {
            times.observe(map, view, at(seconds), GRACE)[&node]
        };
        assert_eq!(health(&map, &dead, 10), Health::Dead);
        assert_eq!(health(&map, &dead, 69), Health::Dead);
        assert_eq!(health(&map, &alive, 69), Health::Alive);
        assert_eq!(health(&map, &dead, 75), Health::Dead, "measured anew");
        assert_eq!(health(&map, &dead, 135), Health::Gone);
        let state = NodeState::Maintenance;
        let command = ControlCommand::SetNodeState { node, state };
        apply(&mut map, &command).outcome.expect("accepted");
        assert_eq!(health(&map, &dead, 900), Health::Dead);
    }
}
