//! What the node's two gRPC ports offer.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::ServerError;
use super::assembly::{Core, Parts};
use super::grpc::{self, Stops};
use super::watchers::{self, NodeHealth};
use crate::control::service::ControlService;
use crate::liveness::Heartbeats;
use crate::seams::Listener;
use crate::services::{Services, client_services, peer_services};

/// Services of the public API, as reflection lists them.
const REFLECTED: [&str; 3] = [
    "engram.v1.Memories",
    "engram.v1.Spaces",
    "engram.v1.Cluster",
];

impl Parts {
    pub(super) fn serve_peers(
        &self,
        listener: Box<dyn Listener>,
        core: &Core,
        beats: &Heartbeats,
        services: &Services,
    ) -> Result<(Stops, mpsc::Receiver<()>), ServerError> {
        let routes = Routes::new(core.consensus.raft_service())
            .add_service(ControlService::server(core.plane.clone()))
            .add_service(beats.server());
        let routes = peer_services(routes, services);
        let stops = Stops::default();
        let cluster = self.member().cluster.0;
        let port = grpc::peer_port(listener, routes, &self.security, cluster, &stops)?;
        Ok((stops, self.spawn_port("peer-port", port)))
    }

    pub(super) fn serve_clients(
        &self,
        listener: Box<dyn Listener>,
        services: &Services,
        health: &Arc<NodeHealth>,
        background: &CancellationToken,
    ) -> Result<(Stops, mpsc::Receiver<()>), ServerError> {
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let report = watchers::report_health(
            self.seams.clone(),
            Arc::clone(health),
            reporter,
            background.clone(),
        );
        self.seams.spawn("health", report);
        let routes = Routes::new(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let routes = client_services(routes, services);
        let stops = Stops::default();
        let limits = self.config.limits;
        let port = grpc::client_port(listener, routes, &self.security, limits, &stops)?;
        Ok((stops, self.spawn_port("client-port", port)))
    }

    /// The receiver ends when the port has stopped.
    fn spawn_port(
        &self,
        name: &'static str,
        port: impl Future<Output = ()> + Send + 'static,
    ) -> mpsc::Receiver<()> {
        let (running, done) = mpsc::channel(1);
        self.seams.spawn(name, async move {
            port.await;
            drop(running);
        });
        done
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    REFLECTED.into_iter().fold(
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(engram_proto::DESCRIPTORS),
        |builder, service| builder.with_service_name(service),
    )
}
