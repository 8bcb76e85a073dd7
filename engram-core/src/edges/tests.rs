//! The laws of edges, and an operation-log oracle.
