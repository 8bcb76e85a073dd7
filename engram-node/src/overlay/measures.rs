//! The overlay in numbers, for `/metrics`.

use engram_core::types::PartitionId;

use super::Place;
use super::protocol::Totals;

/// How one partition is here. Lag is the age of the oldest change that the log does not have yet.
/// Unaccounted changes are those that replicas which left the map had, and this one has not.
pub fn gauge(id: PartitionId, place: &Place, wall_millis: u64, unaccounted: u64) {
    let status = place.partition.status();
    let set = |name: &'static str, value: f64| {
        metrics::gauge!(name, "partition" => id.to_string()).set(value);
    };
    let lag_millis = status
        .overlay
        .oldest
        .map_or(0, |oldest| wall_millis.saturating_sub(oldest.millis()));
    let folded = match status.edges {
        0 => 0.0,
        edges => status.folded_edges as f64 / edges as f64,
    };
    set("engram_overlay_deltas", status.overlay.deltas as f64);
    set("engram_overlay_bytes", status.overlay.bytes as f64);
    set("engram_overlay_lag_seconds", lag_millis as f64 / 1_000.0);
    set("engram_overlay_unaccounted_deltas", unaccounted as f64);
    set("engram_edges_folded_ratio", folded);
    set("engram_edge_conflicts", status.edge_conflicts as f64);
    set(
        "engram_overlay_reused_dots",
        status.overlay_conflicts as f64,
    );
}

/// What was counted since the last time.
pub fn count(before: &Totals, now: &Totals) {
    let add = |name: &'static str, before: u64, now: u64| {
        metrics::counter!(name).increment(now.saturating_sub(before));
    };
    add("engram_overlay_calls_total", before.calls, now.calls);
    add(
        "engram_overlay_calls_failed_total",
        before.failed,
        now.failed,
    );
    add("engram_overlay_deltas_sent_total", before.sent, now.sent);
    add(
        "engram_overlay_deltas_received_total",
        before.received,
        now.received,
    );
    add("engram_overlay_deltas_known_total", before.known, now.known);
    add(
        "engram_overlay_deltas_refused_total",
        before.refused,
        now.refused,
    );
    add(
        "engram_overlay_divergences_total",
        before.divergences,
        now.divergences,
    );
    add(
        "engram_edges_folded_total",
        before.folded_edges,
        now.folded_edges,
    );
}
