//! stub
use crate::consensus::{Machine, MachineError, MachineFactory};
use crate::seams::Seams;
use engram_core::partition::Partition;
use engram_core::storage::Storage;
use engram_core::types::{GroupId, PartitionId};
use std::path::Path;
use std::sync::Arc;
pub struct Replicas;
impl Replicas {
    pub fn new(_: Seams, _: Arc<dyn Storage>, _: &Path) -> Arc<Self> {
        Arc::new(Self)
    }
    pub fn partition(&self, _: PartitionId) -> Option<Arc<Partition>> {
        None
    }
    pub fn partitions(&self) -> Vec<(GroupId, Arc<Partition>)> {
        Vec::new()
    }
}
impl MachineFactory for Replicas {
    fn open(&self, _: GroupId) -> Result<Arc<dyn Machine>, MachineError> {
        Err(MachineError::Snapshot("stub".into()))
    }
    fn destroy(&self, _: GroupId) -> Result<(), MachineError> {
        Ok(())
    }
}
