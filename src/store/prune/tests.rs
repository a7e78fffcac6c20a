use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use tempfile::TempDir;

use super::*;
use crate::durability_tests::{Fault, Script};
use crate::store::{Disk, Watch};

const NOW: Duration = Duration::from_secs(1_800_000_000);

/// Ten files of 10 bytes each. File `n` has its first report at `NOW` - 100 s + 10 `n` s, and its last one 5 s later.
struct Files {
    dir: TempDir,
    ids: Vec<BatchId>,
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + NOW
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let first = |n: u64| now() - Duration::from_secs(100 - 10 * n);
        let files = Self { dir, ids: (0..10).map(|n| BatchId::new(first(n))).collect() };
        for id in &files.ids {
            fs::write(files.path(*id), "0123456789").unwrap();
            files.touch(*id, id.first() + Duration::from_secs(5));
        }
        files
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn path(&self, id: BatchId) -> PathBuf {
        self.data_dir().join(id.report_file())
    }

    fn touch(&self, id: BatchId, modified: SystemTime) {
        File::options().write(true).open(self.path(id)).unwrap().set_modified(modified).unwrap();
    }

    /// A server that has listed the files.
    fn store(&self) -> Store {
        let store = Store::open_existing(&self.data_dir()).unwrap();
        store.scan(&mut || true).unwrap();
        store
    }

    /// The numbers of the files that exist.
    fn left(&self) -> Vec<usize> {
        (0..10).filter(|n| self.path(self.ids[*n]).exists()).collect()
    }
}

fn prune(store: &Store, max_age: Option<Duration>, max_bytes: Option<u64>) -> Pruned {
    let on_pruned = &mut |_: &PrunedFile| Ok(ControlFlow::Continue(()));
    store.prune(Retention { max_age, max_bytes }, PruneMode::Remove, now(), on_pruned).unwrap()
}

#[test]
fn files_that_exceed_a_limit_are_removed_and_no_others() {
    for (max_age, max_bytes, left) in [
        (None, None, 0..10),
        (seconds(1000), Some(1000), 0..10),
        (seconds(95), Some(100), 0..10),
        (seconds(94), None, 1..10),
        (seconds(50), None, 5..10),
        (None, Some(99), 1..10),
        (None, Some(50), 5..10),
        (seconds(50), Some(70), 5..10),
        (seconds(70), Some(50), 5..10),
        // The newest one stays.
        (seconds(1), None, 9..10),
        (None, Some(1), 9..10),
        (seconds(0), Some(0), 9..10),
    ] {
        let files = Files::new();
        let store = files.store();
        let pruned = prune(&store, max_age, max_bytes);
        assert_eq!(files.left(), left.clone().collect::<Vec<_>>(), "{max_age:?} {max_bytes:?}");
        assert_eq!(pruned, Pruned { files: left.start, bytes: 10 * left.start as u64, failed: 0 });
        let totals = store.catalog().totals();
        assert_eq!((totals.files, totals.pruned_files), (left.len(), left.start as u64));
    }
}

#[test]
fn the_oldest_file_goes_first_with_its_name_size_and_age() {
    let files = Files::new();
    let mut pruned = Vec::new();
    let retention = Retention { max_age: None, max_bytes: Some(60) };
    let mut on_pruned = |file: &PrunedFile| {
        pruned.push((file.path.clone(), file.bytes, file.age.as_secs()));
        Ok(if pruned.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    files.store().prune(retention, PruneMode::Remove, now(), &mut on_pruned).unwrap();
    let expected = (0..3).map(|n| (files.path(files.ids[n]), 10, 95 - 10 * n as u64));
    assert_eq!(pruned, expected.collect::<Vec<_>>());
    assert_eq!(files.left(), (3..10).collect::<Vec<_>>(), "ended by the caller");
}

#[test]
fn a_dry_run_finds_the_same_files_and_removes_none() {
    let files = Files::new();
    let store = files.store();
    let retention = Retention { max_age: seconds(80), max_bytes: Some(50) };
    let on_pruned = &mut |_: &PrunedFile| Ok(ControlFlow::Continue(()));
    let pruned = store.prune(retention, PruneMode::DryRun, now(), on_pruned).unwrap();
    assert_eq!((pruned.files, files.left().len()), (5, 10));
    assert_eq!(pruned, prune(&files.store(), retention.max_age, retention.max_bytes));
    assert_eq!(files.left(), [5, 6, 7, 8, 9]);
}

#[test]
fn the_age_counts_from_the_last_report_and_not_from_the_name() {
    let files = Files::new();
    files.touch(files.ids[1], now());
    prune(&files.store(), seconds(50), None);
    assert_eq!(files.left(), [1, 5, 6, 7, 8, 9]);
}

#[test]
fn a_file_whose_batch_is_not_completely_published_stays() {
    let files = Files::new();
    let store = files.store();
    let journal = files.data_dir().join("journal").join(files.ids[0].journal());
    let staged = files.data_dir().join("tmp").join(files.ids[1].report_file());
    for path in [&journal, &staged] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    prune(&store, seconds(50), Some(50));
    assert_eq!(files.left(), [0, 1, 5, 6, 7, 8, 9], "and no younger file takes their place");
    fs::remove_file(journal).unwrap();
    fs::remove_file(staged).unwrap();
    prune(&store, seconds(50), None);
    assert_eq!(files.left(), [5, 6, 7, 8, 9]);
}

#[test]
fn only_regular_files_with_a_name_of_the_server_are_removed() {
    let files = Files::new();
    let others = [
        "notes.txt",
        "reports-2020.jsonl.zst",
        "reports-20200101T000000.000000000Z-0000000A.jsonl.zst",
        "reports-20200101T000000.000000000Z-0000000a.jsonl",
        "reports-20200101T000000.000000000Z-0000000a.jsonl.zst.bak",
    ];
    others.iter().for_each(|name| fs::write(files.data_dir().join(name), "0123456789").unwrap());
    let odd = [1, 2].map(|n| files.data_dir().join(format!("reports-20200101T000000.000000000Z-{n:08x}.jsonl.zst")));
    fs::create_dir(&odd[0]).unwrap();
    symlink(files.data_dir().join("notes.txt"), &odd[1]).unwrap();
    let store = files.store();
    assert_eq!(store.catalog().totals().files, 10);
    // Also if the file became something else since the scan.
    fs::remove_file(files.path(files.ids[0])).unwrap();
    fs::create_dir(files.path(files.ids[0])).unwrap();
    assert_eq!(prune(&store, seconds(0), Some(0)), Pruned { files: 8, bytes: 80, failed: 0 });
    assert_eq!(files.left(), [0, 9]);
    assert!(others.iter().all(|name| files.data_dir().join(name).is_file()));
    assert!(odd.iter().all(|path| path.symlink_metadata().is_ok()));
}

#[test]
fn a_file_that_has_changed_is_judged_by_what_it_is_now() {
    let files = Files::new();
    let store = files.store();
    files.touch(files.ids[0], now());
    fs::write(files.path(files.ids[1]), "more than it was").unwrap();
    files.touch(files.ids[1], now() - Duration::from_secs(90));
    assert_eq!(prune(&store, seconds(84), None).files, 0);
    assert_eq!(store.catalog().totals().bytes, 106);
    assert_eq!(prune(&store, seconds(84), None), Pruned { files: 1, bytes: 16, failed: 0 });
    assert_eq!(files.left(), [0, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn the_newest_file_stays_even_if_the_catalog_knows_newer_ones_that_are_gone() {
    let files = Files::new();
    let store = files.store();
    [9, 8, 7].into_iter().for_each(|n| fs::remove_file(files.path(files.ids[n])).unwrap());
    prune(&store, seconds(0), Some(0));
    assert_eq!(files.left(), [6]);
    assert_eq!(store.catalog().totals().files, 1);
    fs::remove_file(files.path(files.ids[6])).unwrap();
    assert_eq!(prune(&store, seconds(0), Some(0)), Pruned::default());
}

#[test]
fn a_file_that_cannot_be_removed_does_not_stop_the_others_and_costs_no_younger_file() {
    let files = Files::new();
    let start =
        |faults| Store::open_existing_on(Disk::scripted(&Script::new(files.dir.path(), faults)), &files.data_dir());
    // The scan is the first operation.
    let store = start(vec![(1..3, Fault::Fails(Errno::PERM))]).unwrap();
    store.scan(&mut || true).unwrap();
    assert_eq!(prune(&store, None, Some(60)), Pruned { files: 2, bytes: 20, failed: 2 });
    assert_eq!(files.left(), [0, 1, 4, 5, 6, 7, 8, 9]);
    assert_eq!(prune(&store, None, Some(60)), Pruned { files: 2, bytes: 20, failed: 0 });
    assert_eq!(files.left(), [4, 5, 6, 7, 8, 9]);
}

#[test]
fn nothing_is_removed_in_a_directory_that_replaces_the_data_directory() {
    let files = Files::new();
    let store = files.store();
    let moved = files.dir.path().join("moved");
    fs::rename(files.data_dir(), &moved).unwrap();
    fs::create_dir(files.data_dir()).unwrap();
    for entry in fs::read_dir(&moved).unwrap().map(Result::unwrap) {
        fs::hard_link(entry.path(), files.data_dir().join(entry.file_name())).unwrap();
    }
    let retention = Retention { max_age: seconds(0), max_bytes: None };
    let on_pruned = &mut |_: &PrunedFile| unreachable!();
    store.prune(retention, PruneMode::Remove, now(), on_pruned).unwrap_err();
    store.prune_for_space(u64::MAX, on_pruned).unwrap_err();
    assert_eq!(files.left().len(), 10);
    assert_eq!(fs::read_dir(moved).unwrap().count(), 10);
}

#[test]
fn several_servers_prune_one_directory_and_remove_each_file_once() {
    let files = Files::new();
    let old = now() - Duration::from_secs(10_000);
    for n in 0..500 {
        let id = BatchId::new(old + Duration::from_secs(n));
        fs::write(files.path(id), "0123456789").unwrap();
        files.touch(id, old);
    }
    let stores = [(); 4].map(|()| files.store());
    let pruned = thread::scope(|scope| {
        let prunes = stores.each_ref().map(|store| scope.spawn(|| prune(store, seconds(50), None)));
        prunes.map(|prune| prune.join().unwrap())
    });
    assert_eq!(pruned.iter().map(|pruned| pruned.files).sum::<usize>(), 505, "{pruned:?}");
    assert_eq!(pruned.iter().map(|pruned| pruned.failed).sum::<usize>(), 0);
    assert_eq!(files.left(), [5, 6, 7, 8, 9]);
    assert!(stores.iter().all(|store| store.catalog().totals().files == 5));
}

#[test]
fn for_space_the_oldest_files_are_removed_but_never_the_newest() {
    let files = Files::new();
    let store = files.store();
    let mut number = 0;
    let mut on_pruned = |file: &PrunedFile| {
        assert_eq!(file.path, files.path(files.ids[number]));
        number += 1;
        Ok(ControlFlow::Continue(()))
    };
    assert_eq!(store.prune_for_space(0, &mut on_pruned).unwrap().files, 0);
    assert_eq!(store.prune_for_space(u64::MAX, &mut on_pruned).unwrap().files, 9);
    assert_eq!(files.left(), [9]);
}

#[test]
fn a_catalog_that_follows_the_directory_agrees_with_it_after_any_changes() {
    let files = Files::new();
    let (store, mut watch) = (Arc::new(Store::open_existing(&files.data_dir()).unwrap()), Watch::default());
    store.update_catalog(&mut watch, &mut || true).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut ids = files.ids.clone();
    for round in 0..200 {
        for _ in 0..rng.usize(..5) {
            match rng.u8(..4) {
                0 => ids.push(BatchId::new(now() - Duration::from_millis(rng.u64(..200_000)))),
                1 => drop(fs::remove_file(files.path(*rng.choice(&ids).unwrap()))),
                2 => drop(prune(&store, seconds(rng.u64(150..300)), Some(rng.u64(100..400)))),
                _ => fs::write(files.path(*rng.choice(&ids).unwrap()), "x".repeat(rng.usize(..30))).unwrap(),
            }
        }
        store.update_catalog(&mut watch, &mut || true).unwrap();
        let mut expected: Vec<_> =
            ids.iter().filter_map(|id| Some((*id, files.path(*id).metadata().ok()?.len()))).collect();
        expected.sort_unstable();
        let found: Vec<_> = store.catalog().files(None, None).map(|file| (file.id, file.bytes)).collect();
        assert_eq!(found, expected, "round {round}");
        assert_eq!(store.catalog().totals().bytes, expected.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
}
