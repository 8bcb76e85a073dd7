//! Real partitions through their public interface: replicas that must be equal, layouts that must
//! give one answer.

mod arrays;
mod common;
mod replicas;
#[cfg(feature = "rocksdb")]
mod rocks;
mod spread_layouts;
