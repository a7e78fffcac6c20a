//! Counts refused requests by reason, for the log.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::PROBLEMS;

/// The reason for connections beyond `MAX_CONNECTIONS_PER_ADDRESS`. They are closed without an answer.
pub(super) const TOO_MANY_CONNECTIONS: &str = "too-many-connections";

/// Refused requests, and how many of them are in the log already.
#[derive(Debug)]
pub(super) struct Refusals {
    /// One for each of `PROBLEMS`, and one for `TOO_MANY_CONNECTIONS`.
    counts: [AtomicU64; PROBLEMS.len() + 1],
    logged: [AtomicU64; PROBLEMS.len() + 1],
}

impl Refusals {
    pub(super) fn new() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self { counts: zeros(), logged: zeros() }
    }

    /// Counts one refusal. `reason` is one of [`reasons`].
    pub(super) fn count(&self, reason: &'static str) {
        if let Some(index) = reasons().position(|other| other == reason) {
            // Relaxed, here and below: counters only.
            self.counts[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All reasons, and the number of refusals for each.
    pub(super) fn totals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        reasons().zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Logs the refusals since the last call, if there were any.
    pub(super) fn log(&self) {
        let since = |((reason, total), logged): ((_, u64), &AtomicU64)| {
            (reason, total.saturating_sub(logged.swap(total, Ordering::Relaxed)))
        };
        let counts: Vec<_> = self.totals().zip(&self.logged).map(since).filter(|(_, count)| *count > 0).collect();
        let total: u64 = counts.iter().map(|(_, count)| count).sum();
        if total > 0 {
            let by_reason: Vec<_> = counts.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
            tracing::warn!(total, reasons = by_reason.join(" "), "requests were refused");
        }
    }
}

fn reasons() -> impl Iterator<Item = &'static str> {
    PROBLEMS.into_iter().chain([TOO_MANY_CONNECTIONS])
}
