//! A record that a command looked at: as it was, and as the command leaves it.

#[derive(Debug)]
pub struct Touched<T> {
    /// What the stored record gives to its digest; 0 when there is none.
    digest: u128,
    existed: bool,
    /// Whether the stored record was one of those that the partition counts.
    counted: bool,
    now: Option<T>,
    changed: bool,
}

impl<T> Touched<T> {
    pub fn absent() -> Self {
        Self {
            digest: 0,
            existed: false,
            counted: false,
            now: None,
            changed: false,
        }
    }

    pub fn found(record: T, digest: u128, counted: bool) -> Self {
        Self {
            digest,
            existed: true,
            counted,
            now: Some(record),
            changed: false,
        }
    }

    pub fn now(&self) -> Option<&T> {
        self.now.as_ref()
    }

    pub fn set(&mut self, record: Option<T>) {
        self.now = record;
        self.changed = true;
    }

    /// Changes the record, or `fresh` where there is none; `change` says whether it did anything.
    pub fn edit(&mut self, fresh: T, change: impl FnOnce(&mut T) -> bool) {
        match &mut self.now {
            Some(record) => self.changed |= change(record),
            None => {
                let mut record = fresh;
                if change(&mut record) {
                    self.set(Some(record));
                }
            }
        }
    }

    pub fn existed(&self) -> bool {
        self.existed
    }

    pub fn was_counted(&self) -> bool {
        self.counted
    }

    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// Whether storage must hear of it.
    pub fn is_changed(&self) -> bool {
        self.changed && (self.existed || self.now.is_some())
    }
}
