//! How commands end: exit codes, and messages that say what to try next.

use std::fmt;

use engram_client::{Error, ErrorKind, Outcome};

use super::bulk::load::LoadError;

/// Exit codes; stable, since scripts branch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    /// The answer is no: replicas differ, the memory is not there.
    Negative = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Nobody answered, or it is unknown whether the change was applied.
    Unavailable = 3,
    /// The cluster refused: invalid, already there, not there, not allowed.
    Refused = 4,
}

/// Shown by `engram help exit-codes`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; the answer is yes
  1  done; the answer is no (verify found a difference, get found no such memory)
  2  the command line is wrong; nothing was sent
  3  no node could answer in time, or it is unknown whether the change was applied
  4  refused: invalid, already there, not there, or not allowed; nothing was changed";

/// A command that did not get its answer.
#[derive(Clone, Debug)]
pub struct Failure {
    pub exit: Exit,
    pub code: String,
    pub message: String,
    pub outcome: Option<Outcome>,
    /// The command or step to try next.
    pub next: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>, next: impl Into<String>) -> Self {
        let code = match exit {
            Exit::Usage => "USAGE",
            Exit::Unavailable => "UNAVAILABLE",
            Exit::Ok | Exit::Negative | Exit::Refused => "REFUSED",
        };
        Self {
            exit,
            code: code.to_owned(),
            message: message.into(),
            outcome: None,
            next: next.into(),
        }
    }

    pub fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message, next)
    }

    /// For scripts that asked for JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "error": {
            "code": self.code,
            "message": self.message,
            "outcome": self.outcome.map(|outcome| outcome.to_string()),
            "next": self.next,
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if self.outcome == Some(Outcome::Unknown) {
            f.write_str("\n  It is unknown whether the change was applied.")?;
        }
        if !self.next.is_empty() {
            write!(f, "\n  try: {}", self.next)?;
        }
        Ok(())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let next = if error.hint.is_empty() {
            next_step(&error)
        } else {
            error.hint.clone()
        };
        Self {
            exit: exit_of(&error),
            message: format!("{} ({})", error.message, error.code),
            code: error.code,
            outcome: Some(error.outcome),
            next,
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let message = error.to_string();
        match error {
            LoadError::Client { error } => {
                let mut failure = Self::from(error);
                if failure.outcome == Some(Outcome::Unknown) {
                    failure.next = "engram cluster status; then import again (memories are \
                        replaced by the same ones, associations would be counted again)"
                        .to_owned();
                }
                failure
            }
            LoadError::Stopped { .. } => Self::new(
                Exit::Refused,
                message,
                "mend the line, or import with --on-error skip",
            ),
            LoadError::Io { .. }
            | LoadError::Npy { .. }
            | LoadError::RowCount { .. }
            | LoadError::Dimension { .. } => Self::usage(message, "engram help import"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::usage(error.to_string(), "")
    }
}

fn exit_of(error: &Error) -> Exit {
    if error.outcome == Outcome::Unknown {
        return Exit::Unavailable;
    }
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::Internal => {
            Exit::Unavailable
        }
        ErrorKind::Exhausted if error.retryable => Exit::Unavailable,
        _ if matches!(
            error.code.as_str(),
            "NO_ENDPOINT" | "BAD_ENDPOINT" | "BAD_TOKEN"
        ) =>
        {
            Exit::Usage
        }
        _ => Exit::Refused,
    }
}

fn next_step(error: &Error) -> String {
    let next = match error.kind {
        ErrorKind::Unavailable => "engram cluster status, or name another node with --endpoint",
        ErrorKind::DeadlineExceeded => "a longer --deadline, or engram cluster partitions",
        ErrorKind::NotFound => "engram space list",
        ErrorKind::AlreadyExists => "engram space describe NAME",
        ErrorKind::Unauthenticated => "--token or --token-file (engram token create makes one)",
        ErrorKind::PermissionDenied => "a token with more rights",
        ErrorKind::Conflict => "read it again (engram get) and repeat with its version",
        ErrorKind::Unsupported => "engram cluster nodes, to compare versions",
        ErrorKind::Exhausted => "the same again later, or with less",
        ErrorKind::Invalid => "the same command with --help",
        _ => "engram cluster status",
    };
    next.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind, outcome: Outcome) -> Error {
        Error {
            kind,
            code: "X".into(),
            message: "x".into(),
            outcome,
            retryable: false,
            hint: String::new(),
            leader_hint: None,
        }
    }

    #[test]
    fn an_unknown_outcome_is_never_called_refused() {
        for kind in [ErrorKind::Invalid, ErrorKind::Conflict, ErrorKind::Internal] {
            assert_eq!(exit_of(&error(kind, Outcome::Unknown)), Exit::Unavailable);
        }
        assert_eq!(
            exit_of(&error(ErrorKind::NotFound, Outcome::NotApplied)),
            Exit::Refused
        );
        assert_eq!(
            exit_of(&error(ErrorKind::Unavailable, Outcome::NotApplied)),
            Exit::Unavailable
        );
    }

    #[test]
    fn every_error_says_what_to_try_next() {
        for kind in [
            ErrorKind::Unavailable,
            ErrorKind::NotFound,
            ErrorKind::Invalid,
        ] {
            let failure = Failure::from(error(kind, Outcome::NotApplied));
            assert!(failure.to_string().contains("\n  try: "), "{failure}");
        }
    }
}
