//! The last error of the disk, for `/readyz`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The last disk error that affects the service. It stays until the disk works again.
#[derive(Debug, Default)]
pub struct Health {
    has_error: AtomicBool,
    error: Mutex<Option<String>>,
}

impl Health {
    /// Records an error.
    pub fn report(&self, error: &io::Error) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        // Relaxed, here and below: the mutex protects the text, and nothing else depends on the flag.
        self.has_error.store(true, Ordering::Relaxed);
    }

    /// Removes the error: the disk works again.
    pub fn clear(&self) {
        if self.has_error.swap(false, Ordering::Relaxed) {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// The last error, unless the disk has worked since.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self.has_error.load(Ordering::Relaxed) {
            true => self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => None,
        }
    }
}
