//! The bytes of control commands and replies (`engram/control/v1/control.proto`).
//!
//! What must hold: decoding refuses what it does not know whole, and encode then decode is the
//! identity.

use bytes::Bytes;
use engram_core::types::{GroupId, MarkId, NodeId, PartitionId, SpaceConfig, SpaceId};
use engram_proto::control as wire;
use prost::Message as _;

use super::command::{
    ControlCommand, ControlOutcome, ControlRefusal, ControlReply, NewMove, NewSpace,
    NodeDescription,
};
use super::map::{ClusterId, LocalFallback, MoveCause, MoveId, NodeState};

/// Why bytes are no command or reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("{0} is missing or of an unknown kind")]
    Missing(&'static str),
    #[error("it has fields that this version does not know")]
    UnknownFields,
}

impl From<prost::DecodeError> for WireError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

pub fn encode_command(command: &ControlCommand) -> Bytes {
    use wire::control_command::Command;
    let command = match command {
        ControlCommand::InitCluster { cluster, founder } => {
            Command::InitCluster(wire::InitCluster {
                cluster: Bytes::copy_from_slice(&cluster.0),
                founder: Some(founder.into()),
            })
        }
        ControlCommand::RegisterNode(node) => Command::RegisterNode(node.into()),
        ControlCommand::CreateSpace(space) => Command::CreateSpace(space.into()),
        ControlCommand::DropSpace { name } => {
            Command::DropSpace(wire::DropSpace { name: name.clone() })
        }
        ControlCommand::FinishDrop { partition } => Command::FinishDrop(wire::FinishDrop {
            partition: partition.0,
        }),
        ControlCommand::AllocateMark => Command::AllocateMark(wire::AllocateMark {}),
        ControlCommand::SetNodeState { node, state } => Command::SetNodeState(wire::SetNodeState {
            node: node.0,
            state: wire::NodeState::from(*state).into(),
        }),
        ControlCommand::RemoveNode { node } => {
            Command::RemoveNode(wire::RemoveNode { node: node.0 })
        }
        ControlCommand::StartMove(new) => Command::StartMove(new.into()),
        ControlCommand::CancelMove { group, id } => Command::CancelMove(wire::CancelMove {
            group: group.0,
            r#move: id.0,
        }),
        ControlCommand::FinishMove { group, id } => Command::FinishMove(wire::FinishMove {
            group: group.0,
            r#move: id.0,
        }),
        ControlCommand::PreferPrimary { group, node } => {
            Command::PreferPrimary(wire::PreferPrimary {
                group: group.0,
                node: node.0,
            })
        }
        ControlCommand::AlterSpace { name, replicas } => Command::AlterSpace(wire::AlterSpace {
            name: name.clone(),
            replicas: *replicas,
        }),
    };
    wire::ControlCommand {
        command: Some(command),
    }
    .encode_to_vec()
    .into()
}

/// # Errors
/// When the bytes are damaged or say something that this version does not know.
pub fn decode_command(bytes: &[u8]) -> Result<ControlCommand, WireError> {
    use wire::control_command::Command;
    let decoded = wire::ControlCommand::decode(bytes)?;
    if decoded.command.is_some() && decoded.encoded_len() != bytes.len() {
        // Fields of a later version: applying the rest would let this replica drift away.
        return Err(WireError::UnknownFields);
    }
    Ok(
        match decoded.command.ok_or(WireError::Missing("the command"))? {
            Command::InitCluster(init) => ControlCommand::InitCluster {
                cluster: ClusterId(sixteen("cluster id", &init.cluster)?),
                founder: init
                    .founder
                    .ok_or(WireError::Missing("the founder"))?
                    .try_into()?,
            },
            Command::RegisterNode(node) => ControlCommand::RegisterNode(node.try_into()?),
            Command::CreateSpace(space) => ControlCommand::CreateSpace(space.try_into()?),
            Command::DropSpace(drop) => ControlCommand::DropSpace { name: drop.name },
            Command::FinishDrop(finish) => ControlCommand::FinishDrop {
                partition: PartitionId(finish.partition),
            },
            Command::AllocateMark(wire::AllocateMark {}) => ControlCommand::AllocateMark,
            Command::SetNodeState(set) => ControlCommand::SetNodeState {
                node: NodeId(set.node),
                state: wire::NodeState::try_from(set.state)
                    .unwrap_or_default()
                    .try_into()?,
            },
            Command::RemoveNode(remove) => ControlCommand::RemoveNode {
                node: NodeId(remove.node),
            },
            Command::StartMove(new) => ControlCommand::StartMove(new.try_into()?),
            Command::CancelMove(cancel) => ControlCommand::CancelMove {
                group: GroupId(cancel.group),
                id: MoveId(cancel.r#move),
            },
            Command::FinishMove(finish) => ControlCommand::FinishMove {
                group: GroupId(finish.group),
                id: MoveId(finish.r#move),
            },
            Command::PreferPrimary(prefer) => ControlCommand::PreferPrimary {
                group: GroupId(prefer.group),
                node: NodeId(prefer.node),
            },
            Command::AlterSpace(alter) => ControlCommand::AlterSpace {
                name: alter.name,
                replicas: alter.replicas,
            },
        },
    )
}

pub fn encode_reply(reply: &ControlReply) -> Bytes {
    use wire::control_reply::Reply;
    let encoded = match &reply.outcome {
        Ok(ControlOutcome::NodeRegistered { node, known }) => {
            Reply::NodeRegistered(wire::NodeRegistered {
                node: node.0,
                known: *known,
            })
        }
        Ok(ControlOutcome::SpaceCreated { space, existed }) => {
            Reply::SpaceCreated(wire::SpaceCreated {
                space: space.0,
                existed: *existed,
            })
        }
        Ok(ControlOutcome::SpaceDropped { space }) => {
            Reply::SpaceDropped(wire::SpaceDropped { space: space.0 })
        }
        Ok(ControlOutcome::MarkAllocated { mark }) => {
            Reply::MarkAllocated(wire::MarkAllocated { mark: mark.0 })
        }
        Ok(ControlOutcome::MoveStarted { id }) => {
            Reply::MoveStarted(wire::MoveStarted { r#move: id.0 })
        }
        Ok(ControlOutcome::Done) => Reply::Done(wire::Done {}),
        Err(refusal) => Reply::Refused(refusal.into()),
    };
    wire::ControlReply {
        reply: Some(encoded),
        index: reply.index,
    }
    .encode_to_vec()
    .into()
}

/// # Errors
/// When the bytes are damaged or say something that this version does not know.
pub fn decode_reply(bytes: &[u8]) -> Result<ControlReply, WireError> {
    use wire::control_reply::Reply;
    let decoded = wire::ControlReply::decode(bytes)?;
    let outcome = match decoded.reply.ok_or(WireError::Missing("the reply"))? {
        Reply::NodeRegistered(reply) => Ok(ControlOutcome::NodeRegistered {
            node: NodeId(reply.node),
            known: reply.known,
        }),
        Reply::SpaceCreated(reply) => Ok(ControlOutcome::SpaceCreated {
            space: SpaceId(reply.space),
            existed: reply.existed,
        }),
        Reply::SpaceDropped(reply) => Ok(ControlOutcome::SpaceDropped {
            space: SpaceId(reply.space),
        }),
        Reply::MarkAllocated(reply) => Ok(ControlOutcome::MarkAllocated {
            mark: MarkId(reply.mark),
        }),
        Reply::MoveStarted(reply) => Ok(ControlOutcome::MoveStarted {
            id: MoveId(reply.r#move),
        }),
        Reply::Done(wire::Done {}) => Ok(ControlOutcome::Done),
        Reply::Refused(refusal) => Err(refusal.try_into()?),
    };
    Ok(ControlReply {
        index: decoded.index,
        outcome,
    })
}

pub(super) fn sixteen(what: &'static str, bytes: &[u8]) -> Result<[u8; 16], WireError> {
    bytes
        .try_into()
        .map_err(|_| WireError::Malformed(format!("{what} has {} bytes", bytes.len())))
}

impl From<&NodeDescription> for wire::RegisterNode {
    fn from(node: &NodeDescription) -> Self {
        Self {
            identity: Bytes::copy_from_slice(&node.identity),
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
            http_address: node.http_address.clone(),
            zone: node.zone.clone(),
            version: node.version.clone(),
        }
    }
}

impl TryFrom<wire::RegisterNode> for NodeDescription {
    type Error = WireError;

    fn try_from(node: wire::RegisterNode) -> Result<Self, WireError> {
        Ok(Self {
            identity: sixteen("node identity", &node.identity)?,
            client_address: node.client_address,
            peer_address: node.peer_address,
            http_address: node.http_address,
            zone: node.zone,
            version: node.version,
        })
    }
}

impl From<&NewSpace> for wire::CreateSpace {
    fn from(space: &NewSpace) -> Self {
        let set = |nodes: &Vec<NodeId>| wire::ReplicaSet {
            nodes: nodes.iter().map(|node| node.0).collect(),
        };
        Self {
            config: Some((&space.config).into()),
            replicas: space.replicas,
            partitions: space.placement.iter().map(set).collect(),
            refuses_local_fallback: space.local_fallback == LocalFallback::Refused,
        }
    }
}

impl TryFrom<wire::CreateSpace> for NewSpace {
    type Error = WireError;

    fn try_from(space: wire::CreateSpace) -> Result<Self, WireError> {
        let config = space
            .config
            .ok_or(WireError::Missing("the configuration"))?;
        let config = SpaceConfig::try_from(config)
            .map_err(|error| WireError::Malformed(error.to_string()))?;
        let nodes = |set: wire::ReplicaSet| set.nodes.into_iter().map(NodeId).collect();
        let placement = space.partitions.into_iter().map(nodes).collect();
        Ok(Self {
            config,
            replicas: space.replicas,
            placement,
            local_fallback: match space.refuses_local_fallback {
                true => LocalFallback::Refused,
                false => LocalFallback::Allowed,
            },
        })
    }
}

impl From<NodeState> for wire::NodeState {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Active => Self::Active,
            NodeState::Draining => Self::Draining,
            NodeState::Maintenance => Self::Maintenance,
            NodeState::Leaving => Self::Leaving,
        }
    }
}

impl TryFrom<wire::NodeState> for NodeState {
    type Error = WireError;

    fn try_from(state: wire::NodeState) -> Result<Self, WireError> {
        match state {
            wire::NodeState::Active => Ok(Self::Active),
            wire::NodeState::Draining => Ok(Self::Draining),
            wire::NodeState::Maintenance => Ok(Self::Maintenance),
            wire::NodeState::Leaving => Ok(Self::Leaving),
            wire::NodeState::Unspecified => Err(WireError::Missing("the state of a node")),
        }
    }
}

impl From<&NewMove> for wire::StartMove {
    fn from(new: &NewMove) -> Self {
        use wire::start_move::Cause;
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        let cause = match new.cause {
            MoveCause::Operator => Cause::Operator,
            MoveCause::Rebalance => Cause::Rebalance,
            MoveCause::Leaving => Cause::Leaving,
            MoveCause::Dead => Cause::Dead,
            MoveCause::Replicas => Cause::Replicas,
        };
        Self {
            group: new.group.0,
            expected: ids(&new.expected),
            goal: ids(&new.goal),
            cause: cause.into(),
            now_millis: new.now_millis,
        }
    }
}

impl TryFrom<wire::StartMove> for NewMove {
    type Error = WireError;

    fn try_from(new: wire::StartMove) -> Result<Self, WireError> {
        use wire::start_move::Cause;
        let nodes = |ids: Vec<u64>| ids.into_iter().map(NodeId).collect();
        let cause = match Cause::try_from(new.cause) {
            Ok(Cause::Operator) => MoveCause::Operator,
            Ok(Cause::Rebalance) => MoveCause::Rebalance,
            Ok(Cause::Leaving) => MoveCause::Leaving,
            Ok(Cause::Dead) => MoveCause::Dead,
            Ok(Cause::Replicas) => MoveCause::Replicas,
            Ok(Cause::Unspecified) | Err(_) => {
                return Err(WireError::Missing("the cause of a move"));
            }
        };
        Ok(Self {
            group: GroupId(new.group),
            expected: nodes(new.expected),
            goal: nodes(new.goal),
            cause,
            now_millis: new.now_millis,
        })
    }
}

impl From<&ControlRefusal> for wire::Refusal {
    fn from(refusal: &ControlRefusal) -> Self {
        use wire::refusal::Code;
        let node_text;
        let (code, reason) = match refusal {
            ControlRefusal::NotInitialized => (Code::NotInitialized, ""),
            ControlRefusal::OtherCluster { reason } => (Code::OtherCluster, reason.as_str()),
            ControlRefusal::SpaceExistsDifferent { reason } => {
                (Code::SpaceExistsDifferent, reason.as_str())
            }
            ControlRefusal::UnknownSpace { name } => (Code::UnknownSpace, name.as_str()),
            ControlRefusal::SpaceBeingDropped { name } => (Code::SpaceBeingDropped, name.as_str()),
            ControlRefusal::InvalidConfig { reason } => (Code::InvalidConfig, reason.as_str()),
            ControlRefusal::InvalidPlacement { reason } => {
                (Code::InvalidPlacement, reason.as_str())
            }
            ControlRefusal::InvalidNode { reason } => (Code::InvalidNode, reason.as_str()),
            ControlRefusal::Limit { reason } => (Code::Limit, reason.as_str()),
            ControlRefusal::UnknownNode { node } => {
                node_text = node.0.to_string();
                (Code::UnknownNode, node_text.as_str())
            }
            ControlRefusal::Conflict { reason } => (Code::Conflict, reason.as_str()),
            ControlRefusal::NotPossible { reason } => (Code::NotPossible, reason.as_str()),
        };
        Self {
            code: code.into(),
            reason: reason.to_owned(),
        }
    }
}

impl TryFrom<wire::Refusal> for ControlRefusal {
    type Error = WireError;

    fn try_from(refusal: wire::Refusal) -> Result<Self, WireError> {
        use wire::refusal::Code;
        let reason = refusal.reason;
        Ok(match Code::try_from(refusal.code) {
            Ok(Code::NotInitialized) => Self::NotInitialized,
            Ok(Code::OtherCluster) => Self::OtherCluster { reason },
            Ok(Code::SpaceExistsDifferent) => Self::SpaceExistsDifferent { reason },
            Ok(Code::UnknownSpace) => Self::UnknownSpace { name: reason },
            Ok(Code::SpaceBeingDropped) => Self::SpaceBeingDropped { name: reason },
            Ok(Code::InvalidConfig) => Self::InvalidConfig { reason },
            Ok(Code::InvalidPlacement) => Self::InvalidPlacement { reason },
            Ok(Code::InvalidNode) => Self::InvalidNode { reason },
            Ok(Code::Limit) => Self::Limit { reason },
            Ok(Code::UnknownNode) => Self::UnknownNode {
                node: NodeId(reason.parse().unwrap_or(0)),
            },
            Ok(Code::Conflict) => Self::Conflict { reason },
            Ok(Code::NotPossible) => Self::NotPossible { reason },
            Ok(Code::Unspecified) | Err(_) => return Err(WireError::Missing("the refusal's code")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;

    #[test]
    fn commands_survive_their_encoding() {
        for command in samples::commands() {
            assert_eq!(decode_command(&encode_command(&command)), Ok(command));
        }
    }

    #[test]
    fn replies_survive_their_encoding() {
        let outcomes = [
            Ok(ControlOutcome::NodeRegistered {
                node: NodeId(3),
                known: true,
            }),
            Ok(ControlOutcome::SpaceCreated {
                space: SpaceId(2),
                existed: false,
            }),
            Ok(ControlOutcome::SpaceDropped { space: SpaceId(9) }),
            Ok(ControlOutcome::MarkAllocated { mark: MarkId(1) }),
            Ok(ControlOutcome::MoveStarted { id: MoveId(4) }),
            Ok(ControlOutcome::Done),
            Err(ControlRefusal::UnknownNode { node: NodeId(5) }),
            Err(ControlRefusal::Conflict {
                reason: "later".into(),
            }),
            Err(ControlRefusal::NotPossible {
                reason: "never".into(),
            }),
            Err(ControlRefusal::NotInitialized),
            Err(ControlRefusal::UnknownSpace {
                name: "words".into(),
            }),
            Err(ControlRefusal::SpaceBeingDropped {
                name: "words".into(),
            }),
            Err(ControlRefusal::SpaceExistsDifferent {
                reason: "dimension 3, not 4".into(),
            }),
        ];
        for outcome in outcomes {
            let reply = ControlReply { index: 7, outcome };
            assert_eq!(decode_reply(&encode_reply(&reply)), Ok(reply));
        }
    }

    #[test]
    fn an_unknown_command_is_an_error() {
        assert_eq!(decode_command(&[]), Err(WireError::Missing("the command")));
        // Field 99, length-delimited, empty: a command of a later version.
        assert_eq!(
            decode_command(&[0x9a, 0x06, 0]),
            Err(WireError::Missing("the command"))
        );
        assert!(matches!(
            decode_command(&[0xff]),
            Err(WireError::Malformed(_))
        ));
    }
}
