//! Rumours on their way through this node: what to pass on, and what to tell the replicas here.
//!
//! What must hold: a rumour is passed on once; what is kept to tell the new from the old is
//! bounded; nothing that does not decode is passed on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use engram_core::types::{NodeId, PartitionId};
use foca::{BroadcastHandler, Invalidates};
use parking_lot::Mutex;

use super::swim::Member;
use crate::overlay::rumour::{Rumour, Topic};

/// Replicas whose newest rumour is remembered. Beyond it, rumours of others are not passed on.
const REPLICAS_MAX: usize = 65_536;
/// Rumours of fresh changes that are remembered.
const FRESH_KEPT: usize = 1_024;
/// Rumours that came and were not taken yet; further ones are dropped.
const INBOX_MAX: usize = 1_024;

/// Decides which rumours travel on.
#[derive(Debug, Default)]
pub struct Rumours {
    inbox: Vec<Rumour>,
    newest: BTreeMap<(PartitionId, NodeId), u64>,
    fresh: VecDeque<Topic>,
    /// Partitions with a replica here.
    here: BTreeSet<PartitionId>,
    /// Set while enough others wait to be passed on.
    pub congested: bool,
    pub refused: u64,
}

/// What foca compares to let go of superseded rumours.
#[derive(Debug)]
pub struct Key(Topic);

impl Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self.0.supersedes(&other.0)
    }
}

impl Rumours {
    pub fn set_here(&mut self, here: BTreeSet<PartitionId>) {
        self.here = here;
    }

    /// What came for the replicas here since the last call.
    pub fn take(&mut self) -> Vec<Rumour> {
        std::mem::take(&mut self.inbox)
    }

    /// Notes a topic; false when it is old.
    fn is_new(&mut self, topic: &Topic) -> bool {
        match topic {
            Topic::Seen {
                partition,
                node,
                version,
            } => {
                let key = (*partition, *node);
                if self.newest.len() >= REPLICAS_MAX && !self.newest.contains_key(&key) {
                    return false;
                }
                let newest = self.newest.entry(key).or_default();
                let is_new = *version > *newest;
                *newest = (*newest).max(*version);
                is_new
            }
            Topic::Fresh { .. } => {
                if self.fresh.iter().any(|known| known.supersedes(topic)) {
                    return false;
                }
                self.fresh.push_back(topic.clone());
                if self.fresh.len() > FRESH_KEPT {
                    self.fresh.pop_front();
                }
                true
            }
        }
    }
}

/// The rumours of a node, shared with foca, which owns its handler and shows it to nobody.
#[derive(Clone, Debug, Default)]
pub struct Shared(pub Arc<Mutex<Rumours>>);

impl BroadcastHandler<Member> for Shared {
    type Key = Key;
    type Error = Infallible;

    fn receive_item(
        &mut self,
        data: &[u8],
        sender: Option<&Member>,
    ) -> Result<Option<Key>, Infallible> {
        Ok(self.0.lock().receive(data, sender.is_none()))
    }
}

impl Rumours {
    /// What a rumour is about, if it is to be passed on.
    fn receive(&mut self, data: &[u8], is_own: bool) -> Option<Key> {
        let Ok(rumour) = Rumour::decode(data) else {
            self.refused += 1;
            return None;
        };
        let topic = rumour.topic()?;
        if !self.is_new(&topic) {
            return None;
        }
        let is_here = self.here.contains(&rumour.partition());
        if is_here && !is_own && self.inbox.len() < INBOX_MAX {
            self.inbox.push(rumour);
        }
        // Changes are of use to replicas only; who has none does not spend the network on them.
        let passes_on = match &topic {
            Topic::Seen { .. } => !self.congested,
            Topic::Fresh { .. } => is_here && !self.congested,
        };
        (is_own || passes_on).then_some(Key(topic))
    }
}
