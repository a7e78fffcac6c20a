//! The errors of the disk: the last one for `/readyz`, and all of them for the log.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::disk_error;
use super::repeated_errors::RepeatedErrors;

/// The last disk error that affects the service. It stays until the disk works again.
#[derive(Debug, Default)]
pub struct Health {
    has_error: AtomicBool,
    error: Mutex<Option<String>>,
    repeated: RepeatedErrors,
}

impl Health {
    /// Records and logs an error that affects the service. `message` says what the server cannot do.
    pub fn report(&self, error: &io::Error, message: &'static str) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        // Relaxed, here and below: the mutex protects the text, and nothing else depends on the flag.
        self.has_error.store(true, Ordering::Relaxed);
        self.log(error, message);
    }

    /// Logs an error that may repeat. An error of the same kind is logged again after a while.
    pub fn log(&self, error: &io::Error, message: &'static str) {
        let kind = format!("{message}: {}", disk_error::kind(error));
        match self.repeated.count(kind, Instant::now()) {
            None => {}
            Some(0) => tracing::error!(%error, "{message}"),
            Some(not_logged) => tracing::error!(%error, not_logged, "{message}"),
        }
    }

    /// Removes the error: the disk works again.
    pub fn clear(&self) {
        if self.has_error.swap(false, Ordering::Relaxed) {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.repeated.clear();
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
