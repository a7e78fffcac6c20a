//! Checks every file of a data directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::batch_id::BatchId;
use super::disk::Disk;
use super::journal;
use super::journal_content::JournalContent;
use super::listing::{file_name, sorted_paths};
use super::orphan::{self, Found};
use super::report_file;
use super::temp_file::TMP_DIR;

/// The result for one file.
#[derive(Debug)]
pub struct Verdict {
    /// The report file, staged file or journal.
    pub path: PathBuf,
    /// The number of reports, or why the file is corrupt.
    pub reports: Result<usize, String>,
}

/// Reads every report file, staged report file and journal in `data_dir`, and passes the result for each to `report`.
/// The last write to a journal in use may be incomplete.
///
/// # Errors
/// If a directory cannot be listed, or an error of `report`.
pub fn verify(data_dir: &Path, mut report: impl FnMut(Verdict) -> io::Result<()>) -> io::Result<()> {
    fs::read_dir(data_dir)?;
    let disk = Disk::default();
    for dir in [data_dir, &data_dir.join(TMP_DIR)] {
        for path in sorted_paths(&disk, dir)? {
            if BatchId::of_report_file(file_name(&path)).is_some()
                && let Some(reports) = verify_report_file(&disk, &path)
            {
                report(Verdict { path, reports })?;
            }
        }
    }
    for path in sorted_paths(&disk, &journal::dir(data_dir))? {
        if BatchId::of_journal(file_name(&path)).is_some()
            && let Some(reports) = verify_journal(&disk, &path)
        {
            report(Verdict { path, reports })?;
        }
    }
    Ok(())
}

/// `None` if the file disappeared, because a consumer took it, or if it is not a regular file.
fn verify_report_file(disk: &Disk, path: &Path) -> Option<Result<usize, String>> {
    match disk.open(path).and_then(report_file::decode) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
        Ok(lines) => Some(verdict(&JournalContent::of(&lines))),
    }
}

/// `None` if the journal disappeared, because its batch was published, or if it is not a regular file.
fn verify_journal(disk: &Disk, path: &Path) -> Option<Result<usize, String>> {
    // Checked before the journal is read: an owner that finishes in between then counts as one that still writes.
    let is_in_use = matches!(orphan::lock(disk, path), Ok(Found::Locked | Found::Nothing));
    match disk.open(path).and_then(|file| disk.read(&file, path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
        Ok(bytes) => {
            let mut content = JournalContent::of(&bytes);
            // A write may be in progress.
            content.corrupt.pop_if(|(_, corrupt)| is_in_use && !corrupt.ends_with(b"\n"));
            Some(verdict(&content))
        }
    }
}

fn verdict(content: &JournalContent<'_>) -> Result<usize, String> {
    match content.corrupt.first() {
        None => Ok(content.reports()),
        Some((offset, corrupt)) => Err(format!("{} corrupt bytes at offset {offset}", corrupt.len())),
    }
}
