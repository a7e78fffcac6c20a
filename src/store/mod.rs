//! The data directory: journals, and report files that appear complete or not at all.
//!
//! ```text
//! DATA_DIR/
//!   reports-20261122T150512.123456789Z-5f3a9c01.jsonl.zst   report files: complete, immutable
//!   journal/reports-….jsonl                                 batches that are not staged yet
//!   tmp/.….tmp                                              files in the making
//!   tmp/reports-….jsonl.zst                                 staged: complete and synced, about to be published
//!   quarantine/                                             corrupt bytes, for a person to inspect
//! ```
//!
//! A batch is in exactly one of three durable states, and moves through them in order: journal, staged file, report
//! file. Each step removes the state before it. So a batch is published exactly once, even if a consumer or retention
//! removes the report file at once and the process crashes at any point.

mod batch_id;
mod catalog;
mod data_dir;
mod disk;
mod disk_error;
mod follow;
mod health;
mod journal;
mod journal_content;
mod listing;
mod orphan;
mod pending;
mod prune;
mod publish;
mod quarantine;
mod reader;
mod recover;
mod repeated_errors;
mod report_file;
mod root;
mod scan;
mod stored_batches;
mod temp_file;
mod verify;
mod watch;

pub use self::batch_id::BatchId;
pub use self::catalog::{Catalog, CatalogEntry, CatalogFiles, CatalogTotals};
pub use self::data_dir::Store;
#[cfg(all(test, not(netwatch_loom)))]
pub(crate) use self::disk::{Call, Disk};
pub use self::follow::Follow;
pub use self::health::Health;
pub use self::journal::{Journal, Journals};
pub use self::journal_content::JournalContent;
pub use self::pending::Pending;
pub use self::prune::{OnPruned, PruneMode, Pruned, PrunedFile, Retention};
pub use self::publish::Staged;
pub use self::reader::{Encoding, LineReader};
pub use self::recover::{Recovered, Unrecognized, recover};
pub use self::report_file::{Compression, compress, decode};
pub use self::scan::Pace;
pub use self::stored_batches::{OpenBatch, StoredBatch};
pub use self::verify::{Verdict, verify};
pub use self::watch::Watch;
