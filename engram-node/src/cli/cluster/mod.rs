//! `engram cluster ...` and `engram verify`: looking at a cluster ([`show`], [`health`]) and steering
//! it ([`operate`]). What must hold: nothing is done that would cost a partition its majority unless
//! it was forced; an operation that was begun goes on without this command, or is called off whole.

pub mod health;
pub mod operate;
pub mod show;
pub mod verify;
pub mod watch;

use clap::{Args, Subcommand, ValueEnum};

pub use self::show::{liveness_name, partition_table};
pub use self::verify::{VerifyArgs, verify, verify_text};
use self::watch::WaitArgs;
use super::context::ClientArgs;
use super::failure::{Exit, Failure};
use crate::seams::Seams;

#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// The cluster at a glance
    Status,
    /// Every node: address, liveness, replicas, primaries
    Nodes,
    /// Every partition: slots, primary, replicas and how far they are
    Partitions {
        /// Only this space
        space: Option<String>,
    },
    /// Changes of associations that came too late to be decided, the newest first
    Conflicts {
        /// Name of the space
        space: String,
        /// At most so many of each partition
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Moves of replicas that are under way or wait for their turn
    Moves,
    /// Whether all is well: nodes alive, every partition with a primary and all its replicas
    Health(health::HealthArgs),
    /// One write and one read through every partition, with how long they took
    Probe {
        /// Only this space
        space: Option<String>,
    },
    /// Take leadership away from a node and give it no new replicas
    Drain(NodeArgs),
    /// End a drain, a maintenance or a decommission that has not finished
    Undrain {
        /// Id of the node
        node: u64,
    },
    /// Drain a node for a while: its replicas are not created elsewhere while it is down
    Maintenance {
        /// Begin or end
        #[arg(value_enum)]
        switch: Switch,
        #[command(flatten)]
        args: NodeArgs,
    },
    /// Move a node's replicas elsewhere and take it out of the cluster
    Decommission(NodeArgs),
    /// Spread replicas, primaries and bytes evenly
    Rebalance {
        /// Only say what would be moved
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Move one replica of a partition to another node
    Move(MoveArgs),
    /// Make another replica of a partition the primary
    Transfer {
        /// Id of the partition
        partition: u64,
        /// Node that is to lead it
        #[arg(long)]
        to: u64,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Call moves off: replicas go back to where they were
    Cancel {
        /// Groups whose moves are called off [default: all]
        groups: Vec<u64>,
    },
}

#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Id of the node
    pub node: u64,
    /// Only say what stands in the way and what would be moved
    #[arg(long)]
    pub dry_run: bool,
    /// Although partitions may lose their majority
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Clone, Debug, Args)]
pub struct MoveArgs {
    /// Id of the partition; the partitions that share its group move with it
    pub partition: u64,
    /// Node that gives up its replica
    #[arg(long)]
    pub from: u64,
    /// Node that gets one
    #[arg(long)]
    pub to: u64,
    /// Only say what would be moved
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

pub async fn run(
    args: &ClusterArgs,
    client_args: &ClientArgs,
    seams: &Seams,
) -> Result<Exit, Failure> {
    let client = client_args.connect()?;
    let operator = operate::Operator {
        client: &client,
        args: client_args,
        seams,
    };
    match &args.command {
        ClusterCommand::Status => show::status(&client, client_args).await,
        ClusterCommand::Nodes => show::nodes(&client, client_args).await,
        ClusterCommand::Partitions { space } => {
            show::partitions(&client, client_args, space.as_deref()).await
        }
        ClusterCommand::Conflicts { space, limit } => {
            show::conflicts(&client, client_args, space, *limit).await
        }
        ClusterCommand::Moves => operator.moves().await,
        ClusterCommand::Health(args) => health::health(&client, client_args, args, seams).await,
        ClusterCommand::Probe { space } => {
            health::probe(&client, client_args, space.as_deref()).await
        }
        ClusterCommand::Drain(args) => operator.drain(args).await,
        ClusterCommand::Undrain { node } => operator.activate(*node).await,
        ClusterCommand::Maintenance {
            switch: Switch::Off,
            args,
        } => operator.activate(args.node).await,
        ClusterCommand::Maintenance {
            switch: Switch::On,
            args,
        } => operator.maintenance(args).await,
        ClusterCommand::Decommission(args) => operator.decommission(args).await,
        ClusterCommand::Rebalance { dry_run, wait } => operator.rebalance(*dry_run, wait).await,
        ClusterCommand::Move(args) => operator.move_replica(args).await,
        ClusterCommand::Transfer {
            partition,
            to,
            wait,
        } => operator.transfer(*partition, *to, wait).await,
        ClusterCommand::Cancel { groups } => operator.cancel(groups).await,
    }
}
