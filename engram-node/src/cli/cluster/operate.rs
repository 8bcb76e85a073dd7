//! Steering a cluster: drain, maintenance, decommission, rebalance, move, transfer, cancel.

use std::collections::BTreeSet;

use engram_client::{Client, types as v1};
use serde_json::{Value, json};

use super::watch::{Wait, WaitArgs, Waited};
use super::{MoveArgs, NodeArgs};
use crate::cli::bulk::progress::Progress;
use crate::cli::context::ClientArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{Output, table};
use crate::seams::Seams;

/// Who gives the commands.
pub struct Operator<'a> {
    pub client: &'a Client,
    pub args: &'a ClientArgs,
    pub seams: &'a Seams,
}

/// How an operation is undone.
enum Undo {
    /// Its moves are called off.
    Moves(BTreeSet<u64>),
    /// Its node is active again, and its moves are called off.
    Node(u64, BTreeSet<u64>),
    Nothing,
}

impl Operator<'_> {
    pub async fn moves(&self) -> Result<Exit, Failure> {
        let moves = self.client.moves().await?;
        let value = json!({ "moves": moves.iter().map(move_json).collect::<Vec<_>>() });
        self.args.output.print(&value, || match moves.is_empty() {
            true => "no replica is being moved".to_owned(),
            false => moves_table(&moves),
        })?;
        Ok(Exit::Ok)
    }

    pub async fn drain(&self, args: &NodeArgs) -> Result<Exit, Failure> {
        self.set_state(args, v1::NodeState::Draining, "drain").await
    }

    pub async fn maintenance(&self, args: &NodeArgs) -> Result<Exit, Failure> {
        self.set_state(args, v1::NodeState::Maintenance, "maintenance on")
            .await
    }

    pub async fn decommission(&self, args: &NodeArgs) -> Result<Exit, Failure> {
        self.set_state(args, v1::NodeState::Leaving, "decommission")
            .await
    }

    pub async fn activate(&self, node: u64) -> Result<Exit, Failure> {
        let request = v1::SetNodeStateRequest {
            node,
            state: v1::NodeState::Active.into(),
            ..Default::default()
        };
        self.client.set_node_state(request).await?;
        let value = json!({ "node": node, "state": "active" });
        self.args
            .output
            .print(&value, || format!("node {node} is active"))?;
        Ok(Exit::Ok)
    }

    async fn set_state(
        &self,
        args: &NodeArgs,
        state: v1::NodeState,
        command: &str,
    ) -> Result<Exit, Failure> {
        let node = args.node;
        let request = v1::SetNodeStateRequest {
            node,
            state: state.into(),
            dry_run: args.dry_run,
            force: args.force,
        };
        let answer = self.client.set_node_state(request).await?;
        if !answer.done {
            let value = json!({
                "node": node,
                "done": false,
                "dry_run": args.dry_run,
                "blocked": answer.blocked.iter().map(blocked_json).collect::<Vec<_>>(),
                "moves": answer.moves.iter().map(planned_json).collect::<Vec<_>>(),
                "primaries": answer.primaries,
            });
            self.args
                .output
                .print(&value, || state_plan_text(node, command, &answer))?;
            return Ok(match (answer.blocked.is_empty(), args.dry_run) {
                (true, _) => Exit::Ok,
                (false, true) => Exit::Negative,
                (false, false) => Exit::Refused,
            });
        }
        let groups: BTreeSet<u64> = answer.moves.iter().map(|it| it.group).collect();
        let wait = self.wait(&args.wait, &answer.moves, Some(groups.clone()));
        let waited = match args.wait.no_wait {
            true => Waited::Left,
            false if state == v1::NodeState::Leaving => {
                wait.until(async |client, _| {
                    let nodes = client.nodes().await?;
                    Ok(nodes.iter().all(|it| it.id != node))
                })
                .await?
            }
            false => {
                wait.until(async |client, _| {
                    let nodes = client.nodes().await?;
                    let leads = |it: &v1::Node| it.id == node && it.primaries > 0;
                    Ok(!nodes.iter().any(leads))
                })
                .await?
            }
        };
        let done = match state {
            v1::NodeState::Leaving => {
                format!("node {node} has left the cluster: its process can be stopped")
            }
            _ => format!("node {node} leads nothing: it can be stopped"),
        };
        self.end(waited, args.wait.no_wait, &done, Undo::Node(node, groups))
            .await
    }

    pub async fn rebalance(&self, dry_run: bool, wait: &WaitArgs) -> Result<Exit, Failure> {
        let answer = self
            .client
            .rebalance(v1::RebalanceRequest { dry_run })
            .await?;
        let nothing = answer.moves.is_empty() && answer.transfers.is_empty();
        if dry_run || nothing {
            let transfers = answer.transfers.iter().map(|it| {
                json!({ "group": it.group, "partitions": names_json(&it.partitions), "to": it.to })
            });
            let value = json!({
                "dry_run": dry_run,
                "moves": answer.moves.iter().map(planned_json).collect::<Vec<_>>(),
                "transfers": transfers.collect::<Vec<_>>(),
            });
            self.args.output.print(&value, || rebalance_text(&answer))?;
            return Ok(Exit::Ok);
        }
        let groups: BTreeSet<u64> = answer.moves.iter().map(|it| it.group).collect();
        let waiting = self.wait(wait, &answer.moves, Some(groups.clone()));
        let waited = match wait.no_wait {
            true => Waited::Left,
            false => waiting.until(async |_, moves| Ok(moves.is_empty())).await?,
        };
        let done = format!(
            "{} replicas moved, {} primaries transferred",
            answer.started,
            answer.transfers.len()
        );
        self.end(waited, wait.no_wait, &done, Undo::Moves(groups))
            .await
    }

    pub async fn move_replica(&self, args: &MoveArgs) -> Result<Exit, Failure> {
        let request = v1::MoveReplicaRequest {
            partition: args.partition,
            from: args.from,
            to: args.to,
            dry_run: args.dry_run,
        };
        let answer = self.client.move_replica(request).await?;
        let planned = answer.planned.unwrap_or_default();
        if args.dry_run {
            let value = json!({ "dry_run": true, "moves": [planned_json(&planned)] });
            self.args.output.print(&value, || planned_line(&planned))?;
            return Ok(Exit::Ok);
        }
        let groups = BTreeSet::from([planned.group]);
        let waiting = self.wait(
            &args.wait,
            std::slice::from_ref(&planned),
            Some(groups.clone()),
        );
        let waited = match args.wait.no_wait {
            true => Waited::Left,
            false => waiting.until(async |_, moves| Ok(moves.is_empty())).await?,
        };
        let (partition, to) = (args.partition, args.to);
        let done = format!("partition {partition} has its replica on node {to}");
        self.end(waited, args.wait.no_wait, &done, Undo::Moves(groups))
            .await
    }

    pub async fn transfer(
        &self,
        partition: u64,
        to: u64,
        wait: &WaitArgs,
    ) -> Result<Exit, Failure> {
        let request = v1::TransferPrimaryRequest { partition, to };
        self.client.transfer_primary(request).await?;
        let waiting = self.wait(wait, &[], None);
        let waited = match wait.no_wait {
            true => Waited::Left,
            false => {
                waiting
                    .until(async |client, _| {
                        let partitions = client.partitions(None).await?;
                        let led = |it: &v1::Partition| it.id == partition && it.primary == to;
                        Ok(partitions.iter().any(led))
                    })
                    .await?
            }
        };
        let done = format!("partition {partition} is led by node {to}");
        self.end(waited, wait.no_wait, &done, Undo::Nothing).await
    }

    pub async fn cancel(&self, groups: &[u64]) -> Result<Exit, Failure> {
        let request = v1::CancelMovesRequest {
            groups: groups.to_vec(),
        };
        let cancelled = self.client.cancel_moves(request).await?.cancelled;
        let value = json!({ "cancelled": cancelled });
        self.args.output.print(&value, || {
            format!("{cancelled} moves were called off; replicas go back to where they were")
        })?;
        Ok(Exit::Ok)
    }

    /// Changes the number of a space's replicas.
    pub async fn alter(
        &self,
        name: &str,
        replicas: u32,
        dry_run: bool,
        wait: &WaitArgs,
    ) -> Result<Exit, Failure> {
        let request = v1::AlterSpaceRequest {
            name: name.to_owned(),
            replicas,
            dry_run,
        };
        let answer = self.client.alter_space(request).await?;
        if dry_run || !answer.blocked.is_empty() {
            let value = json!({
                "done": false,
                "dry_run": dry_run,
                "blocked": answer.blocked.iter().map(blocked_json).collect::<Vec<_>>(),
                "moves": answer.moves.iter().map(planned_json).collect::<Vec<_>>(),
            });
            self.args.output.print(&value, || {
                let mut lines = blocked_lines(&answer.blocked);
                lines.extend(answer.moves.iter().map(planned_line));
                lines.join("\n")
            })?;
            return Ok(match (answer.blocked.is_empty(), dry_run) {
                (true, _) => Exit::Ok,
                (false, true) => Exit::Negative,
                (false, false) => Exit::Refused,
            });
        }
        let waiting = self.wait(wait, &answer.moves, None);
        let waited = match wait.no_wait {
            true => Waited::Left,
            false => {
                waiting
                    .until(async |client, _| {
                        let partitions = client.partitions(Some(name)).await?;
                        let enough = |it: &v1::Partition| it.replicas.len() >= replicas as usize;
                        let settled = client
                            .moves()
                            .await?
                            .iter()
                            .all(|it| !it.partitions.iter().any(|of| of.space == name));
                        Ok(settled && partitions.iter().all(enough))
                    })
                    .await?
            }
        };
        let done = format!("{name} has {replicas} replicas");
        self.end(waited, wait.no_wait, &done, Undo::Nothing).await
    }

    fn wait<'a>(
        &'a self,
        args: &'a WaitArgs,
        moves: &[v1::PlannedMove],
        groups: Option<BTreeSet<u64>>,
    ) -> Wait<'a> {
        let bytes = moves.iter().map(|it| it.bytes * it.to.len() as u64).sum();
        let shown = self.args.output == Output::Table && bytes > 0;
        Wait {
            client: self.client,
            seams: self.seams,
            args,
            progress: if shown {
                Progress::Shown
            } else {
                Progress::Hidden
            },
            groups,
            bytes,
        }
    }

    /// Says how the operation ended, and calls it off if that was asked for.
    async fn end(
        &self,
        waited: Waited,
        no_wait: bool,
        done: &str,
        undo: Undo,
    ) -> Result<Exit, Failure> {
        let (state, text, exit) = match waited {
            Waited::Done => ("done", done.to_owned(), Exit::Ok),
            Waited::Left | Waited::Late => {
                let text = "it goes on; engram cluster moves shows how far it is, engram cluster \
                    cancel calls it off";
                let exit = if no_wait { Exit::Ok } else { Exit::Negative };
                ("running", text.to_owned(), exit)
            }
            Waited::ToCancel => {
                self.undo(undo).await?;
                let text = "called off: replicas go back to where they were";
                ("cancelled", text.to_owned(), Exit::Negative)
            }
        };
        self.args
            .output
            .print(&json!({ "state": state }), || text)?;
        Ok(exit)
    }

    async fn undo(&self, undo: Undo) -> Result<(), Failure> {
        let groups = match undo {
            Undo::Nothing => return Ok(()),
            Undo::Moves(groups) => groups,
            Undo::Node(node, groups) => {
                let request = v1::SetNodeStateRequest {
                    node,
                    state: v1::NodeState::Active.into(),
                    ..Default::default()
                };
                self.client.set_node_state(request).await?;
                groups
            }
        };
        // None named would mean all.
        if !groups.is_empty() {
            let groups = groups.into_iter().collect();
            self.client
                .cancel_moves(v1::CancelMovesRequest { groups })
                .await?;
        }
        Ok(())
    }
}

fn names_json(names: &[v1::PartitionName]) -> Value {
    let names = names.iter();
    names
        .map(|it| json!({ "partition": it.partition, "space": it.space }))
        .collect()
}

fn names_text(names: &[v1::PartitionName]) -> String {
    let names = names.iter();
    let names: Vec<String> = names
        .map(|it| format!("partition {} of {}", it.partition, it.space))
        .collect();
    match names.is_empty() {
        true => "an empty group".to_owned(),
        false => names.join(", "),
    }
}

fn ids(nodes: &[u64]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    match nodes.is_empty() {
        true => "-".to_owned(),
        false => nodes.join(","),
    }
}

fn blocked_json(blocked: &v1::Blocked) -> Value {
    json!({
        "group": blocked.group,
        "partitions": names_json(&blocked.partitions),
        "reason": blocked.reason,
    })
}

fn planned_json(planned: &v1::PlannedMove) -> Value {
    json!({
        "group": planned.group,
        "partitions": names_json(&planned.partitions),
        "from": planned.from,
        "to": planned.to,
        "bytes": planned.bytes,
    })
}

fn move_json(it: &v1::Move) -> Value {
    json!({
        "id": it.id,
        "group": it.group,
        "partitions": names_json(&it.partitions),
        "from": it.from,
        "to": it.to,
        "cause": cause_name(it.cause()),
        "phase": phase_name(it.phase()),
        "cancelled": it.cancelled,
        "started_millis": it.started_millis,
        "bytes": it.bytes,
        "bytes_sent": it.bytes_sent,
        "entries_left": it.entries_left,
    })
}

fn cause_name(cause: v1::r#move::Cause) -> &'static str {
    use v1::r#move::Cause;
    match cause {
        Cause::Unspecified => "unknown",
        Cause::Operator => "operator",
        Cause::Rebalance => "rebalance",
        Cause::Leaving => "decommission",
        Cause::Dead => "dead node",
        Cause::Replicas => "replicas",
    }
}

fn phase_name(phase: v1::r#move::Phase) -> &'static str {
    use v1::r#move::Phase;
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Queued => "queued",
        Phase::CatchingUp => "catching up",
        Phase::Switching => "switching",
        Phase::Unreachable => "no primary",
    }
}

fn planned_line(planned: &v1::PlannedMove) -> String {
    let (from, to) = (ids(&planned.from), ids(&planned.to));
    let what = names_text(&planned.partitions);
    format!(
        "would move: {what}, from node {from} to node {to}, about {} bytes",
        planned.bytes
    )
}

fn blocked_lines(blocked: &[v1::Blocked]) -> Vec<String> {
    let line =
        |it: &v1::Blocked| format!("in the way: {}: {}", names_text(&it.partitions), it.reason);
    blocked.iter().map(line).collect()
}

fn state_plan_text(node: u64, command: &str, answer: &v1::SetNodeStateResponse) -> String {
    let mut lines = blocked_lines(&answer.blocked);
    lines.extend(answer.moves.iter().map(planned_line));
    if answer.primaries > 0 {
        lines.push(format!(
            "{} primaries would go to other nodes",
            answer.primaries
        ));
    }
    if answer.blocked.is_empty() {
        lines.push(format!(
            "nothing is in the way\n\ntry: engram cluster {command} {node}"
        ));
    } else {
        lines.push(format!(
            "nothing was changed\n\ntry: bring nodes back or add some, or engram cluster {command} {node} --force"
        ));
    }
    lines.join("\n")
}

fn rebalance_text(answer: &v1::RebalanceResponse) -> String {
    if answer.moves.is_empty() && answer.transfers.is_empty() {
        return "replicas and primaries are spread evenly: nothing to move".to_owned();
    }
    let mut lines: Vec<String> = answer.moves.iter().map(planned_line).collect();
    lines.extend(answer.transfers.iter().map(|it| {
        let what = names_text(&it.partitions);
        format!("would transfer: {what}, to node {}", it.to)
    }));
    lines.push("\ntry: engram cluster rebalance".to_owned());
    lines.join("\n")
}

fn moves_table(moves: &[v1::Move]) -> String {
    let headings = [
        ">MOVE",
        ">GROUP",
        "PARTITIONS",
        "FROM",
        "TO",
        "CAUSE",
        "PHASE",
        ">SENT",
        ">OF ABOUT",
        ">ENTRIES LEFT",
    ];
    let rows = moves.iter().map(|it| {
        let partitions: Vec<u64> = it.partitions.iter().map(|name| name.partition).collect();
        let phase = phase_name(it.phase());
        vec![
            it.id.to_string(),
            it.group.to_string(),
            ids(&partitions),
            ids(&it.from),
            ids(&it.to),
            cause_name(it.cause()).to_owned(),
            match it.cancelled {
                true => format!("{phase}, called off"),
                false => phase.to_owned(),
            },
            it.bytes_sent.to_string(),
            it.bytes.to_string(),
            it.entries_left.to_string(),
        ]
    });
    table(&headings, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> v1::Blocked {
        v1::Blocked {
            group: 3,
            partitions: vec![v1::PartitionName {
                partition: 7,
                space: "words".into(),
            }],
            reason: "no majority".into(),
        }
    }

    #[test]
    fn what_stands_in_the_way_is_named_with_what_to_try() {
        let answer = v1::SetNodeStateResponse {
            blocked: vec![blocked()],
            ..Default::default()
        };
        let text = state_plan_text(2, "drain", &answer);
        assert!(text.contains("partition 7 of words: no majority"), "{text}");
        assert!(text.contains("engram cluster drain 2 --force"), "{text}");
        let free = state_plan_text(2, "drain", &v1::SetNodeStateResponse::default());
        assert!(free.ends_with("try: engram cluster drain 2"), "{free}");
    }

    #[test]
    fn moves_are_shown_with_their_nodes() {
        let text = moves_table(&[v1::Move {
            id: 4,
            group: 3,
            from: vec![1],
            to: vec![5, 6],
            cancelled: true,
            ..Default::default()
        }]);
        assert!(
            text.contains("5,6") && text.contains("called off"),
            "{text}"
        );
    }
}
