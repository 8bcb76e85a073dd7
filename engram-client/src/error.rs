//! What can go wrong, in a form that a program can act on.
//!
//! A failed call carries an `ErrorDetail` in its status details; a status without one did not come
//! from Engram's services (the connection broke, a proxy answered) and is judged by its gRPC code.

use std::fmt;

use engram_proto::v1;
use prost::Message as _;
use tonic::{Code, Status};

/// Whether the mutation may have happened. Reads are always `NotApplied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    NotApplied,
    /// It may have happened or may yet happen. Repeating the same request is safe; a new request
    /// may apply a second time.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Applied => "applied",
            Self::NotApplied => "not applied",
            Self::Unknown => "unknown",
        })
    }
}

/// What sort of failure it is: enough to choose a reaction. [`Error::code`] names the exact one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong; repeating it cannot help.
    Invalid,
    NotFound,
    AlreadyExists,
    /// The state is not what the request expected, for example another version.
    Conflict,
    /// A bound was hit: too large, too many, too busy.
    Exhausted,
    Unauthenticated,
    PermissionDenied,
    /// No node that could serve it was reached, or none is able to at present.
    Unavailable,
    DeadlineExceeded,
    Unsupported,
    /// A defect of the server, or damaged data.
    Internal,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    /// Stable name, for example `WRONG_DIMENSION`.
    pub code: String,
    pub message: String,
    pub outcome: Outcome,
    /// Whether the same call may succeed later. The client has already retried within its deadline.
    pub retryable: bool,
    /// The command or step to try next; empty when there is none.
    pub hint: String,
    /// Client address of the node to ask instead, when the server named one.
    pub leader_hint: Option<String>,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.code)?;
        if self.outcome == Outcome::Unknown {
            f.write_str("; it is unknown whether the change was applied")?;
        }
        f.write_str(")")
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: code.to_owned(),
            message: message.into(),
            outcome: Outcome::NotApplied,
            retryable: false,
            hint: String::new(),
            leader_hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The call's deadline passed before there was an answer.
    pub(crate) fn timed_out(what: &str, limit: std::time::Duration) -> Self {
        let message = format!("{what} gave no answer within {limit:?}");
        let mut error = Self::new(ErrorKind::DeadlineExceeded, "DEADLINE_EXCEEDED", message);
        error.outcome = Outcome::Unknown;
        error.retryable = true;
        error
    }

    /// An answer that breaks the protocol.
    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, "PROTOCOL", message)
    }

    /// `address` is the node that answered, or did not.
    pub(crate) fn from_status(status: &Status, address: &str) -> Self {
        match v1::ErrorDetail::decode(status.details()) {
            Ok(detail) if !detail.code.is_empty() => Self::from_detail(status, detail),
            _ => Self::from_bare(status, address),
        }
    }

    fn from_detail(status: &Status, detail: v1::ErrorDetail) -> Self {
        use v1::error_detail::Outcome as Wire;
        let outcome = match detail.outcome() {
            Wire::Applied => Outcome::Applied,
            Wire::NotApplied => Outcome::NotApplied,
            // An unnamed outcome promises nothing.
            Wire::Unknown | Wire::Unspecified => Outcome::Unknown,
        };
        Self {
            kind: kind_of(status.code()),
            code: detail.code,
            message: status.message().to_owned(),
            outcome,
            retryable: detail.retryable,
            hint: detail.hint,
            leader_hint: (!detail.leader_hint.is_empty()).then_some(detail.leader_hint),
        }
    }

    fn from_bare(status: &Status, address: &str) -> Self {
        let broken = is_connection_failure(status.code());
        let refused = connection_refused(status);
        let kind = if broken {
            ErrorKind::Unavailable
        } else {
            kind_of(status.code())
        };
        let (code, message) = match (refused, broken) {
            (true, _) => (
                "CONNECTION_REFUSED",
                format!("nothing listens at {address}"),
            ),
            (_, true) => ("CONNECTION", format!("{address}: {}", causes(status))),
            _ if status.message().is_empty() => (
                bare_code(status.code()),
                format!("{address}: {}", status.code().description()),
            ),
            _ => (bare_code(status.code()), status.message().to_owned()),
        };
        let mut error = Self::new(kind, code, message);
        error.retryable = broken;
        if broken && !refused {
            error.outcome = Outcome::Unknown;
        }
        if broken {
            error.hint = "engram cluster status --endpoint HOST:PORT".to_owned();
        }
        error
    }

    /// Whether the connection, and not the service behind it, failed.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self.code.as_str(), "CONNECTION" | "CONNECTION_REFUSED")
    }
}

/// Codes that tonic and proxies use when a connection breaks or cannot be made.
fn is_connection_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
    )
}

fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::Invalid,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::FailedPrecondition | Code::Aborted => ErrorKind::Conflict,
        Code::ResourceExhausted => ErrorKind::Exhausted,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::Unavailable | Code::Cancelled => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => ErrorKind::Internal,
    }
}

fn bare_code(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::OutOfRange => "MESSAGE_TOO_LARGE",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::DataLoss => "DATA_LOSS",
        Code::Ok
        | Code::Unknown
        | Code::Internal
        | Code::Unavailable
        | Code::Cancelled
        | Code::Aborted => "CONNECTION",
    }
}

/// Whether no connection was made at all, so that nothing can have been sent.
fn connection_refused(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// The message and its causes, each said once.
fn causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !cause.is_empty() && !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_detail(code: Code, detail: &v1::ErrorDetail) -> Status {
        Status::with_details(code, "no such space", detail.encode_to_vec().into())
    }

    #[test]
    fn details_of_the_service_are_decoded() {
        let status = with_detail(
            Code::Unavailable,
            &v1::ErrorDetail {
                code: "NOT_PRIMARY".into(),
                outcome: v1::error_detail::Outcome::NotApplied.into(),
                retryable: true,
                leader_hint: "127.0.0.1:7500".into(),
                hint: "engram cluster partitions".into(),
            },
        );
        let error = Error::from_status(&status, "n1");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert_eq!(error.code, "NOT_PRIMARY");
        assert_eq!(error.outcome, Outcome::NotApplied);
        assert!(error.retryable && !error.is_connection());
        assert_eq!(error.leader_hint.as_deref(), Some("127.0.0.1:7500"));
        assert_eq!(error.hint, "engram cluster partitions");
    }

    #[test]
    fn an_unnamed_outcome_promises_nothing() {
        let detail = v1::ErrorDetail {
            code: "X".into(),
            ..Default::default()
        };
        let error = Error::from_status(&with_detail(Code::Internal, &detail), "n1");
        assert_eq!(error.outcome, Outcome::Unknown);
        assert!(!error.retryable);
    }

    #[test]
    fn a_broken_connection_is_retryable_and_its_outcome_unknown() {
        let error = Error::from_status(&Status::unknown("transport error"), "n1:7400");
        assert!(error.is_connection() && error.retryable);
        assert_eq!(error.outcome, Outcome::Unknown);
        assert!(error.message.contains("n1:7400"));
    }

    #[test]
    fn a_refused_connection_changed_nothing() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = Error::from_status(&Status::from_error(Box::new(io)), "n1:7400");
        assert_eq!(error.code, "CONNECTION_REFUSED");
        assert_eq!(error.outcome, Outcome::NotApplied);
        assert!(error.retryable);
    }

    #[test]
    fn a_bare_refusal_is_final() {
        let error = Error::from_status(&Status::unauthenticated("no token"), "n1");
        assert_eq!(error.kind, ErrorKind::Unauthenticated);
        assert!(!error.retryable);
        assert_eq!(error.outcome, Outcome::NotApplied);
    }
}
