//! The quarantine: corrupt bytes and files, for a person to inspect.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::data_dir::Store;
use super::disk_error::Describe;
use super::journal_content::JournalContent;
use super::listing::file_name;
use super::temp_file::TempFile;

const DIR: &str = "quarantine";

/// Moves a file to the quarantine.
pub(super) fn move_file(store: &Store, path: &Path) -> io::Result<()> {
    let dir = create_dir(store)?;
    let target = dir.join(file_name(path));
    if target.exists() {
        // An earlier attempt has linked it, or an earlier file of this name was corrupt, too.
        store.disk.remove(path)?;
    } else {
        store.disk.rename_noreplace(path, &target)?;
        store.disk.sync_dir(&dir)?;
    }
    path.parent().map_or(Ok(()), |parent| store.disk.sync_dir(parent))
}

/// Copies the corrupt bytes of a journal to the quarantine. Returns their number.
pub(super) fn copy_corrupt(store: &Store, journal: &Path, content: &JournalContent<'_>) -> io::Result<usize> {
    let dir = create_dir(store)?;
    let bytes = content.corrupt.iter().map(|(_, corrupt)| corrupt.len()).sum();
    let first_offset = content.corrupt[0].0;
    let target = dir.join(file_name(journal));
    if !target.exists() {
        let temp = TempFile::create(&store.disk, &store.path, file_name(journal))?;
        let write = |(_, corrupt): &(usize, &[u8])| store.disk.writer(temp.file()).write_all(corrupt);
        content.corrupt.iter().try_for_each(write).describe("write", temp.path())?;
        store.disk.sync(temp.file()).describe("sync", temp.path())?;
        store.disk.rename_noreplace(temp.path(), &target)?;
        drop(temp.into_parts());
    }
    store.disk.sync_dir(&dir)?;
    store.metrics.quarantined_bytes.add(bytes as u64);
    tracing::warn!(
        file = %journal.display(), offset = first_offset, bytes, copy = %target.display(),
        "a journal contains corrupt bytes; copied to quarantine"
    );
    Ok(bytes)
}

fn create_dir(store: &Store) -> io::Result<PathBuf> {
    let dir = store.path.join(DIR);
    store.disk.create_dir_if_missing(&dir)?;
    Ok(dir)
}
