//! The list of all batches on disk, whatever their state: in a journal, staged, or published.
//!
//! A batch moves in one direction: journal, staged file, report file. So the directories are listed in this order. Then
//! the list contains each batch, however it moves meanwhile, and the id of the batch tells which entries are the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::SystemTime;

use super::batch_id::BatchId;
use super::data_dir::Store;
use super::disk_error::Describe;
use super::journal;
use super::listing::{file_name, sorted_paths};
use super::reader::{Encoding, LineReader};

/// A larger file is not read as a whole.
const MAX_FRAME_BYTES: u64 = 4 << 20;

/// A batch on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBatch {
    id: BatchId,
    /// The state in which it was found. It may have moved on since.
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Journal,
    Staged,
    Published,
}

/// An open batch. It stays readable when its file is removed.
#[derive(Debug)]
pub struct OpenBatch {
    /// The name of the file.
    pub name: String,
    /// The time of the last report. `None` while reports may be added.
    pub last: Option<SystemTime>,
    /// Size of the file.
    pub bytes: u64,
    /// Whether it is a journal.
    pub is_journal: bool,
    file: File,
}

impl StoredBatch {
    /// The id. It contains the time of the first report.
    #[must_use]
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// A batch in an unknown state.
    pub(super) fn unknown(id: BatchId) -> Self {
        Self { id, state: State::Journal }
    }

    /// Whether the batch was published when it was found.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.state == State::Published
    }
}

impl Store {
    /// All batches whose first report came at `until` or before, oldest first. 40 bytes of memory per batch.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn stored_batches(&self, until: Option<SystemTime>) -> io::Result<Vec<StoredBatch>> {
        let mut batches = self.unpublished_batches()?;
        for entry in self.disk.entries(&self.path)? {
            let entry = entry.describe("list", &self.path)?;
            let id = entry.file_name().to_str().and_then(BatchId::of_report_file);
            batches.extend(id.map(|id| StoredBatch { id, state: State::Published }));
        }
        batches.retain(|batch| until.is_none_or(|until| batch.id.first() <= until));
        // Where a batch was found twice, its earlier state comes first, and is kept: the batch moves forward only.
        batches.sort_unstable_by_key(|batch| (batch.id, batch.state));
        batches.dedup_by_key(|batch| batch.id);
        Ok(batches)
    }

    /// The batches that are not published, in any order. A batch may appear twice, in two states.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub(crate) fn unpublished_batches(&self) -> io::Result<Vec<StoredBatch>> {
        let mut batches = Vec::new();
        for path in sorted_paths(&self.disk, &journal::dir(&self.path))? {
            let id = BatchId::of_journal(file_name(&path));
            batches.extend(id.map(|id| StoredBatch { id, state: State::Journal }));
        }
        for path in sorted_paths(&self.disk, &self.tmp_dir())? {
            let id = BatchId::of_report_file(file_name(&path));
            batches.extend(id.map(|id| StoredBatch { id, state: State::Staged }));
        }
        Ok(batches)
    }

    /// Opens a batch, wherever it is by now. `None` if somebody has removed it since it was listed: retention, or a
    /// consumer.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open_batch(&self, batch: &StoredBatch) -> io::Result<Option<OpenBatch>> {
        for state in [State::Journal, State::Staged, State::Published] {
            if state < batch.state {
                continue;
            }
            let path = self.path_of(batch.id, state);
            match self.disk.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    let metadata = file.metadata().describe("inspect", &path)?;
                    let is_journal = state == State::Journal;
                    return Ok(Some(OpenBatch {
                        name: file_name(&path).to_owned(),
                        last: if is_journal { None } else { metadata.modified().ok() },
                        bytes: metadata.len(),
                        is_journal,
                        file,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Whether a published batch has its last report before `time`. Does not open the file.
    #[must_use]
    pub fn ended_before(&self, batch: &StoredBatch, time: SystemTime) -> bool {
        let modified = || self.path_of(batch.id, State::Published).symlink_metadata().and_then(|file| file.modified());
        batch.is_published() && modified().is_ok_and(|modified| modified < time)
    }

    fn path_of(&self, id: BatchId, state: State) -> PathBuf {
        match state {
            State::Journal => journal::dir(&self.path).join(id.journal()),
            State::Staged => self.staged_path(&id),
            State::Published => self.path.join(id.report_file()),
        }
    }
}

impl OpenBatch {
    /// Reads the reports, from the first one.
    ///
    /// # Errors
    /// If zstd cannot be initialized.
    pub fn lines(&self) -> io::Result<LineReader<'_>> {
        LineReader::new(&self.file, if self.is_journal { Encoding::Journal } else { Encoding::Zstd })
    }

    /// The whole file, if it is one zstd frame of a usual size. The frame may still be corrupt: its checksum is not
    /// compared.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn whole_frame(&self) -> io::Result<Option<Vec<u8>>> {
        if self.is_journal || self.bytes > MAX_FRAME_BYTES {
            return Ok(None);
        }
        let mut frame = vec![0; self.bytes as usize];
        self.file.read_exact_at(&mut frame, 0)?;
        // Follows the headers of the blocks, without decompressing them.
        let is_whole = zstd::zstd_safe::find_frame_compressed_size(&frame).is_ok_and(|bytes| bytes == frame.len());
        Ok(Some(frame).filter(|_| is_whole))
    }

    /// Reads the reports of a journal, from this offset.
    ///
    /// # Errors
    /// None for a journal.
    pub fn lines_from(&self, offset: u64) -> io::Result<LineReader<'_>> {
        debug_assert!(self.is_journal);
        let mut lines = self.lines()?;
        lines.skip_to(offset);
        Ok(lines)
    }

    /// Whether the file has no name any more.
    ///
    /// # Errors
    /// If the file cannot be inspected.
    pub fn is_removed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }
}
