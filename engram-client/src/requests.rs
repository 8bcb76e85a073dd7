//! Request ids: what makes a retried mutation apply once.
//!
//! What must hold: the oldest unanswered counter and the newest are less than
//! [`REQUESTS_PER_CLIENT`] apart, because the server remembers no more. A caller waits for its id
//! until that is so.

use std::collections::BTreeSet;
use std::sync::Arc;

use engram_core::limits::REQUESTS_PER_CLIENT;
use engram_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The ids of one client instance.
pub(crate) struct RequestIds {
    client: [u8; 16],
    state: Mutex<State>,
    answered: Notify,
}

struct State {
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// A request id in use; dropping it says that the request will not be sent again.
pub(crate) struct Ticket {
    ids: Arc<RequestIds>,
    counter: u64,
}

impl RequestIds {
    pub(crate) fn new(client: [u8; 16]) -> Arc<Self> {
        let state = State {
            next: 1,
            unanswered: BTreeSet::new(),
        };
        Arc::new(Self {
            client,
            state: Mutex::new(state),
            answered: Notify::new(),
        })
    }

    /// The next id, once the window allows it.
    pub(crate) async fn issue(self: &Arc<Self>) -> Ticket {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Registered before the look, so that an answer in between is not missed.
            answered.as_mut().enable();
            if let Some(ticket) = self.try_issue() {
                return ticket;
            }
            answered.await;
        }
    }

    fn try_issue(self: &Arc<Self>) -> Option<Ticket> {
        let mut state = self.state.lock();
        let counter = state.next;
        let oldest = state.unanswered.first().copied().unwrap_or(counter);
        if counter - oldest >= REQUESTS_PER_CLIENT as u64 {
            return None;
        }
        state.next += 1;
        state.unanswered.insert(counter);
        Some(Ticket {
            ids: self.clone(),
            counter,
        })
    }
}

impl Ticket {
    pub(crate) fn counter(&self) -> u64 {
        self.counter
    }

    pub(crate) fn id(&self, retried: bool) -> v1::RequestId {
        v1::RequestId {
            client: bytes::Bytes::copy_from_slice(&self.ids.client),
            counter: self.counter,
            retried,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ids.state.lock().unanswered.remove(&self.counter);
        self.ids.answered.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_start_at_one_and_grow_by_one() {
        let ids = RequestIds::new([7; 16]);
        let counters: Vec<u64> = (0..3)
            .filter_map(|_| ids.try_issue())
            .map(|ticket| ticket.counter())
            .collect();
        assert_eq!(counters, [1, 2, 3]);
    }

    #[test]
    fn the_window_closes_until_the_oldest_is_answered() {
        let ids = RequestIds::new([7; 16]);
        let oldest = ids.try_issue().expect("the window is open");
        let mut held = Vec::new();
        while let Some(ticket) = ids.try_issue() {
            held.push(ticket);
        }
        assert_eq!(held.len(), REQUESTS_PER_CLIENT - 1);
        held.clear();
        assert!(ids.try_issue().is_none(), "the oldest is still unanswered");
        drop(oldest);
        assert!(ids.try_issue().is_some());
    }

    #[tokio::test]
    async fn a_waiting_caller_gets_its_id_when_the_window_opens() {
        let ids = RequestIds::new([7; 16]);
        let mut held: Vec<Ticket> = std::iter::from_fn(|| ids.try_issue()).collect();
        let waiting = ids.issue();
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        held.clear();
        assert_eq!(waiting.await.counter(), REQUESTS_PER_CLIENT as u64 + 1);
    }
}
