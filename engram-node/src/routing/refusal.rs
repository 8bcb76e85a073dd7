//! Why a node did not serve a request that reached it, and its form on the wire.

use engram_core::types::NodeId;
use engram_proto::peer::NotServed;
use engram_proto::peer::not_served::Reason;

use crate::consensus::{BarrierError, ProposeError};

/// A refusal says what the caller may do next; only [`Refusal::Unknown`] leaves the outcome open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it does not lead the partition's group")]
    NotLeader { hint: Option<NodeId> },
    #[error("it holds no replica of the partition")]
    NoReplica,
    #[error("its replica is out of service: {0}")]
    Stopped(String),
    /// Never on the wire: the caller of a read that nobody answered says it to itself.
    #[error("{0}")]
    Silent(String),
    #[error("{0}")]
    Overloaded(String),
    #[error("{0}")]
    Unknown(String),
    #[error("{0}")]
    NoQuorum(String),
    #[error("its replica has not reached the position asked for")]
    Behind,
    /// Asking again is of no use.
    #[error("{0}")]
    Invalid(String),
    #[error("its store failed: {0}")]
    Storage(String),
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::NotLeader { hint, .. } => Self::NotLeader { hint },
            ProposeError::NoReplica { .. } => Self::NoReplica,
            ProposeError::Unknown { .. } => Self::Unknown(text),
            ProposeError::Stopped { .. } => Self::Stopped(text),
            ProposeError::Overloaded { .. } => Self::Overloaded(text),
            ProposeError::TooLarge { .. } => Self::Invalid(text),
        }
    }
}

impl From<BarrierError> for Refusal {
    fn from(error: BarrierError) -> Self {
        let text = error.to_string();
        match error {
            BarrierError::NotLeader { hint, .. } => Self::NotLeader { hint },
            BarrierError::NoReplica { .. } => Self::NoReplica,
            BarrierError::NoQuorum { .. } => Self::NoQuorum(text),
            BarrierError::Stopped { .. } => Self::Stopped(text),
        }
    }
}

impl From<Refusal> for NotServed {
    fn from(refusal: Refusal) -> Self {
        let (reason, leader, detail) = match refusal {
            Refusal::NotLeader { hint } => (Reason::NotLeader, hint, String::new()),
            Refusal::NoReplica => (Reason::NoReplica, None, String::new()),
            Refusal::Stopped(detail) => (Reason::Stopped, None, detail),
            Refusal::Overloaded(detail) => (Reason::Overloaded, None, detail),
            Refusal::Unknown(detail) | Refusal::Silent(detail) => (Reason::Unknown, None, detail),
            Refusal::NoQuorum(detail) => (Reason::NoQuorum, None, detail),
            Refusal::Behind => (Reason::Behind, None, String::new()),
            Refusal::Invalid(detail) => (Reason::Invalid, None, detail),
            Refusal::Storage(detail) => (Reason::Storage, None, detail),
        };
        Self {
            reason: reason.into(),
            leader: leader.map_or(0, |node| node.0),
            detail,
        }
    }
}

impl From<NotServed> for Refusal {
    /// A reason that this version does not know leaves the outcome open.
    fn from(message: NotServed) -> Self {
        let detail = message.detail;
        match Reason::try_from(message.reason) {
            Ok(Reason::NotLeader) => Self::NotLeader {
                hint: (message.leader != 0).then_some(NodeId(message.leader)),
            },
            Ok(Reason::NoReplica) => Self::NoReplica,
            Ok(Reason::Stopped) => Self::Stopped(detail),
            Ok(Reason::Overloaded) => Self::Overloaded(detail),
            Ok(Reason::NoQuorum) => Self::NoQuorum(detail),
            Ok(Reason::Behind) => Self::Behind,
            Ok(Reason::Invalid) => Self::Invalid(detail),
            Ok(Reason::Storage) => Self::Storage(detail),
            Ok(Reason::Unknown | Reason::Unspecified) | Err(_) => Self::Unknown(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_the_wire() {
        let text = || "why".to_owned();
        for refusal in [
            Refusal::NotLeader { hint: None },
            Refusal::NotLeader {
                hint: Some(NodeId(3)),
            },
            Refusal::NoReplica,
            Refusal::Stopped(text()),
            Refusal::Overloaded(text()),
            Refusal::Unknown(text()),
            Refusal::NoQuorum(text()),
            Refusal::Behind,
            Refusal::Invalid(text()),
            Refusal::Storage(text()),
        ] {
            assert_eq!(Refusal::from(NotServed::from(refusal.clone())), refusal);
        }
    }

    #[test]
    fn a_reason_of_a_later_version_leaves_the_outcome_open() {
        let later = NotServed {
            reason: 99,
            leader: 0,
            detail: "new".into(),
        };
        assert_eq!(Refusal::from(later), Refusal::Unknown("new".into()));
    }
}
