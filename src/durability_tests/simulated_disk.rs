//! A model of a disk that loses power.
//!
//! The model records file operations. From the record it can create a directory as a power failure could leave it: with
//! all changes that were synced, and a random part of the other changes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use crate::store::Call;

/// A tree of directories: its present content, and its content on disk.
#[derive(Debug, Clone)]
pub(super) struct SimulatedDisk {
    root: PathBuf,
    dirs: HashMap<PathBuf, Dir>,
    files: Vec<FileContent>,
    /// The index in `files` by inode number.
    by_inode: HashMap<u64, usize>,
    /// Number of renames so far.
    renames: usize,
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    Dir,
    File(usize),
}

#[derive(Debug, Clone, Default)]
struct Dir {
    now: BTreeMap<PathBuf, Entry>,
    on_disk: BTreeMap<PathBuf, Entry>,
    /// Changes of names that are not synced.
    pending: Vec<NameChange>,
}

/// A name that was added, or removed if `entry` is `None`.
#[derive(Debug, Clone)]
struct NameChange {
    path: PathBuf,
    entry: Option<Entry>,
    /// The number of the rename that this change belongs to. File systems with a journal make both changes of a rename
    /// durable together.
    rename: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct FileContent {
    now: Vec<u8>,
    on_disk: Vec<u8>,
    /// Changes that are not synced.
    pending: Vec<Change>,
    /// Changes that a sync failed to write. No later sync writes them: the kernel marks their pages as clean.
    lost: Vec<Change>,
}

#[derive(Debug, Clone)]
struct Change {
    len: usize,
    at: usize,
    bytes: Vec<u8>,
}

impl SimulatedDisk {
    pub(super) fn of(root: &Path) -> Self {
        let (root, dirs) = (root.to_owned(), HashMap::new());
        let mut disk = Self { root: root.clone(), dirs, files: Vec::new(), by_inode: HashMap::new(), renames: 0 };
        disk.add(&root);
        disk
    }

    fn add(&mut self, dir: &Path) {
        let mut entries = BTreeMap::new();
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let entry = if path.is_dir() {
                self.add(&path);
                Entry::Dir
            } else {
                let now = fs::read(&path).unwrap();
                self.new_file(&path, FileContent { on_disk: now.clone(), now, ..FileContent::default() })
            };
            entries.insert(path, entry);
        }
        let dir_now = Dir { now: entries.clone(), on_disk: entries, pending: Vec::new() };
        self.dirs.insert(dir.to_owned(), dir_now);
    }

    fn new_file(&mut self, path: &Path, bytes: FileContent) -> Entry {
        self.files.push(bytes);
        let index = self.files.len() - 1;
        self.by_inode.insert(fs::symlink_metadata(path).unwrap().ino(), index);
        Entry::File(index)
    }

    fn file(&mut self, file: &File) -> &mut FileContent {
        &mut self.files[self.by_inode[&file.metadata().unwrap().ino()]]
    }

    fn change_name(&mut self, path: &Path, entry: Option<Entry>, rename: Option<usize>) {
        let Some(dir) = self.dirs.get_mut(path.parent().unwrap()) else { return };
        match entry {
            Some(entry) => dir.now.insert(path.to_owned(), entry),
            None => dir.now.remove(path),
        };
        dir.pending.push(NameChange { path: path.to_owned(), entry, rename });
    }

    pub(super) fn record(&mut self, call: &Call<'_>) {
        match call {
            Call::List | Call::Open | Call::Read | Call::SetModified => {}
            Call::CreateDir(path) => {
                self.dirs.insert(path.to_path_buf(), Dir::default());
                self.change_name(path, Some(Entry::Dir), None);
            }
            Call::Create(path) => {
                let file = self.new_file(path, FileContent::default());
                self.change_name(path, Some(file), None);
            }
            Call::Allocate(file) | Call::Write(file) => {
                let now = fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
                self.file(file).change_to(now);
            }
            Call::Sync(file) => {
                let bytes = self.file(file);
                let pending = std::mem::take(&mut bytes.pending);
                pending.iter().for_each(|change| change.apply(&mut bytes.on_disk, change.bytes.len()));
            }
            Call::SyncDir(path) => {
                let len = self.dirs.get(*path).map_or(0, |dir| dir.pending.len());
                self.sync_names(path, len);
            }
            Call::Rename(from, to) => {
                let entry = self.dirs[from.parent().unwrap()].now[*from];
                self.renames += 1;
                self.change_name(from, None, Some(self.renames));
                self.change_name(to, Some(entry), Some(self.renames));
            }
            Call::Remove(path) => self.change_name(path, None, None),
        }
    }

    /// Makes the first `len` pending changes of a directory durable. If one of them is one half of a rename, also makes
    /// the other half durable, with all changes before it in its directory.
    fn sync_names(&mut self, path: &Path, len: usize) {
        let Some(dir) = self.dirs.get_mut(path) else { return };
        let changes: Vec<_> = dir.pending.drain(..len).collect();
        for NameChange { path, entry, .. } in changes.iter().cloned() {
            match entry {
                Some(entry) => dir.on_disk.insert(path, entry),
                None => dir.on_disk.remove(&path),
            };
        }
        for rename in changes.into_iter().filter_map(|change| change.rename) {
            let other = self.dirs.iter().find_map(|(path, dir)| {
                let index = dir.pending.iter().position(|change| change.rename == Some(rename))?;
                Some((path.clone(), index))
            });
            if let Some((path, index)) = other {
                self.sync_names(&path, index + 1);
            }
        }
    }

    pub(super) fn record_failure(&mut self, call: &Call<'_>) {
        if let Call::Sync(file) = call {
            let bytes = self.file(file);
            bytes.lost.append(&mut bytes.pending);
        }
    }

    /// Whether a name would survive a power failure.
    pub(super) fn is_durable(&self, path: &Path) -> bool {
        self.dirs
            .get(path.parent().unwrap())
            .is_some_and(|dir| dir.on_disk.contains_key(path) && dir.pending.iter().all(|change| change.path != path))
    }

    /// Creates in `to` a copy as a power failure could leave it: with all changes that were synced, and a random part
    /// of the other changes.
    pub(super) fn cut_power(&self, to: &Path, rng: &mut Rng) {
        let renames: Vec<_> = (0..=self.renames).map(|_| rng.bool()).collect();
        self.copy_survivors(&self.root, to, &renames, rng);
    }

    /// Copies the surviving part of `dir` to `to`. Rename number `n` survives if `renames[n]` is true.
    fn copy_survivors(&self, dir: &Path, to: &Path, renames: &[bool], rng: &mut Rng) {
        let dir = &self.dirs[dir];
        let mut entries = dir.on_disk.clone();
        let quarters = rng.u8(..=4);
        for NameChange { path, entry, rename } in &dir.pending {
            if !rename.map_or_else(|| survives(quarters, rng), |rename| renames[rename]) {
                continue;
            }
            match entry {
                Some(entry) => entries.insert(path.clone(), *entry),
                None => entries.remove(path),
            };
        }
        for (path, entry) in entries {
            let to = to.join(path.file_name().unwrap());
            match entry {
                Entry::File(index) => fs::write(to, self.files[index].survivors(rng)).unwrap(),
                Entry::Dir => {
                    fs::create_dir(&to).unwrap();
                    self.copy_survivors(&path, &to, renames, rng);
                }
            }
        }
    }
}

/// Whether an unsynced change survives. The probability is `quarters` / 4.
fn survives(quarters: u8, rng: &mut Rng) -> bool {
    quarters > 0 && rng.u8(0..4) < quarters
}

impl FileContent {
    fn change_to(&mut self, now: Vec<u8>) {
        let differs = |index: &usize| now.get(*index).unwrap_or(&0) != self.now.get(*index).unwrap_or(&0);
        let at = (0..now.len()).find(differs).unwrap_or(0);
        let end = (at..now.len()).rev().find(differs).map_or(at, |last| last + 1);
        self.pending.push(Change { len: now.len(), at, bytes: now[at..end].to_vec() });
        self.now = now;
    }

    fn survivors(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.on_disk.clone();
        let quarters = rng.u8(..=4);
        for change in self.lost.iter().chain(&self.pending) {
            if survives(quarters, rng) {
                // A write may be torn at any byte.
                let written = if rng.bool() { change.bytes.len() } else { rng.usize(..=change.bytes.len()) };
                change.apply(&mut bytes, written);
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>, written: usize) {
        to.resize(to.len().max(self.len), 0);
        to[self.at..self.at + written].copy_from_slice(&self.bytes[..written]);
    }
}
