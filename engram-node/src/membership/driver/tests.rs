use engram_core::storage::RocksOptions;
use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::control::{ClusterId, NodeRecord};
use crate::seams::os;

const CLUSTER: ClusterId = ClusterId([5; 16]);

fn record(n: u64, address: SocketAddr) -> NodeRecord {
    NodeRecord {
        id: NodeId(n),
        identity: [n as u8; 16],
        client_address: String::new(),
        peer_address: address.to_string(),
        http_address: String::new(),
        zone: String::new(),
        version: String::new(),
        state: Default::default(),
    }
}

/// Nodes on loopback that share one map; those in `strangers` have another key.
async fn start(count: u64, strangers: &[u64], stop: &CancellationToken) -> Vec<Membership> {
    let seams = os::seams(RocksOptions::default());
    let mut sockets = Vec::new();
    let mut map = ClusterMap::default();
    for n in 1..=count {
        let socket = seams
            .net
            .datagrams("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = socket.local_addr().expect("an address");
        map.nodes.insert(NodeId(n), record(n, address));
        sockets.push((n, address, socket));
    }
    let (_keep, map) = watch::channel(Arc::new(map));
    let of = |(n, address, socket): (u64, SocketAddr, Arc<dyn Datagrams>)| {
        let secret = strangers.contains(&n).then_some(&b"guessed"[..]);
        let options = MembershipOptions {
            local: NodeId(n),
            address,
            incarnation: 1,
            key: ClusterKey::derive(CLUSTER, secret),
            timing: SwimTiming::default(),
        };
        Membership::start(options, &seams, socket, map.clone(), stop.clone())
    };
    sockets.into_iter().map(of).collect()
}

async fn all_alive(member: &Membership, nodes: &[u64]) {
    let seen = |view: &Arc<LivenessView>| {
        nodes
            .iter()
            .all(|n| NodeId(*n) == member.local || view.get(&NodeId(*n)) == Some(&Liveness::Alive))
    };
    member
        .watch()
        .wait_for(seen)
        .await
        .expect("membership runs");
}

#[tokio::test]
async fn three_nodes_meet_over_udp() {
    let stop = CancellationToken::new();
    for member in &start(3, &[], &stop).await {
        all_alive(member, &[1, 2, 3]).await;
        assert_eq!(member.liveness(NodeId(9)), Liveness::Suspect);
    }
    stop.cancel();
}

#[tokio::test]
async fn datagrams_of_another_key_are_dropped_and_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // The test's runtime has one thread, so all its tasks count here.
    let _counting = metrics::set_default_local_recorder(&recorder);
    let stop = CancellationToken::new();
    let members = start(3, &[3], &stop).await;
    all_alive(&members[0], &[1, 2]).await;
    all_alive(&members[1], &[1, 2]).await;
    let clock = os::seams(RocksOptions::default()).clock;
    let forged = |text: String| {
        let line = text
            .lines()
            .find(|line| line.contains("why=\"forged\""))
            .map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    // Node 3 greets both others, and both greet it.
    while forged(handle.render()) < 8 {
        clock.sleep(Duration::from_millis(10)).await;
    }
    for member in &members[..2] {
        assert_eq!(member.liveness(NodeId(3)), Liveness::Suspect);
        assert!(!member.view().contains_key(&NodeId(3)));
    }
    assert_eq!(members[2].liveness(NodeId(1)), Liveness::Suspect);
    stop.cancel();
}
