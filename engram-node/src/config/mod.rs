//! Configuration of a server: flag, else environment (`ENGRAM_...`), else file (TOML), else
//! default.
//!
//! [`StartArgs`] holds what the command line and the environment say, [`file`] what the file says,
//! [`Config`] what is decided. What must hold: a name that is not known is an error, never ignored.

mod file;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::replica::{INDEX_TAIL_MAX_DEFAULT, INDEX_TAIL_MAX_LEAST};
use crate::seams::routes::Routes;

pub const DEFAULT_LISTEN: &str = "127.0.0.1:7400";
pub const DEFAULT_PEER_LISTEN: &str = "127.0.0.1:7401";
pub const DEFAULT_HTTP_LISTEN: &str = "127.0.0.1:7402";
const DEFAULT_LOG_LEVEL: &str = "info,openraft=warn";
const DEFAULT_REPLACE_AFTER: Duration = Duration::from_secs(600);
/// Longer than the client library tries by default. Until then each change of an edge rewrites all
/// evidence since, so that longer is dear where one edge changes all the time.
const DEFAULT_FOLD_AFTER: Duration = Duration::from_secs(15);
const DEFAULT_SNAPSHOT_BYTES_PER_SECOND: u64 = 128 << 20;
/// Longest zone name, in bytes.
const ZONE_BYTES_MAX: usize = 128;

/// Options of `engram start`.
#[derive(Args, Clone, Debug, Default)]
pub struct StartArgs {
    /// Directory of this node's data; made when it does not exist.
    #[arg(long, env = "ENGRAM_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where clients connect; port 0 takes a free one. [default: 127.0.0.1:7400]
    #[arg(long, env = "ENGRAM_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where other nodes connect, TCP and UDP on the same number. [default: 127.0.0.1:7401]
    #[arg(long, env = "ENGRAM_PEER_LISTEN", value_name = "HOST:PORT")]
    pub peer_listen: Option<String>,
    /// Where /livez, /readyz and /metrics are. [default: 127.0.0.1:7402]
    #[arg(long, env = "ENGRAM_HTTP_LISTEN", value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// Peer addresses of nodes of the cluster to join; without it an empty node founds a cluster.
    #[arg(
        long,
        env = "ENGRAM_JOIN",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub join: Option<Vec<String>>,
    /// Host by which others reach this node. [default: the host of each listen address]
    #[arg(long, env = "ENGRAM_ADVERTISE_HOST", value_name = "HOST")]
    pub advertise_host: Option<String>,
    /// What to dial instead of the peer address that another node advertises; may be repeated.
    #[arg(
        long = "peer-route",
        env = "ENGRAM_PEER_ROUTES",
        value_name = "ADVERTISED=DIALLED",
        value_delimiter = ','
    )]
    pub peer_routes: Option<Vec<String>>,
    /// Failure domain; replicas of a partition are spread over zones.
    #[arg(long, env = "ENGRAM_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// TOML file with the same names as these options, dashes as underscores.
    #[arg(long, env = "ENGRAM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve beyond loopback without TLS and tokens.
    #[arg(
        long,
        env = "ENGRAM_INSECURE",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        value_name = "BOOL"
    )]
    pub insecure: Option<bool>,
    /// Directory with ca.crt, node.crt, node.key and client-ca.crt.
    #[arg(long, env = "ENGRAM_TLS_DIR", value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// File with the hashes of the tokens that clients may present.
    #[arg(long, env = "ENGRAM_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the secret that membership datagrams are authenticated with.
    #[arg(long, env = "ENGRAM_CLUSTER_KEY_FILE", value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,
    /// Form of the log on standard error. [default: text]
    #[arg(long, env = "ENGRAM_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Level, or directives such as `info,engram_node=debug`. [default: info]
    #[arg(long, env = "ENGRAM_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How long a node may be down before its replicas are created elsewhere, in seconds.
    /// [default: 600]
    #[arg(long, env = "ENGRAM_REPLACE_AFTER_SECONDS", value_name = "SECONDS")]
    pub replace_after_seconds: Option<u64>,
    /// How long evidence of associations keeps the name of its call before it is added up, in seconds: a
    /// call that is repeated within that time counts once. [default: 15]
    #[arg(long, env = "ENGRAM_FOLD_AFTER_SECONDS", value_name = "SECONDS")]
    pub fold_after_seconds: Option<u64>,
    /// Bytes of snapshots that this node sends to others per second, all together.
    /// [default: 134217728]
    #[arg(long, env = "ENGRAM_SNAPSHOT_BYTES_PER_SECOND", value_name = "BYTES")]
    pub snapshot_bytes_per_second: Option<u64>,
    /// When the mark of what is on disk of a log is written itself: soon after, or before anything is
    /// acknowledged (a second sync for each write). [default: lazy]
    #[arg(long, env = "ENGRAM_LOG_MARKS", value_enum)]
    pub log_marks: Option<LogMarks>,
    /// Embeddings of one partition that may wait for their links before writers wait, too.
    /// [default: 16384]
    #[arg(long, env = "ENGRAM_INDEX_TAIL_MAX", value_name = "N")]
    pub index_tail_max: Option<u32>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Bounds of the client port.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitArgs {
    /// Requests that one client connection may have in flight. [default: 1024]
    #[arg(long, env = "ENGRAM_REQUESTS_PER_CONNECTION_MAX", value_name = "N")]
    pub requests_per_connection_max: Option<u32>,
    /// Time after which a request without an answer is given up, in milliseconds. [default: 60000]
    #[arg(long, env = "ENGRAM_REQUEST_TIMEOUT_MILLIS", value_name = "MILLIS")]
    pub request_timeout_millis: Option<u64>,
    /// Time a stopping node gives its last requests, in milliseconds. [default: 5000]
    #[arg(long, env = "ENGRAM_SHUTDOWN_GRACE_MILLIS", value_name = "MILLIS")]
    pub shutdown_grace_millis: Option<u64>,
}

/// Form of the log.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// When the marks of the logs are written.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogMarks {
    #[default]
    Lazy,
    BeforeAck,
}

/// See [`Config::spread_attempt_wait`].
pub const SPREAD_ATTEMPT_WAIT: Duration = Duration::from_millis(1_000);

/// What a server runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: String,
    pub peer_listen: String,
    pub http_listen: String,
    pub join: Vec<String>,
    pub advertise_host: Option<String>,
    pub peer_routes: Routes,
    pub zone: String,
    pub insecure: bool,
    pub tls_dir: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub cluster_key_file: Option<PathBuf>,
    pub log_format: LogFormat,
    pub log_level: String,
    /// How long a node may be down before its replicas are created elsewhere.
    pub replace_after: Duration,
    /// How long evidence keeps the name of its call.
    pub fold_after: Duration,
    pub snapshot_bytes_per_second: u64,
    pub log_marks: LogMarks,
    /// Embeddings of one partition that may wait for their links before writers wait, too.
    pub index_tail_max: u32,
    pub limits: Limits,
    pub raft: RaftOptions,
    /// How long one offer of a spread's message to another node may take before it is offered
    /// again. No option sets it: it is for tests, in which messages shall come twice.
    pub spread_attempt_wait: Duration,
}

/// How groups keep time and logs, decided. No option sets it: it is for tests, which must see
/// snapshots soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftOptions {
    /// Entries after which a group's state is written to a snapshot.
    pub snapshot_every_entries: u64,
    /// Entries that stay in the log although a snapshot has them.
    pub keep_entries: u64,
    /// Decoded entries of one group kept in memory, in bytes.
    pub cache_bytes_max: usize,
    /// Between two heartbeats of a leader. A follower that hears none for three to five of them
    /// stands for election.
    pub heartbeat: Duration,
}

impl Default for RaftOptions {
    fn default() -> Self {
        Self {
            snapshot_every_entries: 20_000,
            keep_entries: 5_000,
            cache_bytes_max: 1 << 20,
            heartbeat: Duration::from_millis(250),
        }
    }
}

/// Bounds of the client port, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub requests_per_connection_max: u32,
    pub request_timeout: Duration,
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_connection_max: 1_024,
            request_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {reason}")]
    Read { path: String, reason: String },
    #[error("configuration file {path}: {reason}")]
    File { path: String, reason: String },
    #[error("no data directory is given: use --data-dir DIR")]
    NoDataDir,
    #[error("{option} {value:?}: {reason}")]
    Invalid {
        option: &'static str,
        value: String,
        reason: String,
    },
}

fn invalid(option: &'static str, value: impl Into<String>, reason: &str) -> ConfigError {
    ConfigError::Invalid {
        option,
        value: value.into(),
        reason: reason.to_owned(),
    }
}

impl StartArgs {
    /// Reads the file, if one is named, fills in defaults and checks all.
    ///
    /// # Errors
    /// When the file is unreadable or something is missing or out of range.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => file::read(path)?,
            None => file::FileConfig::default(),
        };
        self.over(file)
    }

    fn over(self, file: file::FileConfig) -> Result<Config, ConfigError> {
        let address = |ours: Option<String>, file: Option<String>, default: &str| {
            ours.or(file).unwrap_or_else(|| default.to_owned())
        };
        let config = Config {
            data_dir: self
                .data_dir
                .or(file.data_dir)
                .ok_or(ConfigError::NoDataDir)?,
            listen: address(self.listen, file.listen, DEFAULT_LISTEN),
            peer_listen: address(self.peer_listen, file.peer_listen, DEFAULT_PEER_LISTEN),
            http_listen: address(self.http_listen, file.http_listen, DEFAULT_HTTP_LISTEN),
            join: self.join.or(file.join).unwrap_or_default(),
            advertise_host: self.advertise_host.or(file.advertise_host),
            peer_routes: parse_routes(self.peer_routes.or(file.peer_routes))?,
            zone: self.zone.or(file.zone).unwrap_or_default(),
            insecure: self.insecure.or(file.insecure).unwrap_or(false),
            tls_dir: self.tls_dir.or(file.tls_dir),
            token_file: self.token_file.or(file.token_file),
            cluster_key_file: self.cluster_key_file.or(file.cluster_key_file),
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            log_level: address(self.log_level, file.log_level, DEFAULT_LOG_LEVEL),
            replace_after: self
                .replace_after_seconds
                .or(file.replace_after_seconds)
                .map_or(DEFAULT_REPLACE_AFTER, Duration::from_secs),
            fold_after: self
                .fold_after_seconds
                .or(file.fold_after_seconds)
                .map_or(DEFAULT_FOLD_AFTER, Duration::from_secs),
            log_marks: self.log_marks.or(file.log_marks).unwrap_or_default(),
            snapshot_bytes_per_second: self
                .snapshot_bytes_per_second
                .or(file.snapshot_bytes_per_second)
                .unwrap_or(DEFAULT_SNAPSHOT_BYTES_PER_SECOND),
            index_tail_max: self
                .index_tail_max
                .or(file.index_tail_max)
                .unwrap_or(INDEX_TAIL_MAX_DEFAULT),
            limits: self.limits.over(&file.limits),
            raft: RaftOptions::default(),
            spread_attempt_wait: SPREAD_ATTEMPT_WAIT,
        };
        config.check()?;
        Ok(config)
    }
}

impl LimitArgs {
    fn over(&self, file: &Self) -> Limits {
        let default = Limits::default();
        let millis = |ours: Option<u64>, file: Option<u64>, default| {
            ours.or(file).map_or(default, Duration::from_millis)
        };
        Limits {
            requests_per_connection_max: self
                .requests_per_connection_max
                .or(file.requests_per_connection_max)
                .unwrap_or(default.requests_per_connection_max),
            request_timeout: millis(
                self.request_timeout_millis,
                file.request_timeout_millis,
                default.request_timeout,
            ),
            shutdown_grace: millis(
                self.shutdown_grace_millis,
                file.shutdown_grace_millis,
                default.shutdown_grace,
            ),
        }
    }
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        check_address("--listen", &self.listen, PortZero::Allowed)?;
        check_address("--peer-listen", &self.peer_listen, PortZero::Allowed)?;
        check_address("--http-listen", &self.http_listen, PortZero::Allowed)?;
        for address in &self.join {
            check_address("--join", address, PortZero::Refused)?;
        }
        if let Some(host) = &self.advertise_host
            && (host.is_empty() || host.contains(['/', ' ']))
        {
            return Err(invalid(
                "--advertise-host",
                host,
                "a host name or address is expected",
            ));
        }
        if self.zone.len() > ZONE_BYTES_MAX {
            return Err(invalid("--zone", &self.zone, "it is longer than 128 bytes"));
        }
        if self.index_tail_max < INDEX_TAIL_MAX_LEAST {
            return Err(invalid(
                "--index-tail-max",
                self.index_tail_max.to_string(),
                "at least four windows are expected: 1024",
            ));
        }
        if self.snapshot_bytes_per_second == 0 {
            return Err(invalid(
                "--snapshot-bytes-per-second",
                "0",
                "at least 1 is needed",
            ));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log_level) {
            return Err(invalid("--log-level", &self.log_level, &error.to_string()));
        }
        self.limits.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        if self.requests_per_connection_max == 0 {
            return Err(invalid(
                "--requests-per-connection-max",
                "0",
                "at least 1 is needed",
            ));
        }
        if self.request_timeout.is_zero() {
            return Err(invalid(
                "--request-timeout-millis",
                "0",
                "at least 1 is needed",
            ));
        }
        Ok(())
    }
}

fn parse_routes(given: Option<Vec<String>>) -> Result<Routes, ConfigError> {
    const OPTION: &str = "--peer-route";
    let mut routes = Routes::new();
    for route in given.unwrap_or_default() {
        let Some((advertised, dialled)) = route.split_once('=') else {
            return Err(invalid(OPTION, route, "ADVERTISED=DIALLED is expected"));
        };
        check_address(OPTION, advertised, PortZero::Refused)?;
        check_address(OPTION, dialled, PortZero::Refused)?;
        let before = routes.insert(advertised.to_owned(), dialled.to_owned());
        if before.is_some() {
            return Err(invalid(OPTION, route, "this address has a route already"));
        }
    }
    Ok(routes)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PortZero {
    /// The system chooses a port.
    Allowed,
    Refused,
}

fn check_address(
    option: &'static str,
    address: &str,
    port_zero: PortZero,
) -> Result<(), ConfigError> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(invalid(option, address, "HOST:PORT is expected"));
    };
    let is_v6 = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(['/', ' ']) || (host.contains(':') && !is_v6) {
        return Err(invalid(
            option,
            address,
            "HOST:PORT is expected, an IPv6 host in brackets",
        ));
    }
    match port.parse::<u16>() {
        Ok(0) if port_zero == PortZero::Refused => Err(invalid(
            option,
            address,
            "the port of another node is not 0",
        )),
        Ok(_) => Ok(()),
        Err(_) => Err(invalid(option, address, "the port must be 0 to 65535")),
    }
}

#[cfg(test)]
mod tests;
