//! A whole node: puts the parts together, starts and stops them.

pub mod identity;
pub mod logging;
pub mod ports;
