//! From a [`Failure`] to a gRPC status: the only place that knows codes. The details of the status
//! are an encoded `engram.v1.ErrorDetail`.

use engram_core::command::Rejection;
use engram_core::types::{EmbeddingError, MemoryError, NodeId};
use engram_proto::v1::ErrorDetail;
use engram_proto::v1::error_detail::Outcome;
use prost::Message as _;
use tonic::{Code, Status};

use super::failure::{Failure, InputError, SpreadFailure};
use crate::control::{ClusterMap, ControlRefusal};
use crate::routing::{LocalWriteError, ReadError, WriteError};

/// What a client is told besides the text.
struct Verdict {
    grpc: Code,
    /// Stable.
    code: &'static str,
    outcome: Outcome,
    retryable: bool,
    leader: Option<NodeId>,
    hint: &'static str,
}

/// The status of a failed call. `map` turns the leader into an address.
#[must_use]
pub fn status(failure: &Failure, map: &ClusterMap) -> Status {
    let verdict = judge(failure);
    let leader = verdict.leader.and_then(|node| map.nodes.get(&node));
    let detail = ErrorDetail {
        code: verdict.code.to_owned(),
        outcome: verdict.outcome.into(),
        retryable: verdict.retryable,
        leader_hint: leader
            .map(|node| node.client_address.clone())
            .unwrap_or_default(),
        hint: verdict.hint.to_owned(),
    };
    Status::with_details(
        verdict.grpc,
        failure.to_string(),
        detail.encode_to_vec().into(),
    )
}

/// The stable name of a failure, for rejected items of a batch.
#[must_use]
pub fn code(failure: &Failure) -> &'static str {
    judge(failure).code
}

/// A failure that changed nothing, and for which nobody else is to be asked.
fn refused(grpc: Code, code: &'static str, hint: &'static str) -> Verdict {
    Verdict {
        grpc,
        code,
        outcome: Outcome::NotApplied,
        retryable: false,
        leader: None,
        hint,
    }
}

/// A failure that may pass.
fn passing(grpc: Code, code: &'static str, hint: &'static str) -> Verdict {
    Verdict {
        retryable: true,
        ..refused(grpc, code, hint)
    }
}

const SEE_PARTITIONS: &str = "engram cluster partitions";
const SEE_SPACES: &str = "engram space list";
const SEE_NODES: &str = "engram cluster nodes";

fn judge_local(error: &LocalWriteError) -> Verdict {
    match error {
        LocalWriteError::NotAccepted { open, .. } => Verdict {
            outcome: if *open {
                Outcome::Unknown
            } else {
                Outcome::NotApplied
            },
            ..passing(Code::Unavailable, "NO_REPLICA_REACHED", SEE_PARTITIONS)
        },
        LocalWriteError::Invalid(_) => refused(Code::InvalidArgument, "INVALID_REQUEST", ""),
    }
}

fn judge(failure: &Failure) -> Verdict {
    match failure {
        Failure::Input(input) => judge_input(input),
        Failure::UnknownSpace { .. } => refused(Code::NotFound, "UNKNOWN_SPACE", SEE_SPACES),
        Failure::UnknownMemory { .. } => {
            refused(Code::NotFound, "UNKNOWN_MEMORY", "engram get SPACE ID")
        }
        Failure::NoEmbedding { .. } => refused(
            Code::FailedPrecondition,
            "NO_EMBEDDING",
            "engram recall SPACE --vector-file F",
        ),
        Failure::Write(error) => judge_write(error),
        Failure::NowhereAccepted { majority, local } => {
            let verdict = judge_write(majority);
            match judge_local(local).outcome {
                Outcome::Unknown => Verdict {
                    outcome: Outcome::Unknown,
                    ..verdict
                },
                _ => verdict,
            }
        }
        Failure::LocalWrite(error) => judge_local(error),
        Failure::Read(error) => judge_read(error),
        Failure::Rejected(rejection) => judge_rejection(rejection),
        Failure::Control(error) => Verdict {
            outcome: if error.unknown {
                Outcome::Unknown
            } else {
                Outcome::NotApplied
            },
            leader: error.leader,
            ..passing(
                Code::Unavailable,
                "CONTROL_UNAVAILABLE",
                "engram cluster status",
            )
        },
        Failure::Refused(refusal) => judge_refusal(refusal),
        Failure::Placement(_) => refused(Code::FailedPrecondition, "TOO_FEW_NODES", SEE_NODES),
        Failure::Busy { .. } => passing(
            Code::ResourceExhausted,
            "TOO_MANY_REQUESTS",
            "try again after a pause",
        ),
        Failure::Spread(error) => judge_spread(error),
        Failure::WalkTooLarge { .. } => refused(
            Code::ResourceExhausted,
            "WALK_TOO_LARGE",
            "use fewer hops, fewer relations or a filter",
        ),
        Failure::Internal(_) => passing(Code::Internal, "INTERNAL", SEE_NODES),
    }
}

fn judge_input(input: &InputError) -> Verdict {
    let invalid = |code| refused(Code::InvalidArgument, code, "");
    match input {
        InputError::MemoryId { .. } => invalid("INVALID_MEMORY_ID"),
        InputError::Relation(_) => invalid("INVALID_RELATION"),
        InputError::EdgeTwice { .. } => invalid("EDGE_TWICE"),
        InputError::Unit { .. } | InputError::OutOfRange { .. } => invalid("OUT_OF_RANGE"),
        InputError::Memory(MemoryError::Embedding(error)) | InputError::Embedding(error) => {
            judge_embedding(error)
        }
        InputError::Memory(MemoryError::TooLarge { .. }) | InputError::TooMany { .. } => {
            invalid("TOO_LARGE")
        }
        InputError::Memory(MemoryError::EmptyLabel) => invalid("EMPTY_LABEL"),
        InputError::Memory(MemoryError::PropertyNotFinite { .. }) => invalid("NOT_FINITE"),
        InputError::RequestId(_) => invalid("INVALID_REQUEST_ID"),
        InputError::Missing(_) | InputError::Decode(_) => invalid("INVALID_REQUEST"),
        InputError::Filter(_) => refused(
            Code::InvalidArgument,
            "INVALID_FILTER",
            "the grammar is in docs/protocols/filter.md",
        ),
        InputError::Config(_) => invalid("INVALID_CONFIGURATION"),
        InputError::Spread(_)
        | InputError::NotLinear(_)
        | InputError::CutOff
        | InputError::ReinforcedAsync => invalid("INVALID_SPREAD"),
    }
}

fn judge_embedding(error: &EmbeddingError) -> Verdict {
    let code = match error {
        EmbeddingError::WrongDimension { .. } => "WRONG_DIMENSION",
        EmbeddingError::NotFinite { .. } => "NOT_FINITE",
        EmbeddingError::ZeroVector => "ZERO_VECTOR",
        EmbeddingError::WrongModel { .. } => "WRONG_MODEL",
    };
    refused(Code::InvalidArgument, code, "engram space describe SPACE")
}

fn judge_write(error: &WriteError) -> Verdict {
    match error {
        WriteError::NotApplied { leader, .. } => Verdict {
            leader: *leader,
            ..passing(Code::Unavailable, "NO_PRIMARY", SEE_PARTITIONS)
        },
        WriteError::Unknown { leader, .. } => Verdict {
            outcome: Outcome::Unknown,
            leader: *leader,
            ..passing(
                Code::DeadlineExceeded,
                "OUTCOME_UNKNOWN",
                "repeat the call with the same request id: it applies once",
            )
        },
        WriteError::Overloaded { .. } => passing(
            Code::ResourceExhausted,
            "OVERLOADED",
            "try again after a pause",
        ),
        WriteError::Invalid(_) => refused(Code::InvalidArgument, "INVALID_REQUEST", ""),
        WriteError::Gone { .. } => refused(Code::NotFound, "UNKNOWN_SPACE", SEE_SPACES),
    }
}

fn judge_read(error: &ReadError) -> Verdict {
    match error {
        ReadError::Unavailable { leader, .. } => Verdict {
            leader: *leader,
            ..passing(
                Code::Unavailable,
                "PARTITION_UNAVAILABLE",
                "engram cluster partitions; a read with consistency stale needs one replica only",
            )
        },
        ReadError::Behind { .. } => passing(Code::Unavailable, "REPLICAS_BEHIND", SEE_PARTITIONS),
        ReadError::Invalid(_) => refused(Code::InvalidArgument, "INVALID_REQUEST", ""),
        ReadError::Gone { .. } => refused(Code::NotFound, "UNKNOWN_SPACE", SEE_SPACES),
    }
}

fn judge_rejection(rejection: &Rejection) -> Verdict {
    match rejection {
        Rejection::VersionMismatch { .. } => refused(
            Code::FailedPrecondition,
            "VERSION_MISMATCH",
            "engram get SPACE ID",
        ),
        Rejection::RequestTooOld => Verdict {
            outcome: Outcome::Unknown,
            ..refused(
                Code::FailedPrecondition,
                "REQUEST_TOO_OLD",
                "read before writing again",
            )
        },
        Rejection::NotInPartition => passing(Code::Unavailable, "MOVED", SEE_PARTITIONS),
        Rejection::WrongDimension { .. } => refused(
            Code::InvalidArgument,
            "WRONG_DIMENSION",
            "engram space describe SPACE",
        ),
        Rejection::HashCollision => refused(Code::AlreadyExists, "HASH_COLLISION", ""),
    }
}

fn judge_refusal(refusal: &ControlRefusal) -> Verdict {
    match refusal {
        ControlRefusal::NotInitialized => passing(
            Code::Unavailable,
            "CLUSTER_NOT_FOUNDED",
            "engram cluster status",
        ),
        ControlRefusal::OtherCluster { .. } => refused(
            Code::FailedPrecondition,
            "OTHER_CLUSTER",
            "engram cluster status",
        ),
        ControlRefusal::SpaceExistsDifferent { .. } => refused(
            Code::AlreadyExists,
            "SPACE_EXISTS",
            "engram space describe NAME",
        ),
        ControlRefusal::UnknownSpace { .. } => refused(Code::NotFound, "UNKNOWN_SPACE", SEE_SPACES),
        ControlRefusal::SpaceBeingDropped { .. } => {
            passing(Code::Unavailable, "SPACE_BEING_DROPPED", SEE_PARTITIONS)
        }
        ControlRefusal::InvalidConfig { .. } => {
            refused(Code::InvalidArgument, "INVALID_CONFIGURATION", "")
        }
        ControlRefusal::InvalidPlacement { .. } => {
            passing(Code::Aborted, "PLACEMENT_OUTDATED", SEE_NODES)
        }
        ControlRefusal::InvalidNode { .. } => {
            refused(Code::InvalidArgument, "INVALID_NODE", SEE_NODES)
        }
        ControlRefusal::Limit { .. } => {
            refused(Code::ResourceExhausted, "LIMIT_REACHED", SEE_SPACES)
        }
        ControlRefusal::UnknownNode { .. } => refused(Code::NotFound, "UNKNOWN_NODE", SEE_NODES),
        ControlRefusal::Conflict { .. } => {
            refused(Code::Aborted, "ANOTHER_CHANGE", "engram cluster moves")
        }
        ControlRefusal::NotPossible { .. } => {
            refused(Code::FailedPrecondition, "NOT_POSSIBLE", SEE_PARTITIONS)
        }
    }
}

fn judge_spread(error: &SpreadFailure) -> Verdict {
    match error {
        SpreadFailure::Lost { .. } => {
            passing(Code::Unavailable, "PARTITION_UNAVAILABLE", SEE_PARTITIONS)
        }
        SpreadFailure::TooManyActivated { .. } | SpreadFailure::Exhausted(_) => refused(
            Code::ResourceExhausted,
            "SPREAD_TOO_LARGE",
            "use fewer hops, a threshold or a fan limit",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use engram_core::types::{MemoryIdError, OutOfUnit, PartitionId};

    use super::*;
    use crate::control::NodeRecord;
    use crate::services::controls::ControlFailure;

    const P: PartitionId = PartitionId(7);

    fn detail(failure: &Failure, map: &ClusterMap) -> (Code, ErrorDetail) {
        let status = status(failure, map);
        assert!(!status.message().is_empty());
        (
            status.code(),
            ErrorDetail::decode(status.details()).unwrap(),
        )
    }

    fn cause() -> String {
        "node 2 is silent".to_owned()
    }

    #[test]
    fn each_failure_has_its_code_and_says_what_may_have_happened() {
        use Outcome::{NotApplied, Unknown};
        let id = InputError::MemoryId {
            what: "id",
            why: MemoryIdError::Empty,
        };
        let unit = InputError::Unit {
            what: "weight",
            why: OutOfUnit(2.0),
        };
        let embedding = |error: EmbeddingError| Failure::Input(error.into());
        let unknown = WriteError::Unknown {
            partition: P,
            waited: Duration::from_secs(1),
            cause: cause(),
            leader: None,
        };
        let not_applied = WriteError::NotApplied {
            partition: P,
            cause: cause(),
            leader: None,
        };
        let local = LocalWriteError::NotAccepted {
            partition: P,
            open: false,
            cause: cause(),
        };
        let control = |unknown| ControlFailure {
            unknown,
            leader: None,
            reason: cause(),
        };
        let space = || "s".to_owned();
        let cases: Vec<(Failure, Code, &str, Outcome, bool)> = vec![
            (
                id.into(),
                Code::InvalidArgument,
                "INVALID_MEMORY_ID",
                NotApplied,
                false,
            ),
            (
                unit.into(),
                Code::InvalidArgument,
                "OUT_OF_RANGE",
                NotApplied,
                false,
            ),
            (
                embedding(EmbeddingError::WrongDimension {
                    expected: 3,
                    actual: 2,
                }),
                Code::InvalidArgument,
                "WRONG_DIMENSION",
                NotApplied,
                false,
            ),
            (
                embedding(EmbeddingError::NotFinite {
                    position: 0,
                    value: f32::NAN,
                }),
                Code::InvalidArgument,
                "NOT_FINITE",
                NotApplied,
                false,
            ),
            (
                embedding(EmbeddingError::ZeroVector),
                Code::InvalidArgument,
                "ZERO_VECTOR",
                NotApplied,
                false,
            ),
            (
                Failure::UnknownSpace { name: space() },
                Code::NotFound,
                "UNKNOWN_SPACE",
                NotApplied,
                false,
            ),
            (
                unknown.clone().into(),
                Code::DeadlineExceeded,
                "OUTCOME_UNKNOWN",
                Unknown,
                true,
            ),
            (
                not_applied.into(),
                Code::Unavailable,
                "NO_PRIMARY",
                NotApplied,
                true,
            ),
            (
                Failure::NowhereAccepted {
                    majority: unknown,
                    local,
                },
                Code::DeadlineExceeded,
                "OUTCOME_UNKNOWN",
                Unknown,
                true,
            ),
            (
                Rejection::RequestTooOld.into(),
                Code::FailedPrecondition,
                "REQUEST_TOO_OLD",
                Unknown,
                false,
            ),
            (
                Rejection::VersionMismatch {
                    expected: "1".into(),
                    found: "is absent".into(),
                }
                .into(),
                Code::FailedPrecondition,
                "VERSION_MISMATCH",
                NotApplied,
                false,
            ),
            (
                ControlRefusal::SpaceExistsDifferent { reason: space() }.into(),
                Code::AlreadyExists,
                "SPACE_EXISTS",
                NotApplied,
                false,
            ),
            (
                control(true).into(),
                Code::Unavailable,
                "CONTROL_UNAVAILABLE",
                Unknown,
                true,
            ),
            (
                control(false).into(),
                Code::Unavailable,
                "CONTROL_UNAVAILABLE",
                NotApplied,
                true,
            ),
            (
                Failure::Busy {
                    what: "requests",
                    limit: 1,
                },
                Code::ResourceExhausted,
                "TOO_MANY_REQUESTS",
                NotApplied,
                true,
            ),
            (
                SpreadFailure::TooManyActivated { hop: 2, max: 10 }.into(),
                Code::ResourceExhausted,
                "SPREAD_TOO_LARGE",
                NotApplied,
                false,
            ),
            (
                ReadError::Unavailable {
                    partition: P,
                    cause: cause(),
                    leader: None,
                }
                .into(),
                Code::Unavailable,
                "PARTITION_UNAVAILABLE",
                NotApplied,
                true,
            ),
        ];
        let map = ClusterMap::default();
        for (failure, grpc, code, outcome, retryable) in cases {
            let (found, detail) = detail(&failure, &map);
            assert_eq!(found, grpc, "{failure}");
            assert_eq!(detail.code, code, "{failure}");
            assert_eq!(detail.outcome(), outcome, "{failure}");
            assert_eq!(detail.retryable, retryable, "{failure}");
        }
    }

    #[test]
    fn an_unavailable_partition_is_named_and_its_leader_is_an_address() {
        let mut map = ClusterMap::default();
        let node = NodeRecord {
            id: NodeId(2),
            identity: [0; 16],
            client_address: "10.0.0.2:7400".into(),
            peer_address: String::new(),
            http_address: String::new(),
            zone: String::new(),
            version: String::new(),
            state: crate::control::NodeState::Active,
        };
        map.nodes.insert(node.id, node);
        let error = WriteError::NotApplied {
            partition: P,
            cause: cause(),
            leader: Some(NodeId(2)),
        };
        let failure = Failure::Write(error);
        assert!(failure.to_string().contains("partition 7"));
        let (_, detail) = detail(&failure, &map);
        assert_eq!(detail.leader_hint, "10.0.0.2:7400");
        assert_eq!(detail.hint, SEE_PARTITIONS);
    }
}
