//! `engram verify`: the digests of every replica of a space, compared.

use clap::Args;
use engram_client::types as v1;
use serde_json::{Value, json};

use crate::cli::context::ClientArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{hex, table};

#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Name of the space
    pub space: String,
    /// Also recompute the digests of records from disk
    #[arg(long)]
    pub deep: bool,
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
}
