//! Directory listings.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;

/// The entries of a directory, sorted by name. Empty if the directory does not exist.
pub(super) fn sorted_paths(disk: &Disk, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        paths => paths?,
    };
    paths.sort();
    Ok(paths)
}

/// The file name of a path. Empty if it is not UTF-8.
pub(super) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
