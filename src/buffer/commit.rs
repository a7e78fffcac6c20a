//! Group commit: one write to the journal for all reports that are waiting.
//!
//! The first task that waits becomes the leader. It lets the tasks that are ready append too, writes everything that
//! is complete by then with one positioned, vectored write, and wakes the others. No timer, no extra thread. Whoever
//! comes meanwhile waits for the next group, which has its own leader.

use std::io::{self, IoSlice};
use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::Ack;
use super::batch::Batch;
use crate::store::Journal;

/// A batch's journal, and how far it has got.
#[derive(Debug)]
pub(super) struct Commit {
    journal: Journal,
    ack: Ack,
    /// Whether there is a leader.
    led: AtomicBool,
    /// Notified when a leader has gone: something was written, or somebody else has to lead.
    changed: Notify,
    /// For each segment, how many of its bytes are in the journal.
    written: Box<[AtomicUsize]>,
    /// For each segment, how many of its bytes may be acknowledged.
    kept: Box<[AtomicUsize]>,
    /// The journal has its name.
    named: AtomicBool,
    /// The journal's name is on disk.
    name_synced: AtomicBool,
    /// The journal could not be written. Nobody who waits may be told that his report is kept.
    failed: AtomicBool,
}

/// The batch's journal could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal can't be written")]
pub struct NotKept;

/// The role of the leader; dropping it gives it up, whatever became of the leader. It goes along to the thread that
/// syncs: there is one leader at a time, from the write to the end of the sync.
struct Lead(Arc<Batch>);

impl Lead {
    fn commit(&self) -> &Commit {
        self.0.commit().expect("it was taken from there")
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `lead`; the next leader sees what this one has written.
        self.commit().led.store(false, Ordering::Release);
        self.commit().changed.notify_waiters();
    }
}

impl Commit {
    pub(super) fn new(journal: Journal, ack: Ack, segments: usize) -> Self {
        let offsets = || (0..segments).map(|_| AtomicUsize::new(0)).collect();
        Self {
            journal,
            ack,
            led: AtomicBool::new(false),
            changed: Notify::new(),
            written: offsets(),
            kept: offsets(),
            named: AtomicBool::new(false),
            name_synced: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn discard(&self) {
        self.journal.discard();
    }

    pub(super) fn has_kept(&self, segment: usize, len: usize) -> bool {
        // Acquire: as in `outcome`.
        self.kept[segment].load(Ordering::Acquire) == len
    }

    /// The journal and its length; `None` before its first write.
    pub(super) fn journal_file(&self) -> Option<(PathBuf, u64)> {
        Some((self.journal.path()?, self.journal.len()))
    }

    fn lead(&self, batch: &Arc<Batch>) -> Option<Lead> {
        // Acquire: pairs with the Release in `Lead::drop`.
        let led = self.led.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        led.is_ok().then(|| Lead(Arc::clone(batch)))
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

    /// Writes all that is complete. Returns how far each segment got.
    fn write(&self, batch: &Batch) -> io::Result<Box<[usize]>> {
        // Relaxed, here and below: only the leader uses `written` and `named`.
        if !self.named.load(Ordering::Relaxed) {
            self.journal.name(&batch.stem())?;
            self.named.store(true, Ordering::Relaxed);
        }
        let mut ends: Box<[usize]> = self.written.iter().map(|end| end.load(Ordering::Relaxed)).collect();
        let mut lines = Vec::with_capacity(ends.len());
        for (index, end) in ends.iter_mut().enumerate() {
            // A segment that somebody is copying to waits for the next group.
            if let Some(complete) = batch.segment_lines(index).filter(|complete| complete.len() > *end) {
                lines.push(IoSlice::new(&complete[*end..]));
                *end = complete.len();
            }
        }
        self.journal.append(&mut lines)?;
        for (written, end) in self.written.iter().zip(&ends) {
            written.store(*end, Ordering::Relaxed);
        }
        Ok(ends)
    }

    /// Brings what has been written to the disk.
    fn sync(&self) -> io::Result<()> {
        // Relaxed: to do it twice would only be slower.
        if !self.name_synced.load(Ordering::Relaxed) {
            self.journal.sync_name()?;
            self.name_synced.store(true, Ordering::Relaxed);
        }
        self.journal.sync()
    }

    fn keep(&self, ends: &[usize]) {
        for (kept, end) in self.kept.iter().zip(ends) {
            // Release: pairs with the Acquire in `outcome`.
            kept.store(*end, Ordering::Release);
        }
    }

    fn fail(&self, batch: &Batch, error: &io::Error) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "can't write a journal; its batch is sealed, and reports that wait are refused");
        }
        batch.seal();
    }
}

/// Waits until the bytes of `segment` up to `end` are kept as the journal's mode promises.
pub(super) async fn kept(batch: &Arc<Batch>, commit: &Commit, segment: usize, end: usize) -> Result<(), NotKept> {
    loop {
        if let Some(outcome) = commit.outcome(segment, end) {
            return outcome;
        }
        if let Some(lead) = commit.lead(batch) {
            group(lead).await;
            continue;
        }
        let mut changed = std::pin::pin!(commit.changed.notified());
        changed.as_mut().enable();
        // Once more, now that no change can be missed.
        if commit.outcome(segment, end).is_none() && commit.led.load(Ordering::Relaxed) {
            changed.await;
        }
    }
}

/// Writes one group. May be dropped at any await: then the role is given up, and somebody else leads.
async fn group(lead: Lead) {
    // The tasks that are ready by now append first.
    tokio::task::yield_now().await;
    let commit = lead.commit();
    // Relaxed: set by a leader, and the role orders its holders. After a failure nobody knows what the journal holds: a
    // later write or sync that succeeds says nothing of what came before.
    if commit.failed.load(Ordering::Relaxed) {
        return;
    }
    let ends = match commit.write(&lead.0) {
        Ok(ends) => ends,
        Err(error) => return commit.fail(&lead.0, &error),
    };
    if commit.ack != Ack::Disk {
        return commit.keep(&ends);
    }
    // Off the event loop; and to its end, even if nobody waits for it any more.
    let synced = tokio::task::spawn_blocking(move || match lead.commit().sync() {
        Ok(()) => lead.commit().keep(&ends),
        Err(error) => lead.commit().fail(&lead.0, &error),
    });
    match synced.await {
        // Ends this request, and not only the sync: else it would lead again, and again.
        Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
        // An error: the runtime is going down, and nobody is told anything any more.
        Ok(()) | Err(_) => {}
    }
}
