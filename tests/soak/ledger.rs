//! What clients know about each report, compared with the report files.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A report: the number of its client, and its number among the reports of this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) client: usize,
    pub(crate) number: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Whether the client has finished with this report. Until then, it may be stored or not.
    is_final: bool,
    /// Minimum and maximum number of copies in the report files.
    min: u8,
    max: u8,
    stored: u8,
}

/// The reports of all clients.
#[derive(Debug)]
pub(crate) struct Ledger {
    clients: Vec<Mutex<Vec<Entry>>>,
    violations: Mutex<Vec<String>>,
    is_violated: AtomicBool,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) stored: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(clients: usize) -> Self {
        Self {
            clients: (0..clients).map(|_| Mutex::default()).collect(),
            violations: Mutex::default(),
            is_violated: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            stored: AtomicU64::new(0),
        }
    }

    /// A new report.
    pub(crate) fn begin(&self, client: usize) -> Id {
        let mut entries = self.clients[client].lock().unwrap();
        entries.push(Entry::default());
        Id { client, number: entries.len() - 1 }
    }

    /// The final bounds of the number of copies.
    pub(crate) fn finish(&self, id: Id, min: u8, max: u8) {
        let counter = match (min, max) {
            (1.., _) => &self.acknowledged,
            (0, 0) => &self.refused,
            (0, _) => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.clients[id.client].lock().unwrap();
        let entry = &mut entries[id.number];
        *entry = Entry { is_final: true, min, max, ..*entry };
        if entry.stored > max {
            self.violation(format!("{id:?} is stored {} times, at most {max} expected", entry.stored));
        }
    }

    /// One line of a report file.
    pub(crate) fn store(&self, line: &str) {
        self.stored.fetch_add(1, Ordering::Relaxed);
        let Some(id) = parse(line) else {
            self.violation(format!("a report file contains a line that no client has sent as a report: {line:.200}"));
            return;
        };
        let mut entries = self.clients[id.client].lock().unwrap();
        match entries.get_mut(id.number) {
            None => self.violation(format!("a report file contains {id:?}, which was not sent")),
            Some(entry) => {
                entry.stored = entry.stored.saturating_add(1);
                if entry.is_final && entry.stored > entry.max {
                    self.violation(format!("{id:?} is stored {} times, at most {} expected", entry.stored, entry.max));
                }
            }
        }
    }

    /// The number of reports of each client so far.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.clients.iter().map(|entries| entries.lock().unwrap().len()).collect()
    }

    /// A report before these positions that is not stored as often as it must be.
    pub(crate) fn missing(&self, positions: &[usize]) -> Option<Id> {
        self.clients.iter().enumerate().find_map(|(client, entries)| {
            let entries = entries.lock().unwrap();
            let number =
                entries[..positions[client]].iter().position(|entry| entry.is_final && entry.stored < entry.min);
            number.map(|number| Id { client, number })
        })
    }

    /// Adds a broken guarantee. The run ends.
    pub(crate) fn violation(&self, what: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        self.is_violated.store(true, Ordering::Release);
    }

    pub(crate) fn is_violated(&self) -> bool {
        self.is_violated.load(Ordering::Acquire)
    }

    /// The broken guarantees so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// All broken guarantees, when everything has stopped and all report files were read.
    pub(crate) fn close(&self) -> Vec<String> {
        for (client, entries) in self.clients.iter().enumerate() {
            for (number, entry) in entries.lock().unwrap().iter().enumerate() {
                if !entry.is_final {
                    self.violation(format!("client {client} has not finished report {number}"));
                } else if !(entry.min..=entry.max).contains(&entry.stored) {
                    let Entry { min, max, stored, .. } = entry;
                    self.violation(format!("report {number} of client {client}: {stored} copies, not {min} to {max}"));
                }
            }
        }
        self.violations()
    }
}

/// The report with this ID. Its length depends on its number.
pub(crate) fn report(id: Id) -> String {
    format!("{{\"id\":\"{}-{}\",\"pad\":\"{}\"}}", id.client, id.number, "x".repeat((id.number * 37) % 900))
}

/// The ID of a complete and unchanged report.
fn parse(line: &str) -> Option<Id> {
    let (id, _) = line.strip_prefix("{\"id\":\"")?.split_once('"')?;
    let (client, number) = id.split_once('-')?;
    let id = Id { client: client.parse().ok()?, number: number.parse().ok()? };
    (line == report(id)).then_some(id)
}

#[test]
fn the_ledger_finds_lost_duplicated_and_unexpected_reports() {
    let violations = |min, max, copies: usize| {
        let ledger = Ledger::new(1);
        let id = ledger.begin(0);
        ledger.finish(id, min, max);
        assert_eq!(ledger.missing(&ledger.positions()), (min > 0).then_some(id));
        (0..copies).for_each(|_| ledger.store(&report(id)));
        ledger.close().len()
    };
    for (min, max) in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)] {
        for copies in 0..4 {
            let is_valid = (usize::from(min)..=usize::from(max)).contains(&copies);
            assert_eq!(violations(min, max, copies) == 0, is_valid, "{copies} copies, not {min} to {max}");
        }
    }
    let ledger = Ledger::new(1);
    let id = ledger.begin(0);
    ledger.store(&report(id).replace("\"pad\"", "\"bad\""));
    assert_eq!(ledger.close().len(), 2, "changed, and not finished");
}
