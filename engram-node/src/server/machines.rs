//! Which state machine each Raft group runs.

use std::sync::Arc;

use engram_core::storage::Batch;
use engram_core::types::GroupId;

use crate::consensus::{Machine, MachineError, MachineFactory};
use crate::control::ControlMachine;

/// The control plane's machine for the control group, `data`'s for all others.
pub struct Machines {
    pub control: Arc<ControlMachine>,
    pub data: Arc<dyn MachineFactory>,
}

impl MachineFactory for Machines {
    fn open(&self, group: GroupId) -> Result<Arc<dyn Machine>, MachineError> {
        if group == GroupId::CONTROL {
            return Ok(Arc::clone(&self.control) as Arc<dyn Machine>);
        }
        self.data.open(group)
    }

    fn destroy(&self, group: GroupId, batch: Batch) -> Result<(), MachineError> {
        // A node leaves the control group only together with its data directory: its replica can
        // but begin anew.
        if group == GroupId::CONTROL {
            return self.control.begin_anew(batch);
        }
        self.data.destroy(group, batch)
    }
}
