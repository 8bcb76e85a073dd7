//! Carries out the moves of the groups that are led here.
//!
//! The map says where a group's replicas are to be ([`crate::control::MoveRecord`]); the group's
//! leader brings it about with [`next_step`] and ends the move with a command once the members are
//! as wanted, for certain. What must hold: nothing about a move is remembered outside the map and
//! the group's own log, so any leader of either goes on where the last one stopped; a step that was
//! taken already changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engram_core::types::{GroupId, NodeId};
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::change::{ChangeStep, View, next_step};
use crate::consensus::{ChangeError, Consensus, Members};
use crate::control::{ClusterMap, ControlCommand, ControlPlane, GroupRecord, MoveRecord};
use crate::membership::{Liveness, Membership};
use crate::seams::Seams;

/// How often a leader looks at its moves.
const PERIOD: Duration = Duration::from_millis(100);
/// Longest wait for one step; it is taken again then.
const STEP_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for leadership to go.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);
/// Moves that one node works on at a time, as source or target.
pub const MOVES_PER_NODE_MAX: usize = 2;
/// Moves of the whole cluster that are carried out at a time.
pub const MOVES_MAX: usize = 16;

/// Overlay deltas, as placement needs them.
#[async_trait]
pub trait Overlays: Send + Sync {
    /// Brings what this node holds of a group's overlays to another replica. An answer without an
    /// error means that the other one has everything that was here when the call began.
    ///
    /// # Errors
    /// When the other one did not confirm it: to be tried again.
    async fn push(&self, group: GroupId, to: NodeId) -> Result<(), String>;

    /// From now on this node accepts no local changes of the group's partitions.
    async fn retire(&self, group: GroupId);
}

/// The groups whose moves are carried out now; the others wait for theirs. The oldest go first, and
/// one whose nodes are busy lets others pass.
#[must_use]
pub fn active_moves(map: &ClusterMap) -> BTreeSet<GroupId> {
    let changing = map.groups.values();
    let changing = changing.filter_map(|group| Some((group.change.as_ref()?.id, group)));
    let mut changing: Vec<_> = changing.collect();
    changing.sort_by_key(|(id, _)| *id);
    let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut active = BTreeSet::new();
    for (_, group) in changing {
        let nodes = concerned(group);
        let free = |node: &NodeId| busy.get(node).copied().unwrap_or(0) < MOVES_PER_NODE_MAX;
        if active.len() < MOVES_MAX && nodes.iter().all(free) {
            for node in nodes {
                *busy.entry(node).or_default() += 1;
            }
            active.insert(group.id);
        }
    }
    active
}

/// Nodes that get a replica or give theirs up.
fn concerned(group: &GroupRecord) -> BTreeSet<NodeId> {
    let before: BTreeSet<NodeId> = group.replicas.iter().copied().collect();
    let after: BTreeSet<NodeId> = group.settled().iter().copied().collect();
    before.symmetric_difference(&after).copied().collect()
}

/// The mover of one node.
pub struct Mover {
    pub seams: Seams,
    pub plane: ControlPlane,
    pub consensus: Consensus,
    pub membership: Membership,
    pub overlays: Arc<dyn Overlays>,
    /// Learners that had the overlay pushed to them, by move: once is enough, the exchange between
    /// replicas does the rest.
    pub pushed: Mutex<BTreeSet<(u64, NodeId)>>,
}

impl Mover {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let map = self.plane.map();
            let ours = active_moves(&map).into_iter();
            let ours = ours.filter(|group| self.consensus.members(*group).is_some());
            let (this, map) = (&self, &map);
            stream::iter(ours)
                .for_each_concurrent(MOVES_MAX, |group| async move {
                    this.advance(map, group).await;
                })
                .await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.seams.clock.sleep(PERIOD) => {}
            }
        }
    }

    /// Takes the next step of a group's move.
    async fn advance(&self, map: &ClusterMap, group: GroupId) {
        let record = map.groups.get(&group);
        let Some((change, members)) = record
            .and_then(|record| record.change.as_ref())
            .zip(self.consensus.members(group))
        else {
            return;
        };
        let step = self.choose(map, change, &members);
        let taken = self.take(map, group, change, &step).await;
        match taken {
            Ok(()) if matches!(step, ChangeStep::Wait(_)) => {}
            Ok(()) => tracing::info!(group = group.0, r#move = change.id.0, ?step, "move step"),
            Err(reason) => {
                tracing::debug!(
                    group = group.0,
                    r#move = change.id.0,
                    ?step,
                    reason,
                    "move step is tried again"
                );
            }
        }
    }

    fn choose(&self, map: &ClusterMap, change: &MoveRecord, members: &Members) -> ChangeStep {
        let alive = map.nodes.keys().copied();
        let alive = alive.filter(|node| self.membership.liveness(*node) == Liveness::Alive);
        let alive: BTreeSet<NodeId> = alive.collect();
        let may_lead = map.nodes.values().filter(|node| node.state.is_active());
        let may_lead: BTreeSet<NodeId> = may_lead.map(|node| node.id).collect();
        let view = View {
            local: self.plane.local(),
            members,
            alive: &alive,
            may_lead: &may_lead,
        };
        next_step(&view, &change.goal, &BTreeSet::new())
    }

    async fn take(
        &self,
        map: &ClusterMap,
        group: GroupId,
        change: &MoveRecord,
        step: &ChangeStep,
    ) -> Result<(), String> {
        let text = |error: ChangeError| error.to_string();
        match step {
            ChangeStep::Wait(_) => Ok(()),
            ChangeStep::AddLearner(node) => {
                let record = map.nodes.get(node).ok_or("it is not on the map")?;
                let address = record.peer_address.clone();
                let added = self.consensus.add_learner(group, *node, address, STEP_WAIT);
                added.await.map_err(text)
            }
            ChangeStep::ChangeVoters(voters) => {
                self.bring_overlays(group, change, voters).await?;
                let changed = self.consensus.change_voters(group, voters, STEP_WAIT);
                changed.await.map_err(text)
            }
            ChangeStep::HandOver(node) => {
                let moved = self.consensus.transfer_to(group, *node, HAND_OVER_WAIT);
                moved.await.map_err(text)
            }
            ChangeStep::DropLearners(nodes) => {
                let dropped = self.consensus.drop_learners(group, nodes, STEP_WAIT);
                dropped.await.map_err(text)
            }
            ChangeStep::Done => self.finish(group, change).await,
        }
    }

    /// The last part of catching up: who is to vote gets the overlay deltas that are held here.
    async fn bring_overlays(
        &self,
        group: GroupId,
        change: &MoveRecord,
        voters: &BTreeSet<NodeId>,
    ) -> Result<(), String> {
        let members = self.consensus.members(group).unwrap_or_default();
        for node in voters.intersection(&members.learners) {
            let mark = (change.id.0, *node);
            if self.pushed.lock().contains(&mark) {
                continue;
            }
            self.overlays.push(group, *node).await?;
            let mut pushed = self.pushed.lock();
            // Of moves long gone.
            pushed.retain(|(id, _)| *id + 1_024 > change.id.0);
            pushed.insert(mark);
        }
        Ok(())
    }

    async fn finish(&self, group: GroupId, change: &MoveRecord) -> Result<(), String> {
        let command = ControlCommand::FinishMove {
            group,
            id: change.id,
        };
        let reply = self.plane.execute(command, STEP_WAIT).await;
        let reply = reply.map_err(|error| error.to_string())?;
        metrics::counter!("engram_moves_finished_total").increment(1);
        reply
            .outcome
            .map(drop)
            .map_err(|refusal| refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::samples;

    fn map(moves: &[(u64, &[u64], &[u64])]) -> ClusterMap {
        let mut map = ClusterMap::default();
        let mut run = |command: &ControlCommand| {
            apply(&mut map, command).outcome.expect("accepted");
        };
        run(&samples::init());
        for n in 2..=6 {
            run(&ControlCommand::RegisterNode(samples::node(n)));
        }
        for (number, from, _) in moves {
            let space = samples::space(&format!("space-{number}"), &[from]);
            run(&ControlCommand::CreateSpace(space));
        }
        for (group, from, to) in moves {
            run(&samples::start_move(*group, from, to));
        }
        map
    }

    fn active(map: &ClusterMap) -> Vec<u64> {
        active_moves(map).into_iter().map(|group| group.0).collect()
    }

    #[test]
    fn a_node_works_on_a_few_moves_and_others_pass() {
        let map = map(&[
            (1, &[1], &[2]),
            (2, &[1], &[3]),
            (3, &[1], &[4]),
            (4, &[5], &[6]),
        ]);
        assert_eq!(active(&map), [1, 2, 4]);
    }

    #[test]
    fn the_next_move_begins_when_an_older_one_has_ended() {
        let mut map = map(&[(1, &[1], &[2]), (2, &[1], &[3]), (3, &[1], &[4])]);
        assert_eq!(active(&map), [1, 2]);
        let group = GroupId(1);
        let id = map.groups[&group].change.as_ref().expect("a move").id;
        apply(&mut map, &ControlCommand::FinishMove { group, id })
            .outcome
            .expect("ended");
        assert_eq!(active(&map), [2, 3]);
    }
}
