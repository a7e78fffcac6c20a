//! What is swapped and flushed as a unit: one segment per shard. One batch becomes one file.

use std::mem;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use super::cursor::Passed;
use super::segment::{Nanos, Segment};

/// The memory of one batch. Each segment on cache lines of its own: neighbours belong to different threads.
type Segments = Box<[CachePadded<Segment>]>;

/// A batch is a lease on a set of segments: it takes them from the pool when it is made and gives them back when its
/// last `Arc` is dropped. No late writer or waiter can exist by then, and no batch is ever made ready for another
/// life by hand.
#[derive(Debug)]
pub struct Batch {
    segments: Segments,
    passed: Passed,
    pool: Arc<Pool>,
}

impl Batch {
    /// A batch with memory from the pool; `None` when all of it is in use.
    pub(super) fn lease(pool: &Arc<Pool>) -> Option<Arc<Self>> {
        let segments = pool.free.pop()?;
        Some(Arc::new(Self { segments, passed: Passed::new(), pool: Arc::clone(pool) }))
    }

    /// A batch without memory, for the time after the last one: every append to it is refused.
    pub(super) fn closed(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { segments: Box::default(), passed: Passed::new(), pool: Arc::clone(pool) })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.segments.is_empty()
    }

    /// Appends a line to the shard's segment or, when that is full, to its neighbours in turn; returns the segment
    /// and the offset behind the line. `None` when no segment takes it: by then all of them are sealed.
    pub(super) fn append(&self, shard: usize, line: &[u8], now_ns: Nanos) -> Option<(usize, usize)> {
        let shards = self.segments.len();
        (0..shards).map(|step| (shard + step) % shards).find_map(|index| {
            let segment = &self.segments[index];
            let end = segment.append(line, now_ns);
            if end.is_none() {
                segment.pass(&self.passed);
            }
            end.map(|end| (index, end))
        })
    }

    /// Ends appends; those that are being copied may still finish.
    pub(super) fn seal(&self) {
        self.segments.iter().for_each(|segment| segment.seal());
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.segments.iter().all(|segment| segment.is_sealed())
    }

    /// When the first and the last line came; `None` while there is none.
    pub(super) fn times(&self) -> Option<(Nanos, Nanos)> {
        let times = self.segments.iter().filter_map(|segment| segment.times());
        times.reduce(|(first, last), (f, l)| (first.min(f), last.max(l)))
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
}

impl Pool {
    pub(super) fn new(batches: usize, shards: usize, segment_bytes: usize) -> Arc<Self> {
        let free = ArrayQueue::new(batches);
        for _ in 0..batches {
            let segments: Segments = (0..shards).map(|_| CachePadded::new(Segment::new(segment_bytes))).collect();
            let pushed = free.push(segments);
            debug_assert!(pushed.is_ok());
        }
        Arc::new(Self { free, room: Notify::new(), flusher: OnceLock::new() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether every batch has given its memory back.
    pub(super) fn is_complete(&self) -> bool {
        self.free.is_full()
    }

    /// Wakes all who wait for a change: a batch was swapped in, or has given its memory back.
    pub(super) fn wake(&self) {
        self.room.notify_waiters();
        if let Some(flusher) = self.flusher.get() {
            flusher.unpark();
        }
    }

    fn give_back(&self, mut segments: Segments) {
        segments.iter_mut().for_each(|segment| segment.reset());
        let pushed = self.free.push(segments);
        debug_assert!(pushed.is_ok(), "the pool has a place for each of its sets");
        self.wake();
    }
}
