//! Atomics and locks of what is searched while it changes: the index and the rows of its vectors.
//!
//! They are those of the standard library and of parking_lot. With the feature `model` they are
//! shuttle's, which runs the threads of a test one at a time and changes between them at each use of
//! an atomic or a lock, in an order of its own (`make test-model`; no other test runs in such a
//! build). What must hold: those modules take theirs from here, so that the model sees every one.

#[cfg(not(feature = "model"))]
mod plain {
    pub use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

    pub use parking_lot::Mutex;
}

#[cfg(feature = "model")]
mod model {
    pub use shuttle::sync::MutexGuard;
    pub use shuttle::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

    /// Shuttle's, which knows poisoning as the standard library does, with parking_lot's methods.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }
}

#[cfg(feature = "model")]
pub(crate) use model::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Mutex, Ordering};
#[cfg(not(feature = "model"))]
pub(crate) use plain::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Mutex, Ordering};
