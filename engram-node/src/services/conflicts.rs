//! What folding left undecided in the associations of a space.

use engram_proto::peer::read_query::Query;
use engram_proto::peer::served::Answer;
use engram_proto::peer::{ConflictsAnswer, ConflictsQuery};
use engram_proto::v1;
use futures::future::try_join_all;

use super::Services;
use super::failure::Failure;
use super::input;
use super::reads::{Reading, unfit};
use super::token::Freshness;
use crate::routing::Deadline;

/// Conflicts of one partition in one answer: all that are kept.
const CONFLICTS_MAX: usize = engram_core::limits::CONFLICTS_KEPT as usize;
/// And without a limit.
const CONFLICTS_DEFAULT: u32 = 100;

impl Services {
    pub(super) async fn list_conflicts(
        &self,
        request: v1::ListConflictsRequest,
        deadline: Deadline,
    ) -> Result<v1::ListConflictsResponse, Failure> {
        let limit = match request.limit {
            0 => CONFLICTS_DEFAULT,
            limit => limit,
        };
        input::at_most("the limit", "conflicts", limit as usize, CONFLICTS_MAX)?;
        let space = self.space(&request.space, deadline).await?;
        let reading = Reading {
            space: &space,
            freshness: &Freshness::Linearizable,
            deadline,
        };
        let asked = space.partitions.iter().map(|place| {
            let query = Query::Conflicts(ConflictsQuery { limit });
            self.ask(&reading, *place, query)
        });
        let mut response = v1::ListConflictsResponse::default();
        for (_, read) in try_join_all(asked).await? {
            let Answer::Conflicts(ConflictsAnswer { conflicts, total }) = read.answer else {
                return Err(unfit("a list of conflicts"));
            };
            response.total += total;
            response.conflicts.extend(conflicts);
        }
        Ok(response)
    }
}
