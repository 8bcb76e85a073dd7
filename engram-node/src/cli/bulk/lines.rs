//! Lines of a JSONL source, numbered and bounded.

use std::io::{BufRead, Read as _};

/// Longest line that is read, in bytes: content, properties and a textual embedding together.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// A line without its line break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: u64,
    /// What is wrong with the line as such, or its text.
    pub text: Result<String, LineError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("the line is empty")]
    Empty,
    #[error("the line is not UTF-8")]
    NotUtf8,
    #[error("the line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

/// Numbered lines of a source.
pub struct Lines<R> {
    source: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub fn new(source: R) -> Self {
        Self {
            source,
            number: 0,
            buffer: Vec::new(),
        }
    }

    /// The next line; none at the end. A line break at the very end begins no further line.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn next_line(&mut self) -> std::io::Result<Option<Line>> {
        self.buffer.clear();
        let limit = LINE_BYTES_MAX as u64 + 2;
        let read = self
            .source
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let whole = self.buffer.last() == Some(&b'\n');
        if !whole && read as u64 == limit {
            self.skip_rest()?;
            return Ok(Some(Line {
                number: self.number,
                text: Err(LineError::TooLong),
            }));
        }
        let trimmed = self.buffer.trim_ascii();
        let text = match std::str::from_utf8(trimmed) {
            Ok("") => Err(LineError::Empty),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(LineError::NotUtf8),
        };
        Ok(Some(Line {
            number: self.number,
            text,
        }))
    }

    fn skip_rest(&mut self) -> std::io::Result<()> {
        loop {
            let available = self.source.fill_buf()?;
            if available.is_empty() {
                return Ok(());
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(available.len(), |end| end + 1);
            self.source.consume(length);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

/// Number of lines as [`Lines`] counts them.
///
/// # Errors
/// When the source cannot be read.
pub fn count(mut source: impl BufRead) -> std::io::Result<u64> {
    let mut lines = 0;
    let mut open = false;
    loop {
        let available = source.fill_buf()?;
        if available.is_empty() {
            return Ok(lines + u64::from(open));
        }
        lines += available.iter().filter(|byte| **byte == b'\n').count() as u64;
        open = available.last() != Some(&b'\n');
        let length = available.len();
        source.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<Result<String, LineError>> {
        let mut lines = Lines::new(text);
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().expect("in memory") {
            assert_eq!(line.number, found.len() as u64 + 1);
            found.push(line.text);
        }
        assert_eq!(count(text).expect("in memory"), found.len() as u64);
        found
    }

    #[test]
    fn lines_are_numbered_and_trimmed() {
        assert_eq!(all(b""), []);
        assert_eq!(all(b"a\r\nb"), [Ok("a".into()), Ok("b".into())]);
        assert_eq!(
            all(b"a\n\nb\n"),
            [Ok("a".into()), Err(LineError::Empty), Ok("b".into())]
        );
        assert_eq!(all(b"\xff\nb\n"), [Err(LineError::NotUtf8), Ok("b".into())]);
    }

    #[test]
    fn a_line_too_long_is_skipped_whole() {
        let mut text = vec![b'x'; LINE_BYTES_MAX + 10];
        text.extend(b"\nnext\n");
        assert_eq!(all(&text), [Err(LineError::TooLong), Ok("next".into())]);
        let longest = vec![b'x'; LINE_BYTES_MAX];
        assert!(all(&longest)[0].is_ok());
    }
}
