//! The process's metrics recorder.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::seams::Seams;

/// How often samples of histograms are folded, so that they do not pile up between scrapes.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// The recorder is the process's: several nodes in one process (tests) share it.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Handle to what was counted. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Makes the recorder the process's own, the first time.
    #[must_use]
    pub fn install() -> Self {
        let handle = RECORDER.get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("another metrics recorder is installed: /metrics stays empty");
            }
            handle
        });
        Self(handle.clone())
    }

    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Folds samples until `stop`.
pub async fn upkeep(seams: Seams, metrics: Metrics, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = seams.clock.sleep(UPKEEP_PERIOD) => metrics.0.run_upkeep(),
        }
    }
}
