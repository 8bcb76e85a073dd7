//! How near given memories are to a vector: what a recall says of those that it finds, for memories
//! that were found in another way. Read from the records, with the kernel of the index, so that
//! both give the same bits.

use super::view::{FoundMemory, PartitionView, ReadError};
use crate::kernel::{Kernel, Row};
use crate::types::{Memory, MemoryId, Metric};

/// A memory and how far it is from the vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub memory: Memory,
    /// Smaller is nearer; `None` without an embedding, or without a vector to compare with.
    pub distance: Option<f32>,
}

impl PartitionView {
    /// Distances of these memories to a vector, in the order of `ids`; an empty vector compares
    /// nothing.
    ///
    /// # Errors
    /// When the vector does not fit the space, or storage cannot be read.
    pub fn compare(
        &self,
        vector: &[f32],
        ids: &[MemoryId],
    ) -> Result<Vec<Option<Compared>>, ReadError> {
        let config = &self.state.config;
        if !vector.is_empty() {
            super::recall::check_vector(vector, config.dimension)?;
        }
        let mut query = Row::new(vector);
        if config.metric == Metric::Cosine {
            // A query without a direction is as far from everything, as in a search.
            let _ = query.normalise();
        }
        let kernel = Kernel::detect();
        let compared = |FoundMemory { memory, embedding }| Compared {
            memory,
            distance: embedding
                .filter(|_| !vector.is_empty())
                .map(|row| kernel.distance(config.metric, &query, &Row::new(&row)).0),
        };
        let found = self.get(ids, !vector.is_empty())?;
        let memories = found.memories.into_iter();
        Ok(memories.map(|found| found.map(compared)).collect())
    }
}
