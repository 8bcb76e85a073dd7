//! What two nodes say to each other about the partitions that both hold.
//!
//! First hashes: a part whose hashes agree is done with. Where they differ, the contexts follow,
//! and with them the changes that the other lacks, until neither has any. A part is complete in
//! itself: it may be lost, doubled or late.

use std::collections::BTreeMap;

use engram_core::command::OverlayDelta;
use engram_core::partition::{LocalError, Partition, ReceivedOverlay, ReplicaPosition};
use engram_core::planted;
use engram_core::types::{NodeId, OverlayContext, PartitionId, Sequence};
use engram_proto::convert::DecodeError;
use engram_proto::peer::OverlayPart;

use super::Places;

/// Estimated size of the changes in one message.
pub const EXCHANGE_BYTES_MAX: usize = 1 << 20;
/// Partitions in one message.
pub const PARTS_MAX: usize = 4_096;

/// Where this node was in each partition when it asked.
#[derive(Clone, Debug, Default)]
pub struct Asked(pub BTreeMap<PartitionId, ReplicaPosition>);

/// What an answered part leaves to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// One side has more for the other.
    pub open: bool,
    /// Something moved: it is worth going on at once.
    pub progress: bool,
    /// Changes came that were new here.
    pub news: bool,
}

/// A part as it came.
#[derive(Clone, Debug)]
pub struct Part {
    pub partition: PartitionId,
    pub sequence: Sequence,
    pub seen_hash: u64,
    pub held_digest: u128,
    /// Absent in a summary.
    pub seen: Option<OverlayContext>,
    pub deltas: Vec<OverlayDelta>,
    pub more: bool,
    pub no_replica: bool,
}

/// First 8 bytes, little-endian, of BLAKE3 over floors and single dots in their order.
#[must_use]
pub fn seen_hash(seen: &OverlayContext) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let (floors, above) = seen.parts();
    for (actor, n) in floors {
        hasher.update(&actor.0).update(&n.to_le_bytes());
    }
    hasher.update(b"above");
    for dot in above {
        hasher.update(&dot.actor.0).update(&dot.n.to_le_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Without context and changes.
#[must_use]
pub fn summary(partition: PartitionId, position: &ReplicaPosition) -> OverlayPart {
    let held_digest = match position.held_digest {
        0 => Vec::new(),
        digest => digest.to_le_bytes().to_vec(),
    };
    OverlayPart {
        partition: partition.0,
        sequence: position.sequence.0,
        seen_hash: seen_hash(&position.seen),
        held_digest: held_digest.into(),
        ..OverlayPart::default()
    }
}

/// With the context, and with what somebody who has seen `peer` lacks, as far as `room` goes.
#[must_use]
pub fn full(
    partition: &Partition,
    position: &ReplicaPosition,
    peer: Option<&OverlayContext>,
    room: &mut usize,
) -> OverlayPart {
    let mut part = summary(partition.id(), position);
    part.seen = Some((&position.seen).into());
    let Some(peer) = peer else {
        // What the other lacks is not known yet.
        part.more = position.held_digest != 0;
        return part;
    };
    if *room == 0 {
        part.more = !partition.overlay_missing_from(peer, 1).is_empty();
        return part;
    }
    let deltas = partition.overlay_missing_from(peer, *room);
    let mut sent = peer.clone();
    for delta in &deltas {
        *room = room.saturating_sub(engram_core::partition::delta_bytes(delta));
        sent.insert(delta.dot);
    }
    part.more = !partition.overlay_missing_from(&sent, 1).is_empty();
    part.deltas = deltas.iter().map(Into::into).collect();
    part
}

/// The answer to one part.
///
/// # Errors
/// When what came cannot be written.
pub fn answer(places: &Places, part: &Part, room: &mut usize) -> Result<Answered, LocalError> {
    let Some(place) = places.get(&part.partition) else {
        let none = OverlayPart {
            partition: part.partition.0,
            no_replica: true,
            ..OverlayPart::default()
        };
        return Ok(Answered::of(none));
    };
    let partition = &place.partition;
    let received = receive(partition, &part.deltas)?;
    let position = partition.position();
    let equal =
        seen_hash(&position.seen) == part.seen_hash || planted!("exchange-takes-all-for-equal");
    let answer = match &part.seen {
        None if equal => summary(part.partition, &position),
        seen => full(partition, &position, seen.as_ref(), room),
    };
    Ok(Answered {
        diverged: equal && diverges(part, &position),
        heard: heard(part, equal.then_some(&position)),
        part: answer,
        received,
    })
}

/// An answer, and what was learnt from the question.
pub struct Answered {
    pub part: OverlayPart,
    pub received: ReceivedOverlay,
    /// What the other side has applied and seen.
    pub heard: Option<(Sequence, OverlayContext)>,
    pub diverged: bool,
}

impl Answered {
    fn of(part: OverlayPart) -> Self {
        Self {
            part,
            received: ReceivedOverlay::default(),
            heard: None,
            diverged: false,
        }
    }
}

pub fn receive(
    partition: &Partition,
    deltas: &[OverlayDelta],
) -> Result<ReceivedOverlay, LocalError> {
    if deltas.is_empty() {
        return Ok(ReceivedOverlay::default());
    }
    partition.receive_overlay(deltas)
}

/// What the sender of a part has applied and seen: it says so, or its hash is that of `equal`.
#[must_use]
pub fn heard(part: &Part, equal: Option<&ReplicaPosition>) -> Option<(Sequence, OverlayContext)> {
    let seen = part.seen.as_ref().or(equal.map(|position| &position.seen));
    seen.map(|seen| (part.sequence, seen.clone()))
}

/// Whether two replicas that applied the same and have seen the same hold something else.
#[must_use]
pub fn diverges(part: &Part, position: &ReplicaPosition) -> bool {
    part.sequence == position.sequence
        && part.seen_hash == seen_hash(&position.seen)
        && part.held_digest != position.held_digest
}

impl TryFrom<OverlayPart> for Part {
    type Error = DecodeError;

    fn try_from(message: OverlayPart) -> Result<Self, DecodeError> {
        let held_digest = match message.held_digest.as_ref() {
            [] => 0,
            bytes => u128::from_le_bytes(bytes.try_into().map_err(|_| DecodeError::Length {
                what: "the digest of held changes",
                expected: 16,
                actual: bytes.len(),
            })?),
        };
        let deltas = message.deltas.into_iter().map(OverlayDelta::try_from);
        Ok(Self {
            partition: PartitionId(message.partition),
            sequence: Sequence(message.sequence),
            seen_hash: message.seen_hash,
            held_digest,
            seen: message.seen.map(OverlayContext::try_from).transpose()?,
            deltas: deltas.collect::<Result<_, _>>()?,
            more: message.more,
            no_replica: message.no_replica,
        })
    }
}

/// Reads the parts of a message that say something of `from`.
///
/// # Errors
/// When one of them is malformed, or there are too many.
pub fn decode(parts: Vec<OverlayPart>) -> Result<Vec<Part>, DecodeError> {
    if parts.len() > PARTS_MAX {
        return Err(DecodeError::OutOfRange {
            what: "the number of partitions",
            actual: parts.len() as u64,
        });
    }
    parts.into_iter().map(Part::try_from).collect()
}

/// Partitions that a node shares with another.
pub fn shared(places: &Places, node: NodeId) -> impl Iterator<Item = PartitionId> {
    let with = places
        .iter()
        .filter(move |(_, place)| place.others.contains(&node));
    with.map(|(id, _)| *id).take(PARTS_MAX)
}
