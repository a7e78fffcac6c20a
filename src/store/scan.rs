//! Inspecting report files: one of them, or all of them to fill the catalog.

use std::fs::Metadata;
use std::io;
use std::path::Path;

use super::batch_id::{BatchId, CompactId};
use super::catalog::CompactFile;
use super::data_dir::Store;
use super::disk_error::Describe;

/// Number of directory entries between two pauses of a scan.
const STEP: usize = 1000;

/// Called between two steps of long work. It may pause, and returns whether to go on.
pub type Pace<'a> = &'a mut dyn FnMut() -> bool;

impl Store {
    /// Lists all report files, and replaces the catalog. Returns `false` if `pace` ended the scan, which leaves the
    /// catalog as it was.
    ///
    /// A scan inspects only files that the catalog does not contain yet, because report files never change. Retention
    /// checks each file again before it removes the file. A scan of a million files needs 32 MB.
    ///
    /// # Errors
    /// If the directory cannot be listed. The catalog is left as it was.
    pub fn scan(&self, pace: Pace<'_>) -> io::Result<bool> {
        self.disk.check_root()?;
        // Before the directory is opened, so that no change is missed.
        self.catalog.begin_scan();
        let mut files: Vec<(CompactId, CompactFile)> = Vec::new();
        for (number, entry) in self.disk.entries(&self.path)?.enumerate() {
            if number % STEP == STEP - 1 && !pace() {
                return Ok(false);
            }
            let entry = entry.describe("list", &self.path)?;
            let Some(id) = entry.file_name().to_str().and_then(BatchId::of_report_file) else { continue };
            let file = match self.catalog.get(id) {
                Some(known) => Some(known),
                None => found(entry.metadata(), &entry.path()).unwrap_or_else(|error| {
                    self.health().log(&error, "can't inspect a report file; ignored");
                    None
                }),
            };
            files.extend(file.map(|file| (id.into(), file)));
        }
        self.catalog.replace(files);
        Ok(true)
    }

    /// What the file system knows of a report file. `None` if there is no regular file at `path`.
    pub(super) fn inspect(&self, path: &Path) -> io::Result<Option<CompactFile>> {
        found(path.symlink_metadata(), path)
    }
}

fn found(metadata: io::Result<Metadata>, path: &Path) -> io::Result<Option<CompactFile>> {
    let file = match metadata {
        Ok(metadata) if metadata.is_file() => {
            metadata.modified().map(|time| Some(CompactFile::new(metadata.len(), time)))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    file.describe("inspect", path)
}
