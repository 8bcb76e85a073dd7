//! What one run of the simulation is made of: plain data, drawn from a seed by `swarm` and made
//! smaller by `shrink`. The world carries it out; nothing here runs.
//!
//! What must hold: a plan and its seed decide a run completely.

use std::time::Duration;

/// Number of a simulated node, from 0. The `NodeId` is the cluster's own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub usize);

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    /// Nodes at the start. More may join by [`Fault::Join`].
    pub nodes: usize,
    /// Step of the world's clock, and the shortest delay of a message.
    pub tick: Duration,
    /// Length of the phase with faults and clients.
    pub safety: Duration,
    /// Bound on the time until everything is well again once faults have stopped.
    pub liveness: Duration,
    pub network: NetworkPlan,
    pub disk: DiskPlan,
    pub options: NodePlan,
    /// Offset of each node's wall clock, in milliseconds; nodes beyond the list have none.
    pub clock_offsets: Vec<i64>,
    pub spaces: Vec<SpacePlan>,
    /// In order of their time.
    pub faults: Vec<FaultEvent>,
    pub workloads: Vec<WorkloadPlan>,
    /// How long nodes offer a message of a spread before they offer it again. Short: messages come
    /// twice without any fault.
    pub spread_attempt_wait: Duration,
}

/// How the network behaves without a special fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetworkPlan {
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// Share of datagrams lost, of 1.
    pub loss: f64,
    /// Share of datagrams delivered twice.
    pub duplicates: f64,
    /// Share of datagrams that overtake others by a further delay.
    pub reordered: f64,
}

/// How disks behave without a special fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskPlan {
    pub sync_min: Duration,
    pub sync_max: Duration,
    /// Share of blocking work that takes ten times as long.
    pub slow: f64,
}

/// How all nodes are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Entries after which a group's state is written to a snapshot.
    pub snapshot_every: u64,
    /// Entries that stay in the log although a snapshot has them.
    pub keep: u64,
    /// Between two heartbeats of a leader; elections take as long in proportion.
    pub heartbeat: Duration,
    /// The mark of a log is on disk before anything is acknowledged.
    pub marks_before_ack: bool,
    /// How long a node is away before its replicas are created elsewhere.
    pub replace_after: Duration,
}

/// A space that exists from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpacePlan {
    pub name: String,
    pub partitions: u32,
    pub replicas: u32,
    pub dimension: u32,
}

/// A fault and its time since the start of the safety phase.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultEvent {
    pub at: Duration,
    pub fault: Fault,
}

/// What may go wrong. Everything ends by itself or with the safety phase.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The process dies at once, at whatever await point its tasks are, and starts again later. The
    /// disk keeps what was synced and a drawn prefix of the rest.
    Crash { host: Host, down: Duration },
    /// As `Crash`, at the disk's `writes`-th write from now: before it, or right after it.
    CrashAtWrite {
        host: Host,
        writes: u32,
        after: bool,
        down: Duration,
    },
    /// As `Crash`, at the disk's `writes`-th write after the next file of a snapshot or an index, or
    /// (half of them) of a process that was down for as long, soon after the installation of a snapshot
    /// has begun.
    CrashAtFile {
        host: Host,
        writes: u32,
        after: bool,
        down: Duration,
    },
    /// SIGTERM, an orderly stop, and a start.
    Restart { host: Host, down: Duration },
    /// SIGSTOP and SIGCONT.
    Pause { host: Host, length: Duration },
    /// Nothing goes from `from` to `to`; the other way only when `both`.
    Cut {
        from: Vec<Host>,
        to: Vec<Host>,
        both: bool,
        length: Duration,
    },
    /// Messages between the two wait until the end, then all arrive.
    Clog {
        between: (Host, Host),
        length: Duration,
    },
    /// All connections of a node break, and do so `times` times, `every` so long.
    Reset {
        host: Host,
        times: u32,
        every: Duration,
    },
    /// Other network weather for a while.
    Weather {
        network: NetworkPlan,
        length: Duration,
    },
    /// Blocking work of a node takes `factor` times as long.
    SlowDisk {
        host: Host,
        factor: u32,
        length: Duration,
    },
    /// Writes fail as on a full disk until the node is started again, after `down`.
    FullDisk { host: Host, down: Duration },
    /// The next sync fails; the node is started again after `down`.
    FailedSync { host: Host, down: Duration },
    /// One stored record reads wrong, or not at all, until the node is started again, after `down`, or
    /// for good; or it does so from then on, the node having been down for as long.
    CorruptRecord { host: Host, down: Duration },
    /// The wall clock jumps by this many milliseconds.
    ClockJump { host: Host, millis: i64 },
    /// A new node joins.
    Join,
    /// The primary of some group hands leadership over, and so does the next one.
    Transfer {
        choice: u32,
        times: u32,
        every: Duration,
    },
    /// An operator has a replica moved to a node that has none of its group.
    Move {
        choice: u32,
        /// The node that it leaves is cut off meanwhile.
        cut: Option<CutOff>,
    },
    /// An operator calls all moves off.
    CancelMoves,
    /// An operator drains a node, and takes it back after `length`.
    Drain { host: Host, length: Duration },
    /// An operator has replicas and primaries spread evenly.
    Rebalance,
}

/// How a node is cut off while a replica leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    pub length: Duration,
    /// From all nodes, or from the other replicas alone: then it hears of the new map from the rest.
    pub from_all: bool,
}

impl Fault {
    /// A stable name, for tables and counters.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Crash { .. } => "crash",
            Self::CrashAtWrite { .. } => "crash-at-write",
            Self::CrashAtFile { .. } => "crash-at-file",
            Self::Restart { .. } => "restart",
            Self::Pause { .. } => "pause",
            Self::Cut { both: true, .. } => "cut",
            Self::Cut { both: false, .. } => "cut-one-way",
            Self::Clog { .. } => "clog",
            Self::Reset { .. } => "reset",
            Self::Weather { .. } => "weather",
            Self::SlowDisk { .. } => "slow-disk",
            Self::FullDisk { .. } => "full-disk",
            Self::FailedSync { .. } => "failed-sync",
            Self::CorruptRecord { .. } => "corrupt-record",
            Self::ClockJump { .. } => "clock-jump",
            Self::Join => "join",
            Self::Transfer { .. } => "transfer",
            Self::Move { .. } => "move",
            Self::CancelMoves => "cancel-moves",
            Self::Drain { .. } => "drain",
            Self::Rebalance => "rebalance",
        }
    }

    /// The hosts that it names.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        match self {
            Self::Crash { host, .. }
            | Self::CrashAtWrite { host, .. }
            | Self::CrashAtFile { host, .. }
            | Self::Restart { host, .. }
            | Self::Pause { host, .. }
            | Self::Reset { host, .. }
            | Self::SlowDisk { host, .. }
            | Self::Drain { host, .. }
            | Self::FullDisk { host, .. }
            | Self::FailedSync { host, .. }
            | Self::CorruptRecord { host, .. }
            | Self::ClockJump { host, .. } => vec![*host],
            Self::Cut { from, to, .. } => from.iter().chain(to).copied().collect(),
            Self::Clog { between, .. } => vec![between.0, between.1],
            Self::Weather { .. }
            | Self::Join
            | Self::Transfer { .. }
            | Self::Move { .. }
            | Self::CancelMoves
            | Self::Rebalance => Vec::new(),
        }
    }

    /// When it is over by itself, counted from its beginning.
    #[must_use]
    pub fn length(&self) -> Duration {
        match self {
            Self::Crash { down, .. }
            | Self::CrashAtWrite { down, .. }
            | Self::CrashAtFile { down, .. }
            | Self::Restart { down, .. }
            | Self::FullDisk { down, .. }
            | Self::FailedSync { down, .. }
            | Self::CorruptRecord { down, .. } => *down,
            Self::Pause { length, .. }
            | Self::Cut { length, .. }
            | Self::Clog { length, .. }
            | Self::Weather { length, .. }
            | Self::SlowDisk { length, .. }
            | Self::Drain { length, .. } => *length,
            Self::Reset { times, every, .. } | Self::Transfer { times, every, .. } => {
                *every * times.saturating_sub(1)
            }
            Self::Move { cut, .. } => cut.map_or(Duration::ZERO, |cut| cut.length),
            Self::ClockJump { .. } | Self::Join | Self::CancelMoves | Self::Rebalance => {
                Duration::ZERO
            }
        }
    }
}

impl WorkloadKind {
    pub const ALL: [Self; 7] = [
        Self::Register,
        Self::Set,
        Self::Counter,
        Self::Edges,
        Self::Recall,
        Self::Spread,
        Self::Spaces,
    ];

    /// A stable name, for tables and the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Set => "set",
            Self::Counter => "counter",
            Self::Edges => "edges",
            Self::Recall => "recall",
            Self::Spread => "spread",
            Self::Spaces => "spaces",
        }
    }
}

/// What clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPlan {
    pub kind: WorkloadKind,
    pub clients: u32,
    /// Of each client.
    pub operations: u32,
    /// Longest pause of a client between two of them.
    pub pause_max: Duration,
    /// Of a hundred changes of edges, so many are asked of one replica alone.
    pub local_percent: u32,
}

/// One per file in `workload/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadKind {
    /// Reads and compare-and-set of few memories.
    Register,
    /// Unique memories, each written once.
    Set,
    /// Evidence added to an edge through request ids that are retried.
    Counter,
    /// Associate, strengthen and dissociate, against an operation-log oracle.
    Edges,
    /// Recall against brute force.
    Recall,
    /// Exact spreads against the single-partition oracle.
    Spread,
    /// Spaces that come and go.
    Spaces,
}
