//! Whether all is well: `health` by what the nodes say, `probe` by writing and reading.

use std::time::Duration;

use clap::Args;
use engram_client::{Client, types as v1};
use serde_json::json;

use crate::cli::context::{ClientArgs, parse_duration};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::table;
use crate::seams::Seams;

/// How often the cluster is asked while it is waited for.
const POLL: Duration = Duration::from_millis(300);

#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Wait until all is well
    #[arg(long)]
    pub wait: bool,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_duration)]
    pub wait_limit: Duration,
}

pub async fn health(
    client: &Client,
    client_args: &ClientArgs,
    args: &HealthArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let begun = seams.clock.monotonic();
    let reasons = loop {
        let reasons = match look(client).await {
            Ok(reasons) => reasons,
            Err(error) if args.wait => vec![format!("no answer: {error}")],
            Err(error) => return Err(error.into()),
        };
        let passed = seams.clock.monotonic().saturating_sub(begun);
        if reasons.is_empty() || !args.wait || passed >= args.wait_limit {
            break reasons;
        }
        seams.clock.sleep(POLL).await;
    };
    let value = json!({ "healthy": reasons.is_empty(), "reasons": reasons });
    client_args
        .output
        .print(&value, || match reasons.is_empty() {
            true => {
                "healthy: all nodes are alive, every partition has a primary and all its replicas"
                    .to_owned()
            }
            false => format!("NOT healthy:\n  {}", reasons.join("\n  ")),
        })?;
    Ok(match reasons.is_empty() {
        true => Exit::Ok,
        false => Exit::Negative,
    })
}

async fn look(client: &Client) -> Result<Vec<String>, engram_client::Error> {
    let status = client.status().await?;
    let nodes = client.nodes().await?;
    let partitions = client.partitions(None).await?;
    let spaces = client.list_spaces().await?;
    let moves = client.moves().await?;
    Ok(reasons(&status, &nodes, &partitions, &spaces, moves.len()))
}

/// Why not all is well.
fn reasons(
    status: &v1::StatusResponse,
    nodes: &[v1::Node],
    partitions: &[v1::Partition],
    spaces: &[v1::Space],
    moves: usize,
) -> Vec<String> {
    let mut reasons = Vec::new();
    if status.control_leader == 0 {
        reasons.push("the control plane has no leader".to_owned());
    }
    let silent = nodes.iter().filter(|node| {
        node.liveness() != v1::node::Liveness::Alive && node.state() != v1::NodeState::Maintenance
    });
    for node in silent {
        let liveness = super::liveness_name(node.liveness());
        reasons.push(format!("node {} is {liveness}", node.id));
    }
    for partition in partitions {
        let (id, space) = (partition.id, &partition.space);
        if partition.primary == 0 {
            reasons.push(format!("partition {id} of {space} has no primary"));
        }
        let wanted = spaces.iter().find(|it| it.name == *space);
        let wanted = wanted.map_or(0, |it| it.replicas as usize);
        let there = partition.replicas.iter().filter(|it| it.reachable).count();
        if there < wanted {
            reasons.push(format!(
                "partition {id} of {space} has {there} of {wanted} replicas"
            ));
        }
    }
    if moves > 0 {
        reasons.push(format!("{moves} moves are under way"));
    }
    reasons
}

pub async fn probe(
    client: &Client,
    client_args: &ClientArgs,
    space: Option<&str>,
) -> Result<Exit, Failure> {
    let request = v1::ProbeRequest {
        space: space.unwrap_or_default().to_owned(),
    };
    let probes = client.probe(request).await?.partitions;
    let list = probes.iter().map(|it| {
        json!({
            "partition": it.partition,
            "space": it.space,
            "ok": it.error.is_empty(),
            "error": it.error,
            "write_micros": it.write_micros,
            "read_micros": it.read_micros,
        })
    });
    let well = probes.iter().all(|it| it.error.is_empty());
    let value = json!({ "ok": well, "partitions": list.collect::<Vec<_>>() });
    client_args.output.print(&value, || probe_table(&probes))?;
    Ok(if well { Exit::Ok } else { Exit::Negative })
}

fn probe_table(probes: &[v1::PartitionProbe]) -> String {
    let headings = [">PARTITION", "SPACE", ">WRITE MS", ">READ MS", "RESULT"];
    let millis = |micros: u64| format!("{:.2}", micros as f64 / 1_000.0);
    let rows = probes.iter().map(|it| {
        vec![
            it.partition.to_string(),
            it.space.clone(),
            millis(it.write_micros),
            millis(it.read_micros),
            match it.error.as_str() {
                "" => "ok".to_owned(),
                error => error.to_owned(),
            },
        ]
    });
    table(&headings, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_is_not_well_is_named() {
        let status = v1::StatusResponse {
            control_leader: 1,
            ..Default::default()
        };
        let space = v1::Space {
            name: "words".into(),
            replicas: 2,
            ..Default::default()
        };
        let replica = |reachable| v1::Replica {
            reachable,
            ..Default::default()
        };
        let mut partition = v1::Partition {
            id: 7,
            space: "words".into(),
            primary: 1,
            replicas: vec![replica(true), replica(true)],
            ..Default::default()
        };
        let ask = |partition: &v1::Partition, moves| {
            let partitions = std::slice::from_ref(partition);
            reasons(
                &status,
                &[],
                partitions,
                std::slice::from_ref(&space),
                moves,
            )
        };
        assert!(ask(&partition, 0).is_empty());
        assert_eq!(ask(&partition, 2), ["2 moves are under way"]);
        partition.replicas[1].reachable = false;
        partition.primary = 0;
        let found = ask(&partition, 0).join("; ");
        assert!(
            found.contains("no primary") && found.contains("1 of 2 replicas"),
            "{found}"
        );
    }
}
