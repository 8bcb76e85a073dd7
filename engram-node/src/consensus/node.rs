//! All groups of this node: starting, removing, finding and stopping them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use engram_core::storage::{Batch, Order, Storage};
use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::raft_server::RaftServer;
use openraft::errors::{InitializeError, RaftError};
use parking_lot::{Mutex, RwLock};

use super::compaction::trim_logs;
use super::config::ConsensusConfig;
use super::damage::Damages;
use super::group::{Group, Opened};
use super::keys;
use super::log::{LogStore, LogWriter, Marks};
use super::network::Networks;
use super::receive::Parts;
use super::recovery::Recovery;
use super::runtime::{PeerNode, Raft};
use super::snapshot::{SnapshotStore, TransferCounts};
use super::state::{self, StateMachine};
use super::{
    BarrierError, GroupSpec, Leadership, MachineError, MachineFactory, ProposeError, StartError,
};
use crate::seams::Seams;
use crate::transport::{Links, LocalNode, Peers, RaftService};

/// Groups whose deletions are counted; of those beyond, the oldest are forgotten.
const DELETIONS_KEPT: usize = 4_096;

/// All Raft groups of this node. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub config: ConsensusConfig,
    pub seams: Seams,
    pub snapshots: SnapshotStore,
    pub damages: Damages,
    /// Snapshots of which a part was received.
    pub parts: Arc<Parts>,
    /// Nodes that were reported lost and not heard from since.
    pub lost: Mutex<BTreeSet<NodeId>>,
    raft_config: Arc<openraft::Config>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) machines: Arc<dyn MachineFactory>,
    pub(super) writer: LogWriter,
    pub(super) links: Links,
    pub(super) groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// How often what there was of a group was deleted here: it had left, or was damaged.
    deletions: Mutex<BTreeMap<GroupId, u64>>,
    /// Groups of which something may be on disk although they do not run: not started yet, or
    /// removed by halves.
    remains: Mutex<BTreeSet<GroupId>>,
    /// Why the last attempt to start a group failed.
    pub(super) failed: Mutex<BTreeMap<GroupId, String>>,
    /// Held while a group is started or removed: one at a time.
    pub(super) admin: tokio::sync::Mutex<()>,
}

impl Consensus {
    /// Starts the node's log writer and message links; no group runs yet.
    ///
    /// # Errors
    /// When the settings contradict each other, or the staging directory cannot be cleared.
    pub async fn open(
        config: ConsensusConfig,
        seams: Seams,
        storage: Arc<dyn Storage>,
        peers: Peers,
        machines: Arc<dyn MachineFactory>,
    ) -> Result<Self, StartError> {
        let group = GroupId::CONTROL;
        let raft_config = config.raft();
        let raft_config = raft_config.map_err(|reason| StartError::Raft { group, reason })?;
        let rate = config.snapshot_bytes_per_second;
        let snapshots = SnapshotStore::new(&seams, &config.data_dir, rate, config.log_pin_max);
        let (staging, store) = (snapshots.clone(), Arc::clone(&storage));
        let (reading, dir, before_ack) = (
            seams.clone(),
            config.data_dir.clone(),
            config.marks_before_ack,
        );
        let cleared = seams.blocking(move || {
            staging.clear_staging()?;
            let marks = Marks::open(&reading, &dir, before_ack);
            Ok::<_, std::io::Error>((groups_on_disk(&*store), marks))
        });
        let (remains, marks) = cleared.await.map_err(|error| StartError::Storage {
            group,
            reason: error.to_string(),
        })?;
        let local = LocalNode {
            node: config.node,
            cluster: config.cluster,
        };
        marks.start();
        let inner = Arc::new(Inner {
            raft_config,
            snapshots,
            damages: Damages::default(),
            parts: Arc::default(),
            writer: LogWriter::start(&seams, Arc::clone(&storage), marks),
            links: Links::new(seams.clone(), peers, local),
            config,
            seams,
            storage,
            machines,
            lost: Mutex::default(),
            groups: RwLock::default(),
            deletions: Mutex::default(),
            remains: Mutex::new(remains),
            failed: Mutex::default(),
            admin: tokio::sync::Mutex::default(),
        });
        let watch = stop_when_poisoned(inner.writer.poisoned(), Arc::downgrade(&inner));
        inner.seams.spawn("log-poison", watch);
        let trimming = trim_logs(inner.seams.clone(), Arc::downgrade(&inner));
        inner.seams.spawn("log-trimming", trimming);
        Ok(Self { inner })
    }

    /// The peer port's Raft service, to be added to its server.
    #[must_use]
    pub fn raft_service(&self) -> RaftServer<RaftService> {
        let inner = Arc::clone(&self.inner);
        let local = inner.links.local();
        RaftService::new(inner.seams.clone(), local, inner).into_server()
    }

    /// Starts the group here, from disk when it was here before. Idempotent. A group that runs
    /// without ever having had a member is bootstrapped when `spec` says so.
    ///
    /// # Errors
    /// When its log or state cannot be read.
    pub async fn start_group(&self, spec: &GroupSpec) -> Result<(), StartError> {
        let _admin = self.inner.admin.lock().await;
        if let Some(running) = self.inner.group(spec.group) {
            if spec.bootstrap && running.recovery.is_none() {
                bootstrap(&running.raft, spec).await?;
            }
            return Ok(());
        }
        let opened = Box::pin(self.inner.open_group(spec)).await;
        let group = opened.inspect_err(|error| {
            let mut failed = self.inner.failed.lock();
            failed.insert(spec.group, error.to_string());
        })?;
        self.inner.failed.lock().remove(&spec.group);
        self.inner.remains.lock().remove(&spec.group);
        self.inner.groups.write().insert(spec.group, group);
        metrics::gauge!("engram_groups").set(self.inner.groups.read().len() as f64);
        Ok(())
    }

    /// Stops the group here and deletes its log and its machine's state. Idempotent.
    ///
    /// # Errors
    /// When something could not be deleted: to be called again. Until then the group is among the
    /// [`Self::remains`].
    pub async fn remove_group(&self, group: GroupId) -> Result<(), StartError> {
        let _admin = self.inner.admin.lock().await;
        self.inner.remains.lock().insert(group);
        let running = self.inner.groups.write().remove(&group);
        if let Some(running) = running {
            running.stop("the group was removed from this node").await;
        }
        self.inner.delete_group(group).await?;
        self.inner.failed.lock().remove(&group);
        self.inner.remains.lock().remove(&group);
        Ok(())
    }

    /// Groups of which something may be on disk although they do not run: not started yet, removed
    /// by halves, or gone while this node was down.
    #[must_use]
    pub fn remains(&self) -> Vec<GroupId> {
        self.inner.remains.lock().iter().copied().collect()
    }

    /// Proposes an entry here and answers with what its application returned on this node.
    ///
    /// # Errors
    /// See [`ProposeError`]; each variant says whether the entry may have been applied.
    pub async fn propose(
        &self,
        group: GroupId,
        entry: Bytes,
        wait: Duration,
    ) -> Result<Bytes, ProposeError> {
        let running = self
            .inner
            .group(group)
            .ok_or(ProposeError::NoReplica { group })?;
        running.propose(entry, wait).await
    }

    /// Returns once this node is known to lead `group` now (ReadIndex) and has applied all that
    /// was committed when the call began.
    ///
    /// # Errors
    /// See [`BarrierError`].
    pub async fn read_barrier(&self, group: GroupId, wait: Duration) -> Result<(), BarrierError> {
        let running = self
            .inner
            .group(group)
            .ok_or(BarrierError::NoReplica { group })?;
        running.read_barrier(wait).await
    }

    /// Waits until this node knows a leader of the group.
    pub async fn wait_for_leader(&self, group: GroupId, wait: Duration) -> Option<NodeId> {
        self.inner.group(group)?.wait_for_leader(wait).await
    }

    #[must_use]
    pub fn leadership(&self, group: GroupId) -> Leadership {
        self.inner
            .group(group)
            .map(|group| group.leadership())
            .unwrap_or_default()
    }

    /// Nodes that vote in the group, as far as the replica here knows.
    #[must_use]
    pub fn voters(&self, group: GroupId) -> BTreeSet<NodeId> {
        self.inner
            .group(group)
            .map(|group| group.voters())
            .unwrap_or_default()
    }

    /// Groups that run here.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.groups.read().keys().copied().collect()
    }

    /// Groups whose replica here has stopped by itself, or could not be started, and why.
    #[must_use]
    pub fn stopped(&self) -> Vec<(GroupId, String)> {
        let groups = self.inner.all_groups().into_iter();
        let stopped = groups.filter_map(|group| group.stopped().map(|reason| (group.id, reason)));
        stopped.chain(self.inner.failed.lock().clone()).collect()
    }

    /// Why the group's replica here is out of service, if it is.
    #[must_use]
    pub fn why_stopped(&self, group: GroupId) -> Option<String> {
        match self.inner.group(group) {
            Some(running) => running.stopped(),
            None => self.inner.failed.lock().get(&group).cloned(),
        }
    }

    /// Adds a learner and waits until it has caught up, then (if `voter`) makes it a voter. To be
    /// called on the leader. Idempotent.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn add_member(
        &self,
        group: GroupId,
        node: NodeId,
        peer_address: String,
        voter: bool,
    ) -> Result<(), ProposeError> {
        let running = self
            .inner
            .group(group)
            .ok_or(ProposeError::NoReplica { group })?;
        let wait = self.inner.config.catch_up_timeout;
        running.add_member(node, peer_address, voter, wait).await
    }

    /// Snapshots that this node has sent to others.
    #[must_use]
    pub fn transfer_counts(&self) -> TransferCounts {
        self.inner.snapshots.counts()
    }

    /// The node at `node` is presumed dead: every group that it led here, and whose chosen
    /// survivor this node is, campaigns now.
    pub fn on_node_lost(&self, node: NodeId) {
        self.inner.on_node_lost(node);
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Stops all groups after handing over leadership where that is quick.
    pub async fn shutdown(&self) {
        let _admin = self.inner.admin.lock().await;
        let groups = self.inner.all_groups();
        let (wait, local) = (self.inner.config.hand_over_timeout, self.inner.config.node);
        let led = groups
            .iter()
            .filter(|group| group.leadership().leader == Some(local));
        futures::future::join_all(led.map(|group| group.hand_over(wait))).await;
        let stopping = groups
            .iter()
            .map(|group| group.stop("the node is shutting down"));
        futures::future::join_all(stopping).await;
        self.inner.groups.write().clear();
    }
}

#[cfg(test)]
impl Consensus {
    /// Stops all groups at once, without handing anything over.
    pub async fn stop_groups_for_test(&self) {
        let groups = self.inner.all_groups();
        futures::future::join_all(groups.iter().map(|group| group.stop("killed"))).await;
        self.inner.groups.write().clear();
    }
}

impl Inner {
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    pub fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.groups.read().get(&group).cloned()
    }

    pub fn all_groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    async fn open_group(self: &Arc<Self>, spec: &GroupSpec) -> Result<Arc<Group>, StartError> {
        let group = spec.group;
        let storage_error = |reason: String| StartError::Storage { group, reason };
        self.writer
            .check()
            .map_err(|poisoned| storage_error(poisoned.to_string()))?;
        let (log, machine, gone) = self.open_state(group).await.map_err(storage_error)?;
        for (node, address) in spec.voters.iter().chain(&spec.hosts) {
            self.links.peers().suggest_address(*node, address);
        }
        let last = log.last().map(Into::into);
        let (marks, local) = (&self.writer.marks, self.config.node);
        let recovery = Recovery::needed(local, marks.of(group), last, spec.electors.clone());
        if let Some(recovery) = &recovery {
            marks.require(group, recovery.mark());
        }
        // A log that has lost everything is none that never was.
        let pristine = log.is_pristine() && machine.is_pristine() && recovery.is_none();
        let networks = Networks {
            group,
            links: self.links.clone(),
            seams: self.seams.clone(),
            snapshots: self.snapshots.clone(),
            append_timeout: self.config.append_timeout,
            snapshot_timeout: self.config.snapshot_timeout,
        };
        let (node, config) = (self.config.node.0, Arc::clone(&self.raft_config));
        let raft = Raft::new(node, config, networks, log.clone(), machine).await;
        let raft = raft.map_err(|fatal| StartError::Raft {
            group,
            reason: fatal.to_string(),
        })?;
        if recovery.is_some() {
            raft.runtime_config().elect(false);
        }
        if spec.bootstrap && pristine {
            bootstrap(&raft, spec).await?;
        }
        let opened = Opened {
            hosts: spec.hosts.keys().copied().collect(),
            recovery,
            gone,
        };
        let (seams, config) = (&self.seams, &self.config);
        let group = Arc::new(Group::new(group, raft, log, opened, seams, config));
        if group.recovery.is_some() {
            let recovering = Arc::clone(self).recover(Arc::clone(&group));
            self.seams.spawn("log-recovery", recovering);
        }
        Ok(group)
    }

    async fn open_state(
        &self,
        group: GroupId,
    ) -> Result<(LogStore, StateMachine, tokio::sync::oneshot::Receiver<()>), String> {
        let (seams, storage) = (self.seams.clone(), Arc::clone(&self.storage));
        let (machines, snapshots) = (Arc::clone(&self.machines), self.snapshots.clone());
        let (writer, cache) = (self.writer.clone(), self.config.cache_bytes_max);
        let payload = self.config.payload_bytes_max;
        let damages = self.damages.clone();
        let work = move || {
            let machine_error = |error: MachineError| {
                if let MachineError::Storage(damage) = &error {
                    damages.note(group, damage);
                }
                error.to_string()
            };
            let sizes = (cache, payload);
            let noted = damages.clone();
            let opened = LogStore::open(group, &seams, Arc::clone(&storage), writer, sizes, noted);
            let log = opened.map_err(|error| machine_error(error.into()))?;
            let machine = machines.open(group).map_err(machine_error)?;
            let (ends, noted) = (log.ends(), damages.clone());
            let opened =
                StateMachine::open(group, &seams, storage, machine, snapshots, ends, noted);
            let (state, gone) = opened.map_err(machine_error)?;
            Ok((log, state, gone))
        };
        self.seams.blocking(work).await
    }

    pub(super) fn note_deletion(&self, group: GroupId) {
        let mut deletions = self.deletions.lock();
        *deletions.entry(group).or_default() += 1;
        if deletions.len() > DELETIONS_KEPT {
            // Ids are not used again: the least belongs to a group that is gone.
            deletions.pop_first();
        }
    }

    pub(super) fn deletions(&self, group: GroupId) -> u64 {
        self.deletions.lock().get(&group).copied().unwrap_or(0)
    }

    async fn delete_group(&self, group: GroupId) -> Result<(), StartError> {
        let storage_error = |reason: String| StartError::Storage { group, reason };
        let (machines, snapshots) = (Arc::clone(&self.machines), self.snapshots.clone());
        let work = move || {
            let mut batch = Batch::new();
            state::forget(group, &snapshots, &mut batch).map_err(|error| error.to_string())?;
            let destroyed = machines.destroy(group, batch);
            destroyed.map_err(|error| error.to_string())
        };
        // What the stopped group had queued is on disk before it is deleted.
        let settled = self.writer.write(Batch::new()).await;
        settled.map_err(|poisoned| storage_error(poisoned.to_string()))?;
        self.seams.blocking(work).await.map_err(storage_error)?;
        self.writer.marks.forget(group);
        self.note_deletion(group);
        Ok(())
    }
}

/// The groups that the store knows anything of. Blocks.
fn groups_on_disk(storage: &dyn Storage) -> BTreeSet<GroupId> {
    let mut found = BTreeSet::new();
    for (family, mut start, end) in keys::all_groups() {
        // The first key of each group is enough.
        while let Some(record) = storage.scan(family, &start, &end, Order::Ascending).next() {
            let key = match record {
                Ok((key, _)) => key,
                // Whose record it is cannot be told; the group says so itself when it starts.
                Err(error) => {
                    tracing::warn!(%error, "not all that removed groups left here can be found");
                    break;
                }
            };
            let Some((group, next)) = keys::group_of(family, &key) else {
                break;
            };
            found.insert(group);
            start = next;
        }
    }
    found.remove(&GroupId::CONTROL);
    found
}

/// Writes the first membership entry. Where there are several founders, each of them may write it, at
/// a time of its own, and all must write the same: so it has no addresses, which may change meanwhile.
async fn bootstrap(raft: &Raft, spec: &GroupSpec) -> Result<(), StartError> {
    let alone = spec.voters.len() == 1;
    let members = spec.voters.iter().map(|(id, address)| {
        let address = if alone {
            address.clone()
        } else {
            String::new()
        };
        (id.0, PeerNode { address })
    });
    let members: BTreeMap<_, _> = members.collect();
    match raft.initialize(members).await {
        // Another member did so first and its messages are here already.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(StartError::Raft {
            group: spec.group,
            reason: error.to_string(),
        }),
    }
}

/// After a failed log write nothing may be acknowledged any more: every replica stops.
async fn stop_when_poisoned(
    poisoned: impl Future<Output = Option<super::log::Poisoned>>,
    inner: Weak<Inner>,
) {
    let Some(poisoned) = poisoned.await else {
        return;
    };
    let Some(inner) = inner.upgrade() else {
        return;
    };
    let groups = inner.all_groups();
    let reason = poisoned.to_string();
    futures::future::join_all(groups.iter().map(|group| group.stop(&reason))).await;
}
