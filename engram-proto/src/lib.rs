//! Engram's protocol buffers: generated code, and the conversions to and from core types.
//!
//! The `.proto` files under `proto/` are the source. `engram.v1` is the public API, `engram.log.v1`
//! the bytes of log entries. What must hold: decoding never loses a part that it does not know
//! (an unknown command is an error, not an empty one), and encode then decode is the identity.

#![allow(
    clippy::large_enum_variant,
    clippy::doc_markdown,
    unused_qualifications
)]

/// The public API.
pub mod v1 {
    tonic::include_proto!("engram.v1");
}

/// Log entries.
pub mod log {
    tonic::include_proto!("engram.log.v1");
}

/// All files, encoded as a `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/engram.bin"));
