//! The Engram server.
