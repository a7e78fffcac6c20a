//! Journals: the reports of batches that are not in a report file yet.
//!
//! A persisted format: changing it is a breaking change.
//!
//! ```text
//! DATA_DIR/journal/reports-20261122T150512.123456789Z-5f3a9c01.jsonl
//!                  └ id of the batch ────────────────────────┘
//!
//!   {"clientId":"a"}\n{"clientId":"b"}\n\0\0\0\0\0\0\0…
//!   └ one report per line ─────────────┘└ preallocated
//! ```
//!
//! JSON contains no NUL byte, so the first one marks the end. A journal belongs to the process that has locked it
//! (flock). A journal without a lock is an orphan, and any process may recover it. A journal is created as a temporary
//! file, and gets its name with the first write.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::{ArrayQueue, SegQueue};

use super::batch_id::BatchId;
use super::disk::Disk;
use super::disk_error::Describe;
use super::orphan::is_same_file;
use super::temp_file::TempFile;

/// The directory of journals within the data directory.
const DIR: &str = "journal";

/// Number of journals that are created ahead: one for the next batch, and one for a burst that fills it at once.
const READY: usize = 2;

/// Queue places for journals that are given back while new ones are created.
const GIVEN_BACK: usize = 6;

/// The journals of one server. They are created ahead of time, so that a full disk shows before a report is accepted.
#[derive(Debug)]
pub struct Journals {
    disk: Disk,
    data_dir: PathBuf,
    journal_bytes: u64,
    ready: ArrayQueue<Arc<Journal>>,
    /// Journals to close. Closing a file, and removing an unused one, may wait for the disk.
    retired: SegQueue<Arc<Journal>>,
    is_closed: AtomicBool,
}

/// The journal of one batch, locked by this process.
#[derive(Debug)]
pub struct Journal {
    file: File,
    disk: Disk,
    data_dir: PathBuf,
    state: Mutex<State>,
    /// Bytes of complete lines. Only the leader of the group commit changes it.
    len: AtomicU64,
}

/// A late leader may try to name a journal that was removed already.
#[derive(Debug)]
enum State {
    /// It has its temporary name.
    Unnamed(PathBuf),
    Named(PathBuf),
    Removed,
}

/// The directory of journals within `data_dir`.
pub(super) fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join(DIR)
}

impl Journals {
    /// Creates the first journals, each of `journal_bytes`, and their directory if it is missing.
    pub(super) fn open(disk: &Disk, data_dir: &Path, journal_bytes: usize) -> io::Result<Self> {
        let journals = Self {
            disk: disk.clone(),
            data_dir: data_dir.to_owned(),
            journal_bytes: journal_bytes as u64,
            ready: ArrayQueue::new(READY + GIVEN_BACK),
            retired: SegQueue::new(),
            is_closed: AtomicBool::new(false),
        };
        journals.prepare()?;
        Ok(journals)
    }

    /// Closes the retired journals, and creates as many journals as should be ready.
    ///
    /// # Errors
    /// Errors of the file system. Journals that were created before stay ready.
    pub fn prepare(&self) -> io::Result<()> {
        while self.retired.pop().is_some() {}
        if !self.is_short() {
            return Ok(());
        }
        // Not the data directory itself: if that is missing, a disk may not be mounted.
        self.disk.create_dir_if_missing(&dir(&self.data_dir))?;
        while self.is_short() {
            self.retire(Arc::new(Journal::create(&self.disk, &self.data_dir, self.journal_bytes)?));
        }
        Ok(())
    }

    /// Takes a journal that is ready. `None` if none is.
    #[must_use]
    pub fn take(&self) -> Option<Arc<Journal>> {
        self.ready.pop()
    }

    /// Takes back a journal that its batch does not need any more. An unused one is ready again. Never waits for the
    /// disk: [`prepare`](Self::prepare) and [`close`](Self::close) close the others.
    pub fn retire(&self, journal: Arc<Journal>) {
        if !journal.is_unused() || self.is_closed.load(Ordering::SeqCst) {
            self.retired.push(journal);
        } else if let Err(superfluous) = self.ready.push(journal) {
            self.retired.push(superfluous);
        }
    }

    /// Removes the unused journals, and closes all others. Journals that are retired later are closed when `Journals`
    /// is dropped.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        while self.take().is_some() {}
        while self.retired.pop().is_some() {}
    }

    /// Whether a journal is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether [`prepare`](Self::prepare) has journals to create.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.ready.len() < READY
    }
}

impl Journal {
    fn create(disk: &Disk, data_dir: &Path, bytes: u64) -> io::Result<Self> {
        let temp = TempFile::create(disk, data_dir, "journal")?;
        disk.allocate(temp.file(), bytes).describe("allocate", temp.path())?;
        let (path, file) = temp.into_parts();
        let state = Mutex::new(State::Unnamed(path));
        Ok(Self { file, disk: disk.clone(), data_dir: data_dir.to_owned(), state, len: AtomicU64::new(0) })
    }

    /// Gives the journal its name, unless it was removed. From then on, recovery finds it.
    ///
    /// # Errors
    /// Errors of the file system; `AlreadyExists` if the name is taken.
    pub fn name(&self, id: &BatchId) -> io::Result<()> {
        let mut state = self.state();
        if let State::Unnamed(temp) = &*state {
            let path = dir(&self.data_dir).join(id.journal());
            self.disk.rename_noreplace(temp, &path)?;
            *state = State::Named(path);
        }
        Ok(())
    }

    /// Appends complete lines: all of them, or none as far as a reader can tell.
    ///
    /// # Errors
    /// Errors of the file system. The journal must not be used for appends after an error.
    pub fn append(&self, lines: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Relaxed: only the leader calls this, and leadership orders leaders.
        let mut offset = self.len.load(Ordering::Relaxed);
        let mut left = lines;
        while !left.is_empty() {
            match self.disk.write_at(&self.file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()).describe("write", &self.path()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).describe("write", &self.path()),
            }
        }
        self.len.store(offset, Ordering::Relaxed);
        Ok(())
    }

    /// Syncs the appended lines.
    ///
    /// # Errors
    /// Errors of the file system. After an error, the content on disk is unknown. Another sync would not tell.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync_data(&self.file).describe("sync", &self.path())
    }

    /// Syncs the name.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn sync_name(&self) -> io::Result<()> {
        self.disk.sync_dir(&dir(&self.data_dir))
    }

    /// Whether recovery can find the journal: it has its name, and nobody has removed or replaced it.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match &*self.state() {
            State::Named(path) => is_same_file(&self.file, path).unwrap_or(false),
            State::Unnamed(_) | State::Removed => false,
        }
    }

    /// Whether the journal is as it was created.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        matches!(*self.state(), State::Unnamed(_))
    }

    /// Bytes of complete lines.
    #[must_use]
    pub fn len(&self) -> u64 {
        // Relaxed: called when there are no more appends.
        self.len.load(Ordering::Relaxed)
    }

    /// Whether nothing was appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the journal, durably: after a power failure it does not come back.
    ///
    /// # Errors
    /// Errors of the file system. The journal may be there or not.
    pub fn remove(&self) -> io::Result<()> {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Removed) {
            State::Named(path) => match self.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    *state = State::Named(path);
                    Err(error)
                }
                // An operator or another recovery may have removed it already.
                _ => self.disk.sync_dir(&dir(&self.data_dir)),
            },
            // An unnamed journal was never found by anybody.
            State::Unnamed(temp) => {
                self.disk.discard(&temp);
                Ok(())
            }
            State::Removed => Ok(()),
        }
    }

    /// Records and logs an error of a write or sync.
    pub fn report_failure(&self, error: &io::Error) {
        let message = "can't write a journal; the waiting requests are refused and the batch is sealed";
        self.disk.health.report(error, message);
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> PathBuf {
        match &*self.state() {
            State::Unnamed(path) | State::Named(path) => path.clone(),
            State::Removed => dir(&self.data_dir),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let State::Unnamed(temp) = &*self.state() {
            self.disk.discard(temp);
        }
    }
}
