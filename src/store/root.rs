//! The identity of the data directory.
//!
//! An operator may rename the data directory of a running server, replace it, or mount a disk over it. Files would then
//! be spread over two directories, and a batch could be published in one while its journal is left in the other. So no
//! file is created unless the path still leads to the directory that the server has opened.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::disk_error::Describe;

/// The data directory as it was opened.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    /// Keeps the inode number from being used for another directory.
    opened: Mutex<File>,
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let opened = File::open(path).describe("open", path)?;
        Ok(Self { path: path.to_owned(), opened: Mutex::new(opened) })
    }

    /// Checks that the path leads to the opened directory. If that directory was deleted, the one that has taken its
    /// place is used from now on: nothing else can.
    ///
    /// # Errors
    /// If the directory is missing, or was renamed or replaced.
    pub(super) fn check(&self) -> io::Result<()> {
        let named = fs::metadata(&self.path).describe("use the data directory", &self.path)?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let known = opened.metadata().describe("inspect", &self.path)?;
        if (known.dev(), known.ino()) == (named.dev(), named.ino()) {
            return Ok(());
        }
        if known.nlink() > 0 {
            let reason = "it was renamed or replaced while the server runs; restore it, or restart the server";
            return Err(io::Error::other(reason)).describe("use the data directory", &self.path);
        }
        *opened = File::open(&self.path).describe("open", &self.path)?;
        tracing::warn!(path = %self.path.display(), "the data directory was deleted; using the new one");
        Ok(())
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_directory_is_refused_until_it_is_back_and_a_deleted_one_is_succeeded() {
        let parent = tempfile::tempdir().unwrap();
        let [path, other] = ["data", "other"].map(|name| parent.path().join(name));
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        root.check().unwrap();
        fs::rename(&path, &other).unwrap();
        assert_eq!(root.check().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(&path).unwrap();
        let error = root.check().unwrap_err().to_string();
        assert!(error.contains("renamed or replaced"), "{error}");
        fs::remove_dir(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        root.check().unwrap();
        fs::remove_dir(&path).unwrap();
        fs::create_dir(&path).unwrap();
        root.check().unwrap();
        root.check().unwrap();
    }
}
