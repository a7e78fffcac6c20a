//! The journal of one batch, and how much of the batch it contains.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::group_commit::Progress;
use crate::store::{BatchId, Journal};

/// A batch's journal. Only the committer writes to it, one group at a time.
#[derive(Debug)]
pub(super) struct BatchJournal {
    pub(super) journal: Arc<Journal>,
    pub(super) progress: Progress,
    /// For each chunk, the number of bytes in the journal.
    written: Box<[AtomicUsize]>,
    /// Number of reports in the journal.
    reports: AtomicU64,
    /// The journal has its name.
    named: AtomicBool,
    /// The name is synced.
    name_synced: AtomicBool,
}

impl BatchJournal {
    pub(super) fn new(journal: Arc<Journal>, chunks: usize) -> Self {
        Self {
            journal,
            progress: Progress::new(chunks),
            written: (0..chunks).map(|_| AtomicUsize::new(0)).collect(),
            reports: AtomicU64::new(0),
            named: AtomicBool::new(false),
            name_synced: AtomicBool::new(false),
        }
    }

    /// Writes all complete lines that are not in the journal yet, with one write. `id` returns the batch's id.
    /// `complete_lines` returns the lines of a chunk, or `None` while a writer is copying. Returns the end of each
    /// chunk.
    pub(super) fn write<'a>(
        &self,
        id: impl FnOnce() -> BatchId,
        complete_lines: impl Fn(usize) -> Option<&'a [u8]>,
    ) -> io::Result<Box<[usize]>> {
        // Relaxed, here and below: only the holder of leadership uses `written` and `named`.
        if !self.named.load(Ordering::Relaxed) {
            self.journal.name(&id())?;
            self.named.store(true, Ordering::Relaxed);
        }
        let mut ends: Box<[usize]> = self.written.iter().map(|end| end.load(Ordering::Relaxed)).collect();
        let mut lines = Vec::with_capacity(ends.len());
        for (index, end) in ends.iter_mut().enumerate() {
            // An incomplete chunk waits for the next group.
            if let Some(complete) = complete_lines(index).filter(|complete| complete.len() > *end) {
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

    /// Replaces the number of reports in the journal. Returns the difference to the previous number.
    pub(super) fn advance_reports(&self, reports: u64) -> u64 {
        reports.saturating_sub(self.reports.swap(reports, Ordering::Relaxed))
    }

    /// Syncs the journal, and its name if that is not synced yet.
    pub(super) fn sync(&self) -> io::Result<()> {
        // Relaxed: a second sync of the name would only be slower.
        if !self.name_synced.load(Ordering::Relaxed) {
            self.journal.sync_name()?;
            self.name_synced.store(true, Ordering::Relaxed);
        }
        self.journal.sync()
    }
}
