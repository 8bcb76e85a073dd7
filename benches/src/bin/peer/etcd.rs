//! Three etcd processes on free loopback ports, and as much of etcd's gRPC API as a put takes.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use engram_node::demo::wait::until;
use engram_node::seams::Seams;
use http::uri::PathAndQuery;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{Args, Load, load};

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Its header is not looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// The processes. Dropping it kills them.
pub struct Cluster {
    nodes: Vec<Child>,
    channels: Vec<Channel>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            drop(node.kill());
            drop(node.wait());
        }
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Cluster {
    /// Default settings but for addresses and directories.
    pub async fn start(binary: &Path, directory: &Path, seams: &Seams) -> anyhow::Result<Self> {
        let mut ports = Vec::new();
        for _ in 0..3 {
            ports.push((free_port()?, free_port()?));
        }
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let members: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(number, (_, peer))| format!("n{number}={}", url(*peer)))
            .collect();
        let mut cluster = Self {
            nodes: Vec::new(),
            channels: Vec::new(),
        };
        for (number, (client, peer)) in ports.iter().enumerate() {
            let log = std::fs::File::create(directory.join(format!("etcd-{number}.log")))?;
            let child = Command::new(binary)
                .args(["--name", &format!("n{number}")])
                .arg("--data-dir")
                .arg(directory.join(format!("etcd-{number}")))
                .args(["--listen-client-urls", &url(*client)])
                .args(["--advertise-client-urls", &url(*client)])
                .args(["--listen-peer-urls", &url(*peer)])
                .args(["--initial-advertise-peer-urls", &url(*peer)])
                .args(["--initial-cluster", &members.join(",")])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn();
            cluster.nodes.push(child.context("etcd (etcd-server)")?);
            cluster
                .channels
                .push(Endpoint::from_shared(url(*client))?.connect_lazy());
        }
        let probe = async || put(&cluster.channels[0], b"probe", b"1").await.ok();
        until(&*seams.clock, LIMIT, "etcd did not take a write", probe).await?;
        Ok(cluster)
    }

    /// Clients are spread over the three nodes.
    pub(crate) async fn load(
        &self,
        args: &Args,
        seams: &Seams,
        round: u32,
    ) -> anyhow::Result<Load> {
        let (channels, value) = (self.channels.clone(), vec![b'v'; args.bytes]);
        load(args, seams, move |client, number| {
            let channel = channels[client as usize % channels.len()].clone();
            let (key, value) = (format!("k{round}-{number}"), value.clone());
            async move { put(&channel, key.as_bytes(), &value).await }
        })
        .await
    }
}

async fn put(channel: &Channel, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.context("etcd is not ready")?;
    let request = PutRequest {
        key: key.to_vec(),
        value: value.to_vec(),
    };
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec: ProstCodec<PutRequest, PutResponse> = ProstCodec::default();
    client
        .unary(Request::new(request), path, codec)
        .await
        .context("a write to etcd")?;
    Ok(())
}
