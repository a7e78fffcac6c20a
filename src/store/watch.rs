//! Noticing files that others publish or remove, without listing the directory again and again.
//!
//! - On a local file system, inotify names each file that appears or disappears. The kernel queues the events until the
//!   next update of the catalog. If the queue overflows, the directory is scanned again.
//! - On a network file system, inotify does not see what other machines do. There, and if the kernel provides no
//!   inotify, the modification time of the directory is compared once per minute, and the directory is scanned if the
//!   time has changed. The server's own files change it, too. So the scans, which read only names, are limited to a
//!   small part of the time.

use std::fs::Metadata;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::batch_id::BatchId;
use super::data_dir::Store;
use super::disk_error::Describe;
use super::scan::Pace;

/// Time between two looks at the modification time of the directory, without inotify.
const STAMP_INTERVAL: Duration = Duration::from_secs(60);

/// A pause after a scan: this many times the duration of the scan.
const SCAN_PAUSE: u32 = 20;

/// A directory that has changed in the last seconds may change again without a new modification time: file systems
/// count time in steps, of up to two seconds.
const STAMP_STEP: Duration = Duration::from_secs(2);

/// File systems whose changes all come from this kernel, by `f_type` (linux/magic.h and the file systems' sources): ext,
/// XFS, Btrfs, tmpfs, overlayfs, F2FS, ZFS, bcachefs.
const LOCAL: [u32; 8] =
    [0x0000_ef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// How the catalog follows the directory. The default has not scanned it yet.
#[derive(Debug, Default)]
pub struct Watch {
    /// Device and inode number of the directory.
    directory: Option<(u64, u64)>,
    is_local: bool,
    inotify: Option<OwnedFd>,
    is_warned: bool,
    /// The directory before the last scan. `None` if that could be equal after a change.
    stamp: Option<Stamp>,
    next_stamp: Option<Instant>,
    is_scanned: bool,
    next_scan: Option<Instant>,
}

/// Seconds and nanoseconds of the modification time and the change time.
type Stamp = [i64; 4];

impl Store {
    /// Applies to the catalog what others have done in the directory since the last call. The first call scans the
    /// directory, with pauses. `pace` may end that.
    ///
    /// # Errors
    /// Errors of the file system. The call may be repeated.
    pub fn update_catalog(&self, watch: &mut Watch, pace: Pace<'_>) -> io::Result<()> {
        self.disk.check_root()?;
        let metadata = self.path.metadata().describe("inspect", &self.path)?;
        let directory = Some((metadata.dev(), metadata.ino()));
        if watch.directory != directory {
            let is_local = is_local(&self.path);
            *watch = Watch { directory, is_local, next_scan: watch.next_scan, ..Watch::default() };
        }
        match &watch.inotify {
            Some(inotify) => match self.apply_events(inotify) {
                Ok(is_complete) => watch.is_scanned &= is_complete,
                Err(error) => {
                    self.health().log(&error, "can't watch the data directory");
                    *watch = Watch { next_scan: watch.next_scan, ..Watch::default() };
                    return Ok(());
                }
            },
            None if watch.next_stamp.is_none_or(|next| next <= Instant::now()) => {
                watch.next_stamp = Some(Instant::now() + STAMP_INTERVAL);
                self.begin_watch(watch);
                watch.is_scanned &= watch.inotify.is_none() && watch.stamp == Some(stamp(&metadata));
            }
            None => {}
        }
        if watch.is_scanned || watch.next_scan.is_some_and(|next| next > Instant::now()) {
            return Ok(());
        }
        let started = Instant::now();
        watch.stamp = Some(stamp(&metadata)).filter(|_| is_settled(&metadata));
        watch.is_scanned = self.scan(pace)?;
        watch.next_scan = Some(Instant::now() + SCAN_PAUSE * started.elapsed());
        Ok(())
    }

    /// Starts to watch the directory, if that shows all changes.
    fn begin_watch(&self, watch: &mut Watch) {
        if !watch.is_local {
            return;
        }
        match watch_names(&self.path) {
            Ok(inotify) => watch.inotify = Some(inotify),
            Err(error) if !watch.is_warned => {
                tracing::warn!(%error, "can't watch the data directory; looking for changes once per minute");
                watch.is_warned = true;
            }
            Err(_) => {}
        }
    }

    /// Applies the events in the queue. Returns `false` if events were lost.
    ///
    /// # Errors
    /// If there will be no more events.
    fn apply_events(&self, inotify: &OwnedFd) -> io::Result<bool> {
        let mut is_complete = true;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut events = Reader::new(inotify, &mut buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(is_complete),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let flags = event.events();
            if flags.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
                return Err(io::Error::other("the directory was deleted or unmounted"));
            }
            is_complete &= !flags.contains(ReadFlags::QUEUE_OVERFLOW);
            let name = event.file_name().and_then(|name| name.to_str().ok());
            let Some(id) = name.and_then(BatchId::of_report_file) else { continue };
            if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
                self.catalog.remove(id);
                continue;
            }
            match self.inspect(&self.path.join(id.report_file())) {
                Ok(Some(file)) => self.catalog.add(id, file),
                // The event of its removal follows.
                Ok(None) => {}
                Err(error) => self.health().log(&error, "can't inspect a report file; ignored"),
            }
        }
    }
}

fn watch_names(path: &Path) -> io::Result<OwnedFd> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let appear = WatchFlags::CREATE | WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO;
    let disappear = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
    inotify::add_watch(&inotify, path, appear | disappear | WatchFlags::ONLYDIR)?;
    Ok(inotify)
}

/// Whether this kernel makes all changes of the file system. `false` if that is not known.
fn is_local(path: &Path) -> bool {
    // The type is a signed number on some platforms, but never has more than 32 bits.
    rustix::fs::statfs(path).is_ok_and(|system| LOCAL.contains(&(system.f_type as u32)))
}

fn stamp(metadata: &Metadata) -> Stamp {
    [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()]
}

/// Whether each later change of the directory leads to another stamp.
fn is_settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().map(|modified| SystemTime::now().duration_since(modified));
    age.is_ok_and(|age| age.is_ok_and(|age| age > STAMP_STEP))
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::durability_tests::Script;
    use crate::store::Disk;

    /// A data directory, and a catalog that follows it.
    struct Followed {
        dir: TempDir,
        script: Arc<Script>,
        store: Store,
        watch: Watch,
    }

    impl Followed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("data")).unwrap();
            let script = Script::new(dir.path(), vec![]);
            let store = Store::open_existing_on(Disk::scripted(&script), &dir.path().join("data")).unwrap();
            Self { dir, script, store, watch: Watch::default() }
        }

        /// As on a file system without events.
        fn without_events() -> Self {
            let mut followed = Self::new();
            followed.update();
            followed.watch.is_local = false;
            followed.watch.inotify = None;
            followed
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("data").join(name)
        }

        fn update(&mut self) {
            self.watch.next_scan = None;
            self.store.update_catalog(&mut self.watch, &mut || true).unwrap();
        }

        /// The sizes of the files in the catalog after an update.
        fn sizes(&mut self) -> Vec<u64> {
            self.update();
            self.store.catalog().files(None, None).map(|file| file.bytes).collect()
        }

        fn scans(&self) -> usize {
            self.script.calls().iter().filter(|call| **call == "list").count()
        }

        /// Sets the modification time of the directory to the past, as if it had not changed for a while.
        fn settle(&mut self) {
            File::open(self.path("")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            self.watch.next_stamp = None;
        }
    }

    fn name(n: u32) -> String {
        format!("reports-20261122T150512.123456789Z-{n:08x}.jsonl.zst")
    }

    #[test]
    fn files_of_others_appear_and_disappear_without_another_scan() {
        let mut followed = Followed::new();
        fs::write(followed.path(&name(1)), "1").unwrap();
        assert_eq!(followed.sizes(), [1]);
        fs::write(followed.path(&name(2)), "22").unwrap();
        fs::write(followed.path("new"), "333").unwrap();
        fs::rename(followed.path("new"), followed.path(&name(3))).unwrap();
        fs::write(followed.path("notes.txt"), "4444").unwrap();
        fs::hard_link(followed.path("notes.txt"), followed.path(&name(4))).unwrap();
        fs::create_dir(followed.path(&name(5))).unwrap();
        assert_eq!(followed.sizes(), [1, 2, 3, 4]);
        fs::remove_file(followed.path(&name(1))).unwrap();
        fs::rename(followed.path(&name(2)), followed.dir.path().join("taken")).unwrap();
        fs::write(followed.path(&name(3)), "another size").unwrap();
        fs::write(followed.path(&name(6)), "appears and disappears").unwrap();
        fs::remove_file(followed.path(&name(6))).unwrap();
        assert_eq!(followed.sizes(), [12, 4]);
        assert_eq!(followed.scans(), 1);
    }

    #[test]
    fn lost_events_lead_to_another_scan() {
        let mut followed = Followed::new();
        assert!(followed.sizes().is_empty());
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for n in 0..limit.trim().parse().unwrap() {
            fs::write(followed.path(if n % 2 == 0 { "even" } else { "odd" }), "").unwrap();
        }
        fs::write(followed.path(&name(1)), "1").unwrap();
        assert_eq!(followed.sizes(), [1]);
        assert_eq!(followed.scans(), 2);
        assert_eq!(followed.sizes(), [1]);
        assert_eq!(followed.scans(), 2);
    }

    #[test]
    fn without_events_a_scan_follows_a_change_of_the_directory_and_nothing_else() {
        let mut followed = Followed::without_events();
        fs::write(followed.path(&name(1)), "1").unwrap();
        followed.settle();
        assert_eq!(followed.sizes(), [1]);
        assert_eq!(followed.scans(), 2);
        followed.watch.next_stamp = None;
        assert_eq!(followed.sizes(), [1]);
        assert_eq!(followed.scans(), 2, "unchanged");
        fs::rename(followed.path(&name(1)), followed.dir.path().join("taken")).unwrap();
        assert_eq!(followed.sizes(), [1], "it is too early for another look");
        followed.watch.next_stamp = None;
        assert!(followed.sizes().is_empty());
        followed.watch.next_stamp = None;
        followed.update();
        assert_eq!(followed.scans(), 4, "the directory has changed just now, and may have changed twice");
    }

    #[test]
    fn a_scan_is_followed_by_a_pause_and_may_be_ended() {
        let mut followed = Followed::new();
        for n in 0..1000 {
            fs::write(followed.path(&name(n)), "").unwrap();
        }
        followed.store.update_catalog(&mut followed.watch, &mut || false).unwrap();
        assert!(!followed.store.catalog().totals().is_loaded);
        assert_eq!(followed.scans(), 1);
        followed.watch.next_scan = Some(Instant::now() + Duration::from_secs(3600));
        followed.store.update_catalog(&mut followed.watch, &mut || true).unwrap();
        assert_eq!(followed.scans(), 1);
        assert_eq!(followed.sizes().len(), 1000);
        assert!(followed.store.catalog().totals().is_loaded && followed.watch.next_scan.is_some());
    }

    #[test]
    fn a_replaced_directory_is_not_read_and_a_new_one_after_a_deletion_is() {
        let mut followed = Followed::new();
        fs::write(followed.path(&name(1)), "1").unwrap();
        assert_eq!(followed.sizes(), [1]);
        let (data, moved) = (followed.path(""), followed.dir.path().join("moved"));
        fs::rename(&data, &moved).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(followed.path(&name(2)), "22").unwrap();
        followed.store.update_catalog(&mut followed.watch, &mut || true).unwrap_err();
        assert_eq!(followed.store.catalog().totals().bytes, 1);
        fs::remove_dir_all(moved).unwrap();
        assert_eq!(followed.sizes(), [2]);
        fs::write(followed.path(&name(3)), "333").unwrap();
        assert_eq!(followed.sizes(), [2, 3]);
        assert_eq!(followed.scans(), 2);
    }
}
