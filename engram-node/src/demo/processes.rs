//! A cluster of real `engram start` processes on this machine, on free loopback ports.
//!
//! Used by the demo, the integration tests and the fault harness. What must hold: no process
//! outlives its [`LocalCluster`], whether that ends by return, panic or signal, unless it was told
//! to leave them running.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use engram_client::Client;
use serde::Deserialize;

use super::wait::{Late, until};
use crate::seams::Clock;

/// Longest wait for a process to be ready to serve.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a node's log that an error shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// Why the cluster could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("node {number} ended at its start ({status}); the end of its log, {log}:\n{tail}")]
    Ended {
        number: usize,
        status: String,
        log: String,
        tail: String,
    },
    #[error("node {number} was not ready: {late}; the end of its log, {log}:\n{tail}")]
    NotReady {
        number: usize,
        late: Late,
        log: String,
        tail: String,
    },
    #[error(transparent)]
    Client(#[from] engram_client::Error),
}

fn io_error(what: &str) -> impl FnOnce(io::Error) -> ProcessError {
    let what = what.to_owned();
    move |error| ProcessError::Io { what, error }
}

/// Where a node listens, as it wrote it to `addresses.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Addresses {
    pub client: String,
    pub peer: String,
    pub http: String,
    /// Its number in the cluster.
    pub node: u64,
}

/// One process and its directory.
#[derive(Debug)]
pub struct LocalNode {
    /// Counted from 1, in the order of starting.
    number: usize,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    addresses: Option<Addresses>,
    /// Where its first start listens for peers; a free port when nothing is said.
    peer_listen: Option<String>,
    /// Further options of `engram start`, for this node.
    options: Vec<String>,
}

/// What becomes of the processes when this one ends without warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel kills them.
    Bound,
    /// They go on; for clusters that may be left running.
    Free,
}

/// The processes. Dropping it kills them.
pub struct LocalCluster {
    binary: PathBuf,
    fate: Fate,
    clock: Arc<dyn Clock>,
    directory: PathBuf,
    /// Further options of `engram start`, for all nodes.
    options: Vec<String>,
    nodes: Vec<LocalNode>,
}

impl LocalCluster {
    /// A cluster of no process yet, in `directory`.
    #[must_use]
    pub fn new(
        binary: &Path,
        directory: &Path,
        nodes: usize,
        fate: Fate,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            binary: binary.to_owned(),
            fate,
            clock,
            directory: directory.to_owned(),
            options: Vec::new(),
            nodes: (1..=nodes)
                .map(|number| LocalNode::new(directory, number))
                .collect(),
        }
    }

    /// Starts its nodes with further options of `engram start`.
    #[must_use]
    pub fn with_options(mut self, options: &[&str]) -> Self {
        self.options = options.iter().map(ToString::to_string).collect();
        self
    }

    /// Starts one node at this peer address and with further options of `engram start`.
    #[must_use]
    pub fn with_node(mut self, index: usize, peer_listen: &str, options: Vec<String>) -> Self {
        let node = &mut self.nodes[index];
        node.peer_listen = Some(peer_listen.to_owned());
        node.options = options;
        self
    }

    /// Starts one more node, which joins the others; answers with its position.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn add(&mut self) -> Result<usize, ProcessError> {
        let index = self.nodes.len();
        let known = self.nodes.iter().filter_map(|node| node.addresses.as_ref());
        let peers: Vec<String> = known.map(|addresses| addresses.peer.clone()).collect();
        self.nodes.push(LocalNode::new(&self.directory, index + 1));
        self.start_node(index, Some(&peers.join(","))).await?;
        Ok(index)
    }

    /// SIGTERM, and until the process has ended.
    ///
    /// # Errors
    /// When it cannot be signalled, or does not end in time.
    pub async fn stop(&mut self, index: usize) -> Result<(), ProcessError> {
        let node = &mut self.nodes[index];
        let Some(child) = &node.child else {
            return Ok(());
        };
        let what = format!("stop node {}", node.number);
        let signalled = Command::new("kill").arg(child.id().to_string()).status();
        signalled.map(drop).map_err(io_error(&what))?;
        let ended = until(&*self.clock, READY_LIMIT, "it did not end", async || {
            node.status().map(drop)
        });
        let late = ended.await;
        let (number, log) = (node.number, node.log.display().to_string());
        late.map_err(|late| ProcessError::NotReady {
            number,
            late,
            log,
            tail: node.log_tail(),
        })?;
        node.child = None;
        Ok(())
    }

    /// Starts all: the first founds the cluster, the others join it.
    ///
    /// # Errors
    /// When a process cannot be started, ends, or is not ready in time.
    pub async fn start(&mut self) -> Result<(), ProcessError> {
        self.start_node(0, None).await?;
        let founder = self.nodes[0]
            .addresses
            .clone()
            .map(|addresses| addresses.peer);
        for index in 1..self.nodes.len() {
            self.spawn(index, founder.as_deref())?;
        }
        for index in 1..self.nodes.len() {
            self.wait_ready(index).await?;
        }
        Ok(())
    }

    async fn start_node(&mut self, index: usize, join: Option<&str>) -> Result<(), ProcessError> {
        self.spawn(index, join)?;
        self.wait_ready(index).await
    }

    /// SIGKILL, at once; nothing is flushed or said.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub fn kill(&mut self, index: usize) -> Result<(), ProcessError> {
        let node = &mut self.nodes[index];
        let Some(mut child) = node.child.take() else {
            return Ok(());
        };
        let what = format!("kill node {}", node.number);
        child.kill().map_err(io_error(&what))?;
        child.wait().map(drop).map_err(io_error(&what))
    }

    /// SIGSTOP: the process stands still, its connections stay.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn pause(&self, index: usize) -> Result<(), ProcessError> {
        self.signal(index, "STOP")
    }

    /// SIGCONT: a paused process goes on as if nothing had been.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn resume(&self, index: usize) -> Result<(), ProcessError> {
        self.signal(index, "CONT")
    }

    fn signal(&self, index: usize, signal: &str) -> Result<(), ProcessError> {
        let node = &self.nodes[index];
        let Some(child) = &node.child else {
            return Ok(());
        };
        let what = format!("signal {signal} to node {}", node.number);
        let sent = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(io_error(&what)(io::Error::other(status.to_string()))),
            Err(error) => Err(io_error(&what)(error)),
        }
    }

    /// The data directory of a node.
    #[must_use]
    pub fn data_dir(&self, index: usize) -> &Path {
        &self.nodes[index].data
    }

    /// Starts a killed node again, from its data and at its old addresses.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self, index: usize) -> Result<(), ProcessError> {
        self.start_node(index, None).await
    }

    /// Position of the node that the cluster knows by this id.
    #[must_use]
    pub fn index_of(&self, node: u64) -> Option<usize> {
        let is = |local: &LocalNode| local.addresses.as_ref().is_some_and(|at| at.node == node);
        self.nodes.iter().position(is)
    }

    #[must_use]
    pub fn addresses(&self, index: usize) -> Option<&Addresses> {
        self.nodes[index].addresses.as_ref()
    }

    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Client addresses, in order.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let known = self.nodes.iter().filter_map(|node| node.addresses.as_ref());
        known.map(|addresses| addresses.client.clone()).collect()
    }

    /// A client that knows all nodes.
    ///
    /// # Errors
    /// When no node has been started.
    pub fn client(&self) -> Result<Client, ProcessError> {
        Ok(Client::builder().endpoints(self.endpoints()).build()?)
    }

    /// A client that knows only this node, and sends everything to it.
    ///
    /// # Errors
    /// When the node has not been started.
    pub fn client_of(&self, index: usize) -> Result<Client, ProcessError> {
        let endpoints = self.nodes[index]
            .addresses
            .iter()
            .map(|at| at.client.clone());
        Ok(Client::builder()
            .endpoints(endpoints)
            .routing(false)
            .build()?)
    }

    /// Process ids of the running nodes.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        self.nodes
            .iter()
            .filter_map(|node| node.child.as_ref().map(Child::id))
            .collect()
    }

    /// The processes go on without us.
    pub fn leave_running(mut self) {
        for node in &mut self.nodes {
            // Dropping a child does not end its process.
            drop(node.child.take());
        }
    }

    fn spawn(&mut self, index: usize, join: Option<&str>) -> Result<(), ProcessError> {
        let node = &mut self.nodes[index];
        let what = format!("start node {}", node.number);
        std::fs::create_dir_all(&node.data).map_err(io_error(&what))?;
        // A file of an earlier run would tell where that one listened.
        drop(std::fs::remove_file(node.address_file()));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&node.log)
            .map_err(io_error(&what))?;
        let mut command = Command::new(&self.binary);
        node.arguments(&mut command, join);
        command.args(&self.options).args(&node.options);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ENGRAM_") {
                command.env_remove(name);
            }
        }
        let errors = log.try_clone().map_err(io_error(&what))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        isolate(&mut command, self.fate);
        node.child = Some(command.spawn().map_err(io_error(&what))?);
        Ok(())
    }

    async fn wait_ready(&mut self, index: usize) -> Result<(), ProcessError> {
        let node = &mut self.nodes[index];
        let mut ended = None;
        let ready = until(
            &*self.clock,
            READY_LIMIT,
            "it did not write addresses.json",
            async || {
                if let Some(status) = node.status() {
                    ended = Some(status);
                    return Some(None);
                }
                node.read_addresses().map(Some)
            },
        )
        .await;
        let (log, number) = (node.log.display().to_string(), node.number);
        if let Some(status) = ended {
            return Err(ProcessError::Ended {
                number,
                status,
                log,
                tail: node.log_tail(),
            });
        }
        match ready {
            Ok(addresses) => {
                node.addresses = addresses;
                Ok(())
            }
            Err(late) => Err(ProcessError::NotReady {
                number,
                late,
                log,
                tail: node.log_tail(),
            }),
        }
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // Gone already is as good.
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}

impl LocalNode {
    fn new(directory: &Path, number: usize) -> Self {
        Self {
            number,
            data: directory.join(format!("node-{number}")),
            log: directory.join(format!("node-{number}.log")),
            child: None,
            addresses: None,
            peer_listen: None,
            options: Vec::new(),
        }
    }

    fn address_file(&self) -> PathBuf {
        self.data.join("addresses.json")
    }

    fn arguments(&self, command: &mut Command, join: Option<&str>) {
        let free = "127.0.0.1:0".to_owned();
        let at = |pick: fn(&Addresses) -> &String| {
            self.addresses
                .as_ref()
                .map_or_else(|| free.clone(), |addresses| pick(addresses).clone())
        };
        command.arg("start").arg("--data-dir").arg(&self.data);
        command.args(["--listen", &at(|addresses| &addresses.client)]);
        let peer = match (&self.addresses, &self.peer_listen) {
            (None, Some(chosen)) => chosen.clone(),
            _ => at(|addresses| &addresses.peer),
        };
        command.args(["--peer-listen", &peer]);
        command.args(["--http-listen", &at(|addresses| &addresses.http)]);
        if let Some(join) = join {
            command.args(["--join", join]);
        }
    }

    /// How the process ended, if it did.
    fn status(&mut self) -> Option<String> {
        let child = self.child.as_mut()?;
        match child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    fn read_addresses(&self) -> Option<Addresses> {
        let bytes = std::fs::read(self.address_file()).ok()?;
        // Half a file is read again.
        serde_json::from_slice(&bytes).ok()
    }

    fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }
}

/// A process group of its own, so that Ctrl-C reaches this process alone, which then ends the
/// nodes in order; and a death with this process.
fn isolate(command: &mut Command, fate: Fate) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    if fate == Fate::Bound {
        #[allow(unsafe_code, reason = "prctl between fork and exec has no safe form")]
        // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(
                || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = fate;
}
