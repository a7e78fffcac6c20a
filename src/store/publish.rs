//! From the lines of a batch to a report file, in two durable steps: stage, then publish.
//!
//! 1. Stage: write a temporary file, sync it, rename it to `tmp/<id>.jsonl.zst`, sync the directory.
//! 2. The caller removes the journal, durably. From here on, the staged file is the only copy.
//! 3. Publish: rename the staged file into the data directory, sync the directory.
//!
//! After a crash, recovery continues where the server stopped. A batch without a journal and without a staged file is
//! published, whether its report file still exists or not.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::batch_id::BatchId;
use super::catalog::CompactFile;
use super::data_dir::Store;
use super::disk_error::{Describe, is_unreadable};
use super::orphan::is_same_file;
use super::quarantine;
use super::report_file::{self, Compression};
use super::temp_file::TempFile;

/// A complete and synced report file that does not have its final name yet. It is locked until it is dropped.
#[derive(Debug)]
pub struct Staged {
    /// The batch.
    pub id: BatchId,
    /// The number of reports.
    pub reports: usize,
    /// Size of the compressed file.
    pub bytes: u64,
    pub(super) path: PathBuf,
    pub(super) locked: File,
    /// It has its final name, which may not be durable yet.
    pub(super) is_renamed: bool,
}

impl Store {
    /// Compresses `lines` into a staged report file with the modification time `modified`. It is durable when this
    /// returns.
    ///
    /// # Errors
    /// Errors of the file system. Nothing is staged then, and the call may be repeated.
    pub fn stage(
        &self,
        id: BatchId,
        lines: &[&[u8]],
        modified: SystemTime,
        compression: Compression,
    ) -> io::Result<Staged> {
        let reports = lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum();
        self.stage_with(id, reports, modified, |to| report_file::compress(lines, compression, to))
    }

    /// Stages what `write` writes: a compressed file with this many reports.
    pub(super) fn stage_with(
        &self,
        id: BatchId,
        reports: usize,
        modified: SystemTime,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Staged> {
        let temp = TempFile::create(&self.disk, &self.path, &id.report_file())?;
        write(&mut self.disk.writer(temp.file())).describe("write", temp.path())?;
        if let Err(error) = self.disk.set_modified(temp.file(), modified) {
            // Nothing depends on it. The name contains a time, too.
            tracing::warn!(file = id.report_file(), %error, "can't set the modification time of a report file");
        }
        self.disk.sync(temp.file()).describe("sync", temp.path())?;
        let bytes = temp.file().metadata().describe("inspect", temp.path())?.len();
        let path = self.staged_path(&id);
        // An earlier attempt may have left a file of this name.
        let renamed = self.disk.rename(temp.path(), &path).and_then(|()| self.disk.sync_dir(&self.tmp_dir()));
        if let Err(error) = renamed {
            self.disk.discard_any([temp.path(), &path]);
            let (_, file) = temp.into_parts();
            // If the file is still there, its lock must outlive this call. An earlier file of this name keeps its lock.
            if is_same_file(&file, &path).unwrap_or(true) {
                self.incomplete().insert(id, file);
            }
            return Err(error);
        }
        self.incomplete().remove(&id);
        let (_, file) = temp.into_parts();
        Ok(Staged { id, reports, bytes, path, locked: file, is_renamed: false })
    }

    /// Gives a staged report file its final name. An existing file is never replaced. The journal must be removed
    /// before.
    ///
    /// # Errors
    /// Errors of the file system. The file is staged or published then, and the call may be repeated.
    pub fn publish(&self, staged: &mut Staged, compression: Compression) -> io::Result<()> {
        let path = self.path.join(staged.id.report_file());
        if !staged.is_renamed {
            match self.disk.rename_noreplace(&staged.path, &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.publish_missing(staged, compression)?;
                }
                // Some file systems report an error although they have renamed the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound || exists(&staged.path) => return Err(error),
                Err(_) | Ok(()) => {}
            }
            staged.is_renamed = true;
            self.add_to_catalog(staged);
        }
        self.sync()
    }

    fn add_to_catalog(&self, published: &Staged) {
        let modified = published.locked.metadata().and_then(|metadata| metadata.modified());
        let file = CompactFile::new(published.bytes, modified.unwrap_or_else(|_| SystemTime::now()));
        self.catalog.add_published(published.id, file);
        // Checked afterwards: a consumer may have taken the file before it was added. Or the file is another server's.
        match self.inspect(&self.path.join(published.id.report_file())) {
            Ok(None) => self.catalog.remove(published.id),
            Ok(Some(found)) if found != file => self.catalog.add(published.id, found),
            Ok(Some(_)) | Err(_) => {}
        }
    }

    /// Publishes a staged file whose name is taken. Where file locks do not work, another server may have recovered the
    /// journal of a live batch and published a part of it. Then only the missing lines are published, under another id.
    fn publish_missing(&self, staged: &Staged, compression: Compression) -> io::Result<()> {
        let path = self.path.join(staged.id.report_file());
        let decode = |path| self.disk.open(path).and_then(report_file::decode).describe("read", path);
        let published = match decode(&path) {
            Err(error) if is_unreadable(&error) => return Err(error),
            Err(error) => {
                tracing::error!(file = staged.id.report_file(), %error, "a report file is corrupt; moved to quarantine");
                quarantine::move_file(self, &path)?;
                return self.disk.rename_noreplace(&staged.path, &path);
            }
            Ok(published) => published,
        };
        let lines = decode(&staged.path)?;
        let missing = missing_lines(&lines, &published);
        if !missing.is_empty() {
            let id = staged.id.renamed();
            tracing::error!(
                file = staged.id.report_file(),
                new_file = id.report_file(),
                lines = missing.len(),
                "another server has published a part of this batch: file locks do not work on this volume"
            );
            let modified = staged.locked.metadata().and_then(|metadata| metadata.modified());
            let modified = modified.describe("inspect", &staged.path)?;
            let rest = self.stage(id, &missing, modified, compression)?;
            self.disk.rename_noreplace(&rest.path, &self.path.join(id.report_file()))?;
            self.add_to_catalog(&rest);
        }
        self.disk.remove(&staged.path)
    }
}

/// Whether there is a file at `path`. Also `true` if the file system cannot tell.
fn exists(path: &Path) -> bool {
    !path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The lines that are not in `published`. A line that occurs several times counts as often.
fn missing_lines<'a>(lines: &'a [u8], published: &'a [u8]) -> Vec<&'a [u8]> {
    let split = |bytes: &'a [u8]| bytes.split_inclusive(|byte| *byte == b'\n');
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    split(published).for_each(|line| *counts.entry(line).or_default() += 1);
    let mut missing = Vec::new();
    for line in split(lines) {
        match counts.get_mut(line) {
            Some(count) if *count > 0 => *count -= 1,
            _ => missing.push(line),
        }
    }
    missing
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    const COMPRESSION: Compression = Compression { level: 1, threads: 2 };

    fn report_files(dir: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.is_file());
        paths.sort();
        paths
    }

    fn content(path: &Path) -> Vec<u8> {
        zstd::decode_all(File::open(path).unwrap()).unwrap()
    }

    fn publish(store: &Store, id: BatchId, lines: &[&[u8]]) -> Staged {
        let mut staged = store.stage(id, lines, SystemTime::now(), COMPRESSION).unwrap();
        store.publish(&mut staged, COMPRESSION).unwrap();
        staged
    }

    #[test]
    fn a_published_file_is_complete_and_private_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &Arc::default()).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let id = BatchId::new(modified);
        let mut staged = store.stage(id, &[b"{\"a\":1}\n", b"{}\n"], modified, COMPRESSION).unwrap();
        assert!(report_files(dir.path()).is_empty(), "staged, not published");
        store.publish(&mut staged, COMPRESSION).unwrap();
        let path = dir.path().join(id.report_file());
        assert_eq!(report_files(dir.path()), std::slice::from_ref(&path));
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.nlink()), (staged.bytes, 1));
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert_eq!(metadata.modified().unwrap(), modified);
        assert_eq!(content(&path), b"{\"a\":1}\n{}\n");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_published_file_is_in_the_catalog_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &Arc::default()).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let id = BatchId::new(modified);
        let mut staged = store.stage(id, &[b"{}\n"], modified, COMPRESSION).unwrap();
        assert_eq!(store.catalog().totals().files, 0, "staged, not published");
        store.publish(&mut staged, COMPRESSION).unwrap();
        let files: Vec<_> =
            store.catalog().files(None, None).map(|file| (file.id, file.bytes, file.modified)).collect();
        assert_eq!(files, [(id, staged.bytes, modified)]);
        // A consumer may take it before the server adds it.
        fs::remove_file(dir.path().join(id.report_file())).unwrap();
        store.add_to_catalog(&staged);
        assert_eq!(store.catalog().totals().files, 0);
    }

    #[test]
    fn lines_that_another_server_has_published_are_not_published_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &Arc::default()).unwrap();
        let id = BatchId::new(SystemTime::now());
        publish(&store, id, &[b"{\"a\":1}\n", b"{}\n"]);
        publish(&store, id, &[b"{}\n", b"{\"a\":1}\n"]);
        assert_eq!(report_files(dir.path()).len(), 1, "the same lines");
        publish(&store, id, &[b"{\"a\":1}\n{}\n{}\n{\"b\":2}\n"]);
        let files = report_files(dir.path());
        let mut lines: Vec<_> = files.iter().map(|path| content(path)).collect();
        lines.sort();
        assert_eq!(lines, [&b"{\"a\":1}\n{}\n"[..], b"{}\n{\"b\":2}\n"]);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &Arc::default()).unwrap();
        let id = BatchId::new(SystemTime::now());
        fs::write(dir.path().join(id.report_file()), "precious").unwrap();
        publish(&store, id, &[b"{}\n"]);
        assert_eq!(fs::read(dir.path().join("quarantine").join(id.report_file())).unwrap(), b"precious");
        assert_eq!(content(&dir.path().join(id.report_file())), b"{}\n");
    }
}
