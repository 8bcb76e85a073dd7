//! Putting a node together, in the order of its parts' needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_core::storage::Storage;
use engram_core::types::{GroupId, PartitionId};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::entry::{Entry, enter, others};
use super::identity::{ClusterMember, NodeIdentity};
use super::machines::Machines;
use super::ports::{Advertised, Ports};
use super::scope::scoped;
use super::watchers::{self, NodeHealth};
use super::{Server, ServerError};
use crate::config::{Config, LogMarks};
use crate::consensus::{Consensus, ConsensusConfig, GroupSpec, MachineFactory, RepairError};
use crate::control::{ControlCommand, ControlMachine, ControlPlane, NodeDescription, members};
use crate::http::{self, Metrics};
use crate::liveness::Heartbeats;
use crate::membership::{ClusterKey, Membership, MembershipOptions, SwimTiming};
use crate::placement::LocalPartitions;
use crate::placement::leaders::Leaders;
use crate::placement::manager::Manager;
use crate::placement::mover::Mover;
use crate::placement::reconciler::{Reconciler, control_spec};
use crate::replica::{Purging, Replicas};
use crate::seams::routes::Routed;
use crate::seams::{Datagrams, Listener, Seams};
use crate::security::{Security, SecurityOptions, check_exposure};
use crate::services::{self, Services};
use crate::transport::Peers;

/// One attempt of a founder to write the first entry of its cluster.
const FOUND_WAIT: Duration = Duration::from_secs(2);
/// How long one look for this node on the map takes before the log says that it is waiting.
const MAP_WAIT: Duration = Duration::from_secs(10);
/// Between two questions for a leader of the control group whose replica here is damaged.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn assemble(config: Config, mut seams: Seams) -> Result<Server, ServerError> {
    if !config.peer_routes.is_empty() {
        seams.net = Arc::new(Routed::new(seams.net, config.peer_routes.clone()));
    }
    let security = load_security(&config, &seams)?;
    let (storage, identity) = open_store(&config, &seams).await?;
    let ports = Ports::bind(seams.net.as_ref(), &config).await?;
    let description = describe(&config, &identity, &ports.advertised);
    let incarnation = identity.incarnation;
    // Before it has an id, a node only asks; nobody answers to this one.
    let strangers = Peers::new(
        seams.clone(),
        security.peer_client(),
        Default::default(),
        None,
    );
    let entry = enter(
        &seams,
        &storage,
        identity,
        &config,
        &strangers,
        &description,
    )
    .await?;
    let end = CancellationToken::new();
    let span = tracing::info_span!("node", node = entry.member.node.0);
    let seams = scoped(&seams, span.clone(), end.clone());
    let parts = Parts {
        config,
        seams,
        security,
        storage,
        description,
        incarnation,
        entry,
        end: end.drop_guard(),
    };
    tracing::Instrument::instrument(Box::pin(parts.run(ports)), span).await
}

fn load_security(config: &Config, seams: &Seams) -> Result<Security, ServerError> {
    let options = SecurityOptions {
        tls_dir: config.tls_dir.clone(),
        token_file: config.token_file.clone(),
        cluster_key_file: config.cluster_key_file.clone(),
        insecure: config.insecure,
    };
    let security = Security::load(&options, seams.disk.as_ref())?;
    let addresses = [&config.listen, &config.peer_listen, &config.http_listen];
    check_exposure(&addresses.map(String::as_str), security.protection())?;
    Ok(security)
}

async fn open_store(
    config: &Config,
    seams: &Seams,
) -> Result<(Arc<dyn Storage>, NodeIdentity), ServerError> {
    let (inner, directory) = (seams.clone(), config.data_dir.join("store"));
    let opened = seams.blocking(move || {
        let storage = inner.disk.open_store(&directory)?;
        let identity = NodeIdentity::open(storage.as_ref(), &inner)?;
        Ok((storage, identity))
    });
    opened.await.map_err(ServerError::Storage)
}

fn describe(config: &Config, identity: &NodeIdentity, ports: &Advertised) -> NodeDescription {
    NodeDescription {
        identity: identity.identity,
        client_address: ports.client.clone(),
        peer_address: ports.peer.clone(),
        http_address: ports.http.clone(),
        zone: config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What is there before the node's parts are.
pub(super) struct Parts {
    pub config: Config,
    pub seams: Seams,
    pub security: Security,
    storage: Arc<dyn Storage>,
    description: NodeDescription,
    incarnation: u64,
    entry: Entry,
    /// Dropped: every task of the node is.
    end: DropGuard,
}

/// The parts that all others hang on.
pub(super) struct Core {
    pub peers: Peers,
    pub consensus: Consensus,
    pub plane: ControlPlane,
    pub replicas: Arc<Replicas>,
}

/// The partitions that run here, for placement.
struct Local(Arc<Replicas>);

impl LocalPartitions for Local {
    fn of_group(&self, group: GroupId) -> Vec<PartitionId> {
        let all = self.0.partitions().into_iter();
        all.filter(|(of, _)| *of == group)
            .map(|(_, partition)| partition.id())
            .collect()
    }
}

impl Parts {
    async fn run(self, ports: Ports) -> Result<Server, ServerError> {
        let core = self.core().await?;
        let background = CancellationToken::new();
        let health = Arc::new(NodeHealth {
            plane: core.plane.clone(),
            consensus: core.consensus.clone(),
            storage: Arc::clone(&self.storage),
            replicas: Arc::clone(&core.replicas),
        });
        self.serve_http(ports.http, &health, &background);
        let beats = Heartbeats::new(
            self.seams.clone(),
            core.plane.clone(),
            core.peers.clone(),
            core.consensus.clone(),
        );
        core.plane.go_by(beats.clocks());
        let membership = self
            .start_membership(ports.datagrams, &core, &background)
            .await?;
        let services = Services::assemble(services::Parts {
            seams: self.seams.clone(),
            node: self.member().node,
            consensus: core.consensus.clone(),
            replicas: Arc::clone(&core.replicas),
            peers: core.peers.clone(),
            plane: core.plane.clone(),
            membership: membership.clone(),
            beats: beats.clone(),
            spread_attempt_wait: self.config.spread_attempt_wait,
            fold_after: self.config.fold_after,
        });
        let (peer, peer_done) = self.serve_peers(ports.peer, &core, &beats, &services)?;
        self.start_control_group(&core).await?;
        self.wait_for_the_map(&core.plane).await;
        self.start_background(&core, &membership, beats, &services, &background);
        services.start();
        let (client, client_done) =
            self.serve_clients(ports.client, &services, &health, &background)?;
        self.write_addresses(&ports.advertised).await?;
        tracing::info!(
            client = ports.advertised.client,
            peer = ports.advertised.peer,
            http = ports.advertised.http,
            cluster = %self.member().cluster,
            "the node serves"
        );
        Ok(Server {
            grace: self.config.limits.shutdown_grace,
            seams: self.seams,
            advertised: ports.advertised,
            plane: core.plane,
            consensus: core.consensus,
            replicas: core.replicas,
            storage: self.storage,
            client,
            peer,
            background,
            client_done,
            peer_done,
            end: self.end,
        })
    }

    pub(super) fn member(&self) -> ClusterMember {
        self.entry.member
    }

    async fn core(&self) -> Result<Core, ServerError> {
        let ClusterMember { cluster, node, .. } = self.member();
        let peers = Peers::new(
            self.seams.clone(),
            self.security.peer_client(),
            node,
            Some(cluster.0),
        );
        peers.set_address(node, self.description.peer_address.clone());
        let storage = Arc::clone(&self.storage);
        let control = self
            .seams
            .blocking(move || ControlMachine::open(storage))
            .await?;
        let known = self.entry.map.as_ref().unwrap_or(&control.map()).clone();
        for other in known.nodes.values().filter(|other| other.id != node) {
            peers.set_address(other.id, other.peer_address.clone());
        }
        let replicas = Replicas::new(
            self.seams.clone(),
            Arc::clone(&self.storage),
            &self.config.data_dir,
            self.config.index_tail_max,
        );
        let data: Arc<dyn MachineFactory> = Arc::clone(&replicas) as _;
        let machines = Machines {
            control: Arc::clone(&control),
            data,
        };
        let directory = self.config.data_dir.clone();
        let mut settings =
            ConsensusConfig::with_options(node, cluster.0, directory, self.config.raft);
        settings.snapshot_bytes_per_second = self.config.snapshot_bytes_per_second;
        settings.marks_before_ack = self.config.log_marks == LogMarks::BeforeAck;
        let consensus = Consensus::open(
            settings,
            self.seams.clone(),
            Arc::clone(&self.storage),
            peers.clone(),
            Arc::new(machines),
        )
        .await?;
        let plane = ControlPlane::new(
            node,
            cluster,
            self.seams.clone(),
            control,
            consensus.clone(),
            peers.clone(),
        );
        Ok(Core {
            peers,
            consensus,
            plane,
            replicas,
        })
    }

    fn serve_http(
        &self,
        listener: Box<dyn Listener>,
        health: &Arc<NodeHealth>,
        background: &CancellationToken,
    ) {
        let metrics = Metrics::install();
        let upkeep = http::upkeep(self.seams.clone(), metrics.clone(), background.clone());
        self.seams.spawn("metrics-upkeep", upkeep);
        let health: Arc<dyn http::Health> = Arc::clone(health) as _;
        let stop = background.clone().cancelled_owned();
        let served = http::serve(self.seams.clone(), listener, health, metrics, stop);
        self.seams.spawn("http-port", served);
    }

    /// The control group as it is before this node has ever had a map.
    fn first_spec(&self) -> GroupSpec {
        let ClusterMember { node, founder, .. } = self.member();
        let voters = if founder {
            BTreeMap::from([(node, self.description.peer_address.clone())])
        } else {
            // They come with the log: the leader adds this node.
            BTreeMap::new()
        };
        GroupSpec {
            group: GroupId::CONTROL,
            electors: voters.keys().copied().collect(),
            hosts: voters.clone(),
            voters,
            bootstrap: founder,
        }
    }

    /// Starts the control group, and writes its first entry where this node founds the cluster.
    /// Where its records are damaged, it begins anew once another node has proved that it leads.
    async fn start_control_group(&self, core: &Core) -> Result<(), ServerError> {
        let Core {
            consensus, plane, ..
        } = core;
        let known = control_spec(&plane.map());
        let spec = match known.hosts.is_empty() {
            true => self.first_spec(),
            // A replica that began anew has a map and no members: these are whom it tells so.
            false => known.clone(),
        };
        let Err(error) = consensus.start_group(&spec).await else {
            return Ok(());
        };
        if !consensus.damaged().contains(&spec.group) || known.hosts.len() < 2 {
            return Err(error.into());
        }
        tracing::error!(%error, "the control group's records are damaged: asking the other nodes");
        loop {
            match consensus.repair_group(&known).await {
                Ok(()) => return Ok(()),
                Err(error @ RepairError::NoLeader(_)) => tracing::warn!(%error, "asking again"),
                Err(error) => return Err(error.into()),
            }
            self.seams.clock.sleep(REPAIR_PAUSE).await;
        }
    }

    /// Returns once this node is on its own map.
    async fn wait_for_the_map(&self, plane: &ControlPlane) {
        let ClusterMember {
            cluster,
            node,
            founder,
        } = self.member();
        while !plane.map().nodes.contains_key(&node) {
            if founder {
                let founder = self.description.clone();
                let command = ControlCommand::InitCluster { cluster, founder };
                match plane
                    .execute(command, FOUND_WAIT)
                    .await
                    .map(|reply| reply.outcome)
                {
                    Ok(Ok(_)) => {}
                    Ok(Err(refusal)) => tracing::error!(%refusal, "the cluster is not founded"),
                    Err(error) => tracing::debug!(%error, "the cluster is not founded yet"),
                }
            } else if !plane
                .wait_for(MAP_WAIT, |map| map.nodes.contains_key(&node))
                .await
            {
                tracing::warn!("still waiting for the cluster map");
            }
        }
    }

    async fn start_membership(
        &self,
        socket: Arc<dyn Datagrams>,
        core: &Core,
        background: &CancellationToken,
    ) -> Result<Membership, ServerError> {
        let address = self.description.peer_address.clone();
        let resolved = self.seams.net.resolve(&address).await;
        let resolved = resolved.map_err(|source| ServerError::Unresolvable { address, source })?;
        let options = MembershipOptions {
            local: self.member().node,
            address: resolved,
            incarnation: self.incarnation,
            key: ClusterKey::derive(self.member().cluster, self.security.cluster_key()),
            timing: SwimTiming::default(),
        };
        let (map, stop) = (core.plane.watch(), background.clone());
        Ok(Membership::start(options, &self.seams, socket, map, stop))
    }

    fn start_background(
        &self,
        core: &Core,
        membership: &Membership,
        beats: Heartbeats,
        services: &Services,
        background: &CancellationToken,
    ) {
        let (seams, stop) = (&self.seams, || background.clone());
        let (plane, consensus) = (|| core.plane.clone(), || core.consensus.clone());
        let addresses = watchers::follow_addresses(plane(), core.peers.clone(), stop());
        seams.spawn("addresses", addresses);
        let registered = watchers::stay_registered(
            seams.clone(),
            plane(),
            core.peers.clone(),
            others(&self.config, &self.description),
            self.description.clone(),
            stop(),
        );
        seams.spawn("registration", registered);
        let losses =
            watchers::count_losses(seams.clone(), plane(), consensus(), beats.clone(), stop());
        seams.spawn("losses", losses);
        seams.spawn("heartbeats", beats.run(stop()));
        let view = membership.clone();
        let keeper = members::keep_in_step(seams.clone(), plane(), consensus(), view, stop());
        seams.spawn("control-members", keeper);
        let reconciler = Reconciler {
            seams: seams.clone(),
            plane: plane(),
            consensus: consensus(),
            partitions: Arc::new(Local(Arc::clone(&core.replicas))),
            overlays: services.overlays(),
        };
        seams.spawn("reconciler", reconciler.run(stop()));
        let replicas = Arc::clone(&core.replicas);
        let purging = Purging::new(services.router().clone(), consensus(), replicas);
        seams.spawn("purging", purging.run(stop()));
        self.start_placement(core, membership, services, background);
    }

    /// What moves replicas and leaderships; each acts where it leads.
    fn start_placement(
        &self,
        core: &Core,
        membership: &Membership,
        services: &Services,
        background: &CancellationToken,
    ) {
        let (seams, stop) = (&self.seams, || background.clone());
        let manager = Manager {
            seams: seams.clone(),
            plane: core.plane.clone(),
            consensus: core.consensus.clone(),
            membership: membership.clone(),
            grace: self.config.replace_after,
        };
        seams.spawn("placement-manager", manager.run(stop()));
        let mover = Mover {
            seams: seams.clone(),
            plane: core.plane.clone(),
            consensus: core.consensus.clone(),
            membership: membership.clone(),
            overlays: services.overlays(),
            pushed: Default::default(),
        };
        seams.spawn("mover", mover.run(stop()));
        let leaders = Leaders {
            seams: seams.clone(),
            plane: core.plane.clone(),
            consensus: core.consensus.clone(),
            membership: membership.clone(),
        };
        seams.spawn("leaders", leaders.run(stop()));
    }

    async fn write_addresses(&self, advertised: &Advertised) -> Result<(), ServerError> {
        let (seams, advertised) = (self.seams.clone(), advertised.clone());
        let (directory, node) = (self.config.data_dir.clone(), self.member().node);
        let written = self
            .seams
            .blocking(move || advertised.write(seams.disk.as_ref(), &directory, node))
            .await;
        written.map_err(|source| ServerError::Write {
            what: "addresses.json",
            source,
        })
    }
}
