//! openraft's types as this node uses them. Only `consensus` uses them; where its tasks and timers
//! run is in [`super::tokio_rt`].

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use super::tokio_rt::Runtime;

openraft::declare_raft_types!(
    /// All groups have the same types: what an entry means is up to the group's machine.
    pub Types:
        D            = Command,
        R            = Reply,
        NodeId       = u64,
        Node         = PeerNode,
        Term         = u64,
        // At most one leader in a term, as in Raft: elsewhere a term is an epoch, and names one
        // primary. openraft's default lets a second node lead in the same term.
        LeaderId     = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

pub type Raft = openraft::Raft<Types, super::state::StateMachine>;
pub type LogId = openraft::alias::LogIdOf<Types>;
pub type Vote = openraft::alias::VoteOf<Types>;
pub type LeaderId = openraft::alias::LeaderIdOf<Types>;
pub type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<Types>;
pub type Entry = openraft::alias::EntryOf<Types>;
pub type Payload = openraft::alias::PayloadOf<Types>;
pub type Membership = openraft::Membership<u64, PeerNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub type Snapshot = openraft::alias::SnapshotOf<Types, super::snapshot::SnapshotFile>;

/// A member of a group, as its membership entries carry it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNode {
    /// `host:port` of the peer port; empty where the cluster map has to say it.
    pub address: String,
}

/// An entry's content, which Raft does not look into.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(#[serde(with = "serde_bytes_of")] pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What an entry's application answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(#[serde(with = "serde_bytes_of")] pub Bytes);

/// openraft asks for serde, but no command or reply is ever encoded this way: see `codec`.
mod serde_bytes_of {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(Bytes::from)
    }
}
