//! Report files: their names and their content.
//!
//! A persisted format: changing either is a breaking change.
//!
//! ```text
//! reports-20261122T150512.123456789Z-5f3a9c01.jsonl.zst
//!         └── time of the first ───┘ └ random id
//!             report, UTC
//! ```
//!
//! The content is one zstd frame with its content size and a checksum, and in it one report on each line.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use zstd::stream::raw::CParameter;

use super::random_id;

/// The least that is worth a compression thread of its own, in bytes, and zstd's own lower limit for a job
/// (`ZSTDMT_JOBSIZE_MIN`).
const MIN_JOB_BYTES: usize = 512 * 1024;

const REPORT_FILE: &str = ".jsonl.zst";
const JOURNAL: &str = ".jsonl";
const TIME: &str = "%Y%m%dT%H%M%S.%9fZ";

/// What the names of a report file and of the journal that it was have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stem {
    first: Timestamp,
    id: u32,
}

impl Stem {
    /// A new stem for reports of which the first came at `first`.
    ///
    /// # Panics
    /// When `first` lies outside of the years -9999 to 9999.
    #[must_use]
    pub fn new(first: SystemTime) -> Self {
        let first = Timestamp::try_from(first).expect("the clock shows a year of four digits");
        Self { first, id: random_id() }
    }

    /// The stem of a journal's name; `None` when no netwatch-server gives such a name.
    #[must_use]
    pub fn of_journal(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(JOURNAL)?)
    }

    /// The stem of a report file's name; `None` when no netwatch-server gives such a name.
    #[must_use]
    pub fn of_report_file(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(REPORT_FILE)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, id) = text.strip_prefix("reports-")?.rsplit_once('-')?;
        let first = DateTime::strptime(TIME, first).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
        let stem = Self { first, id: u32::from_str_radix(id, 16).ok()? };
        // One way to write each, so that none is taken for another.
        (stem.to_string() == text).then_some(stem)
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

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reports-{}-{:08x}", self.first.strftime(TIME), self.id)
    }
}

/// Reads a report file, checksum included.
///
/// # Errors
/// When it can't be read or is not sound. No report file is empty.
pub fn decode(file: File) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    decode_to(file, &mut lines)?;
    Ok(lines)
}

/// Reads a report file to its end and keeps nothing of it.
///
/// # Errors
/// As [`decode`].
pub fn check(file: File) -> io::Result<()> {
    decode_to(file, io::sink())
}

fn decode_to(file: File, mut to: impl Write) -> io::Result<()> {
    match io::copy(&mut zstd::Decoder::new(file)?, &mut to)? {
        // zstd takes no frame at all for a sound one.
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "there is nothing in it")),
        _ => Ok(()),
    }
}

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The zstd level, 1 to 22.
    pub level: i32,
    /// Threads that compress one file, at most; small files take fewer.
    pub threads: usize,
}

/// Compresses `parts`, one after the other, into one zstd frame.
///
/// # Errors
/// Those of `to`.
pub fn compress(parts: &[&[u8]], compression: Compression, to: impl Write) -> io::Result<()> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let mut encoder = zstd::Encoder::new(to, compression.level)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(bytes as u64))?;
    let threads = compression.threads.min(bytes / MIN_JOB_BYTES);
    if threads > 1 {
        encoder.multithread(u32::try_from(threads).unwrap_or(u32::MAX))?;
        // zstd's own job sizes are so large at higher levels that a batch would not split.
        let job_bytes = bytes.div_ceil(threads).max(MIN_JOB_BYTES);
        encoder.set_parameter(CParameter::JobSize(u32::try_from(job_bytes).unwrap_or(u32::MAX)))?;
    }
    for part in parts {
        encoder.write_all(part)?;
    }
    encoder.finish()?;
    Ok(())
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_name_tells_its_time_to_the_nanosecond() {
        let stem = Stem { first: "2026-11-22T15:05:12.000000789Z".parse().unwrap(), id: 0x5f3a };
        assert_eq!(stem.report_file(), "reports-20261122T150512.000000789Z-00005f3a.jsonl.zst");
        assert_eq!(stem.journal(), "reports-20261122T150512.000000789Z-00005f3a.jsonl");
        assert_eq!(Stem::of_journal(&stem.journal()), Some(stem));
        assert_eq!(Stem::of_report_file(&stem.report_file()), Some(stem));
    }

    #[test]
    fn a_name_that_looks_right_and_is_not_is_no_journals() {
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
            assert_eq!(Stem::of_journal(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_sort_by_time_and_differ_at_the_same_time() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_009);
        let name = |nanos| Stem::new(time + Duration::from_nanos(nanos)).to_string();
        assert!(name(0) < name(1) && name(1) < name(1_000_000_000));
        assert_ne!(name(0), name(0));
    }

    #[test]
    fn one_frame_with_content_size_and_checksum_whatever_the_threads() {
        let lines = b"{\"clientId\":\"a\",\"hosts\":[]}\n".repeat(100_000);
        let parts = [&lines[..1_000_000], &lines[1_000_000..]];
        for threads in [1, 2, 5] {
            let mut frame = Vec::new();
            compress(&parts, Compression { level: 1, threads }, &mut frame).unwrap();
            // RFC 8878, 3.1.1.1: the frame header descriptor follows the magic number.
            assert_eq!(frame[..4], [0x28, 0xb5, 0x2f, 0xfd]);
            assert_ne!(frame[4] & 0b100, 0, "content checksum flag");
            assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), Some(lines.len() as u64));
            assert_eq!(zstd::zstd_safe::find_frame_compressed_size(&frame).unwrap(), frame.len(), "one frame");
            assert_eq!(zstd::decode_all(&frame[..]).unwrap(), lines);
        }
    }

    #[test]
    fn errors_of_the_file_come_back() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = compress(&[b"{}\n"], Compression { level: 1, threads: 1 }, Full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
