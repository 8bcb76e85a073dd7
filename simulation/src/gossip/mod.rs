//! Membership and the exchange of edge changes in clusters of any size, in virtual time.
//!
//! The production steps of both protocols ([`engram_node::membership::swim::Swim`],
//! [`engram_node::overlay::Protocol`]) over production replicas in memory; only the network, the
//! clock and the driver around them are made here. There is no log: changes stay beside it, which
//! is where a split leaves them. One seed decides everything.
//!
//! A run: nodes meet; nothing happens for a while, which gives the baseline; the cluster is split in
//! two and edges change on both sides; the split heals; the time until all replicas of every
//! partition hold the same is what is asked for.

mod cluster;
mod network;
mod report;

use std::time::Duration;

pub use cluster::Cluster;
pub use network::Traffic;
pub use report::{curve, markdown};

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub nodes: u64,
    pub partitions: u64,
    pub replicas: u64,
    /// Changes while the cluster is split, each of an edge of its own.
    pub changes: u64,
    /// Datagrams that are lost, in thousandths; a call meets a loss as a delay.
    pub lost_per_mille: u32,
    pub seed: u64,
}

impl Shape {
    /// As many partitions and changes for each node as a hundred nodes have in the benchmark.
    #[must_use]
    pub fn of(nodes: u64, seed: u64) -> Self {
        Self {
            nodes,
            partitions: 3 * nodes,
            replicas: 3,
            changes: 200 * nodes,
            lost_per_mille: 10,
            seed,
        }
    }
}

/// How long the parts of a run take, in virtual time.
const MEETING: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_secs(30);
const SPLIT: Duration = Duration::from_secs(30);
/// Calls across a split are given up after 1 s and made again 0.5 s later, by all nodes in step: how
/// soon after a heal the next ones come depends on when it heals. This many seeds in a row heal at
/// moments that are spread over such a period.
pub const PHASES: u64 = 5;
const PERIOD: Duration = Duration::from_millis(1_500);
/// When a run is given up.
const HEALING_MAX: Duration = Duration::from_secs(60);

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub shape: Shape,
    /// Whether every node saw every other one alive before the split.
    pub met: bool,
    /// From the heal until all replicas held the same; `None`: not within the bound.
    pub converged_after: Option<Duration>,
    /// From the heal until every node saw every other one alive again.
    pub membership_after: Option<Duration>,
    /// Sent by one node in a second while nothing happened.
    pub quiet: Rates,
    /// Sent by all nodes from the heal until convergence.
    pub repair: Traffic,
    /// Estimated size of the changes, each counted once.
    pub change_bytes: u64,
    /// Changes in the overlays of all replicas at the end.
    pub held: u64,
}

/// Bytes in a second, of one node, averaged over all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub datagrams: f64,
    pub calls: f64,
    /// Datagrams and calls of the node that sent most.
    pub greatest: f64,
}

/// One run.
#[must_use]
pub fn run(shape: Shape) -> Outcome {
    let mut cluster = Cluster::new(shape);
    cluster.run_for(MEETING);
    let met = cluster.all_alive();
    let before = cluster.traffic();
    cluster.run_for(QUIET);
    let quiet = rates(&before, &cluster.traffic(), QUIET);

    cluster.split();
    cluster.change_edges(SPLIT);
    cluster.run_for(PERIOD * (shape.seed % PHASES) as u32 / PHASES as u32);
    let healed = cluster.now();
    let before = cluster.traffic();
    cluster.heal();
    let (mut converged_after, mut membership_after) = (None, None);
    let mut repair = Traffic::default();
    while cluster.now() < healed + HEALING_MAX {
        cluster.run_for(Duration::from_millis(50));
        let passed = cluster.now() - healed;
        if converged_after.is_none() && cluster.has_converged() {
            converged_after = Some(passed);
            repair = Traffic::sum(&cluster.traffic()).since(Traffic::sum(&before));
        }
        if membership_after.is_none() && cluster.all_alive() {
            membership_after = Some(passed);
        }
        if converged_after.is_some() && membership_after.is_some() {
            break;
        }
    }
    Outcome {
        shape,
        met,
        converged_after,
        membership_after,
        quiet,
        repair,
        change_bytes: cluster.change_bytes(),
        held: cluster.held(),
    }
}

fn rates(before: &[Traffic], after: &[Traffic], time: Duration) -> Rates {
    let seconds = time.as_secs_f64();
    let sent: Vec<Traffic> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after.since(*before))
        .collect();
    let all = Traffic::sum(&sent);
    let per_node = |bytes: u64| bytes as f64 / seconds / sent.len() as f64;
    let greatest = sent.iter().map(|one| one.datagram_bytes + one.call_bytes);
    Rates {
        datagrams: per_node(all.datagram_bytes),
        calls: per_node(all.call_bytes),
        greatest: greatest.max().unwrap_or(0) as f64 / seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_converges_soon_after_a_heal() {
        let outcome = run(Shape::of(10, 1));
        assert!(outcome.met, "{outcome:?}");
        let converged = outcome.converged_after;
        assert!(
            converged.is_some_and(|after| after <= Duration::from_secs(10)),
            "{outcome:?}"
        );
        assert_eq!(
            outcome.held,
            3 * outcome.shape.changes,
            "every replica has every change"
        );
        assert!(outcome.quiet.datagrams < 5_000.0, "{outcome:?}");
    }

    #[test]
    fn a_seed_decides_a_run() {
        let shape = Shape {
            changes: 300,
            ..Shape::of(6, 7)
        };
        let one = format!("{:?}", run(shape));
        assert_eq!(one, format!("{:?}", run(shape)));
        let other = Shape { seed: 8, ..shape };
        assert_ne!(one, format!("{:?}", run(other)));
    }

    /// The size that the project promises; minutes without optimisation, so `make test-long` runs it.
    #[test]
    #[ignore = "long: part of make test-long"]
    fn a_hundred_nodes_converge_within_ten_seconds_of_a_heal() {
        let outcome = run(Shape::of(100, 1));
        assert!(outcome.met, "{outcome:?}");
        let converged = outcome.converged_after;
        assert!(
            converged.is_some_and(|after| after <= Duration::from_secs(10)),
            "{outcome:?}"
        );
        assert_eq!(outcome.held, 3 * outcome.shape.changes);
        assert!(outcome.quiet.datagrams < 5_000.0, "{outcome:?}");
    }
}
