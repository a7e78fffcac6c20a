//! What goes on beside the flush: the disk is watched, journals are made ahead, and orphans are recovered.
//!
//! Two threads, because all of it blocks and a recovery may take long. Like the flush task they run at a lower
//! priority than the threads that answer requests.

use std::collections::HashSet;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_utils::sync::Parker;

use crate::buffer::Buffer;
use crate::store::recover::recover;
use crate::store::{Compression, Store};

/// How much nicer than the request threads, which have 0. Enough to stand back when a core is short, and not so much
/// that the flush would fall behind for good: at 5 it still gets a quarter of a core that it shares, and it needs about
/// a sixth of what the requests need.
const NICE: i32 = 5;

/// The longest time between two looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Pause between two looks for orphan journals, when nothing has been spilled meanwhile.
const RECOVER_INTERVAL: Duration = Duration::from_secs(10);

/// Pause after a recovery that left something spilled, or when no journal could be made.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });

/// The upkeep of one server.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// What journals are made for, and what spills.
    pub buffer: Arc<Buffer>,
    /// The data directory.
    pub store: Arc<Store>,
    /// With fewer bytes free on the disk, new reports are refused.
    pub min_free_bytes: u64,
    /// How recovered reports are compressed.
    pub compression: Compression,
}

impl Upkeep {
    /// Starts the threads. They go on until the buffer is drained; the one that is returned then removes the journals
    /// that are not needed any more. The other may be in the middle of a recovery, and can be ended at any point of it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(&self) -> io::Result<JoinHandle<()>> {
        let (keep, recover) = (self.clone(), self.clone());
        let keeper = thread::Builder::new().name("keep".to_owned()).spawn(move || keep.keep())?;
        // Not woken through its thread: a scope whose threads have ended unparks that as well, and each recovery of
        // several journals would end the pause after it.
        let parker = Parker::new();
        self.buffer.wake_upkeep(keeper.thread().clone(), parker.unparker().clone());
        thread::Builder::new().name("recover".to_owned()).spawn(move || recover.recover(&parker))?;
        Ok(keeper)
    }

    /// Recovers all that has been spilled once `flush` has drained the closed buffer, however often that has to be
    /// tried. In this order: a request that is late may spill a batch after the close, but it holds another one
    /// meanwhile, so the buffer is not drained before.
    pub fn recover_spilled_after<T>(&self, flush: impl FnOnce() -> T) -> T {
        let flushed = flush();
        let mut foreign = HashSet::new();
        while self.recover_once(&mut foreign) {
            thread::sleep(RETRY);
        }
        flushed
    }

    fn keep(&self) {
        be_nice();
        while !self.buffer.is_drained() {
            // A panic is an error like any other here: without this thread there would soon be no room, for good.
            let prepared = panic::catch_unwind(AssertUnwindSafe(|| {
                self.watch_disk();
                self.buffer.prepare_journals()
            }));
            match prepared {
                Ok(Ok(())) => thread::park_timeout(LOOK_INTERVAL),
                failed => {
                    if let Ok(Err(error)) = failed {
                        tracing::error!(%error, "can't make a journal; without one there will be no room");
                    }
                    // Not parked: each request that finds no room would have it tried again.
                    thread::sleep(RETRY);
                }
            }
        }
        self.buffer.discard_journals();
    }

    /// Has new reports refused while the disk is nearly full, so that there is room for those that are held.
    fn watch_disk(&self) {
        let full = match self.store.free_bytes() {
            Ok(free_bytes) => free_bytes < self.min_free_bytes,
            Err(error) => {
                tracing::error!(%error, "can't tell how full the disk is");
                false
            }
        };
        if self.buffer.set_disk_full(full) != full {
            match full {
                true => tracing::error!(min_free_bytes = self.min_free_bytes, "the disk is full; reports are refused"),
                false => tracing::info!("the disk has room again; reports are taken"),
            }
        }
    }

    fn recover(&self, parker: &Parker) {
        be_nice();
        let mut foreign = HashSet::new();
        while !self.buffer.is_drained() {
            // As in `keep`: what is spilled would stay so.
            let recovered = panic::catch_unwind(AssertUnwindSafe(|| self.recover_once(&mut foreign)));
            let left = recovered.unwrap_or_else(|_| self.buffer.forget_recovered());
            parker.park_timeout(if left { RETRY } else { RECOVER_INTERVAL });
        }
    }

    /// Recovers what it can; says whether something that was spilled is left.
    pub(crate) fn recover_once(&self, foreign: &mut HashSet<PathBuf>) -> bool {
        if let Err(error) = recover(&self.store, self.compression, foreign) {
            tracing::error!(%error, "can't look for journals to recover");
        }
        self.buffer.forget_recovered()
    }
}

/// Lowers the priority of the calling thread, and of those that it starts from now on.
pub(crate) fn be_nice() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "files are written at normal priority");
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::buffer::{Ack, Shape};
    use crate::report::Reports;
    use crate::store::Disk;
    use crate::store::script::{Fault, Script};

    /// Of a server with batches of one report each. After its start, the next calls to the disk panic.
    fn upkeep(root: &Path) -> Upkeep {
        let start = |root: &Path, faults| {
            let script = Script::new(root, faults);
            let store = Arc::new(Store::open_on(Disk::scripted(&script), &root.join("data")).unwrap());
            let shape = Shape { batches: 30, shards: 1, segment_bytes: 3 };
            let journals = store.journals(3).unwrap();
            let buffer = Arc::new(Buffer::new(shape, Ack::Journal, Some(journals), 0));
            let compression = Compression { level: 1, threads: 1 };
            (script.calls().len(), Upkeep { buffer, store, min_free_bytes: 0, compression })
        };
        let (calls, _) = start(tempfile::tempdir().unwrap().path(), vec![]);
        start(root, vec![(calls..calls + 3, Fault::Panics)]).1
    }

    fn end(upkeep: &Upkeep) {
        upkeep.buffer.close();
        while upkeep.buffer.next_sealed().is_some() {}
        assert!(upkeep.buffer.is_drained());
    }

    #[test]
    fn a_panic_while_a_journal_is_made_is_not_the_end_of_all_journals() {
        let root = tempfile::tempdir().unwrap();
        let upkeep = upkeep(root.path());
        let report = Reports::check(b"{}").unwrap();
        while upkeep.buffer.append(&report).is_ok() {}
        thread::scope(|scope| {
            let keeper = scope.spawn(|| upkeep.keep());
            while !upkeep.buffer.has_room() {
                assert!(!keeper.is_finished());
                thread::yield_now();
            }
            end(&upkeep);
            keeper.thread().unpark();
        });
    }

    #[test]
    fn a_panic_in_a_recovery_is_not_the_end_of_all_recoveries() {
        let root = tempfile::tempdir().unwrap();
        let upkeep = upkeep(root.path());
        let stem = "reports-20261122T150512.123456789Z-5f3a9c01";
        fs::write(root.path().join(format!("data/journal/{stem}.jsonl")), "{}\n").unwrap();
        let parker = Parker::new();
        let (recover, unparker) = (upkeep.clone(), parker.unparker().clone());
        thread::scope(|scope| {
            let recoverer = scope.spawn(move || recover.recover(&parker));
            while !root.path().join(format!("data/{stem}.jsonl.zst")).exists() {
                assert!(!recoverer.is_finished());
                unparker.unpark();
                thread::yield_now();
            }
            end(&upkeep);
            unparker.unpark();
        });
    }
}
