//! The node's sockets, and the addresses by which others reach them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use engram_core::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::seams::{Datagrams, Disk, Listener, Net};

/// Attempts to find a port number that is free for TCP and UDP alike.
const PAIR_ATTEMPTS: usize = 32;
/// Name of the file with the chosen addresses, in the data directory.
pub const ADDRESSES_FILE: &str = "addresses.json";

/// Why the node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("cannot listen on {address} ({option}): {source}")]
    Bind {
        option: &'static str,
        address: String,
        source: std::io::Error,
    },
    #[error(
        "{option} {address} is every address of this machine: say with --advertise-host by which \
         one others reach it"
    )]
    NoAdvertisedHost {
        option: &'static str,
        address: String,
    },
}

/// Sockets, bound.
pub struct Ports {
    pub client: Box<dyn Listener>,
    pub peer: Box<dyn Listener>,
    pub http: Box<dyn Listener>,
    /// On the number of the peer port.
    pub datagrams: Arc<dyn Datagrams>,
    pub advertised: Advertised,
}

/// `host:port` of each port, as others reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertised {
    pub client: String,
    pub peer: String,
    pub http: String,
}

/// What `addresses.json` says once the node is ready to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressesFile {
    pub client: String,
    pub peer: String,
    pub http: String,
    pub node: u64,
}

impl Ports {
    /// # Errors
    /// When a port is taken, or nobody could reach this node.
    pub async fn bind(net: &dyn Net, config: &Config) -> Result<Self, PortError> {
        let host = config.advertise_host.as_deref();
        let client = listen(net, "--listen", &config.listen).await?;
        let (peer, datagrams) = listen_pair(net, &config.peer_listen).await?;
        let http = listen(net, "--http-listen", &config.http_listen).await?;
        let advertised = Advertised {
            client: advertised("--listen", &config.listen, client.as_ref(), host)?,
            peer: advertised("--peer-listen", &config.peer_listen, peer.as_ref(), host)?,
            http: advertised("--http-listen", &config.http_listen, http.as_ref(), host)?,
        };
        Ok(Self {
            client,
            peer,
            http,
            datagrams,
            advertised,
        })
    }
}

fn bind_error(
    option: &'static str,
    address: &str,
) -> impl FnOnce(std::io::Error) -> PortError + use<> {
    let address = address.to_owned();
    move |source| PortError::Bind {
        option,
        address,
        source,
    }
}

async fn listen(
    net: &dyn Net,
    option: &'static str,
    address: &str,
) -> Result<Box<dyn Listener>, PortError> {
    net.listen(address)
        .await
        .map_err(bind_error(option, address))
}

/// TCP and UDP on one number. When the system chooses it, the number may be taken for UDP.
async fn listen_pair(
    net: &dyn Net,
    address: &str,
) -> Result<(Box<dyn Listener>, Arc<dyn Datagrams>), PortError> {
    const OPTION: &str = "--peer-listen";
    let chosen = address.ends_with(":0");
    let mut attempt = 0;
    loop {
        let listener = listen(net, OPTION, address).await?;
        let local = listener.local_addr().map_err(bind_error(OPTION, address))?;
        match net.datagrams(&local.to_string()).await {
            Ok(datagrams) => return Ok((listener, datagrams)),
            Err(_) if chosen && attempt < PAIR_ATTEMPTS => attempt += 1,
            Err(error) => return Err(bind_error(OPTION, &format!("{local} (UDP)"))(error)),
        }
    }
}

fn advertised(
    option: &'static str,
    configured: &str,
    listener: &dyn Listener,
    host: Option<&str>,
) -> Result<String, PortError> {
    let local: SocketAddr = listener
        .local_addr()
        .map_err(bind_error(option, configured))?;
    if let Some(host) = host {
        let bare_v6 = host.contains(':') && !host.starts_with('[');
        let host = if bare_v6 {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        return Ok(format!("{host}:{}", local.port()));
    }
    if local.ip().is_unspecified() {
        return Err(PortError::NoAdvertisedHost {
            option,
            address: configured.to_owned(),
        });
    }
    let host = configured
        .rsplit_once(':')
        .map_or(configured, |(host, _)| host);
    Ok(format!("{host}:{}", local.port()))
}

impl Advertised {
    /// Writes `addresses.json`, whole and durable.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, disk: &dyn Disk, data_dir: &Path, node: NodeId) -> std::io::Result<()> {
        let Self { client, peer, http } = self.clone();
        let file = AddressesFile {
            client,
            peer,
            http,
            node: node.0,
        };
        let text = serde_json::to_vec_pretty(&file)?;
        disk.write_file(&data_dir.join(ADDRESSES_FILE), &text)
    }
}

#[cfg(test)]
mod tests {
    use engram_core::storage::RocksOptions;

    use super::*;
    use crate::config::StartArgs;
    use crate::seams::os;

    fn config(listen: &str, host: Option<&str>) -> Config {
        let args = StartArgs {
            data_dir: Some("unused".into()),
            listen: Some(listen.into()),
            peer_listen: Some("127.0.0.1:0".into()),
            http_listen: Some("localhost:0".into()),
            advertise_host: host.map(str::to_owned),
            ..StartArgs::default()
        };
        args.resolve().expect("valid")
    }

    #[tokio::test]
    async fn chosen_ports_are_advertised() {
        let net = os::seams(RocksOptions::default()).net;
        let ports = Ports::bind(net.as_ref(), &config("127.0.0.1:0", None))
            .await
            .expect("bound");
        let peer = ports.peer.local_addr().expect("bound");
        assert_eq!(ports.advertised.peer, peer.to_string());
        assert_eq!(ports.datagrams.local_addr().expect("bound"), peer);
        let http = ports.http.local_addr().expect("bound");
        assert_eq!(ports.advertised.http, format!("localhost:{}", http.port()));
        assert!(!ports.advertised.client.ends_with(":0"));
    }

    #[tokio::test]
    async fn every_address_is_no_address() {
        let net = os::seams(RocksOptions::default()).net;
        let refused = Ports::bind(net.as_ref(), &config("0.0.0.0:0", None)).await;
        assert!(matches!(
            refused,
            Err(PortError::NoAdvertisedHost {
                option: "--listen",
                ..
            })
        ));
        let ports = Ports::bind(net.as_ref(), &config("0.0.0.0:0", Some("::1")))
            .await
            .expect("bound");
        assert!(ports.advertised.client.starts_with("[::1]:"));
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_the_option() {
        let net = os::seams(RocksOptions::default()).net;
        let taken = net.listen("127.0.0.1:0").await.expect("a free port");
        let address = taken.local_addr().expect("bound").to_string();
        let refused = Ports::bind(net.as_ref(), &config(&address, None)).await;
        assert!(matches!(
            refused,
            Err(PortError::Bind {
                option: "--listen",
                ..
            })
        ));
    }
}
