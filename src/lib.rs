//! netwatch-server: JSON reports in over HTTP, zstd-compressed JSONL files out.
//!
//! # The path of one report
//!
//! 1. [`server`] accepts a connection and hands it to [`http`], where hyper reads a request and `connection` watches
//!    how long that takes. `ingest` receives the body, within `MAX_BODY_BYTES`, and unpacks it if it is compressed.
//! 2. [`report`] checks the body: UTF-8, JSON, an object or several, none too deep. What comes out is one line for each.
//! 3. [`buffer`] appends the lines to the active batch: one reservation, copy, commit, in the segment of the calling
//!    thread, without a lock.
//! 4. The task waits for its ticket: one of those that wait writes all that is new to the batch's journal in [`store`],
//!    and syncs it if `ACK` says so. Then the clients are told 200.
//! 5. The batch is full, or its first report `FLUSH_INTERVAL` old: a free batch takes its place, and it is sealed.
//! 6. [`flush`] waits for the last writer of the sealed batch and hands its lines to [`store`], which compresses them
//!    into a temporary file, syncs it, links it to its final name and syncs the directory.
//! 7. The journal is dropped. Then the last reference to the batch is, and with that its memory is free for the next
//!    one.
//!
//! ```text
//!   http  ──►  buffer  ──►  store         imports run this way only
//!   server, flush and upkeep above, report and config beside
//! ```
//!
//! # What holds at all times
//!
//! - A report that was answered with 200 is in exactly one batch, and a batch becomes exactly one file. A batch whose
//!   file can't be written is kept and tried again, until the process ends.
//! - A request that was refused left nothing behind, but for one case: when a journal can't be written, the reports that
//!   waited for it are refused, and may be flushed all the same.
//! - A file has its final name only when it is complete and on disk, and is never changed or replaced after that.
//! - Memory is bounded: `BUFFER_BYTES` for batches, `INFLIGHT_BYTES` for bodies that come in pieces or compressed (and
//!   as much again for those of them that are folded or arrays), one decoder for each of `WORKERS`, one read buffer
//!   for each of `MAX_CONNECTIONS` (a window of about that size with HTTP/2), and a fixed number of idempotency keys.
//!   In a burst, a batch that waits for its flush and is wholly in its journal gives up its memory, within
//!   `SPILL_BYTES`, and [`upkeep`] recovers that journal as it does those of dead servers. Beyond that, requests wait
//!   a moment and are then refused.
//! - Lines of one thread keep their order within a batch, and batches theirs in the time that their names tell. A
//!   client's requests may be answered by different threads, so that is no promise to clients.
//!
//! # What a 200 promises
//!
//! That the report will be in a report file, even if ([`buffer::Ack`]):
//!
//! - `memory`: the server is stopped in good order;
//! - `journal`: the process dies, however it does;
//! - `disk`: the machine does.
//!
//! [`store::recover`] keeps that promise: it makes report files of the journals that a dead process has left. A report
//! that got no 200 may be in the files as well.

pub mod buffer;
pub mod config;
pub mod flush;
pub mod healthcheck;
pub mod http;
#[cfg(all(test, not(netwatch_loom)))]
mod promise;
pub mod report;
pub mod server;
pub mod store;
pub mod upkeep;
