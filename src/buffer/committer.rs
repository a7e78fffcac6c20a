//! The committer: writes, and syncs, the journals of batches, one group after the other.
//!
//! It is a thread of its own, because a disk may not respond, and request threads never wait for a disk. A leader lets
//! other ready tasks append, and hands its leadership to the committer. The committer writes all complete lines with
//! one positioned, vectored write. No timer delays a group. Tasks that append in the meantime wait for the next group.
//!
//! ```text
//!   leader ──leadership──► queue ──► committer: write, sync, mark durable ──leadership──► leader: release, wake tasks
//! ```
//!
//! The leader releases leadership, because a worker wakes its own tasks at a lower cost than another thread does. If
//! the leader is gone, the committer releases it.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot;

use super::batch::Batch;
use super::chunk::Nanos;
use super::group_commit::{GroupCommit, Leadership, Progress};
use crate::config::Ack;
use crate::metrics::Trigger;

impl GroupCommit for Batch {
    fn progress(&self) -> &Progress {
        &self.journal().progress
    }

    fn is_complete(&self, chunk: usize) -> bool {
        Batch::is_complete(self, chunk)
    }

    async fn commit_group(leadership: Leadership<Self>) {
        // Other ready tasks append first.
        tokio::task::yield_now().await;
        let (done, committed) = oneshot::channel();
        let queue = Arc::clone(leadership.commit_queue());
        queue.push(Group { leadership, done });
        // An error means that the group was dropped. Another task leads then.
        drop(committed.await);
    }
}

/// Groups that wait for the committer. There is at most one for each batch.
#[derive(Debug)]
pub(super) struct CommitQueue {
    groups: ArrayQueue<Group>,
    committer: OnceLock<Thread>,
    is_closed: AtomicBool,
    /// When the operation that the committer waits for began, on the buffer's clock. 0 if there is none.
    busy_since_ns: AtomicU64,
}

/// One group of the group commit.
#[derive(Debug)]
struct Group {
    leadership: Leadership<Batch>,
    /// Returns leadership to the leader.
    done: oneshot::Sender<Leadership<Batch>>,
}

impl CommitQueue {
    pub(super) fn new(batches: usize) -> Self {
        Self {
            groups: ArrayQueue::new(batches),
            committer: OnceLock::new(),
            is_closed: AtomicBool::new(false),
            busy_since_ns: AtomicU64::new(0),
        }
    }

    fn push(&self, group: Group) {
        let pushed = self.groups.push(group);
        debug_assert!(pushed.is_ok(), "each batch has one leadership, and the queue has a place for each batch");
        self.wake();
    }

    fn wake(&self) {
        // SeqCst, here and in `run`: a thread that is not registered yet sees the change before it parks.
        fence(Ordering::SeqCst);
        self.committer.get().into_iter().for_each(Thread::unpark);
    }

    /// Commits all groups that wait.
    pub(super) fn commit_waiting(&self) {
        while let Some(group) = self.groups.pop() {
            // Relaxed, here and below: the value is only compared with the clock.
            self.busy_since_ns.store(group.leadership.now_ns(), Ordering::Relaxed);
            let busy = Busy(self);
            group.commit();
            drop(busy);
        }
    }

    /// How long the committer has waited for the disk.
    pub(super) fn busy_for(&self, now_ns: Nanos) -> Duration {
        match self.busy_since_ns.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since_ns => Duration::from_nanos(now_ns.saturating_sub(since_ns)),
        }
    }

    /// Starts the committer. It ends after [`close`](Self::close).
    pub(super) fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let queue = Arc::clone(self);
        thread::Builder::new().name("commit".to_owned()).spawn(move || queue.run())?;
        Ok(())
    }

    fn run(&self) {
        self.committer.get_or_init(thread::current);
        fence(Ordering::SeqCst);
        while !self.is_closed.load(Ordering::Relaxed) {
            // A panic fails its group. Without this thread, no report would become durable.
            if panic::catch_unwind(AssertUnwindSafe(|| self.commit_waiting())).is_ok() {
                thread::park();
            }
        }
    }

    /// Ends the committer. Drops the groups that still wait: a group refers to its batch, and through it to this queue.
    pub(super) fn close(&self) {
        // Relaxed: the fence and the wake-up follow.
        self.is_closed.store(true, Ordering::Relaxed);
        while self.groups.pop().is_some() {}
        self.wake();
    }
}

/// Dropping it marks the committer as idle.
struct Busy<'a>(&'a CommitQueue);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy_since_ns.store(0, Ordering::Relaxed);
    }
}

impl Group {
    fn commit(self) {
        let Self { leadership, done } = self;
        let started = Instant::now();
        match panic::catch_unwind(AssertUnwindSafe(|| leadership.write_journal())) {
            Ok(Ok(ends)) => {
                let metrics = leadership.metrics();
                metrics.commit_ns.observe_duration(started.elapsed());
                metrics.group_reports.observe(leadership.journal().advance_reports(leadership.reports()));
                leadership.mark_durable(&ends);
            }
            Ok(Err(error)) => fail(&leadership, &error),
            // Another group of this journal could panic as well.
            Err(panic) => {
                fail(&leadership, &io::Error::other("the committer panicked"));
                panic::resume_unwind(panic);
            }
        }
        // If the leader is gone, this drops leadership, which releases it.
        drop(done.send(leadership));
    }
}

impl Batch {
    /// Writes all complete lines that are not in the journal yet. Syncs them if `ACK=disk`. Returns the end of each
    /// chunk.
    fn write_journal(&self) -> io::Result<Box<[usize]>> {
        let journal = self.journal();
        let ends = journal.write(|| self.id(), |chunk| self.chunk_lines(chunk))?;
        if self.ack() == Ack::Disk {
            journal.sync()?;
        }
        Ok(ends)
    }
}

fn fail(leadership: &Leadership<Batch>, error: &io::Error) {
    leadership.journal().journal.report_failure(error);
    leadership.set_trigger(Trigger::JournalFailed);
    leadership.seal();
    leadership.fail();
    // The sealed batch is due. Its reports are in memory, and the flush may succeed.
    leadership.wake_flusher();
}
