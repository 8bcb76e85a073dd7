//! Membership: who is alive, by SWIM over authenticated datagrams.
//!
//! Replicas gossip over it ([`crate::overlay`]). Routing, the planner and operators read the view; it decides nothing by itself: only the control
//! plane decides placement. [`swim`] is the protocol as a pure step, [`seal`] keeps strangers out,
//! [`driver`] joins them to sockets and timers.

pub mod driver;
mod rumours;
pub mod seal;
pub mod swim;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_core::types::{NodeId, PartitionId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::overlay::rumour::Rumour;

pub use driver::MembershipOptions;
pub use seal::ClusterKey;

/// Whether a node is believed to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    Alive,
    /// It was not heard of yet, or did not answer lately.
    Suspect,
    /// Declared down by the cluster.
    Dead,
}

/// Timing of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct SwimTiming {
    pub probe_period: Duration,
    /// Must be shorter than the period.
    pub probe_rtt: Duration,
    pub suspect_to_down: Duration,
    pub announce_period: Duration,
    pub gossip_period: Duration,
}

impl Default for SwimTiming {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(1_000),
            probe_rtt: Duration::from_millis(300),
            suspect_to_down: Duration::from_millis(3_000),
            announce_period: Duration::from_millis(10_000),
            gossip_period: Duration::from_millis(200),
        }
    }
}

/// What is believed of the nodes; those not in it were never heard of.
pub type LivenessView = BTreeMap<NodeId, Liveness>;

/// The view of this node. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    local: NodeId,
    view: watch::Receiver<Arc<LivenessView>>,
    tell: mpsc::Sender<swim::Event>,
    rumours: Arc<Mutex<Option<mpsc::Receiver<Rumour>>>>,
}

impl Membership {
    #[must_use]
    pub fn liveness(&self, node: NodeId) -> Liveness {
        if node == self.local {
            return Liveness::Alive;
        }
        self.view
            .borrow()
            .get(&node)
            .copied()
            .unwrap_or(Liveness::Suspect)
    }

    /// The whole view, this node included.
    #[must_use]
    pub fn view(&self) -> LivenessView {
        let mut view = LivenessView::clone(&self.view.borrow());
        view.insert(self.local, Liveness::Alive);
        view
    }

    /// Passes a rumour to the cluster. One that finds no room is dropped: nothing rests on it.
    pub fn tell(&self, rumour: Rumour) {
        if self.tell.try_send(swim::Event::Tell(rumour)).is_err() {
            metrics::counter!("engram_rumours_dropped_total").increment(1);
        }
    }

    /// Says which partitions have a replica here: their rumours are taken in.
    pub async fn set_replicas(&self, here: BTreeSet<PartitionId>) {
        // The protocol's task ends with the process.
        drop(self.tell.send(swim::Event::Replicas(here)).await);
    }

    /// Rumours for the replicas here, for their only reader.
    #[must_use]
    pub fn rumours(&self) -> Option<mpsc::Receiver<Rumour>> {
        self.rumours.lock().take()
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<LivenessView>> {
        self.view.clone()
    }
}
