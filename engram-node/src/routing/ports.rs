//! What routing needs of the rest of the node, as narrow traits, so that its loops can be tested
//! against nodes that fail on purpose.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engram_core::partition::Partition;
use engram_core::storage::StorageError;
use engram_core::types::{GroupId, Hlc, NodeId, PartitionId, Sequence};
use engram_proto::peer::{
    AcceptLocalRequest, AcceptLocalResponse, CatchUp, ProposeRequest, ProposeResponse, ReadRequest,
    ReadResponse,
};

use crate::consensus::{BarrierError, Consensus, Leadership, ProposeError};
use crate::replica::{LinkGate, Replicas};
use crate::transport::{PeerChannel, Peers};

/// The Raft groups of this node.
#[async_trait]
pub trait Groups: Send + Sync {
    fn leadership(&self, group: GroupId) -> Leadership;
    /// Why the group's replica here is out of service, if it is.
    fn why_stopped(&self, group: GroupId) -> Option<String>;
    async fn propose(
        &self,
        group: GroupId,
        entry: Bytes,
        wait: Duration,
    ) -> Result<Bytes, ProposeError>;
    async fn read_barrier(&self, group: GroupId, wait: Duration) -> Result<(), BarrierError>;
    /// Wakes the group and waits until a leader is known here.
    async fn wait_for_leader(&self, group: GroupId, wait: Duration) -> Option<NodeId>;
    /// How far the replicas are that do not vote yet; none when this node does not lead the group.
    fn catching_up(&self, group: GroupId) -> Vec<CatchUp> {
        let _ = group;
        Vec::new()
    }
}

#[async_trait]
impl Groups for Consensus {
    fn leadership(&self, group: GroupId) -> Leadership {
        Self::leadership(self, group)
    }

    fn why_stopped(&self, group: GroupId) -> Option<String> {
        Self::why_stopped(self, group)
    }

    async fn propose(
        &self,
        group: GroupId,
        entry: Bytes,
        wait: Duration,
    ) -> Result<Bytes, ProposeError> {
        Self::propose(self, group, entry, wait).await
    }

    async fn read_barrier(&self, group: GroupId, wait: Duration) -> Result<(), BarrierError> {
        Self::read_barrier(self, group, wait).await
    }

    async fn wait_for_leader(&self, group: GroupId, wait: Duration) -> Option<NodeId> {
        Self::wait_for_leader(self, group, wait).await
    }

    fn catching_up(&self, group: GroupId) -> Vec<CatchUp> {
        let members = self.members(group).unwrap_or_default();
        let learners = members.learners.iter().map(|node| CatchUp {
            node: node.0,
            entries_left: members.behind.get(node).copied().unwrap_or(0),
            snapshot_bytes_sent: self.snapshot_bytes_sent(group, *node),
        });
        learners.collect()
    }
}

/// The partitions that have a replica on this node.
pub trait Locals: Send + Sync {
    fn partition(&self, partition: PartitionId) -> Option<Arc<Partition>>;
    fn partitions(&self) -> Vec<(GroupId, Arc<Partition>)>;
    /// The bound of stamps that was kept last.
    ///
    /// # Errors
    /// When storage cannot be read.
    fn kept_stamp(&self) -> Result<Option<Hlc>, StorageError>;
    /// Keeps a bound of stamps, durable on return.
    ///
    /// # Errors
    /// When storage cannot be written.
    fn keep_stamp(&self, bound: Hlc) -> Result<(), StorageError>;
    /// Where writes with embeddings wait for linking.
    fn gate(&self) -> Option<&LinkGate> {
        None
    }
    /// Purges up to this command have left nothing here.
    fn purged(&self, partition: PartitionId) -> Sequence {
        let _ = partition;
        Sequence(0)
    }
}

impl Locals for Replicas {
    fn partition(&self, partition: PartitionId) -> Option<Arc<Partition>> {
        Self::partition(self, partition)
    }

    fn partitions(&self) -> Vec<(GroupId, Arc<Partition>)> {
        Self::partitions(self)
    }

    fn kept_stamp(&self) -> Result<Option<Hlc>, StorageError> {
        Self::kept_stamp(self)
    }

    fn keep_stamp(&self, bound: Hlc) -> Result<(), StorageError> {
        Self::keep_stamp(self, bound)
    }

    fn gate(&self) -> Option<&LinkGate> {
        Some(Self::gate(self))
    }

    fn purged(&self, partition: PartitionId) -> Sequence {
        self.cleared().of(partition)
    }
}

/// Connections to the other nodes.
pub trait Links: Send + Sync {
    /// `None` when the node's address is not known.
    fn channel(&self, node: NodeId) -> Option<PeerChannel>;

    /// What was asked at `asked_at` was not answered in its time: the next channel is a new one.
    fn dial_again(&self, node: NodeId, asked_at: Duration);
}

impl Links for Peers {
    fn channel(&self, node: NodeId) -> Option<PeerChannel> {
        Self::channel(self, node).ok()
    }

    fn dial_again(&self, node: NodeId, asked_at: Duration) {
        Self::dial_again(self, node, asked_at);
    }
}

/// Why a call to another node has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The request did not leave this node.
    #[error("node {node} cannot be reached: {reason}")]
    NotSent { node: NodeId, reason: String },
    /// The request may have been carried out.
    #[error("node {node} did not answer: {reason}")]
    Lost { node: NodeId, reason: String },
}

/// Forwarded requests, as the caller sees them.
#[async_trait]
pub trait Remote: Send + Sync {
    async fn propose(
        &self,
        node: NodeId,
        request: ProposeRequest,
        wait: Duration,
    ) -> Result<ProposeResponse, LinkError>;
    async fn read(
        &self,
        node: NodeId,
        request: ReadRequest,
        wait: Duration,
    ) -> Result<ReadResponse, LinkError>;
    async fn accept_local(
        &self,
        node: NodeId,
        request: AcceptLocalRequest,
        wait: Duration,
    ) -> Result<AcceptLocalResponse, LinkError>;
}
