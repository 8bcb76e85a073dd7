//! Nodes in one process. A node can be cut off (its connections break, none can be made), killed
//! (cut off and stopped without a goodbye) and restarted from what its store kept.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engram_core::storage::{
    Batch, Durability, Family, MemoryStorage, Order, Reader as _, RocksOptions, Storage,
};
use engram_core::types::NodeId;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::{BarrierError, Consensus, ConsensusConfig, GroupSpec, ProposeError, StartError};
use super::toy::{self, Toys};
use super::{super::keys, GROUP};
use crate::seams::{Datagrams, Listener, Net, Seams, Stream, os};
use crate::transport::{Peers, incoming};

/// What a condition or an answer may take at most. It is never waited for in full when all is well.
pub const WAIT: Duration = Duration::from_secs(20);
const CLUSTER: [u8; 16] = [9; 16];

pub struct Cluster {
    seams: Seams,
    dir: tempfile::TempDir,
    adjust: fn(&mut ConsensusConfig),
    nodes: Mutex<BTreeMap<NodeId, Node>>,
    voters: Mutex<BTreeMap<NodeId, String>>,
}

#[derive(Clone)]
struct Node {
    consensus: Consensus,
    storage: MemoryStorage,
    cut: Arc<AtomicBool>,
    server_end: Arc<Mutex<Option<tokio::sync::oneshot::Sender<()>>>>,
}

impl Cluster {
    pub async fn start(nodes: u64) -> Self {
        Self::start_with(nodes, |_| ()).await
    }

    pub async fn start_with(nodes: u64, adjust: fn(&mut ConsensusConfig)) -> Self {
        let cluster = Self {
            seams: os::seams(RocksOptions::default()),
            dir: tempfile::tempdir().unwrap(),
            adjust,
            nodes: Mutex::default(),
            voters: Mutex::default(),
        };
        let mut listeners = Vec::new();
        for id in (1..=nodes).map(NodeId) {
            let listener = cluster.seams.net.listen("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            cluster.voters.lock().insert(id, address);
            listeners.push((id, listener));
        }
        for (id, listener) in listeners {
            cluster.run(id, MemoryStorage::new(), listener).await;
        }
        for id in cluster.nodes() {
            cluster.start_group(id, id == NodeId(1)).await;
        }
        cluster
    }

    /// A node that is not a member of anything yet; its address.
    pub async fn add_node(&self, id: NodeId) -> String {
        let listener = self.seams.net.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        self.run(id, MemoryStorage::new(), listener).await;
        self.start_group(id, false).await;
        address
    }

    async fn run(&self, id: NodeId, storage: MemoryStorage, listener: Box<dyn Listener>) {
        let cut = Arc::new(AtomicBool::new(false));
        let net = CutNet {
            inner: Arc::clone(&self.seams.net),
            cut: Arc::clone(&cut),
        };
        let seams = Seams {
            net: Arc::new(net),
            ..self.seams.clone()
        };
        let data_dir = self.dir.path().join(format!("node-{id}"));
        let mut config = ConsensusConfig::new(id, CLUSTER, data_dir);
        config.heartbeat = Duration::from_millis(100);
        config.election_min = Duration::from_millis(400);
        config.election_max = Duration::from_millis(800);
        config.campaign_pause = Duration::from_millis(50);
        (self.adjust)(&mut config);
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let peers = Peers::new(seams.clone(), None, id, Some(CLUSTER));
        let machines = Arc::new(Toys(Arc::clone(&shared)));
        let consensus = Consensus::open(config, seams.clone(), shared, peers, machines)
            .await
            .unwrap();
        let service = consensus.raft_service();
        let listener = Box::new(CutListener {
            inner: listener,
            cut: Arc::clone(&cut),
        });
        let (end, ended) = tokio::sync::oneshot::channel();
        seams.spawn("server", async move {
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::select! {
                served = server.serve_with_incoming(incoming(listener)) => served.unwrap(),
                _ = ended => {}
            }
        });
        let server_end = Arc::new(Mutex::new(Some(end)));
        self.nodes.lock().insert(
            id,
            Node {
                consensus,
                storage,
                cut,
                server_end,
            },
        );
    }

    async fn start_group(&self, id: NodeId, bootstrap: bool) {
        self.try_start_group(id, bootstrap).await.unwrap();
    }

    pub fn spec(&self, bootstrap: bool) -> GroupSpec {
        let voters = self.voters.lock().clone();
        GroupSpec {
            group: GROUP,
            bootstrap,
            hosts: voters.clone(),
            electors: voters.keys().copied().collect(),
            voters,
        }
    }

    pub async fn try_start_group(&self, id: NodeId, bootstrap: bool) -> Result<(), StartError> {
        self.consensus(id).start_group(&self.spec(bootstrap)).await
    }

    /// Restarts a killed node from its store after a crash that lost all that was not synced.
    pub async fn restart(&self, id: NodeId) {
        self.reopen(id).await;
        self.start_group(id, id == NodeId(1)).await;
    }

    /// As [`Self::restart`], with no group started.
    pub async fn reopen(&self, id: NodeId) {
        let storage = self.node(id).storage.crash(0);
        let address = self.voters.lock()[&id].clone();
        let listener = self.listen_again(&address).await;
        self.run(id, storage, listener).await;
    }

    /// The old listener closes when its task notices: the address is free soon, not at once.
    async fn listen_again(&self, address: &str) -> Box<dyn Listener> {
        for _ in 0..1_000 {
            if let Ok(listener) = self.seams.net.listen(address).await {
                return listener;
            }
            self.seams.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("{address} is still in use");
    }

    pub fn cut_off(&self, id: NodeId) {
        self.node(id).cut.store(true, Ordering::SeqCst);
    }

    pub fn reconnect(&self, id: NodeId) {
        self.node(id).cut.store(false, Ordering::SeqCst);
    }

    /// Neither a hand-over nor a goodbye: nobody hears from the node again.
    pub async fn kill(&self, id: NodeId) {
        let node = self.node(id);
        node.cut.store(true, Ordering::SeqCst);
        drop(node.server_end.lock().take());
        node.consensus.stop_groups_for_test().await;
    }

    fn node(&self, id: NodeId) -> Node {
        self.nodes.lock()[&id].clone()
    }

    pub fn consensus(&self, id: NodeId) -> Consensus {
        self.node(id).consensus
    }

    pub fn storage(&self, id: NodeId) -> MemoryStorage {
        self.node(id).storage
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.nodes.lock().keys().copied().collect()
    }

    pub fn others(&self, than: NodeId) -> Vec<NodeId> {
        self.nodes().into_iter().filter(|id| *id != than).collect()
    }

    /// A node that leads and knows it: a barrier passed there.
    pub async fn leader(&self) -> NodeId {
        self.leader_among(&self.nodes()).await
    }

    pub async fn leader_among(&self, nodes: &[NodeId]) -> NodeId {
        let began = self.seams.clock.monotonic();
        while self.seams.clock.monotonic() - began < WAIT {
            for id in nodes {
                let leads = self.consensus(*id).leadership(GROUP).leader == Some(*id);
                let short = Duration::from_secs(1);
                if leads && self.consensus(*id).read_barrier(GROUP, short).await.is_ok() {
                    return *id;
                }
            }
            self.seams.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("no leader among {nodes:?}");
    }

    pub async fn put(&self, at: NodeId, key: &str, value: &str) -> Result<Bytes, ProposeError> {
        let entry = Bytes::from(format!("{key}={value}"));
        self.consensus(at).propose(GROUP, entry, WAIT).await
    }

    pub async fn barrier(&self, at: NodeId) -> Result<(), BarrierError> {
        self.consensus(at).read_barrier(GROUP, WAIT).await
    }

    pub fn get(&self, at: NodeId, key: &str) -> Option<String> {
        toy::get(&self.storage(at), GROUP, key)
    }

    pub fn log_records(&self, at: NodeId) -> usize {
        let (start, end) = keys::log_range(GROUP);
        self.storage(at)
            .scan(Family::Log, &start, &end, Order::Ascending)
            .count()
    }

    /// Takes the last records out of a killed node's log, as a store does that finds its end damaged,
    /// and the applied position with them.
    pub fn lose_log_end(&self, at: NodeId, records: usize) {
        let (start, end) = (keys::record(GROUP, 0), keys::records_end(GROUP));
        let storage = self.storage(at);
        let last: Vec<Box<[u8]>> = storage
            .scan(Family::Log, &start, &end, Order::Descending)
            .take(records)
            .map(|record| record.unwrap().0)
            .collect();
        assert_eq!(last.len(), records);
        let mut batch = Batch::new();
        last.into_iter()
            .for_each(|key| batch.delete(Family::Log, key));
        batch.delete(Family::Metadata, keys::position(GROUP));
        storage.write(batch, Durability::Sync).unwrap();
    }

    pub async fn eventually(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = self.seams.clock.monotonic();
        while !holds() {
            assert!(
                self.seams.clock.monotonic() - began < WAIT,
                "not in time: {what}"
            );
            self.seams.clock.sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn shutdown(&self) {
        for id in self.nodes() {
            self.consensus(id).stop_groups_for_test().await;
        }
    }
}

/// A network that can be cut off: no connection can be made, and those that are there break.
struct CutNet {
    inner: Arc<dyn Net>,
    cut: Arc<AtomicBool>,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "cut off")
}

#[async_trait]
impl Net for CutNet {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(address).await
    }

    async fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(broken());
        }
        let inner = self.inner.connect(address).await?;
        Ok(Box::new(CutStream {
            inner,
            cut: Arc::clone(&self.cut),
        }))
    }

    async fn datagrams(&self, address: &str) -> io::Result<Arc<dyn Datagrams>> {
        self.inner.datagrams(address).await
    }

    async fn resolve(&self, address: &str) -> io::Result<SocketAddr> {
        self.inner.resolve(address).await
    }
}

struct CutListener {
    inner: Box<dyn Listener>,
    cut: Arc<AtomicBool>,
}

#[async_trait]
impl Listener for CutListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (inner, peer) = self.inner.accept().await?;
        Ok((
            Box::new(CutStream {
                inner,
                cut: Arc::clone(&self.cut),
            }),
            peer,
        ))
    }
}

struct CutStream {
    inner: Box<dyn Stream>,
    cut: Arc<AtomicBool>,
}

impl CutStream {
    fn check(&self) -> io::Result<()> {
        if self.cut.load(Ordering::SeqCst) {
            Err(broken())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for CutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for CutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
