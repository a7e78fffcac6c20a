//! Group commit: one write to the journal for all reports that are waiting.
//!
//! The first task that waits becomes the leader. It lets the tasks that are ready append too, writes everything that
//! is complete by then with one positioned, vectored write, and wakes the others. No timer, no extra thread. Whoever
//! comes meanwhile waits for the next group, which has its own leader. How one leader follows the other is
//! in `leader`.

use std::io::{self, IoSlice};
use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Ack;
use super::batch::Batch;
use super::leader::{Lead, Led, Progress};
use crate::store::Journal;

/// A batch's journal, and how far it has got.
#[derive(Debug)]
pub(super) struct Commit {
    journal: Journal,
    ack: Ack,
    progress: Progress,
    /// For each segment, how many of its bytes are in the journal.
    written: Box<[AtomicUsize]>,
    /// The journal has its name.
    named: AtomicBool,
    /// The journal's name is on disk.
    name_synced: AtomicBool,
}

impl Commit {
    pub(super) fn new(journal: Journal, ack: Ack, segments: usize) -> Self {
        Self {
            journal,
            ack,
            progress: Progress::new(segments),
            written: (0..segments).map(|_| AtomicUsize::new(0)).collect(),
            named: AtomicBool::new(false),
            name_synced: AtomicBool::new(false),
        }
    }

    pub(super) fn discard(&self) {
        self.journal.discard();
    }

    pub(super) fn has_kept(&self, segment: usize, len: usize) -> bool {
        self.progress.has_kept(segment, len)
    }

    /// The journal and its length; `None` before its first write.
    pub(super) fn journal_file(&self) -> Option<(PathBuf, u64)> {
        Some((self.journal.path()?, self.journal.len()))
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
}

impl Led for Batch {
    fn progress(&self) -> &Progress {
        &self.journaled().progress
    }

    async fn lead(lead: Lead<Self>) {
        // The tasks that are ready by now append first.
        tokio::task::yield_now().await;
        let commit = lead.journaled();
        let ends = match commit.write(&lead) {
            Ok(ends) => ends,
            Err(error) => return fail(lead, &error),
        };
        if commit.ack != Ack::Disk {
            return lead.keep(&ends);
        }
        // Off the event loop; and to its end, even if nobody waits for it any more. The role goes along: there is one
        // leader at a time, from the write to the end of the sync.
        let synced = tokio::task::spawn_blocking(move || match lead.journaled().sync() {
            Ok(()) => lead.keep(&ends),
            Err(error) => fail(lead, &error),
        });
        match synced.await {
            // Ends this request, and not only the sync: else it would lead again, and again.
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            // An error: the runtime is going down, and nobody is told anything any more.
            Ok(()) | Err(_) => {}
        }
    }
}

fn fail(lead: Lead<Batch>, error: &io::Error) {
    tracing::error!(%error, "can't write a journal; its batch is sealed, and reports that wait are refused");
    lead.seal();
    lead.fail();
}
