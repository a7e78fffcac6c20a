//! Files without an owner.
//!
//! The owner of a file holds a lock on it (flock). The kernel releases the lock when the owner dies.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::disk::Disk;
use super::disk_error::Describe;

/// What was found at a path.
#[derive(Debug)]
pub(super) enum Found {
    /// A file without an owner. It is locked now.
    Orphan(File),
    /// A file that another open file description has locked.
    Locked,
    /// No regular file.
    Nothing,
}

/// Opens and locks the file at `path`, unless it has an owner.
pub(super) fn lock(disk: &Disk, path: &Path) -> io::Result<Found> {
    let file = match disk.open_to_lock(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        file => file?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Found::Locked),
        Err(error) => return Err(io::Error::from(error)).describe("lock", path),
    }
    // Between the open and the lock, the owner or another recovery may have removed or replaced the file.
    Ok(if is_same_file(&file, path)? { Found::Orphan(file) } else { Found::Nothing })
}

/// Whether `path` is a name of the open file.
pub(super) fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata().describe("inspect", path)?;
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        named => {
            let named = named.describe("inspect", path)?;
            Ok((opened.dev(), opened.ino()) == (named.dev(), named.ino()))
        }
    }
}
