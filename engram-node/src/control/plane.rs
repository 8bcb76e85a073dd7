//! What the rest of the node calls to read or change the cluster map.
//!
//! Reading is local: every node follows the control group. A change is proposed here when this node
//! leads the group, else it travels to the node that does. What must hold: an answered change is in
//! the local map when the answer is given, unless the deadline came first.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use engram_core::types::{GroupId, NodeId};
use engram_proto::peer::control_client::ControlClient;
use engram_proto::peer::{ExecuteRequest, Expiry, execute_response::Answer};
use tokio::sync::watch;

use super::command::{ControlCommand, ControlReply};
use super::machine::ControlMachine;
use super::map::{ClusterId, ClusterMap};
use super::wire;
use crate::consensus::{Consensus, ProposeError};
use crate::liveness::{Clocks, time_left};
use crate::seams::Seams;
use crate::transport::Peers;

/// Pause between attempts while the control group has no leader.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest single attempt: a leader that hangs must not use up the whole deadline.
const ATTEMPT_MAX: Duration = Duration::from_millis(2_000);

/// Why a change was not answered. A refusal is an answer: it is in [`ControlReply`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Not applied.
    #[error("the control plane has no reachable leader: {reason}")]
    NoLeader { reason: String },
    /// It may have been applied, or may yet be.
    #[error("the control plane did not answer in {waited:?}: {reason}")]
    Unknown { waited: Duration, reason: String },
}

/// Handle to the control plane. Cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    shared: Arc<Shared>,
}

struct Shared {
    local: NodeId,
    cluster: ClusterId,
    seams: Seams,
    machine: Arc<ControlMachine>,
    consensus: Consensus,
    peers: Peers,
    /// Of the other nodes, once the heartbeats run.
    clocks: OnceLock<Arc<dyn Clocks>>,
}

/// How one attempt ended without an answer.
struct Failed {
    reason: String,
    applied: MayBeApplied,
    /// Who leads, according to whoever was asked.
    hint: Option<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MayBeApplied {
    Yes,
    No,
}

impl ControlPlane {
    #[must_use]
    pub fn new(
        local: NodeId,
        cluster: ClusterId,
        seams: Seams,
        machine: Arc<ControlMachine>,
        consensus: Consensus,
        peers: Peers,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                local,
                cluster,
                seams,
                machine,
                consensus,
                peers,
                clocks: OnceLock::new(),
            }),
        }
    }

    /// From now on commands that are forwarded say until when they are good. Called once.
    pub fn go_by(&self, clocks: Arc<dyn Clocks>) {
        let first = self.shared.clocks.set(clocks).is_ok();
        assert!(first, "the control plane goes by one set of clocks");
    }

    /// What is left of a forwarded command's time; see [`time_left`].
    pub(super) fn time_left(&self, wait: Duration, expires: Option<&Expiry>) -> Duration {
        match self.shared.clocks.get() {
            Some(clocks) => time_left(&**clocks, wait, expires),
            None => wait,
        }
    }

    #[must_use]
    pub fn local(&self) -> NodeId {
        self.shared.local
    }

    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// The newest map that this node knows.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.shared.machine.map()
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.shared.machine.watch()
    }

    /// Who leads the control group, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.shared.consensus.leadership(GroupId::CONTROL).leader
    }

    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.local())
    }

    /// Proposes a command, here or at the leader, until it is answered or `wait` has passed.
    ///
    /// A command whose first attempt may have been applied is sent again only when applying it
    /// twice does no harm.
    ///
    /// # Errors
    /// [`ControlError`] says whether the command may have been applied.
    pub async fn execute(
        &self,
        command: ControlCommand,
        wait: Duration,
    ) -> Result<ControlReply, ControlError> {
        let clock = &self.shared.seams.clock;
        let deadline = clock.monotonic() + wait;
        let bytes = wire::encode_command(&command);
        let mut hint = None;
        let mut maybe_applied = MayBeApplied::No;
        let mut attempt = 0;
        loop {
            let left = deadline.saturating_sub(clock.monotonic()).min(ATTEMPT_MAX);
            let failed = match self.attempt(&bytes, hint, attempt, left).await {
                Ok(reply) => {
                    let left = deadline.saturating_sub(clock.monotonic());
                    self.wait_for_index(reply.index, left).await;
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            if failed.applied == MayBeApplied::Yes {
                maybe_applied = MayBeApplied::Yes;
            }
            let reason = failed.reason;
            let give_up = deadline.saturating_sub(clock.monotonic()) <= RETRY_PAUSE;
            match maybe_applied {
                MayBeApplied::Yes if give_up || !is_repeatable(&command) => {
                    return Err(ControlError::Unknown {
                        waited: wait,
                        reason,
                    });
                }
                MayBeApplied::No if give_up => return Err(ControlError::NoLeader { reason }),
                MayBeApplied::Yes | MayBeApplied::No => {}
            }
            tracing::debug!(%reason, hint = ?failed.hint, "control command is tried again");
            if failed.hint.is_none() || failed.hint == hint {
                clock.sleep(RETRY_PAUSE).await;
            }
            hint = failed.hint;
            attempt += 1;
        }
    }

    /// Whom to ask: the hinted leader, the one known here, else the voters in turn. This node may
    /// know no leader because the leader does not know where this node is now.
    fn target(&self, hint: Option<NodeId>, attempt: usize) -> Option<NodeId> {
        let voters = || {
            let mut voters = self.map().control_voters();
            voters.retain(|node| *node != self.local());
            (!voters.is_empty()).then(|| voters[attempt % voters.len()])
        };
        hint.or_else(|| self.leader()).or_else(voters)
    }

    async fn attempt(
        &self,
        command: &Bytes,
        hint: Option<NodeId>,
        attempt: usize,
        wait: Duration,
    ) -> Result<ControlReply, Failed> {
        let not_applied = |reason: String| Failed {
            reason,
            applied: MayBeApplied::No,
            hint: None,
        };
        let leader = self.target(hint, attempt);
        let leader = leader.ok_or_else(|| not_applied("no leader is known".into()))?;
        let reply = if leader == self.local() {
            self.propose_here(command.clone(), wait)
                .await
                .map_err(Failed::from)?
        } else {
            self.forward(leader, command.clone(), wait).await?
        };
        wire::decode_reply(&reply).map_err(|error| Failed {
            reason: format!("the reply is not understood: {error}"),
            applied: MayBeApplied::Yes,
            hint: None,
        })
    }

    /// Proposes encoded commands on this node. The caller has checked that they decode.
    pub(super) async fn propose_here(
        &self,
        command: Bytes,
        wait: Duration,
    ) -> Result<Bytes, ProposeError> {
        self.shared
            .consensus
            .propose(GroupId::CONTROL, command, wait)
            .await
    }

    async fn forward(
        &self,
        leader: NodeId,
        command: Bytes,
        wait: Duration,
    ) -> Result<Bytes, Failed> {
        let not_applied = |reason: String| Failed {
            reason,
            applied: MayBeApplied::No,
            hint: None,
        };
        let channel = self.shared.peers.channel(leader);
        let channel = channel.map_err(|error| not_applied(error.to_string()))?;
        let clocks = self.shared.clocks.get();
        let request = ExecuteRequest {
            cluster: Bytes::copy_from_slice(&self.shared.cluster.0),
            command,
            wait_millis: wait.as_millis() as u64,
            expires: clocks.and_then(|clocks| clocks.there(leader, wait)),
        };
        let mut client = ControlClient::new(channel);
        let answer = self
            .shared
            .seams
            .timeout(wait, client.execute(request))
            .await;
        let unknown = |reason: String| Failed {
            reason,
            applied: MayBeApplied::Yes,
            hint: None,
        };
        let response = answer
            .map_err(|error| unknown(error.to_string()))?
            .map_err(|status| {
                let reason = format!("node {leader}: {}", status.message());
                if was_sent(&status) {
                    unknown(reason)
                } else {
                    not_applied(reason)
                }
            })?;
        match response.into_inner().answer {
            Some(Answer::Reply(reply)) => Ok(reply),
            Some(Answer::NotExecuted(not)) => Err(Failed {
                reason: format!("node {leader}: {}", not.reason),
                applied: if not.unknown {
                    MayBeApplied::Yes
                } else {
                    MayBeApplied::No
                },
                hint: (not.leader != 0).then_some(NodeId(not.leader)),
            }),
            None => Err(unknown(format!("node {leader} answered with nothing"))),
        }
    }

    /// Waits until the local map reflects `index` commands; false when `wait` passed first.
    pub async fn wait_for_index(&self, index: u64, wait: Duration) -> bool {
        self.wait_for(wait, |map| map.index >= index).await
    }

    /// Waits until the local map is as wanted; false when `wait` passed first.
    pub async fn wait_for(
        &self,
        wait: Duration,
        wanted: impl FnMut(&ClusterMap) -> bool + Send,
    ) -> bool {
        let mut watch = self.watch();
        let mut wanted = wanted;
        let reached = watch.wait_for(|map| wanted(map));
        matches!(self.shared.seams.timeout(wait, reached).await, Ok(Ok(_)))
    }
}

/// Whether a failed request may have reached the other node.
fn was_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return false;
        }
        source = error.source();
    }
    true
}

/// Whether applying the command twice leaves what applying it once does.
fn is_repeatable(command: &ControlCommand) -> bool {
    match command {
        ControlCommand::InitCluster { .. }
        | ControlCommand::RegisterNode(_)
        | ControlCommand::CreateSpace(_)
        | ControlCommand::FinishDrop { .. }
        | ControlCommand::AllocateMark
        | ControlCommand::SetNodeState { .. }
        | ControlCommand::RemoveNode { .. }
        | ControlCommand::StartMove(_)
        | ControlCommand::CancelMove { .. }
        | ControlCommand::FinishMove { .. }
        | ControlCommand::PreferPrimary { .. }
        | ControlCommand::AlterSpace { .. } => true,
        // The second one could drop a space that was created under the same name in between.
        ControlCommand::DropSpace { .. } => false,
    }
}

impl From<ProposeError> for Failed {
    fn from(error: ProposeError) -> Self {
        let reason = error.to_string();
        let (applied, hint) = match error {
            ProposeError::NotLeader { hint, .. } => (MayBeApplied::No, hint),
            ProposeError::Unknown { .. } => (MayBeApplied::Yes, None),
            ProposeError::NoReplica { .. }
            | ProposeError::TooLarge { .. }
            | ProposeError::Stopped { .. }
            | ProposeError::Overloaded { .. } => (MayBeApplied::No, None),
        };
        Self {
            reason,
            applied,
            hint,
        }
    }
}
