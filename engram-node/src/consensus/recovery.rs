//! A replica whose log ends short of its mark has lost entries that it may have acknowledged. Until
//! it has them again it must not help to elect a leader that lacks them, too.
//!
//! ```text
//! short -> all others that vote have told their last position -> votes for who has reached the furthest
//!   \                                                             of them
//!    `--> a leader has brought the log to the mark: as any other replica (from either state)
//! ```
//!
//! While it is short it announces itself to the other members, again and again. A leader then
//! accepts that this log went back; before that its entries are refused, since openraft takes a log
//! that went back for a bug. [`Recovery`] decides and knows no network; [`Inner::recover`] drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_core::planted;
use engram_core::types::NodeId;
use engram_proto::peer::RaftLogEnd;
use engram_proto::peer::raft_message::Body;
use parking_lot::Mutex;

use super::group::Group;
use super::log::Mark;
use super::{Inner, wire};

/// Pause between two rounds of announcing, and how long one announcement may take.
const PERIOD: Duration = Duration::from_millis(200);
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a short replica may do.
pub struct Recovery {
    /// Where its log was.
    mark: Mark,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the others have said of their logs' ends; `None` of an empty one.
    told: BTreeMap<NodeId, Option<Mark>>,
    /// Who has sent entries before it knew.
    refused: BTreeSet<NodeId>,
    /// While all others that may vote have told: the furthest of them.
    floor: Option<Option<Mark>>,
    /// The log has reached its mark again.
    over: bool,
}

impl Recovery {
    /// What a replica whose log ends at `last` has to go through; `None` when it has lost nothing.
    pub fn needed(mark: Option<Mark>, last: Option<Mark>) -> Option<Self> {
        let mark = mark.filter(|mark| last < Some(*mark))?;
        Some(Self {
            mark,
            state: Mutex::default(),
        })
    }

    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Whether entries may be taken from a node: it knows that this log went back. If not, it will be
    /// told, whoever it is: a map that is behind may not name it.
    pub fn admits_entries(&self, from: NodeId) -> bool {
        let mut state = self.state.lock();
        let admitted = state.over || state.told.contains_key(&from);
        if !admitted {
            state.refused.insert(from);
        }
        admitted
    }

    /// Whether a candidate whose log ends at `last` may get this replica's vote.
    pub fn admits_candidate(&self, last: Option<Mark>) -> bool {
        let state = self.state.lock();
        state.over || state.floor.is_some_and(|floor| last >= floor)
    }

    /// Whether the replica itself may campaign, its log ending at `last`.
    pub fn may_campaign(&self, last: Option<Mark>) -> bool {
        self.admits_candidate(last)
    }

    pub fn told(&self, node: NodeId, last: Option<Mark>) {
        self.state.lock().told.insert(node, last);
    }

    /// Looks again: `others` are all others that may vote, or `None` while the log names no
    /// members, and `last` is where the log ends now. True when the recovery is over.
    pub fn look(&self, others: Option<&BTreeSet<NodeId>>, last: Option<Mark>) -> bool {
        let mut state = self.state.lock();
        state.over |= last >= Some(self.mark);
        // Who has come to vote since is to be heard, too.
        let told = |node| state.told.get(node).copied();
        let ends: Option<Vec<_>> = others.and_then(|all| all.iter().map(told).collect());
        let furthest = ends.map(|ends| ends.into_iter().max().flatten());
        state.floor = furthest;
        state.over
    }

    /// Who has to be told: who may vote, who may have a replica, and who has sent entries.
    fn silent(&self, electors: &BTreeSet<NodeId>, hosts: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let state = self.state.lock();
        let all = electors.iter().chain(hosts).chain(&state.refused);
        all.filter(|node| !state.told.contains_key(node))
            .copied()
            .collect()
    }
}

/// All that may vote beside this node: by its log, and by the cluster map. The log may have lost the entry
/// that made it one of many, and must not go by itself alone.
fn electors(
    by_the_log: &BTreeSet<NodeId>,
    by_the_map: &BTreeSet<NodeId>,
    local: NodeId,
) -> BTreeSet<NodeId> {
    let mut others = by_the_log.clone();
    if !planted!("short-log-believed") {
        others.extend(by_the_map);
    }
    others.remove(&local);
    others
}

impl Inner {
    /// Brings a short replica back, however long it takes.
    pub(super) async fn recover(self: Arc<Self>, group: Arc<Group>) {
        let Some(recovery) = &group.recovery else {
            return;
        };
        metrics::counter!("engram_log_short_total").increment(1);
        let (mark, last) = (recovery.mark(), group.log_end());
        tracing::error!(group = %group.id, ?mark, ?last, "the log ends short of what was on disk");
        let mut campaigns = false;
        loop {
            if group.stopped().is_some() {
                return;
            }
            let voters = group.voters();
            let electors = electors(&voters, &group.electors, self.config.node);
            let silent = recovery.silent(&electors, &group.hosts);
            let silent = silent.iter().filter(|node| **node != self.config.node);
            let announced = silent.map(|node| self.announce(&group, recovery, *node));
            futures::future::join_all(announced).await;
            let last = group.log_end();
            let others = (!voters.is_empty()).then_some(&electors);
            if recovery.look(others, last) {
                break;
            }
            let may_campaign = recovery.may_campaign(last);
            if may_campaign && !campaigns {
                tracing::error!(
                    group = %group.id,
                    "nobody has what this log has lost: the group goes on without it"
                );
                metrics::counter!("engram_log_tail_lost_total").increment(1);
            }
            if may_campaign != campaigns {
                campaigns = may_campaign;
                group.raft.runtime_config().elect(campaigns);
            }
            self.seams.clock.sleep(PERIOD).await;
        }
        group.raft.runtime_config().elect(true);
        tracing::info!(group = %group.id, "the log has what it had lost");
    }

    async fn announce(&self, group: &Group, recovery: &Recovery, node: NodeId) {
        let last = group.log_end_id().map(wire::log_id);
        let link = self.links.to(node);
        let asked = Body::Recovering(RaftLogEnd { last, leads: false });
        let answer = link.call(group.id, asked, ANNOUNCE_TIMEOUT).await;
        if let Ok(Body::RecoveringAnswer(end)) = answer {
            let last = end.last.map(|id| Mark::from(wire::read_log_id(id)));
            recovery.told(node, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Option<Mark> {
        Some(Mark { term: 2, index })
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn short() -> Recovery {
        Recovery::needed(at(9), at(5)).expect("short")
    }

    #[test]
    fn only_a_log_that_ends_short_of_its_mark_has_lost_something() {
        assert!(Recovery::needed(None, None).is_none());
        assert!(Recovery::needed(at(9), at(9)).is_none());
        let later = Some(Mark { term: 3, index: 1 });
        assert!(Recovery::needed(at(9), later).is_none());
        assert!(Recovery::needed(at(9), at(8)).is_some());
        assert!(Recovery::needed(at(9), None).is_some());
    }

    #[test]
    fn it_votes_for_nobody_before_all_others_have_told() {
        let recovery = short();
        let others = nodes(&[2, 3]);
        recovery.told(NodeId(2), at(7));
        assert!(!recovery.look(Some(&others), at(5)));
        assert!(!recovery.admits_candidate(at(100)) && !recovery.may_campaign(at(5)));
        assert!(recovery.admits_entries(NodeId(2)) && !recovery.admits_entries(NodeId(3)));
        recovery.told(NodeId(3), at(4));
        assert!(!recovery.look(Some(&others), at(5)));
        assert!(recovery.admits_candidate(at(7)), "the furthest of them");
        assert!(!recovery.admits_candidate(at(6)));
        assert!(!recovery.may_campaign(at(5)));
    }

    #[test]
    fn unknown_members_have_told_nothing() {
        let recovery = short();
        assert!(!recovery.look(None, at(5)));
        assert!(!recovery.admits_candidate(at(100)));
    }

    #[test]
    fn a_founder_that_has_its_first_entries_again_is_not_alone() {
        let first_members = nodes(&[1]);
        let others = electors(&first_members, &nodes(&[1, 2, 3]), NodeId(1));
        assert_eq!(others, nodes(&[2, 3]));
        let recovery = short();
        assert!(!recovery.look(Some(&others), at(5)));
        assert!(!recovery.may_campaign(at(5)));
    }

    #[test]
    fn who_has_lost_no_more_than_the_others_goes_on() {
        let recovery = short();
        recovery.told(NodeId(2), at(5));
        assert!(!recovery.look(Some(&nodes(&[2])), at(5)));
        assert!(recovery.may_campaign(at(5)));
        // Alone there is nobody to ask.
        let recovery = short();
        assert!(!recovery.look(Some(&nodes(&[])), at(5)));
        assert!(recovery.may_campaign(at(5)));
    }

    #[test]
    fn who_sends_entries_is_told_whoever_it_is() {
        let recovery = short();
        assert!(!recovery.admits_entries(NodeId(9)));
        let silent = || recovery.silent(&nodes(&[2]), &nodes(&[2, 3]));
        assert_eq!(silent(), nodes(&[2, 3, 9]));
        recovery.told(NodeId(9), at(7));
        assert!(recovery.admits_entries(NodeId(9)));
        assert_eq!(silent(), nodes(&[2, 3]));
    }

    #[test]
    fn who_comes_to_vote_later_is_heard_too() {
        let recovery = short();
        recovery.told(NodeId(2), at(5));
        assert!(!recovery.look(Some(&nodes(&[2])), at(5)));
        assert!(recovery.may_campaign(at(5)));
        assert!(!recovery.look(Some(&nodes(&[2, 4])), at(5)));
        assert!(!recovery.may_campaign(at(5)));
        assert!(!recovery.admits_candidate(at(9)));
    }

    #[test]
    fn at_its_mark_it_is_a_replica_like_any_other() {
        let recovery = short();
        assert!(!recovery.look(None, at(8)));
        assert!(recovery.look(None, at(9)));
        assert!(recovery.admits_candidate(None) && recovery.admits_entries(NodeId(8)));
    }
}
