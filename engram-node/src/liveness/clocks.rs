//! Deadlines in another node's time, so that what it is sent is carried out in time or not at all.
//!
//! A request can lie in a connection for as long as the network is broken, and arrive when its
//! sender has long done something else. So it says until when it is good, in the monotonic time of
//! its receiver, which tells it with every heartbeat. No two clocks are compared and no wall clock is
//! read: what a beat told was true before it arrived, so the receiver's clock is at least that far
//! plus what has passed here since. Only the rates of the clocks must agree, within what a beat is
//! old.

use std::sync::{Arc, Weak};
use std::time::Duration;

use engram_core::planted;
use engram_core::types::NodeId;
use engram_proto::peer::Expiry;

use super::{Heartbeats, Shared, Watch};

/// What forwarding needs of the clocks of other nodes.
pub trait Clocks: Send + Sync {
    /// A moment in the time of `node`, no later than `wait` from now. `None`: nothing is known of
    /// its time.
    fn there(&self, node: NodeId, wait: Duration) -> Option<Expiry>;
    /// How long it is until a moment in this node's own time; zero when it has passed, or was
    /// given by another process here.
    fn left(&self, expiry: &Expiry) -> Duration;
}

/// What the sender of an expired request is told, should it still listen.
pub const TOO_LATE: &str = "the request came after its time";

/// What is left of the time of a request that another node sent, at most `wait`: none when it lay in a
/// broken connection until its sender had gone on. Whatever it wants done would come after what was
/// acknowledged since: it must not be begun.
pub fn time_left(clocks: &dyn Clocks, wait: Duration, expires: Option<&Expiry>) -> Duration {
    let left = match expires {
        Some(expires) if !planted!("late-forward-served") => wait.min(clocks.left(expires)),
        _ => wait,
    };
    if left.is_zero() {
        metrics::counter!("engram_forwards_expired_total").increment(1);
    }
    left
}

impl Watch {
    /// See [`Clocks::there`].
    fn there(&self, now: Duration, wait: Duration) -> Option<Expiry> {
        let vitals = self.vitals?;
        let passed = now.saturating_sub(self.last_answer);
        let since = (passed + wait).as_millis() as u64;
        Some(Expiry {
            incarnation: vitals.incarnation,
            millis: vitals.monotonic_millis.saturating_add(since),
        })
    }
}

impl Clocks for Heartbeats {
    fn there(&self, node: NodeId, wait: Duration) -> Option<Expiry> {
        let now = self.shared.seams.clock.monotonic();
        let watches = self.shared.watches.lock();
        watches.get(&node)?.there(now, wait)
    }

    fn left(&self, expiry: &Expiry) -> Duration {
        if expiry.incarnation != self.shared.incarnation {
            return Duration::ZERO;
        }
        let now = self.shared.seams.clock.monotonic();
        Duration::from_millis(expiry.millis).saturating_sub(now)
    }
}

impl Heartbeats {
    /// The clocks for somebody on whom the heartbeats themselves depend: they end with them.
    #[must_use]
    pub fn clocks(&self) -> Arc<dyn Clocks> {
        Arc::new(WhileAlive(Arc::downgrade(&self.shared)))
    }
}

struct WhileAlive(Weak<Shared>);

impl WhileAlive {
    fn beats(&self) -> Option<Heartbeats> {
        let shared = self.0.upgrade()?;
        Some(Heartbeats { shared })
    }
}

impl Clocks for WhileAlive {
    fn there(&self, node: NodeId, wait: Duration) -> Option<Expiry> {
        self.beats()?.there(node, wait)
    }

    fn left(&self, expiry: &Expiry) -> Duration {
        let beats = self.beats();
        beats.map_or(Duration::ZERO, |beats| beats.left(expiry))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Vitals;
    use super::*;

    struct Fixed(Duration);

    impl Clocks for Fixed {
        fn there(&self, _node: NodeId, _wait: Duration) -> Option<Expiry> {
            None
        }

        fn left(&self, _expiry: &Expiry) -> Duration {
            self.0
        }
    }

    #[test]
    fn a_request_has_no_more_time_than_its_sender_gave_it() {
        let millis = Duration::from_millis;
        let expiry = Expiry::default();
        let left = |there, expiry| time_left(&Fixed(millis(there)), millis(50), expiry);
        assert_eq!(left(0, None), millis(50), "nobody said until when");
        assert_eq!(left(20, Some(&expiry)), millis(20));
        assert_eq!(left(90, Some(&expiry)), millis(50));
        assert_eq!(left(0, Some(&expiry)), Duration::ZERO);
    }

    #[test]
    fn a_deadline_there_is_never_later_than_it_is_here() {
        let millis = Duration::from_millis;
        let mut watch = Watch::new(millis(0));
        assert_eq!(watch.there(millis(10), millis(5)), None);
        // The answer was 20 ms on its way: there it is 1,020 by now.
        let vitals = Vitals {
            incarnation: 7,
            lost_replicas: 0,
            monotonic_millis: 1_000,
        };
        watch.answered(millis(100), vitals);
        let expiry = watch.there(millis(130), millis(500));
        let expected = Expiry {
            incarnation: 7,
            millis: 1_530,
        };
        assert_eq!(expiry, Some(expected), "1,550 by the clock there");
    }
}
