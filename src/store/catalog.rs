//! The catalog: the list of report files, in memory.
//!
//! ```text
//!   publish ──add──►                  ──► retention
//!   prune ──remove─► catalog (sorted) ──► queries, metrics
//!   watch, scan ───►
//! ```
//!
//! The catalog may be wrong for a moment: a consumer can take a file at any time. Code that uses an entry must check the
//! file. The mutex is held for a few microseconds, and never during a file operation.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use crossbeam_utils::sync::Unparker;

use super::batch_id::{BatchId, CompactId};

/// Maximum number of entries that are read with one lock of the mutex.
const PAGE: usize = 512;

/// The list of report files, sorted by the time of the first report.
#[derive(Debug, Default)]
pub struct Catalog {
    state: Mutex<State>,
    /// The thread that prunes.
    pruner: OnceLock<Unparker>,
}

/// One report file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogEntry {
    /// The batch. It contains the time of the first report, and gives the file its name.
    pub id: BatchId,
    /// Size of the compressed file.
    pub bytes: u64,
    /// The modification time: the time of the last report.
    pub modified: SystemTime,
}

/// All report files together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogTotals {
    /// The number of report files.
    pub files: usize,
    /// Their compressed size.
    pub bytes: u64,
    /// Time of the first report of the oldest file.
    pub oldest: Option<SystemTime>,
    /// Whether the directory was listed. Until then, the catalog contains only files that this server has published.
    pub is_loaded: bool,
    /// The number of files that this server has pruned since its start.
    pub pruned_files: u64,
    /// The size of the files that this server has pruned since its start.
    pub pruned_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<CompactId, CompactFile>,
    /// Sum of the sizes.
    bytes: u64,
    is_loaded: bool,
    /// The files that changed since the start of a scan. What the catalog knows of them is newer than the scan.
    changed: Option<HashSet<CompactId>>,
    pruned_files: u64,
    pruned_bytes: u64,
}

/// What the catalog stores for each file, beside the id. 16 bytes, and the id has 16 bytes, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompactFile {
    bytes: u64,
    /// Nanoseconds since 1970. From 1677 to 2262; other times become the nearest of these.
    modified_ns: i64,
}

impl CompactFile {
    pub(super) fn new(bytes: u64, modified: SystemTime) -> Self {
        let ns = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let modified_ns = match modified.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => ns(after),
            Err(before) => -ns(before.duration()),
        };
        Self { bytes, modified_ns }
    }

    fn modified(self) -> SystemTime {
        let distance = Duration::from_nanos(self.modified_ns.unsigned_abs());
        match self.modified_ns < 0 {
            true => SystemTime::UNIX_EPOCH - distance,
            false => SystemTime::UNIX_EPOCH + distance,
        }
    }
}

impl Catalog {
    /// The number of files, their size, and so on.
    #[must_use]
    pub fn totals(&self) -> CatalogTotals {
        let state = self.lock();
        CatalogTotals {
            files: state.files.len(),
            bytes: state.bytes,
            oldest: state.files.first_key_value().map(|(id, _)| BatchId::from(*id).first()),
            is_loaded: state.is_loaded,
            pruned_files: state.pruned_files,
            pruned_bytes: state.pruned_bytes,
        }
    }

    /// The files that may contain reports from `from` to `to`, oldest first.
    ///
    /// The iterator uses little memory and does not block anybody. Each file appears at most once. A file that is
    /// published or removed meanwhile may appear or not.
    #[must_use]
    pub fn files(&self, from: Option<SystemTime>, to: Option<SystemTime>) -> CatalogFiles<'_> {
        CatalogFiles {
            catalog: self,
            from,
            to,
            newest_first: false,
            after: None,
            page: Vec::new().into_iter(),
            is_last: false,
        }
    }

    /// The same files, newest first.
    #[must_use]
    pub fn files_newest_first(&self, from: Option<SystemTime>, to: Option<SystemTime>) -> CatalogFiles<'_> {
        CatalogFiles { newest_first: true, ..self.files(from, to) }
    }

    /// The file with the latest first report.
    pub(super) fn newest(&self) -> Option<BatchId> {
        self.lock().files.last_key_value().map(|(id, _)| (*id).into())
    }

    /// Adds a file, or replaces what is known of it.
    pub(super) fn add(&self, id: BatchId, file: CompactFile) {
        self.lock().add(id.into(), file);
    }

    /// Adds a file that was published just now. Retention may have to remove another one.
    pub(super) fn add_published(&self, id: BatchId, file: CompactFile) {
        self.add(id, file);
        self.pruner.get().into_iter().for_each(Unparker::unpark);
    }

    pub(super) fn remove(&self, id: BatchId) {
        self.lock().remove(id.into());
    }

    /// Removes a file that was pruned.
    pub(super) fn remove_pruned(&self, id: BatchId) {
        let mut state = self.lock();
        if let Some(file) = state.remove(id.into()) {
            state.pruned_files += 1;
            state.pruned_bytes += file.bytes;
        }
    }

    pub(super) fn get(&self, id: BatchId) -> Option<CompactFile> {
        self.lock().files.get(&id.into()).copied()
    }

    /// Sets the thread to unpark when a file was published. Only the first call has an effect.
    pub(crate) fn set_pruner(&self, pruner: Unparker) {
        self.pruner.get_or_init(|| pruner);
    }

    /// Remembers from now on which files change, until [`replace`](Self::replace).
    pub(super) fn begin_scan(&self) {
        self.lock().changed = Some(HashSet::new());
    }

    /// Replaces the catalog with the result of a scan, except for the files that changed since the scan began.
    pub(super) fn replace(&self, mut listed: Vec<(CompactId, CompactFile)>) {
        // Sorted and unique, so that the map is built densely: 38 bytes per file.
        listed.sort_unstable_by_key(|(id, _)| *id);
        listed.dedup_by_key(|(id, _)| *id);
        let mut bytes = listed.iter().map(|(_, file)| file.bytes).sum();
        let mut files: BTreeMap<_, _> = listed.into_iter().collect();
        let mut state = self.lock();
        for id in state.changed.take().unwrap_or_default() {
            let known = state.files.get(&id).copied();
            let listed = match known {
                Some(file) => files.insert(id, file),
                None => files.remove(&id),
            };
            bytes = bytes + known.map_or(0, |file| file.bytes) - listed.map_or(0, |file| file.bytes);
        }
        let old = std::mem::replace(&mut state.files, files);
        state.bytes = bytes;
        state.is_loaded = true;
        drop(state);
        // Not under the mutex: it takes a while to release the memory of a million entries.
        drop(old);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, id: CompactId, file: CompactFile) {
        let replaced = self.files.insert(id, file).map_or(0, |file| file.bytes);
        self.bytes = self.bytes + file.bytes - replaced;
        self.changed.iter_mut().for_each(|changed| changed.extend([id]));
    }

    fn remove(&mut self, id: CompactId) -> Option<CompactFile> {
        let removed = self.files.remove(&id);
        self.bytes -= removed.map_or(0, |file| file.bytes);
        self.changed.iter_mut().for_each(|changed| changed.extend([id]));
        removed
    }
}

/// The files of a [`Catalog`], in order.
#[derive(Debug)]
pub struct CatalogFiles<'a> {
    catalog: &'a Catalog,
    from: Option<SystemTime>,
    to: Option<SystemTime>,
    newest_first: bool,
    /// The last file of the last page.
    after: Option<CompactId>,
    page: std::vec::IntoIter<CatalogEntry>,
    is_last: bool,
}

impl Iterator for CatalogFiles<'_> {
    type Item = CatalogEntry;

    fn next(&mut self) -> Option<CatalogEntry> {
        loop {
            if let Some(entry) = self.page.next() {
                return Some(entry);
            }
            if self.is_last {
                return None;
            }
            self.page = self.next_page().into_iter();
        }
    }
}

impl CatalogFiles<'_> {
    fn next_page(&mut self) -> Vec<CatalogEntry> {
        let state = self.catalog.lock();
        let after = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut up, mut down);
        let files: &mut dyn Iterator<Item = _> = match self.newest_first {
            false => {
                up = state.files.range((after, Bound::Unbounded));
                &mut up
            }
            true => {
                down = state.files.range((Bound::Unbounded, after)).rev();
                &mut down
            }
        };
        let mut page = Vec::new();
        let mut read = 0;
        for (id, file) in files.take(PAGE) {
            let entry = CatalogEntry { id: (*id).into(), bytes: file.bytes, modified: file.modified() };
            let is_later = self.to.is_some_and(|to| entry.id.first() > to);
            if is_later && !self.newest_first {
                break;
            }
            read += 1;
            self.after = Some(*id);
            if !is_later && self.from.is_none_or(|from| entry.modified >= from) {
                page.push(entry);
            }
        }
        self.is_last = read < PAGE;
        page
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn file(bytes: u64, modified: u64) -> CompactFile {
        CompactFile::new(bytes, time(modified))
    }

    #[test]
    fn an_entry_needs_32_bytes() {
        assert_eq!(size_of::<(CompactId, CompactFile)>(), 32);
    }

    #[test]
    fn totals_follow_each_change() {
        let catalog = Catalog::default();
        let [first, second] = [1, 2].map(|second| BatchId::new(time(second)));
        catalog.add(second, file(20, 3));
        catalog.add(first, file(5, 3));
        catalog.add(first, file(7, 3));
        catalog.remove(BatchId::new(time(2)));
        let totals = catalog.totals();
        assert_eq!((totals.files, totals.bytes, totals.oldest), (2, 27, Some(time(1))));
        assert_eq!((totals.is_loaded, totals.pruned_files), (false, 0));
        catalog.remove_pruned(first);
        catalog.remove_pruned(first);
        let totals = catalog.totals();
        assert_eq!((totals.files, totals.bytes, totals.oldest), (1, 20, Some(time(2))));
        assert_eq!((totals.pruned_files, totals.pruned_bytes), (1, 7));
    }

    #[test]
    fn files_come_in_order_of_their_first_report_across_pages_and_changes() {
        let catalog = Catalog::default();
        let ids: Vec<_> = (0..3 * PAGE as u64).map(|n| BatchId::new(time(n))).collect();
        ids.iter().rev().for_each(|id| catalog.add(*id, file(1, 10_000)));
        assert!(catalog.files(None, None).map(|entry| entry.id).eq(ids.iter().copied()));
        assert!(catalog.files_newest_first(None, None).map(|entry| entry.id).eq(ids.iter().rev().copied()));
        let mut files = catalog.files(None, None);
        assert_eq!(files.next().unwrap().id, ids[0]);
        ids.iter().for_each(|id| catalog.remove(*id));
        assert_eq!(files.count(), PAGE - 1, "the rest of the page");
    }

    #[test]
    fn a_time_range_selects_the_files_that_may_contain_reports_of_that_time() {
        let catalog = Catalog::default();
        for first in 0..2 * PAGE as u64 {
            catalog.add(BatchId::new(time(10 * first)), file(first, 10 * first + 9));
        }
        let found = |from, to| catalog.files(from, to).map(|entry| entry.bytes).collect::<Vec<_>>();
        assert_eq!(found(Some(time(25)), Some(time(40))), [2, 3, 4]);
        assert_eq!(found(Some(time(29)), Some(time(29))), [2]);
        assert_eq!(found(None, Some(time(9))), [0]);
        assert_eq!(found(Some(time(10 * 2 * PAGE as u64 - 1)), None), [2 * PAGE as u64 - 1], "after a page of others");
        assert!(found(Some(time(1_000_000)), None).is_empty());
        let newest = |from, to| catalog.files_newest_first(from, to).map(|entry| entry.bytes).collect::<Vec<_>>();
        assert_eq!(newest(Some(time(25)), Some(time(40))), [4, 3, 2], "after a page of others");
        assert_eq!(newest(None, Some(time(9))), [0]);
    }

    #[test]
    fn a_published_file_wakes_the_thread_that_prunes_and_other_changes_do_not() {
        const LIMIT: Duration = Duration::from_secs(60);
        let (catalog, parker) = (Catalog::default(), crossbeam_utils::sync::Parker::new());
        catalog.set_pruner(parker.unparker().clone());
        catalog.add(BatchId::new(time(1)), file(1, 1));
        let started = std::time::Instant::now();
        parker.park_timeout(Duration::from_millis(1));
        assert!(started.elapsed() >= Duration::from_millis(1), "not woken");
        catalog.add_published(BatchId::new(time(2)), file(1, 1));
        parker.park_timeout(LIMIT);
        assert!(started.elapsed() < LIMIT, "woken");
    }

    #[test]
    fn changes_during_a_scan_are_newer_than_the_scan() {
        let catalog = Catalog::default();
        let [kept, gone, pruned, published, found] = [1, 2, 3, 4, 5].map(|second| BatchId::new(time(second)));
        [kept, gone, pruned].into_iter().for_each(|id| catalog.add(id, file(1, 9)));
        catalog.begin_scan();
        catalog.remove_pruned(pruned);
        catalog.add(published, file(100, 9));
        catalog.replace(vec![
            (found.into(), file(10, 9)),
            (pruned.into(), file(1, 9)),
            (kept.into(), file(1, 9)),
            (kept.into(), file(1, 9)),
        ]);
        let ids: Vec<_> = catalog.files(None, None).map(|entry| entry.id).collect();
        assert_eq!(ids, [kept, published, found]);
        let totals = catalog.totals();
        assert_eq!((totals.bytes, totals.is_loaded), (111, true));
    }

    #[test]
    fn times_before_1970_and_far_in_the_future_are_valid() {
        for modified in [time(0), time(7), SystemTime::UNIX_EPOCH - Duration::from_nanos(1_500_000_001)] {
            assert_eq!(CompactFile::new(0, modified).modified(), modified);
        }
        let far = CompactFile::new(0, SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60)).modified();
        assert!(far > time(9_000_000_000), "{far:?}");
        let past = CompactFile::new(0, SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 60)).modified();
        assert!(past < SystemTime::UNIX_EPOCH, "{past:?}");
        let ids = ["00010101T000000.500000000Z", "19691231T235959.500000000Z", "19700101T000000.500000000Z"];
        let ids = ids.map(|time| BatchId::of_report_file(&format!("reports-{time}-00000001.jsonl.zst")).unwrap());
        let compact = ids.map(CompactId::from);
        assert!(compact.is_sorted() && compact.map(BatchId::from) == ids);
    }
}
