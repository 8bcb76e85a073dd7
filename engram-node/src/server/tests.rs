//! Whole nodes in this process: real sockets, real stores.

use std::path::Path;

use engram_core::storage::{Batch, Durability, Family, Order, RocksOptions};
use engram_core::types::GroupId;

use super::*;
use engram_proto::v1;
use engram_proto::v1::memories_client::MemoriesClient;
use engram_proto::v1::spaces_client::SpacesClient;
use tonic::transport::{Channel, Endpoint};

use crate::config::StartArgs;
use crate::control::{ControlCommand, ControlOutcome};
use crate::seams::os;

/// Longest wait for a condition; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(directory: &Path, join: &[String]) -> Config {
    let free = || Some("127.0.0.1:0".to_owned());
    let args = StartArgs {
        data_dir: Some(directory.into()),
        listen: free(),
        peer_listen: free(),
        http_listen: free(),
        join: Some(join.to_vec()),
        ..StartArgs::default()
    };
    args.resolve().expect("a valid configuration")
}

async fn node(directory: &Path, join: &[String]) -> Server {
    let starting = start(config(directory, join), os::seams(RocksOptions::default()));
    Box::pin(starting).await.expect("the node starts")
}

async fn until(seams: &Seams, what: &str, mut condition: impl FnMut() -> bool) {
    let begun = seams.clock.monotonic();
    while !condition() {
        assert!(
            seams.clock.monotonic() - begun < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        seams.clock.sleep(Duration::from_millis(20)).await;
    }
}

/// The first founds the cluster, the others join it.
async fn three_nodes(directories: &[tempfile::TempDir; 3]) -> [Server; 3] {
    let first = node(directories[0].path(), &[]).await;
    let join = [first.addresses().peer.clone()];
    let second = node(directories[1].path(), &join).await;
    let third = node(directories[2].path(), &join).await;
    [first, second, third]
}

/// Waits until all three vote in the control group.
async fn three_voters(seams: &Seams, first: &Server) {
    let voters = || {
        let members = first.consensus().members(GroupId::CONTROL);
        members.is_some_and(|members| members.settled && members.voters.len() == 3)
    };
    until(seams, "three voters", voters).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_a_cluster_and_survive_a_restart() {
    let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let seams = os::seams(RocksOptions::default());
    let [first, second, third] = three_nodes(&directories).await;
    assert_eq!(
        [&first, &second, &third].map(|server| server.node().0),
        [1, 2, 3]
    );
    for server in [&first, &second, &third] {
        let all = server
            .plane()
            .wait_for(PATIENCE, |map| map.nodes.len() == 3)
            .await;
        assert!(all, "node {} knows all", server.node());
        assert_eq!(server.plane().cluster(), first.plane().cluster());
    }

    // A change through a node that does not lead, seen by all.
    let reply = third
        .plane()
        .execute(ControlCommand::AllocateMark, PATIENCE)
        .await;
    let reply = reply.expect("answered");
    assert!(matches!(
        reply.outcome,
        Ok(ControlOutcome::MarkAllocated { .. })
    ));
    for server in [&first, &second, &third] {
        assert!(server.plane().wait_for_index(reply.index, PATIENCE).await);
    }

    // Three voters: the cluster goes on without its founder.
    // While the change to three is not committed, no majority of the earlier ones can do without it.
    three_voters(&seams, &first).await;
    let cluster = first.plane().cluster();
    first.stop().await;
    let survivors = [&second, &third];
    let led = || {
        let leader = |server: &Server| server.consensus().leadership(GroupId::CONTROL).leader;
        survivors
            .iter()
            .all(|server| leader(server).is_some_and(|leader| leader.0 != 1))
    };
    until(&seams, "a new leader", led).await;
    let reply = third
        .plane()
        .execute(ControlCommand::AllocateMark, PATIENCE)
        .await;
    let index = reply.expect("answered").index;

    // The founder comes back under another address, ignores --join, and catches up.
    let nowhere = ["127.0.0.1:9".to_owned()];
    let first = node(directories[0].path(), &nowhere).await;
    assert_eq!((first.node().0, first.plane().cluster()), (1, cluster));
    assert!(first.plane().wait_for_index(index, PATIENCE).await);
    let moved = first.addresses().peer.clone();
    let known = move |map: &crate::control::ClusterMap| {
        map.nodes.values().any(|node| node.peer_address == moved)
    };
    assert!(second.plane().wait_for(PATIENCE, known).await);
    for server in [first, second, third] {
        server.stop().await;
    }
}

async fn connect(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addresses().client));
    endpoint
        .expect("a valid address")
        .connect()
        .await
        .expect("it serves")
}

fn memory(n: u8) -> v1::Memory {
    v1::Memory {
        id: format!("memory-{n}"),
        content: format!("content {n}"),
        embedding: vec![1.0, f32::from(n), 0.5, 0.25],
        ..v1::Memory::default()
    }
}

async fn remember(server: &Server, n: u8) {
    let request = v1::RememberRequest {
        space: "words".into(),
        memory: Some(memory(n)),
        ..v1::RememberRequest::default()
    };
    let mut client = MemoriesClient::new(connect(server).await);
    let answer = client
        .remember(request)
        .await
        .expect("remembered")
        .into_inner();
    assert_eq!(answer.id, format!("memory-{n}"));
}

async fn contents(server: &Server, count: u8) -> Vec<String> {
    let request = v1::GetRequest {
        space: "words".into(),
        ids: (0..count).map(|n| format!("memory-{n}")).collect(),
        ..v1::GetRequest::default()
    };
    let mut client = MemoriesClient::new(connect(server).await);
    let answer = client.get(request).await.expect("read").into_inner();
    assert_eq!(answer.missing, [""; 0]);
    answer
        .memories
        .into_iter()
        .map(|memory| memory.content)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_outlives_a_node() {
    let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let first = node(directories[0].path(), &[]).await;
    let join = [first.addresses().peer.clone()];
    let second = node(directories[1].path(), &join).await;
    let third = node(directories[2].path(), &join).await;
    for server in [&first, &second, &third] {
        assert!(
            server
                .plane()
                .wait_for(PATIENCE, |map| map.nodes.len() == 3)
                .await
        );
    }
    let request = v1::CreateSpaceRequest {
        name: "words".into(),
        dimension: 4,
        partitions: 3,
        replicas: 3,
        ..v1::CreateSpaceRequest::default()
    };
    let mut spaces = SpacesClient::new(connect(&second).await);
    let space = spaces
        .create_space(request.clone())
        .await
        .expect("created")
        .into_inner();
    assert_eq!((space.partitions, space.replicas), (3, 3));
    let again = spaces.create_space(request).await.expect_err("it exists");
    assert_eq!(again.code(), tonic::Code::AlreadyExists);

    for n in 0..9 {
        remember(&second, n).await;
    }
    let wanted: Vec<String> = (0..9).map(|n| format!("content {n}")).collect();
    assert_eq!(contents(&third, 9).await, wanted);

    // Dropped, not stopped: as in a crash.
    drop(first);
    for n in 9..12 {
        remember(&third, n).await;
    }
    let wanted: Vec<String> = (0..12).map(|n| format!("content {n}")).collect();
    assert_eq!(contents(&second, 12).await, wanted);

    let mut spaces = SpacesClient::new(connect(&third).await);
    spaces
        .drop_space(v1::DropSpaceRequest {
            name: "words".into(),
        })
        .await
        .expect("dropped");
    let seams = os::seams(RocksOptions::default());
    let gone = || second.consensus().groups() == [GroupId::CONTROL];
    until(&seams, "the groups are removed", gone).await;
    second.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unprotected_node_refuses_to_leave_loopback() {
    let directory = tempfile::tempdir().expect("a directory");
    let exposed = Config {
        listen: "0.0.0.0:0".into(),
        ..config(directory.path(), &[])
    };
    let refused = start(exposed, os::seams(RocksOptions::default())).await;
    assert!(matches!(refused, Err(ServerError::Exposure(_))));
}

/// Cuts the last record of the control group's log short.
fn damage_control_log(seams: &Seams, directory: &Path) {
    let store = seams.disk.open_store(&directory.join("store"));
    let store = store.expect("nobody else has it open");
    let (start, end) = ([0; 8], 1_u64.to_be_bytes());
    let mut records = store.scan(Family::Log, &start, &end, Order::Descending);
    // Group, kind and index.
    let last = records.find_map(|record| record.ok().filter(|(key, _)| key.len() == 17));
    let (key, value) = last.expect("a record of the log");
    drop(records);
    let mut batch = Batch::new();
    batch.put(Family::Log, key, &value[..3]);
    store.write(batch, Durability::Sync).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_control_log_is_damaged_is_brought_back_by_the_others() {
    let directories = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let seams = os::seams(RocksOptions::default());
    let [first, second, third] = three_nodes(&directories).await;
    three_voters(&seams, &first).await;
    let allocate = async || {
        let command = ControlCommand::AllocateMark;
        let reply = first.plane().execute(command, PATIENCE).await;
        reply.expect("answered").index
    };
    let known = allocate().await;
    assert!(third.plane().wait_for_index(known, PATIENCE).await);
    third.stop().await;
    damage_control_log(&seams, directories[2].path());

    let join = [first.addresses().peer.clone()];
    let third = node(directories[2].path(), &join).await;
    assert!(third.plane().map().index >= known, "it shows what it knew");
    let index = allocate().await;
    assert!(third.plane().wait_for_index(index, PATIENCE).await);
    assert_eq!(third.consensus().damaged(), []);
    let status = third.consensus().status();
    let control = status.iter().find(|it| it.group == GroupId::CONTROL);
    assert_eq!(control.expect("it runs").repairs, 1);
    let again = third
        .plane()
        .execute(ControlCommand::AllocateMark, PATIENCE);
    assert!(again.await.expect("answered").index > index);
    for server in [first, second, third] {
        server.stop().await;
    }
}
