//! Batch ids, from which the names of journals and report files are made.
//!
//! A persisted format: changing it is a breaking change.
//!
//! ```text
//! reports-20261122T150512.123456789Z-5f3a9c01.jsonl.zst
//!         └ time of the first ────┘ └ random
//!           report, UTC
//! ```

use std::fmt;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const REPORT_FILE: &str = ".jsonl.zst";
const JOURNAL: &str = ".jsonl";
const TIME: &str = "%Y%m%dT%H%M%S.%9fZ";

/// The id of a batch: the common stem of the names of its journal and its report file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId {
    first: Timestamp,
    random: u32,
}

/// A [`BatchId`] in 16 bytes, in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CompactId {
    second: i64,
    /// Negative before 1970.
    nanosecond: i32,
    random: u32,
}

impl From<BatchId> for CompactId {
    fn from(BatchId { first, random }: BatchId) -> Self {
        Self { second: first.as_second(), nanosecond: first.subsec_nanosecond(), random }
    }
}

impl From<CompactId> for BatchId {
    fn from(CompactId { second, nanosecond, random }: CompactId) -> Self {
        let first = Timestamp::new(second, nanosecond).expect("it was made from a timestamp");
        Self { first, random }
    }
}

impl BatchId {
    /// A new id for a batch whose first report came at `first`.
    ///
    /// # Panics
    /// If `first` is outside of the years -9999 to 9999.
    #[must_use]
    pub fn new(first: SystemTime) -> Self {
        let first = Timestamp::try_from(first).expect("the clock shows a year of four digits");
        Self { first, random: random_id() }
    }

    /// Another id with the same time.
    #[must_use]
    pub fn renamed(self) -> Self {
        Self { random: random_id(), ..self }
    }

    /// The id in the name of a journal. `None` if the server does not give such names.
    #[must_use]
    pub fn of_journal(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(JOURNAL)?)
    }

    /// The id in the name of a report file. `None` if the server does not give such names.
    #[must_use]
    pub fn of_report_file(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(REPORT_FILE)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, random) = text.strip_prefix("reports-")?.rsplit_once('-')?;
        let first = DateTime::strptime(TIME, first).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
        let id = Self { first, random: u32::from_str_radix(random, 16).ok()? };
        // Only the canonical spelling, so that two names never mean the same batch.
        (id.to_string() == text).then_some(id)
    }

    /// The time of the first report.
    #[must_use]
    pub fn first(&self) -> SystemTime {
        self.first.into()
    }

    /// The name of the report file.
    #[must_use]
    pub fn report_file(&self) -> String {
        format!("{self}{REPORT_FILE}")
    }

    /// The name of the journal.
    #[must_use]
    pub fn journal(&self) -> String {
        format!("{self}{JOURNAL}")
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reports-{}-{:08x}", self.first.strftime(TIME), self.random)
    }
}

/// A random number for a file name. Collisions are detected when the file is created or renamed.
pub(super) fn random_id() -> u32 {
    getrandom::u32().expect("the kernel provides random numbers")
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_name_contains_the_time_to_the_nanosecond() {
        let id = BatchId { first: "2026-11-22T15:05:12.000000789Z".parse().unwrap(), random: 0x5f3a };
        assert_eq!(id.report_file(), "reports-20261122T150512.000000789Z-00005f3a.jsonl.zst");
        assert_eq!(id.journal(), "reports-20261122T150512.000000789Z-00005f3a.jsonl");
        assert_eq!(BatchId::of_journal(&id.journal()), Some(id));
        assert_eq!(BatchId::of_report_file(&id.report_file()), Some(id));
    }

    #[test]
    fn names_in_any_other_spelling_are_not_recognized() {
        for name in [
            "",
            "reports-.jsonl",
            "reports-20261122T150512.000000789Z-00005f3a.jsonl.zst",
            "reports-20261122T150512.000000789Z-00005f3a.json",
            "reports-20261122T150512.000000789Z-00005F3A.jsonl",
            "reports-20261122T150512.000000789Z-5f3a.jsonl",
            "reports-20261122T150512.000000789Z-+0005f3a.jsonl",
            "reports-20261122T150512.789Z-00005f3a.jsonl",
            "reports-20261122T150512.000000789-00005f3a.jsonl",
            "reports-20261322T150512.000000789Z-00005f3a.jsonl",
            "reports-20261122T250512.000000789Z-00005f3a.jsonl",
            ".reports-20261122T150512.000000789Z-00005f3a.jsonl",
            "reports-20261122T150512.000000789Z-00005f3a.jsonl ",
        ] {
            assert_eq!(BatchId::of_journal(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_sort_by_time_and_differ_at_the_same_time() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_009);
        let name = |nanos| BatchId::new(time + Duration::from_nanos(nanos)).to_string();
        assert!(name(0) < name(1) && name(1) < name(1_000_000_000));
        assert_ne!(name(0), name(0));
    }
}
