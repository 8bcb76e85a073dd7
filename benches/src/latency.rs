//! Latencies: recorded in microseconds, reported as percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart, in microseconds.
const MICROS_MAX: u64 = 60_000_000;

/// Latencies of one operation.
pub struct Latencies(Histogram<u64>);

/// What is reported, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Latencies {
    /// # Errors
    /// Never with the bounds used here; the histogram's constructor may refuse others.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_max(MICROS_MAX, 3)?))
    }

    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(MICROS_MAX);
        self.0.saturating_record(micros.clamp(1, MICROS_MAX));
    }

    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1_000.0;
        Percentiles {
            count: self.0.len(),
            mean_ms: self.0.mean() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            max_ms: self.0.max() as f64 / 1_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new().expect("valid bounds");
        for millis in 1..=100 {
            latencies.record(Duration::from_millis(millis));
        }
        let report = latencies.percentiles();
        assert_eq!(report.count, 100);
        assert!((report.p50_ms - 50.0).abs() < 0.1, "{report:?}");
        assert!((report.p99_ms - 99.0).abs() < 0.1, "{report:?}");
    }
}
