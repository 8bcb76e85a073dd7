//! The vocabulary of the engine as types: one newtype for every number that could be confused.

mod dot;
mod edge;
mod fixed;
mod hlc;
mod ids;
mod memory;
mod request;
mod space;

pub use dot::{ActorId, Dot, EdgeContext, OverlayContext, OverlayDot};
pub use edge::{EdgeKey, Relation};
pub use fixed::{OutOfUnit, Unit};
pub use hlc::Hlc;
pub use ids::{
    GroupId, HashSlot, MarkId, MemoryHash, MemoryId, MemoryIdError, NodeId, PartitionId, Sequence,
    SlotRange, SpaceId,
};
pub use memory::{Embedding, EmbeddingError, Memory, MemoryError, PropertyValue, check_parts};
pub use request::{ClientId, RequestId};
pub use space::{Decay, IndexParameters, Metric, Quantization, SpaceConfig, SpaceConfigError};
