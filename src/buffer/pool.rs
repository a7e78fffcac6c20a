//! The memory of batches that are not in use, and what all batches share.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::Unparker;
use tokio::sync::Notify;

use super::batch::Batch;
use super::chunk::{Chunk, Nanos};
use super::committer::CommitQueue;
use super::layout::BufferLayout;
use crate::config::Ack;
use crate::metrics::Metrics;
use crate::store::Journals;

/// The memory of one batch. Each chunk has its own cache lines, because neighbours belong to different threads.
pub(super) type Chunks = Box<[CachePadded<Chunk>]>;

/// Free memory, and what all batches share.
#[derive(Debug)]
pub(super) struct Pool {
    free: ArrayQueue<Chunks>,
    /// Batches that were leased and are neither flushed nor spilled nor dropped unused.
    unflushed: AtomicUsize,
    /// Notified when an append that was refused may succeed.
    pub(super) capacity: Notify,
    /// The flush thread. It waits for sealed batches and, at the end, for the last batch to be settled.
    pub(super) flusher: OnceLock<Thread>,
    /// The threads that create journals and that recover spilled batches.
    pub(super) maintenance: OnceLock<(Thread, Unparker)>,
    /// Journals for the next batches. `None` with `ACK=memory`.
    pub(super) journals: Option<Journals>,
    /// Groups that wait to be written to journals.
    pub(super) commits: Arc<CommitQueue>,
    /// The batches that exist, for metrics. Locked once per batch and scrape.
    live: Mutex<Vec<Weak<Batch>>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ack: Ack,
    /// The start of the monotonic clock that batches are timed with.
    started: Instant,
}

impl Pool {
    pub(super) fn new(layout: BufferLayout, ack: Ack, journals: Option<Journals>, metrics: &Arc<Metrics>) -> Arc<Self> {
        let BufferLayout { batches, shards, chunk_bytes } = layout;
        let free = ArrayQueue::new(batches);
        for _ in 0..batches {
            let chunks: Chunks = (0..shards).map(|_| CachePadded::new(Chunk::new(chunk_bytes))).collect();
            let pushed = free.push(chunks);
            debug_assert!(pushed.is_ok());
        }
        Arc::new(Self {
            free,
            unflushed: AtomicUsize::new(0),
            capacity: Notify::new(),
            flusher: OnceLock::new(),
            maintenance: OnceLock::new(),
            journals,
            commits: Arc::new(CommitQueue::new(batches)),
            live: Mutex::default(),
            metrics: Arc::clone(metrics),
            ack,
            started: Instant::now(),
        })
    }

    pub(super) fn now_ns(&self) -> Nanos {
        // 64 bits last for 584 years. 0 means never.
        (self.started.elapsed().as_nanos() as Nanos).max(1)
    }

    pub(super) fn has_memory(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether there is memory for another batch, and a journal if batches have journals.
    pub(super) fn can_lease(&self) -> bool {
        self.has_memory() && self.journals.as_ref().is_none_or(Journals::is_ready)
    }

    pub(super) fn take_memory(&self) -> Option<Chunks> {
        // SeqCst, here and below: `is_settled` must not miss a batch whose lease it could know of.
        self.unflushed.fetch_add(1, Ordering::SeqCst);
        let chunks = self.free.pop();
        if chunks.is_none() {
            self.settle();
        }
        chunks
    }

    pub(super) fn free_batches(&self) -> usize {
        self.free.len()
    }

    /// Remembers a new batch, and forgets those that are gone.
    pub(super) fn register(&self, batch: &Arc<Batch>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|batch| batch.strong_count() > 0);
        live.push(Arc::downgrade(batch));
    }

    /// The batches that exist.
    pub(super) fn live_batches(&self) -> Vec<Arc<Batch>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn return_memory(&self, mut chunks: Chunks) {
        chunks.iter_mut().for_each(|chunk| chunk.reset());
        let pushed = self.free.push(chunks);
        debug_assert!(pushed.is_ok(), "the pool has a place for the memory of each batch");
        self.wake();
    }

    /// Counts a leased batch as flushed, spilled or dropped unused.
    pub(super) fn settle(&self) {
        if self.unflushed.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake_flusher();
        }
    }

    /// Whether no leased batch waits to be flushed.
    pub(super) fn is_settled(&self) -> bool {
        self.unflushed.load(Ordering::SeqCst) == 0
    }

    /// Wakes all tasks and threads that wait for a new active batch or for free memory.
    pub(super) fn wake(&self) {
        self.capacity.notify_waiters();
        self.wake_flusher();
    }

    pub(super) fn wake_flusher(&self) {
        // SeqCst, here and in `Buffer::set_flusher`: a thread that is not registered yet sees the change before it
        // waits.
        fence(Ordering::SeqCst);
        // The flush thread does not wake itself, or it would never wait while a batch fails.
        let is_other = |flusher: &&Thread| flusher.id() != thread::current().id();
        self.flusher.get().filter(is_other).into_iter().for_each(Thread::unpark);
    }
}
