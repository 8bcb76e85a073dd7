//! Where a damaged log may have ended, for the mark that its replica is brought back to
//! ([`super::super::damage`]).
//!
//! What must hold: no acknowledged entry lies beyond it, and a log that goes on reaches it. What a
//! damaged record says of itself is no proof: a flipped bit may name an early term, or one that never
//! was. The vote is: a replica takes entries of no term that it has not voted for or followed.

use engram_core::storage::{Family, Order, Storage, StorageError};
use engram_core::types::GroupId;

use super::marks::Mark;
use super::record::{self, CHAIN_START, Header};
use super::store::PurgeMark;
use crate::consensus::codec::{VoteRecord, unversioned};
use crate::consensus::keys;
use crate::consensus::runtime::LogId;

/// The furthest that a group's log on disk can have been; none where it had nothing. Blocks.
///
/// # Errors
/// When vote or purge mark cannot be read: nothing can be said then.
pub fn furthest_end(group: GroupId, storage: &dyn Storage) -> Result<Option<Mark>, StorageError> {
    let vote = storage.get(Family::Log, &keys::vote(group))?;
    let vote = vote.map(|bytes| unversioned::<VoteRecord>("vote", &bytes));
    let term = vote.transpose()?.map_or(0, |vote| vote.term);
    let purged = storage.get(Family::Log, &keys::purged(group))?;
    let purged = purged.map(|bytes| unversioned::<PurgeMark>("purge mark", &bytes));
    let purged = purged.transpose()?;
    let first_chain = purged.as_ref().map_or(CHAIN_START, |mark| mark.chain);

    let (start, end) = (keys::record(group, 0), keys::records_end(group));
    let mut newest = storage.scan(Family::Log, &start, &end, Order::Descending);
    let (key, record) = match newest.next() {
        None => return Ok(purged.map(|mark| LogId::from(mark.last).into())),
        Some(Ok(last)) => last,
        // How many entries there were is unknown: one of a later term is surely beyond them.
        Some(Err(_)) => {
            let term = term + 1;
            return Ok(Some(Mark { term, index: 0 }));
        }
    };
    let Some(index) = keys::index_of(&key) else {
        let term = term + 1;
        return Ok(Some(Mark { term, index: 0 }));
    };
    let previous = match newest.next() {
        None => Some(first_chain),
        Some(before) => {
            let before = before.ok();
            let header = before.and_then(|(_, bytes)| Header::read(&bytes));
            header.map(|header| header.chain)
        }
    };
    let sound = previous.and_then(|chain| record::decode(chain, index, &record).ok());
    Ok(Some(match sound {
        Some((entry, _)) => entry.log_id.into(),
        None => Mark { term, index },
    }))
}
