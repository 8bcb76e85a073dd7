//! Every bound of the engine, with its unit. Servers may configure lower ones, never higher.

/// Longest memory id, in bytes of UTF-8.
pub const MEMORY_ID_BYTES_MAX: usize = 512;
/// Longest relation name, in bytes of UTF-8.
pub const RELATION_BYTES_MAX: usize = 128;
/// Longest space name, in bytes of UTF-8.
pub const SPACE_NAME_BYTES_MAX: usize = 128;
/// Longest content of one memory, in bytes.
pub const CONTENT_BYTES_MAX: usize = 1 << 20;
/// Labels on one memory.
pub const LABELS_MAX: usize = 64;
/// Longest label, in bytes of UTF-8.
pub const LABEL_BYTES_MAX: usize = 256;
/// Properties on one memory.
pub const PROPERTIES_MAX: usize = 256;
/// All property keys and values of one memory, in bytes.
pub const PROPERTIES_BYTES_MAX: usize = 256 << 10;
/// Smallest and greatest dimension of a space's embeddings.
pub const DIMENSION_MIN: u32 = 1;
pub const DIMENSION_MAX: u32 = 4096;
/// Out-edges that one `remember` may carry.
pub const EDGES_PER_REMEMBER_MAX: usize = 1024;
/// Operations in one log entry of one partition.
pub const OPS_PER_COMMAND_MAX: usize = 4096;
/// Encoded size of one log entry, in bytes.
pub const COMMAND_BYTES_MAX: usize = 8 << 20;
/// Hash slots of a space; a partition owns a range of them.
pub const HASH_SLOTS: u16 = 16_384;
/// Partitions of one space.
pub const PARTITIONS_MAX: u32 = 256;
/// Replicas of one partition.
pub const REPLICAS_MAX: u32 = 7;
/// Results of one recall.
pub const RECALL_LIMIT_MAX: usize = 1_000;
/// Greatest search effort (`ef`) of one recall.
pub const SEARCH_EFFORT_MAX: usize = 4_096;
/// Hops of one spread.
pub const HOPS_MAX: u32 = 16;
/// Seeds of one spread.
pub const SEEDS_MAX: usize = 1_024;
/// Memories that one spread may activate, in all partitions together, before it ends with an error.
pub const ACTIVATED_MAX: usize = 1_000_000;
/// Distinct memories to which one participant of a spread may send in one hop.
pub const SPREAD_TARGETS_MAX: usize = 4_000_000;
/// Relations that one spread may list, and those it may give factors.
pub const SPREAD_RELATIONS_MAX: usize = 1_024;
/// Encoded size of the start of a spread, and of one of its frames or reports, in bytes.
pub const SPREAD_START_BYTES_MAX: usize = 4 << 20;
pub const SPREAD_FRAME_BYTES_MAX: usize = 256 << 20;
/// Applied request ids remembered per client and partition.
pub const REQUESTS_PER_CLIENT: usize = 1_024;
/// Clients remembered per partition.
pub const CLIENTS_PER_PARTITION: usize = 65_536;
/// Verification marks whose digests a partition keeps.
pub const MARKS_KEPT: usize = 64;
/// Conflicts of edges that a partition keeps for its report.
pub const CONFLICTS_KEPT: u64 = 1_024;
/// Edges that one log entry folds.
pub const EDGES_PER_FOLD_MAX: usize = 1_024;
/// Estimated size of the edge changes that a replica holds beside the log of one partition, in bytes.
pub const OVERLAY_BYTES_MAX: usize = 256 << 20;
/// Longest filter expression, in bytes, and its deepest nesting.
pub const FILTER_BYTES_MAX: usize = 4_096;
pub const FILTER_DEPTH_MAX: usize = 32;

const _: () = assert!(HASH_SLOTS.is_power_of_two());
const _: () = assert!(DIMENSION_MIN <= DIMENSION_MAX);
