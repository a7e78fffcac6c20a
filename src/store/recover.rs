//! Recovery: staged report files and journals without an owner become report files.
//!
//! For each batch:
//!
//! - If it has a valid staged file, its journal is removed and the staged file is published.
//! - If it has only a journal, all complete and valid lines are staged, the journal is removed, and the staged file is
//!   published.
//! - All other bytes of a journal were never acknowledged, or the disk has changed them. They are copied to
//!   `DATA_DIR/quarantine/`.
//!
//! A crash at any point leaves a journal or a staged file, from which the next recovery continues. Recovery lists only
//! the directories of journals and temporary files, never the report files.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::batch_id::BatchId;
use super::data_dir::Store;
use super::disk_error::{Describe, is_unreadable};
use super::listing::{file_name, sorted_paths};
use super::orphan::{self, Found};
use super::pending::{JournalStaged, stage_journal};
use super::publish::Staged;
use super::report_file::{self, Compression};
use super::temp_file::TempFile;
use super::{journal, quarantine};
use crate::metrics::Lost;

/// Attempts to stage a journal that somebody has removed, and the pause between them: half a minute in total.
const MAX_ATTEMPTS: usize = 300;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });

/// Files in the directory of journals that the server did not name, and that were logged already.
pub type Unrecognized = HashSet<PathBuf>;

/// The result of a recovery.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Batches that were published.
    pub batches: usize,
    /// Reports that were published.
    pub reports: usize,
    /// Corrupt bytes in quarantine.
    pub corrupt_bytes: usize,
    /// Batches that could not be recovered. A later recovery tries again.
    pub failed: usize,
}

impl AddAssign for Recovered {
    fn add_assign(&mut self, other: Self) {
        self.batches += other.batches;
        self.reports += other.reports;
        self.corrupt_bytes += other.corrupt_bytes;
        self.failed += other.failed;
    }
}

/// Recovers all batches without an owner, with as many threads as `compression` has. Each thread holds one journal in
/// memory. A batch that fails is logged and does not affect the others.
///
/// # Errors
/// If a directory cannot be listed.
pub fn recover(store: &Store, compression: Compression, unrecognized: &mut Unrecognized) -> io::Result<Recovered> {
    store.sweep();
    let mut recovered = Recovered::default();
    // Staged files first. Their journals are redundant.
    for path in sorted_paths(&store.disk, &store.tmp_dir())? {
        if let Some(id) = BatchId::of_report_file(file_name(&path)) {
            recovered += or_retry(store, recover_staged(store, &path, id, compression));
        }
    }
    let mut journals = Vec::new();
    for path in sorted_paths(&store.disk, &journal::dir(&store.path))? {
        match BatchId::of_journal(file_name(&path)) {
            Some(id) => journals.push((path, id)),
            // Another server is probing the disk.
            None if TempFile::is_name(file_name(&path)) => {}
            None => {
                if unrecognized.insert(path.clone()) {
                    tracing::warn!(file = %path.display(), "unrecognized file; ignored");
                }
            }
        }
    }
    recovered += recover_journals(store, &journals, compression);
    Ok(recovered)
}

fn recover_journals(store: &Store, journals: &[(PathBuf, BatchId)], compression: Compression) -> Recovered {
    // One thread per journal. If there are fewer journals than threads, each compression gets several threads.
    let threads = compression.threads.min(journals.len()).max(1);
    let compression = Compression { threads: compression.threads.div_ceil(threads), ..compression };
    let next = AtomicUsize::new(0);
    let work = || {
        let mut recovered = Recovered::default();
        // Relaxed: the only requirement is that each number is given out once.
        while let Some((path, id)) = journals.get(next.fetch_add(1, Ordering::Relaxed)) {
            recovered += or_retry(store, recover_journal(store, path, *id, compression));
        }
        recovered
    };
    thread::scope(|scope| {
        // If the system provides no threads, this thread does all of the work.
        let others: Vec<_> =
            (1..threads).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut recovered = work();
        for other in others {
            recovered += other.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        }
        recovered
    })
}

fn or_retry(store: &Store, result: io::Result<Recovered>) -> Recovered {
    result.unwrap_or_else(|error| {
        store.health().log(&error, "can't recover a journal; retrying later");
        Recovered { failed: 1, ..Recovered::default() }
    })
}

fn recover_staged(store: &Store, path: &Path, id: BatchId, compression: Compression) -> io::Result<Recovered> {
    let Found::Orphan(file) = orphan::lock(&store.disk, path)? else { return Ok(Recovered::default()) };
    let reports = match store.disk.open(path).and_then(report_file::count).describe("read", path) {
        Ok(reports) => reports,
        // The disk may work next time.
        Err(error) if is_unreadable(&error) => return Err(error),
        Err(error) => {
            tracing::error!(file = %path.display(), %error, "a report file is corrupt; moved to quarantine");
            quarantine::move_file(store, path)?;
            store.metrics.count_lost(Lost::CorruptFile, 1);
            return Ok(Recovered::default());
        }
    };
    // The owner may have died before it synced the name. Until then, the journal is the durable copy.
    store.disk.sync_dir(&store.tmp_dir())?;
    let journal = journal::dir(&store.path).join(id.journal());
    match orphan::lock(&store.disk, &journal)? {
        // The owner is about to remove it.
        Found::Locked => return Ok(Recovered::default()),
        Found::Orphan(_locked) => store.disk.remove(&journal)?,
        Found::Nothing => {}
    }
    let bytes = file.metadata().describe("inspect", path)?.len();
    let staged = Staged { id, reports, bytes, path: path.to_owned(), locked: file, is_renamed: false };
    publish(store, staged, compression)?;
    Ok(Recovered { batches: 1, reports, ..Recovered::default() })
}

fn recover_journal(store: &Store, path: &Path, id: BatchId, compression: Compression) -> io::Result<Recovered> {
    let Found::Orphan(file) = orphan::lock(&store.disk, path)? else { return Ok(Recovered::default()) };
    // The owner has released the journal, so it does not stage this batch again.
    store.incomplete().remove(&id);
    if store.staged_path(&id).exists() {
        // The next recovery takes the staged file.
        return Ok(Recovered::default());
    }
    let JournalStaged { staged, corrupt_bytes } = stage_orphan(store, &file, path, id, compression)?;
    match store.disk.remove(path) {
        // Somebody has removed it since it was locked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed?,
    }
    let reports = staged.as_ref().map_or(0, |staged| staged.reports);
    staged.map_or(Ok(()), |staged| publish(store, staged, compression))?;
    Ok(Recovered { batches: 1, reports, corrupt_bytes, failed: 0 })
}

/// Stages an orphan that this process has locked. If somebody removes the journal meanwhile, its descriptor is the only
/// copy. So an error leads to another attempt then.
fn stage_orphan(
    store: &Store,
    file: &File,
    path: &Path,
    id: BatchId,
    compression: Compression,
) -> io::Result<JournalStaged> {
    let mut attempts = MAX_ATTEMPTS;
    loop {
        attempts -= 1;
        match stage_journal(store, file, path, id, compression) {
            Err(error) if attempts > 0 && file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) => {
                store.health().log(&error, "can't recover a journal that somebody has removed; retrying");
                thread::sleep(ATTEMPT_PAUSE);
            }
            staged => return staged,
        }
    }
}

/// Publishes a staged file whose journal was removed just now.
fn publish(store: &Store, mut staged: Staged, compression: Compression) -> io::Result<()> {
    store.disk.sync_dir(&journal::dir(&store.path)).or_else(|error| match error.kind() {
        // A server with `ACK=memory` has no journals.
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    store.publish(&mut staged, compression)?;
    store.metrics.recovered_reports.add(staged.reports as u64);
    tracing::info!(file = staged.id.report_file(), reports = staged.reports, "recovered");
    Ok(())
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;

    use rustix::io::Errno;

    use super::*;
    use crate::durability_tests::{Fault, Script};
    use crate::store::Disk;

    #[test]
    fn a_journal_and_a_temporary_file_that_somebody_removes_during_the_recovery_are_not_lost() {
        let root = tempfile::tempdir().unwrap();
        let open = |root: &Path, faults| {
            let script = Script::new(root, faults);
            let store = Store::open_on(Disk::scripted(&script), &root.join("data"), &Default::default()).unwrap();
            (script.calls().len(), store)
        };
        let (calls, _) = open(tempfile::tempdir().unwrap().path(), vec![]);
        // Some attempts find that their temporary file is gone.
        let (_, store) = open(root.path(), vec![(calls..calls + 10, Fault::Fails(Errno::NOENT))]);
        let id = BatchId::of_journal("reports-20261122T150512.123456789Z-5f3a9c01.jsonl").unwrap();
        let path = root.path().join(id.journal());
        fs::write(&path, "{}\n{}\n").unwrap();
        let file = File::open(&path).unwrap();
        let compression = Compression { level: 1, threads: 1 };
        assert!(stage_orphan(&store, &file, &path, id, compression).is_err(), "the journal is still there");
        fs::remove_file(&path).unwrap();
        let staged = stage_orphan(&store, &file, &path, id, compression).unwrap();
        assert_eq!(staged.staged.unwrap().reports, 2);
    }
}
