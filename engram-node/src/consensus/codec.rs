//! The bytes of what consensus stores and sends: payloads of entries, votes, group positions.
//!
//! They are this module's own types, not openraft's serde forms, so that a change of openraft does
//! not change the disk or the wire. Everything stored begins with a version byte (ADR 0001);
//! payloads do so inside the log record that holds them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use engram_core::storage::StorageError;
use openraft::vote::RaftLeaderId as _;
use serde::{Deserialize, Serialize};

use super::runtime::{
    Command, CommittedLeaderId, LeaderId, LogId, Membership, Payload, PeerNode, SnapshotMeta,
    StoredMembership, Vote,
};

/// First byte of every record that this module writes.
pub const VERSION: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdRecord {
    pub term: u64,
    pub index: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            index: id.index,
        }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        Self::new(CommittedLeaderId::new(record.term), record.index)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRecord {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

impl From<Vote> for VoteRecord {
    fn from(vote: Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.voted_for,
            committed: vote.committed,
        }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        Self {
            leader_id: LeaderId::new(record.term, record.node),
            committed: record.committed,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct MembershipRecord {
    /// One set of voters, or two while a change is under way.
    configs: Vec<BTreeSet<u64>>,
    /// Voters and learners with their peer addresses.
    nodes: BTreeMap<u64, String>,
}

impl MembershipRecord {
    fn of(membership: &Membership) -> Self {
        let nodes = membership
            .nodes()
            .map(|(id, node)| (*id, node.address.clone()))
            .collect();
        Self {
            configs: membership.get_joint_config().clone(),
            nodes,
        }
    }

    fn decode(self) -> Result<Membership, String> {
        if self.configs.is_empty() && self.nodes.is_empty() {
            return Ok(Membership::default());
        }
        let nodes = self
            .nodes
            .into_iter()
            .map(|(id, address)| (id, PeerNode { address }));
        let nodes: BTreeMap<_, _> = nodes.collect();
        Membership::new(self.configs, nodes).map_err(|error| error.to_string())
    }
}

#[derive(Serialize, Deserialize)]
enum PayloadRecord<'a> {
    Blank,
    Normal(&'a [u8]),
    Membership(MembershipRecord),
}

/// The payload of an entry, as in its log record and on the wire.
pub fn encode_payload(payload: &Payload) -> Vec<u8> {
    let record = match payload {
        Payload::Blank => PayloadRecord::Blank,
        Payload::Normal(command) => PayloadRecord::Normal(&command.0),
        Payload::Membership(membership) => {
            PayloadRecord::Membership(MembershipRecord::of(membership))
        }
    };
    to_postcard(&record)
}

/// # Errors
/// When the bytes are no payload; the text says why.
pub fn decode_payload(bytes: &[u8]) -> Result<Payload, String> {
    match from_postcard(bytes)? {
        PayloadRecord::Blank => Ok(Payload::Blank),
        PayloadRecord::Normal(bytes) => Ok(Payload::Normal(Command(Bytes::copy_from_slice(bytes)))),
        PayloadRecord::Membership(record) => Ok(Payload::Membership(record.decode()?)),
    }
}

/// Where a group's state is: `01 g` in the metadata family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupPosition {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// A snapshot was being installed: the state is neither the old nor the new one.
    pub installing: bool,
}

#[derive(Serialize, Deserialize)]
struct PositionRecord {
    applied: Option<LogIdRecord>,
    membership_id: Option<LogIdRecord>,
    membership: MembershipRecord,
    installing: bool,
}

pub fn encode_position(position: &GroupPosition) -> Vec<u8> {
    versioned(&PositionRecord {
        applied: position.applied.map(Into::into),
        membership_id: (*position.membership.log_id()).map(Into::into),
        membership: MembershipRecord::of(position.membership.membership()),
        installing: position.installing,
    })
}

/// # Errors
/// [`StorageError::Corrupt`] when the bytes are no position.
pub fn decode_position(bytes: &[u8]) -> Result<GroupPosition, StorageError> {
    let record: PositionRecord = unversioned("group position", bytes)?;
    let membership = record
        .membership
        .decode()
        .map_err(|reason| corrupt("group position", reason))?;
    Ok(GroupPosition {
        applied: record.applied.map(Into::into),
        membership: StoredMembership::new(record.membership_id.map(Into::into), membership),
        installing: record.installing,
    })
}

/// What a snapshot contains: a position that is never in the middle of an installation.
pub fn encode_meta(meta: &SnapshotMeta) -> Vec<u8> {
    encode_position(&GroupPosition {
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
        installing: false,
    })
}

/// # Errors
/// [`StorageError::Corrupt`] when the bytes are no snapshot meta.
pub fn decode_meta(bytes: &[u8]) -> Result<SnapshotMeta, StorageError> {
    let position = decode_position(bytes)?;
    Ok(SnapshotMeta {
        last_log_id: position.applied,
        last_membership: position.membership,
    })
}

/// A record: the version byte, then postcard.
pub fn versioned<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(to_postcard(value));
    bytes
}

/// # Errors
/// [`StorageError::Corrupt`] when the version or the content is unknown.
pub fn unversioned<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, StorageError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => from_postcard(rest).map_err(|reason| corrupt(what, reason)),
        Some((version, _)) => Err(corrupt(what, format!("unknown version {version}"))),
        None => Err(corrupt(what, "empty record")),
    }
}

pub fn corrupt(what: impl Into<String>, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt {
        what: what.into(),
        reason: reason.into(),
    }
}

fn to_postcard<T: Serialize>(value: &T) -> Vec<u8> {
    // Into memory, and none of the types here can refuse to be serialised.
    postcard::to_allocvec(value).unwrap_or_else(|error| panic!("postcard: {error}"))
}

fn from_postcard<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| error.to_string())?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(format!("{} bytes left over", rest.len()))
    }
}
