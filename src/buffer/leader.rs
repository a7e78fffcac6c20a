//! The hand-over of a group commit: who leads, who sleeps and until when, and what everybody is told.
//!
//! No journal, no memory and no unsafe code here, so that it can be model-checked as it is.
//!
//! ```text
//!            ┌── nobody leads ───► leads: keeps, fails, or is dropped ──┐
//!   waits ───┤                                                          ├──► looks again
//!            └── somebody does ──► sleeps until the role is given up ───┘
//! ```
//!
//! Any of them may go away at any await, so whatever has to happen happens in a drop.

use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;

#[cfg(netwatch_loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(not(netwatch_loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(not(netwatch_loom))]
use tokio::sync::Notify;

#[cfg(netwatch_loom)]
use self::notify::Notify;

/// What is written in groups, each by a leader.
pub(super) trait Led: Sized {
    fn progress(&self) -> &Progress;

    /// Writes one group. Ends with [`Lead::keep`] or [`Lead::fail`], or is dropped at any await; then somebody else
    /// leads.
    async fn lead(lead: Lead<Self>);
}

/// How far each segment is kept, and whether somebody sees to it.
#[derive(Debug)]
pub(super) struct Progress {
    /// Whether there is a leader.
    led: AtomicBool,
    /// Notified when a leader has gone: something is kept, or nothing will be, or somebody else has to lead.
    given_up: Notify,
    /// For each segment, how many of its bytes may be acknowledged.
    kept: Box<[AtomicUsize]>,
    /// A group could not be written. Nobody who waits may be told that his report is kept.
    failed: AtomicBool,
}

/// The batch's journal could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal can't be written")]
pub struct NotKept;

/// The role of the leader, of which there is one at a time. Dropping it gives it up, whatever became of the leader. It
/// may go along to another thread, and lasts as long as it does there.
pub(super) struct Lead<T: Led>(Arc<T>);

impl Progress {
    pub(super) fn new(segments: usize) -> Self {
        Self {
            led: AtomicBool::new(false),
            given_up: Notify::new(),
            kept: (0..segments).map(|_| AtomicUsize::new(0)).collect(),
            failed: AtomicBool::new(false),
        }
    }

    /// Whether just the first `len` bytes of `segment` are kept.
    pub(super) fn has_kept(&self, segment: usize, len: usize) -> bool {
        // Acquire: as in `outcome`.
        self.kept[segment].load(Ordering::Acquire) == len
    }

    /// Whether the bytes of `segment` up to `end` may be acknowledged; `None` when that is not known yet.
    fn outcome(&self, segment: usize, end: usize) -> Option<Result<(), NotKept>> {
        // Acquire: pairs with the Release in `keep`: what follows an acknowledgement follows the write.
        if self.kept[segment].load(Ordering::Acquire) >= end {
            return Some(Ok(()));
        }
        // Relaxed: a report is not kept just because others can't be.
        self.failed.load(Ordering::Relaxed).then_some(Err(NotKept))
    }

    fn is_led(&self) -> bool {
        // Relaxed: asked by those who are registered already. Either the leader that goes notifies them, or it has
        // notified before they registered, which the lock in `Notify` lets them know.
        self.led.load(Ordering::Relaxed)
    }
}

impl<T: Led> Lead<T> {
    /// The role, if nobody has it and there is any use in having it.
    fn take(led: &Arc<T>) -> Option<Self> {
        let progress = led.progress();
        // Acquire: pairs with the Release in `drop`; a leader sees all that those before it did.
        progress.led.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let lead = Self(Arc::clone(led));
        // Relaxed: set by a leader, so the role orders it. After a failure nobody knows what the journal holds: a later
        // write or sync that succeeds says nothing of what came before.
        (!progress.failed.load(Ordering::Relaxed)).then_some(lead)
    }

    /// Says that each segment is kept up to its end.
    pub(super) fn keep(self, ends: &[usize]) {
        for (kept, end) in self.progress().kept.iter().zip(ends) {
            // Release: pairs with the Acquire in `outcome`.
            kept.store(*end, Ordering::Release);
        }
    }

    /// Says that nothing more is going to be kept.
    pub(super) fn fail(self) {
        // Relaxed: who is woken by the end of this role sees it, and so does who has the next one.
        self.progress().failed.store(true, Ordering::Relaxed);
    }
}

impl<T: Led> Deref for Lead<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Led> Drop for Lead<T> {
    fn drop(&mut self) {
        let progress = self.progress();
        // Release: pairs with the Acquire in `take`.
        progress.led.store(false, Ordering::Release);
        // After that, so that one of those who wake can lead.
        progress.given_up.notify_waiters();
    }
}

/// Waits until the bytes of `segment` up to `end` are kept, and leads whenever nobody else does. May be dropped at any
/// await.
pub(super) async fn kept<T: Led>(led: &Arc<T>, segment: usize, end: usize) -> Result<(), NotKept> {
    let progress = led.progress();
    loop {
        if let Some(outcome) = progress.outcome(segment, end) {
            return outcome;
        }
        if let Some(lead) = Lead::take(led) {
            T::lead(lead).await;
            continue;
        }
        let mut given_up = pin!(progress.given_up.notified());
        given_up.as_mut().enable();
        // Once more, now that no change can be missed.
        if progress.outcome(segment, end).is_none() && progress.is_led() {
            given_up.await;
        }
    }
}

/// What `tokio::sync::Notify` promises, for loom.
#[cfg(netwatch_loom)]
mod notify {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use loom::sync::Mutex;

    #[derive(Debug)]
    pub(super) struct Notify(Mutex<Registered>);

    /// Those to be notified next, by their numbers.
    #[derive(Debug, Default)]
    struct Registered {
        next: usize,
        wakers: Vec<(usize, Option<Waker>)>,
    }

    pub(super) struct Notified<'a> {
        notify: &'a Notify,
        number: Option<usize>,
    }

    impl Notify {
        pub(super) fn new() -> Self {
            Self(Mutex::default())
        }

        pub(super) fn notified(&self) -> Notified<'_> {
            Notified { notify: self, number: None }
        }

        /// Wakes those who have registered, and nobody else: less than tokio does, which has it that they register when
        /// they are made.
        pub(super) fn notify_waiters(&self) {
            let registered = std::mem::take(&mut self.0.lock().unwrap().wakers);
            registered.into_iter().filter_map(|(_, waker)| waker).for_each(Waker::wake);
        }
    }

    impl Notified<'_> {
        pub(super) fn enable(self: Pin<&mut Self>) -> bool {
            self.poll_notified(None).is_ready()
        }

        fn poll_notified(mut self: Pin<&mut Self>, waker: Option<&Waker>) -> Poll<()> {
            let mut registered = self.notify.0.lock().unwrap();
            let Some(number) = self.number else {
                let number = registered.next;
                registered.next += 1;
                registered.wakers.push((number, waker.cloned()));
                drop(registered);
                self.number = Some(number);
                return Poll::Pending;
            };
            match registered.wakers.iter_mut().find(|(other, _)| *other == number) {
                None => Poll::Ready(()),
                Some((_, registered)) => {
                    *registered = waker.cloned();
                    Poll::Pending
                }
            }
        }
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            self.poll_notified(Some(context.waker()))
        }
    }

    impl Drop for Notified<'_> {
        fn drop(&mut self) {
            if self.number.is_some() {
                self.notify.0.lock().unwrap().wakers.retain(|(number, _)| Some(*number) != self.number);
            }
        }
    }
}

/// Run by `make loom`, as the cursor's models are: every interleaving of a few tasks, each on a thread of its own, and
/// every value that each of their loads may see. Whoever is left asleep is a deadlock, which loom reports.
///
/// What it does not show: a task is preempted a few times at most, or this would take hours. `Notify` is a stand-in that
/// promises less than tokio's, and the journal is one, too: `commit`'s part in this is left to the tests of the buffer.
/// A compare-and-swap that fails has seen the latest value here, a real one may have seen an older one; the look after
/// registering is there for both.
#[cfg(all(test, netwatch_loom))]
mod model {
    use std::array;
    use std::future::{Future, poll_fn};
    use std::task::{Poll, Waker};

    use loom::future::block_on;
    use loom::model::Builder;
    use loom::sync::Mutex;
    use loom::thread;

    use super::*;

    const TASKS: usize = 3;

    /// A batch with a segment of one byte for each task. All but the progress is relaxed: where the role would let a
    /// leader work with what is stale, or an acknowledgement come before the write, loom shows it.
    struct Batch {
        progress: Progress,
        /// For each segment, how many of its bytes are complete.
        appended: [AtomicUsize; TASKS],
        /// For each segment, how many of its bytes are in the journal: the leader's own.
        written: [AtomicUsize; TASKS],
        /// How often each segment is in the journal.
        journal: [AtomicUsize; TASKS],
        /// Groups so far.
        groups: AtomicUsize,
        ack: Ack,
        first: First,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Ack {
        Journal,
        /// The role goes along to a thread that syncs.
        Disk,
    }

    /// What becomes of the first group.
    #[derive(Clone, Copy, PartialEq)]
    enum First {
        Kept,
        Failed,
        /// Its role is given up before anything is said.
        Dropped,
    }

    impl Led for Batch {
        fn progress(&self) -> &Progress {
            &self.progress
        }

        async fn lead(lead: Lead<Self>) {
            yield_now().await;
            let ends = lead.write();
            if lead.ack == Ack::Journal {
                return finish(lead, &ends);
            }
            let synced = Arc::new(Mutex::new((false, None::<Waker>)));
            let sync = Arc::clone(&synced);
            thread::spawn(move || {
                finish(lead, &ends);
                let mut sync = sync.lock().unwrap();
                sync.0 = true;
                sync.1.take().into_iter().for_each(Waker::wake);
            });
            poll_fn(|context| {
                let mut synced = synced.lock().unwrap();
                synced.1 = Some(context.waker().clone());
                if synced.0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    fn finish(lead: Lead<Batch>, ends: &[usize]) {
        let group = lead.groups.load(Ordering::Relaxed);
        lead.groups.store(group + 1, Ordering::Relaxed);
        match lead.first {
            First::Failed if group == 0 => lead.fail(),
            First::Failed => panic!("nobody leads after a failure"),
            First::Dropped if group == 0 => drop(lead),
            First::Kept | First::Dropped => lead.keep(ends),
        }
    }

    impl Batch {
        fn new(ack: Ack, first: First) -> Arc<Self> {
            let zeros = || array::from_fn(|_| AtomicUsize::new(0));
            let progress = Progress::new(TASKS);
            let (appended, written, journal, groups) = (zeros(), zeros(), zeros(), AtomicUsize::new(0));
            Arc::new(Self { progress, appended, written, journal, groups, ack, first })
        }

        fn write(&self) -> [usize; TASKS] {
            array::from_fn(|segment| {
                let end = self.appended[segment].load(Ordering::Acquire);
                if end > self.written[segment].load(Ordering::Relaxed) {
                    let times = self.journal[segment].load(Ordering::Relaxed);
                    self.journal[segment].store(times + 1, Ordering::Relaxed);
                    self.written[segment].store(end, Ordering::Relaxed);
                }
                end
            })
        }

        /// A task that appends and waits. If it goes away, it does so when it was polled `polls` times. Returns whether
        /// it was told that its report is kept.
        fn append(self: Arc<Self>, task: usize, polls: Option<usize>) -> bool {
            self.appended[task].store(1, Ordering::Release);
            let outcome = block_on(abandon(kept(&self, task, 1), polls));
            match outcome {
                Some(Ok(())) => {
                    assert!(self.first != First::Failed);
                    assert_eq!(self.journal[task].load(Ordering::Relaxed), 1, "kept, and written once");
                }
                Some(Err(NotKept)) => assert!(self.first == First::Failed),
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

    /// Drops `future` when it was polled so many times, whatever has happened to it since.
    async fn abandon<F: Future>(future: F, mut polls: Option<usize>) -> Option<F::Output> {
        let mut future = Some(Box::pin(future));
        poll_fn(move |context| {
            let outcome = future.as_mut().expect("not done yet").as_mut().poll(context).map(Some);
            polls = polls.map(|polls| polls - 1);
            if polls == Some(0) {
                future = None;
                return Poll::Ready(None);
            }
            outcome
        })
        .await
    }

    /// Runs one task for each of `polls`, the first on this thread. `preemptions` keeps this to seconds; the variable
    /// `LOOM_MAX_PREEMPTIONS` overrides it.
    fn check(ack: Ack, first: First, preemptions: usize, polls: &'static [Option<usize>]) {
        let mut builder = Builder::new();
        builder.preemption_bound.get_or_insert(preemptions);
        builder.check(move || {
            let batch = Batch::new(ack, first);
            let others: Vec<_> = (1..polls.len())
                .map(|task| {
                    let batch = Arc::clone(&batch);
                    thread::spawn(move || batch.append(task, polls[task]))
                })
                .collect();
            let mut kept = vec![Arc::clone(&batch).append(0, polls[0])];
            kept.extend(others.into_iter().map(|other| other.join().unwrap()));
            for task in (0..kept.len()).filter(|task| kept[*task]) {
                assert!(batch.progress.has_kept(task, 1), "a later group takes nothing back");
            }
        });
    }

    #[test]
    fn nobody_is_left_asleep_or_told_before_the_write() {
        check(Ack::Journal, First::Kept, 3, &[None; 2]);
        check(Ack::Journal, First::Kept, 2, &[None; 3]);
    }

    #[test]
    fn the_role_goes_along_to_the_thread_that_syncs() {
        check(Ack::Disk, First::Kept, 2, &[None; 2]);
    }

    #[test]
    fn a_leader_or_a_waiter_that_goes_away_leaves_nobody_asleep() {
        // Before the write, or while it sleeps, whether or not it was notified just now.
        check(Ack::Journal, First::Kept, 3, &[Some(1), None]);
        check(Ack::Journal, First::Kept, 2, &[Some(1), None, None]);
    }

    #[test]
    fn a_sync_goes_on_without_its_leader() {
        check(Ack::Disk, First::Kept, 3, &[Some(1), None]);
        check(Ack::Disk, First::Kept, 2, &[Some(2), None]);
    }

    #[test]
    fn a_role_that_is_given_up_with_nothing_said_is_taken_by_another() {
        check(Ack::Journal, First::Dropped, 3, &[None; 2]);
        check(Ack::Disk, First::Dropped, 1, &[None; 2]);
    }

    #[test]
    fn a_failed_group_is_told_to_all_who_wait() {
        check(Ack::Journal, First::Failed, 3, &[None; 2]);
        check(Ack::Journal, First::Failed, 2, &[None; 3]);
        check(Ack::Disk, First::Failed, 2, &[None; 2]);
    }
}
