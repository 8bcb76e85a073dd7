//! Real connections on loopback: which certificates and tokens get through.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use engram_core::storage::RocksOptions;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::issue::{self, Issued, Validity};
use super::{Role, Security, SecurityError, SecurityOptions, files, tokens};
use crate::seams::{Seams, os};
use crate::transport::Stamp;

fn seams() -> Seams {
    os::seams(RocksOptions::default())
}

/// A CA, and certificates of it in a directory of their own.
struct Cluster {
    ca: Issued,
    validity: Validity,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let validity = Validity {
            now_millis: seams().clock.wall_millis(),
            days: 1,
        };
        Self {
            ca: issue::ca(validity).unwrap(),
            validity,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn node(&self) -> Issued {
        issue::node(&self.ca.key, "n1", &["127.0.0.1".to_owned()], self.validity).unwrap()
    }

    fn client(&self) -> Issued {
        issue::client(&self.ca.key, "app", self.validity).unwrap()
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The options of a node with all its protection.
    fn options(&self) -> SecurityOptions {
        let node = self.node();
        self.write(files::CA_CERTIFICATE, &self.ca.certificate);
        self.write(files::NODE_CERTIFICATE, &node.certificate);
        self.write(files::NODE_KEY, &node.key);
        self.write(files::CLUSTER_KEY, "0123456789abcdef\n");
        let tokens = self.write("tokens", &tokens::line("app", Role::Write, "good"));
        SecurityOptions {
            tls_dir: Some(self.dir.path().into()),
            token_file: Some(tokens),
            ..Default::default()
        }
    }

    fn security(&self) -> Security {
        Security::load(&self.options(), seams().disk.as_ref()).unwrap()
    }

    /// A client of the client port that trusts this CA.
    fn tls(&self, shown: Option<&Issued>) -> ClientTlsConfig {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca.certificate));
        match shown {
            Some(one) => tls.identity(Identity::from_pem(&one.certificate, &one.key)),
            None => tls,
        }
    }
}

/// What a health check ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Served,
    Refused(Code),
    /// TLS let no request through. Which side noticed, and when, may vary.
    NoConnection,
}

/// The cluster of the nodes in these tests.
const CLUSTER: [u8; 16] = [7; 16];

async fn check(address: &str, tls: ClientTlsConfig) -> Answer {
    check_as(address, tls, Some(CLUSTER)).await
}

/// Checks with a request that names a cluster.
async fn check_as(address: &str, tls: ClientTlsConfig, cluster: Option<[u8; 16]>) -> Answer {
    let channel = Channel::from_shared(format!("https://{address}"))
        .unwrap()
        .tls_config(tls);
    let channel = channel.unwrap().connect_lazy();
    let mut client = HealthClient::with_interceptor(channel, Stamp::new(cluster));
    match client
        .check(Request::new(HealthCheckRequest::default()))
        .await
    {
        Ok(_) => Answer::Served,
        Err(status) if status.source().is_some() => Answer::NoConnection,
        Err(status) => Answer::Refused(status.code()),
    }
}

/// Connections to a free port, and its address. To be called inside a runtime.
fn listener() -> (TcpIncoming, String) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap().to_string();
    (incoming, address)
}

#[tokio::test]
async fn the_peer_port_is_for_nodes_of_this_cluster() {
    let cluster = Cluster::new();
    let security = cluster.security();
    let (incoming, address) = listener();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .tls_config(security.peer_server().unwrap())
        .unwrap()
        .layer(security.peer_guard(CLUSTER))
        .add_service(health)
        .serve_with_incoming(incoming);
    seams().spawn("peer server", async move { server.await.unwrap() });

    assert_eq!(
        check(&address, security.peer_client().unwrap()).await,
        Answer::Served
    );

    let no_certificate = check(&address, cluster.tls(None)).await;
    assert_eq!(no_certificate, Answer::NoConnection, "the handshake fails");
    let client = check(&address, cluster.tls(Some(&cluster.client()))).await;
    assert_eq!(
        client,
        Answer::Refused(Code::PermissionDenied),
        "a client's certificate is not a node's"
    );

    for named in [None, Some([8; 16])] {
        let tls = security.peer_client().unwrap();
        assert_eq!(
            check_as(&address, tls, named).await,
            Answer::Refused(Code::FailedPrecondition),
            "a node of another cluster with the same CA"
        );
    }
    let other = Cluster::new();
    let foreign = check(&address, cluster.tls(Some(&other.node()))).await;
    assert_eq!(foreign, Answer::NoConnection, "a node of another cluster");
    let foreign_server = check(&address, other.security().peer_client().unwrap()).await;
    assert_eq!(
        foreign_server,
        Answer::NoConnection,
        "it does not trust this cluster either"
    );
}

#[tokio::test]
async fn the_client_port_may_demand_a_certificate() {
    let cluster = Cluster::new();
    cluster.write(files::CLIENT_CA, &cluster.ca.certificate);
    let security = cluster.security();
    let (incoming, address) = listener();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .tls_config(security.client_server().unwrap())
        .unwrap()
        .add_service(health)
        .serve_with_incoming(incoming);
    seams().spawn("client server", async move { server.await.unwrap() });

    assert_eq!(
        check(&address, cluster.tls(Some(&cluster.client()))).await,
        Answer::Served
    );
    assert_eq!(
        check(&address, cluster.tls(None)).await,
        Answer::NoConnection
    );
    let foreign = Cluster::new().client();
    assert_eq!(
        check(&address, cluster.tls(Some(&foreign))).await,
        Answer::NoConnection
    );
}

#[tokio::test]
async fn the_client_port_asks_for_a_token() {
    use engram_proto::v1::memories_client::MemoriesClient;
    use engram_proto::v1::{ErrorDetail, GetRequest};

    let cluster = Cluster::new();
    let security = cluster.security();
    let (incoming, address) = listener();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .tls_config(security.client_server().unwrap())
        .unwrap()
        .layer(security.authenticator())
        .add_service(health)
        .serve_with_incoming(incoming);
    seams().spawn("client server", async move { server.await.unwrap() });

    assert_eq!(
        check(&address, cluster.tls(None)).await,
        Answer::Served,
        "health is open"
    );

    let channel = Channel::from_shared(format!("https://{address}")).unwrap();
    let channel = channel
        .tls_config(cluster.tls(None))
        .unwrap()
        .connect_lazy();
    let mut client = MemoriesClient::new(channel);
    let mut get = async |authorization: Option<&'static str>| {
        let mut request = Request::new(GetRequest::default());
        if let Some(value) = authorization {
            request
                .metadata_mut()
                .insert("authorization", value.parse().unwrap());
        }
        client.get(request).await.unwrap_err()
    };
    // The service is not served here: who is admitted learns that.
    assert_eq!(get(Some("Bearer good")).await.code(), Code::Unimplemented);
    assert_eq!(get(Some("Bearer bad")).await.code(), Code::Unauthenticated);
    let refused = get(None).await;
    assert_eq!(refused.code(), Code::Unauthenticated);
    let detail: ErrorDetail = prost::Message::decode(refused.details()).unwrap();
    assert_eq!(detail.code, "TOKEN_REQUIRED");
}

#[test]
fn unusable_material_is_named_at_start() {
    let named = |result: Result<Security, SecurityError>| match result.unwrap_err() {
        SecurityError::Read { path, .. }
        | SecurityError::Unusable { path, .. }
        | SecurityError::Token { path, .. } => path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap()
            .to_owned(),
    };
    let other = Cluster::new();
    let client = other.client();
    for (file, content) in [
        (files::CA_CERTIFICATE, ""),
        (files::NODE_CERTIFICATE, client.certificate.as_str()),
        (files::NODE_KEY, client.key.as_str()),
        (files::NODE_KEY, "nonsense"),
        (files::CLUSTER_KEY, "short"),
        ("tokens", "nonsense"),
    ] {
        let cluster = Cluster::new();
        let options = cluster.options();
        cluster.write(file, content);
        assert_eq!(named(Security::load(&options, seams().disk.as_ref())), file);
        std::fs::remove_file(cluster.dir.path().join(file)).unwrap();
        assert_eq!(named(Security::load(&options, seams().disk.as_ref())), file);
    }
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let cluster = Cluster::new();
    let security = cluster.security();
    let shown = format!("{security:?}");
    assert!(!shown.contains("0123456789abcdef") && !shown.contains("PRIVATE"));
    assert_eq!(security.cluster_key(), Some(b"0123456789abcdef".as_slice()));
    assert!(Path::new(&cluster.options().tls_dir.unwrap()).is_dir());
}
