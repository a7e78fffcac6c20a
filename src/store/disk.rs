//! All file operations on which durability depends.
//!
//! They go through one place so that tests can let any of them fail, end the process at it, or simulate a power failure
//! (`fault_injection`). In other builds a [`Disk`] adds nothing to the calls.

use std::fs::{self, DirBuilder, File, OpenOptions, ReadDir};
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::{Errno, pwritev};

use super::disk_error::Describe;
use super::health::Health;
use super::root::Root;
#[cfg(all(test, not(netwatch_loom)))]
use crate::durability_tests::Script;

const DIR_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// Errors of a directory that belongs to another user, or of a file system that cannot sync directories.
const NO_SYNC: [io::ErrorKind; 4] = [
    io::ErrorKind::InvalidInput,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::Unsupported,
];

/// Errors of file systems that do not support `RENAME_NOREPLACE`.
const NO_NOREPLACE: [Errno; 3] = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];

/// Access to the file system.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    /// The last error, for `/readyz`.
    pub(super) health: Arc<Health>,
    /// The data directory, once it is opened.
    root: Arc<OnceLock<Root>>,
    #[cfg(all(test, not(netwatch_loom)))]
    script: Option<Arc<Script>>,
}

/// One file operation and its arguments.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(any(not(test), netwatch_loom), allow(dead_code, reason = "fault injection reads the arguments"))]
pub(crate) enum Call<'a> {
    List,
    Open,
    Read,
    CreateDir(&'a Path),
    Create(&'a Path),
    Allocate(&'a File),
    Write(&'a File),
    SetModified,
    Sync(&'a File),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
}

impl Disk {
    /// A disk whose operations are recorded, and fail as `script` says.
    #[cfg(all(test, not(netwatch_loom)))]
    pub(crate) fn scripted(script: &Arc<Script>) -> Self {
        Self { script: Some(Arc::clone(script)), ..Self::default() }
    }

    /// Tells whether a name would survive a power failure.
    #[cfg(all(test, not(netwatch_loom)))]
    pub(crate) fn is_durable(&self) -> impl Fn(&Path) -> bool + use<> {
        let script = self.script.clone();
        move |path| script.as_ref().is_none_or(|script| script.is_durable(path))
    }

    #[cfg(all(test, not(netwatch_loom)))]
    fn call<T>(&self, call: Call<'_>, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.script {
            None => run(),
            Some(script) => script.call(call, run),
        }
    }

    #[cfg(any(not(test), netwatch_loom))]
    #[inline(always)]
    fn call<T>(&self, _: Call<'_>, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        call()
    }

    /// Remembers the identity of the data directory.
    pub(super) fn open_root(&self, path: &Path) -> io::Result<()> {
        let root = Root::open(path)?;
        self.root.get_or_init(|| root);
        Ok(())
    }

    /// Checks that the data directory is still the one that was opened.
    pub(super) fn check_root(&self) -> io::Result<()> {
        self.root.get().map_or(Ok(()), Root::check)
    }

    /// The entries of a directory, in any order.
    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.call(Call::List, || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()).describe("list", path)
    }

    /// The entries of a directory that may be too long for one list, in any order.
    pub(super) fn entries(&self, path: &Path) -> io::Result<ReadDir> {
        self.call(Call::List, || fs::read_dir(path)).describe("list", path)
    }

    /// Opens a regular file to read it. Another server or a user may have put anything there: everything that is not a
    /// regular file counts as `NotFound`, and a FIFO does not block.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        self.open_regular(path, OpenOptions::new().read(true)).describe("open", path)
    }

    /// Opens a regular file to lock it, as [`open`](Self::open) does. NFS grants exclusive locks only on files that are
    /// open for writing.
    pub(super) fn open_to_lock(&self, path: &Path) -> io::Result<File> {
        self.open_regular(path, OpenOptions::new().read(true).write(true)).describe("open", path)
    }

    fn open_regular(&self, path: &Path, options: &mut OpenOptions) -> io::Result<File> {
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
        let not_regular = [Errno::LOOP, Errno::ISDIR, Errno::NXIO].map(Errno::raw_os_error);
        self.call(Call::Open, || match options.custom_flags(flags).open(path) {
            Ok(file) if file.metadata()?.is_file() => Ok(file),
            Ok(_) => Err(io::ErrorKind::NotFound.into()),
            Err(error) if error.raw_os_error().is_some_and(|errno| not_regular.contains(&errno)) => {
                Err(io::ErrorKind::NotFound.into())
            }
            Err(error) => Err(error),
        })
    }

    /// Reads a whole file, which was opened from `path`.
    pub(super) fn read(&self, mut file: &File, path: &Path) -> io::Result<Vec<u8>> {
        self.call(Call::Read, || {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .describe("read", path)
    }

    /// Creates a directory (mode 0750) and its missing parents, and syncs its name.
    pub(super) fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut created = self.create_dir(path);
        if let (Err(error), Some(parent)) = (&created, parent(path))
            && error.kind() == io::ErrorKind::NotFound
        {
            self.create_dir_all(parent)?;
            created = self.create_dir(path);
        }
        match created {
            // Another server may have crashed before it synced the name. A parent that cannot be synced at all was not
            // written by a server.
            Err(_) if path.is_dir() => match parent(path).map_or(Ok(()), |parent| self.sync_dir(parent)) {
                Err(error) if NO_SYNC.contains(&error.kind()) => Ok(()),
                synced => synced,
            },
            created => created,
        }
    }

    /// Creates a directory (mode 0750), unless it exists, and syncs its name. Its parent must exist.
    pub(super) fn create_dir_if_missing(&self, path: &Path) -> io::Result<()> {
        match self.create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match path.is_dir() {
                true => Ok(()),
                false => Err(io::Error::from(io::ErrorKind::NotADirectory)).describe("use the directory", path),
            },
            created => created,
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let create = || {
            DirBuilder::new().mode(DIR_MODE).create(path)?;
            self.inherit_owner(path)
        };
        self.call(Call::CreateDir(path), create).describe("create the directory", path)?;
        parent(path).map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    /// Creates a file (mode 0640), open for reading and writing. An existing file is an error.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        let create = || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
            match self.inherit_owner(path) {
                Ok(()) => Ok(file),
                Err(error) => {
                    fs::remove_file(path)?;
                    Err(error)
                }
            }
        };
        self.call(Call::Create(path), create).describe("create", path)
    }

    /// Gives a new file or directory the owner of its directory. Only root can do that, and only root needs it: a
    /// command that root runs must not create files that the server cannot use.
    fn inherit_owner(&self, path: &Path) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let Some(parent) = parent(path) else { return Ok(()) };
        let owner = fs::metadata(parent)?;
        match owner.uid() {
            0 => Ok(()),
            uid => lchown(path, Some(uid), Some(owner.gid())),
        }
    }

    /// Preallocates `bytes` of a file. They are zeros until they are written.
    pub(super) fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        loop {
            match self.call(Call::Allocate(file), || Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The file system cannot preallocate. A full disk will show at a write.
                Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                    return file.set_len(bytes);
                }
                allocated => return allocated,
            }
        }
    }

    /// Writes as many bytes as the kernel accepts in one call, and returns their number.
    pub(super) fn write_at(&self, file: &File, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        #[cfg(all(test, not(netwatch_loom)))]
        if let Some(bytes) =
            self.script.as_ref().zip(bytes.first()).and_then(|(script, bytes)| script.shortened(file, bytes))
        {
            return self.call(Call::Write(file), || Ok(pwritev(file, &[IoSlice::new(bytes)], offset)?));
        }
        self.call(Call::Write(file), || Ok(pwritev(file, bytes, offset)?))
    }

    /// A writer that appends to a file.
    pub(super) fn writer<'a>(&'a self, file: &'a File) -> impl Write + 'a {
        Writer { disk: self, file }
    }

    pub(super) fn set_modified(&self, file: &File, modified: SystemTime) -> io::Result<()> {
        self.call(Call::SetModified, || file.set_modified(modified))
    }

    /// Syncs the content and the metadata of a file.
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.call(Call::Sync(file), || file.sync_all())
    }

    /// Syncs the content of a file, and only the metadata that is needed to read it.
    pub(super) fn sync_data(&self, file: &File) -> io::Result<()> {
        self.call(Call::Sync(file), || file.sync_data())
    }

    /// Syncs the names in a directory.
    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::SyncDir(path), || File::open(path)?.sync_all()).describe("sync the directory", path)
    }

    /// Moves a file. An existing file is replaced.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename(from, to), || fs::rename(from, to)).describe("rename a file to", to)
    }

    /// Moves a file. An existing file is an error.
    pub(super) fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        let rename = || Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?);
        match self.call(Call::Rename(from, to), rename) {
            // File systems without this flag, such as NFS. Names contain random numbers, and the lock of a batch
            // excludes other publishers, so no file appears between the check and the rename.
            Err(error) if NO_NOREPLACE.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => {
                match to.symlink_metadata() {
                    Ok(_) => Err(io::Error::from(io::ErrorKind::AlreadyExists)).describe("rename a file to", to),
                    Err(_) => self.rename(from, to),
                }
            }
            renamed => renamed.describe("rename a file to", to),
        }
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Remove(path), || fs::remove_file(path)).describe("remove", path)
    }

    /// Removes those of several files that exist. Errors are not logged: the caller reports an error already.
    pub(super) fn discard_any(&self, paths: [&Path; 2]) {
        paths.into_iter().for_each(|path| drop(self.remove(path)));
    }

    /// Removes a file that is harmless if it stays.
    pub(super) fn discard(&self, path: &Path) {
        if let Err(error) = self.remove(path) {
            tracing::warn!(%error, "can't remove an unneeded file");
        }
    }
}

/// The parent directory. `None` for the root directory.
fn parent(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

struct Writer<'a> {
    disk: &'a Disk,
    file: &'a File,
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(all(test, not(netwatch_loom)))]
        let bytes = self.disk.script.as_ref().and_then(|script| script.shortened(self.file, bytes)).unwrap_or(bytes);
        let mut file = self.file;
        self.disk.call(Call::Write(file), || file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
