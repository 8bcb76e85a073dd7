//! The node's own counters, collected on one thread: each is a probe for a path of production code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;

/// Collects the node's counters on one thread.
#[derive(Clone, Default)]
pub struct Probes(Arc<Mutex<BTreeMap<String, Arc<Count>>>>);

#[derive(Default)]
struct Count(AtomicU64);

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

impl Probes {
    pub fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.0.lock();
        counts
            .iter()
            .map(|(name, count)| (name.clone(), count.0.load(Ordering::Relaxed)))
            .collect()
    }
}

impl Recorder for Probes {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get(key.name()) {
            return Counter::from_arc(Arc::clone(count));
        }
        let count = Arc::new(Count::default());
        counts.insert(key.name().to_owned(), Arc::clone(&count));
        Counter::from_arc(count)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
