//! The command line.

pub mod cert;
pub mod token;
