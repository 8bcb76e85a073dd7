//! Session tokens: what a session has read or written, per partition.

use std::collections::BTreeMap;

use engram_core::planted;
use engram_core::types::{EdgeContext, OverlayContext, PartitionId, Sequence};
use engram_proto::convert::DecodeError;
use engram_proto::log;
use engram_proto::v1::{Consistency, PartitionPosition, SessionToken};
use prost::Message as _;

use super::failure::InputError;
use crate::routing::ReadAt;

/// Positions of the partitions that a request touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<PartitionId, EdgeContext>);

impl Positions {
    pub fn note(&mut self, partition: PartitionId, position: &EdgeContext) {
        self.0.entry(partition).or_default().join(position);
    }

    pub fn join(&mut self, other: &Self) {
        for (partition, position) in &other.0 {
            self.note(*partition, position);
        }
    }

    /// Of a write: the log up to its sequence.
    #[must_use]
    pub fn written(partition: PartitionId, sequence: Sequence) -> Self {
        let behind = u64::from(planted!("token-one-behind"));
        let position = EdgeContext {
            sequence: Sequence(sequence.0.saturating_sub(behind)),
            overlay: OverlayContext::default(),
        };
        Self([(partition, position)].into())
    }

    #[must_use]
    pub fn token(&self) -> SessionToken {
        let position = |(partition, position): (&PartitionId, &EdgeContext)| PartitionPosition {
            partition: partition.0,
            sequence: position.sequence.0,
            overlay: if position.overlay.is_empty() {
                bytes::Bytes::new()
            } else {
                log::OverlayContext::from(&position.overlay)
                    .encode_to_vec()
                    .into()
            },
        };
        SessionToken {
            positions: self.0.iter().map(position).collect(),
        }
    }

    /// # Errors
    /// When the token is not one that a server gave.
    pub fn from_token(token: Option<SessionToken>) -> Result<Self, InputError> {
        let mut positions = Self::default();
        for position in token.unwrap_or_default().positions {
            let overlay = log::OverlayContext::decode(position.overlay.as_ref());
            let overlay = overlay.map_err(DecodeError::from)?.try_into()?;
            let sequence = Sequence(position.sequence);
            let partition = PartitionId(position.partition);
            positions.note(partition, &EdgeContext { sequence, overlay });
        }
        Ok(positions)
    }
}

/// How fresh the answers of a request have to be.
#[derive(Clone, Debug)]
pub enum Freshness {
    Linearizable,
    Session(Positions),
    Stale,
}

impl Freshness {
    /// # Errors
    /// When the consistency is unknown or the token damaged.
    pub fn of(consistency: i32, token: Option<SessionToken>) -> Result<Self, InputError> {
        match Consistency::try_from(consistency) {
            Ok(Consistency::Unspecified | Consistency::Linearizable) => Ok(Self::Linearizable),
            Ok(Consistency::Session) => Ok(Self::Session(Positions::from_token(token)?)),
            Ok(Consistency::Stale) => Ok(Self::Stale),
            Err(_) => Err(DecodeError::NotUnderstood("the consistency").into()),
        }
    }

    /// The newest partition that the session has seen.
    #[must_use]
    pub fn newest_partition(&self) -> Option<PartitionId> {
        match self {
            Self::Session(positions) => positions.0.last_key_value().map(|(id, _)| *id),
            Self::Linearizable | Self::Stale => None,
        }
    }

    /// What it asks of one partition.
    #[must_use]
    pub fn at(&self, partition: PartitionId) -> ReadAt {
        match self {
            Self::Linearizable => ReadAt::Linearizable,
            Self::Session(positions) => {
                ReadAt::Session(positions.0.get(&partition).cloned().unwrap_or_default())
            }
            Self::Stale => ReadAt::Stale,
        }
    }
}

#[cfg(test)]
mod tests {
    use engram_core::types::{ActorId, OverlayDot};

    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        let mut positions = Positions::written(PartitionId(3), Sequence(9));
        let dot = OverlayDot {
            actor: ActorId([7; 16]),
            n: 4,
        };
        let overlay = OverlayContext::from_parts([], [dot]);
        positions.note(
            PartitionId(3),
            &EdgeContext {
                sequence: Sequence(2),
                overlay,
            },
        );
        positions.note(PartitionId(4), &EdgeContext::default());
        let back = Positions::from_token(Some(positions.token())).unwrap();
        assert_eq!(back, positions);
        let Freshness::Session(held) = Freshness::of(2, Some(positions.token())).unwrap() else {
            panic!("consistency 2 is session");
        };
        let held = Freshness::Session(held);
        assert_eq!(held.newest_partition(), Some(PartitionId(4)));
        assert_eq!(held.at(PartitionId(3)), {
            let overlay = OverlayContext::from_parts([], [dot]);
            ReadAt::Session(EdgeContext {
                sequence: Sequence(9),
                overlay,
            })
        });
    }

    #[test]
    fn damaged_tokens_are_refused() {
        let overlay = bytes::Bytes::from_static(&[0xff, 0xff]);
        let position = PartitionPosition {
            partition: 1,
            sequence: 1,
            overlay,
        };
        let token = SessionToken {
            positions: vec![position],
        };
        assert!(Positions::from_token(Some(token)).is_err());
        assert!(Freshness::of(99, None).is_err());
    }
}
