//! The two steps of a shutdown that connections see: the announcement and the drain.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The state of a shutdown.
#[derive(Debug, Default)]
pub(super) struct Drain {
    is_announced: AtomicBool,
    is_started: AtomicBool,
    started: Notify,
}

impl Drain {
    /// Announces the shutdown. The service continues, but `/readyz` answers 503 and HTTP/1 answers say
    /// `Connection: close`.
    pub(super) fn announce(&self) {
        // Relaxed: no other data depends on it.
        self.is_announced.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_announced(&self) -> bool {
        self.is_announced.load(Ordering::Relaxed)
    }

    /// Starts the drain. Each connection finishes its current requests and accepts no others.
    pub(super) fn start(&self) {
        // Release: pairs with the Acquire in `is_started`. The store precedes the notification.
        self.is_started.store(true, Ordering::Release);
        self.started.notify_waiters();
    }

    pub(super) fn is_started(&self) -> bool {
        // Acquire: pairs with the Release in `start`.
        self.is_started.load(Ordering::Acquire)
    }

    /// Resolves when the drain starts.
    pub(super) fn started(&self) -> Notified<'_> {
        self.started.notified()
    }
}
