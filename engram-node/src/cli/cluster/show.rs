//! Looking at a cluster: `status`, `nodes`, `partitions`, `conflicts`.

use engram_client::{Client, types as v1};
use serde_json::{Value, json};

use crate::cli::bulk::progress::thousands;
use crate::cli::context::ClientArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{hex, partition_json, table};

pub async fn partitions(
    client: &Client,
    args: &ClientArgs,
    space: Option<&str>,
) -> Result<Exit, Failure> {
    let partitions = client.partitions(space).await?;
    let list: Vec<Value> = partitions.iter().map(partition_json).collect();
    let value = json!({ "partitions": list });
    args.output.print(&value, || partition_table(&partitions))?;
    Ok(Exit::Ok)
}

pub async fn conflicts(
    client: &Client,
    args: &ClientArgs,
    space: &str,
    limit: u32,
) -> Result<Exit, Failure> {
    let found = client.conflicts(space, limit).await?;
    let list: Vec<Value> = found.conflicts.iter().map(conflict_json).collect();
    let value = json!({ "total": found.total, "conflicts": list });
    args.output.print(&value, || conflict_table(&found))?;
    Ok(Exit::Ok)
}

fn conflict_kind(conflict: &v1::EdgeConflict) -> &'static str {
    use v1::edge_conflict::Kind;
    match conflict.kind() {
        Kind::Unspecified => "unknown",
        Kind::RemovalTooLate => "removal too late, evidence kept",
        Kind::RetryCounted => "retry counted, perhaps twice",
        Kind::RetryDropped => "retry dropped, counted before",
        Kind::MarkReused => "mark reused, not merged",
    }
}

fn conflict_json(conflict: &v1::EdgeConflict) -> Value {
    let request = conflict.request.as_ref().map(|request| {
        json!({
            "client": hex(&request.client),
            "counter": request.counter,
            "index": conflict.index,
        })
    });
    json!({
        "partition": conflict.partition,
        "number": conflict.number,
        "sequence": conflict.sequence,
        "from": conflict.from,
        "to": conflict.to,
        "relation": conflict.relation,
        "kind": conflict.kind().as_str_name(),
        "request": request,
    })
}

fn conflict_table(found: &v1::ListConflictsResponse) -> String {
    if found.conflicts.is_empty() {
        return "no conflicts".to_owned();
    }
    let headings = [
        ">PARTITION",
        ">NUMBER",
        ">SEQUENCE",
        "FROM",
        "RELATION",
        "TO",
        "WHAT",
    ];
    let rows = found.conflicts.iter().map(|conflict| {
        let from = match conflict.from.as_str() {
            "" => "(forgotten)",
            from => from,
        };
        vec![
            conflict.partition.to_string(),
            conflict.number.to_string(),
            conflict.sequence.to_string(),
            from.to_owned(),
            conflict.relation.clone(),
            conflict.to.clone(),
            conflict_kind(conflict).to_owned(),
        ]
    });
    table(&headings, rows)
}

pub async fn status(client: &Client, args: &ClientArgs) -> Result<Exit, Failure> {
    let status = client.status().await?;
    let value = json!({
        "cluster_id": status.cluster_id,
        "node": status.node,
        "version": status.version,
        "control_leader": status.control_leader,
        "control_index": status.control_index,
        "nodes": status.nodes,
        "nodes_alive": status.nodes_alive,
        "spaces": status.spaces,
        "partitions": status.partitions,
        "partitions_without_primary": status.partitions_without_primary,
    });
    args.output.print(&value, || status_text(&status))?;
    Ok(Exit::Ok)
}

pub fn status_text(status: &v1::StatusResponse) -> String {
    let mut lines = vec![
        format!("cluster         {}", status.cluster_id),
        format!(
            "answered by     node {} (version {})",
            status.node, status.version
        ),
        format!(
            "nodes           {} of {} alive",
            status.nodes_alive, status.nodes
        ),
        match status.control_leader {
            0 => "control plane   no leader: nothing can be created or moved now".to_owned(),
            leader => format!(
                "control plane   led by node {leader}, at position {}",
                thousands(status.control_index)
            ),
        },
        format!("spaces          {}", status.spaces),
    ];
    let waiting = status.partitions_without_primary;
    lines.push(match waiting {
        0 => format!("partitions      {}, all with a primary", status.partitions),
        _ => format!(
            "partitions      {}, {waiting} without a primary",
            status.partitions
        ),
    });
    if waiting > 0 {
        lines.push("\ntry: engram cluster partitions".to_owned());
    } else if status.nodes_alive < status.nodes {
        lines.push("\ntry: engram cluster nodes".to_owned());
    }
    lines.join("\n")
}

#[must_use]
pub fn liveness_name(liveness: v1::node::Liveness) -> &'static str {
    match liveness {
        v1::node::Liveness::Unspecified => "unknown",
        v1::node::Liveness::Alive => "alive",
        v1::node::Liveness::Suspect => "suspect",
        v1::node::Liveness::Dead => "dead",
    }
}

/// What an operator wants of a node.
#[must_use]
pub fn state_name(state: v1::NodeState) -> &'static str {
    match state {
        v1::NodeState::Unspecified => "unknown",
        v1::NodeState::Active => "active",
        v1::NodeState::Draining => "drained",
        v1::NodeState::Maintenance => "maintenance",
        v1::NodeState::Leaving => "leaving",
    }
}

pub async fn nodes(client: &Client, args: &ClientArgs) -> Result<Exit, Failure> {
    let nodes = client.nodes().await?;
    let list = nodes.iter().map(|node| {
        json!({
            "id": node.id,
            "client_address": node.client_address,
            "peer_address": node.peer_address,
            "http_address": node.http_address,
            "zone": node.zone,
            "liveness": liveness_name(node.liveness()),
            "replicas": node.replicas,
            "primaries": node.primaries,
            "version": node.version,
            "state": state_name(node.state()),
        })
    });
    let value = json!({ "nodes": list.collect::<Vec<_>>() });
    args.output.print(&value, || {
        let headings = [
            ">NODE",
            "LIVENESS",
            "STATE",
            "CLIENT",
            "PEER",
            "HTTP",
            "ZONE",
            ">REPLICAS",
            ">PRIMARIES",
            "VERSION",
        ];
        let rows = nodes.iter().map(|node| {
            vec![
                node.id.to_string(),
                liveness_name(node.liveness()).to_owned(),
                state_name(node.state()).to_owned(),
                node.client_address.clone(),
                node.peer_address.clone(),
                node.http_address.clone(),
                node.zone.clone(),
                node.replicas.to_string(),
                node.primaries.to_string(),
                node.version.clone(),
            ]
        });
        table(&headings, rows)
    })?;
    Ok(Exit::Ok)
}

/// One row per replica, so that lag and tail can be read down a column; below it, why replicas
/// have stopped.
#[must_use]
pub fn partition_table(partitions: &[v1::Partition]) -> String {
    let headings = [
        ">PARTITION",
        "SPACE",
        "SLOTS",
        ">EPOCH",
        ">NODE",
        "ROLE",
        ">SEQUENCE",
        ">MEMORIES",
        ">EDGES",
        ">UNLINKED",
        ">OVERLAY",
        ">FOLDED",
        ">CONFLICTS",
    ];
    let rows = partitions.iter().flat_map(|partition| {
        partition.replicas.iter().map(move |replica| {
            let role = match (replica.reachable, replica.node == partition.primary) {
                (false, _) => "unreachable",
                (true, _) if !replica.stopped.is_empty() => "stopped",
                (true, true) => "primary",
                (true, false) => "replica",
            };
            vec![
                partition.id.to_string(),
                partition.space.clone(),
                format!(
                    "{}-{}",
                    partition.slot_start,
                    partition.slot_end.saturating_sub(1)
                ),
                partition.epoch.to_string(),
                replica.node.to_string(),
                role.to_owned(),
                replica.sequence.to_string(),
                replica.memories.to_string(),
                replica.edges.to_string(),
                replica.index_tail.to_string(),
                replica.overlay_deltas.to_string(),
                replica.folded_edges.to_string(),
                replica.edge_conflicts.to_string(),
            ]
        })
    });
    let mut text = table(&headings, rows);
    for partition in partitions {
        for replica in partition
            .replicas
            .iter()
            .filter(|it| !it.stopped.is_empty())
        {
            let (id, node, why) = (partition.id, replica.node, &replica.stopped);
            text += &format!("\npartition {id} on node {node} has stopped: {why}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_replica_says_why() {
        let replica = |node, stopped: &str| v1::Replica {
            node,
            reachable: true,
            stopped: stopped.into(),
            ..Default::default()
        };
        let partition = v1::Partition {
            id: 4,
            primary: 1,
            replicas: vec![replica(1, ""), replica(2, "log record 9 is corrupt")],
            ..Default::default()
        };
        let text = partition_table(&[partition]);
        let line = "partition 4 on node 2 has stopped: log record 9 is corrupt";
        assert!(
            text.contains(line) && !text.contains("on node 1 has"),
            "{text}"
        );
    }

    #[test]
    fn a_cluster_in_trouble_says_what_to_try() {
        let well = v1::StatusResponse {
            nodes: 3,
            nodes_alive: 3,
            control_leader: 1,
            ..Default::default()
        };
        assert!(!status_text(&well).contains("try:"));
        let waiting = v1::StatusResponse {
            partitions_without_primary: 1,
            ..well
        };
        assert!(status_text(&waiting).contains("try: engram cluster partitions"));
    }
}
