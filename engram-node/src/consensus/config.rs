//! Settings of consensus, with their units and defaults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::NodeId;
use openraft::{Config, SnapshotPolicy};

use crate::config::RaftOptions;

/// How a node takes part in its groups.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    pub node: NodeId,
    /// Streams of other clusters are refused.
    pub cluster: [u8; 16],
    /// Snapshots are below it, in `snapshots` and `staging`.
    pub data_dir: PathBuf,
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// Entries after which a group's state is written to a snapshot.
    pub snapshot_every_entries: u64,
    /// Entries that stay in the log although a snapshot has them, for replicas that lag a little.
    pub keep_entries: u64,
    /// Entries in one replication message.
    pub payload_entries_max: u64,
    /// Bytes of entries in one replication message (one entry may be greater).
    pub payload_bytes_max: usize,
    /// Decoded entries of one group kept in memory, in bytes.
    pub cache_bytes_max: usize,
    /// Proposals of one group that wait for their answer here.
    pub proposals_max: usize,
    /// How long a follower may take to store one replication message.
    pub append_timeout: Duration,
    /// How long sending and installing one snapshot may take.
    pub snapshot_timeout: Duration,
    /// Whether the marks of the logs are on disk before anything is acknowledged, or soon after.
    pub marks_before_ack: bool,
    /// How long the log is kept for a snapshot that is being sent.
    pub log_pin_max: Duration,
    /// Bytes of snapshots that a node sends to others per second, all together.
    pub snapshot_bytes_per_second: u64,
    /// How long a new member may take to catch up.
    pub catch_up_timeout: Duration,
    /// Pause between the attempts of a chosen survivor, and how many it makes.
    pub campaign_pause: Duration,
    pub campaign_attempts: u32,
    /// How long a shutdown waits for leadership to move.
    pub hand_over_timeout: Duration,
}

impl ConsensusConfig {
    #[must_use]
    pub fn new(node: NodeId, cluster: [u8; 16], data_dir: PathBuf) -> Self {
        Self::with_options(node, cluster, data_dir, RaftOptions::default())
    }

    #[must_use]
    pub fn with_options(
        node: NodeId,
        cluster: [u8; 16],
        data_dir: PathBuf,
        options: RaftOptions,
    ) -> Self {
        Self {
            node,
            cluster,
            data_dir,
            heartbeat: options.heartbeat,
            election_min: options.heartbeat * 3,
            election_max: options.heartbeat * 5,
            snapshot_every_entries: options.snapshot_every_entries,
            keep_entries: options.keep_entries,
            payload_entries_max: 512,
            payload_bytes_max: 4 << 20,
            cache_bytes_max: options.cache_bytes_max,
            proposals_max: 1_024,
            append_timeout: Duration::from_secs(5),
            snapshot_timeout: Duration::from_secs(600),
            marks_before_ack: false,
            log_pin_max: Duration::from_secs(600),
            snapshot_bytes_per_second: 128 << 20,
            catch_up_timeout: Duration::from_secs(600),
            campaign_pause: Duration::from_millis(200),
            campaign_attempts: 30,
            hand_over_timeout: Duration::from_millis(1_000),
        }
    }

    /// Entries below which a log is not trimmed: deleting leaves tombstones, so rather seldom and
    /// many at once.
    pub(super) fn trim_entries_min(&self) -> u64 {
        (self.snapshot_every_entries / 16).max(1)
    }

    /// # Errors
    /// When the values contradict each other; the text says how.
    pub(super) fn raft(&self) -> Result<Arc<Config>, String> {
        let config = Config {
            cluster_name: "engram".into(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: self.payload_entries_max,
            // A follower beyond it is sent a snapshot; it must exceed what a snapshot leaves.
            replication_lag_threshold: self.snapshot_every_entries + self.keep_entries,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every_entries),
            // Its logs are shortened by compaction.rs alone.
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(true),
            // A leader that restarts may have lost applied state: it must be elected again.
            enable_leader_restore: Some(false),
            // Its state machine may be behind what a follower has: a lost log is never accepted.
            allow_log_reversion: Some(false),
            ..Config::default()
        };
        config
            .validate()
            .map(Arc::new)
            .map_err(|error| error.to_string())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
