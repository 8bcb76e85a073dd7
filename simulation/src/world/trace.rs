//! What happened in a world, as a hash: equal for equal seeds, or something is not deterministic.
//!
//! Every delivery, disk write, fault, start and end is an event: one line of text that goes into the
//! hash, and, when asked for, into a file, so that two runs can be compared line by line.

use std::fmt::{Arguments, Write as _};
use std::io::Write;
use std::time::Duration;

/// All events of a world, in their order.
pub struct Trace {
    hash: blake3::Hasher,
    events: u64,
    line: String,
    copy: Option<Box<dyn Write + Send>>,
}

impl Trace {
    pub fn new() -> Self {
        Self {
            hash: blake3::Hasher::new(),
            events: 0,
            line: String::new(),
            copy: None,
        }
    }

    /// Also writes every event to `copy` from now on.
    pub fn copy_to(&mut self, copy: Box<dyn Write + Send>) {
        self.copy = Some(copy);
    }

    pub fn event(&mut self, at: Duration, what: Arguments<'_>) {
        self.line.clear();
        // Writing to a string cannot fail.
        let _ = writeln!(self.line, "{} {what}", at.as_micros());
        self.hash.update(self.line.as_bytes());
        self.events += 1;
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(self.line.as_bytes())
        {
            panic!("the copy of the trace cannot be written: {error}");
        }
    }

    /// Of all events so far, hexadecimal.
    pub fn hash(&self) -> String {
        self.hash.finalize().to_hex().to_string()
    }

    pub fn events(&self) -> u64 {
        self.events
    }
}

/// Stands for content in an event.
pub fn digest(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}
