//! A batch: the unit of swapping and flushing. It has one chunk per shard. One batch becomes one report file.

use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::batch_journal::BatchJournal;
use super::chunk::Nanos;
use super::committer::CommitQueue;
use super::pool::{Chunks, Pool};
use crate::config::Ack;
use crate::metrics::{Metrics, Trigger};
use crate::report::Reports;
use crate::store::{BatchId, Journal, Pending};

/// A lease on memory. A batch takes its chunks from the pool when it is created, and returns them when its last `Arc`
/// is dropped. So no late writer or waiter can exist when the memory is used again.
#[derive(Debug)]
pub struct Batch {
    chunks: Chunks,
    journal: Option<BatchJournal>,
    id: OnceLock<BatchId>,
    /// The pool no longer counts this batch as unflushed.
    is_settled: AtomicBool,
    trigger: OnceLock<Trigger>,
    pool: Arc<Pool>,
}

impl Batch {
    /// A batch with memory from the pool, and a journal unless `ACK=memory`. `None` if there is no free memory or no
    /// journal.
    pub(super) fn lease(pool: &Arc<Pool>) -> Option<Arc<Self>> {
        // The journal first: memory that is taken and returned wakes all waiting tasks, including this one.
        let journal = match &pool.journals {
            None => None,
            Some(journals) => Some(journals.take()?),
        };
        let Some(chunks) = pool.take_memory() else {
            journal.into_iter().zip(&pool.journals).for_each(|(journal, journals)| journals.retire(journal));
            return None;
        };
        if journal.is_some() {
            // A journal is missing now. A lease that fails does not wake the thread: that would be a system call per
            // refused request.
            pool.maintenance.get().into_iter().for_each(|(maintenance, _)| maintenance.unpark());
        }
        let journal = journal.map(|journal| BatchJournal::new(journal, chunks.len()));
        let batch = Arc::new(Self::new(chunks, journal, pool));
        pool.register(&batch);
        Some(batch)
    }

    /// A batch without memory, which refuses every append. It is the active batch of a closed buffer.
    pub(super) fn closed(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self::new(Box::default(), None, pool))
    }

    fn new(chunks: Chunks, journal: Option<BatchJournal>, pool: &Arc<Pool>) -> Self {
        let is_settled = AtomicBool::new(chunks.is_empty());
        Self { chunks, journal, id: OnceLock::new(), is_settled, trigger: OnceLock::new(), pool: Arc::clone(pool) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Appends the lines of reports to the chunk of the shard or, if that is full, to the next chunk with space. Returns the chunk and
    /// the offset after the lines. Returns `None` if no chunk has space; then all chunks are sealed.
    pub(super) fn append(&self, shard: usize, reports: &Reports<'_>, now_ns: Nanos) -> Option<(usize, usize)> {
        let shards = self.chunks.len();
        let mut indices = (0..shards).map(|step| (shard + step) % shards);
        let (lines, count) = (reports.as_bytes(), reports.count());
        indices.find_map(|index| Some((index, self.chunks[index].append(lines, count, now_ns)?)))
    }

    pub(super) fn ack(&self) -> Ack {
        self.pool.ack
    }

    pub(super) fn now_ns(&self) -> Nanos {
        self.pool.now_ns()
    }

    pub(super) fn commit_queue(&self) -> &Arc<CommitQueue> {
        &self.pool.commits
    }

    pub(super) fn wake_flusher(&self) {
        self.pool.wake_flusher();
    }

    /// The journal of a batch that [has one](Self::has_journal).
    ///
    /// # Panics
    /// If the batch has none.
    pub(super) fn journal(&self) -> &BatchJournal {
        self.journal.as_ref().expect("only batches with a journal have a group commit")
    }

    /// The complete lines of a chunk. `None` while a writer is copying.
    pub(super) fn chunk_lines(&self, index: usize) -> Option<&[u8]> {
        self.chunks[index].lines()
    }

    pub(super) fn is_complete(&self, index: usize) -> bool {
        self.chunks[index].complete_len().is_some()
    }

    /// The id of this batch. The first call fixes it, from the time of the first report.
    pub fn id(&self) -> BatchId {
        *self.id.get_or_init(|| BatchId::new(self.times().map_or_else(SystemTime::now, |(first, _)| first)))
    }

    /// The batch without its memory, if the whole batch is durable in its journal and recovery could find the journal
    /// after a crash. Then no task waits for the batch, and its memory can be released.
    pub(super) fn to_spill(&self) -> Option<Pending> {
        let journal = self.journal.as_ref()?;
        let lens = self.chunks.iter().map(|chunk| chunk.complete_len());
        let is_durable =
            |(index, len): (usize, Option<usize>)| len.is_some_and(|len| journal.progress.is_durable(index, len));
        (lens.enumerate().all(is_durable) && journal.journal.is_recoverable())
            .then(|| Pending::spilled(self.id(), Arc::clone(&journal.journal), self.reports()))
    }

    /// Whether this batch has a journal.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Removes the journal, durably. The batch must be staged as a report file by now.
    ///
    /// # Errors
    /// Errors of the file system. The journal may be there or not.
    pub fn remove_journal(&self) -> std::io::Result<()> {
        self.journal.as_ref().map_or(Ok(()), |journal| journal.journal.remove())
    }

    /// The journal, which outlives the batch if the batch is [pending](Pending).
    #[must_use]
    pub fn journal_handle(&self) -> Option<Arc<Journal>> {
        self.journal.as_ref().map(|journal| Arc::clone(&journal.journal))
    }

    /// Marks this batch as flushed: it is published, or staged. A shutdown of the flush thread no longer waits for it.
    pub(crate) fn settle(&self) {
        if !self.is_settled.swap(true, Ordering::SeqCst) {
            self.pool.settle();
            self.journal.iter().for_each(|journal| journal.progress.wake_waiters());
        }
    }

    /// Waits until this batch is flushed.
    pub(super) async fn flushed(&self) {
        let Some(journal) = &self.journal else { return };
        loop {
            let mut woken = pin!(journal.progress.woken());
            // Registered before the check, so that no change is missed.
            woken.as_mut().enable();
            if self.is_settled.load(Ordering::SeqCst) {
                return;
            }
            woken.await;
        }
    }

    /// Ends appends. Appends that are being copied may still finish.
    pub(super) fn seal(&self) {
        self.chunks.iter().for_each(|chunk| chunk.seal());
    }

    /// Records why this batch is sealed. Only the first call has an effect.
    pub(super) fn set_trigger(&self, trigger: Trigger) {
        self.trigger.get_or_init(|| trigger);
    }

    /// Why this batch was sealed.
    #[must_use]
    pub fn trigger(&self) -> Trigger {
        self.trigger.get().copied().unwrap_or(Trigger::Full)
    }

    /// The number of reports, exact when no writer is copying.
    #[must_use]
    pub fn reports(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.reports()).sum()
    }

    /// Bytes of complete lines, as far as no writer is copying.
    pub(super) fn len(&self) -> u64 {
        self.chunks.iter().filter_map(|chunk| chunk.complete_len()).sum::<usize>() as u64
    }

    pub(super) fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::SeqCst)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.pool.metrics
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.is_sealed())
    }

    /// The times of the first and the last line. `None` if there is none.
    pub(super) fn times_ns(&self) -> Option<(Nanos, Nanos)> {
        let times = self.chunks.iter().filter_map(|chunk| chunk.times());
        times.reduce(|(first, last), (f, l)| (first.min(f), last.max(l)))
    }

    /// The times of the first and the last report, on the system clock. `None` if there is no report.
    pub fn times(&self) -> Option<(SystemTime, SystemTime)> {
        let (first_ns, last_ns) = self.times_ns()?;
        // Read for each batch, because the clock may be corrected after the start and file names should match stamps.
        // The price: a clock that is set back can swap the order of two names.
        let (now, now_ns) = (SystemTime::now(), self.pool.now_ns());
        let at = |ns| now - Duration::from_nanos(now_ns.saturating_sub(ns));
        Some((at(first_ns), at(last_ns)))
    }

    /// All lines of a sealed batch, each with its line break, in one slice per chunk. The reports of one request are
    /// adjacent and in order. There is no order between requests. `None` while a late writer is copying.
    pub fn lines(&self) -> Option<Vec<&[u8]>> {
        debug_assert!(self.is_sealed());
        let lines = self.chunks.iter().map(|chunk| chunk.lines()).collect::<Option<Vec<_>>>()?;
        Some(lines.into_iter().filter(|lines| !lines.is_empty()).collect())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let chunks = mem::take(&mut self.chunks);
        if chunks.is_empty() {
            return;
        }
        self.settle();
        // A thread that lost the race to rotate drops its unused batch. The journal goes back, or the other threads
        // would wait for a new one. A used journal is closed elsewhere: this may be a request thread.
        if let Some((BatchJournal { journal, .. }, journals)) = self.journal.take().zip(self.pool.journals.as_ref()) {
            journals.retire(journal);
        }
        self.pool.return_memory(chunks);
    }
}
