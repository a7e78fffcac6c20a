//! The data directory as a whole.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Access;

use super::batch_id::{BatchId, random_id};
use super::catalog::Catalog;
use super::disk::Disk;
use super::disk_error::Describe;
use super::health::Health;
use super::journal::{self, Journals};
use super::temp_file::{self, TMP_DIR, TempFile};
use crate::metrics::Metrics;

/// The data directory. Several servers may share one.
#[derive(Debug)]
pub struct Store {
    pub(super) path: PathBuf,
    pub(super) disk: Disk,
    pub(super) metrics: Arc<Metrics>,
    pub(super) catalog: Catalog,
    /// Handles of staged files that could neither be completed nor removed. Their locks keep recovery away from these
    /// files until the batch is staged again.
    incomplete: Mutex<HashMap<BatchId, File>>,
}

impl Store {
    /// Opens the data directory. Creates it (mode 0750) if it is missing. Checks that files can be created, renamed and
    /// synced.
    ///
    /// # Errors
    /// The operation that failed, with its path.
    pub fn open(path: &Path, metrics: &Arc<Metrics>) -> io::Result<Self> {
        Self::open_on(Disk::default(), path, metrics)
    }

    pub(crate) fn open_on(disk: Disk, path: &Path, metrics: &Arc<Metrics>) -> io::Result<Self> {
        disk.create_dir_all(path)?;
        disk.open_root(path)?;
        let store = Self { metrics: Arc::clone(metrics), ..Self::on(disk, path) };
        store.disk.create_dir_if_missing(&store.tmp_dir())?;
        store.probe()?;
        store.sync()?;
        Ok(store)
    }

    /// Opens an existing data directory. Creates nothing in it.
    ///
    /// # Errors
    /// If there is no such directory.
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        Self::open_existing_on(Disk::default(), path)
    }

    pub(crate) fn open_existing_on(disk: Disk, path: &Path) -> io::Result<Self> {
        disk.open_root(path)?;
        Ok(Self::on(disk, path))
    }

    fn on(disk: Disk, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            disk,
            metrics: Arc::default(),
            catalog: Catalog::default(),
            incomplete: Mutex::default(),
        }
    }

    /// Tries the file operations that journals and report files need.
    ///
    /// # Errors
    /// The operation that failed, with its path.
    pub fn probe(&self) -> io::Result<()> {
        let temp = TempFile::create(&self.disk, &self.path, "probe")?;
        self.disk.sync(temp.file()).describe("sync", temp.path())?;
        let (path, _locked) = temp.into_parts();
        let journals = journal::dir(&self.path);
        let dir = if journals.exists() { journals } else { self.tmp_dir() };
        let renamed = dir.join(format!(".probe.{:08x}.tmp", random_id()));
        let done = self.disk.rename_noreplace(&path, &renamed);
        self.disk.discard(if done.is_ok() { &renamed } else { &path });
        done?;
        // Report files are renamed to the data directory. Without a file there, their rename can only be checked.
        let access = rustix::fs::access(&self.path, Access::WRITE_OK | Access::EXEC_OK);
        access.map_err(io::Error::from).describe("create files in", &self.path)?;
        let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).describe("inspect", path);
        match device(&self.path)? == device(&dir)? && device(&dir)? == device(&self.tmp_dir())? {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::CrossesDevices)).describe("rename files from", &self.tmp_dir()),
        }
    }

    /// Creates the journals of one server, each of `journal_bytes`.
    ///
    /// # Errors
    /// Errors of the file system, most often that the disk is full.
    pub fn journals(&self, journal_bytes: usize) -> io::Result<Journals> {
        // The temporary files of a dead server may occupy the space.
        self.sweep();
        Journals::open(&self.disk, &self.path, journal_bytes)
    }

    /// Removes temporary files without an owner: those of dead servers, and those that could not be removed before.
    /// Errors are logged.
    pub fn sweep(&self) {
        // The directory of journals contains the file of a probe for a moment.
        for dir in [self.tmp_dir(), journal::dir(&self.path)] {
            temp_file::sweep(&self.disk, &dir);
        }
    }

    /// Bytes of disk space that are free for users other than root.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.disk.check_root()?;
        let disk =
            rustix::fs::statvfs(&self.path).map_err(io::Error::from).describe("inspect the disk of", &self.path)?;
        self.metrics.disk_total_bytes.set(disk.f_blocks.saturating_mul(disk.f_frsize));
        match disk.f_blocks {
            // The file system has no fixed size, such as ramfs.
            0 => Ok(u64::MAX),
            _ => Ok(disk.f_bavail.saturating_mul(disk.f_frsize)),
        }
    }

    /// Syncs the names of all report files. The call may be repeated after an error.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.path)
    }

    /// Opens a published report file to read it. It can be read to its end even if it is removed meanwhile.
    ///
    /// # Errors
    /// `NotFound` if there is no such file. Other errors of the file system.
    pub fn open_report_file(&self, id: &BatchId) -> io::Result<File> {
        self.disk.open(&self.path.join(id.report_file()))
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The counters of this server.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The last disk error, for `/readyz`.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.disk.health
    }

    /// The list of report files.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(super) fn incomplete(&self) -> MutexGuard<'_, HashMap<BatchId, File>> {
        self.incomplete.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tmp_dir(&self) -> PathBuf {
        self.path.join(TMP_DIR)
    }

    /// The path of a staged report file.
    pub(super) fn staged_path(&self, id: &BatchId) -> PathBuf {
        self.tmp_dir().join(id.report_file())
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_directory_is_created_private_and_the_probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        Store::open(&path, &Arc::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(fs::read_dir(path.join(TMP_DIR)).unwrap().count(), 0, "the probe is removed");
    }

    #[test]
    fn the_error_for_a_path_that_is_not_a_directory_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let error = Store::open(&path.join("reports"), &Arc::default()).unwrap_err().to_string();
        assert!(error.starts_with("can't create the directory") && error.contains("file/reports: "), "{error}");
    }
}
