//! What the services ask of the control plane.

use std::time::Duration;

use async_trait::async_trait;
use engram_core::types::NodeId;

use crate::control::plane::{ControlError, ControlPlane};
use crate::control::{ControlCommand, ControlReply};

/// Executes commands of the control plane, wherever its leader is.
#[async_trait]
pub trait Controls: Send + Sync {
    /// # Errors
    /// When no answer came in time.
    async fn execute(
        &self,
        command: ControlCommand,
        wait: Duration,
    ) -> Result<ControlReply, ControlFailure>;

    /// Who leads the control plane, as far as this node knows.
    fn leader(&self) -> Option<NodeId>;
}

/// Why a control command has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ControlFailure {
    /// The command may yet be applied.
    pub unknown: bool,
    pub leader: Option<NodeId>,
    pub reason: String,
}

#[async_trait]
impl Controls for ControlPlane {
    async fn execute(
        &self,
        command: ControlCommand,
        wait: Duration,
    ) -> Result<ControlReply, ControlFailure> {
        Self::execute(self, command, wait)
            .await
            .map_err(|error| ControlFailure {
                unknown: matches!(error, ControlError::Unknown { .. }),
                leader: Self::leader(self),
                reason: error.to_string(),
            })
    }

    fn leader(&self) -> Option<NodeId> {
        Self::leader(self)
    }
}
