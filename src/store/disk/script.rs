//! A disk that does what a test says: it fails, the process ends at one of its calls, or the power does.
//!
//! The calls are really made, on a real directory, and noted. What was noted is enough to make the directory that a
//! power cut would leave: what has been synced, and of all else as much as chance has it.

#![cfg_attr(netwatch_loom, allow(dead_code, reason = "the model checker has no disk"))]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use fastrand::Rng;
use rustix::io::Errno;

use super::{Call, Disk};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and does nothing.
    Fails(Errno),
    /// It does all that it should, and says that it failed.
    Denies(Errno),
    /// A write takes half of what it is given.
    Short,
    /// It finds a mistake of ours, and does nothing.
    Panics,
    /// The process ends before it. What comes after finds it dead, too.
    Crash,
}

impl Fault {
    /// Whether it can befall a call of this [name](Call::name).
    pub(crate) fn can_befall(self, call: &str) -> bool {
        match self {
            Self::Fails(Errno::NOSPC) => !["list", "open", "read", "remove", "set modified"].contains(&call),
            // The standard library makes the other calls again by itself.
            Self::Fails(Errno::INTR) => ["allocate", "write"].contains(&call),
            Self::Denies(_) => ["create dir", "link", "remove"].contains(&call),
            Self::Short => call == "write",
            // A file is removed when its owner is dropped, maybe by a panic already.
            Self::Panics => call != "remove",
            Self::Fails(_) | Self::Crash => true,
        }
    }
}

impl Call<'_> {
    fn name(&self) -> &'static str {
        match self {
            Call::List => "list",
            Call::Open => "open",
            Call::Read => "read",
            Call::CreateDir(_) => "create dir",
            Call::Create(_) => "create",
            Call::Allocate(_) => "allocate",
            Call::Write(_) => "write",
            Call::SetModified => "set modified",
            Call::Sync(_) => "sync",
            Call::SyncDir(_) => "sync dir",
            Call::Link(..) => "link",
            Call::Remove(_) => "remove",
        }
    }
}

/// The process has ended: what a thread unwinds with.
pub(crate) struct Crashed;

/// What is to happen, and what has happened.
#[derive(Debug)]
pub(crate) struct Script(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Faults for calls of these numbers.
    faults: Vec<(Range<usize>, Fault)>,
    calls: Vec<&'static str>,
    dead: bool,
    world: World,
}

impl Script {
    /// Notes all that happens below `root`, which is as it is on disk.
    pub(crate) fn new(root: &Path, faults: Vec<(Range<usize>, Fault)>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { faults, calls: vec![], dead: false, world: World::of(root) })))
    }

    /// The [names](Call::name) of the calls so far.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// Makes `to`, which is empty, what a power cut leaves of the root.
    pub(crate) fn cut_power(&self, to: &Path, chance: &mut Rng) {
        let state = self.state();
        state.world.survive(&state.world.root, to, chance);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, call: Call<'_>, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let fault = state.fault(&call);
        state.calls.push(call.name());
        state.dead |= fault == Some(Fault::Crash);
        if state.dead {
            drop(state);
            // A file is removed when its owner is dropped, which unwinding does.
            if matches!(call, Call::Remove(_)) || thread::panicking() {
                return Err(Errno::IO.into());
            }
            panic::resume_unwind(Box::new(Crashed));
        }
        if fault == Some(Fault::Panics) {
            drop(state);
            panic!("at {call:?}, as the script has it");
        }
        if let Some(Fault::Fails(errno)) = fault {
            state.world.note_failure(&call);
            return Err(errno.into());
        }
        let done = run()?;
        state.world.note(&call);
        match fault {
            Some(Fault::Denies(errno)) => Err(errno.into()),
            _ => Ok(done),
        }
    }
}

impl State {
    fn fault(&self, call: &Call<'_>) -> Option<Fault> {
        let mut faults = self.faults.iter().filter(|(calls, _)| calls.contains(&self.calls.len()));
        faults.find(|(_, fault)| fault.can_befall(call.name())).map(|(_, fault)| *fault)
    }
}

impl Disk {
    pub(crate) fn scripted(script: &Arc<Script>) -> Self {
        Self { script: Some(Arc::clone(script)) }
    }

    pub(super) fn call<T>(&self, call: Call<'_>, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.script {
            None => run(),
            Some(script) => script.call(call, run),
        }
    }

    /// The half of `bytes` that the next write takes, if it is to be a short one.
    pub(super) fn shortened<'a>(&self, file: &File, bytes: Option<&'a IoSlice<'_>>) -> Option<&'a [u8]> {
        let fault = self.script.as_ref()?.state().fault(&Call::Write(file));
        bytes.filter(|bytes| fault == Some(Fault::Short) && bytes.len() > 1).map(|bytes| &bytes[..bytes.len() / 2])
    }
}

/// A tree of directories, as it is and as it is on disk.
#[derive(Debug)]
struct World {
    root: PathBuf,
    dirs: HashMap<PathBuf, Dir>,
    files: Vec<Bytes>,
    /// The index in `files` of what the kernel gives this number now.
    by_inode: HashMap<u64, usize>,
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    Dir,
    File(usize),
}

#[derive(Debug, Default)]
struct Dir {
    now: BTreeMap<PathBuf, Entry>,
    on_disk: BTreeMap<PathBuf, Entry>,
    /// Names that came or went since the directory was synced.
    pending: Vec<(PathBuf, Option<Entry>)>,
}

#[derive(Debug, Default)]
struct Bytes {
    now: Vec<u8>,
    on_disk: Vec<u8>,
    /// Changes since the last sync.
    pending: Vec<Change>,
    /// Changes that a sync has failed to bring to the disk. No later one does: the kernel takes them for written.
    lost: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    len: usize,
    at: usize,
    bytes: Vec<u8>,
}

impl World {
    fn of(root: &Path) -> Self {
        let (root, dirs) = (root.to_owned(), HashMap::new());
        let mut world = Self { root: root.clone(), dirs, files: Vec::new(), by_inode: HashMap::new() };
        world.add(&root);
        world
    }

    fn add(&mut self, dir: &Path) {
        let mut entries = BTreeMap::new();
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let entry = if path.is_dir() {
                self.add(&path);
                Entry::Dir
            } else {
                let now = fs::read(&path).unwrap();
                self.new_file(&path, Bytes { on_disk: now.clone(), now, ..Bytes::default() })
            };
            entries.insert(path, entry);
        }
        let dir_now = Dir { now: entries.clone(), on_disk: entries, pending: Vec::new() };
        self.dirs.insert(dir.to_owned(), dir_now);
    }

    fn new_file(&mut self, path: &Path, bytes: Bytes) -> Entry {
        self.files.push(bytes);
        let index = self.files.len() - 1;
        self.by_inode.insert(fs::symlink_metadata(path).unwrap().ino(), index);
        Entry::File(index)
    }

    fn file(&mut self, file: &File) -> &mut Bytes {
        &mut self.files[self.by_inode[&file.metadata().unwrap().ino()]]
    }

    fn name(&mut self, path: &Path, entry: Option<Entry>) {
        let Some(dir) = self.dirs.get_mut(path.parent().unwrap()) else { return };
        match entry {
            Some(entry) => dir.now.insert(path.to_owned(), entry),
            None => dir.now.remove(path),
        };
        dir.pending.push((path.to_owned(), entry));
    }

    fn note(&mut self, call: &Call<'_>) {
        match call {
            Call::List | Call::Open | Call::Read | Call::SetModified => {}
            Call::CreateDir(path) => {
                self.dirs.insert(path.to_path_buf(), Dir::default());
                self.name(path, Some(Entry::Dir));
            }
            Call::Create(path) => {
                let file = self.new_file(path, Bytes::default());
                self.name(path, Some(file));
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
                let Some(dir) = self.dirs.get_mut(*path) else { return };
                for (path, entry) in dir.pending.drain(..) {
                    match entry {
                        Some(entry) => dir.on_disk.insert(path, entry),
                        None => dir.on_disk.remove(&path),
                    };
                }
            }
            Call::Link(from, to) => {
                let entry = self.dirs[from.parent().unwrap()].now[*from];
                self.name(to, Some(entry));
            }
            Call::Remove(path) => self.name(path, None),
        }
    }

    fn note_failure(&mut self, call: &Call<'_>) {
        if let Call::Sync(file) = call {
            let bytes = self.file(file);
            bytes.lost.append(&mut bytes.pending);
        }
    }

    fn survive(&self, dir: &Path, to: &Path, chance: &mut Rng) {
        let dir = &self.dirs[dir];
        let mut entries = dir.on_disk.clone();
        let kept = chance.u8(..=4);
        for (path, entry) in &dir.pending {
            if !some(kept, chance) {
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
                Entry::File(index) => fs::write(to, self.files[index].survive(chance)).unwrap(),
                Entry::Dir => {
                    fs::create_dir(&to).unwrap();
                    self.survive(&path, &to, chance);
                }
            }
        }
    }
}

/// Of what was not synced: nothing, all, or a part of it.
fn some(kept: u8, chance: &mut Rng) -> bool {
    kept > 0 && chance.u8(0..4) < kept
}

impl Bytes {
    fn change_to(&mut self, now: Vec<u8>) {
        let differs = |index: &usize| now.get(*index).unwrap_or(&0) != self.now.get(*index).unwrap_or(&0);
        let at = (0..now.len()).find(differs).unwrap_or(0);
        let end = (at..now.len()).rev().find(differs).map_or(at, |last| last + 1);
        self.pending.push(Change { len: now.len(), at, bytes: now[at..end].to_vec() });
        self.now = now;
    }

    fn survive(&self, chance: &mut Rng) -> Vec<u8> {
        let mut bytes = self.on_disk.clone();
        let kept = chance.u8(..=4);
        for change in self.lost.iter().chain(&self.pending) {
            if some(kept, chance) {
                // The last write may be torn anywhere.
                let taken = if chance.bool() { change.bytes.len() } else { chance.usize(..=change.bytes.len()) };
                change.apply(&mut bytes, taken);
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>, taken: usize) {
        to.resize(to.len().max(self.len), 0);
        to[self.at..self.at + taken].copy_from_slice(&self.bytes[..taken]);
    }
}
