//! What is swapped and flushed as a unit: one segment per shard. One batch becomes one file.

use std::mem;
use std::path::PathBuf;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::Unparker;
use tokio::sync::Notify;

use super::commit::Commit;
use super::cursor::Passed;
use super::segment::{Nanos, Segment};
use super::{Ack, Shape};
use crate::store::{Journals, Stem};

/// The memory of one batch. Each segment on cache lines of its own: neighbours belong to different threads.
type Segments = Box<[CachePadded<Segment>]>;

/// A batch is a lease on a set of segments: it takes them from the pool when it is made and gives them back when its
/// last `Arc` is dropped. No late writer or waiter can exist by then, and no batch is ever made ready for another
/// life by hand.
#[derive(Debug)]
pub struct Batch {
    segments: Segments,
    passed: Passed,
    commit: Option<Commit>,
    stem: OnceLock<Stem>,
    pool: Arc<Pool>,
}

impl Batch {
    /// A batch with memory from the pool, and a journal if there are any; `None` when none is left of either.
    pub(super) fn lease(pool: &Arc<Pool>) -> Option<Arc<Self>> {
        // The journal first. Memory that is taken and given back wakes those who wait for it, and so would whoever
        // asks for a journal in vain, himself among them.
        let journal = match &pool.journals {
            None => None,
            Some(journals) => {
                let journal = journals.take();
                // More are wanted now, or sooner than they came.
                pool.upkeep.get().into_iter().for_each(|(keeper, _)| keeper.unpark());
                Some(journal?)
            }
        };
        let Some(segments) = pool.free.pop() else {
            journal.into_iter().zip(&pool.journals).for_each(|(journal, journals)| journals.give_back(journal));
            return None;
        };
        let mut batch = Self::new(segments, pool);
        batch.commit = journal.map(|journal| Commit::new(journal, pool.ack, batch.segments.len()));
        Some(Arc::new(batch))
    }

    fn new(segments: Segments, pool: &Arc<Pool>) -> Self {
        Self { segments, passed: Passed::new(), commit: None, stem: OnceLock::new(), pool: Arc::clone(pool) }
    }

    /// A batch without memory, for the time after the last one: every append to it is refused.
    pub(super) fn closed(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self::new(Box::default(), pool))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.segments.is_empty()
    }

    /// Appends lines to the shard's segment or, when that is full, to its neighbours in turn; returns the segment and
    /// the offset behind them. `None` when no segment takes them: by then all of them are sealed.
    pub(super) fn append(&self, shard: usize, lines: &[u8], now_ns: Nanos) -> Option<(usize, usize)> {
        let shards = self.segments.len();
        (0..shards).map(|step| (shard + step) % shards).find_map(|index| {
            let segment = &self.segments[index];
            let end = segment.append(lines, now_ns);
            if end.is_none() {
                segment.pass(&self.passed);
            }
            end.map(|end| (index, end))
        })
    }

    /// The journal of a batch that [has one](Self::is_journaled).
    pub(super) fn journaled(&self) -> &Commit {
        self.commit.as_ref().expect("nobody waits for a batch without a journal")
    }

    /// The lines of one segment so far; `None` while one is being copied.
    pub(super) fn segment_lines(&self, index: usize) -> Option<&[u8]> {
        self.segments[index].lines()
    }

    /// The stem of the names of this batch's journal and report file: that of its first report's time, fixed from the
    /// first call on.
    pub fn stem(&self) -> Stem {
        *self.stem.get_or_init(|| Stem::new(self.times().map_or_else(SystemTime::now, |(first, _)| first)))
    }

    /// The journal and its length, if all of the batch may be acknowledged: then nobody waits for it, and nothing is
    /// lost with its memory.
    pub(super) fn spillable(&self) -> Option<(PathBuf, u64)> {
        let commit = self.commit.as_ref()?;
        let lens = self.segments.iter().map(|segment| segment.lines().map(<[u8]>::len));
        if !lens.enumerate().all(|(index, len)| len.is_some_and(|len| commit.has_kept(index, len))) {
            return None;
        }
        commit.journal_file()
    }

    /// Whether this batch has a journal.
    #[must_use]
    pub fn is_journaled(&self) -> bool {
        self.commit.is_some()
    }

    /// Lets go of the journal. All of the batch is in a report file by now.
    pub fn discard_journal(&self) {
        self.commit.iter().for_each(Commit::discard);
    }

    /// Ends appends; those that are being copied may still finish.
    pub(super) fn seal(&self) {
        self.segments.iter().for_each(|segment| segment.seal());
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.segments.iter().all(|segment| segment.is_sealed())
    }

    /// When the first and the last line came; `None` while there is none.
    pub(super) fn times_ns(&self) -> Option<(Nanos, Nanos)> {
        let times = self.segments.iter().filter_map(|segment| segment.times());
        times.reduce(|(first, last), (f, l)| (first.min(f), last.max(l)))
    }

    /// When the first and the last report came, on the system's clock; `None` while there is none.
    pub fn times(&self) -> Option<(SystemTime, SystemTime)> {
        let (first_ns, last_ns) = self.times_ns()?;
        // Not from one look at the system's clock at the start: it may be set right only after that, and the names are
        // to tell the time as the stamps do. The price is that a clock that is set back swaps two names.
        let (now, now_ns) = (SystemTime::now(), self.pool.now_ns());
        let at = |ns| now - Duration::from_nanos(now_ns.saturating_sub(ns));
        Some((at(first_ns), at(last_ns)))
    }

    /// All lines of a sealed batch: whole ones, each ending in a line break, those of one writer in the order in
    /// which it appended them. `None` while a late writer is still copying.
    pub fn lines(&self) -> Option<Vec<&[u8]>> {
        debug_assert!(self.is_sealed());
        let lines = self.segments.iter().map(|segment| segment.lines()).collect::<Option<Vec<_>>>()?;
        let mut by_rank: Vec<_> = self.segments.iter().map(|segment| segment.rank()).zip(lines).collect();
        by_rank.sort_by_key(|(rank, _)| *rank);
        Some(by_rank.into_iter().map(|(_, lines)| lines).filter(|lines| !lines.is_empty()).collect())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let segments = mem::take(&mut self.segments);
        if !segments.is_empty() {
            self.pool.give_back(segments);
        }
    }
}

/// The memory of the batches that are not in use.
#[derive(Debug)]
pub(super) struct Pool {
    free: ArrayQueue<Segments>,
    /// Notified when there may be room for an append that was refused.
    pub(super) room: Notify,
    /// The thread that flushes; it waits for sealed batches and, at the end, for the last memory to come back.
    pub(super) flusher: OnceLock<Thread>,
    /// The threads that make journals and that recover what was spilled.
    pub(super) upkeep: OnceLock<(Thread, Unparker)>,
    /// The journals for batches to come; none when a 200 is sent as soon as a report is in memory.
    pub(super) journals: Option<Journals>,
    ack: Ack,
    /// The start of the monotonic clock that batches are timed with.
    started: Instant,
}

impl Pool {
    pub(super) fn new(shape: Shape, ack: Ack, journals: Option<Journals>) -> Arc<Self> {
        let Shape { batches, shards, segment_bytes } = shape;
        let free = ArrayQueue::new(batches);
        for _ in 0..batches {
            let segments: Segments = (0..shards).map(|_| CachePadded::new(Segment::new(segment_bytes))).collect();
            let pushed = free.push(segments);
            debug_assert!(pushed.is_ok());
        }
        Arc::new(Self {
            free,
            room: Notify::new(),
            flusher: OnceLock::new(),
            upkeep: OnceLock::new(),
            journals,
            ack,
            started: Instant::now(),
        })
    }

    pub(super) fn now_ns(&self) -> Nanos {
        // 584 years fit; 0 stands for never.
        (self.started.elapsed().as_nanos() as Nanos).max(1)
    }

    pub(super) fn has_memory(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether there is memory for another batch, and a journal if there are any.
    pub(super) fn can_lease(&self) -> bool {
        self.has_memory() && self.journals.as_ref().is_none_or(Journals::is_ready)
    }

    /// Whether every batch has given its memory back.
    pub(super) fn is_complete(&self) -> bool {
        self.free.is_full()
    }

    /// Wakes all who wait for a change: a batch was swapped in, or has given its memory back.
    pub(super) fn wake(&self) {
        self.room.notify_waiters();
        self.wake_flusher();
    }

    pub(super) fn wake_flusher(&self) {
        // SeqCst, here and in `Buffer::wake`: a thread that is not found here yet finds what has changed before it waits.
        fence(Ordering::SeqCst);
        self.flusher.get().into_iter().for_each(Thread::unpark);
    }

    fn give_back(&self, mut segments: Segments) {
        segments.iter_mut().for_each(|segment| segment.reset());
        let pushed = self.free.push(segments);
        debug_assert!(pushed.is_ok(), "the pool has a place for each of its sets");
        self.wake();
    }
}
