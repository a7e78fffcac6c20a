//! The two steps of a shutdown that connections see: the announcement and the drain.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The state of a shutdown.
#[derive(Debug, Default)]
pub(super) struct Drain {
    is_announced: AtomicBool,
    started: Event,
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
        self.started.set();
    }

    pub(super) fn is_started(&self) -> bool {
        self.started.is_set()
    }

    /// Resolves when the drain starts.
    pub(super) fn started(&self) -> Notified<'_> {
        self.started.notify.notified()
    }
}

/// Something that happens once.
#[derive(Debug, Default)]
pub(super) struct Event {
    is_set: AtomicBool,
    notify: Notify,
}

impl Event {
    pub(super) fn set(&self) {
        // Release: pairs with the Acquire in `is_set`. The store precedes the notification.
        self.is_set.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    pub(super) fn is_set(&self) -> bool {
        // Acquire: pairs with the Release in `set`.
        self.is_set.load(Ordering::Acquire)
    }

    /// Waits until it happens. Returns at once if it has happened.
    pub(super) async fn wait(&self) {
        let mut notified = pin!(self.notify.notified());
        // Registered before the check, so that nothing is missed.
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}
