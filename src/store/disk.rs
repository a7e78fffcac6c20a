//! The calls that read, make, change, sync, name and remove what lies in a data directory: all of those on which a
//! promise rests.
//!
//! They go through one narrow place so that a test can have any of them fail, end the process at it, or forget what
//! had not been synced (`script`). In every other build a [`Disk`] is nothing, and these are the calls themselves.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{Errno, pwritev};

#[cfg(test)]
pub(crate) mod script;

const DIR_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// What a directory says that is not ours to sync, or on a file system that does not sync any.
const NO_SYNC: [io::ErrorKind; 4] = [
    io::ErrorKind::InvalidInput,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::Unsupported,
];

/// Where all calls go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    script: Option<std::sync::Arc<script::Script>>,
}

/// One call, and what it is about.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), allow(dead_code, reason = "for scripts"))]
pub(crate) enum Call<'a> {
    /// Says what a directory holds.
    List,
    /// Opens a file to read it.
    Open,
    Read,
    CreateDir(&'a Path),
    Create(&'a Path),
    Allocate(&'a File),
    Write(&'a File),
    SetModified,
    Sync(&'a File),
    SyncDir(&'a Path),
    /// Gives a file a second name.
    Link(&'a Path, &'a Path),
    Remove(&'a Path),
}

impl Disk {
    #[cfg(not(test))]
    #[inline(always)]
    fn call<T>(&self, _: Call<'_>, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        call()
    }

    /// The names in a directory.
    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.call(Call::List, || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect())
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        self.call(Call::Open, || File::open(path))
    }

    /// The same for a name under which anything may lie: that must not make this wait, or lead elsewhere.
    pub(super) fn open_warily(&self, path: &Path) -> io::Result<File> {
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
        self.call(Call::Open, || OpenOptions::new().read(true).custom_flags(flags).open(path))
    }

    /// Reads all of a file.
    pub(super) fn read(&self, mut file: &File) -> io::Result<Vec<u8>> {
        self.call(Call::Read, || {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        })
    }

    /// Makes a directory (0750), and those above it that are not there, and brings its name to the disk.
    pub(super) fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut made = self.create_dir(path);
        if let (Err(error), Some(above)) = (&made, above(path))
            && error.kind() == io::ErrorKind::NotFound
        {
            self.create_dir_all(above)?;
            made = self.create_dir(path);
        }
        match made {
            // Whoever made it may have died before its name was on disk. Where that can't be synced at all, it was
            // hardly a server.
            Err(_) if path.is_dir() => match above(path).map_or(Ok(()), |above| self.sync_dir(above)) {
                Err(error) if NO_SYNC.contains(&error.kind()) => Ok(()),
                synced => synced,
            },
            made => made,
        }
    }

    /// Makes a directory (0750), and brings its name to the disk.
    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::CreateDir(path), || DirBuilder::new().mode(DIR_MODE).create(path))?;
        above(path).map_or(Ok(()), |above| self.sync_dir(above))
    }

    /// Makes a file (0640) that was not there.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        let options = || OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
        self.call(Call::Create(path), options)
    }

    /// Sets room aside for the first `bytes` of a file, which are zeros until they are written.
    pub(super) fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        loop {
            match self.call(Call::Allocate(file), || Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A file system that can't: a full disk will show later.
                Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                    return file.set_len(bytes);
                }
                allocated => return allocated,
            }
        }
    }

    /// Writes as much as the kernel will take at once.
    pub(super) fn write_at(&self, file: &File, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(bytes) = self.shortened(file, bytes.first()) {
            return self.call(Call::Write(file), || Ok(pwritev(file, &[IoSlice::new(bytes)], offset)?));
        }
        self.call(Call::Write(file), || Ok(pwritev(file, bytes, offset)?))
    }

    /// Gives access to the end of a file.
    pub(super) fn writer<'a>(&'a self, file: &'a File) -> impl Write + 'a {
        Writer { disk: self, file }
    }

    pub(super) fn set_modified(&self, file: &File, modified: SystemTime) -> io::Result<()> {
        self.call(Call::SetModified, || file.set_modified(modified))
    }

    /// Brings all of a file to the disk.
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.call(Call::Sync(file), || file.sync_all())
    }

    /// Brings a file's bytes to the disk, and of all else only what it takes to read them.
    pub(super) fn sync_data(&self, file: &File) -> io::Result<()> {
        self.call(Call::Sync(file), || file.sync_data())
    }

    /// Brings the names in a directory to the disk.
    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::SyncDir(path), || File::open(path)?.sync_all())
    }

    /// Gives a file a second name, which must not be there.
    pub(super) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Link(from, to), || fs::hard_link(from, to))
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Remove(path), || fs::remove_file(path))
    }

    /// Removes a file that does no harm if it stays.
    pub(super) fn discard(&self, path: &Path) {
        if let Err(error) = self.remove(path) {
            tracing::warn!(path = %path.display(), %error, "can't remove a file that is not needed");
        }
    }
}

/// The directory that holds `path`; none above the root.
fn above(path: &Path) -> Option<&Path> {
    path.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above })
}

struct Writer<'a> {
    disk: &'a Disk,
    file: &'a File,
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        let bytes =
            self.disk.shortened(self.file, Some(&IoSlice::new(bytes))).map_or(bytes, |half| &bytes[..half.len()]);
        let mut file = self.file;
        self.disk.call(Call::Write(file), || file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
