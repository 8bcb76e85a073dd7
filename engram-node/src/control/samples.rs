//! Commands for tests.

use engram_core::types::{
    Decay, GroupId, IndexParameters, Metric, NodeId, PartitionId, SpaceConfig, SpaceId,
};

use super::command::{ControlCommand, NewMove, NewSpace, NodeDescription};
use super::map::{ClusterId, LocalFallback, MoveCause, MoveId, NodeState};

pub fn node(n: u8) -> NodeDescription {
    NodeDescription {
        identity: [n; 16],
        client_address: format!("127.0.0.1:{}", 7000 + u16::from(n)),
        peer_address: format!("127.0.0.1:{}", 8000 + u16::from(n)),
        http_address: format!("127.0.0.1:{}", 9000 + u16::from(n)),
        zone: "a".into(),
        version: "0.1.0".into(),
    }
}

pub fn space(name: &str, placement: &[&[u64]]) -> NewSpace {
    let nodes = |set: &&[u64]| set.iter().copied().map(NodeId).collect::<Vec<_>>();
    NewSpace {
        config: SpaceConfig {
            space: SpaceId(0),
            name: name.into(),
            dimension: 8,
            metric: Metric::Cosine,
            index: IndexParameters::new(42),
            embedding_model: String::new(),
            decay: Decay::Exponential {
                half_life_millis: 1_000,
            },
        },
        replicas: placement.first().map_or(0, |set| set.len() as u32),
        placement: placement.iter().map(nodes).collect(),
        local_fallback: LocalFallback::default(),
    }
}

pub fn init() -> ControlCommand {
    ControlCommand::InitCluster {
        cluster: ClusterId([9; 16]),
        founder: node(1),
    }
}

pub fn start_move(group: u64, expected: &[u64], goal: &[u64]) -> ControlCommand {
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    ControlCommand::StartMove(NewMove {
        group: GroupId(group),
        expected: nodes(expected),
        goal: nodes(goal),
        cause: MoveCause::Operator,
        now_millis: 1_700_000_000_000,
    })
}

/// One of each kind, in an order in which all are accepted.
pub fn commands() -> Vec<ControlCommand> {
    vec![
        init(),
        ControlCommand::RegisterNode(node(2)),
        ControlCommand::RegisterNode(node(3)),
        ControlCommand::CreateSpace(space("words", &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]])),
        ControlCommand::CreateSpace(space("small", &[&[1, 2, 3]])),
        ControlCommand::AllocateMark,
        ControlCommand::DropSpace {
            name: "words".into(),
        },
        ControlCommand::FinishDrop {
            partition: PartitionId(2),
        },
        ControlCommand::RegisterNode(node(4)),
        ControlCommand::AlterSpace {
            name: "small".into(),
            replicas: 2,
        },
        start_move(4, &[1, 2, 3], &[4, 1]),
        ControlCommand::PreferPrimary {
            group: GroupId(4),
            node: NodeId(1),
        },
        ControlCommand::CancelMove {
            group: GroupId(4),
            id: MoveId(1),
        },
        ControlCommand::FinishMove {
            group: GroupId(4),
            id: MoveId(2),
        },
        ControlCommand::SetNodeState {
            node: NodeId(4),
            state: NodeState::Leaving,
        },
        ControlCommand::RemoveNode { node: NodeId(4) },
    ]
}
