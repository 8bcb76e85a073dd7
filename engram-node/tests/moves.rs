//! Real processes: clusters that grow, shrink, are drained and lose nodes for good, while writers
//! write. After each: every acknowledged write is there, replicas are at their number and equal.

mod rig;

use std::collections::BTreeSet;
use std::sync::Arc;

use engram_client::types as v1;
use engram_node::demo::ledger::Ledger;
use rig::{PARTITIONS, SPACE, nothing_failed, rig};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_under_load_without_a_failed_call() {
    let mut rig = rig(3, 3, &[]).await;
    let writers = rig.writers().await;
    let ledger: Arc<Ledger> = writers.ledger.clone();
    rig.writes_flow(&ledger).await;

    for _ in 0..2 {
        rig.cluster
            .add()
            .await
            .unwrap_or_else(|error| panic!("it joins: {error}"));
    }
    rig.alive(5).await;
    let planned = rig
        .client
        .rebalance(v1::RebalanceRequest { dry_run: true })
        .await;
    let planned = planned.expect("a plan");
    assert!(
        !planned.moves.is_empty() && planned.started == 0,
        "{planned:#?}"
    );
    let begun = rig
        .client
        .rebalance(v1::RebalanceRequest { dry_run: false })
        .await;
    assert_eq!(begun.expect("begun").started as usize, planned.moves.len());
    rig.no_moves().await;
    let counts = rig.hosts().await;
    assert_eq!(counts.len(), 5, "every node has its share: {counts:?}");
    assert!(counts.values().all(|it| (1..=2).contains(it)), "{counts:?}");
    rig.writes_flow(&ledger).await;
    let again = rig
        .client
        .rebalance(v1::RebalanceRequest { dry_run: true })
        .await;
    let again = again.expect("a plan");
    assert!(again.moves.is_empty(), "it has not converged: {again:#?}");

    // Drained, a node leads nothing; then it leaves altogether. The founder, for the control plane.
    rig.set(1, v1::NodeState::Draining).await;
    rig.wait("the drained node still led", async || {
        let nodes = rig.client.nodes().await.ok()?;
        let status = rig.client.status().await.ok()?;
        let led = nodes.iter().find(|it| it.id == 1)?.primaries;
        (led == 0 && status.control_leader != 1 && status.control_leader != 0).then_some(())
    })
    .await;
    rig.writes_flow(&ledger).await;
    rig.set(1, v1::NodeState::Leaving).await;
    rig.alive(4).await;
    let counts = rig.hosts().await;
    assert!(!counts.contains_key(&1), "{counts:?}");
    rig.cluster
        .stop(0)
        .await
        .unwrap_or_else(|error| panic!("it stops: {error}"));
    rig.writes_flow(&ledger).await;

    let ledger = writers.stop().await;
    let audit = ledger
        .check(&rig.client.space(SPACE))
        .await
        .expect("an answer");
    assert!(audit.holds(), "{audit:#?}");
    nothing_failed(&ledger, &audit);
    rig.equal(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_becomes_three_online() {
    let mut rig = rig(1, 1, &[]).await;
    let writers = rig.writers().await;
    let ledger = writers.ledger.clone();
    rig.writes_flow(&ledger).await;
    let alter = |replicas, dry_run| v1::AlterSpaceRequest {
        name: SPACE.into(),
        replicas,
        dry_run,
    };
    let refused = rig
        .client
        .alter_space(alter(3, false))
        .await
        .expect("an answer");
    assert_eq!(refused.blocked.len(), PARTITIONS as usize, "{refused:#?}");
    for _ in 0..2 {
        rig.cluster
            .add()
            .await
            .unwrap_or_else(|error| panic!("it joins: {error}"));
    }
    rig.alive(3).await;
    let altered = rig
        .client
        .alter_space(alter(3, false))
        .await
        .expect("an answer");
    assert_eq!(altered.moves.len(), PARTITIONS as usize, "{altered:#?}");
    assert_eq!(altered.space.map(|space| space.replicas), Some(3));
    rig.wait("the replicas were not created", async || {
        let partitions = rig.partitions().await;
        partitions
            .iter()
            .all(|it| it.replicas.len() == 3)
            .then_some(())
    })
    .await;
    rig.writes_flow(&ledger).await;

    // It survives what one node did not.
    rig.cluster.kill(0).expect("killed");
    rig.writes_flow(&ledger).await;
    let ledger = writers.stop().await;
    rig.cluster
        .restart(0)
        .await
        .unwrap_or_else(|error| panic!("it comes back: {error}"));
    rig.whole(3).await;
    rig.holds(&ledger).await;
    rig.equal(3).await;
    let fewer = rig
        .client
        .alter_space(alter(2, false))
        .await
        .expect("an answer");
    assert!(fewer.blocked.is_empty(), "{fewer:#?}");
    rig.whole(2).await;
    rig.holds(&ledger).await;
    rig.equal(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_for_good_is_replaced_after_the_grace_period() {
    let mut rig = rig(4, 3, &["--replace-after-seconds", "2"]).await;
    let writers = rig.writers().await;
    let ledger = writers.ledger.clone();
    rig.writes_flow(&ledger).await;
    let counts = rig.hosts().await;
    let victim = *counts
        .keys()
        .find(|node| **node != 1)
        .expect("a replica elsewhere");
    let index = rig.cluster.index_of(victim).expect("one of ours");
    rig.cluster.kill(index).expect("killed");
    rig.wait("its replicas were not created elsewhere", async || {
        let elsewhere = |it: &v1::Partition| {
            it.replicas.len() == 3
                && it
                    .replicas
                    .iter()
                    .all(|replica| replica.node != victim && replica.reachable)
        };
        let partitions = rig.partitions().await;
        (!partitions.is_empty() && partitions.iter().all(elsewhere)).then_some(())
    })
    .await;
    rig.writes_flow(&ledger).await;
    let ledger = writers.stop().await;
    rig.holds(&ledger).await;
    rig.equal(3).await;

    // It comes back with replicas that are no longer its own, and lets go of them.
    rig.cluster
        .restart(index)
        .await
        .unwrap_or_else(|error| panic!("it comes back: {error}"));
    rig.alive(4).await;
    rig.whole(3).await;
    rig.holds(&ledger).await;
}

/// The source, the target and the control plane's leader, each killed right after a move has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_survives_the_kill_of_each_side_and_of_the_control_leader() {
    let mut rig = rig(4, 3, &[]).await;
    let writers = rig.writers().await;
    let ledger = writers.ledger.clone();
    rig.writes_flow(&ledger).await;
    for (round, who) in ["source", "target", "control"].into_iter().enumerate() {
        let partitions = rig.partitions().await;
        let partition = &partitions[round % partitions.len()];
        let hosts: BTreeSet<u64> = partition.replicas.iter().map(|it| it.node).collect();
        let free = (1..=4)
            .find(|node| !hosts.contains(node))
            .expect("a free node");
        // The primary, so that leadership has to go as well.
        let request = v1::MoveReplicaRequest {
            partition: partition.id,
            from: partition.primary,
            to: free,
            dry_run: false,
        };
        rig.client.move_replica(request).await.expect("begun");
        let victim = match who {
            "source" => partition.primary,
            "target" => free,
            _ => rig.client.status().await.expect("an answer").control_leader,
        };
        let index = rig.cluster.index_of(victim).expect("one of ours");
        rig.cluster.kill(index).expect("killed");
        rig.writes_flow(&ledger).await;
        rig.cluster
            .restart(index)
            .await
            .unwrap_or_else(|error| panic!("the {who} comes back: {error}"));
        rig.no_moves().await;
        rig.wait("the replica was not moved", async || {
            let partitions = rig.partitions().await;
            let moved = partitions.iter().find(|it| it.id == partition.id)?;
            let hosts: Vec<u64> = moved.replicas.iter().map(|it| it.node).collect();
            let there = hosts.contains(&free) && !hosts.contains(&request.from);
            (there && hosts.len() == 3).then_some(())
        })
        .await;
        rig.writes_flow(&ledger).await;
    }
    let ledger = writers.stop().await;
    rig.holds(&ledger).await;
    rig.equal(3).await;
}

/// What would cost a partition its majority is refused, with the partition's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_lose_a_majority_is_refused_by_name() {
    let mut rig = rig(3, 3, &[]).await;
    rig.cluster.kill(2).expect("killed");
    let killed = std::cell::Cell::new(None);
    rig.wait("the death was not noticed", async || {
        let nodes = rig.client.nodes().await.ok()?;
        let dead = |it: &v1::Node| it.liveness() == v1::node::Liveness::Dead;
        killed.set(nodes.iter().find(|it| dead(it)).map(|it| it.id));
        killed.get().map(|_| ())
    })
    .await;
    // Nodes that join together get their ids in any order: the killed one may be any but the founder.
    let nodes = rig.client.nodes().await.expect("an answer");
    let living = nodes
        .iter()
        .rfind(|it| Some(it.id) != killed.get())
        .expect("two are left")
        .id;
    let request = |state: v1::NodeState, dry_run| v1::SetNodeStateRequest {
        node: living,
        state: state.into(),
        dry_run,
        force: false,
    };
    for state in [
        v1::NodeState::Draining,
        v1::NodeState::Maintenance,
        v1::NodeState::Leaving,
    ] {
        let answer = rig
            .client
            .set_node_state(request(state, false))
            .await
            .expect("an answer");
        assert!(!answer.done, "{answer:#?}");
        assert_eq!(answer.blocked.len(), PARTITIONS as usize, "{answer:#?}");
        assert!(
            answer
                .blocked
                .iter()
                .all(|it| it.partitions[0].space == SPACE)
        );
    }
    let nodes = rig.client.nodes().await.expect("an answer");
    assert!(nodes.iter().all(|it| it.state() == v1::NodeState::Active));
    let probe = v1::ProbeRequest {
        space: SPACE.into(),
    };
    let probed = rig.client.probe(probe).await.expect("an answer").partitions;
    assert_eq!(probed.len(), PARTITIONS as usize);
    assert!(
        probed.iter().all(|it| it.error.is_empty()),
        "two of three suffice: {probed:#?}"
    );
}
