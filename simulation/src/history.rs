//! What clients asked for and what they were told: the only thing that the checkers of answers
//! believe.
//!
//! Every operation is recorded when it is invoked and again when its answer arrives, in the order
//! in which both really happened (one thread runs the whole cluster, so there is one order). An
//! operation that never got an answer, or whose answer does not say, stays of unknown outcome for
//! ever: it may have happened, at any moment after its invocation, or never.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// A simulated client, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientNumber(pub u32);

/// A place in the one order of all invocations and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

/// How fresh a read asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Linearizable,
    Session,
    Stale,
}

/// An association by the names of its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeName {
    pub from: String,
    pub to: String,
    pub relation: String,
}

/// Condition of a compare-and-set, and the value that the client believes it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// 0: there must be none.
    pub version: u64,
    /// What the client read under that version; `None` for absent.
    pub value: Option<String>,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Values are unique within a run, so that a read names the write that it saw.
    Remember {
        id: String,
        value: String,
        embedding: Vec<f32>,
        expected: Option<Expected>,
        /// Out-edges that travel with it, each with its confidence in units of 2^-32.
        edges: Vec<(EdgeName, u64)>,
    },
    Get {
        id: String,
        level: Level,
    },
    Forget {
        id: String,
    },
    /// Adds evidence: weight and confidence in units of 2^-32.
    Contribute {
        edge: EdgeName,
        weight: u64,
        confidence: u64,
        local: bool,
    },
    Dissociate {
        edge: EdgeName,
        local: bool,
    },
    Neighbors {
        id: String,
        level: Level,
    },
    Recall {
        vector: Vec<f32>,
        limit: usize,
        level: Level,
    },
    Spread {
        seeds: Vec<String>,
        hops: u32,
        level: Level,
        /// `async`, which rounds more often than `exact`.
        pushes: bool,
    },
    CreateSpace,
    DropSpace,
    DescribeSpace,
}

impl Op {
    /// For counting.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Remember {
                expected: Some(_), ..
            } => "compare-and-set",
            Self::Remember { .. } => "remember",
            Self::Get { .. } => "get",
            Self::Forget { .. } => "forget",
            Self::Contribute { .. } => "contribute",
            Self::Dissociate { .. } => "dissociate",
            Self::Neighbors { .. } => "neighbors",
            Self::Recall { .. } => "recall",
            Self::Spread { .. } => "spread",
            Self::CreateSpace => "create-space",
            Self::DropSpace => "drop-space",
            Self::DescribeSpace => "describe-space",
        }
    }

    /// Whether it changes nothing, so that an unknown outcome says nothing.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::Get { .. }
                | Self::Neighbors { .. }
                | Self::Recall { .. }
                | Self::Spread { .. }
                | Self::DescribeSpace
        )
    }
}

/// Positions in the logs of partitions that an answer rests on.
pub type Positions = BTreeMap<u64, u64>;

/// An edge as an answer shows it; numbers in units of 2^-32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSeen {
    pub edge: EdgeName,
    pub weight: u64,
    pub evidence: u64,
}

/// A positive answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Written {
        version: u64,
    },
    /// Version and value; `None` when there is no such memory.
    Got(Option<(u64, String)>),
    Forgotten {
        existed: bool,
    },
    EdgeChanged {
        /// On a majority, and not only on the replica that accepted it.
        majority: bool,
    },
    Edges {
        edges: Vec<EdgeSeen>,
        truncated: bool,
    },
    /// Nearest first: id and score.
    Recalled(Vec<(String, f64)>),
    /// Most activated first: id and activation; and whether anything was lost on the way.
    Spread {
        activated: Vec<(String, u64)>,
        total: u64,
        missing_seeds: Vec<String>,
        complete: bool,
        /// How much it says that it lacks at most.
        bound: Option<SpreadBound>,
    },
    Space {
        id: u64,
    },
    /// What a node had heard of a space, without a majority's word for it.
    Hearsay {
        id: u64,
    },
    Dropped,
}

/// How much the totals of a spread lack at most, in units of 2^-32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpreadBound {
    pub all: f64,
    /// Any one memory.
    pub each: f64,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Acked {
        answer: Answer,
        positions: Positions,
    },
    /// It certainly changed nothing; the error's code.
    Refused(String),
    /// It may have happened, or may yet happen; the error's code, or empty without any answer.
    Unknown(String),
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub client: ClientNumber,
    pub space: String,
    pub op: Op,
    pub invoked: Stamp,
    pub invoked_at: Duration,
    /// Later than everything when there was no answer.
    pub completed: Stamp,
    pub completed_at: Duration,
    pub outcome: Outcome,
}

impl Record {
    /// The answer, when there was a positive one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Acked { answer, .. } => Some(answer),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        }
    }

    #[must_use]
    pub fn positions(&self) -> Option<&Positions> {
        match &self.outcome {
            Outcome::Acked { positions, .. } => Some(positions),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        }
    }

    /// Whether it may have changed something, at some moment.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        !matches!(self.outcome, Outcome::Refused(_))
    }

    #[must_use]
    pub fn is_acked(&self) -> bool {
        matches!(self.outcome, Outcome::Acked { .. })
    }

    /// Whether this one had its answer before `other` was asked for.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        self.completed < other.invoked
    }

    /// One line, for violations.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "client {} at {:.3} s to {:.3} s, {}: {:?} -> {:?}",
            self.client.0,
            self.invoked_at.as_secs_f64(),
            self.completed_at.as_secs_f64(),
            self.space,
            self.op,
            self.outcome
        )
    }
}

/// All operations of a run, in the order of their invocations. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    next: u64,
}

/// An operation that waits for its answer. When it is dropped without one, the outcome stays
/// unknown.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(usize);

impl History {
    /// Records that a client asks, just before it does.
    pub fn invoke(&self, client: ClientNumber, space: &str, op: Op, at: Duration) -> Ticket {
        let mut inner = self.0.lock();
        let invoked = inner.stamp();
        inner.records.push(Record {
            client,
            space: space.to_owned(),
            op,
            invoked,
            invoked_at: at,
            completed: Stamp(u64::MAX),
            completed_at: Duration::MAX,
            outcome: Outcome::Unknown(String::new()),
        });
        Ticket(inner.records.len() - 1)
    }

    /// Records an answer, just after it arrived.
    ///
    /// # Panics
    /// When the operation had one already.
    pub fn complete(&self, ticket: Ticket, at: Duration, outcome: Outcome) {
        let mut inner = self.0.lock();
        let stamp = inner.stamp();
        let record = &mut inner.records[ticket.0];
        assert!(
            record.completed_at == Duration::MAX,
            "an operation is answered once"
        );
        record.completed_at = at;
        // What may still happen has not ended for those who order operations.
        if !matches!(outcome, Outcome::Unknown(_)) {
            record.completed = stamp;
        }
        record.outcome = outcome;
    }

    /// A copy of all records.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.0.lock().records.clone()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().records.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn stamp(&mut self) -> Stamp {
        self.next += 1;
        Stamp(self.next)
    }
}

/// Builds records by hand, for the tests of checkers.
#[cfg(test)]
pub mod build {
    use super::*;

    /// `positions` names partition 1.
    pub fn acked(
        client: u32,
        (invoked, completed): (u64, u64),
        op: Op,
        answer: Answer,
        sequence: u64,
    ) -> Record {
        record(
            client,
            (invoked, completed),
            op,
            Outcome::Acked {
                answer,
                positions: Positions::from([(1, sequence)]),
            },
        )
    }

    pub fn unknown(client: u32, invoked: u64, op: Op) -> Record {
        record(
            client,
            (invoked, u64::MAX),
            op,
            Outcome::Unknown("LOST".into()),
        )
    }

    pub fn record(
        client: u32,
        (invoked, completed): (u64, u64),
        op: Op,
        outcome: Outcome,
    ) -> Record {
        Record {
            client: ClientNumber(client),
            space: "s".into(),
            op,
            invoked: Stamp(invoked),
            invoked_at: Duration::from_millis(invoked),
            completed: Stamp(completed),
            completed_at: Duration::from_millis(completed),
            outcome,
        }
    }

    pub fn write(id: &str, value: &str) -> Op {
        Op::Remember {
            id: id.into(),
            value: value.into(),
            embedding: Vec::new(),
            expected: None,
            edges: Vec::new(),
        }
    }

    pub fn swap(id: &str, value: &str, version: u64, expected: Option<&str>) -> Op {
        Op::Remember {
            id: id.into(),
            value: value.into(),
            embedding: Vec::new(),
            expected: Some(Expected {
                version,
                value: expected.map(str::to_owned),
            }),
            edges: Vec::new(),
        }
    }

    pub fn get(id: &str, level: Level) -> Op {
        Op::Get {
            id: id.into(),
            level,
        }
    }

    pub fn got(version: u64, value: &str) -> Answer {
        Answer::Got(Some((version, value.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_without_an_answer_stays_unknown_for_ever() {
        let history = History::default();
        let client = ClientNumber(0);
        let at = Duration::from_millis;
        let first = history.invoke(client, "s", build::write("a", "1"), at(1));
        let second = history.invoke(client, "s", build::get("a", Level::Stale), at(2));
        history.complete(second, at(3), Outcome::Refused("X".into()));
        history.complete(first, at(4), Outcome::Unknown("TIMEOUT".into()));
        let records = history.records();
        assert_eq!(records[0].completed, Stamp(u64::MAX));
        assert!(records[0].may_have_happened() && !records[1].may_have_happened());
        assert!(!records[0].is_before(&records[1]));
        assert!(records[1].invoked < records[1].completed);
    }
}
