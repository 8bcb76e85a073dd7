//! The control plane's service on the peer port: joining, and commands that travel to the leader.

use std::time::Duration;

use bytes::Bytes;
use engram_proto::peer::control_server::{Control, ControlServer};
use engram_proto::peer::{
    ExecuteRequest, ExecuteResponse, JoinRequest, JoinResponse, NotExecuted,
    execute_response::Answer,
};
use tonic::{Request, Response, Status};

use super::command::{ControlCommand, ControlOutcome, NodeDescription};
use super::map::ClusterId;
use super::plane::{ControlError, ControlPlane};
use super::wire;
use crate::consensus::ProposeError;
use crate::liveness::TOO_LATE;

/// How long a joining node is kept waiting for its id.
const JOIN_WAIT: Duration = Duration::from_secs(5);
/// Longest wait that a forwarded command may ask for.
const EXECUTE_WAIT_MAX: Duration = Duration::from_secs(30);

/// The service.
pub struct ControlService {
    plane: ControlPlane,
}

impl ControlService {
    #[must_use]
    pub fn server(plane: ControlPlane) -> ControlServer<Self> {
        ControlServer::new(Self { plane })
    }
}

/// Refuses a caller of another cluster.
pub(crate) fn check_cluster(ours: ClusterId, theirs: &[u8]) -> Result<(), Status> {
    if theirs == ours.0 {
        return Ok(());
    }
    metrics::counter!("engram_peer_requests_of_other_clusters_total").increment(1);
    Err(Status::failed_precondition(format!(
        "this node belongs to cluster {ours}, not to yours"
    )))
}

fn description(request: &JoinRequest) -> Result<NodeDescription, Status> {
    let identity = wire::sixteen("node identity", &request.identity)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(NodeDescription {
        identity,
        client_address: request.client_address.clone(),
        peer_address: request.peer_address.clone(),
        http_address: request.http_address.clone(),
        zone: request.zone.clone(),
        version: request.version.clone(),
    })
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        if !request.cluster.is_empty() {
            check_cluster(self.plane.cluster(), &request.cluster)?;
        }
        let command = ControlCommand::RegisterNode(description(&request)?);
        let reply = self
            .plane
            .execute(command, JOIN_WAIT)
            .await
            .map_err(|error| match error {
                ControlError::NoLeader { .. } | ControlError::Unknown { .. } => {
                    Status::unavailable(error.to_string())
                }
            })?;
        let node = match reply.outcome {
            Ok(ControlOutcome::NodeRegistered { node, .. }) => node,
            Ok(other) => return Err(Status::internal(format!("registering answered {other:?}"))),
            Err(refusal) => return Err(Status::failed_precondition(refusal.to_string())),
        };
        tracing::info!(
            joined = node.0,
            address = request.peer_address,
            "node registered"
        );
        Ok(Response::new(JoinResponse {
            cluster: Bytes::copy_from_slice(&self.plane.cluster().0),
            node: node.0,
            map: self.plane.map().encode().into(),
        }))
    }

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<ExecuteResponse>, Status> {
        let request = request.into_inner();
        check_cluster(self.plane.cluster(), &request.cluster)?;
        // What does not decode here would stop every replica of the control group.
        wire::decode_command(&request.command)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let wait = Duration::from_millis(request.wait_millis).min(EXECUTE_WAIT_MAX);
        let wait = self.plane.time_left(wait, request.expires.as_ref());
        let answer = if wait.is_zero() {
            Answer::NotExecuted(NotExecuted {
                leader: 0,
                unknown: false,
                reason: TOO_LATE.into(),
            })
        } else {
            match self.plane.propose_here(request.command, wait).await {
                Ok(reply) => Answer::Reply(reply),
                Err(error) => Answer::NotExecuted(not_executed(&error)),
            }
        };
        Ok(Response::new(ExecuteResponse {
            answer: Some(answer),
        }))
    }
}

fn not_executed(error: &ProposeError) -> NotExecuted {
    let leader = match error {
        ProposeError::NotLeader { hint, .. } => hint.map_or(0, |node| node.0),
        ProposeError::NoReplica { .. }
        | ProposeError::Unknown { .. }
        | ProposeError::TooLarge { .. }
        | ProposeError::Stopped { .. }
        | ProposeError::Overloaded { .. } => 0,
    };
    let unknown = matches!(error, ProposeError::Unknown { .. });
    NotExecuted {
        leader,
        unknown,
        reason: error.to_string(),
    }
}
