//! What the programs that measure clusters share: a runtime, and the clock and disks of a real node.

use engram_core::storage::RocksOptions;
use engram_node::seams::{Seams, os};

/// Runs a measurement to its end.
///
/// # Errors
/// Those of the measurement, or that there is no runtime.
pub fn run(measure: impl AsyncFnOnce(&Seams) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let seams = os::seams(RocksOptions::default());
    runtime.block_on(Box::pin(measure(&seams)))
}
