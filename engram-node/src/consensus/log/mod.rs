//! The Raft logs of all groups, in one family of the node's store.
//!
//! [`LogStore`] is one group's log as openraft sees it; [`LogWriter`] is the one writer of the
//! node, which puts appends and votes of all groups into common batches with one fsync each. What
//! must hold: writes of one group happen in the order of their calls; nothing is reported durable
//! before its fsync; after a failed write every group stops and nothing is retried; a record whose
//! checksum does not chain to its predecessor's is corruption, never skipped or cut off.

mod marks;
mod reader;
mod record;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use marks::{Mark, Marks};
pub use record::Header;
pub use store::LogStore;
pub use writer::{LogWriter, Poisoned};
