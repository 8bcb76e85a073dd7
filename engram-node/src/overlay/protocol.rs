//! The protocol of one node as a step: an event and the time in, effects out.
//!
//! Called by [`super::runner`] and by simulations, one event after the other. It reads and writes
//! the replicas of this node and knows no clock, socket, task or random number. What must hold: one
//! call at a time to each node and one proposal at a time for each partition; whatever comes from
//! outside may be lost, late or doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engram_core::command::{OverlayDelta, PartitionCommand};
use engram_core::partition::{FoldScan, LocalError, ReceivedOverlay};
use engram_core::types::{EdgeContext, EdgeKey, NodeId, OverlayContext, PartitionId, Sequence};
use engram_proto::convert::DecodeError;
use engram_proto::peer::OverlayExchange;

use super::departed::{Departed, Departure};
use super::frontier::Frontier;
use super::parts::{self, Asked, EXCHANGE_BYTES_MAX, Left, Part};
use super::peers::{CALL_WAIT, Next, PROBE_WAIT, Peer};
use super::rumour::Rumour;
use super::{Place, Places};

/// Deltas, and their estimated size, that one command brings into the log.
const ADOPTED_PER_COMMAND_MAX: usize = 1_024;
const ADOPTED_BYTES_MAX: usize = 1 << 20;
/// Pause after a proposal that failed, and between looks for something to propose.
const PROPOSE_PERIOD: Duration = Duration::from_millis(250);
/// A replica says where it is at most this often.
const ANNOUNCE_PERIOD: Duration = Duration::from_millis(200);
/// Pause between two ways through a partition in search of something to fold.
const FOLD_PERIOD: Duration = Duration::from_secs(10);
/// Log entries since the last frontier that make another way through worth it.
const FOLD_ENTRIES_MIN: u64 = 64;
/// How far one look for something to fold goes.
const FOLD_SCAN: FoldScan = FoldScan {
    records_max: 4_096,
    contributions_min: 4,
};

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    Tick,
    /// This node accepted changes.
    Accepted {
        partition: PartitionId,
        deltas: Vec<OverlayDelta>,
    },
    Heard(Rumour),
    Answered {
        node: NodeId,
        answer: OverlayExchange,
    },
    /// A call was not answered.
    Failed {
        node: NodeId,
    },
    /// A proposal ended, in the log or not.
    Proposed {
        partition: PartitionId,
        applied: bool,
    },
}

/// What to do about it.
#[derive(Clone, Debug)]
pub enum Effect {
    Call {
        node: NodeId,
        request: OverlayExchange,
        /// How long the answer may take.
        wait: Duration,
    },
    Announce(Rumour),
    Propose {
        partition: PartitionId,
        command: PartitionCommand,
        /// Where the command folds: not to be proposed while a removal that has not seen this much
        /// of the log is on its way.
        frontier: Option<Sequence>,
    },
}

/// What the protocol counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub calls: u64,
    pub failed: u64,
    pub sent: u64,
    pub received: u64,
    /// Received and held or adopted before.
    pub known: u64,
    /// Of another partition, or malformed.
    pub refused: u64,
    /// Replicas that had seen the same and held something else: an alarm.
    pub divergences: u64,
    pub folded_edges: u64,
}

/// Why an exchange got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("it comes from another cluster")]
    Cluster,
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// What this node does for one partition.
#[derive(Debug, Default)]
struct Duty {
    frontier: Frontier,
    departed: Departed,
    /// Changes came that others have not been told of.
    unannounced: bool,
    announce_at: Duration,
    /// What was proposed last was an adoption: folding is next, so that changes that keep coming do
    /// not put it off for ever.
    adopted_last: bool,
    proposing: bool,
    propose_at: Duration,
    fold: FoldPass,
}

/// A way through a partition's edges under one frontier.
#[derive(Debug, Default)]
struct FoldPass {
    frontier: Option<EdgeContext>,
    after: Option<EdgeKey>,
    /// The frontier of the last way through, and when the next may begin.
    last: Sequence,
    next_at: Duration,
}

/// The protocol's state on one node.
pub struct Protocol {
    local: NodeId,
    cluster: [u8; 16],
    /// How long the log has had what is folded.
    fold_after: Duration,
    peers: BTreeMap<NodeId, Peer>,
    duties: BTreeMap<PartitionId, Duty>,
    /// Of the last rumour about a replica here.
    version: u64,
    totals: Totals,
}

impl Protocol {
    /// `version` is greater than any that this node gave in an earlier life: its incarnation does.
    #[must_use]
    pub fn new(local: NodeId, cluster: [u8; 16], version: u64, fold_after: Duration) -> Self {
        Self {
            local,
            cluster,
            fold_after,
            peers: BTreeMap::new(),
            duties: BTreeMap::new(),
            version,
            totals: Totals::default(),
        }
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// When [`Event::Tick`] is due next.
    #[must_use]
    pub fn next_tick(&self, now: Duration) -> Duration {
        let peers = self.peers.values().filter_map(Peer::due_at);
        let duties = self.duties.values().filter_map(|duty| {
            let announce = duty.unannounced.then_some(duty.announce_at);
            let propose = (!duty.proposing).then_some(duty.propose_at);
            announce.into_iter().chain(propose).min()
        });
        peers
            .chain(duties)
            .min()
            .map_or(now + PROPOSE_PERIOD, |at| at.max(now))
    }

    pub fn step(&mut self, now: Duration, places: &Places, event: Event) -> Vec<Effect> {
        self.follow_the_map(now, places);
        let mut effects = Vec::new();
        match event {
            Event::Tick => {
                self.announce(now, places, &mut effects);
                self.call(now, places, &mut effects);
                self.propose(now, places, &mut effects);
            }
            Event::Accepted { partition, deltas } => {
                let fresh = Rumour::of_fresh(partition, &deltas);
                effects.extend(fresh.map(Effect::Announce));
                self.news(now, places, partition);
            }
            Event::Heard(rumour) => self.listen(now, places, rumour),
            Event::Answered { node, answer } => {
                if let Err(error) = self.absorb(now, places, node, answer) {
                    tracing::debug!(%node, %error, "overlay answer not taken");
                    self.fail(now, node);
                }
            }
            Event::Failed { node } => self.fail(now, node),
            Event::Proposed { partition, applied } => {
                let duty = self.duties.entry(partition).or_default();
                duty.proposing = false;
                duty.propose_at = if applied { now } else { now + PROPOSE_PERIOD };
            }
        }
        effects
    }

    fn follow_the_map(&mut self, now: Duration, places: &Places) {
        self.duties.retain(|id, _| places.contains_key(id));
        let others: BTreeSet<NodeId> = places
            .values()
            .flat_map(|place| place.others.iter().copied())
            .collect();
        self.peers.retain(|node, _| others.contains(node));
        for node in others {
            self.peers.entry(node).or_insert_with(|| {
                let mut peer = Peer::default();
                peer.pause(now, Next::Again);
                peer
            });
        }
        for (id, place) in places {
            let duty = self.duties.entry(*id).or_default();
            let own = || place.partition.overlay_context();
            for departure in duty.departed.follow(now, &place.others, own) {
                let Departure {
                    node,
                    silent,
                    unaccounted,
                } = departure;
                tracing::info!(
                    partition = %id, %node, silent_seconds = silent.as_secs(), unaccounted,
                    "a replica has left the map: local edge changes that it does not hand over are lost"
                );
            }
        }
    }

    /// Changes of a partition are new here: the others should have them.
    fn news(&mut self, now: Duration, places: &Places, partition: PartitionId) {
        let Some(place) = places.get(&partition) else {
            return;
        };
        for node in &place.others {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.urge(now, partition);
            }
        }
        if let Some(duty) = self.duties.get_mut(&partition) {
            duty.unannounced = true;
            duty.propose_at = duty.propose_at.min(now);
        }
    }

    fn announce(&mut self, now: Duration, places: &Places, effects: &mut Vec<Effect>) {
        for (id, duty) in &mut self.duties {
            let Some(place) = places.get(id) else {
                continue;
            };
            if !duty.unannounced || duty.announce_at > now {
                continue;
            }
            duty.unannounced = false;
            duty.announce_at = now + ANNOUNCE_PERIOD;
            self.version += 1;
            effects.push(Effect::Announce(Rumour::Seen {
                partition: *id,
                node: self.local,
                version: self.version,
                seen_hash: parts::seen_hash(&place.partition.overlay_context()),
            }));
        }
    }

    fn listen(&mut self, now: Duration, places: &Places, rumour: Rumour) {
        let Some(place) = places.get(&rumour.partition()) else {
            return;
        };
        match rumour {
            Rumour::Seen {
                partition,
                node,
                seen_hash,
                ..
            } => {
                let own = parts::seen_hash(&place.partition.overlay_context());
                if own != seen_hash
                    && let Some(peer) = self.peers.get_mut(&node)
                {
                    peer.urge(now, partition);
                }
            }
            Rumour::Fresh { partition, deltas } => {
                match parts::receive(&place.partition, &deltas) {
                    Ok(received) => self.count(received),
                    Err(error) => {
                        tracing::warn!(%partition, %error, "gossiped edge changes not kept");
                    }
                }
            }
        }
    }

    fn count(&mut self, received: ReceivedOverlay) {
        self.totals.received += received.new as u64;
        self.totals.known += received.known as u64;
        self.totals.refused += received.foreign as u64;
    }

    fn call(&mut self, now: Duration, places: &Places, effects: &mut Vec<Effect>) {
        for (node, peer) in &mut self.peers {
            if !peer.is_due(now) {
                continue;
            }
            let (mut asked, mut parts) = (Asked::default(), Vec::new());
            let mut room = EXCHANGE_BYTES_MAX;
            // Who may be out of reach is asked little, so that its answer comes soon if it comes.
            let (open, wait) = match peer.is_probed() {
                true => (BTreeSet::new(), PROBE_WAIT),
                false => (std::mem::take(&mut peer.open), CALL_WAIT),
            };
            for id in parts::shared(places, *node) {
                let Some(place) = places.get(&id) else {
                    continue;
                };
                let position = place.partition.position();
                let part = if open.contains(&id) {
                    parts::full(&place.partition, &position, peer.seen.get(&id), &mut room)
                } else {
                    parts::summary(id, &position)
                };
                self.totals.sent += part.deltas.len() as u64;
                parts.push(part);
                asked.0.insert(id, position);
            }
            peer.called(asked);
            self.totals.calls += 1;
            let request = OverlayExchange {
                cluster: self.cluster.to_vec().into(),
                node: self.local.0,
                parts,
            };
            effects.push(Effect::Call {
                node: *node,
                request,
                wait,
            });
        }
    }

    fn fail(&mut self, now: Duration, node: NodeId) {
        self.totals.failed += 1;
        if let Some(peer) = self.peers.get_mut(&node) {
            // What was sent may not have arrived: its context will say.
            let asked = peer.failed(now);
            for id in asked.iter().flat_map(|asked| asked.0.keys()) {
                peer.seen.remove(id);
            }
        }
    }

    /// Takes in an answer, and decides when this node is called again.
    fn absorb(
        &mut self,
        now: Duration,
        places: &Places,
        node: NodeId,
        answer: OverlayExchange,
    ) -> Result<(), ServeError> {
        self.check_cluster(&answer)?;
        let parts = parts::decode(answer.parts)?;
        let asked = match self.peers.get_mut(&node).and_then(Peer::answered) {
            Some(asked) => asked,
            None => return Ok(()),
        };
        let (mut news, mut progress) = (Vec::new(), false);
        for part in &parts {
            let left = self.absorb_part(now, places, node, part, &asked)?;
            progress |= left.open && left.progress;
            news.extend(left.news.then_some(part.partition));
        }
        let holds = |id: PartitionId| {
            let place = places.get(&id);
            place.is_some_and(|place| place.partition.overlay_stats().deltas > 0)
        };
        let is_busy = parts::shared(places, node).any(holds);
        if let Some(peer) = self.peers.get_mut(&node) {
            let next = match (progress, is_busy || !peer.open.is_empty()) {
                (true, _) => Next::Again,
                (false, true) => Next::Busy,
                (false, false) => Next::Quiet,
            };
            peer.pause(now, next);
        }
        for partition in news {
            self.tell_the_others(now, places, partition, node);
        }
        Ok(())
    }

    fn absorb_part(
        &mut self,
        now: Duration,
        places: &Places,
        node: NodeId,
        part: &Part,
        asked: &Asked,
    ) -> Result<Left, LocalError> {
        let (Some(place), Some(position)) =
            (places.get(&part.partition), asked.0.get(&part.partition))
        else {
            return Ok(Left::default());
        };
        if part.no_replica {
            return Ok(Left::default());
        }
        let equal = parts::seen_hash(&position.seen) == part.seen_hash;
        if parts::diverges(part, position) {
            self.alarm(part.partition, node);
        }
        if let Some((sequence, seen)) = parts::heard(part, equal.then_some(position)) {
            self.learn(now, place, part.partition, (node, sequence, seen));
        }
        let received = parts::receive(&place.partition, &part.deltas)?;
        self.count(received);
        let mut left = Left {
            news: received.new > 0,
            progress: received.new > 0,
            open: false,
        };
        let Some(peer) = self.peers.get_mut(&node) else {
            return Ok(left);
        };
        if let Some(seen) = &part.seen {
            let to_send = !place.partition.overlay_missing_from(seen, 1).is_empty();
            left.open = to_send || part.more;
            if left.open {
                peer.open.insert(part.partition);
            }
            let before = peer.seen.insert(part.partition, seen.clone());
            // What was sent and is still missing there was refused: going on at once would be in
            // vain.
            left.progress |= before.as_ref() != Some(seen);
        } else if equal {
            peer.seen.insert(part.partition, position.seen.clone());
        }
        Ok(left)
    }

    /// Passes on what one replica brought, as far as others may not reach that one.
    fn tell_the_others(
        &mut self,
        now: Duration,
        places: &Places,
        partition: PartitionId,
        from: NodeId,
    ) {
        let Some(place) = places.get(&partition) else {
            return;
        };
        for node in place.others.iter().filter(|node| **node != from) {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.urge(now, partition);
            }
        }
        if let Some(duty) = self.duties.get_mut(&partition) {
            duty.propose_at = duty.propose_at.min(now);
        }
    }

    fn alarm(&mut self, partition: PartitionId, node: NodeId) {
        self.totals.divergences += 1;
        tracing::error!(
            %partition,
            %node,
            "two replicas have seen the same edge changes and hold different ones"
        );
    }

    fn learn(
        &mut self,
        now: Duration,
        place: &Place,
        partition: PartitionId,
        (node, sequence, seen): (NodeId, Sequence, OverlayContext),
    ) {
        let Some(duty) = self.duties.get_mut(&partition) else {
            return;
        };
        if place.leads {
            duty.frontier.heard(node, sequence, seen.clone());
        }
        duty.departed.heard(now, node, seen);
    }

    /// Changes of a partition that departed replicas had seen and this node has not.
    pub fn unaccounted(&mut self, partition: PartitionId, place: &Place) -> u64 {
        let duty = self.duties.get_mut(&partition);
        duty.map_or(0, |duty| {
            duty.departed
                .unaccounted(&place.partition.overlay_context())
        })
    }

    fn check_cluster(&self, message: &OverlayExchange) -> Result<(), ServeError> {
        if message.cluster.as_ref() == self.cluster {
            Ok(())
        } else {
            Err(ServeError::Cluster)
        }
    }

    /// Answers another node.
    ///
    /// # Errors
    /// See [`ServeError`]. Changes that came before the part that failed are kept.
    pub fn serve(
        &mut self,
        now: Duration,
        places: &Places,
        request: OverlayExchange,
    ) -> Result<OverlayExchange, ServeError> {
        self.check_cluster(&request)?;
        self.follow_the_map(now, places);
        let from = NodeId(request.node);
        let mut room = EXCHANGE_BYTES_MAX;
        let mut answers = Vec::with_capacity(request.parts.len());
        for part in parts::decode(request.parts)? {
            let answered = parts::answer(places, &part, &mut room)?;
            self.count(answered.received);
            if answered.diverged {
                self.alarm(part.partition, from);
            }
            if let (Some(place), Some((sequence, seen))) =
                (places.get(&part.partition), answered.heard)
                && place.others.contains(&from)
            {
                self.learn(now, place, part.partition, (from, sequence, seen));
            }
            if answered.received.new > 0 {
                self.tell_the_others(now, places, part.partition, from);
            }
            self.totals.sent += answered.part.deltas.len() as u64;
            answers.push(answered.part);
        }
        Ok(OverlayExchange {
            cluster: self.cluster.to_vec().into(),
            node: self.local.0,
            parts: answers,
        })
    }

    fn propose(&mut self, now: Duration, places: &Places, effects: &mut Vec<Effect>) {
        for (id, duty) in &mut self.duties {
            if duty.proposing || duty.propose_at > now {
                continue;
            }
            duty.propose_at = now + PROPOSE_PERIOD;
            let Some(place) = places.get(id).filter(|place| place.leads) else {
                duty.fold = FoldPass::default();
                continue;
            };
            let older = now.checked_sub(self.fold_after);
            let effect = duty.propose_next((now, older), self.local, place);
            duty.adopted_last = matches!(&effect, Some((PartitionCommand::Adopt { .. }, _)));
            let Some((command, frontier)) = effect else {
                continue;
            };
            if let PartitionCommand::Fold { edges, .. } = &command {
                self.totals.folded_edges += edges.len() as u64;
            }
            duty.proposing = true;
            effects.push(Effect::Propose {
                partition: *id,
                command,
                frontier,
            });
        }
    }
}

impl Duty {
    /// Adoption and folding take turns while there is something for both.
    fn propose_next(
        &mut self,
        times: (Duration, Option<Duration>),
        local: NodeId,
        place: &Place,
    ) -> Option<(PartitionCommand, Option<Sequence>)> {
        let deltas = place
            .partition
            .adoptable(ADOPTED_PER_COMMAND_MAX, ADOPTED_BYTES_MAX);
        if deltas.is_empty() || self.adopted_last {
            match self.fold_next(times, local, place) {
                Ok(Some(effect)) => return Some(effect),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        partition = %place.partition.id(), %error, "no look for edges to fold"
                    );
                }
            }
        }
        (!deltas.is_empty()).then_some((PartitionCommand::Adopt { deltas }, None))
    }

    /// The next folding command, if there is something to fold. `times`: now, and since when the log
    /// must have had what is folded.
    fn fold_next(
        &mut self,
        (now, older): (Duration, Option<Duration>),
        local: NodeId,
        place: &Place,
    ) -> Result<Option<(PartitionCommand, Option<Sequence>)>, engram_core::storage::StorageError>
    {
        let position = place.partition.position();
        let view = place.partition.view();
        self.frontier.heard(local, position.sequence, position.seen);
        self.frontier.grown(now, view.log_context());
        if self.fold.frontier.is_none() {
            if self.fold.next_at > now {
                return Ok(None);
            }
            let replicas = place.others.iter().copied().chain([local]);
            let stable = self.frontier.stable(replicas, older);
            let worth =
                |context: &&EdgeContext| context.sequence.0 >= self.fold.last.0 + FOLD_ENTRIES_MIN;
            self.fold.frontier = stable.filter(worth).cloned();
        }
        let Some(frontier) = self.fold.frontier.clone() else {
            return Ok(None);
        };
        let page = view.foldable(&frontier, self.fold.after.as_ref(), FOLD_SCAN)?;
        if page.next.is_none() {
            self.fold = FoldPass {
                last: frontier.sequence,
                next_at: now + FOLD_PERIOD,
                ..FoldPass::default()
            };
        } else {
            self.fold.after = page.next;
        }
        if page.edges.is_empty() {
            return Ok(None);
        }
        let sequence = frontier.sequence;
        let edges = page.edges;
        Ok(Some((
            PartitionCommand::Fold { frontier, edges },
            Some(sequence),
        )))
    }
}
