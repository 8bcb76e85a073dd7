//! A session: what this client has read or written, so that it reads its own writes anywhere.

use std::collections::BTreeMap;

use engram_core::planted;
use engram_core::types::{ActorId, OverlayContext, OverlayDot};
use engram_proto::{log, v1};
use parking_lot::Mutex;
use prost::Message as _;

/// The merged tokens of all answers.
#[derive(Default)]
pub(crate) struct Session(Mutex<BTreeMap<u64, Position>>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Position {
    sequence: u64,
    overlay: OverlayContext,
}

impl Session {
    /// Takes an answer's token in. A part that cannot be read is left out: it was made by a newer
    /// server, and what is left still holds.
    pub(crate) fn merge(&self, token: &v1::SessionToken) {
        let mut positions = self.0.lock();
        for seen in &token.positions {
            let position = positions.entry(seen.partition).or_default();
            position.sequence = match planted!("session-takes-the-last") {
                true => seen.sequence,
                false => position.sequence.max(seen.sequence),
            };
            if let Ok(context) = log::OverlayContext::decode(seen.overlay.clone()) {
                position.overlay.join(&from_wire(&context));
            }
        }
    }

    pub(crate) fn token(&self) -> v1::SessionToken {
        let positions = self.0.lock();
        let wire = positions
            .iter()
            .map(|(partition, position)| v1::PartitionPosition {
                partition: *partition,
                sequence: position.sequence,
                overlay: to_wire(&position.overlay).encode_to_vec().into(),
            });
        v1::SessionToken {
            positions: wire.collect(),
        }
    }
}

fn from_wire(context: &log::OverlayContext) -> OverlayContext {
    let dots = |wire: &[log::OverlayDot]| -> Vec<OverlayDot> {
        let known = wire.iter().filter_map(|dot| {
            let actor = <[u8; 16]>::try_from(dot.actor.as_ref()).ok()?;
            Some(OverlayDot {
                actor: ActorId(actor),
                n: dot.n,
            })
        });
        known.collect()
    };
    let floors = dots(&context.floors)
        .into_iter()
        .map(|dot| (dot.actor, dot.n));
    OverlayContext::from_parts(floors, dots(&context.above))
}

fn to_wire(context: &OverlayContext) -> log::OverlayContext {
    let dot = |actor: ActorId, n| log::OverlayDot {
        actor: bytes::Bytes::copy_from_slice(&actor.0),
        n,
    };
    let (floors, above) = context.parts();
    log::OverlayContext {
        floors: floors.map(|(actor, n)| dot(actor, n)).collect(),
        above: above.map(|single| dot(single.actor, single.n)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(partition: u64, sequence: u64, dots: &[u64]) -> v1::SessionToken {
        let above = dots.iter().map(|n| OverlayDot {
            actor: ActorId([1; 16]),
            n: *n,
        });
        let overlay = to_wire(&OverlayContext::from_parts([], above))
            .encode_to_vec()
            .into();
        v1::SessionToken {
            positions: vec![v1::PartitionPosition {
                partition,
                sequence,
                overlay,
            }],
        }
    }

    #[test]
    fn tokens_merge_in_any_order() {
        let tokens = [token(1, 5, &[1]), token(2, 9, &[]), token(1, 3, &[2, 4])];
        let forward = Session::default();
        tokens.iter().for_each(|token| forward.merge(token));
        let backward = Session::default();
        tokens.iter().rev().for_each(|token| backward.merge(token));
        assert_eq!(forward.token(), backward.token());
        let positions = forward.token().positions;
        assert_eq!((positions[0].sequence, positions[1].sequence), (5, 9));
        assert_eq!(
            positions[0].overlay,
            token(1, 0, &[1, 2, 4]).positions[0].overlay
        );
    }

    #[test]
    fn an_unreadable_overlay_is_left_out() {
        let session = Session::default();
        session.merge(&v1::SessionToken {
            positions: vec![v1::PartitionPosition {
                partition: 1,
                sequence: 4,
                overlay: bytes::Bytes::from_static(&[0xff; 3]),
            }],
        });
        assert_eq!(session.token().positions[0].sequence, 4);
    }
}
