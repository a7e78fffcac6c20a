//! Fault injection: a test chooses the file operations that fail, or the file operation at which the process ends.
//!
//! The operations run in a real directory. A [`SimulatedDisk`] records them, and can create the directory as a power
//! failure could leave it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::panic;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use fastrand::Rng;
use rustix::io::Errno;

use super::simulated_disk::SimulatedDisk;
use crate::store::Call;

/// A fault of one file operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation fails and has no effect.
    Fails(Errno),
    /// The operation has its effect, but reports an error.
    Denies(Errno),
    /// A write writes only half of its bytes.
    Short,
    /// The operation panics and has no effect.
    Panics,
    /// The process ends before the operation.
    Crash,
}

impl Fault {
    /// Whether the fault can happen to an operation of this [name](Call::name).
    pub(crate) fn applies_to(self, call: &str) -> bool {
        match self {
            Self::Fails(Errno::NOSPC) => !["list", "open", "read", "remove", "set modified"].contains(&call),
            // The standard library retries the other operations.
            Self::Fails(Errno::INTR) => ["allocate", "write"].contains(&call),
            Self::Denies(_) => ["create dir", "rename", "remove"].contains(&call),
            Self::Short => call == "write",
            // A panic can drop the owner of a file, which removes the file. A second panic would abort the process.
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
            Call::Rename(..) => "rename",
            Call::Remove(_) => "remove",
        }
    }
}

/// The panic payload that stands for the end of the process.
pub(crate) struct Crashed;

/// The faults to inject, and a record of the operations.
#[derive(Debug)]
pub(crate) struct Script(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Faults by range of operation numbers.
    faults: Vec<(Range<usize>, Fault)>,
    calls: Vec<&'static str>,
    is_dead: bool,
    /// Attempts to remove a file since the end of the process.
    late_removes: usize,
    disk: SimulatedDisk,
}

/// A loop that retries to remove a file must end as well.
const MAX_LATE_REMOVES: usize = 1000;

impl Script {
    /// Records all operations below `root`. The present content of `root` counts as synced.
    pub(crate) fn new(root: &Path, faults: Vec<(Range<usize>, Fault)>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            faults,
            calls: vec![],
            is_dead: false,
            late_removes: 0,
            disk: SimulatedDisk::of(root),
        })))
    }

    /// A script for the next process after `crashed`, in the same directory. What that process did not sync is still
    /// not synced.
    pub(crate) fn after(crashed: &Self, faults: Vec<(Range<usize>, Fault)>) -> Arc<Self> {
        let disk = crashed.state().disk.clone();
        Arc::new(Self(Mutex::new(State { faults, calls: vec![], is_dead: false, late_removes: 0, disk })))
    }

    /// The [names](Call::name) of the operations so far.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// Creates in the empty directory `to` a copy of the root as a power failure could leave it.
    pub(crate) fn cut_power(&self, to: &Path, rng: &mut Rng) {
        let state = self.state();
        state.disk.cut_power(to, rng);
    }

    /// Whether a name would survive a power failure.
    pub(crate) fn is_durable(&self, path: &Path) -> bool {
        self.state().disk.is_durable(path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn call<T>(&self, call: Call<'_>, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        let fault = state.fault(&call);
        state.calls.push(call.name());
        state.is_dead |= fault == Some(Fault::Crash);
        if state.is_dead {
            let is_remove = matches!(call, Call::Remove(_));
            state.late_removes += usize::from(is_remove);
            let is_remove = is_remove && state.late_removes < MAX_LATE_REMOVES;
            drop(state);
            // Unwinding drops the owners of files, which remove the files. A second panic would abort the process.
            if is_remove || thread::panicking() {
                return Err(Errno::IO.into());
            }
            panic::resume_unwind(Box::new(Crashed));
        }
        if fault == Some(Fault::Panics) {
            drop(state);
            panic!("injected at {call:?}");
        }
        if let Some(Fault::Fails(errno)) = fault {
            state.disk.record_failure(&call);
            return Err(errno.into());
        }
        let done = run()?;
        state.disk.record(&call);
        match fault {
            Some(Fault::Denies(errno)) => Err(errno.into()),
            _ => Ok(done),
        }
    }

    /// The half of `bytes` that the next write writes, if it is a short write.
    pub(crate) fn shortened<'a>(&self, file: &File, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let fault = self.state().fault(&Call::Write(file));
        (fault == Some(Fault::Short) && bytes.len() > 1).then(|| &bytes[..bytes.len() / 2])
    }
}

impl State {
    fn fault(&self, call: &Call<'_>) -> Option<Fault> {
        let mut faults = self.faults.iter().filter(|(calls, _)| calls.contains(&self.calls.len()));
        faults.find(|(_, fault)| fault.applies_to(call.name())).map(|(_, fault)| *fault)
    }
}
