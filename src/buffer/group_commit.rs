//! Group commit: one write, and one sync, for all requests that wait for the same journal.
//!
//! This file is only the protocol: which task leads, which tasks sleep and until when, and what each of them is told.
//! It contains no journal, no memory and no unsafe code, so that loom can check it.
//!
//! ```text
//!             ┌── no leader ────────► leads: marks durable, fails, or is dropped ──┐
//!   waits ────┤                                                                    ├──► checks again
//!             └── leader, or its ───► sleeps until leadership is released ─────────┘
//!                 chunk is incomplete
//! ```
//!
//! A future may be dropped at any await. So every obligation is fulfilled in a `Drop`.
//!
//! A waiter whose chunk is incomplete does not lead: it could not write its own report. The writer that is still
//! copying to the chunk will wait, too, and find the chunk complete. So the last writer of a chunk always leads or
//! finds a leader.

use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;

use super::sync::{AtomicBool, AtomicUsize, Notified, Notify, Ordering};

/// A batch whose reports become durable in groups.
pub(super) trait GroupCommit: Sized {
    fn progress(&self) -> &Progress;

    /// Whether no writer is copying to the chunk.
    fn is_complete(&self, chunk: usize) -> bool;

    /// Has one group written. [`Leadership::mark_durable`] or [`Leadership::fail`] is called before leadership is
    /// dropped, or else another task leads. The future may be dropped at any await.
    async fn commit_group(leadership: Leadership<Self>);
}

/// How far each chunk is durable, and whether there is a leader.
#[derive(Debug)]
pub(super) struct Progress {
    has_leader: AtomicBool,
    /// Notified when leadership is released: reports are durable, or the journal failed, or another task must lead.
    released: Notify,
    /// For each chunk, the number of bytes that may be acknowledged.
    durable: Box<[AtomicUsize]>,
    /// A group could not be written. Nothing becomes durable after that.
    failed: AtomicBool,
}

/// The batch's journal could not be written or synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reports could not be made durable")]
pub struct NotDurable;

/// Exclusive leadership of the group commit. Dropping it releases leadership. It moves to the committer and back.
#[derive(Debug)]
pub(super) struct Leadership<T: GroupCommit>(Arc<T>);

impl Progress {
    pub(super) fn new(chunks: usize) -> Self {
        Self {
            has_leader: AtomicBool::new(false),
            released: Notify::new(),
            durable: (0..chunks).map(|_| AtomicUsize::new(0)).collect(),
            failed: AtomicBool::new(false),
        }
    }

    /// Whether exactly the first `len` bytes of `chunk` are durable.
    pub(super) fn is_durable(&self, chunk: usize, len: usize) -> bool {
        // Acquire: as in `outcome`.
        self.durable[chunk].load(Ordering::Acquire) == len
    }

    /// Whether the bytes of `chunk` up to `end` may be acknowledged. `None` while this is not decided.
    fn outcome(&self, chunk: usize, end: usize) -> Option<Result<(), NotDurable>> {
        // `failed` is read first. After a failure nothing becomes durable, so the second load is then final. In the
        // other order, a thread that is preempted between the loads could refuse a durable report.
        // Acquire: pairs with the Release in `fail`.
        let failed = self.failed.load(Ordering::Acquire);
        // Acquire: pairs with the Release in `mark_durable`. The acknowledgement happens after the write.
        if self.durable[chunk].load(Ordering::Acquire) >= end {
            return Some(Ok(()));
        }
        failed.then_some(Err(NotDurable))
    }

    /// Resolves when leadership is released, or with [`wake_waiters`](Self::wake_waiters). Call `enable` on it first.
    pub(super) fn woken(&self) -> Notified<'_> {
        self.released.notified()
    }

    /// Wakes all waiting tasks, which check again.
    pub(super) fn wake_waiters(&self) {
        self.released.notify_waiters();
    }

    fn has_leader(&self) -> bool {
        // Relaxed: the caller is registered with `released`. A leader that releases leadership later notifies the
        // caller. If it released leadership before, the lock in `Notify` makes that visible.
        self.has_leader.load(Ordering::Relaxed)
    }
}

impl<T: GroupCommit> Leadership<T> {
    /// Takes leadership, if there is no leader and the journal has not failed.
    fn take(batch: &Arc<T>) -> Option<Self> {
        let progress = batch.progress();
        // Acquire: pairs with the Release in `drop`. A leader sees everything that earlier leaders did.
        progress.has_leader.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let leadership = Self(Arc::clone(batch));
        // Relaxed: only leaders set it, and leadership orders them. After a failure the content of the journal is
        // unknown: a later write or sync that succeeds proves nothing about earlier ones.
        (!progress.failed.load(Ordering::Relaxed)).then_some(leadership)
    }

    /// Marks each chunk as durable up to its end in `ends`.
    pub(super) fn mark_durable(&self, ends: &[usize]) {
        for (durable, end) in self.progress().durable.iter().zip(ends) {
            // Release: pairs with the Acquire in `outcome`.
            durable.store(*end, Ordering::Release);
        }
    }

    /// Declares that nothing more will become durable.
    pub(super) fn fail(&self) {
        // Release: pairs with the Acquire in `outcome`, which must then see what became durable before.
        self.progress().failed.store(true, Ordering::Release);
    }
}

impl<T: GroupCommit> Deref for Leadership<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: GroupCommit> Drop for Leadership<T> {
    fn drop(&mut self) {
        let progress = self.progress();
        // Release: pairs with the Acquire in `take`.
        progress.has_leader.store(false, Ordering::Release);
        // After the store, so that one of the woken tasks can lead.
        progress.released.notify_waiters();
    }
}

/// Waits until the bytes of `chunk` up to `end` are durable. Leads whenever there is no leader. The future may be
/// dropped at any await.
pub(super) async fn durable<T: GroupCommit>(batch: &Arc<T>, chunk: usize, end: usize) -> Result<(), NotDurable> {
    let progress = batch.progress();
    loop {
        if let Some(outcome) = progress.outcome(chunk, end) {
            return outcome;
        }
        if batch.is_complete(chunk)
            && let Some(leadership) = Leadership::take(batch)
        {
            T::commit_group(leadership).await;
            continue;
        }
        let mut released = pin!(progress.released.notified());
        released.as_mut().enable();
        // Checked again after registering, so that no release is missed.
        if progress.outcome(chunk, end).is_none() && (progress.has_leader() || !batch.is_complete(chunk)) {
            released.await;
        }
    }
}

/// Run by `make loom`: every interleaving of a few tasks, each on its own thread, and every value that each load may
/// return. A task that is never woken is a deadlock, which loom reports.
///
/// Limits of the model: the number of preemptions is bounded, because more would take hours. `Notify` and the journal
/// are stand-ins. A failed compare-and-swap sees the latest value here, but may see an older one in reality; the check
/// after registering covers both.
#[cfg(all(test, netwatch_loom))]
mod model {
    use std::array;
    use std::future::{Future, poll_fn};
    use std::task::{Poll, Waker};

    use loom::future::block_on;
    use loom::model::Builder;
    use loom::sync::Mutex;
    use loom::thread;

    use super::super::cursor::Cursor;
    use super::*;

    const TASKS: usize = 3;

    /// A batch with one chunk of one byte per task. All accesses except those of the protocol are relaxed, so loom
    /// shows where a leader could use stale values, or where an acknowledgement could come before the write.
    struct Batch {
        progress: Progress,
        /// For each chunk, the number of complete bytes.
        appended: [AtomicUsize; TASKS],
        /// For each chunk, the number of bytes in the journal. Only leaders use it.
        written: [AtomicUsize; TASKS],
        /// For each chunk, how often it is in the journal.
        journal: [AtomicUsize; TASKS],
        /// Number of groups so far.
        groups: AtomicUsize,
        committer: Committer,
        fate: Fate,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Committer {
        /// The leader writes itself. This leaves more interleavings for the protocol within the limits of the model.
        Inline,
        /// Leadership moves to a thread and back.
        Thread,
    }

    /// What happens to the groups.
    #[derive(Clone, Copy, PartialEq)]
    enum Fate {
        Durable,
        FirstFails,
        SecondFails,
        /// The leadership of the first group is dropped without a result.
        FirstIsDropped,
    }

    impl GroupCommit for Batch {
        fn progress(&self) -> &Progress {
            &self.progress
        }

        fn is_complete(&self, _: usize) -> bool {
            true
        }

        async fn commit_group(leadership: Leadership<Self>) {
            yield_now().await;
            if leadership.committer == Committer::Inline {
                return commit(&leadership);
            }
            // A stand-in for the queue and the channel back. Its last owner drops leadership.
            let channel = Arc::new(Mutex::new((None::<Leadership<Self>>, None::<Waker>)));
            let committed = Arc::clone(&channel);
            thread::spawn(move || {
                commit(&leadership);
                let mut channel = channel.lock().unwrap();
                channel.0 = Some(leadership);
                channel.1.take().into_iter().for_each(Waker::wake);
            });
            let leadership = poll_fn(|context| {
                let mut committed = committed.lock().unwrap();
                committed.1 = Some(context.waker().clone());
                committed.0.take().map_or(Poll::Pending, Poll::Ready)
            });
            drop(leadership.await);
        }
    }

    fn commit(leadership: &Leadership<Batch>) {
        let ends = &leadership.write();
        let group = leadership.groups.load(Ordering::Relaxed);
        leadership.groups.store(group + 1, Ordering::Relaxed);
        match (leadership.fate, group) {
            (Fate::FirstFails, 0) | (Fate::SecondFails, 1) => leadership.fail(),
            (Fate::FirstFails, _) | (Fate::SecondFails, 2..) => panic!("a task leads after a failure"),
            (Fate::FirstIsDropped, 0) => {}
            _ => leadership.mark_durable(ends),
        }
    }

    impl Batch {
        fn new(committer: Committer, fate: Fate) -> Arc<Self> {
            let zeros = || array::from_fn(|_| AtomicUsize::new(0));
            let progress = Progress::new(TASKS);
            let (appended, written, journal, groups) = (zeros(), zeros(), zeros(), AtomicUsize::new(0));
            Arc::new(Self { progress, appended, written, journal, groups, committer, fate })
        }

        fn write(&self) -> [usize; TASKS] {
            array::from_fn(|chunk| {
                let end = self.appended[chunk].load(Ordering::Acquire);
                if end > self.written[chunk].load(Ordering::Relaxed) {
                    let times = self.journal[chunk].load(Ordering::Relaxed);
                    self.journal[chunk].store(times + 1, Ordering::Relaxed);
                    self.written[chunk].store(end, Ordering::Relaxed);
                }
                end
            })
        }

        /// A task that appends and waits. If `polls` is set, the task is dropped after that many polls. Returns whether
        /// the task learned that its report is durable.
        fn append(self: Arc<Self>, task: usize, polls: Option<usize>) -> bool {
            self.appended[task].store(1, Ordering::Release);
            let outcome = block_on(abandon(durable(&self, task, 1), polls));
            match outcome {
                Some(Ok(())) => {
                    assert!(self.fate != Fate::FirstFails);
                    assert_eq!(self.journal[task].load(Ordering::Relaxed), 1, "durable, and written once");
                }
                Some(Err(NotDurable)) => {
                    assert!(matches!(self.fate, Fate::FirstFails | Fate::SecondFails));
                    assert!(!self.progress.is_durable(task, 1), "a durable report was refused");
                }
                None => assert!(polls.is_some()),
            }
            outcome == Some(Ok(()))
        }
    }

    async fn yield_now() {
        let mut yielded = false;
        poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Drops `future` after `polls` polls, even if it was woken since.
    async fn abandon<F: Future>(future: F, mut polls: Option<usize>) -> Option<F::Output> {
        let mut future = Some(Box::pin(future));
        poll_fn(move |context| {
            let outcome = future.as_mut().expect("polled after completion").as_mut().poll(context).map(Some);
            polls = polls.map(|polls| polls - 1);
            if polls == Some(0) {
                future = None;
                return Poll::Ready(None);
            }
            outcome
        })
        .await
    }

    /// Runs one task for each element of `polls`, the first one on this thread. `preemptions` limits the run to
    /// seconds.
    /// `LOOM_MAX_PREEMPTIONS` overrides it.
    fn check(committer: Committer, fate: Fate, preemptions: usize, polls: &'static [Option<usize>]) {
        let mut builder = Builder::new();
        builder.preemption_bound.get_or_insert(preemptions);
        builder.check(move || {
            let batch = Batch::new(committer, fate);
            let others: Vec<_> = (1..polls.len())
                .map(|task| {
                    let batch = Arc::clone(&batch);
                    thread::spawn(move || batch.append(task, polls[task]))
                })
                .collect();
            let mut durable = vec![Arc::clone(&batch).append(0, polls[0])];
            durable.extend(others.into_iter().map(|other| other.join().unwrap()));
            for task in (0..durable.len()).filter(|task| durable[*task]) {
                assert!(batch.progress.is_durable(task, 1), "a later group reset it");
            }
        });
    }

    #[test]
    fn every_task_is_woken_and_none_is_told_before_the_write() {
        check(Committer::Inline, Fate::Durable, 3, &[None; 2]);
        check(Committer::Inline, Fate::Durable, 2, &[None; 3]);
    }

    #[test]
    fn leadership_moves_to_the_committer_and_back() {
        check(Committer::Thread, Fate::Durable, 2, &[None; 2]);
    }

    #[test]
    fn a_dropped_leader_or_waiter_leaves_no_task_asleep() {
        // Dropped before the write, or while it sleeps, notified or not.
        check(Committer::Inline, Fate::Durable, 3, &[Some(1), None]);
        check(Committer::Inline, Fate::Durable, 2, &[Some(1), None, None]);
    }

    #[test]
    fn a_group_is_committed_without_the_task_that_started_it() {
        check(Committer::Thread, Fate::Durable, 3, &[Some(1), None]);
        check(Committer::Thread, Fate::Durable, 2, &[Some(2), None]);
    }

    #[test]
    fn leadership_dropped_without_a_result_is_taken_by_another_task() {
        check(Committer::Inline, Fate::FirstIsDropped, 3, &[None; 2]);
        check(Committer::Thread, Fate::FirstIsDropped, 1, &[None; 2]);
    }

    #[test]
    fn a_failed_group_is_reported_to_all_its_waiters() {
        check(Committer::Inline, Fate::FirstFails, 3, &[None; 2]);
        check(Committer::Inline, Fate::FirstFails, 2, &[None; 3]);
        check(Committer::Thread, Fate::FirstFails, 2, &[None; 2]);
    }

    #[test]
    fn a_failure_after_a_durable_group_refuses_no_durable_report() {
        check(Committer::Inline, Fate::SecondFails, 3, &[None; 2]);
        check(Committer::Inline, Fate::SecondFails, 2, &[None; 3]);
    }

    /// A batch with one chunk that two tasks share.
    struct Shared {
        progress: Progress,
        cursor: Cursor,
        groups: AtomicUsize,
    }

    impl GroupCommit for Shared {
        fn progress(&self) -> &Progress {
            &self.progress
        }

        fn is_complete(&self, _: usize) -> bool {
            self.cursor.complete_len().is_some()
        }

        async fn commit_group(leadership: Leadership<Self>) {
            yield_now().await;
            let groups = leadership.groups.load(Ordering::Relaxed) + 1;
            leadership.groups.store(groups, Ordering::Relaxed);
            assert!(groups <= 3, "a task leads again and again while another one copies");
            if let Some(len) = leadership.cursor.complete_len() {
                leadership.mark_durable(&[len]);
            }
        }
    }

    #[test]
    fn a_waiter_sleeps_while_another_task_copies_to_its_chunk() {
        let mut builder = Builder::new();
        builder.preemption_bound.get_or_insert(3);
        builder.check(|| {
            let progress = Progress::new(1);
            let batch = Arc::new(Shared { progress, cursor: Cursor::new(), groups: AtomicUsize::new(0) });
            let append = |batch: Arc<Shared>| {
                let end = batch.cursor.reserve(1, 2).unwrap() + 1;
                batch.cursor.commit(1);
                assert_eq!(block_on(durable(&batch, 0, end)), Ok(()));
            };
            let other = {
                let batch = Arc::clone(&batch);
                thread::spawn(move || append(batch))
            };
            append(Arc::clone(&batch));
            other.join().unwrap();
            assert!(batch.progress.is_durable(0, 2));
        });
    }
}
