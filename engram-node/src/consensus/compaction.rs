//! Compacting a group's log here on demand, so that nothing of what was purged is left in it.
//!
//! Otherwise a log is compacted when it has grown, and keeps entries for replicas that lag. This
//! asks for a snapshot that is newer than a moment, and then for the end of all entries up to that
//! moment. Each call is one step, which may be repeated at any time.

use engram_core::types::GroupId;
use openraft::async_runtime::WatchReceiver as _;

use super::group::Group;
use super::node::Consensus;

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
