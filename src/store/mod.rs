//! The data directory on disk: how a report file comes to be there, whole or not at all.

pub mod content;
mod disk;
pub mod journal;
pub mod recover;
pub mod report_file;
pub mod verify;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(crate) use self::disk::Disk;
#[cfg(all(test, not(netwatch_loom)))]
pub(crate) use self::disk::script;
pub use self::journal::{Journal, Journals};
pub use self::report_file::{Compression, Stem};

/// The directory in which report files are published. Several servers may share one.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    disk: Disk,
}

/// The data directory can't be used.
#[derive(Debug, thiserror::Error)]
#[error("can't {action} {path}: {source}", path = path.display())]
pub struct OpenError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Store {
    /// Opens the data directory, makes it (0750) if it is not there, and checks that all that publishing takes can be
    /// done there.
    ///
    /// # Errors
    /// [`OpenError`], with what could not be done.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_on(Disk::default(), path)
    }

    pub(crate) fn open_on(disk: Disk, path: &Path) -> Result<Self, OpenError> {
        let failed = |action| move |source| OpenError { action, path: path.to_owned(), source };
        disk.create_dir_all(path).map_err(failed("make the directory"))?;
        let store = Self { path: path.to_owned(), disk };
        let probe = store.temp(path, "probe").map_err(failed("make files in"))?;
        let link = probe.path.with_extension("link.tmp");
        probe.link(&link).map_err(failed("make hard links in"))?;
        store.disk.discard(&link);
        drop(probe);
        store.sync().map_err(failed("sync"))?;
        Ok(store)
    }

    /// Opens the journals of one server, each of `journal_bytes`.
    ///
    /// # Errors
    /// [`OpenError`]; most often that there is no room for them.
    pub fn journals(&self, journal_bytes: usize) -> Result<Journals, OpenError> {
        // What a dead server has prepared may be what takes the room.
        recover::sweep(self);
        let failed = |source| OpenError { action: "make journals in", path: journal::dir(&self.path), source };
        Journals::open(&self.disk, &self.path, journal_bytes).map_err(failed)
    }

    /// Compresses `lines` into a new report file, with `modified` as its time. Once this returns, the file is complete
    /// and on disk; its name lasts once [`sync`](Self::sync) has returned, too. Returns its length in bytes.
    ///
    /// # Errors
    /// Any error of the file system, `AlreadyExists` when the name is taken. There is no file then, and the call can
    /// be made again.
    pub fn publish(
        &self,
        stem: &Stem,
        lines: &[&[u8]],
        modified: SystemTime,
        compression: Compression,
    ) -> io::Result<u64> {
        let temp = self.temp(&self.path, &stem.report_file())?;
        report_file::compress(lines, compression, self.disk.writer(&temp.file))?;
        if let Err(error) = self.disk.set_modified(&temp.file, modified) {
            // Nothing rests on it: the name tells a time, too.
            tracing::warn!(file = stem.report_file(), %error, "can't set the time of a report file");
        }
        self.disk.sync(&temp.file)?;
        let bytes = temp.file.metadata()?.len();
        temp.link(&self.path.join(stem.report_file()))?;
        Ok(bytes)
    }

    /// Bytes that are free on the disk for users that are not root.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Brings the names of all published files to the disk.
    ///
    /// # Errors
    /// Those of the file system. The call can be made again: it opens the directory anew.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.path)
    }

    /// Whether there is a report file of this stem that holds just these lines: then a publish that seemed to fail, or
    /// of which nobody heard, has succeeded. Returns its length.
    ///
    /// # Errors
    /// Those of the file system, and that there is another file of that name.
    pub fn published(&self, stem: &Stem, lines: &[&[u8]]) -> io::Result<u64> {
        let file = self.disk.open(&self.path.join(stem.report_file()))?;
        let bytes = file.metadata()?.len();
        if report_file::decode(file)? == lines.concat() {
            Ok(bytes)
        } else {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "another file has this batch's name"))
        }
    }

    fn temp(&self, dir: &Path, stem: &str) -> io::Result<Temp> {
        Temp::create(&self.disk, dir, stem)
    }
}

/// A hidden file, locked by this process, that goes away again; what is to stay of it gets another name before.
#[derive(Debug)]
struct Temp {
    path: PathBuf,
    file: File,
    disk: Disk,
}

impl Temp {
    /// Makes `.STEM.RANDOM.tmp` in `dir`.
    fn create(disk: &Disk, dir: &Path, stem: &str) -> io::Result<Self> {
        loop {
            let path = dir.join(format!(".{stem}.{:08x}.tmp", random_id()));
            let file = disk.create(&path)?;
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
            match locked.and_then(|()| Ok(file.metadata()?.nlink() > 0)) {
                Ok(true) => return Ok(Self { path, file, disk: disk.clone() }),
                // A recovery found it before it was locked, and removes it.
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    disk.discard(&path);
                    return Err(error);
                }
            }
        }
    }

    /// Gives it the name that is to stay. Never a rename: that would replace what is there.
    fn link(&self, path: &Path) -> io::Result<()> {
        self.disk.link(&self.path, path)
    }

    /// Whether a netwatch-server gives such names to files in the making; others' files are not touched.
    fn is_named_so(name: &str) -> bool {
        let parse = || {
            let name = name.strip_prefix('.')?.strip_suffix(".tmp")?;
            let (stem, id) = name.strip_suffix(".link").unwrap_or(name).rsplit_once('.')?;
            let random = id.len() == 8 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let known = ["probe", "journal"].contains(&stem)
                || Stem::of_report_file(stem).is_some()
                || Stem::of_journal(stem).is_some();
            (random && known).then_some(())
        };
        parse().is_some()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        self.disk.discard(&self.path);
    }
}

/// Opens and locks a file that nobody owns any more; `None` when somebody has it locked, or it is gone.
fn orphan(disk: &Disk, path: &Path) -> io::Result<Option<File>> {
    let file = match disk.open_warily(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Between opening and locking, its owner or another recovery may have been done with it.
    let (opened, named) = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        named => (file.metadata()?, named?),
    };
    let same = (opened.dev(), opened.ino()) == (named.dev(), named.ino());
    Ok((same && opened.is_file()).then_some(file))
}

/// A number that no other name here is likely to carry.
#[must_use]
pub(crate) fn random_id() -> u32 {
    getrandom::u32().expect("the kernel has random numbers")
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    const COMPRESSION: Compression = Compression { level: 1, threads: 2 };

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_published_file_is_complete_private_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let store = Store::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
        assert!(names(&path).is_empty(), "the probe is gone");

        let modified = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let name = Stem::new(modified);
        let bytes = store.publish(&name, &[b"{\"a\":1}\n", b"{}\n"], modified, COMPRESSION).unwrap();
        assert_eq!(names(&path), [name.report_file()]);
        let metadata = fs::metadata(path.join(name.report_file())).unwrap();
        assert_eq!(metadata.len(), bytes);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert_eq!(metadata.nlink(), 1);
        assert_eq!(metadata.modified().unwrap(), modified);
        let content = zstd::decode_all(File::open(path.join(name.report_file())).unwrap()).unwrap();
        assert_eq!(content, b"{\"a\":1}\n{}\n");
    }

    #[test]
    fn a_name_that_is_taken_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let now = SystemTime::now();
        let name = Stem::new(now);
        fs::write(dir.path().join(name.report_file()), "precious").unwrap();
        let error = store.publish(&name, &[b"{}\n"], now, COMPRESSION).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(dir.path()), [name.report_file()], "no temporary file is left");
        assert_eq!(fs::read(dir.path().join(name.report_file())).unwrap(), b"precious");
        assert!(store.published(&name, &[b"{}\n"]).is_err());
    }

    #[test]
    fn a_name_that_is_taken_is_this_batchs_only_if_the_lines_are() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let now = SystemTime::now();
        let name = Stem::new(now);
        let bytes = store.publish(&name, &[b"{}\n"], now, COMPRESSION).unwrap();
        assert_eq!(store.published(&name, &[b"{", b"}\n"]).unwrap(), bytes);
        assert_eq!(store.published(&name, &[b"{\"a\":1}\n"]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_directory_that_is_none_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let error = Store::open(&path.join("reports")).unwrap_err().to_string();
        assert!(error.starts_with("can't make the directory") && error.contains("file/reports: "), "{error}");
    }
}
