//! Files in the making.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::batch_id::{BatchId, random_id};
use super::disk::Disk;
use super::disk_error::Describe;
use super::listing::{file_name, sorted_paths};
use super::orphan::{self, Found};

/// The directory for files in the making and staged report files, within the data directory.
pub(super) const TMP_DIR: &str = "tmp";

/// A temporary file, locked by this process. It is removed when it is dropped.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    /// The handle, which holds the lock. `None` after `into_parts`.
    file: Option<File>,
    disk: Disk,
}

impl TempFile {
    /// Creates `.NAME.RANDOM.tmp` in the directory for temporary files of `data_dir`.
    pub(super) fn create(disk: &Disk, data_dir: &Path, name: &str) -> io::Result<Self> {
        disk.check_root()?;
        let dir = data_dir.join(TMP_DIR);
        loop {
            let path = dir.join(format!(".{name}.{:08x}.tmp", random_id()));
            let file = match disk.create(&path) {
                // Not the data directory itself: if that is missing, a disk may not be mounted.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    disk.create_dir_if_missing(&dir)?;
                    continue;
                }
                file => file?,
            };
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
            match locked.and_then(|()| Ok(file.metadata()?.nlink() > 0)) {
                Ok(true) => return Ok(Self { path, file: Some(file), disk: disk.clone() }),
                // A recovery found the file before it was locked, and removes it.
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    disk.discard(&path);
                    return Err(error).describe("lock", &path);
                }
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_ref().expect("`into_parts` consumes the value")
    }

    /// The path and the handle. The caller has to remove or rename the file.
    pub(super) fn into_parts(mut self) -> (PathBuf, File) {
        let file = self.file.take().expect("`into_parts` consumes the value");
        (self.path.clone(), file)
    }

    /// Whether the server gives such names to temporary files. Files of others are not touched.
    pub(super) fn is_name(name: &str) -> bool {
        let parse = || {
            let (name, id) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
            let is_random = id.len() == 8 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let is_known = ["probe", "journal"].contains(&name)
                || BatchId::of_report_file(name).is_some()
                || BatchId::of_journal(name).is_some();
            (is_random && is_known).then_some(())
        };
        parse().is_some()
    }
}

/// Removes the temporary files without an owner from a directory. Errors are logged. A file that fails does not affect
/// the others.
pub(super) fn sweep(disk: &Disk, dir: &Path) {
    let log = |error: io::Error| tracing::error!(%error, "can't remove the temporary files of a dead server");
    let paths = sorted_paths(disk, dir).unwrap_or_else(|error| {
        log(error);
        Vec::new()
    });
    for path in paths.into_iter().filter(|path| TempFile::is_name(file_name(path))) {
        match orphan::lock(disk, &path) {
            // The lock is held until the file is removed.
            Ok(Found::Orphan(_locked)) => disk.discard(&path),
            Ok(Found::Locked | Found::Nothing) => {}
            Err(error) => log(error),
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.disk.discard(&self.path);
        }
    }
}
