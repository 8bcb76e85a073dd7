//! A query vector from a file: a JSON array of numbers, or a `.npy` with one row.

use std::io::BufReader;
use std::path::PathBuf;
use std::str::FromStr;

use engram_client::types as v1;
use engram_core::types::Metric;

use super::bulk::npy::NpyReader;
use super::failure::{Exit, Failure};

#[derive(Clone, Debug)]
pub struct VectorFile(PathBuf);

impl FromStr for VectorFile {
    type Err = std::convert::Infallible;
    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Ok(Self(path.into()))
    }
}

impl VectorFile {
    /// # Errors
    /// When the file holds no vector.
    pub fn read(&self) -> Result<Vec<f32>, Failure> {
        let bad = |reason: String| {
            let message = format!("{}: {reason}", self.0.display());
            Failure::new(
                Exit::Usage,
                message,
                "a file with a JSON array of numbers, or a .npy",
            )
        };
        if self
            .0
            .extension()
            .is_some_and(|extension| extension == "npy")
        {
            let file = std::fs::File::open(&self.0).map_err(|error| bad(error.to_string()))?;
            let mut reader =
                NpyReader::new(BufReader::new(file)).map_err(|error| bad(error.to_string()))?;
            if reader.rows() != 1 {
                return Err(bad(format!(
                    "it has {} rows; one vector is expected",
                    reader.rows()
                )));
            }
            let row = reader.next_row().map_err(|error| bad(error.to_string()))?;
            return row.ok_or_else(|| bad("it has no row".to_owned()));
        }
        let text = std::fs::read_to_string(&self.0).map_err(|error| bad(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| bad(error.to_string()))
    }
}

#[must_use]
pub fn metric_of(metric: v1::Metric) -> Metric {
    match metric {
        v1::Metric::Unspecified | v1::Metric::Cosine => Metric::Cosine,
        v1::Metric::Dot => Metric::Dot,
        v1::Metric::L2 => Metric::L2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bulk::npy::NpyWriter;

    #[test]
    fn both_formats_are_read_and_others_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| VectorFile(directory.path().join(name));
        std::fs::write(&file("v.json").0, "[1, 2.5]").expect("writable");
        assert_eq!(file("v.json").read().expect("readable"), [1.0, 2.5]);
        std::fs::write(&file("bad.json").0, "{\"a\": 1}").expect("writable");
        assert_eq!(
            file("bad.json").read().expect_err("no array").exit,
            Exit::Usage
        );
        assert!(file("none.json").read().is_err());

        let target = std::fs::File::create(&file("v.npy").0).expect("writable");
        let mut writer = NpyWriter::new(target, 2).expect("writable");
        writer.write_row(&[1.0, 2.5]).expect("writable");
        writer.finish().expect("writable");
        assert_eq!(file("v.npy").read().expect("readable"), [1.0, 2.5]);
    }
}
