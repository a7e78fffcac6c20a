//! Batches that released their memory before they were published. Maintenance publishes them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::batch::Batch;
use crate::store::Pending;

/// Maximum number of spilled batches. Each one keeps the descriptor of its journal open.
pub const MAX_SPILLED: usize = 256;

/// Batches that maintenance has to publish: spilled ones from their journals, and staged report files that could not be
/// published.
///
/// The mutex is locked a few times per batch at most. No code under it waits, wakes tasks, or drops a batch.
#[derive(Debug)]
pub(super) struct Unpublished {
    /// Maximum total size of the spilled journals.
    max_spill_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    batches: Vec<Arc<Pending>>,
    /// The last batch that was spilled. While it is alive, tickets still hold its memory.
    last_spilled: Weak<Batch>,
    /// A batch did not fit, and no batch was published since.
    is_exhausted: bool,
    /// Requests wait for the memory of a batch that can be spilled.
    is_wanted: bool,
}

impl Unpublished {
    pub(super) fn new(max_spill_bytes: u64) -> Self {
        Self { max_spill_bytes, state: Mutex::default() }
    }

    /// Asks for a batch to be spilled. Returns whether this is news to the thread that spills. `false` also if no batch
    /// can be spilled now: the last one did not fit, or it has not returned its memory yet. In the second case,
    /// spilling another one is pointless: the memory returns as soon as the waiting requests are answered.
    pub(super) fn want_spill(&self) -> bool {
        let mut state = self.lock();
        let is_news = !state.is_wanted && self.can_spill(&state);
        state.is_wanted |= is_news;
        is_news
    }

    /// Whether a spill is wanted and possible. A wish that cannot be fulfilled is forgotten.
    pub(super) fn wants_spill(&self) -> bool {
        let mut state = self.lock();
        state.is_wanted &= self.can_spill(&state);
        state.is_wanted
    }

    pub(super) fn forget_spill(&self) {
        self.lock().is_wanted = false;
    }

    fn can_spill(&self, state: &State) -> bool {
        self.max_spill_bytes > 0 && !state.is_exhausted && state.last_spilled.strong_count() == 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().batches.is_empty()
    }

    /// Adds a batch that is about to be spilled. Returns `false` if that would exceed `SPILL_BYTES` or
    /// [`MAX_SPILLED`].
    pub(super) fn add_spilled(&self, batch: Weak<Batch>, pending: Pending) -> bool {
        let mut state = self.lock();
        let is_too_long = state.spilled_bytes() + pending.spilled_bytes() > self.max_spill_bytes;
        if is_too_long || state.batches.len() >= MAX_SPILLED {
            state.is_exhausted = true;
            return false;
        }
        state.batches.push(Arc::new(pending));
        state.last_spilled = batch;
        true
    }

    /// Adds a batch with a staged report file. `SPILL_BYTES` does not limit it.
    pub(super) fn add_staged(&self, pending: Pending) {
        self.lock().batches.push(Arc::new(pending));
    }

    pub(super) fn batches(&self) -> Vec<Arc<Pending>> {
        self.lock().batches.clone()
    }

    /// Removes a batch that is published now.
    pub(super) fn remove(&self, published: &Arc<Pending>) {
        let mut state = self.lock();
        state.batches.retain(|pending| !Arc::ptr_eq(pending, published));
        state.is_exhausted = false;
    }

    pub(super) fn spilled_bytes(&self) -> u64 {
        self.lock().spilled_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spilled_bytes(&self) -> u64 {
        self.batches.iter().map(|pending| pending.spilled_bytes()).sum()
    }
}
