//! Background maintenance: disk watch, journals, recovery, retention.
//!
//! There are three threads, because all of this work blocks, and a recovery or the first listing of the report files may
//! take long. All run at a lower priority than the threads that handle requests.

use std::io;
use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_utils::sync::Parker;

use crate::buffer::Buffer;
use crate::store::{Compression, PruneMode, Pruned, PrunedFile, Retention, Store, Unrecognized, Watch, recover};

/// Nice level of background threads; request threads have 0. At 5, a background thread still gets a quarter of a core
/// that it shares with a request thread. The flush needs about a sixth of the time that requests need, so it keeps up.
const NICE: i32 = 5;

/// Time between two checks of the disk.
const DISK_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two recoveries, if no batch was spilled in between.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(10);

/// Pause after a recovery that left batches, or after an error.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });

/// Time between two updates of the catalog, if no file was published in between.
const CATALOG_INTERVAL: Duration = Duration::from_secs(10);

/// Minimum time between two updates of the catalog. It limits the cost if files are published all the time.
const CATALOG_PAUSE: Duration = Duration::from_secs(1);

/// Maximum pause between two steps of a long work on the catalog. Shorter steps are followed by shorter pauses.
const MAX_PACE: Duration = Duration::from_millis(100);

/// Maximum time of one prune because of a full disk. It delays the creation of journals.
const PRUNE_TIME: Duration = Duration::from_secs(1);

/// Pause after a prune that has removed files, but has not freed the space. The file system may free it later.
const UNFREED_PAUSE: Duration = Duration::from_secs(30);

/// Pause before a batch is spilled that could not be spilled yet.
const SPILL_RETRY: Duration = Duration::from_millis(10);

/// The background maintenance of one server.
#[derive(Debug, Clone)]
pub struct Maintenance {
    /// The buffer that needs journals and spills batches.
    pub buffer: Arc<Buffer>,
    /// The data directory.
    pub store: Arc<Store>,
    /// With less free disk space, appends are refused.
    pub min_free_bytes: u64,
    /// Which report files are kept.
    pub retention: Retention,
    /// With less than `min_free_bytes`, the oldest report files are removed before appends are refused.
    pub prune_on_full: bool,
    /// How recovered report files are compressed.
    pub compression: Compression,
}

impl Maintenance {
    /// Starts the threads. They run until the buffer is drained. The returned thread then removes the unused journals.
    /// The others may be in the middle of a recovery or a prune; the process may end at any point of that.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn spawn(&self) -> io::Result<JoinHandle<()>> {
        let [maintenance, recovery, catalog] = [(); 3].map(|()| self.clone());
        let thread = thread::Builder::new().name("maintenance".to_owned()).spawn(move || maintenance.run())?;
        // A parker, because `thread::scope` in a recovery also unparks its thread. That would end the next pause early.
        let parker = Parker::new();
        self.buffer.set_maintenance(thread.thread().clone(), parker.unparker().clone());
        thread::Builder::new().name("recovery".to_owned()).spawn(move || recovery.run_recovery(&parker))?;
        thread::Builder::new().name("catalog".to_owned()).spawn(move || catalog.run_catalog())?;
        Ok(thread)
    }

    /// Runs `flush`, which drains the closed buffer, and then publishes the batches without memory. Retries without a
    /// limit. The order matters: a batch may be spilled after the close, but before the buffer is drained.
    pub fn publish_pending_after<T>(&self, flush: impl FnOnce() -> T) -> T {
        let flushed = flush();
        while !self.publish_pending() {
            thread::sleep(RETRY);
        }
        flushed
    }

    fn run(&self) {
        lower_priority();
        let (mut next_check, mut unfreed_since) = (Instant::now(), None);
        while !self.buffer.is_drained() {
            // A panic counts as an error. Without this thread, there would soon be no journals.
            let done = panic::catch_unwind(AssertUnwindSafe(|| {
                // Requests may wake this thread often. They do not need more checks of the disk.
                if next_check <= Instant::now() {
                    next_check = Instant::now() + DISK_INTERVAL;
                    self.check_disk(&mut unfreed_since);
                }
                if self.buffer.wants_spill() {
                    self.buffer.spill();
                }
                self.buffer.prepare_journals()
            }));
            match done {
                // The batch may be spilled as soon as its last group is durable.
                Ok(Ok(())) if self.buffer.wants_spill() => thread::park_timeout(SPILL_RETRY),
                Ok(Ok(())) => thread::park_timeout(next_check.saturating_duration_since(Instant::now())),
                failed => {
                    if let Ok(Err(error)) = failed {
                        self.store.health().report(&error, "can't create a journal; retrying");
                    }
                    // Not parked: requests must not shorten the pause.
                    thread::sleep(RETRY);
                }
            }
        }
        self.buffer.discard_journals();
        self.store.sweep();
    }

    /// Refuses appends while the disk is nearly full, so that there is space for the reports that are held. Clears the
    /// last disk error when the disk works again. `unfreed_since` is the time of a prune that has not freed any space.
    fn check_disk(&self, unfreed_since: &mut Option<Instant>) {
        if self.store.health().error().is_some() && self.store.probe().is_ok() {
            self.store.health().clear();
        }
        let free_bytes = self.store.free_bytes();
        free_bytes.iter().for_each(|bytes| self.store.metrics().disk_free_bytes.set(*bytes));
        let is_full = match free_bytes {
            Ok(free_bytes) if free_bytes >= self.min_free_bytes => {
                *unfreed_since = None;
                false
            }
            Ok(_) => !self.prune_for_space(unfreed_since),
            Err(error) => {
                self.store.health().report(&error, "can't determine the free disk space");
                false
            }
        };
        if self.buffer.set_disk_full(is_full) != is_full {
            match is_full {
                true => tracing::error!(min_free_bytes = self.min_free_bytes, "the disk is full; reports are refused"),
                false => tracing::info!("the disk has free space again; reports are accepted"),
            }
        }
    }

    /// Removes the oldest report files, if that is allowed. Returns whether enough space is free then.
    fn prune_for_space(&self, unfreed_since: &mut Option<Instant>) -> bool {
        let is_too_early = unfreed_since.is_some_and(|since| since.elapsed() < UNFREED_PAUSE);
        if !self.prune_on_full || is_too_early || !self.store.catalog().totals().is_loaded {
            return false;
        }
        let end = Instant::now() + PRUNE_TIME;
        // A margin, so that not every check has to prune.
        let wanted = self.min_free_bytes.saturating_add(self.min_free_bytes / 4);
        let pruned = self.store.prune_for_space(wanted, &mut |file| {
            log_pruned(file);
            Ok(if Instant::now() < end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        let free_bytes = self.store.free_bytes();
        match (pruned, free_bytes) {
            (Ok(Pruned { files, bytes, .. }), Ok(free_bytes)) => {
                if files > 0 {
                    tracing::warn!(files, bytes, free_bytes, "the disk is full; the oldest report files were pruned");
                }
                let is_enough = free_bytes >= self.min_free_bytes;
                let is_unfreed = !is_enough && files > 0 && Instant::now() < end;
                *unfreed_since = is_unfreed.then(Instant::now);
                is_enough
            }
            (Err(error), _) | (_, Err(error)) => {
                self.store.health().log(&error, "can't prune report files; retrying");
                false
            }
        }
    }

    fn run_catalog(&self) {
        lower_priority();
        let parker = Parker::new();
        if self.retention.is_limited() {
            self.store.catalog().set_pruner(parker.unparker().clone());
        }
        let mut watch = Watch::default();
        while !self.buffer.is_drained() {
            // A panic counts as an error.
            let updated = panic::catch_unwind(AssertUnwindSafe(|| self.update_catalog(&mut watch)));
            if let Ok(Err(error)) = updated {
                self.store.health().log(&error, "can't list or prune the report files; retrying");
            }
            thread::sleep(CATALOG_PAUSE);
            parker.park_timeout(CATALOG_INTERVAL - CATALOG_PAUSE);
        }
    }

    /// Applies to the catalog what others have done, and removes the report files that exceed a limit.
    fn update_catalog(&self, watch: &mut Watch) -> io::Result<()> {
        let mut step = Instant::now();
        let mut pace = || {
            // As long as the work: a busy disk leads to longer pauses.
            thread::sleep(step.elapsed().min(MAX_PACE));
            step = Instant::now();
            !self.buffer.is_drained()
        };
        self.store.update_catalog(watch, &mut pace)?;
        if self.retention.is_limited() && self.store.catalog().totals().is_loaded {
            self.store.prune(self.retention, PruneMode::Remove, SystemTime::now(), &mut |file| {
                log_pruned(file);
                Ok(if pace() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
        }
        Ok(())
    }

    fn run_recovery(&self, parker: &Parker) {
        lower_priority();
        let mut unrecognized = Unrecognized::new();
        while !self.buffer.is_drained() {
            // A panic counts as an error. Without this thread, spilled batches would never be published.
            let recovered = panic::catch_unwind(AssertUnwindSafe(|| self.recover_once(&mut unrecognized)));
            let any_left = recovered.unwrap_or(true);
            parker.park_timeout(if any_left { RETRY } else { RECOVERY_INTERVAL });
        }
    }

    /// Publishes the batches of this server that have no memory, and recovers the batches of dead servers. Returns
    /// whether any batches of this server are left.
    pub(crate) fn recover_once(&self, unrecognized: &mut Unrecognized) -> bool {
        let is_done = self.publish_pending();
        if let Err(error) = recover(&self.store, self.compression, unrecognized) {
            self.store.health().log(&error, "can't look for journals to recover");
        }
        !is_done
    }

    /// Publishes the batches that have released their memory. Returns whether there are none left.
    fn publish_pending(&self) -> bool {
        for pending in self.buffer.unpublished() {
            match self.store.finish(&pending, self.compression) {
                Ok(()) => self.buffer.remove_published(&pending),
                Err(error) => {
                    self.store.health().report(&error, "can't publish a batch; retrying later");
                }
            }
        }
        !self.buffer.has_unpublished()
    }
}

fn log_pruned(PrunedFile { path, bytes, age }: &PrunedFile) {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    tracing::info!(%file, bytes, age_seconds = age.as_secs(), "pruned");
}

/// Lowers the priority of the calling thread, and of the threads that it starts later.
pub(crate) fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "background threads run at normal priority");
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::buffer::BufferLayout;
    use crate::config::Ack;
    use crate::durability_tests::{Fault, Script};
    use crate::report::Reports;
    use crate::store::Disk;

    /// A server with batches of one report each. The next file operations after its start panic.
    fn maintenance(root: &Path) -> Maintenance {
        let start = |root: &Path, faults| {
            let script = Script::new(root, faults);
            let store = Arc::new(Store::open_on(Disk::scripted(&script), &root.join("data"), &Arc::default()).unwrap());
            let layout = BufferLayout { batches: 30, shards: 1, chunk_bytes: 3 };
            let journals = store.journals(3).unwrap();
            let buffer = Arc::new(Buffer::new(layout, Ack::Journal, Some(journals), 0, &Arc::default()));
            let compression = Compression { level: 1, threads: 1 };
            let retention = Retention::default();
            let maintenance =
                Maintenance { buffer, store, min_free_bytes: 0, retention, prune_on_full: false, compression };
            (script.calls().len(), maintenance)
        };
        let (calls, _) = start(tempfile::tempdir().unwrap().path(), vec![]);
        start(root, vec![(calls..calls + 3, Fault::Panics)]).1
    }

    fn drain(maintenance: &Maintenance) {
        maintenance.buffer.close();
        while maintenance.buffer.next_sealed().is_some() {}
        assert!(maintenance.buffer.is_drained());
    }

    #[test]
    fn a_full_disk_costs_the_oldest_files_only_if_that_is_allowed_and_waits_for_space_that_is_not_freed() {
        for prune_on_full in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::open(root.path(), &Arc::default()).unwrap());
            let layout = BufferLayout { batches: 2, shards: 1, chunk_bytes: 3 };
            let maintenance = Maintenance {
                buffer: Arc::new(Buffer::new(layout, Ack::Memory, None, 0, &Arc::default())),
                store: Arc::clone(&store),
                // No disk has so much free space.
                min_free_bytes: u64::MAX,
                retention: Retention::default(),
                prune_on_full,
                compression: Compression { level: 1, threads: 1 },
            };
            let file = |n| root.path().join(format!("reports-20261122T150512.123456789Z-{n:08x}.jsonl.zst"));
            (0..3).for_each(|n| fs::write(file(n), "x").unwrap());
            let (mut watch, mut unfreed_since) = (Watch::default(), None);
            let check = |unfreed_since: &mut Option<Instant>| {
                maintenance.check_disk(unfreed_since);
                assert!(maintenance.buffer.is_disk_full());
                (0..5).filter(|n| file(*n).exists()).collect::<Vec<_>>()
            };
            assert_eq!(check(&mut unfreed_since), [0, 1, 2], "the catalog is not loaded");
            maintenance.update_catalog(&mut watch).unwrap();
            let left = check(&mut unfreed_since);
            assert_eq!(left, if prune_on_full { vec![2] } else { vec![0, 1, 2] });
            (3..5).for_each(|n| fs::write(file(n), "x").unwrap());
            maintenance.update_catalog(&mut watch).unwrap();
            let left = check(&mut unfreed_since);
            assert_eq!(left, if prune_on_full { vec![2, 3, 4] } else { vec![0, 1, 2, 3, 4] }, "too early");
            unfreed_since = None;
            let left = check(&mut unfreed_since);
            assert_eq!(left, if prune_on_full { vec![4] } else { vec![0, 1, 2, 3, 4] });
        }
    }

    #[test]
    fn a_panic_during_the_creation_of_a_journal_does_not_end_the_thread() {
        let root = tempfile::tempdir().unwrap();
        let maintenance = maintenance(root.path());
        let report = Reports::check(b"{}").unwrap();
        while maintenance.buffer.append(&report).is_ok() {}
        thread::scope(|scope| {
            let thread = scope.spawn(|| maintenance.run());
            while !maintenance.buffer.has_capacity() {
                assert!(!thread.is_finished());
                thread::yield_now();
            }
            drain(&maintenance);
            thread.thread().unpark();
        });
    }

    #[test]
    fn a_panic_during_a_recovery_does_not_end_the_thread() {
        let root = tempfile::tempdir().unwrap();
        let maintenance = maintenance(root.path());
        let id = "reports-20261122T150512.123456789Z-5f3a9c01";
        fs::write(root.path().join(format!("data/journal/{id}.jsonl")), "{}\n").unwrap();
        let parker = Parker::new();
        let (recovery, unparker) = (maintenance.clone(), parker.unparker().clone());
        thread::scope(|scope| {
            let thread = scope.spawn(move || recovery.run_recovery(&parker));
            while !root.path().join(format!("data/{id}.jsonl.zst")).exists() {
                assert!(!thread.is_finished());
                unparker.unpark();
                thread::yield_now();
            }
            drain(&maintenance);
            unparker.unpark();
        });
    }

    #[tokio::test]
    async fn a_shutdown_retries_until_every_pending_batch_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), &Arc::default()).unwrap());
        let layout = BufferLayout { batches: 2, shards: 1, chunk_bytes: 3 };
        let journals = store.journals(3).unwrap();
        let buffer = Arc::new(Buffer::new(layout, Ack::Journal, Some(journals), 1000, &Arc::default()));
        buffer.spawn_committer().unwrap();
        let report = Reports::check(b"{}").unwrap();
        for _ in 0..2 {
            buffer.prepare_journals().unwrap();
            buffer.append(&report).unwrap().durable().await.unwrap();
        }
        buffer.prepare_journals().unwrap();
        assert!(buffer.append(&report).is_err() && buffer.wants_spill() && buffer.spill());
        buffer.close();
        // A directory in place of the staged file stops the batch.
        let obstacle = dir.path().join("tmp").join(buffer.unpublished()[0].id().report_file());
        fs::create_dir(&obstacle).unwrap();
        let (compression, retention) = (Compression { level: 1, threads: 1 }, Retention::default());
        let maintenance =
            Maintenance { buffer, store, min_free_bytes: 0, retention, prune_on_full: false, compression };
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| maintenance.publish_pending_after(|| ()));
            let deadline = Instant::now() + Duration::from_secs(60);
            while maintenance.store.health().error().is_none() {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            // The shutdown has failed once. It tries again until the batch is published.
            thread::sleep(20 * RETRY);
            assert!(!shutdown.is_finished());
            fs::remove_dir(&obstacle).unwrap();
            shutdown.join().unwrap();
        });
        assert!(!maintenance.buffer.has_unpublished());
    }
}
