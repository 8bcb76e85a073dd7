//! Shortening the logs here: each when it has grown, and one on demand.
//!
//! A log that has grown keeps entries for replicas that lag a little ([`trim_logs`], one task of the
//! node). On demand nothing of what was purged may be left in it ([`Consensus::compact`]): that asks
//! for a snapshot that is newer than a moment, and then for the end of all entries up to that
//! moment; each call is one step, which may be repeated at any time.
//!
//! Both are here because Raft's own policy does not know of the second: with entries still to be
//! deleted up to a moment, its next snapshot would ask for fewer.

use std::sync::Weak;
use std::time::Duration;

use engram_core::types::GroupId;
use openraft::async_runtime::WatchReceiver as _;

use super::config::ConsensusConfig;
use super::group::Group;
use super::node::{Consensus, Inner};
use crate::seams::Seams;

/// How often the node looks for logs that have grown.
const TRIM_PERIOD: Duration = Duration::from_secs(1);

/// A replica's log at a moment: indexes of entries, 0 when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMoment {
    applied: u64,
    snapshot: u64,
}

/// How far a compaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// The snapshot here is newer than the moment, and the log begins after it.
    Done,
    /// It was asked for.
    UnderWay,
    /// Nothing was applied since the snapshot that was there: any entry will do.
    WantsEntry,
}

impl Consensus {
    /// The log of a group that runs here.
    #[must_use]
    pub fn log_moment(&self, group: GroupId) -> Option<LogMoment> {
        self.inner().group(group).map(|group| group.positions().0)
    }

    /// Brings the log and the snapshot of a group that runs here one step further from what they
    /// held at `moment`.
    pub async fn compact(&self, group: GroupId, moment: LogMoment) -> Option<Compaction> {
        let group = self.inner().group(group)?;
        let (now, purged) = group.positions();
        let is_newer = now.snapshot > moment.snapshot && now.snapshot >= moment.applied;
        if is_newer && purged >= moment.applied {
            return Some(Compaction::Done);
        }
        if !is_newer && now.applied <= moment.snapshot {
            return Some(Compaction::WantsEntry);
        }
        let trigger = group.raft.trigger();
        let asked = match is_newer {
            true => trigger.purge_log(moment.applied).await,
            false => trigger.snapshot().await,
        };
        if let Err(error) = asked {
            tracing::debug!(group = %group.id, %error, "the log is not compacted: its replica has stopped");
        }
        Some(Compaction::UnderWay)
    }
}

/// Has the logs that have grown shortened, until the node is gone.
pub(super) async fn trim_logs(seams: Seams, inner: Weak<Inner>) {
    loop {
        seams.clock.sleep(TRIM_PERIOD).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        for group in inner.all_groups() {
            let (now, purged) = group.positions();
            if let Some(upto) = trimmed_upto(&inner.config, now.snapshot, purged)
                && let Err(error) = group.raft.trigger().purge_log(upto).await
            {
                tracing::debug!(group = %group.id, %error, "the log is not trimmed: its replica has stopped");
            }
        }
    }
}

/// The index up to which a log is to be trimmed whose entries up to `snapshot` are in the snapshot
/// and up to `purged` no more in the log; `None` while it is not worth its while.
fn trimmed_upto(config: &ConsensusConfig, snapshot: u64, purged: u64) -> Option<u64> {
    let upto = snapshot.checked_sub(config.keep_entries)?;
    (upto >= purged.saturating_add(config.trim_entries_min())).then_some(upto)
}

impl Group {
    /// What is applied and in the snapshot, and up to where the log was compacted.
    fn positions(&self) -> (LogMoment, u64) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<super::runtime::LogId>| id.map_or(0, |id| id.index);
        let moment = LogMoment {
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
        };
        (moment, index(metrics.purged))
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::NodeId;

    use super::*;

    #[test]
    fn a_log_is_trimmed_seldom_and_keeps_entries_for_those_that_lag() {
        let mut config = ConsensusConfig::new(NodeId(1), [0; 16], "unused".into());
        config.snapshot_every_entries = 160;
        config.keep_entries = 100;
        for (snapshot, purged, upto) in [
            (0, 0, None),
            (100, 0, None),
            (109, 0, None),
            (110, 0, Some(10)),
            (400, 0, Some(300)),
            (400, 291, None),
            // After a compaction on demand nothing is left to trim for a while.
            (400, 400, None),
            (510, 400, Some(410)),
        ] {
            assert_eq!(
                trimmed_upto(&config, snapshot, purged),
                upto,
                "{snapshot} {purged}"
            );
        }
    }
}
