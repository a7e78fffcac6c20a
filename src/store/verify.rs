//! Is what lies in a data directory sound?

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::content::Content;
use super::recover::{name, paths};
use super::{Disk, Stem, journal, orphan, report_file};

/// What was found of one file.
#[derive(Debug)]
pub struct Verdict {
    /// The report file or journal.
    pub path: PathBuf,
    /// The reports in it, or why it is not sound.
    pub reports: Result<usize, String>,
}

/// Reads every report file and every journal in `data_dir`. Journals that are in use are sound as far as they go.
///
/// # Errors
/// When a directory can't be read.
pub fn verify(data_dir: &Path) -> io::Result<Vec<Verdict>> {
    fs::read_dir(data_dir)?;
    let disk = Disk::default();
    let report_files = paths(&disk, data_dir)?.into_iter().filter(|path| Stem::of_report_file(name(path)).is_some());
    let journals = paths(&disk, &journal::dir(data_dir))?.into_iter();
    let journals = journals.filter(|path| Stem::of_journal(name(path)).is_some());
    let report_files = report_files.map(|path| Verdict { reports: verify_report_file(&path), path });
    let journals = journals.filter_map(|path| Some(Verdict { reports: verify_journal(&disk, &path)?, path }));
    Ok(report_files.chain(journals).collect())
}

fn verify_report_file(path: &Path) -> Result<usize, String> {
    let lines = File::open(path).and_then(report_file::decode).map_err(|error| error.to_string())?;
    sound(&Content::of(&lines))
}

fn verify_journal(disk: &Disk, path: &Path) -> Option<Result<usize, String>> {
    // Before it is read: then an owner that is done with it meanwhile is taken for one that still writes.
    let used = matches!(orphan(disk, path), Ok(None));
    match fs::read(path) {
        // Its owner has published it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
        Ok(bytes) => {
            let mut content = Content::of(&bytes);
            // The last write may be on its way.
            content.rest.pop_if(|(_, rest)| used && !rest.ends_with(b"\n"));
            Some(sound(&content))
        }
    }
}

fn sound(content: &Content<'_>) -> Result<usize, String> {
    match content.rest.first() {
        None => Ok(content.reports()),
        Some((offset, rest)) => Err(format!("{} bytes at offset {offset} are no report", rest.len())),
    }
}
