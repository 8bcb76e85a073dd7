//! The Rust client of Engram.
//!
//! ```no_run
//! # async fn example() -> Result<(), engram_client::Error> {
//! use engram_client::{Client, types::Memory};
//!
//! let client = Client::builder().endpoint("127.0.0.1:7400").connect().await?;
//! let notes = client.space("notes");
//! let written = notes
//!     .remember(Memory { content: "tea at four".into(), embedding: vec![0.1; 384], ..Memory::default() })
//!     .await?;
//! let found = notes.get(&written.id).await?;
//! # drop(found); Ok(()) }
//! ```
//!
//! What it does for a caller: every call has a deadline; failed attempts are repeated within it when
//! that is safe (mutations carry a request id, so a repeat applies once); single-memory requests go
//! straight to the primary of their partition; several endpoints stand in for each other.
//! Requests and answers are the messages of the `engram.v1` API ([`types`]); the fields `space`,
//! `request` and `token` are filled in here. Needs a tokio runtime.

mod builder;
mod call;
mod client;
mod error;
mod import;
mod machine;
mod memories;
mod placement;
mod pool;
mod requests;
mod retry;
mod routing;
mod session;
mod streams;

pub use builder::{ClientBuilder, TlsOptions};
pub use client::Client;
pub use error::{Error, ErrorKind, Outcome};
pub use import::{BatchReport, Importer};
pub use machine::{Connecting, Connection, Machine};
pub use memories::SpaceClient;
pub use streams::{BackUpStream, ExportStream, SpreadAnswer, SpreadStream};

/// The messages of the `engram.v1` API.
pub mod types {
    pub use engram_proto::v1::*;
}

/// Largest message that the client accepts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
