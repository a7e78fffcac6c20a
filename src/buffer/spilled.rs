//! Batches that released their memory before they were published. Recovery publishes them.

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use super::batch::Batch;
use crate::store::BatchId;

/// Batches that recovery has to publish: spilled ones from their journals, and staged report files that could not be
/// published.
///
/// The mutex is locked a few times per batch at most. No code under it waits, wakes tasks, or drops a batch.
#[derive(Debug)]
pub(super) struct Spilled {
    /// Maximum total size of the journals.
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The batches and the sizes of their journals. A staged file counts as 0 bytes: `SPILL_BYTES` does not limit it.
    batches: Vec<(BatchId, u64)>,
    /// The last batch that was spilled. While it is alive, tickets still hold its memory.
    last: Weak<Batch>,
    /// A batch did not fit, and no batch was published since.
    is_exhausted: bool,
}

impl Spilled {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    /// Whether no batch can be spilled: the last one did not fit, and no batch was published since.
    pub(super) fn is_exhausted(&self) -> bool {
        self.max_bytes == 0 || self.lock().is_exhausted
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().batches.is_empty()
    }

    /// Whether the last spilled batch has not returned its memory yet. Then spilling another batch is pointless: the
    /// memory returns as soon as the waiting requests are answered.
    pub(super) fn is_releasing(&self) -> bool {
        self.lock().last.strong_count() > 0
    }

    /// Adds a batch with a journal of `bytes`. Returns `false` if that would exceed `SPILL_BYTES`.
    pub(super) fn add(&self, batch: Weak<Batch>, id: BatchId, bytes: u64) -> bool {
        let mut state = self.lock();
        if state.bytes() + bytes > self.max_bytes {
            state.is_exhausted = true;
            return false;
        }
        state.batches.push((id, bytes));
        state.last = batch;
        true
    }

    /// Adds a batch with a staged report file.
    pub(super) fn add_staged(&self, id: BatchId) {
        self.lock().batches.push((id, 0));
    }

    /// Removes the batches that are not pending any more. Returns whether any were removed, and whether any are left.
    pub(super) fn remove_published(&self, is_pending: impl Fn(&BatchId) -> bool) -> (bool, bool) {
        let batches: Vec<_> = self.lock().batches.iter().map(|(id, _)| *id).collect();
        // Without the lock: the disk may be slow.
        let published: Vec<_> = batches.into_iter().filter(|id| !is_pending(id)).collect();
        let mut state = self.lock();
        state.batches.retain(|(id, _)| !published.contains(id));
        state.is_exhausted &= published.is_empty();
        (!published.is_empty(), !state.batches.is_empty())
    }

    #[cfg(all(test, not(netwatch_loom)))]
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bytes(&self) -> u64 {
        self.batches.iter().map(|(_, bytes)| bytes).sum()
    }
}
