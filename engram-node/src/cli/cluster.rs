//! `engram cluster status|nodes|partitions` and `engram verify`.

use clap::{Args, Subcommand};
use engram_client::{Client, types as v1};
use serde_json::{Value, json};

use super::bulk::progress::thousands;
use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use super::output::{hex, partition_json, table};

#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// The cluster at a glance
    Status,
    /// Every node: address, liveness, replicas, primaries
    Nodes,
    /// Every partition: slots, primary, replicas and how far they are
    Partitions {
        /// Only this space
        space: Option<String>,
    },
    /// Changes of associations that came too late to be decided, the newest first
    Conflicts {
        /// Name of the space
        space: String,
        /// At most so many of each partition
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Name of the space
    pub space: String,
    /// Also recompute the digests of records from disk
    #[arg(long)]
    pub deep: bool,
}

pub async fn run(args: &ClusterArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let client = client_args.connect()?;
    match &args.command {
        ClusterCommand::Status => status(&client, client_args).await,
        ClusterCommand::Nodes => nodes(&client, client_args).await,
        ClusterCommand::Partitions { space } => {
            let partitions = client.partitions(space.as_deref()).await?;
            let list: Vec<Value> = partitions.iter().map(partition_json).collect();
            let value = json!({ "partitions": list });
            client_args
                .output
                .print(&value, || partition_table(&partitions))?;
            Ok(Exit::Ok)
        }
        ClusterCommand::Conflicts { space, limit } => {
            let found = client.conflicts(space, *limit).await?;
            let list: Vec<Value> = found.conflicts.iter().map(conflict_json).collect();
            let value = json!({ "total": found.total, "conflicts": list });
            client_args
                .output
                .print(&value, || conflict_table(&found))?;
            Ok(Exit::Ok)
        }
    }
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

async fn status(client: &Client, args: &ClientArgs) -> Result<Exit, Failure> {
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

fn status_text(status: &v1::StatusResponse) -> String {
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

async fn nodes(client: &Client, args: &ClientArgs) -> Result<Exit, Failure> {
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
        })
    });
    let value = json!({ "nodes": list.collect::<Vec<_>>() });
    args.output.print(&value, || {
        let headings = [
            ">NODE",
            "LIVENESS",
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

/// One row per replica, so that lag and tail can be read down a column.
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
    table(&headings, rows)
}

pub async fn verify(args: &VerifyArgs, client_args: &ClientArgs) -> Result<Exit, Failure> {
    let answer = client_args
        .connect()?
        .verify(&args.space, args.deep)
        .await?;
    client_args
        .output
        .print(&verify_json(&answer), || verify_text(&args.space, &answer))?;
    Ok(if answer.equal {
        Exit::Ok
    } else {
        Exit::Negative
    })
}

fn verify_json(answer: &v1::VerifyResponse) -> Value {
    let replica = |replica: &v1::ReplicaDigests| {
        json!({
            "node": replica.node,
            "agrees": replica.agrees,
            "error": replica.error,
            "log_hash": hex(&replica.log_hash),
            "memory_digest": hex(&replica.memory_digest),
            "edge_digest": hex(&replica.edge_digest),
            "topology_digest": hex(&replica.topology_digest),
            "generation": replica.generation,
            "index_jobs": replica.index_jobs,
        })
    };
    let partitions = answer.partitions.iter().map(|partition| {
        json!({
            "partition": partition.partition,
            "sequence": partition.sequence,
            "equal": partition.equal,
            "replicas": partition.replicas.iter().map(replica).collect::<Vec<_>>(),
        })
    });
    json!({ "equal": answer.equal, "partitions": partitions.collect::<Vec<_>>() })
}

/// A row per replica, then the verdict with every replica that disagrees by name.
#[must_use]
pub fn verify_text(space: &str, answer: &v1::VerifyResponse) -> String {
    let headings = [
        ">PARTITION",
        ">SEQUENCE",
        ">NODE",
        "LOG",
        "MEMORIES",
        "EDGES",
        "INDEX",
        "VERDICT",
    ];
    let rows = answer.partitions.iter().flat_map(|partition| {
        partition.replicas.iter().map(move |replica| {
            let digest = |bytes: &[u8]| hex(&bytes[..bytes.len().min(6)]);
            vec![
                partition.partition.to_string(),
                partition.sequence.to_string(),
                replica.node.to_string(),
                digest(&replica.log_hash),
                digest(&replica.memory_digest),
                digest(&replica.edge_digest),
                digest(&replica.topology_digest),
                verdict(replica),
            ]
        })
    });
    let mut text = table(&headings, rows);
    if answer.equal {
        let replicas: usize = answer.partitions.iter().map(|p| p.replicas.len()).sum();
        text.push_str(&format!(
            "\n\nEqual: all {replicas} replicas of {space} hold the same log, memories, edges and index."
        ));
        return text;
    }
    text.push_str("\n\nNOT equal:");
    for partition in &answer.partitions {
        for replica in partition.replicas.iter().filter(|replica| !replica.agrees) {
            let (id, node) = (partition.partition, replica.node);
            text.push_str(&format!(
                "\n  partition {id}, node {node}: {}",
                verdict(replica)
            ));
        }
    }
    text
}

fn verdict(replica: &v1::ReplicaDigests) -> String {
    match (replica.agrees, replica.error.as_str()) {
        (true, _) => "equal".to_owned(),
        (false, "") => "DIFFERS".to_owned(),
        (false, error) => format!("no digests: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_the_replica() {
        let replica = |node, agrees, error: &str| v1::ReplicaDigests {
            node,
            agrees,
            error: error.into(),
            ..Default::default()
        };
        let answer = v1::VerifyResponse {
            equal: false,
            partitions: vec![v1::PartitionVerification {
                partition: 7,
                sequence: 12,
                equal: false,
                replicas: vec![
                    replica(1, true, ""),
                    replica(2, false, ""),
                    replica(3, false, "down"),
                ],
            }],
        };
        let text = verify_text("s", &answer);
        assert!(text.contains("partition 7, node 2: DIFFERS"), "{text}");
        assert!(
            text.contains("partition 7, node 3: no digests: down"),
            "{text}"
        );
        assert!(!text.contains("node 1:"), "{text}");
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
