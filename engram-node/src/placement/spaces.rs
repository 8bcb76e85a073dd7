//! Creating and dropping spaces as the services offer it: planned here, decided by the control
//! plane, and answered when the space can be used.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use engram_core::types::{NodeId, PartitionId, SpaceConfig, SpaceId};
use engram_proto::peer::PartitionStatesRequest;
use engram_proto::peer::control_client::ControlClient;

use super::planner::{PlanError, plan_space};
use crate::control::{
    ClusterMap, ControlCommand, ControlError, ControlOutcome, ControlPlane, ControlRefusal,
    NewSpace, SpaceRecord,
};
use crate::membership::Membership;
use crate::seams::Seams;
use crate::transport::Peers;

/// Pause between two looks at partitions that do not serve yet.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for one node's answer.
const ASK_WAIT: Duration = Duration::from_millis(1_000);
/// Replicas of a space that does not say, on a cluster large enough.
pub const DEFAULT_REPLICAS: u32 = 3;

/// Why a space was not created, or not seen to serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// Nothing was changed.
    #[error(transparent)]
    Refused(#[from] ControlRefusal),
    /// Nothing was changed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The space exists; it will serve once enough of its nodes are up.
    #[error("the space exists, but {partitions} of its partitions have no primary yet")]
    NotServing { partitions: usize },
    #[error("the control plane answered something else: {reason}")]
    Unexpected { reason: String },
}

/// What is needed to create and drop spaces. Cheap to clone.
#[derive(Clone)]
pub struct Spaces {
    pub seams: Seams,
    pub plane: ControlPlane,
    pub membership: Membership,
    pub peers: Peers,
}

/// A space that was created or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub space: SpaceRecord,
    /// It was there before, with the same configuration.
    pub existed: bool,
}

impl Spaces {
    /// How many replicas a space gets that does not say.
    #[must_use]
    pub fn default_replicas(&self) -> u32 {
        let nodes = self.plane.map().nodes.len();
        if nodes >= DEFAULT_REPLICAS as usize {
            DEFAULT_REPLICAS
        } else {
            1
        }
    }

    /// A level seed for a new space.
    #[must_use]
    pub fn level_seed(&self) -> u64 {
        let mut bytes = [0; 8];
        self.seams.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Creates the space and waits until every partition has a primary. The level seed in `config`
    /// should be a fresh one ([`Spaces::level_seed`]).
    ///
    /// # Errors
    /// See [`SpaceError`]: which of them leave the space behind is said there.
    pub async fn create(
        &self,
        config: SpaceConfig,
        partitions: u32,
        replicas: u32,
        wait: Duration,
    ) -> Result<Created, SpaceError> {
        let deadline = self.seams.clock.monotonic() + wait;
        let placement = plan_space(
            &self.plane.map(),
            &self.membership.view(),
            partitions,
            replicas,
        )?;
        let command = ControlCommand::CreateSpace(NewSpace {
            config,
            replicas,
            placement,
        });
        let reply = self.plane.execute(command, wait).await?;
        let (id, existed) = match reply.outcome? {
            ControlOutcome::SpaceCreated { space, existed } => (space, existed),
            other => {
                return Err(SpaceError::Unexpected {
                    reason: format!("{other:?}"),
                });
            }
        };
        self.wait_until_serving(id, deadline).await?;
        let map = self.plane.map();
        let space = map.spaces.get(&id).cloned();
        let gone = || SpaceError::Unexpected {
            reason: "the space was dropped at once".into(),
        };
        Ok(Created {
            space: space.ok_or_else(gone)?,
            existed,
        })
    }

    /// Drops a space; its data goes as the nodes learn of it.
    ///
    /// # Errors
    /// [`SpaceError::Refused`] when there is none of this name.
    pub async fn drop_space(&self, name: &str, wait: Duration) -> Result<SpaceId, SpaceError> {
        let command = ControlCommand::DropSpace {
            name: name.to_owned(),
        };
        match self.plane.execute(command, wait).await?.outcome? {
            ControlOutcome::SpaceDropped { space } => Ok(space),
            other => Err(SpaceError::Unexpected {
                reason: format!("{other:?}"),
            }),
        }
    }

    async fn wait_until_serving(
        &self,
        space: SpaceId,
        deadline: Duration,
    ) -> Result<(), SpaceError> {
        let mut missing: Vec<PartitionId> = Vec::new();
        if let Some(space) = self.plane.map().spaces.get(&space) {
            missing.extend(space.partitions.iter().map(|partition| partition.id));
        }
        while !missing.is_empty() {
            for (node, partitions) in by_node(&self.plane.map(), &missing) {
                let led = self.led_by(node, partitions).await;
                missing.retain(|partition| !led.contains(partition));
            }
            if missing.is_empty() {
                break;
            }
            if self.seams.clock.monotonic() >= deadline {
                return Err(SpaceError::NotServing {
                    partitions: missing.len(),
                });
            }
            self.seams.clock.sleep(LOOK_PAUSE).await;
        }
        Ok(())
    }

    /// Which of the partitions exist on `node` and are led by it.
    async fn led_by(&self, node: NodeId, partitions: Vec<PartitionId>) -> Vec<PartitionId> {
        // This node answers itself over its own peer port: one way to ask, one way to fail.
        let Ok(channel) = self.peers.channel(node) else {
            return Vec::new();
        };
        let request = PartitionStatesRequest {
            cluster: Bytes::copy_from_slice(&self.plane.cluster().0),
            partitions: partitions
                .into_iter()
                .map(|partition| partition.0)
                .collect(),
        };
        let mut client = ControlClient::new(channel);
        match self
            .seams
            .timeout(ASK_WAIT, client.partition_states(request))
            .await
        {
            Ok(Ok(response)) => {
                let states = response.into_inner().partitions.into_iter();
                states
                    .filter(|it| it.primary)
                    .map(|it| PartitionId(it.partition))
                    .collect()
            }
            Ok(Err(status)) => {
                tracing::debug!(peer = node.0, %status, "no answer about partitions");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}

/// The partitions by the nodes that hold replicas of them.
fn by_node(map: &ClusterMap, partitions: &[PartitionId]) -> BTreeMap<NodeId, Vec<PartitionId>> {
    let mut by_node: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
    for id in partitions {
        let Some((_, partition)) = map.partition(*id) else {
            continue;
        };
        for node in map.replicas(partition.group) {
            by_node.entry(*node).or_default().push(*id);
        }
    }
    by_node
}
