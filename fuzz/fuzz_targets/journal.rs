//! Any bytes as a journal that a dead server has left.

#![no_main]

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use netwatch_server::report::Report;
use netwatch_server::store::recover::{Recovered, recover};
use netwatch_server::store::report_file::{Compression, decode};
use netwatch_server::store::verify::verify;
use netwatch_server::store::{Stem, Store};

const JOURNAL: &str = "reports-20261122T150512.123456789Z-5f3a9c01.jsonl";
const COMPRESSION: Compression = Compression { level: 1, threads: 1 };

/// In memory: thousands of directories a second are too many for a disk.
const MEMORY: &str = "/dev/shm";

fuzz_target!(|bytes: &[u8]| {
    let expected = Expected::of(bytes);
    let dir = tempfile::Builder::new().prefix("netwatch-fuzz-").tempdir_in(MEMORY).unwrap();
    let dir = dir.path();
    let journal = dir.join("journal").join(JOURNAL);
    fs::create_dir(dir.join("journal")).unwrap();
    fs::write(&journal, bytes).unwrap();
    let store = Store::open(dir).unwrap();
    assert_eq!(verified(dir), [(journal.clone(), expected.quarantined.is_empty().then_some(expected.reports()))]);

    let recovered = recover(&store, COMPRESSION, &mut HashSet::new()).unwrap();
    assert_eq!(
        recovered,
        Recovered {
            journals: 1,
            reports: expected.reports(),
            quarantined_bytes: expected.quarantined.len(),
            ..Recovered::default()
        }
    );
    expected.assert_found_in(dir);

    assert_eq!(recover(&store, COMPRESSION, &mut HashSet::new()).unwrap(), Recovered::default(), "there is nothing left to do");
    expected.assert_found_in(dir);
});

/// What recovery should make of a journal, found line by line.
#[derive(Default)]
struct Expected {
    published: Vec<u8>,
    quarantined: Vec<u8>,
}

impl Expected {
    fn of(bytes: &[u8]) -> Self {
        let mut expected = Self::default();
        let mut zeros = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = &piece[piece.iter().take_while(|byte| **byte == 0).count()..];
            // Preallocated bytes stand before what may be a line, and behind one that was cut short.
            let torn = if line.ends_with(b"\n") { 0 } else { line.iter().rev().take_while(|byte| **byte == 0).count() };
            let line = &line[..line.len() - torn];
            zeros += piece.len() - line.len();
            let to = if is_line(line) { &mut expected.published } else { &mut expected.quarantined };
            to.extend_from_slice(line);
        }
        assert_eq!(expected.published.len() + expected.quarantined.len() + zeros, bytes.len(), "no byte is lost");
        expected
    }

    fn reports(&self) -> usize {
        self.published.iter().filter(|byte| **byte == b'\n').count()
    }

    fn assert_found_in(&self, dir: &Path) {
        let report_file = dir.join(Stem::of_journal(JOURNAL).unwrap().report_file());
        if self.published.is_empty() {
            assert_eq!(verified(dir), []);
        } else {
            assert_eq!(verified(dir), [(report_file.clone(), Some(self.reports()))]);
            assert_eq!(decode(File::open(report_file).unwrap()).unwrap(), self.published);
        }
        let aside = fs::read(dir.join("quarantine").join(JOURNAL)).unwrap_or_default();
        assert_eq!(aside, self.quarantined);
        assert!(fs::read_dir(dir.join("journal")).unwrap().next().is_none(), "the journal is gone");
    }
}

fn is_line(bytes: &[u8]) -> bool {
    bytes.strip_suffix(b"\n").is_some_and(|text| Report::check(text).is_ok_and(|report| report.as_bytes() == text))
}

/// The files of `dir`, each with the number of its reports if it is sound.
fn verified(dir: &Path) -> Vec<(PathBuf, Option<usize>)> {
    verify(dir).unwrap().into_iter().map(|verdict| (verdict.path, verdict.reports.ok())).collect()
}
