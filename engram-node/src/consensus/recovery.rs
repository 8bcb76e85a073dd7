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
    local: NodeId,
    /// Where its log was.
    mark: Mark,
    /// Who may vote, by the cluster map.
    on_the_map: BTreeSet<NodeId>,
    state: Mutex<State>,
}

/// What another node has said.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Where its log ends; `None` of an empty one.
    pub last: Option<Mark>,
    /// Who votes, by its log.
    pub voters: BTreeSet<NodeId>,
}

#[derive(Default)]
struct State {
    told: BTreeMap<NodeId, Told>,
    /// Who has sent entries before it knew.
    refused: BTreeSet<NodeId>,
    /// The log has reached its mark again.
    over: bool,
}

impl State {
    /// All others that may vote: by this log, by the map, and by the logs that go the furthest. This log
    /// may have lost the entry that made it one of many, and must not go by itself alone.
    fn electors(&self, recovery: &Recovery, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut electors = voters.clone();
        if !planted!("short-log-believed") {
            electors.extend(&recovery.on_the_map);
            let furthest = self.told.values().map(|told| told.last).max();
            let tellers = self.told.values();
            let tellers = tellers.filter(|told| Some(told.last) == furthest);
            electors.extend(tellers.flat_map(|told| &told.voters));
        }
        electors.remove(&recovery.local);
        electors
    }

    /// Once all of them have told: the furthest of their logs' ends. Never while this log names nobody.
    fn floor(&self, recovery: &Recovery, voters: &BTreeSet<NodeId>) -> Option<Option<Mark>> {
        if voters.is_empty() {
            return None;
        }
        let electors = self.electors(recovery, voters);
        let ends = electors.iter().map(|node| self.told.get(node));
        let ends: Option<Vec<&Told>> = ends.collect();
        Some(ends?.into_iter().map(|told| told.last).max().flatten())
    }
}

impl Recovery {
    /// What a replica whose log ends at `last` has to go through; `None` when it has lost nothing.
    pub fn needed(
        local: NodeId,
        mark: Option<Mark>,
        last: Option<Mark>,
        on_the_map: BTreeSet<NodeId>,
    ) -> Option<Self> {
        let mark = mark.filter(|mark| last < Some(*mark))?;
        Some(Self {
            local,
            mark,
            on_the_map,
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

    /// Whether a candidate whose log ends at `last` may get this replica's vote; `voters` are those
    /// that this log names now.
    pub fn admits_candidate(&self, last: Option<Mark>, voters: &BTreeSet<NodeId>) -> bool {
        let state = self.state.lock();
        state.over || state.floor(self, voters).is_some_and(|floor| last >= floor)
    }

    /// Whether the replica itself may campaign, its log ending at `last`.
    pub fn may_campaign(&self, last: Option<Mark>, voters: &BTreeSet<NodeId>) -> bool {
        self.admits_candidate(last, voters)
    }

    pub fn told(&self, node: NodeId, told: Told) {
        self.state.lock().told.insert(node, told);
    }

    /// Looks whether it is over, now that the log ends at `last`.
    pub fn is_over(&self, last: Option<Mark>) -> bool {
        let mut state = self.state.lock();
        state.over |= last >= Some(self.mark);
        state.over
    }

    /// Who has to be told: who may vote, who may have a replica, and who has sent entries.
    fn silent(&self, voters: &BTreeSet<NodeId>, hosts: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let state = self.state.lock();
        let mut silent = state.electors(self, voters);
        silent.extend(hosts.iter().chain(&state.refused));
        silent.retain(|node| *node != self.local && !state.told.contains_key(node));
        silent
    }
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
        let (mut campaigns, mut warned) = (false, false);
        while group.stopped().is_none() {
            let silent = recovery.silent(&group.voters(), &group.hosts);
            let announced = silent
                .into_iter()
                .map(|node| self.announce(&group, recovery, node));
            futures::future::join_all(announced).await;
            let last = group.log_end();
            if recovery.is_over(last) {
                group.raft.runtime_config().elect(true);
                self.writer.marks.release(group.id);
                tracing::info!(group = %group.id, "the log has what it had lost");
                return;
            }
            let may_campaign = recovery.may_campaign(last, &group.voters());
            if may_campaign && !warned {
                warned = true;
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
    }

    async fn announce(&self, group: &Group, recovery: &Recovery, node: NodeId) {
        let last = group.log_end_id().map(wire::log_id);
        let link = self.links.to(node);
        let asked = Body::Recovering(RaftLogEnd {
            last,
            ..RaftLogEnd::default()
        });
        let answer = link.call(group.id, asked, ANNOUNCE_TIMEOUT).await;
        if let Ok(Body::RecoveringAnswer(end)) = answer {
            let told = Told {
                last: end.last.map(|id| Mark::from(wire::read_log_id(id))),
                voters: end.voters.into_iter().map(NodeId).collect(),
            };
            recovery.told(node, told);
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

    /// Of node 1, which lost entries 6 to 9; the map names these.
    fn short(on_the_map: &[u64]) -> Recovery {
        let recovery = Recovery::needed(NodeId(1), at(9), at(5), nodes(on_the_map));
        recovery.expect("short")
    }

    fn end(index: u64, voters: &[u64]) -> Told {
        Told {
            last: at(index),
            voters: nodes(voters),
        }
    }

    #[test]
    fn only_a_log_that_ends_short_of_its_mark_has_lost_something() {
        let needed = |mark, last| Recovery::needed(NodeId(1), mark, last, BTreeSet::new());
        assert!(needed(None, None).is_none());
        assert!(needed(at(9), at(9)).is_none());
        let later = Some(Mark { term: 3, index: 1 });
        assert!(needed(at(9), later).is_none());
        assert!(needed(at(9), at(8)).is_some());
        assert!(needed(at(9), None).is_some());
    }

    #[test]
    fn it_votes_for_nobody_before_all_others_have_told() {
        let (recovery, all) = (short(&[]), nodes(&[1, 2, 3]));
        recovery.told(NodeId(2), end(7, &[1, 2, 3]));
        assert!(!recovery.admits_candidate(at(100), &all) && !recovery.may_campaign(at(5), &all));
        assert!(recovery.admits_entries(NodeId(2)) && !recovery.admits_entries(NodeId(3)));
        recovery.told(NodeId(3), end(4, &[1, 2, 3]));
        assert!(
            recovery.admits_candidate(at(7), &all),
            "the furthest of them"
        );
        assert!(!recovery.admits_candidate(at(6), &all));
        assert!(!recovery.may_campaign(at(5), &all));
    }

    #[test]
    fn who_sends_entries_is_told_whoever_it_is() {
        let (recovery, voters) = (short(&[]), nodes(&[1, 2]));
        assert!(!recovery.admits_entries(NodeId(9)));
        let silent = || recovery.silent(&voters, &nodes(&[1, 2, 3]));
        assert_eq!(silent(), nodes(&[2, 3, 9]));
        recovery.told(NodeId(9), end(7, &[]));
        assert!(recovery.admits_entries(NodeId(9)));
        assert_eq!(silent(), nodes(&[2, 3]));
    }

    #[test]
    fn who_comes_to_vote_is_heard_at_once() {
        let recovery = short(&[]);
        recovery.told(NodeId(2), end(5, &[1, 2]));
        assert!(recovery.may_campaign(at(5), &nodes(&[1, 2])));
        let now = nodes(&[1, 2, 4]);
        assert!(!recovery.may_campaign(at(5), &now) && !recovery.admits_candidate(at(9), &now));
    }

    #[test]
    fn who_votes_by_a_log_that_goes_further_is_heard_too() {
        let (recovery, voters) = (short(&[]), nodes(&[1, 2, 3]));
        recovery.told(NodeId(2), end(4, &[1, 2, 3]));
        recovery.told(NodeId(3), end(8, &[1, 2, 4]));
        assert!(
            !recovery.admits_candidate(at(8), &voters),
            "node 4 may have more"
        );
        recovery.told(NodeId(4), end(9, &[1, 2, 4]));
        assert!(!recovery.admits_candidate(at(8), &voters));
        assert!(recovery.admits_candidate(at(9), &voters));
    }

    #[test]
    fn unknown_members_have_told_nothing() {
        let recovery = short(&[1, 2]);
        recovery.told(NodeId(2), end(9, &[1, 2]));
        assert!(!recovery.admits_candidate(at(100), &BTreeSet::new()));
    }

    #[test]
    fn a_founder_that_has_its_first_entries_again_is_not_alone() {
        let (recovery, first_members) = (short(&[1, 2, 3]), nodes(&[1]));
        assert!(!recovery.may_campaign(at(5), &first_members));
        assert_eq!(
            recovery.silent(&first_members, &BTreeSet::new()),
            nodes(&[2, 3])
        );
    }

    #[test]
    fn who_has_lost_no_more_than_the_others_goes_on() {
        let recovery = short(&[1, 2]);
        recovery.told(NodeId(2), end(5, &[1, 2]));
        assert!(recovery.may_campaign(at(5), &nodes(&[1, 2])));
        // Alone there is nobody to ask; a learner does not hold it up.
        let recovery = short(&[1]);
        recovery.told(NodeId(2), end(8, &[1]));
        assert!(recovery.may_campaign(at(5), &nodes(&[1])));
    }

    #[test]
    fn at_its_mark_it_is_a_replica_like_any_other() {
        let recovery = short(&[1, 2]);
        assert!(!recovery.is_over(at(8)));
        assert!(recovery.is_over(at(9)));
        assert!(recovery.admits_candidate(None, &nodes(&[1, 2])));
        assert!(recovery.admits_entries(NodeId(8)));
    }
}
