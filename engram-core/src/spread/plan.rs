//! Who takes part in a spread, and which partition of whom holds a hash slot.

use std::collections::{BTreeMap, BTreeSet};

use super::coordinator::SpreadPlan;
use super::ledger::Ledger;
use super::parameters::SpreadParametersError;
use super::push::NotLinear;
use super::wire::{ParticipantPlan, PartitionPlan, SpreadStart};
use crate::limits;
use crate::types::{HashSlot, NodeId, PartitionId};

/// Why a start or a plan makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Parameters(#[from] SpreadParametersError),
    #[error("node {0} takes part twice")]
    NodeTwice(NodeId),
    #[error("node {0} takes part without a partition")]
    NoPartition(NodeId),
    #[error("partition {0} takes part twice")]
    PartitionTwice(PartitionId),
    #[error("the partitions do not cover every hash slot exactly once, see slot {slot}")]
    Slots { slot: u16 },
    #[error("node {0} does not take part")]
    NotAParticipant(NodeId),
    #[error("a seed belongs to a partition of another node")]
    ForeignSeed,
    #[error("{actual} seeds, at most {max} are allowed", max = limits::SEEDS_MAX)]
    TooManySeeds { actual: usize },
    #[error("the caller's partitions are not those of the plan")]
    WrongPartitions,
    #[error(transparent)]
    NotLinear(#[from] NotLinear),
    #[error("the start is of the other mode")]
    WrongMode,
}

/// Every slot in exactly one partition, nodes and partitions named once.
fn check_participants(
    participants: &[ParticipantPlan],
    unreachable: &[PartitionPlan],
) -> Result<SlotTable, PlanError> {
    let mut nodes = BTreeSet::new();
    let mut partitions = BTreeSet::new();
    for participant in participants {
        if !nodes.insert(participant.node) {
            return Err(PlanError::NodeTwice(participant.node));
        }
        if participant.partitions.is_empty() {
            return Err(PlanError::NoPartition(participant.node));
        }
    }
    let served = participants
        .iter()
        .flat_map(|participant| &participant.partitions);
    for plan in served.chain(unreachable) {
        if !partitions.insert(plan.partition) {
            return Err(PlanError::PartitionTwice(plan.partition));
        }
    }
    SlotTable::new(participants, unreachable)
}

/// What a coordinator checks before it starts anything.
pub(super) fn check_plan(plan: &SpreadPlan) -> Result<SlotTable, PlanError> {
    plan.parameters.check()?;
    if plan.seeds.len() > limits::SEEDS_MAX {
        return Err(PlanError::TooManySeeds {
            actual: plan.seeds.len(),
        });
    }
    check_participants(&plan.participants, &plan.unreachable)
}

impl SpreadPlan {
    /// Books the seeds.
    pub(super) fn inject_into(&self, ledger: &mut Ledger, slots: &SlotTable) {
        for seed in &self.seeds {
            let to = self.partition(slots.place(seed.slot));
            ledger.inject(to, self.parameters.hops, seed.amount);
        }
    }

    pub(super) fn partition(&self, place: Place) -> PartitionId {
        match place {
            Place::At { node, partition } => {
                self.participants[node].partitions[partition].partition
            }
            Place::Unreachable(partition) => partition,
        }
    }

    /// Partitions that are in no answer: those that nobody serves, and those of these nodes.
    pub(super) fn partitions_without(&self, nodes: &BTreeSet<NodeId>) -> Vec<PartitionId> {
        let lost = self.participants.iter();
        let lost = lost
            .filter(|participant| nodes.contains(&participant.node))
            .flat_map(|participant| &participant.partitions);
        let mut without: Vec<PartitionId> = lost
            .chain(&self.unreachable)
            .map(|plan| plan.partition)
            .collect();
        without.sort_unstable();
        without
    }
}

/// A participant's seat: its index in the plan, the slots of all, its partitions in the plan's order.
pub(super) type Seat<A> = (usize, SlotTable, Vec<(PartitionId, A)>);

impl SpreadStart {
    /// # Errors
    /// What makes no sense in it: partitions or nodes named twice, slots not covered once, too
    /// many seeds, parameters out of range.
    pub fn check(&self) -> Result<(), PlanError> {
        self.slots().map(|_| ())
    }

    fn slots(&self) -> Result<SlotTable, PlanError> {
        self.parameters.check()?;
        let slots = check_participants(&self.participants, &self.unreachable)?;
        if self.seeds.len() > limits::SEEDS_MAX {
            return Err(PlanError::TooManySeeds {
                actual: self.seeds.len(),
            });
        }
        Ok(slots)
    }

    /// Where `node` sits. `partitions` are those that the plan gives to it, in any order.
    pub(super) fn seat<A>(
        &self,
        node: NodeId,
        partitions: Vec<(PartitionId, A)>,
    ) -> Result<Seat<A>, PlanError> {
        let slots = self.slots()?;
        let me = self
            .participants
            .iter()
            .position(|participant| participant.node == node)
            .ok_or(PlanError::NotAParticipant(node))?;
        let is_mine = |place| matches!(place, Place::At { node, .. } if node == me);
        if !self
            .seeds
            .iter()
            .all(|seed| is_mine(slots.place(seed.slot)))
        {
            return Err(PlanError::ForeignSeed);
        }
        let mut given: BTreeMap<PartitionId, A> = BTreeMap::new();
        for (partition, adjacency) in partitions {
            if given.insert(partition, adjacency).is_some() {
                return Err(PlanError::PartitionTwice(partition));
            }
        }
        let mut ordered = Vec::new();
        for plan in &self.participants[me].partitions {
            let partition = plan.partition;
            let adjacency = given.remove(&partition).ok_or(PlanError::WrongPartitions)?;
            ordered.push((partition, adjacency));
        }
        if !given.is_empty() {
            return Err(PlanError::WrongPartitions);
        }
        Ok((me, slots, ordered))
    }
}

/// Who holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    At {
        /// Index of the participant.
        node: usize,
        /// Index of its partition.
        partition: usize,
    },
    /// A partition that nobody serves in this attempt.
    Unreachable(PartitionId),
}

/// Which partition of which participant holds a slot.
#[derive(Clone, Debug)]
pub(super) struct SlotTable {
    /// First slot and who holds it, ascending.
    starts: Vec<(u16, Place)>,
}

impl SlotTable {
    fn new(
        participants: &[ParticipantPlan],
        unreachable: &[PartitionPlan],
    ) -> Result<Self, PlanError> {
        let mut ranges = Vec::new();
        for (node, participant) in participants.iter().enumerate() {
            for (partition, plan) in participant.partitions.iter().enumerate() {
                ranges.push((plan.slots, Place::At { node, partition }));
            }
        }
        let lost = unreachable.iter();
        ranges.extend(lost.map(|plan| (plan.slots, Place::Unreachable(plan.partition))));
        ranges.sort_unstable_by_key(|(slots, _)| (slots.start, slots.end));
        let mut covered = 0;
        for (slots, _) in &ranges {
            if slots.start != covered || slots.end <= slots.start {
                return Err(PlanError::Slots { slot: covered });
            }
            covered = slots.end;
        }
        if covered != limits::HASH_SLOTS {
            return Err(PlanError::Slots { slot: covered });
        }
        let starts = ranges.into_iter();
        Ok(Self {
            starts: starts.map(|(slots, place)| (slots.start, place)).collect(),
        })
    }

    pub(super) fn place(&self, slot: HashSlot) -> Place {
        let after = self.starts.partition_point(|(start, _)| *start <= slot.0);
        self.starts[after.saturating_sub(1)].1
    }
}
