//! The reports in memory. Many threads append without a lock. Full batches are swapped out for the flush.
//!
//! ```text
//!   pool ──lease──► active ──full, or old──► sealed ──flushed──► (last Arc dropped) ──► pool
//! ```
//!
//! Loom checks the accesses of threads within one batch: see `cursor` and `group_commit`. Loom cannot check the swap of
//! batches, because arc-swap and crossbeam-queue do not run under it. The tests cover the swap with real threads.

mod batch;
mod batch_journal;
mod chunk;
mod committer;
mod cursor;
mod group_commit;
mod layout;
mod pool;
mod sync;
#[cfg(all(test, not(netwatch_loom)))]
mod tests;
mod ticket;
mod unpublished;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::thread::Thread;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::sync::Unparker;

pub use self::batch::Batch;
pub use self::group_commit::NotDurable;
pub use self::layout::BufferLayout;
use self::pool::Pool;
pub use self::ticket::Ticket;
pub use self::unpublished::MAX_SPILLED;
use self::unpublished::Unpublished;
use crate::config::Ack;
use crate::metrics::{Metrics, Trigger};
use crate::report::Reports;
use crate::store::{Journals, Pending};

/// The reports between the request threads and the flush thread, in a fixed amount of memory.
#[derive(Debug)]
pub struct Buffer {
    active: ArcSwap<Batch>,
    sealed: ArrayQueue<Arc<Batch>>,
    pool: Arc<Pool>,
    is_disk_full: AtomicBool,
    unpublished: Unpublished,
    chunk_bytes: usize,
}

/// Why the buffer refuses an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// All batches wait for the flush. There may be capacity in a moment: see [`Buffer::capacity`].
    #[error("the buffer is full")]
    Full,
    /// The disk has less free space than `MIN_FREE_BYTES`.
    #[error("the disk is full")]
    DiskFull,
    /// The server is shutting down.
    #[error("the buffer is closed")]
    Closed,
}

/// What the buffer contains at one time.
#[derive(Debug, Clone, Copy)]
pub struct BufferState {
    /// Bytes of reports in memory.
    pub bytes: u64,
    /// Batches without reports.
    pub free: usize,
    /// 1, or 0 after a close.
    pub active: usize,
    /// Batches that wait for the flush or are being flushed.
    pub sealed: usize,
    /// Age of the oldest report that is only in memory or in a journal.
    pub oldest: Option<Duration>,
    /// Bytes of the journals of spilled batches.
    pub spilled_bytes: u64,
}

impl Buffer {
    /// Reserves all memory. The kernel provides the pages when they are first written.
    ///
    /// # Panics
    /// If `layout` has fewer than two batches or no shard, or if `journals` does not match `ack`, or none is ready.
    #[must_use]
    pub fn new(
        layout: BufferLayout,
        ack: Ack,
        journals: Option<Journals>,
        spill_bytes: u64,
        metrics: &Arc<Metrics>,
    ) -> Self {
        assert!(layout.batches >= 2 && layout.shards >= 1, "{layout:?}");
        assert_eq!(ack == Ack::Memory, journals.is_none(), "{ack:?}");
        let pool = Pool::new(layout, ack, journals, metrics);
        let first = Batch::lease(&pool).expect("a new pool has memory, and a journal is ready");
        Self {
            active: ArcSwap::new(first),
            sealed: ArrayQueue::new(layout.batches),
            pool,
            is_disk_full: AtomicBool::new(false),
            unpublished: Unpublished::new(spill_bytes),
            chunk_bytes: layout.chunk_bytes,
        }
    }

    /// Appends the reports of one request to the active batch: all of them, adjacent and in order. Rotates if the batch
    /// is full.
    ///
    /// # Errors
    /// [`AppendError`]. Nothing is stored then.
    ///
    /// # Panics
    /// If the lines are longer than a chunk. The length limit of request bodies prevents that.
    pub fn append(&self, reports: &Reports<'_>) -> Result<Ticket, AppendError> {
        self.append_to(shard(), reports)
    }

    fn append_to(&self, shard: usize, reports: &Reports<'_>) -> Result<Ticket, AppendError> {
        let lines = reports.as_bytes();
        assert!(lines.len() < self.chunk_bytes, "{} bytes do not fit in a chunk", lines.len());
        if self.is_disk_full() {
            return Err(AppendError::DiskFull);
        }
        loop {
            // The guard keeps the batch from being recycled. It is held for one append only.
            let batch = self.active.load();
            // Read after the batch is known. Otherwise a preempted thread could give a batch an earlier time than its
            // predecessor, and the names of report files follow these times.
            let now_ns = self.pool.now_ns();
            if let Some((chunk, end)) = batch.append(shard, reports, now_ns) {
                return Ok(Ticket { batch: Guard::into_inner(batch), chunk, end });
            }
            if batch.is_closed() {
                return Err(AppendError::Closed);
            }
            self.rotate(&batch, Trigger::Full)?;
        }
    }

    /// Resolves when there may be capacity again, or when the buffer is closed. Call `enable` on it before an append
    /// that may be refused, so that no change is missed.
    pub fn capacity(&self) -> tokio::sync::futures::Notified<'_> {
        self.pool.capacity.notified()
    }

    /// Whether the next append would find capacity.
    #[must_use]
    pub fn has_capacity(&self) -> bool {
        self.pool.can_lease() || !self.active.load().is_sealed()
    }

    /// Whether appends are refused because the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        // Relaxed: no other data depends on it.
        self.is_disk_full.load(Ordering::Relaxed)
    }

    /// Refuses appends because the disk is full, or accepts them again. Returns the previous state.
    pub fn set_disk_full(&self, is_full: bool) -> bool {
        self.is_disk_full.swap(is_full, Ordering::Relaxed)
    }

    /// Sets the thread to unpark when a batch is sealed or returns its memory. Only the first call has an effect.
    pub fn set_flusher(&self, flusher: Thread) {
        self.pool.flusher.get_or_init(|| flusher);
        // SeqCst: as in `Pool::wake_flusher`.
        fence(Ordering::SeqCst);
    }

    /// Sets the thread to unpark when journals are missing, and the one to unpark when a batch was spilled. Only the
    /// first call has an effect.
    pub fn set_maintenance(&self, maintenance: Thread, recovery: Unparker) {
        self.pool.maintenance.get_or_init(|| (maintenance, recovery));
    }

    /// Takes the sealed batch that has waited longest.
    #[must_use]
    pub fn next_sealed(&self) -> Option<Arc<Batch>> {
        self.sealed.pop()
    }

    /// The number of sealed batches.
    #[must_use]
    pub fn sealed_len(&self) -> usize {
        self.sealed.len()
    }

    /// Puts back a batch that [`next_sealed`](Self::next_sealed) returned, behind all others.
    pub fn return_sealed(&self, batch: Arc<Batch>) {
        let pushed = self.sealed.push(batch);
        debug_assert!(pushed.is_ok(), "the queue has a place for each batch");
    }

    /// Rotates if the first report of the active batch is `interval` old, or the batch is sealed. Returns how long to wait before the next
    /// call. A caller that waits no longer, unless it is [woken](Self::set_flusher), flushes every report within
    /// `interval`.
    pub fn rotate_if_due(&self, interval: Duration) -> Duration {
        let batch = self.active.load();
        let Some((first_ns, _)) = batch.times_ns() else { return interval };
        let age = Duration::from_nanos(self.pool.now_ns().saturating_sub(first_ns));
        // A batch whose journal has failed is sealed, and its reports are only in memory.
        if age < interval && !batch.is_sealed() {
            return interval - age;
        }
        match self.rotate(&batch, Trigger::Interval) {
            Ok(()) => Duration::ZERO,
            // There is no free memory. Returned memory wakes the caller.
            Err(_) => interval,
        }
    }

    /// Seals the active batch and refuses all further appends.
    pub fn close(&self) {
        loop {
            let batch = self.active.load();
            if batch.is_closed() || self.swap(&batch, Batch::closed(&self.pool), Trigger::Shutdown) {
                return;
            }
        }
    }

    /// Whether the buffer is closed and every batch is flushed or spilled.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.active.load().is_closed() && self.pool.is_settled()
    }

    /// Closes the journals of batches that are gone, and creates journals for the next batches, if batches have journals
    /// and too few are ready.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn prepare_journals(&self) -> io::Result<()> {
        let Some(journals) = &self.pool.journals else { return Ok(()) };
        let was_short = journals.is_short();
        journals.prepare()?;
        if was_short {
            // Requests wait for a journal, and so does the flush thread if the active batch is due.
            self.pool.wake();
        }
        Ok(())
    }

    /// Starts the thread that writes journals. Without it, no report becomes durable.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn spawn_committer(&self) -> io::Result<()> {
        match self.pool.ack {
            Ack::Memory => Ok(()),
            Ack::Journal | Ack::Disk => self.pool.commits.spawn(),
        }
    }

    /// Writes the journals for all requests that wait, on this thread.
    #[cfg(all(test, not(netwatch_loom)))]
    pub(crate) fn commit_waiting(&self) {
        self.pool.commits.commit_waiting();
    }

    /// How long the oldest write to a journal has waited for the disk. Zero if none waits.
    #[must_use]
    pub fn commit_wait(&self) -> Duration {
        self.pool.commits.busy_for(self.pool.now_ns())
    }

    /// Replaces the batch `full` with a new one for this reason, unless another thread has done so.
    fn rotate(&self, full: &Arc<Batch>, trigger: Trigger) -> Result<(), AppendError> {
        if let Some(fresh) = Batch::lease(&self.pool) {
            // If another thread was faster, `fresh` is dropped, which returns its memory and its journal.
            self.swap(full, fresh, trigger);
            return Ok(());
        }
        if !Arc::ptr_eq(full, &self.active.load()) {
            return Ok(());
        }
        if !self.pool.has_memory() && self.pool.journals.is_some() && self.unpublished.want_spill() {
            self.pool.maintenance.get().into_iter().for_each(|(maintenance, _)| maintenance.unpark());
        }
        Err(AppendError::Full)
    }

    /// Whether requests wait for memory that [`spill`](Self::spill) could release.
    #[must_use]
    pub fn wants_spill(&self) -> bool {
        self.unpublished.wants_spill()
    }

    /// Releases the memory of the sealed batch that has waited longest, if its journal contains all of it and
    /// `SPILL_BYTES` permits it. [`unpublished`](Self::unpublished) returns it then. Returns `false` if no batch was
    /// spilled.
    ///
    /// Not called by request threads, because it may wait for the disk.
    pub fn spill(&self) -> bool {
        let Some(batch) = self.sealed.pop() else { return false };
        if let Some(pending) = batch.to_spill() {
            let bytes = pending.spilled_bytes();
            if self.unpublished.add_spilled(Arc::downgrade(&batch), pending) {
                self.unpublished.forget_spill();
                tracing::info!(batch = %batch.id(), bytes, "spilled");
                // Counted as unpublished before the drop: a shutdown that finds the buffer drained must know of it.
                drop(batch);
                self.wake_recovery();
                return true;
            }
        }
        // This changes the order of flushes, which does not matter: the names of report files give the order.
        self.return_sealed(batch);
        self.pool.wake_flusher();
        false
    }

    /// What the buffer contains, for metrics.
    #[must_use]
    pub fn state(&self) -> BufferState {
        let (live, active) = (self.pool.live_batches(), self.active.load());
        let unflushed = || live.iter().filter(|batch| !batch.is_settled());
        let oldest_ns = unflushed().filter_map(|batch| batch.times_ns()).map(|(first_ns, _)| first_ns).min();
        BufferState {
            bytes: live.iter().map(|batch| batch.len()).sum(),
            free: self.pool.free_batches(),
            active: usize::from(!active.is_closed()),
            sealed: unflushed().filter(|batch| !Arc::ptr_eq(batch, &active)).count(),
            oldest: oldest_ns.map(|ns| Duration::from_nanos(self.pool.now_ns().saturating_sub(ns))),
            spilled_bytes: self.unpublished.spilled_bytes(),
        }
    }

    /// Adds a batch whose staged report file could not be published. A shutdown waits for it.
    pub fn add_staged(&self, pending: Pending) {
        self.unpublished.add_staged(pending);
        self.wake_recovery();
    }

    fn wake_recovery(&self) {
        self.pool.maintenance.get().into_iter().for_each(|(_, recovery)| recovery.unpark());
    }

    /// Whether there are batches without memory that are not published.
    #[must_use]
    pub fn has_unpublished(&self) -> bool {
        !self.unpublished.is_empty()
    }

    /// The batches without memory that are not published.
    #[must_use]
    pub fn unpublished(&self) -> Vec<Arc<Pending>> {
        self.unpublished.batches()
    }

    /// Removes a batch that is published now.
    pub fn remove_published(&self, published: &Arc<Pending>) {
        self.unpublished.remove(published);
        self.pool.wake();
    }

    /// Removes the journals that were created for future batches.
    pub fn discard_journals(&self) {
        self.pool.journals.iter().for_each(Journals::close);
    }

    /// Makes `fresh` the active batch in place of `old`. Seals `old` and queues it for the flush. Returns `false` if
    /// `old` was not the active batch. The caller holds `old`, so its address cannot belong to another batch.
    fn swap(&self, old: &Arc<Batch>, fresh: Arc<Batch>, trigger: Trigger) -> bool {
        let active = self.active.compare_and_swap(old, fresh);
        if !Arc::ptr_eq(old, &active) {
            return false;
        }
        old.set_trigger(trigger);
        // Sealed after the swap, so that a rejected writer retries with the new batch.
        old.seal();
        self.return_sealed(Guard::into_inner(active));
        self.pool.wake();
        true
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.commits.close();
    }
}

/// The number of the calling thread. Modulo the number of shards, it is the index of the chunk that the thread tries
/// first.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: the only requirement is that each thread gets a different number.
    thread_local!(static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    SHARD.with(|shard| *shard)
}
