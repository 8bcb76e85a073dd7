//! Request identities: what makes a retried mutation apply once.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One client instance: a UUIDv7, so that ids order roughly by the time of their making.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub [u8; 16]);

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

/// (client, counter, index within the request). A client keeps its oldest unanswered and its
/// newest counter less than [`crate::limits::REQUESTS_PER_CLIENT`] apart.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RequestId {
    pub client: ClientId,
    pub counter: u64,
    pub index: u32,
}

impl RequestId {
    /// The id of a memory that a raw call stored without naming one: a retry derives the same.
    #[must_use]
    pub fn derived_memory_id(&self) -> String {
        format!("{:?}-{:x}-{:x}", self.client, self.counter, self.index)
    }
}
