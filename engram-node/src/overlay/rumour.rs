//! What replicas tell the whole cluster by gossip: where one is, and fresh changes as hints.
//!
//! Nothing rests on a rumour. One that is lost costs the time until the next exchange; one that is
//! old, doubled or of a partition that is not here changes nothing. Bytes: version, then postcard.

use engram_core::command::OverlayDelta;
use engram_core::types::{NodeId, OverlayDot, PartitionId};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
/// Greatest rumour, in bytes: it shares a datagram with the protocol that carries it.
pub const RUMOUR_BYTES_MAX: usize = 1_024;

/// One piece of gossip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rumour {
    /// What a replica has seen. Of one replica the greatest `version` is the newest.
    Seen {
        partition: PartitionId,
        node: NodeId,
        version: u64,
        seen_hash: u64,
    },
    /// Fresh changes of one partition.
    Fresh {
        partition: PartitionId,
        deltas: Vec<OverlayDelta>,
    },
}

/// What a rumour is about, to tell the newer from the older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    Seen {
        partition: PartitionId,
        node: NodeId,
        version: u64,
    },
    Fresh {
        first: OverlayDot,
        last: OverlayDot,
    },
}

/// Why bytes are no rumour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RumourError {
    #[error("a rumour of another version")]
    Version,
    #[error("a rumour that does not decode")]
    Malformed,
}

impl Rumour {
    /// `None` when it takes more than [`RUMOUR_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let bytes = postcard::to_extend(self, vec![VERSION]).ok()?;
        (bytes.len() <= RUMOUR_BYTES_MAX).then_some(bytes)
    }

    /// # Errors
    /// See [`RumourError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RumourError> {
        let (version, body) = bytes.split_first().ok_or(RumourError::Malformed)?;
        if *version != VERSION {
            return Err(RumourError::Version);
        }
        match postcard::take_from_bytes::<Self>(body) {
            Ok((rumour, [])) if rumour.topic().is_some() => Ok(rumour),
            _ => Err(RumourError::Malformed),
        }
    }

    /// `None` for one that says nothing.
    #[must_use]
    pub fn topic(&self) -> Option<Topic> {
        match self {
            Self::Seen {
                partition,
                node,
                version,
                ..
            } => Some(Topic::Seen {
                partition: *partition,
                node: *node,
                version: *version,
            }),
            Self::Fresh { deltas, .. } => Some(Topic::Fresh {
                first: deltas.first()?.dot,
                last: deltas.last()?.dot,
            }),
        }
    }

    #[must_use]
    pub fn partition(&self) -> PartitionId {
        match self {
            Self::Seen { partition, .. } | Self::Fresh { partition, .. } => *partition,
        }
    }

    /// As many of the changes, from the first, as one rumour holds; `None` when not even one does.
    #[must_use]
    pub fn of_fresh(partition: PartitionId, deltas: &[OverlayDelta]) -> Option<Self> {
        let mut count = deltas.len();
        while count > 0 {
            let rumour = Self::Fresh {
                partition,
                deltas: deltas[..count].to_vec(),
            };
            if rumour.encode().is_some() {
                return Some(rumour);
            }
            count /= 2;
        }
        None
    }
}

impl Topic {
    /// Whether this makes the other one not worth passing on.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Seen {
                    partition,
                    node,
                    version,
                },
                Self::Seen {
                    partition: of,
                    node: by,
                    version: before,
                },
            ) => (partition, node) == (of, by) && version >= before,
            (
                Self::Fresh { first, last },
                Self::Fresh {
                    first: from,
                    last: to,
                },
            ) => {
                // Dots of one actor come without gaps.
                let actors = [last.actor, from.actor, to.actor];
                actors.iter().all(|actor| *actor == first.actor)
                    && first.n <= from.n
                    && to.n <= last.n
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use engram_core::command::EdgeChange;
    use engram_core::types::{ActorId, ClientId, Hlc, MemoryId, Relation, RequestId, Unit};
    use proptest::prelude::*;

    use super::*;

    fn delta(n: u64) -> OverlayDelta {
        OverlayDelta {
            dot: OverlayDot {
                actor: ActorId([3; 16]),
                n,
            },
            request: RequestId {
                client: ClientId([1; 16]),
                counter: n,
                index: 0,
            },
            from: MemoryId::new("a").unwrap(),
            to: MemoryId::new("b").unwrap(),
            relation: Relation::new("r").unwrap(),
            stamp: Hlc::from_millis(n),
            retried: false,
            change: EdgeChange::Contribute {
                weight: Unit::ONE,
                confidence: Unit::ONE,
            },
        }
    }

    fn seen(node: u64, version: u64) -> Rumour {
        Rumour::Seen {
            partition: PartitionId(1),
            node: NodeId(node),
            version,
            seen_hash: 7,
        }
    }

    #[test]
    fn rumours_survive_their_bytes_and_have_a_size() {
        let deltas: Vec<OverlayDelta> = (1..=64).map(delta).collect();
        let fresh = Rumour::of_fresh(PartitionId(1), &deltas).unwrap();
        let Rumour::Fresh { deltas: some, .. } = &fresh else {
            panic!("it is of fresh changes")
        };
        assert!((1..64).contains(&some.len()));
        for rumour in [fresh, seen(1, 1)] {
            let bytes = rumour.encode().unwrap();
            assert!(bytes.len() <= RUMOUR_BYTES_MAX);
            assert_eq!(Rumour::decode(&bytes), Ok(rumour));
            assert!(Rumour::decode(&bytes[..bytes.len() - 1]).is_err());
        }
        let nothing = Rumour::Fresh {
            partition: PartitionId(1),
            deltas: Vec::new(),
        };
        assert_eq!(
            Rumour::decode(&nothing.encode().unwrap()),
            Err(RumourError::Malformed)
        );
        assert_eq!(Rumour::of_fresh(PartitionId(1), &[]), None);
    }

    #[test]
    fn newer_rumours_supersede_older_ones() {
        let topic = |rumour: Rumour| rumour.topic().unwrap();
        assert!(topic(seen(1, 2)).supersedes(&topic(seen(1, 1))));
        assert!(!topic(seen(1, 1)).supersedes(&topic(seen(1, 2))));
        assert!(!topic(seen(2, 2)).supersedes(&topic(seen(1, 1))));
        let fresh = |numbers: std::ops::RangeInclusive<u64>| {
            let deltas: Vec<_> = numbers.map(delta).collect();
            topic(Rumour::of_fresh(PartitionId(1), &deltas).unwrap())
        };
        assert!(fresh(1..=3).supersedes(&fresh(2..=3)));
        assert!(!fresh(2..=3).supersedes(&fresh(1..=3)));
        assert!(!fresh(1..=3).supersedes(&topic(seen(1, 1))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Rumour::decode(&bytes);
        }
    }
}
