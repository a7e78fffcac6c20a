//! Orphan journals → report files.
//!
//! An orphan is a journal that no process has locked: its owner has died. For each one:
//!
//! - If its report file is there and sound, the crash fell between publishing and discarding: it is discarded now. A
//!   report file that is not sound is put aside.
//! - Else every complete, valid line is published under the journal's stem, and then the journal is discarded.
//! - Bytes that are no complete, valid line were never acknowledged, or the disk has changed them. They are put aside
//!   in `DATA_DIR/quarantine/`, for a person to look at.
//!
//! A crash at any point leaves the journal, and the next recovery does the same again.

use std::collections::HashSet;
use std::io::{self, Write};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::content::Content;
use super::{Compression, Disk, Stem, Store, Temp, journal, orphan, report_file};

const QUARANTINE: &str = "quarantine";

/// What a recovery has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Journals of which there is a report file now.
    pub journals: usize,
    /// Reports that were published.
    pub reports: usize,
    /// Bytes that were put aside.
    pub quarantined_bytes: usize,
    /// Journals that could not be recovered this time. They are still there.
    pub failed: usize,
}

impl Recovered {
    fn and(self, other: Self) -> Self {
        Self {
            journals: self.journals + other.journals,
            reports: self.reports + other.reports,
            quarantined_bytes: self.quarantined_bytes + other.quarantined_bytes,
            failed: self.failed + other.failed,
        }
    }
}

/// Recovers every orphan there is, on as many threads as `compression` has, each of which holds one whole journal in
/// memory. What goes wrong with one is logged, and does not keep the others. Files that no netwatch-server has named
/// are left alone, and told once: they are then in `foreign`.
///
/// # Errors
/// When the directory of the journals can't be read.
pub fn recover(store: &Store, compression: Compression, foreign: &mut HashSet<PathBuf>) -> io::Result<Recovered> {
    sweep(store);
    let mut journals = Vec::new();
    for path in paths(&store.disk, &journal::dir(&store.path))? {
        match Stem::of_journal(name(&path)) {
            Some(stem) => journals.push((path, stem)),
            None if Temp::is_named_so(name(&path)) => {}
            None => {
                if foreign.insert(path.clone()) {
                    tracing::warn!(file = %path.display(), "no netwatch-server has named this file; it is left alone");
                }
            }
        }
    }
    // Many journals are one for each thread; the threads that are left over share in the work on a single one.
    let threads = compression.threads.min(journals.len()).max(1);
    let compression = Compression { threads: compression.threads.div_ceil(threads), ..compression };
    let next = AtomicUsize::new(0);
    let work = || {
        // Relaxed: each number is given out once, and that is all.
        let journals = std::iter::from_fn(|| journals.get(next.fetch_add(1, Ordering::Relaxed)));
        journals
            .map(|(path, stem)| recover_or_keep(store, path, stem, compression))
            .fold(Recovered::default(), Recovered::and)
    };
    Ok(thread::scope(|scope| {
        // Without threads, this one does all of it.
        let others = (1..threads).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok());
        let others: Vec<_> = others.collect();
        let done = work();
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        others.fold(done, Recovered::and)
    }))
}

/// Removes what dead servers were making. What goes wrong is logged.
pub fn sweep(store: &Store) {
    for dir in [&store.path, &journal::dir(&store.path), &store.path.join(QUARANTINE)] {
        let made = paths(&store.disk, dir).map(|paths| paths.into_iter().filter(|path| Temp::is_named_so(name(path))));
        let swept = made.and_then(|mut made| {
            made.try_for_each(|path| {
                // Locked until it is gone.
                if let Some(_orphan) = orphan(&store.disk, &path)? {
                    store.disk.discard(&path);
                }
                Ok(())
            })
        });
        if let Err(error) = swept {
            tracing::error!(dir = %dir.display(), %error, "can't remove all that a dead server was making");
        }
    }
}

/// What lies in a directory, in the order of the names; nothing if it is not there.
pub(super) fn paths(disk: &Disk, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        paths => paths?,
    };
    paths.sort();
    Ok(paths)
}

pub(super) fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn recover_or_keep(store: &Store, path: &Path, stem: &Stem, compression: Compression) -> Recovered {
    recover_one(store, path, stem, compression).unwrap_or_else(|error| {
        tracing::error!(file = %path.display(), %error, "can't recover this journal; it is kept");
        Recovered { failed: 1, ..Recovered::default() }
    })
}

fn recover_one(store: &Store, path: &Path, stem: &Stem, compression: Compression) -> io::Result<Recovered> {
    let Some(file) = orphan(&store.disk, path)? else { return Ok(Recovered::default()) };
    let report_file = store.path.join(stem.report_file());
    match store.disk.open(&report_file).and_then(report_file::check) {
        Ok(()) => {
            // Its owner may have died before the name was on disk.
            store.sync()?;
            store.disk.discard(path);
            return Ok(Recovered::default());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The disk may do better next time.
        Err(error) if error.raw_os_error().is_some() => return Err(error),
        Err(error) => {
            tracing::error!(file = stem.report_file(), %error, "a report file is not sound; it is put aside");
            put_aside(store, &report_file)?;
        }
    }
    let modified = file.metadata()?.modified()?;
    let bytes = store.disk.read(&file)?;
    let content = Content::of(&bytes);
    let mut recovered = Recovered { journals: 1, ..Recovered::default() };
    if !content.rest.is_empty() {
        recovered.quarantined_bytes = quarantine(store, path, &content)?;
    }
    if !content.lines.is_empty() {
        store.publish(stem, &content.lines, modified, compression)?;
        store.sync()?;
        recovered.reports = content.reports();
    }
    store.disk.discard(path);
    if recovered.reports > 0 {
        tracing::info!(file = stem.report_file(), reports = recovered.reports, "recovered");
    }
    Ok(recovered)
}

/// Moves a report file to the quarantine.
fn put_aside(store: &Store, path: &Path) -> io::Result<()> {
    let dir = quarantine_dir(store)?;
    let aside = dir.join(name(path));
    if !aside.exists() {
        store.disk.link(path, &aside)?;
        store.disk.sync_dir(&dir)?;
    }
    store.disk.remove(path)?;
    store.sync()
}

fn quarantine_dir(store: &Store) -> io::Result<PathBuf> {
    let dir = store.path.join(QUARANTINE);
    store.disk.create_dir_all(&dir)?;
    Ok(dir)
}

/// Keeps what is no report; returns how many bytes that are.
fn quarantine(store: &Store, path: &Path, content: &Content<'_>) -> io::Result<usize> {
    let dir = quarantine_dir(store)?;
    let bytes = content.rest.iter().map(|(_, rest)| rest.len()).sum();
    let first_offset = content.rest[0].0;
    let aside = dir.join(name(path));
    if !aside.exists() {
        let temp = store.temp(&dir, name(path))?;
        let mut to = store.disk.writer(&temp.file);
        content.rest.iter().try_for_each(|(_, rest)| to.write_all(rest))?;
        store.disk.sync(&temp.file)?;
        temp.link(&aside)?;
    }
    store.disk.sync_dir(&dir)?;
    tracing::warn!(
        file = %path.display(), offset = first_offset, bytes, aside = %aside.display(),
        "a journal holds bytes that are no report; they are put aside"
    );
    Ok(bytes)
}
