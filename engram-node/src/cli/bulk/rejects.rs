//! The report of lines that were not imported.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A line that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reject {
    pub file: String,
    pub line: u64,
    pub code: String,
    pub reason: String,
    /// The line as it was, so that it can be mended and imported; empty when it is no text.
    pub record: String,
}

/// Writes rejected lines to a file that is made when the first one comes.
#[derive(Debug)]
pub struct Rejects {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    count: u64,
    first: Option<Reject>,
}

impl Rejects {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            count: 0,
            first: None,
        }
    }

    /// # Errors
    /// When the report cannot be written.
    pub fn add(&mut self, reject: Reject) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(File::create(&self.path)?)),
        };
        serde_json::to_writer(&mut *file, &reject)?;
        file.write_all(b"\n")?;
        self.count += 1;
        self.first.get_or_insert(reject);
        Ok(())
    }

    /// # Errors
    /// When the report cannot be written.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn first(&self) -> Option<&Reject> {
        self.first.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_exists_only_when_something_was_rejected() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("rejected.jsonl");
        let mut rejects = Rejects::new(path.clone());
        rejects.flush().expect("nothing to write");
        assert!(!path.exists());
        let reject = |line| Reject {
            file: "m.jsonl".into(),
            line,
            code: "MALFORMED_LINE".into(),
            reason: "expected value".into(),
            record: "{\"id\":".into(),
        };
        rejects.add(reject(3)).expect("writable");
        rejects.add(reject(7)).expect("writable");
        rejects.flush().expect("writable");
        let text = std::fs::read_to_string(&path).expect("written");
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with(r#"{"file":"m.jsonl","line":3,"#), "{text}");
        assert_eq!(
            (rejects.count(), rejects.first().map(|first| first.line)),
            (2, Some(3))
        );
    }
}
