//! SWIM as a pure step: an event and the time in, effects out. The only speaker of foca.
//!
//! Driven by [`super::driver`], and by tests with a hand clock. What must hold: no clock, no
//! socket and no randomness but the seeded generator in here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use engram_core::types::{NodeId, PartitionId};
use foca::{Foca, Identity, Notification, PostcardCodec, Runtime, State, Timer};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::rumours;
use super::seal::SEAL_BYTES;
use super::{Liveness, SwimTiming};
use crate::overlay::rumour::Rumour;

/// Largest datagram, in bytes: fits every common MTU with its headers.
pub const DATAGRAM_BYTES_MAX: usize = 1_400;
/// Rumours of others are not passed on while so many wait.
const RUMOURS_WAITING_MAX: usize = 64;

/// Who a datagram is from: a node, where it is, and which of its lives this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node: NodeId,
    pub address: SocketAddr,
    /// From the wall clock and durable, so that a restarted node wins over its past.
    pub incarnation: u64,
}

impl Identity for Member {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            incarnation: self.incarnation.saturating_add(1),
            ..self.clone()
        })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An authenticated payload arrived.
    Received(Vec<u8>),
    /// A node that should be part of the cluster may be at this address.
    Announce { node: NodeId, address: SocketAddr },
    /// Time passed.
    Tick,
    /// A replica here has something to tell.
    Tell(Rumour),
    /// The partitions with a replica here.
    Replicas(BTreeSet<PartitionId>),
    /// This process ends on purpose.
    Leave,
}

/// What to do about it.
#[derive(Debug, Default)]
pub struct Effects {
    pub send: Vec<(SocketAddr, Vec<u8>)>,
    /// Members were found or lost.
    pub changed: bool,
    /// For the replicas here.
    pub rumours: Vec<Rumour>,
    /// Payloads and rumours that were refused.
    pub refused: u64,
}

/// The protocol's state on one node.
pub struct Swim {
    foca: Foca<Member, PostcardCodec, StdRng, rumours::Shared>,
    rumours: rumours::Shared,
    local: NodeId,
    timers: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
}

/// A timer; ordered by its time, then by the order in which timers were set.
struct Scheduled {
    at: Duration,
    number: u64,
    timer: Timer<Member>,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Collects what one step of foca wants.
#[derive(Default)]
struct Collected {
    effects: Effects,
    timers: Vec<(Duration, Timer<Member>)>,
}

impl Runtime<Member> for Collected {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        match notification {
            Notification::MemberUp(member) => {
                tracing::info!(peer = member.node.0, "member is up");
                self.effects.changed = true;
            }
            Notification::MemberDown(member) => {
                tracing::warn!(peer = member.node.0, "member is down");
                self.effects.changed = true;
            }
            Notification::Rejoin(member) => {
                tracing::info!(
                    incarnation = member.incarnation,
                    "rejoined after being declared down"
                );
            }
            Notification::Rename(..)
            | Notification::Active
            | Notification::Idle
            | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.effects.send.push((to.address, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.timers.push((after, event));
    }
}

impl Swim {
    #[must_use]
    pub fn new(local: Member, timing: SwimTiming, seed: [u8; 32]) -> Self {
        let node = local.node;
        let rng = StdRng::from_seed(seed);
        let rumours = rumours::Shared::default();
        Self {
            foca: Foca::with_custom_broadcast(
                local,
                config(timing),
                rng,
                PostcardCodec,
                rumours.clone(),
            ),
            rumours,
            local: node,
            timers: BinaryHeap::new(),
            scheduled: 0,
        }
    }

    /// When [`Event::Tick`] is due next.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse(scheduled)| scheduled.at)
    }

    pub fn step(&mut self, now: Duration, event: Event) -> Effects {
        let mut collected = Collected::default();
        let waiting = self.foca.custom_broadcast_backlog();
        self.rumours.0.lock().congested = waiting >= RUMOURS_WAITING_MAX;
        match event {
            Event::Received(payload) => {
                if let Err(error) = self.foca.handle_data(&payload, &mut collected) {
                    tracing::debug!(%error, "membership datagram refused");
                    collected.effects.refused += 1;
                }
            }
            Event::Announce { node, address } if node != self.local => {
                // Incarnation 0 loses against every real one; the answer brings the real one.
                let target = Member {
                    node,
                    address,
                    incarnation: 0,
                };
                log_failure("announce", self.foca.announce(target, &mut collected));
            }
            Event::Announce { .. } => {}
            Event::Tell(rumour) => self.tell(&rumour),
            Event::Replicas(here) => self.rumours.0.lock().set_here(here),
            Event::Leave => log_failure("leave", self.foca.leave_cluster(&mut collected)),
            Event::Tick => self.run_timers(now, &mut collected),
        }
        for (after, timer) in collected.timers.drain(..) {
            self.scheduled += 1;
            let scheduled = Scheduled {
                at: now + after,
                number: self.scheduled,
                timer,
            };
            self.timers.push(Reverse(scheduled));
        }
        let mut rumours = self.rumours.0.lock();
        collected.effects.rumours = rumours.take();
        collected.effects.refused += std::mem::take(&mut rumours.refused);
        collected.effects
    }

    /// Passes a rumour on; one that takes too much room is left to the exchange.
    fn tell(&mut self, rumour: &Rumour) {
        if let Some(bytes) = rumour.encode() {
            log_failure("rumour", self.foca.add_broadcast(&bytes).map(drop));
        }
    }

    /// Rumours that wait to be passed on.
    #[must_use]
    pub fn rumours_waiting(&self) -> usize {
        self.foca.custom_broadcast_backlog()
    }

    fn run_timers(&mut self, now: Duration, collected: &mut Collected) {
        while let Some(Reverse(next)) = self.timers.peek()
            && next.at <= now
        {
            if let Some(Reverse(due)) = self.timers.pop() {
                log_failure("timer", self.foca.handle_timer(due.timer, &mut *collected));
            }
        }
    }

    /// What is known of the others. Who is not in it was never heard of.
    #[must_use]
    pub fn members(&self) -> BTreeMap<NodeId, Liveness> {
        let liveness = |state| match state {
            State::Alive => Liveness::Alive,
            State::Suspect => Liveness::Suspect,
            State::Down => Liveness::Dead,
        };
        let members = self.foca.iter_membership_state();
        members
            .map(|member| (member.id().node, liveness(member.state())))
            .collect()
    }
}

fn log_failure(what: &'static str, outcome: Result<(), foca::Error>) {
    if let Err(error) = outcome {
        tracing::warn!(what, %error, "membership step failed");
    }
}

fn config(timing: SwimTiming) -> foca::Config {
    let several = NonZeroUsize::MIN.saturating_add(2);
    let periodic = |frequency, num_members| {
        Some(foca::PeriodicParams {
            frequency,
            num_members,
        })
    };
    foca::Config {
        probe_period: timing.probe_period,
        probe_rtt: timing.probe_rtt,
        suspect_to_down_after: timing.suspect_to_down,
        max_packet_size: NonZeroUsize::MIN.saturating_add(DATAGRAM_BYTES_MAX - SEAL_BYTES - 1),
        notify_down_members: true,
        periodic_announce: periodic(timing.announce_period, NonZeroUsize::MIN),
        periodic_announce_to_down_members: periodic(timing.announce_period, several),
        periodic_gossip: periodic(timing.gossip_period, several),
        ..foca::Config::simple()
    }
}

#[cfg(test)]
mod tests;
