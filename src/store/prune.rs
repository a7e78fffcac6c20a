//! Retention: removing the oldest report files.
//!
//! A file is removed only if it is a regular file with the name, size and time that the catalog knows, it is not the
//! newest one, and its batch has no journal and no staged file. Other servers and consumers may remove files at the same
//! time. After a power failure, a removed file may come back, and is removed again.

#[cfg(all(test, not(netwatch_loom)))]
mod tests;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::batch_id::BatchId;
use super::catalog::{CatalogEntry, CompactFile};
use super::data_dir::Store;
use super::journal;
use crate::config::Config;

/// Number of files that cannot be removed, after which pruning ends until the next time.
const MAX_FAILED: usize = 10;

/// Which report files are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Maximum time since the last report of a file.
    pub max_age: Option<Duration>,
    /// Maximum size of all files together.
    pub max_bytes: Option<u64>,
}

impl From<&Config> for Retention {
    fn from(config: &Config) -> Self {
        let max_bytes = Some(config.retention_max_bytes as u64).filter(|bytes| *bytes > 0);
        Self { max_age: config.retention_max_age, max_bytes }
    }
}

impl Retention {
    /// Whether there is a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.max_age.is_some() || self.max_bytes.is_some()
    }
}

/// A file that was pruned.
#[derive(Debug)]
pub struct PrunedFile {
    /// Its path.
    pub path: PathBuf,
    /// Its compressed size.
    pub bytes: u64,
    /// Time since its last report.
    pub age: Duration,
}

/// The result of a prune.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Files that were removed.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// Files that could not be removed.
    pub failed: usize,
}

/// What happens to the files that exceed a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneMode {
    /// They are removed.
    Remove,
    /// They are removed from the catalog only, for a process that shows what would be removed.
    DryRun,
}

/// Called for each removed file. It may end the prune.
pub type OnPruned<'a> = &'a mut dyn FnMut(&PrunedFile) -> io::Result<ControlFlow<()>>;

impl Store {
    /// Removes the files that exceed a limit, oldest first. The catalog must be loaded.
    ///
    /// # Errors
    /// If the data directory was replaced, or an error of `on_pruned`. A file that cannot be removed is logged, and does
    /// not count as an error.
    pub fn prune(
        &self,
        retention: Retention,
        mode: PruneMode,
        now: SystemTime,
        on_pruned: OnPruned<'_>,
    ) -> io::Result<Pruned> {
        let mut prune = Prune { store: self, mode, now, done: Pruned::default(), on_pruned };
        if let Some(latest) = retention.max_age.and_then(|age| now.checked_sub(age)) {
            // The last report of a file is never older than its first one.
            for file in self.catalog.files(None, Some(latest)).filter(|file| file.modified < latest) {
                if prune.remove(file)?.is_break() {
                    return Ok(prune.done);
                }
            }
        }
        if let Some(max_bytes) = retention.max_bytes {
            let mut excess = self.catalog.totals().bytes.saturating_sub(max_bytes);
            for file in self.catalog.files(None, None) {
                // A file that cannot be removed counts as well. Otherwise a younger one would be removed early.
                if excess == 0 || prune.remove(file)?.is_break() {
                    break;
                }
                excess = excess.saturating_sub(file.bytes);
            }
        }
        Ok(prune.done)
    }

    /// Removes the oldest files until `wanted_free_bytes` are free, or files of the missing size are removed. Some file
    /// systems free the space later, and a reader may hold a file open. The catalog must be loaded.
    ///
    /// # Errors
    /// As [`prune`](Self::prune), or if the free space is unknown.
    pub fn prune_for_space(&self, wanted_free_bytes: u64, on_pruned: OnPruned<'_>) -> io::Result<Pruned> {
        let (mode, now) = (PruneMode::Remove, SystemTime::now());
        let mut prune = Prune { store: self, mode, now, done: Pruned::default(), on_pruned };
        let missing = wanted_free_bytes.saturating_sub(self.free_bytes()?);
        for file in self.catalog.files(None, None) {
            let is_enough = prune.done.bytes >= missing || self.free_bytes()? >= wanted_free_bytes;
            if is_enough || prune.remove(file)?.is_break() {
                break;
            }
        }
        Ok(prune.done)
    }
}

struct Prune<'a> {
    store: &'a Store,
    mode: PruneMode,
    now: SystemTime,
    done: Pruned,
    on_pruned: OnPruned<'a>,
}

impl Prune<'_> {
    /// Removes one file, unless that is forbidden. Returns whether to go on.
    fn remove(&mut self, file: CatalogEntry) -> io::Result<ControlFlow<()>> {
        let Store { path, disk, catalog, .. } = self.store;
        disk.check_root()?;
        match self.newest()? {
            Some(newest) if file.id < newest => {}
            _ => return Ok(ControlFlow::Break(())),
        }
        let path = path.join(file.id.report_file());
        match self.remove_checked(file, &path) {
            Ok(false) => return Ok(ControlFlow::Continue(())),
            Ok(true) => {}
            Err(error) => {
                self.store.health().log(&error, "can't remove an old report file; retrying later");
                self.done.failed += 1;
                let is_over = self.done.failed >= MAX_FAILED;
                return Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
            }
        }
        catalog.remove_pruned(file.id);
        self.done.files += 1;
        self.done.bytes += file.bytes;
        let age = self.now.duration_since(file.modified).unwrap_or_default();
        (self.on_pruned)(&PrunedFile { path, bytes: file.bytes, age })
    }

    /// Removes the file if it is still the one in the catalog. Otherwise corrects the catalog, and returns `false`.
    fn remove_checked(&self, file: CatalogEntry, path: &Path) -> io::Result<bool> {
        let Store { path: data_dir, disk, catalog, .. } = self.store;
        match self.store.inspect(path)? {
            Some(found) if found == CompactFile::new(file.bytes, file.modified) => {}
            Some(changed) => {
                catalog.add(file.id, changed);
                return Ok(false);
            }
            None => {
                catalog.remove(file.id);
                return Ok(false);
            }
        }
        // The batch is not completely published yet.
        if exists(&journal::dir(data_dir).join(file.id.journal()))? || exists(&self.store.staged_path(&file.id))? {
            return Ok(false);
        }
        match self.mode {
            PruneMode::DryRun => Ok(true),
            PruneMode::Remove => match disk.remove(path) {
                // Another server or a consumer was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    catalog.remove(file.id);
                    Ok(false)
                }
                removed => removed.map(|()| true),
            },
        }
    }

    /// The newest file. The catalog may contain newer ones that a consumer has taken.
    fn newest(&self) -> io::Result<Option<BatchId>> {
        let Store { path, catalog, .. } = self.store;
        while let Some(newest) = catalog.newest() {
            match self.store.inspect(&path.join(newest.report_file()))? {
                Some(_) => return Ok(Some(newest)),
                None => catalog.remove(newest),
            }
        }
        Ok(None)
    }
}

/// Whether there is anything at `path`.
fn exists(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true),
    }
}
