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
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Compression, DIR_MODE, Stem, Store, Temp, journal, orphan, remove, report_file, sync_dir};
use crate::report::Report;

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

/// Recovers every orphan there is. What goes wrong with one is logged, and does not keep the others. Files that no
/// netwatch-server has named are left alone, and told once: they are then in `foreign`.
///
/// # Errors
/// When the directory of the journals can't be read.
pub fn recover(store: &Store, compression: Compression, foreign: &mut HashSet<PathBuf>) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    sweep(store);
    for path in paths(&journal::dir(&store.path))? {
        let done = match Stem::of_journal(name(&path)) {
            Some(stem) => recover_one(store, &path, &stem, compression, &mut recovered),
            None if Temp::is_named_so(name(&path)) => Ok(()),
            None => {
                if foreign.insert(path.clone()) {
                    tracing::warn!(file = %path.display(), "no netwatch-server has named this file; it is left alone");
                }
                Ok(())
            }
        };
        if let Err(error) = done {
            tracing::error!(file = %path.display(), %error, "can't recover this journal; it is kept");
            recovered.failed += 1;
        }
    }
    Ok(recovered)
}

/// Removes what dead servers were making. What goes wrong is logged.
pub fn sweep(store: &Store) {
    for dir in [&store.path, &journal::dir(&store.path), &store.path.join(QUARANTINE)] {
        let made = paths(dir).map(|paths| paths.into_iter().filter(|path| Temp::is_named_so(name(path))));
        let swept = made.and_then(|mut made| {
            made.try_for_each(|path| {
                // Locked until it is gone.
                if let Some(_orphan) = orphan(&path)? {
                    remove(&path);
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
pub(super) fn paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
    };
    paths.sort();
    Ok(paths)
}

pub(super) fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn recover_one(
    store: &Store,
    path: &Path,
    stem: &Stem,
    compression: Compression,
    recovered: &mut Recovered,
) -> io::Result<()> {
    let Some(mut file) = orphan(path)? else { return Ok(()) };
    let path_of_report_file = store.path.join(stem.report_file());
    match File::open(&path_of_report_file).and_then(report_file::decode) {
        Ok(_) => {
            // Its owner may have died before the name was on disk.
            store.sync()?;
            remove(path);
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The disk may do better next time.
        Err(error) if error.raw_os_error().is_some() => return Err(error),
        Err(error) => {
            tracing::error!(file = stem.report_file(), %error, "a report file is not sound; it is put aside");
            put_aside(store, &path_of_report_file)?;
        }
    }
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let content = Content::of(&bytes);
    if !content.rest.is_empty() {
        quarantine(store, path, &content, recovered)?;
    }
    if !content.lines.is_empty() {
        publish(store, stem, &content.lines, modified, compression)?;
        let reports: usize = content.lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum();
        tracing::info!(file = stem.report_file(), reports, "recovered");
        recovered.reports += reports;
    }
    remove(path);
    recovered.journals += 1;
    Ok(())
}

fn publish(
    store: &Store,
    stem: &Stem,
    lines: &[&[u8]],
    modified: SystemTime,
    compression: Compression,
) -> io::Result<()> {
    store.publish(stem, lines, modified, compression)?;
    store.sync()
}

/// A journal's bytes, told apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content<'a> {
    /// Runs of complete, valid lines.
    pub(super) lines: Vec<&'a [u8]>,
    /// What is neither that nor preallocated, with its offset.
    pub(super) rest: Vec<(usize, &'a [u8])>,
}

impl<'a> Content<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        let mut content = Self::default();
        let mut offset = 0;
        // Where the run of valid lines that ends at `offset` began.
        let mut run = 0;
        while offset < bytes.len() {
            let left = &bytes[offset..];
            let end = memchr::memchr(b'\n', left).map(|newline| newline + 1);
            let valid = end.filter(|end| is_line(&left[..*end]));
            if let Some(len) = valid {
                offset += len;
                continue;
            }
            content.lines.extend((run < offset).then(|| &bytes[run..offset]));
            // Zeros to the end, or to the next line that may be one.
            let zeros = left.iter().take_while(|byte| **byte == 0).count();
            let bad = if zeros > 0 { 0 } else { end.unwrap_or_else(|| torn_len(left)) };
            content.rest.extend((bad > 0).then(|| (offset, &left[..bad])));
            offset += bad.max(zeros);
            run = offset;
        }
        content.lines.extend((run < offset).then(|| &bytes[run..offset]));
        content
    }
}

/// The length of a line that has no end: up to the zeros that follow it, if only those do.
fn torn_len(left: &[u8]) -> usize {
    left.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Whether these bytes, with their line break, are a line as the server writes them.
fn is_line(line: &[u8]) -> bool {
    let text = &line[..line.len() - 1];
    Report::check(text).is_ok_and(|report| report.as_bytes() == text)
}

/// Moves a report file to the quarantine.
fn put_aside(store: &Store, path: &Path) -> io::Result<()> {
    let dir = quarantine_dir(store)?;
    let aside = dir.join(name(path));
    if !aside.exists() {
        fs::hard_link(path, aside)?;
        sync_dir(&dir)?;
    }
    fs::remove_file(path)?;
    store.sync()
}

fn quarantine_dir(store: &Store) -> io::Result<PathBuf> {
    let dir = store.path.join(QUARANTINE);
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir)?;
    Ok(dir)
}

fn quarantine(store: &Store, path: &Path, content: &Content<'_>, recovered: &mut Recovered) -> io::Result<()> {
    let dir = quarantine_dir(store)?;
    let bytes: usize = content.rest.iter().map(|(_, rest)| rest.len()).sum();
    let first_offset = content.rest[0].0;
    let name = name(path);
    let aside = dir.join(name);
    if !aside.exists() {
        let mut temp = Temp::create(&dir, name)?;
        for (_, rest) in &content.rest {
            temp.file.write_all(rest)?;
        }
        temp.file.sync_all()?;
        fs::hard_link(&temp.path, &aside)?;
        sync_dir(&dir)?;
        store.sync()?;
    }
    tracing::warn!(
        file = %path.display(), offset = first_offset, bytes, aside = %aside.display(),
        "a journal holds bytes that are no report; they are put aside"
    );
    recovered.quarantined_bytes += bytes;
    Ok(())
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn lines_and_zeros_are_all_that_a_sound_journal_holds() {
        let bytes = b"{\"a\":1}\n{}\n\0\0\0\0";
        assert_eq!(Content::of(bytes), Content { lines: vec![&bytes[..11]], rest: vec![] });
        assert_eq!(Content::of(b""), Content::default());
        assert_eq!(Content::of(b"\0\0"), Content::default());
    }

    #[test]
    fn a_torn_tail_is_told_from_the_zeros_behind_it() {
        let bytes = b"{\"a\":1}\n{\"b\":\0\0";
        assert_eq!(Content::of(bytes), Content { lines: vec![&bytes[..8]], rest: vec![(8, &bytes[8..13])] });
    }

    #[test]
    fn what_follows_a_line_that_is_none_is_kept() {
        let bytes = b"{}\n{\"a\":\x01}\n{}\nno\n";
        let content =
            Content { lines: vec![&bytes[..3], &bytes[11..14]], rest: vec![(3, &bytes[3..11]), (14, &bytes[14..])] };
        assert_eq!(Content::of(bytes), content);
    }

    #[test]
    fn a_journal_cut_anywhere_gives_its_whole_lines_and_no_others() {
        let bytes = b"{\"a\":1}\n{\"b\":[1,2]}\n{\"c\":\"x\"}\n";
        for cut in 0..bytes.len() {
            for zeros in [0, 5] {
                let mut journal = bytes[..cut].to_vec();
                journal.resize(cut + zeros, 0);
                let whole = memchr::memrchr(b'\n', &bytes[..cut]).map_or(0, |newline| newline + 1);
                let content = Content::of(&journal);
                assert_eq!(content.lines.concat(), &bytes[..whole]);
                let rest: Vec<u8> = content.rest.iter().flat_map(|(_, rest)| rest.to_vec()).collect();
                assert_eq!(rest, &bytes[whole..cut]);
            }
        }
    }
}
