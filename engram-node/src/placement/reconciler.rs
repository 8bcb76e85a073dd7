//! Makes this node run what the cluster map says: starts and removes groups, and, where it leads
//! one, creates and drops the partitions in it.
//!
//! What must hold: [`steps`] is pure and every step idempotent, so that a crash anywhere is healed
//! by the next round; a group is removed only when the map says so for certain, and not before the
//! overlay deltas that are held here are with another replica.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_core::command::PartitionCommand;
use engram_core::planted;
use engram_core::types::{GroupId, NodeId, PartitionId};
use engram_proto::convert::encode_group_command;
use tokio_util::sync::CancellationToken;

use super::LocalPartitions;
use super::mover::Overlays;
use crate::consensus::{Consensus, GroupSpec};
use crate::control::{ClusterMap, ControlCommand, ControlPlane, GroupRecord};
use crate::seams::Seams;

/// How often the node looks when the map has not changed.
const PERIOD: Duration = Duration::from_millis(200);
/// How long the other replicas wait for the first one to bootstrap a new group. All of them would
/// write the same first membership, so doing it twice is safe.
const BOOTSTRAP_PATIENCE: Duration = Duration::from_secs(4);
/// Pause before a group is tried again that could not be started or removed: what keeps it from
/// that is on the disk, and does not pass soon.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for a proposal that creates or drops a partition.
const PROPOSE_WAIT: Duration = Duration::from_secs(5);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Start(GroupSpec),
    /// The group lives on without this node: hand over what only this one may have, then remove it.
    Leave(GroupSpec),
    /// The group is gone.
    Remove(GroupId),
    /// The replica's records are damaged: it begins anew, and the others bring it back.
    Repair(GroupSpec),
    /// Propose the creation of a partition to a group that this node leads.
    Create {
        group: GroupId,
        partition: PartitionId,
    },
    Drop {
        group: GroupId,
        partition: PartitionId,
    },
    /// The same for a partition whose space was just dropped; the control plane is told when the
    /// group's log has it.
    FinishDrop {
        group: GroupId,
        partition: PartitionId,
    },
}

/// What runs here.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Data groups and, where one is known, their leader.
    pub groups: BTreeMap<GroupId, Option<NodeId>>,
    /// Partitions in them.
    pub partitions: BTreeMap<GroupId, BTreeSet<PartitionId>>,
    /// Groups that have had no leader for longer than the others' patience.
    pub orphaned: BTreeSet<GroupId>,
    /// Groups that do not run, but of which something may be on disk.
    pub remains: BTreeSet<GroupId>,
    /// Groups whose replica here stopped because its records are damaged.
    pub damaged: BTreeSet<GroupId>,
}

/// The steps from what runs here to what the map says.
#[must_use]
pub fn steps(map: &ClusterMap, local: NodeId, running: &Running) -> Vec<Step> {
    let mut steps = Vec::new();
    if running.damaged.contains(&GroupId::CONTROL) && map.nodes.len() > 1 {
        steps.push(Step::Repair(control_spec(map)));
    }
    for group in map.groups.values().filter(|it| it.hosts().contains(&local)) {
        if running.damaged.contains(&group.id) {
            // Alone there is nobody who could bring it back.
            if group.hosts().len() > 1 {
                steps.push(Step::Repair(spec(map, group, false)));
            }
            continue;
        }
        let leader = running.groups.get(&group.id);
        let orphaned = running.orphaned.contains(&group.id) && may_found(map, group, local);
        if leader.is_none() || orphaned {
            let first = group.founders.first() == Some(&local) && may_found(map, group, local);
            steps.push(Step::Start(spec(map, group, first || orphaned)));
        }
        if leader == Some(&Some(local)) {
            partition_steps(map, group.id, running, &mut steps);
        }
    }
    for group in running.groups.keys() {
        match map.groups.get(group) {
            Some(record) if stays(record, local) => {}
            Some(_) if planted!("left-replica-stays") => {}
            Some(record) => steps.push(Step::Leave(spec(map, record, false))),
            // A group that the map does not know yet is newer than the map.
            None if group.0 < map.next_group => steps.push(Step::Remove(*group)),
            None => {}
        }
    }
    for group in &running.remains {
        // Ids are not used again: a group that an old map already does not have is gone for ever.
        if !map.groups.contains_key(group) && group.0 < map.next_group {
            steps.push(Step::Remove(*group));
        }
    }
    steps
}

/// Whether this node keeps its replica: until a move away from it has ended, whatever it has come to.
fn stays(record: &GroupRecord, local: NodeId) -> bool {
    if leaves_early() {
        return record.settled().contains(&local);
    }
    record.hosts().contains(&local)
}

/// A bug: a replica leaves before its move has ended, and asks nobody.
fn leaves_early() -> bool {
    planted!("replica-leaves-early")
}

/// Whether this node may write the group's first membership, if nothing of the group is here: it
/// is the same one from whichever founder. Where a founder has left the cluster, the group has been
/// running for long.
fn may_found(map: &ClusterMap, group: &GroupRecord, local: NodeId) -> bool {
    let known = |node: &NodeId| map.nodes.contains_key(node);
    group.founders.contains(&local) && group.founders.iter().all(known)
}

fn spec(map: &ClusterMap, group: &GroupRecord, bootstrap: bool) -> GroupSpec {
    let address = |node: &NodeId| {
        let record = map.nodes.get(node)?;
        Some((*node, record.peer_address.clone()))
    };
    GroupSpec {
        group: group.id,
        voters: group.founders.iter().filter_map(address).collect(),
        bootstrap,
        hosts: group.hosts().iter().filter_map(address).collect(),
        electors: group.hosts(),
    }
}

/// The control group, of which any node may be a member.
#[must_use]
pub fn control_spec(map: &ClusterMap) -> GroupSpec {
    let nodes = map.nodes.values();
    GroupSpec {
        group: GroupId::CONTROL,
        voters: BTreeMap::new(),
        bootstrap: false,
        hosts: nodes.map(|it| (it.id, it.peer_address.clone())).collect(),
        electors: map.control_voters().into_iter().collect(),
    }
}

fn partition_steps(map: &ClusterMap, group: GroupId, running: &Running, steps: &mut Vec<Step>) {
    let none = BTreeSet::new();
    let existing = running.partitions.get(&group).unwrap_or(&none);
    let wanted: BTreeSet<PartitionId> = map
        .partitions_of(group)
        .map(|(_, partition)| partition.id)
        .collect();
    for partition in wanted.difference(existing) {
        steps.push(Step::Create {
            group,
            partition: *partition,
        });
    }
    let dropping: BTreeSet<PartitionId> = map.dropping_of(group).collect();
    for partition in &dropping {
        steps.push(Step::FinishDrop {
            group,
            partition: *partition,
        });
    }
    for partition in existing
        .difference(&wanted)
        .filter(|it| it.0 < map.next_partition && !dropping.contains(it))
    {
        steps.push(Step::Drop {
            group,
            partition: *partition,
        });
    }
}

/// What the reconciler remembers between its rounds.
#[derive(Default)]
struct Memory {
    /// Since when a group has been without a leader.
    leaderless: BTreeMap<GroupId, Duration>,
    /// When a group could last not be started or removed.
    failed: BTreeMap<GroupId, Duration>,
}

/// The reconciler of one node.
pub struct Reconciler {
    pub seams: Seams,
    pub plane: ControlPlane,
    pub consensus: Consensus,
    pub partitions: Arc<dyn LocalPartitions>,
    pub overlays: Arc<dyn Overlays>,
}

impl Reconciler {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut watch = self.plane.watch();
        let mut memory = Memory::default();
        loop {
            watch.mark_unchanged();
            let running = self.running(&mut memory.leaderless);
            for step in steps(&self.plane.map(), self.plane.local(), &running) {
                self.take(step, &mut memory).await;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = watch.changed() => if changed.is_err() { return },
                () = self.seams.clock.sleep(PERIOD) => {}
            }
        }
    }

    fn running(&self, leaderless: &mut BTreeMap<GroupId, Duration>) -> Running {
        let now = self.seams.clock.monotonic();
        let mut running = Running::default();
        for group in self.consensus.groups() {
            if group == GroupId::CONTROL {
                continue;
            }
            let leader = self.consensus.leadership(group).leader;
            running.groups.insert(group, leader);
            running
                .partitions
                .insert(group, self.partitions.of_group(group).into_iter().collect());
            match leader {
                Some(_) => drop(leaderless.remove(&group)),
                None => {
                    let since = *leaderless.entry(group).or_insert(now);
                    if now.saturating_sub(since) >= BOOTSTRAP_PATIENCE {
                        running.orphaned.insert(group);
                    }
                }
            }
        }
        leaderless.retain(|group, _| running.groups.contains_key(group));
        running.remains = self.consensus.remains().into_iter().collect();
        running.damaged = self.consensus.damaged().into_iter().collect();
        running
    }

    async fn take(&self, step: Step, memory: &mut Memory) {
        let now = self.seams.clock.monotonic();
        let failed_lately = |group: &GroupId| {
            let failed = memory.failed.get(group);
            failed.is_some_and(|at| now.saturating_sub(*at) < RETRY_PAUSE)
        };
        match step {
            Step::Start(spec) if failed_lately(&spec.group) => {}
            Step::Remove(group) if failed_lately(&group) => {}
            Step::Repair(spec) if failed_lately(&spec.group) => {}
            Step::Repair(spec) => {
                let group = spec.group;
                // Whatever comes of it, the next attempt waits.
                memory.failed.insert(group, now);
                if let Err(error) = self.consensus.repair_group(&spec).await {
                    tracing::error!(group = group.0, %error, "damaged replica not repaired");
                }
            }
            Step::Start(spec) => {
                let group = spec.group;
                // The next attempt to bootstrap has to wait for its turn again.
                memory.leaderless.insert(group, now);
                match self.consensus.start_group(&spec).await {
                    Ok(()) => tracing::info!(group = group.0, spec.bootstrap, "group runs"),
                    Err(error) => {
                        tracing::error!(group = group.0, %error, "group not started");
                        memory.failed.insert(group, now);
                    }
                }
            }
            Step::Leave(spec) if failed_lately(&spec.group) => {}
            Step::Leave(spec) => {
                if self.hand_over(spec.group).await && !self.leave(&spec).await {
                    memory.failed.insert(spec.group, now);
                }
            }
            Step::Remove(group) => {
                if !self.remove(group).await {
                    memory.failed.insert(group, now);
                }
            }
            Step::Create { group, partition } => self.create(group, partition).await,
            Step::Drop { group, partition } => {
                self.propose(group, partition, &PartitionCommand::Drop, "dropped")
                    .await;
            }
            Step::FinishDrop { group, partition } => self.finish_drop(group, partition).await,
        }
    }

    /// Whether the replica is gone; if not, a later round tries again.
    async fn leave(&self, spec: &GroupSpec) -> bool {
        if leaves_early() {
            return self.remove(spec.group).await;
        }
        match self.consensus.leave_group(spec).await {
            Ok(()) => tracing::info!(group = spec.group.0, "group left"),
            Err(error) => {
                tracing::info!(group = spec.group.0, %error, "group not left yet");
                return false;
            }
        }
        true
    }

    /// Whether it is gone; if not, a later round tries again.
    async fn remove(&self, group: GroupId) -> bool {
        match self.consensus.remove_group(group).await {
            Ok(()) => tracing::info!(group = group.0, "group removed"),
            Err(error) => {
                tracing::error!(group = group.0, %error, "group not removed");
                return false;
            }
        }
        true
    }

    /// Brings the overlay deltas that are held here to a replica that stays; false when none could
    /// be reached, and the next round has to try again.
    async fn hand_over(&self, group: GroupId) -> bool {
        self.overlays.retire(group).await;
        if planted!("overlay-not-handed-over") {
            return true;
        }
        let map = self.plane.map();
        for node in map.replicas(group) {
            match self.overlays.push(group, *node).await {
                Ok(()) => return true,
                Err(reason) => {
                    tracing::debug!(
                        group = group.0,
                        to = node.0,
                        reason,
                        "overlay not handed over"
                    );
                }
            }
        }
        false
    }

    async fn create(&self, group: GroupId, partition: PartitionId) {
        let map = self.plane.map();
        let Some((space, record)) = map.partition(partition) else {
            return;
        };
        let command = PartitionCommand::Create {
            config: space.config.clone(),
            slots: record.slots,
        };
        self.propose(group, partition, &command, "created").await;
    }

    /// Drops a partition by the group's own log, also where it was not even created yet, and then
    /// tells the control plane. What it may have been told before does no harm.
    async fn finish_drop(&self, group: GroupId, partition: PartitionId) {
        let entry = encode_group_command(partition, &PartitionCommand::Drop);
        if let Err(error) = self.consensus.propose(group, entry, PROPOSE_WAIT).await {
            tracing::debug!(group = group.0, partition = partition.0, %error, "not dropped yet");
            return;
        }
        let finish = ControlCommand::FinishDrop { partition };
        match self.plane.execute(finish, PROPOSE_WAIT).await {
            Ok(_) => tracing::info!(
                group = group.0,
                partition = partition.0,
                "partition dropped"
            ),
            Err(error) => {
                tracing::debug!(group = group.0, partition = partition.0, %error, "not told yet");
            }
        }
    }

    async fn propose(
        &self,
        group: GroupId,
        partition: PartitionId,
        command: &PartitionCommand,
        done: &'static str,
    ) {
        // A new leader may not have applied yet what an earlier one proposed.
        if let Err(error) = self.consensus.read_barrier(group, PROPOSE_WAIT).await {
            tracing::debug!(group = group.0, partition = partition.0, %error, "not the leader");
            return;
        }
        let exists = self.partitions.of_group(group).contains(&partition);
        let wants_it = matches!(command, PartitionCommand::Create { .. });
        if exists == wants_it {
            return;
        }
        let entry = encode_group_command(partition, command);
        match self.consensus.propose(group, entry, PROPOSE_WAIT).await {
            Ok(_) => tracing::info!(group = group.0, partition = partition.0, "partition {done}"),
            Err(error) => {
                tracing::warn!(group = group.0, partition = partition.0, %error, "not {done} yet");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::apply::apply;
    use crate::control::samples;

    const ME: NodeId = NodeId(1);

    fn map() -> ClusterMap {
        let mut map = ClusterMap::default();
        // Groups 1 and 2 of "words" (partitions 1 and 2), group 3 shared by "small" (3).
        let commands = [
            samples::init(),
            ControlCommand::RegisterNode(samples::node(2)),
            ControlCommand::CreateSpace(samples::space("words", &[&[1, 2], &[2, 1]])),
            ControlCommand::CreateSpace(samples::space("small", &[&[1]])),
        ];
        for command in commands {
            apply(&mut map, &command).outcome.expect("accepted");
        }
        map
    }

    fn finish_drops(map: &mut ClusterMap) {
        let dropping = map.dropping.values().flat_map(|space| &space.partitions);
        let dropping: Vec<PartitionId> = dropping.map(|partition| partition.id).collect();
        for partition in dropping {
            let finish = ControlCommand::FinishDrop { partition };
            apply(map, &finish).outcome.expect("finished");
        }
    }

    fn running(groups: &[(u64, Option<u64>, &[u64])]) -> Running {
        let mut running = Running::default();
        for (group, leader, partitions) in groups {
            running.groups.insert(GroupId(*group), leader.map(NodeId));
            let partitions = partitions.iter().copied().map(PartitionId).collect();
            running.partitions.insert(GroupId(*group), partitions);
        }
        running
    }

    #[test]
    fn a_node_starts_its_groups_and_bootstraps_where_it_is_first() {
        let started: Vec<(u64, usize, bool)> = steps(&map(), ME, &Running::default())
            .into_iter()
            .map(|step| match step {
                Step::Start(spec) => (spec.group.0, spec.voters.len(), spec.bootstrap),
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        assert_eq!(started, [(1, 2, true), (2, 2, false), (3, 1, true)]);
        assert_eq!(steps(&map(), NodeId(3), &Running::default()), []);
    }

    #[test]
    fn an_orphaned_group_is_bootstrapped_by_any_of_its_replicas() {
        let mut running = running(&[(1, Some(1), &[1]), (2, None, &[]), (3, Some(1), &[3])]);
        assert_eq!(steps(&map(), ME, &running), []);
        running.orphaned.insert(GroupId(2));
        assert_eq!(
            steps(&map(), ME, &running),
            [Step::Start(spec(&map(), &map().groups[&GroupId(2)], true))]
        );
    }

    #[test]
    fn only_the_leader_creates_and_drops_partitions() {
        let mut map = map();
        let at = running(&[(1, Some(1), &[]), (2, Some(2), &[]), (3, Some(1), &[])]);
        let create = |group, partition| Step::Create {
            group: GroupId(group),
            partition: PartitionId(partition),
        };
        assert_eq!(steps(&map, ME, &at), [create(1, 1), create(3, 3)]);

        let drop_small = ControlCommand::DropSpace {
            name: "small".into(),
        };
        apply(&mut map, &drop_small).outcome.expect("dropped");
        let (group, partition) = (GroupId(3), PartitionId(3));
        // Also when the partition is gone here, or was never there: the control plane has to hear it.
        for partitions in [&[3][..], &[]] {
            let at = running(&[
                (1, Some(1), &[1]),
                (2, Some(2), &[]),
                (3, Some(1), partitions),
            ]);
            assert_eq!(
                steps(&map, ME, &at),
                [Step::FinishDrop { group, partition }]
            );
        }
        finish_drops(&mut map);
        let at = running(&[(1, Some(1), &[1]), (2, Some(2), &[]), (3, Some(1), &[3])]);
        assert_eq!(steps(&map, ME, &at), [Step::Drop { group, partition }]);
    }

    #[test]
    fn what_is_left_of_a_group_goes_when_the_map_knows_that_it_is_gone() {
        let mut map = map();
        let drop_words = ControlCommand::DropSpace {
            name: "words".into(),
        };
        let mut at = running(&[(3, Some(1), &[3])]);
        at.remains = BTreeSet::from([GroupId(1), GroupId(77)]);
        assert!(!steps(&map, ME, &at).contains(&Step::Remove(GroupId(1))));
        apply(&mut map, &drop_words).outcome.expect("dropped");
        finish_drops(&mut map);
        assert_eq!(steps(&map, ME, &at), [Step::Remove(GroupId(1))]);
    }

    #[test]
    fn a_replica_stays_until_the_move_has_ended_and_a_new_one_founds_nothing() {
        let mut map = map();
        let start = samples::start_move(1, &[1, 2], &[3, 2]);
        let third = ControlCommand::RegisterNode(samples::node(3));
        for command in [third, start] {
            apply(&mut map, &command).outcome.expect("accepted");
        }
        let at = running(&[(1, Some(2), &[1]), (2, Some(2), &[2]), (3, Some(1), &[3])]);
        assert_eq!(steps(&map, ME, &at), []);
        let mut at_three = running(&[(1, None, &[])]);
        at_three.orphaned.insert(GroupId(1));
        assert_eq!(steps(&map, NodeId(3), &at_three), []);
        let started = steps(&map, NodeId(3), &Running::default());
        assert!(
            matches!(started.as_slice(), [Step::Start(spec)] if !spec.bootstrap),
            "{started:?}"
        );

        let group = GroupId(1);
        let id = map.groups[&group].change.as_ref().expect("a move").id;
        let finish = ControlCommand::FinishMove { group, id };
        apply(&mut map, &finish).outcome.expect("ended");
        let leave = Step::Leave(spec(&map, &map.groups[&group], false));
        assert_eq!(steps(&map, ME, &at), [leave]);
        assert_eq!(steps(&map, NodeId(3), &at_three), []);
    }

    #[test]
    fn a_damaged_replica_is_repaired_where_others_have_one() {
        let mut at = running(&[(1, None, &[1]), (2, Some(2), &[2]), (3, Some(1), &[3])]);
        at.damaged = BTreeSet::from([GroupId(1), GroupId(3)]);
        let mut map = map();
        assert_eq!(
            steps(&map, ME, &at),
            [Step::Repair(spec(&map, &map.groups[&GroupId(1)], false))],
            "group 3 has no other replica"
        );
        at.damaged = BTreeSet::from([GroupId::CONTROL]);
        let repair = Step::Repair(control_spec(&map));
        assert!(steps(&map, ME, &at).contains(&repair));
        map.nodes.retain(|node, _| *node == ME);
        assert!(!steps(&map, ME, &at).contains(&repair), "alone");
    }

    #[test]
    fn dropped_groups_go_and_unknown_ones_stay() {
        let mut map = map();
        let drop_words = ControlCommand::DropSpace {
            name: "words".into(),
        };
        apply(&mut map, &drop_words).outcome.expect("dropped");
        finish_drops(&mut map);
        let at = running(&[(1, Some(1), &[1]), (3, Some(1), &[3]), (77, None, &[])]);
        assert_eq!(steps(&map, ME, &at), [Step::Remove(GroupId(1))]);
    }
}
