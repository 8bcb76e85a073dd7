//! The gRPC services: `engram.v1` for clients, and what nodes ask of each other besides Raft.
//!
//! A call is admitted ([`admission`]), its input checked ([`input`]), carried out by one verb file
//! through [`Router`], and its failure turned into a status in one place ([`status`]). Services
//! hold no state of the data: everything they answer comes from partitions and the cluster map.
//!
//! What must hold: bad input changes nothing; an error says what may have happened; whatever is
//! held for a call (permits, running spreads) is released at its deadline.

mod admission;
mod backup;
mod bulk;
mod cluster;
mod conflicts;
mod controls;
mod edges;
mod failure;
mod input;
mod memories;
mod placement;
mod probe;
mod reads;
mod recall;
mod server;
mod spaces;
mod spread;
mod status;
mod survey;
mod token;
mod verify;
mod walk;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use engram_core::types::NodeId;
use tokio::sync::Semaphore;

use crate::consensus::Consensus;
use crate::control::plane::ControlPlane;
use crate::liveness::{Clocks, Heartbeats};
use crate::membership::Membership;
use crate::overlay::{Handover, OverlayService};
use crate::placement::mover::Overlays;
use crate::replica::Replicas;
use crate::routing::{Dialer, Groups, Here, Links, Router};
use crate::seams::Seams;
use crate::transport::Peers;

pub use controls::{ControlFailure, Controls};
pub use server::{client_services, peer_services};

/// How long a call may take that names no deadline, and any call at most.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(10);
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Calls of clients that a node works on at once.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1_024;

/// Everything the services work with. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    controls: Arc<dyn Controls>,
    membership: Membership,
    links: Arc<dyn Links>,
    overlay: OverlayService,
    requests: Arc<Semaphore>,
    own: admission::OwnRequests,
    spreads: spread::Registry,
    clocks: Arc<dyn Clocks>,
}

/// The parts of a node that the services are made of.
pub struct Parts {
    pub seams: Seams,
    pub node: NodeId,
    pub consensus: Consensus,
    pub replicas: Arc<Replicas>,
    pub peers: Peers,
    pub plane: ControlPlane,
    pub membership: Membership,
    pub beats: Heartbeats,
    /// See [`crate::config::Config::spread_attempt_wait`].
    pub spread_attempt_wait: Duration,
    /// See [`crate::config::Config::fold_after`].
    pub fold_after: Duration,
}

impl Services {
    /// The services of a node. [`Self::start`] starts what runs beside the calls.
    #[must_use]
    pub fn assemble(parts: Parts) -> Self {
        let Parts {
            seams,
            node,
            consensus,
            replicas,
            peers,
            plane,
            membership,
            beats,
            spread_attempt_wait,
            fold_after,
        } = parts;
        let clocks: Arc<dyn Clocks> = Arc::new(beats);
        let groups: Arc<dyn Groups> = Arc::new(consensus);
        let links: Arc<dyn Links> = Arc::new(peers);
        let remote = Arc::new(Dialer::new(
            seams.clone(),
            Arc::clone(&links),
            Arc::clone(&clocks),
        ));
        let here = Here::new(
            seams.clone(),
            node,
            plane.watch(),
            Arc::clone(&groups),
            replicas,
        );
        let router = Router::new(seams, plane.watch(), groups, remote, here);
        let spreads =
            spread::Registry::new(router.clone(), Arc::clone(&links), spread_attempt_wait);
        let overlay = OverlayService::new(router.clone(), plane.cluster().0, fold_after);
        Self {
            inner: Arc::new(Inner {
                router,
                controls: Arc::new(plane),
                membership,
                links,
                overlay,
                requests: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX)),
                own: admission::OwnRequests::default(),
                spreads,
                clocks,
            }),
        }
    }

    /// Requests to partitions, wherever their leaders are.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.inner.router
    }

    /// What placement brings to other replicas.
    #[must_use]
    pub fn overlays(&self) -> Arc<dyn Overlays> {
        let Inner { overlay, links, .. } = &*self.inner;
        Arc::new(Handover::new(overlay, Arc::clone(links)))
    }

    /// Starts what runs beside the calls: the exchange, adoption and folding of edge changes.
    pub fn start(&self) {
        let Inner {
            overlay,
            links,
            membership,
            ..
        } = &*self.inner;
        crate::overlay::start(overlay, Arc::clone(links), membership.clone());
    }
}
