//! Applying control commands: a pure function of the map and the command.
//!
//! Called by [`super::machine`] on every replica, in log order. What must hold: a refused command
//! changes nothing but the count of commands; ids are given out in order and never again; the same
//! commands give the same map everywhere.

use std::collections::BTreeSet;

use engram_core::limits::{PARTITIONS_MAX, REPLICAS_MAX};
use engram_core::planted;
use engram_core::types::{GroupId, MarkId, NodeId, PartitionId, SlotRange, SpaceConfig, SpaceId};

use super::command::{
    ControlCommand, ControlOutcome, ControlRefusal, ControlReply, NewSpace, NodeDescription,
};
use super::map::{ClusterId, ClusterMap, GroupRecord, NodeRecord, PartitionRecord, SpaceRecord};

mod moves;

/// Groups that small spaces share, per number of replicas. A group costs memory and ticks, and
/// batches its own writes only: many small spaces do better in few groups.
pub const SHARED_GROUPS_MAX: usize = 16;
/// Nodes of one cluster.
pub const NODES_MAX: usize = 1_024;
/// Spaces of one cluster.
pub const SPACES_MAX: usize = 4_096;
/// Partitions of all spaces.
pub const CLUSTER_PARTITIONS_MAX: usize = 65_536;
/// Longest address, zone or version of a node, in bytes.
pub const NODE_TEXT_BYTES_MAX: usize = 256;

/// Applies one command.
pub fn apply(map: &mut ClusterMap, command: &ControlCommand) -> ControlReply {
    map.index += 1;
    let outcome = match command {
        ControlCommand::InitCluster { cluster, founder } => init_cluster(map, *cluster, founder),
        _ if !map.is_founded() => Err(ControlRefusal::NotInitialized),
        ControlCommand::RegisterNode(node) => register_node(map, node),
        ControlCommand::CreateSpace(space) => create_space(map, space),
        ControlCommand::DropSpace { name } => drop_space(map, name),
        ControlCommand::FinishDrop { partition } => Ok(finish_drop(map, *partition)),
        ControlCommand::AllocateMark => {
            let mark = take(&mut map.next_mark);
            Ok(ControlOutcome::MarkAllocated { mark: MarkId(mark) })
        }
        ControlCommand::SetNodeState { node, state } => moves::set_state(map, *node, *state),
        ControlCommand::RemoveNode { node } => moves::remove_node(map, *node),
        ControlCommand::StartMove(new) => moves::start(map, new),
        ControlCommand::CancelMove { group, id } => Ok(moves::cancel(map, *group, *id)),
        ControlCommand::FinishMove { group, id } => Ok(moves::finish(map, *group, *id)),
        ControlCommand::PreferPrimary { group, node } => moves::prefer(map, *group, *node),
        ControlCommand::AlterSpace { name, replicas } => moves::alter_space(map, name, *replicas),
    };
    ControlReply {
        index: map.index,
        outcome,
    }
}

fn take(next: &mut u64) -> u64 {
    let id = *next;
    *next += 1;
    id
}

fn init_cluster(
    map: &mut ClusterMap,
    cluster: ClusterId,
    founder: &NodeDescription,
) -> Result<ControlOutcome, ControlRefusal> {
    if map.is_founded() && map.cluster != cluster {
        let reason = format!("it is {}, not {cluster}", map.cluster);
        return Err(ControlRefusal::OtherCluster { reason });
    }
    if cluster == ClusterId::default() {
        return Err(ControlRefusal::OtherCluster {
            reason: "a cluster id is not zero".into(),
        });
    }
    check_node(founder)?;
    if !map.is_founded() {
        map.cluster = cluster;
        for next in [
            &mut map.next_node,
            &mut map.next_space,
            &mut map.next_partition,
            &mut map.next_group,
            &mut map.next_mark,
            &mut map.next_move,
        ] {
            // 0 means "none" on the wire, and group 0 is the control plane's.
            *next = 1;
        }
    }
    register_node(map, founder)
}

fn check_node(node: &NodeDescription) -> Result<(), ControlRefusal> {
    let invalid = |reason: String| Err(ControlRefusal::InvalidNode { reason });
    if node.identity == [0; 16] {
        return invalid("a node's identity is not zero".into());
    }
    let addresses = [&node.client_address, &node.peer_address, &node.http_address];
    for address in addresses {
        let port = address
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse::<u16>()));
        if !matches!(port, Some((host, Ok(1..))) if !host.is_empty()) {
            return invalid(format!("{address:?} is no host:port"));
        }
    }
    let texts = addresses.into_iter().chain([&node.zone, &node.version]);
    for text in texts {
        if text.len() > NODE_TEXT_BYTES_MAX {
            return invalid(format!(
                "{text:?} is longer than {NODE_TEXT_BYTES_MAX} bytes"
            ));
        }
    }
    Ok(())
}

fn register_node(
    map: &mut ClusterMap,
    node: &NodeDescription,
) -> Result<ControlOutcome, ControlRefusal> {
    check_node(node)?;
    if let Some((id, _)) = map.left.iter().find(|(_, it)| **it == node.identity) {
        let reason = format!(
            "node {id} was taken out of the cluster: start it with an empty data directory"
        );
        return Err(ControlRefusal::InvalidNode { reason });
    }
    let known = map.node_by_identity(&node.identity);
    let state = known.map(|record| record.state).unwrap_or_default();
    let known = known.map(|record| record.id);
    if known.is_none() && map.nodes.len() >= NODES_MAX {
        return Err(ControlRefusal::Limit {
            reason: format!("a cluster has {NODES_MAX} nodes"),
        });
    }
    let id = known.unwrap_or_else(|| NodeId(take(&mut map.next_node)));
    let node = node.clone();
    let record = NodeRecord {
        id,
        identity: node.identity,
        client_address: node.client_address,
        peer_address: node.peer_address,
        http_address: node.http_address,
        zone: node.zone,
        version: node.version,
        state,
    };
    map.nodes.insert(id, record);
    Ok(ControlOutcome::NodeRegistered {
        node: id,
        known: known.is_some(),
    })
}

fn create_space(map: &mut ClusterMap, space: &NewSpace) -> Result<ControlOutcome, ControlRefusal> {
    check_space(map, space)?;
    if let Some(existing) = map.space(&space.config.name) {
        return match difference(existing, space) {
            None => {
                // A repeated proposal of the creator itself carries the seed that it drew.
                let seed = space.config.index.level_seed;
                let existed = existing.config.index.level_seed != seed;
                Ok(ControlOutcome::SpaceCreated {
                    space: existing.config.space,
                    existed,
                })
            }
            Some(reason) => Err(ControlRefusal::SpaceExistsDifferent { reason }),
        };
    }
    if map.being_dropped(&space.config.name).is_some() {
        let name = space.config.name.clone();
        return Err(ControlRefusal::SpaceBeingDropped { name });
    }
    if map.spaces.len() + map.dropping.len() >= SPACES_MAX {
        return Err(ControlRefusal::Limit {
            reason: format!("a cluster has {SPACES_MAX} spaces"),
        });
    }
    if map.partitions().count() + space.placement.len() > CLUSTER_PARTITIONS_MAX {
        let reason = format!("a cluster has {CLUSTER_PARTITIONS_MAX} partitions");
        return Err(ControlRefusal::Limit { reason });
    }
    let id = SpaceId(take(&mut map.next_space));
    let slots = SlotRange::split_evenly(space.placement.len() as u32);
    let mut partitions = Vec::with_capacity(slots.len());
    for (slots, nodes) in slots.into_iter().zip(&space.placement) {
        let group = if space.placement.len() == 1 {
            shared_group(map, nodes)
        } else {
            new_group(map, nodes, false)
        };
        let id = PartitionId(take(&mut map.next_partition));
        partitions.push(PartitionRecord { id, group, slots });
    }
    let config = SpaceConfig {
        space: id,
        ..space.config.clone()
    };
    map.spaces.insert(
        id,
        SpaceRecord {
            config,
            replicas: space.replicas,
            partitions,
            local_fallback: space.local_fallback,
        },
    );
    Ok(ControlOutcome::SpaceCreated {
        space: id,
        existed: false,
    })
}

fn check_space(map: &ClusterMap, space: &NewSpace) -> Result<(), ControlRefusal> {
    let config = |reason: String| ControlRefusal::InvalidConfig { reason };
    space
        .config
        .check()
        .map_err(|error| config(error.to_string()))?;
    let partitions = space.placement.len();
    if !(1..=PARTITIONS_MAX as usize).contains(&partitions) {
        return Err(config(format!(
            "partitions is {partitions}, allowed are 1 to {PARTITIONS_MAX}"
        )));
    }
    if !(1..=REPLICAS_MAX).contains(&space.replicas) {
        let replicas = space.replicas;
        return Err(config(format!(
            "replicas is {replicas}, allowed are 1 to {REPLICAS_MAX}"
        )));
    }
    let placement = |reason: String| Err(ControlRefusal::InvalidPlacement { reason });
    for nodes in &space.placement {
        if nodes.len() != space.replicas as usize {
            return placement(format!(
                "{} nodes for {} replicas",
                nodes.len(),
                space.replicas
            ));
        }
        if nodes.iter().collect::<BTreeSet<_>>().len() != nodes.len() {
            return placement("two replicas of a partition on one node".into());
        }
        if let Some(node) = nodes.iter().find(|node| !takes_replicas(map, **node)) {
            return placement(format!("node {node} takes no replicas"));
        }
    }
    Ok(())
}

/// Whether a node is part of the cluster and may be given replicas.
fn takes_replicas(map: &ClusterMap, node: NodeId) -> bool {
    map.nodes.get(&node).is_some_and(|it| it.state.is_active())
}

/// What distinguishes the existing space from the wanted one. The level seed and the placement
/// were drawn by a proposer: a repeated request has others.
fn difference(existing: &SpaceRecord, wanted: &NewSpace) -> Option<String> {
    let differs = |what: &str, existing: String, wanted: String| {
        (existing != wanted).then(|| format!("its {what} is {existing}, not {wanted}"))
    };
    let (have, want) = (&existing.config, &wanted.config);
    differs(
        "dimension",
        have.dimension.to_string(),
        want.dimension.to_string(),
    )
    .or_else(|| {
        let name = |config: &SpaceConfig| format!("{:?}", config.metric).to_lowercase();
        differs("metric", name(have), name(want))
    })
    .or_else(|| {
        let count = |count: usize| count.to_string();
        differs(
            "partitions",
            count(existing.partitions.len()),
            count(wanted.placement.len()),
        )
    })
    .or_else(|| {
        differs(
            "replicas",
            existing.replicas.to_string(),
            wanted.replicas.to_string(),
        )
    })
    .or_else(|| differs("m", have.index.m.to_string(), want.index.m.to_string()))
    .or_else(|| {
        let ef = |config: &SpaceConfig| config.index.ef_construction.to_string();
        differs("ef_construction", ef(have), ef(want))
    })
    .or_else(|| {
        let quantization = |config: &SpaceConfig| format!("{:?}", config.index.quantization);
        let (have, want) = (quantization(have), quantization(want));
        differs("quantization", have.to_lowercase(), want.to_lowercase())
    })
    .or_else(|| {
        let model = |config: &SpaceConfig| format!("{:?}", config.embedding_model);
        differs("embedding model", model(have), model(want))
    })
    .or_else(|| {
        let decay = |config: &SpaceConfig| format!("{:?}", config.decay);
        differs("decay", decay(have), decay(want))
    })
    .or_else(|| {
        let (have, want) = (existing.local_fallback, wanted.local_fallback);
        let name = |fallback| format!("{fallback:?}").to_lowercase();
        differs("local fallback", name(have), name(want))
    })
}

fn new_group(map: &mut ClusterMap, nodes: &[NodeId], shared: bool) -> GroupId {
    let id = GroupId(take(&mut map.next_group));
    map.groups.insert(
        id,
        GroupRecord {
            id,
            replicas: nodes.to_vec(),
            shared,
            founders: nodes.to_vec(),
            change: None,
        },
    );
    id
}

/// The group of a space with one partition: a new one until there are enough, then the emptiest.
fn shared_group(map: &mut ClusterMap, nodes: &[NodeId]) -> GroupId {
    let fits = |group: &&GroupRecord| group.shared && map.wanted_replicas(group) == nodes.len();
    let shared: Vec<GroupId> = map
        .groups
        .values()
        .filter(fits)
        .map(|group| group.id)
        .collect();
    if shared.len() < SHARED_GROUPS_MAX {
        return new_group(map, nodes, true);
    }
    let emptiest = shared
        .iter()
        .min_by_key(|group| (map.partitions_of(**group).count(), **group));
    *emptiest.unwrap_or_else(|| panic!("there are {SHARED_GROUPS_MAX} shared groups"))
}

/// The first half: nobody who knows this map serves the space any more.
fn drop_space(map: &mut ClusterMap, name: &str) -> Result<ControlOutcome, ControlRefusal> {
    if let Some(space) = map.being_dropped(name) {
        let space = space.config.space;
        return Ok(ControlOutcome::SpaceDropped { space });
    }
    let Some(id) = map.space(name).map(|space| space.config.space) else {
        return Err(ControlRefusal::UnknownSpace {
            name: name.to_owned(),
        });
    };
    let dropped = map.spaces.remove_entry(&id);
    if !planted!("name-free-at-once") {
        map.dropping.extend(dropped);
    }
    Ok(ControlOutcome::SpaceDropped { space: id })
}

/// The second half, partition by partition: the group has dropped it.
fn finish_drop(map: &mut ClusterMap, partition: PartitionId) -> ControlOutcome {
    let mut groups = Vec::new();
    map.dropping.retain(|_, space| {
        let gone = space.partitions.extract_if(.., |it| it.id == partition);
        groups.extend(gone.map(|it| it.group));
        !space.partitions.is_empty()
    });
    for group in groups {
        // A shared group stays for the next small space: it has proved that it works.
        if map.groups.get(&group).is_some_and(|group| !group.shared) {
            map.groups.remove(&group);
        }
    }
    ControlOutcome::Done
}

#[cfg(test)]
mod tests;
