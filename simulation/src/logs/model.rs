//! What a log holds, as an exact list of its states.

use std::collections::BTreeMap;

use engram_node::consensus::runtime::{Entry, LogId, Vote};

/// What a log says when it is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub entries: BTreeMap<u64, Entry>,
}

impl Content {
    /// The last entry, or the last that was purged.
    pub fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value();
        last.map(|(_, entry)| entry.log_id).or(self.purged)
    }

    pub fn next_index(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }
}

/// The states that a log went through since the last that is surely on the disk.
#[derive(Debug, Default)]
pub struct Model {
    states: Vec<Content>,
    /// The state that everything reported durable leads to.
    durable: usize,
}

impl Model {
    /// As a log that holds this and nothing else.
    pub fn of(content: Content) -> Self {
        Self {
            states: vec![content],
            durable: 0,
        }
    }

    /// With all operations that were begun.
    pub fn newest(&self) -> &Content {
        let newest = self.states.last();
        newest.unwrap_or_else(|| panic!("a log has a state"))
    }

    /// An operation begins: its number.
    pub fn begin(&mut self, change: impl FnOnce(&mut Content)) -> usize {
        let mut content = self.newest().clone();
        change(&mut content);
        self.states.push(content);
        self.states.len() - 1
    }

    /// An operation, and all before it, was reported durable.
    pub fn note_durable(&mut self, operation: usize) {
        self.durable = self.durable.max(operation);
    }

    /// Whether a crash may leave this.
    pub fn allows(&self, content: &Content) -> bool {
        self.states[self.durable..].contains(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_durable_stays_and_what_is_not_may() {
        let mut model = Model::of(Content::default());
        let voted = |term| Content {
            vote: Some(Vote::new(term, 1)),
            ..Content::default()
        };
        let first = model.begin(|content| content.vote = Some(Vote::new(1, 1)));
        model.begin(|content| content.vote = Some(Vote::new(2, 1)));
        assert!(model.allows(&Content::default()) && model.allows(&voted(2)));
        model.note_durable(first);
        assert!(!model.allows(&Content::default()));
        assert!(model.allows(&voted(1)) && model.allows(&voted(2)) && !model.allows(&voted(3)));
    }
}
