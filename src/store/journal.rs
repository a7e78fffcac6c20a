//! Journals: what has been acknowledged and is not in a report file yet.
//!
//! A persisted format: changing it is a breaking change.
//!
//! ```text
//! DATA_DIR/journal/reports-20261122T150512.123456789Z-5f3a9c01.jsonl
//!                  └─ the stem of the report file that it becomes ─┘
//!
//!   {"clientId":"a"}\n{"clientId":"b"}\n\0\0\0\0\0\0\0…
//!   └ one report on each line ─────────┘└ preallocated
//! ```
//!
//! JSON never holds a NUL byte, so the first one marks the end. A journal belongs to the process that has it locked
//! (flock); one that nobody has locked is an orphan and may be recovered by anybody. It is made as a hidden file, and
//! keeps that name beside its own as long as its owner lives.

use std::io::{self, IoSlice};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;

use super::{Disk, Stem, Temp};

/// Where the journals lie within the data directory.
const DIR: &str = "journal";

/// Journals that are kept ready: one for the next batch, and one more for a burst that fills it at once.
const READY: usize = 2;

/// The journals of one server: made ahead of time, so that a full disk shows before a report is taken.
#[derive(Debug)]
pub struct Journals {
    disk: Disk,
    dir: PathBuf,
    journal_bytes: u64,
    ready: ArrayQueue<Journal>,
}

/// One batch's journal, locked by this process.
#[derive(Debug)]
pub struct Journal {
    temp: Temp,
    state: Mutex<State>,
    /// Bytes of whole lines. Only the leader of a group commit moves it.
    len: AtomicU64,
}

/// A late leader may want to name a journal that has been discarded already.
#[derive(Debug)]
enum State {
    Unnamed,
    Named(PathBuf),
    Discarded,
}

/// The directory of the journals within `data_dir`.
pub(super) fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join(DIR)
}

impl Journals {
    /// Makes the first journals, each of `journal_bytes`, and their directory (0750) if it is not there.
    pub(super) fn open(disk: &Disk, data_dir: &Path, journal_bytes: usize) -> io::Result<Self> {
        let (disk, dir) = (disk.clone(), dir(data_dir));
        let journals = Self { disk, dir, journal_bytes: journal_bytes as u64, ready: ArrayQueue::new(READY) };
        journals.prepare()?;
        Ok(journals)
    }

    /// Makes as many journals as are to be kept ready.
    ///
    /// # Errors
    /// Those of the file system, such as that it is full. What was made before stays.
    pub fn prepare(&self) -> io::Result<()> {
        // Not the data directory itself: if that is gone, what is to come back may be a disk that is not mounted.
        match self.disk.create_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => created?,
        }
        while !self.ready.is_full() {
            let journal = Journal::create(&self.disk, &self.dir, self.journal_bytes)?;
            // Only this call adds any; if it was not alone, the journal is dropped again.
            drop(self.ready.push(journal));
        }
        Ok(())
    }

    /// A journal that is ready; `None` when more have been taken than [`prepare`](Self::prepare) could make.
    #[must_use]
    pub fn take(&self) -> Option<Journal> {
        self.ready.pop()
    }

    /// Puts back a journal that was taken and not used.
    pub fn give_back(&self, journal: Journal) {
        // One too many goes away.
        drop(self.ready.push(journal));
    }

    /// Whether there is one to take.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether [`prepare`](Self::prepare) has something to do.
    #[must_use]
    pub fn is_short(&self) -> bool {
        !self.ready.is_full()
    }
}

impl Journal {
    fn create(disk: &Disk, dir: &Path, bytes: u64) -> io::Result<Self> {
        let temp = Temp::create(disk, dir, "journal")?;
        disk.allocate(&temp.file, bytes)?;
        Ok(Self { temp, state: Mutex::new(State::Unnamed), len: AtomicU64::new(0) })
    }

    /// Gives the journal its name, unless it has been discarded. After this it is worth recovering.
    ///
    /// # Errors
    /// Those of the file system; `AlreadyExists` when the name is taken.
    pub fn name(&self, stem: &Stem) -> io::Result<()> {
        let mut state = self.state();
        if let State::Unnamed = *state {
            let path = self.temp.path.with_file_name(stem.journal());
            self.temp.link(&path)?;
            *state = State::Named(path);
        }
        Ok(())
    }

    /// Appends whole lines, all of them or, as far as a reader can tell, none.
    ///
    /// # Errors
    /// Those of the file system. The journal must not be appended to after that.
    pub fn append(&self, lines: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Relaxed: the leader's role, which orders its holders, is what allows this call.
        let mut offset = self.len.load(Ordering::Relaxed);
        let mut left = lines;
        while !left.is_empty() {
            match self.temp.disk.write_at(&self.temp.file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.len.store(offset, Ordering::Relaxed);
        Ok(())
    }

    /// Brings what has been appended to the disk.
    ///
    /// # Errors
    /// Those of the file system. After that nobody knows what is on disk, and asking again would not tell.
    pub fn sync(&self) -> io::Result<()> {
        self.temp.disk.sync_data(&self.temp.file)
    }

    /// Brings the journal's name to the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync_name(&self) -> io::Result<()> {
        self.temp.disk.sync_dir(self.temp.path.parent().expect("it lies in a directory"))
    }

    /// Where it lies; `None` before it has a name.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match &*self.state() {
            State::Named(path) => Some(path.clone()),
            State::Unnamed | State::Discarded => None,
        }
    }

    /// Bytes of whole lines that have been appended.
    #[must_use]
    pub fn len(&self) -> u64 {
        // Relaxed: asked when nothing more is appended.
        self.len.load(Ordering::Relaxed)
    }

    /// Whether nothing has been appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the journal: its reports are in a report file.
    pub fn discard(&self) {
        if let State::Named(path) = mem::replace(&mut *self.state(), State::Discarded) {
            self.temp.disk.discard(&path);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
