//! From a request to the replica that can serve it: space and id -> partition -> group -> node.
//!
//! The services call [`Router`]; it serves here ([`Here`]) or passes the request to the right node
//! ([`Dialer`]), follows hints, waits for a leader and retries until the deadline. A forwarded
//! request is served where it arrives or refused ([`Refusal`]), never forwarded again.
//!
//! What must hold: repeating is safe because a write keeps its request id; an error says whether
//! the write may have happened; a linearizable read passed a read barrier on the leader after the
//! request came in.

mod accepted;
mod answer;
mod backups;
mod deadline;
mod dialer;
#[cfg(test)]
pub(crate) mod fakes;
mod here;
mod ports;
mod pursuit;
mod reads;
mod refusal;
mod server;
mod stamps;
#[cfg(test)]
mod tests;
mod writes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::{GroupId, NodeId, PartitionId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::control::ClusterMap;
use crate::seams::Seams;

pub use accepted::Accepted;
pub use backups::{CHUNK_RECORDS_MAX, KNOWN_CHUNKS_MAX};
pub use deadline::{Deadline, Pauses};
pub use dialer::{Dialer, link_error};
pub use here::Here;
pub use ports::{Groups, LinkError, Links, Locals, Remote};
pub use reads::{Read, ReadAt, ReadError};
pub use refusal::Refusal;
pub use server::ForwardService;
pub use writes::{LocalWriteError, WriteError};

/// Largest message that is sent or read, in bytes, between nodes and from clients.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How long one attempt at one node may take, so that a node that hangs does not eat the whole
/// time of a request.
pub const ATTEMPT_MAX: Duration = Duration::from_millis(2_000);

/// Finds the replica that can serve a request. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    seams: Seams,
    local: NodeId,
    map: watch::Receiver<Arc<ClusterMap>>,
    groups: Arc<dyn Groups>,
    remote: Arc<dyn Remote>,
    here: Here,
    /// Who last served as leader of a group that has no replica here.
    leaders: Mutex<HashMap<GroupId, NodeId>>,
}

impl Router {
    #[must_use]
    pub fn new(
        seams: Seams,
        map: watch::Receiver<Arc<ClusterMap>>,
        groups: Arc<dyn Groups>,
        remote: Arc<dyn Remote>,
        here: Here,
    ) -> Self {
        let (local, leaders) = (here.node(), Mutex::default());
        Self {
            inner: Arc::new(Inner {
                seams,
                local,
                map,
                groups,
                remote,
                here,
                leaders,
            }),
        }
    }

    #[must_use]
    pub fn seams(&self) -> &Seams {
        &self.inner.seams
    }

    #[must_use]
    pub fn here(&self) -> &Here {
        &self.inner.here
    }

    #[must_use]
    pub fn local(&self) -> NodeId {
        self.inner.local
    }

    /// The cluster map as this node knows it.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.inner.map.borrow())
    }

    #[must_use]
    pub fn watch_map(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.inner.map.clone()
    }

    #[must_use]
    pub fn deadline(&self, wait: Duration) -> Deadline {
        Deadline::after(&self.inner.seams, wait)
    }

    /// Who leads a group, as far as this node knows.
    #[must_use]
    pub fn believed_leader(&self, group: GroupId) -> Option<NodeId> {
        let known = self.inner.groups.leadership(group).leader;
        known.or_else(|| self.inner.leaders.lock().get(&group).copied())
    }

    /// Nodes with a replica of the group, the preferred primary first; empty when the partition
    /// is gone.
    fn replicas(&self, partition: PartitionId, group: GroupId) -> Vec<NodeId> {
        let map = self.map();
        if map.partition(partition).is_none() {
            return Vec::new();
        }
        map.replicas(group).to_vec()
    }

    fn note_leader(&self, group: GroupId, leader: Option<NodeId>) {
        let mut leaders = self.inner.leaders.lock();
        match leader {
            Some(node) => leaders.insert(group, node),
            None => leaders.remove(&group),
        };
    }

    /// The pause before the next attempt: the next leader's appearance when there is a replica
    /// here, which also wakes a group that has gone quiet, else a while.
    async fn pause(&self, group: GroupId, pauses: &mut Pauses, deadline: Deadline) {
        let inner = &self.inner;
        if inner.groups.leadership(group) == crate::consensus::Leadership::default() {
            pauses.pause(&inner.seams, deadline).await;
            return;
        }
        let pause = pauses.next(&inner.seams).min(deadline.left(&inner.seams));
        if inner.groups.leadership(group).leader.is_some() {
            inner.seams.clock.sleep(pause).await;
        } else {
            inner.groups.wait_for_leader(group, pause).await;
        }
    }

    fn attempt_wait(&self, deadline: Deadline) -> Duration {
        deadline.left(&self.inner.seams).min(ATTEMPT_MAX)
    }
}
