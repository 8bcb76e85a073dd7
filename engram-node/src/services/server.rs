//! The services as they are mounted on the two ports.

use engram_proto::peer::forward_server::ForwardServer;
use engram_proto::peer::overlay_server::OverlayServer;
use engram_proto::peer::spread_server::SpreadServer;
use engram_proto::v1::cluster_server::ClusterServer;
use engram_proto::v1::memories_server::MemoriesServer;
use engram_proto::v1::spaces_server::SpacesServer;
use tonic::service::Routes;

use super::Services;
use super::spread::{SPREAD_MESSAGE_BYTES_MAX, SpreadService};
use crate::routing::{ForwardService, MESSAGE_BYTES_MAX};

/// Adds what clients call.
#[must_use]
pub fn client_services(routes: Routes, services: &Services) -> Routes {
    let memories = MemoriesServer::new(services.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let cluster = ClusterServer::new(services.clone()).max_encoding_message_size(MESSAGE_BYTES_MAX);
    routes
        .add_service(memories)
        .add_service(SpacesServer::new(services.clone()))
        .add_service(cluster)
}

/// Adds what other nodes call, besides Raft and the control plane.
#[must_use]
pub fn peer_services(routes: Routes, services: &Services) -> Routes {
    let here = services.router().here().clone();
    let clocks = std::sync::Arc::clone(&services.inner.clocks);
    let forward = ForwardServer::new(ForwardService::new(here, clocks))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let overlay = OverlayServer::new(services.inner.overlay.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let spread = SpreadServer::new(SpreadService::new(services.inner.spreads.clone()))
        .max_decoding_message_size(SPREAD_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(SPREAD_MESSAGE_BYTES_MAX);
    routes
        .add_service(forward)
        .add_service(overlay)
        .add_service(spread)
}
