//! Batches on disk that this process has to publish.
//!
//! Their files stay open and locked, so no other process touches them. What matters are the open descriptors: a file
//! that somebody has removed can still be read.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::batch_id::BatchId;
use super::data_dir::Store;
use super::disk_error::Describe;
use super::journal::Journal;
use super::journal_content::JournalContent;
use super::orphan::is_same_file;
use super::publish::Staged;
use super::quarantine;
use super::report_file::Compression;
use crate::metrics::{Lost, Trigger};

/// A batch that has released its memory and is not published yet.
#[derive(Debug)]
pub struct Pending {
    id: BatchId,
    /// Size of the journal and number of reports in it. 0 if the batch was staged from memory.
    spilled_bytes: u64,
    spilled_reports: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// It is completely in its journal.
    Journaled(Arc<Journal>),
    /// It has a staged report file. The journal may still be there.
    Staged(Staged, Option<Arc<Journal>>),
    Published,
}

impl Pending {
    /// A batch with this number of reports, all of them in its journal.
    #[must_use]
    pub fn spilled(id: BatchId, journal: Arc<Journal>, reports: u64) -> Self {
        Self {
            id,
            spilled_bytes: journal.len(),
            spilled_reports: reports,
            state: Mutex::new(State::Journaled(journal)),
        }
    }

    /// A batch with a staged report file that could not be published. Its journal may still be there.
    #[must_use]
    pub fn staged(staged: Staged, journal: Option<Arc<Journal>>) -> Self {
        Self { id: staged.id, spilled_bytes: 0, spilled_reports: 0, state: Mutex::new(State::Staged(staged, journal)) }
    }

    /// The batch.
    #[must_use]
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// Bytes of the journal, for `SPILL_BYTES`. 0 if the batch was not spilled.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes
    }
}

impl Store {
    /// Publishes a pending batch: stages it unless it is staged, removes its journal, and publishes the staged file.
    /// The call may be repeated after an error, and also after a success.
    ///
    /// # Errors
    /// Errors of the file system. The batch is still pending then.
    pub fn finish(&self, pending: &Pending, compression: Compression) -> io::Result<()> {
        let started = Instant::now();
        let finished = self.try_finish(pending, compression);
        self.metrics.flush_ns.observe_duration(started.elapsed());
        self.metrics.count_flush(Trigger::Spilled, finished.is_ok());
        finished
    }

    fn try_finish(&self, pending: &Pending, compression: Compression) -> io::Result<()> {
        let mut state = pending.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Journaled(journal) = &*state {
            let journal = Arc::clone(journal);
            let staged = stage_journal(self, journal.file(), &journal.path(), pending.id, compression)?.staged;
            let reports = staged.as_ref().map_or(0, |staged| staged.reports);
            self.metrics.count_lost(Lost::CorruptJournal, (pending.spilled_reports as usize).saturating_sub(reports));
            *state = match staged {
                Some(staged) => {
                    self.metrics.file_bytes_raw.add(pending.spilled_bytes);
                    self.metrics.file_bytes_zstd.add(staged.bytes);
                    State::Staged(staged, Some(journal))
                }
                None => {
                    journal.remove()?;
                    State::Published
                }
            };
        }
        if let State::Staged(staged, journal) = &mut *state {
            journal.as_ref().map_or(Ok(()), |journal| journal.remove())?;
            self.stage_again_if_removed(staged)?;
            self.publish(staged, compression)?;
            tracing::info!(file = pending.id.report_file(), reports = staged.reports, "recovered");
            *state = State::Published;
        }
        Ok(())
    }

    /// Writes a staged file again if somebody has removed it.
    fn stage_again_if_removed(&self, staged: &mut Staged) -> io::Result<()> {
        self.disk.check_root()?;
        if staged.is_renamed || is_same_file(&staged.locked, &staged.path)? {
            return Ok(());
        }
        tracing::error!(file = staged.id.report_file(), "somebody has removed a staged report file; writing it again");
        let modified = staged.locked.metadata().and_then(|metadata| metadata.modified());
        let modified = modified.describe("inspect", &staged.path)?;
        let bytes = self.disk.read(&staged.locked, &staged.path)?;
        *staged = self.stage_with(staged.id, staged.reports, modified, |to| to.write_all(&bytes))?;
        Ok(())
    }
}

/// Stages the valid lines of a journal that this process has locked. Copies all other bytes to the quarantine. `None`
/// if there are no lines.
pub(super) fn stage_journal(
    store: &Store,
    file: &File,
    path: &Path,
    id: BatchId,
    compression: Compression,
) -> io::Result<JournalStaged> {
    let modified = file.metadata().and_then(|metadata| metadata.modified()).describe("inspect", path)?;
    let bytes = store.disk.read(file, path)?;
    let content = JournalContent::of(&bytes);
    let corrupt_bytes = match content.corrupt.is_empty() {
        true => 0,
        false => quarantine::copy_corrupt(store, path, &content)?,
    };
    let staged = match content.lines.is_empty() {
        true => None,
        false => Some(store.stage(id, &content.lines, modified, compression)?),
    };
    Ok(JournalStaged { staged, corrupt_bytes })
}

/// The result of [`stage_journal`].
pub(super) struct JournalStaged {
    pub(super) staged: Option<Staged>,
    pub(super) corrupt_bytes: usize,
}
