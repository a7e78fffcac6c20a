//! netwatch-server: JSON reports in over HTTP, zstd-compressed JSONL files out.
//!
//! # The path of one report
//!
//! 1. [`server`] accepts a connection and passes it to [`http`]. hyper reads a request, and `http::conn` limits the
//!    time for that. `http::admission` checks write keys and rates. `http::body` reads the body within `MAX_BODY_BYTES`
//!    and decodes it.
//! 2. [`report`] checks the body: UTF-8, JSON, one or more objects, none nested too deep. The result is one line per
//!    report.
//! 3. [`buffer`] appends the lines to the active batch without a lock: reserve, copy, commit, in the chunk of the
//!    calling thread.
//! 4. The request waits for its ticket. One of the waiting requests leads: it has the committer, a thread, write all
//!    new lines to the journal in [`store`], and sync the journal if `ACK=disk`. Then all of them are answered with 200.
//!    Request threads never wait for the disk.
//! 5. When the batch is full, or its first report is `FLUSH_INTERVAL` old, a free batch takes its place. The old batch
//!    is sealed.
//! 6. [`flush`] waits for the last writer of the sealed batch and passes its lines to [`store`], which compresses and
//!    syncs them as a staged file in `tmp/`.
//! 7. The journal is removed, and the staged file is renamed to its final name. The last reference to the batch is
//!    dropped, which returns its memory.
//!
//! [`maintenance`] runs beside this path: it creates journals ahead of time, spills batches, watches the disk, and
//! recovers the journals of dead servers. It also keeps the [catalog](store::Catalog) of report files up to date and
//! removes the oldest files, if the configuration limits them.
//!
//! # The way back
//!
//! [`store`] lists all batches, in whatever state they are, and reads journals and report files as blocks of lines. So a
//! report can be read as soon as it is acknowledged, and appears once while its batch moves. [`query`] filters reports and
//! computes statistics, on several threads and in a fixed amount of memory. The command line runs it in its own process;
//! [`http`] runs it in child processes, so that no query slows down or stops the server.
//!
//! ```text
//!   cli ──► server ──► http ──► buffer ──► store        imports point one way
//!           flush, maintenance ──► buffer, store
//!           query ──► store
//!           config, report, metrics: at the bottom, imported by all
//! ```
//!
//! # Invariants
//!
//! - A report that was answered with 200 is in exactly one batch. A batch becomes exactly one report file. If the file
//!   cannot be written, the batch is retried until the process ends.
//! - A refused request leaves nothing behind, with one exception: a request that is refused with `not-durable` may
//!   still be stored later.
//! - A report file gets its name when it is complete and synced. It is never changed or replaced afterwards. Retention may
//!   remove it, unless it is the newest.
//! - A batch is published once, even if its report file is removed at once and the process crashes at any point.
//! - The reports of one request are stored together and in order, or not at all: one request is one reservation. There
//!   is no order between requests, not even between requests of one client.
//! - Memory is limited: `BUFFER_BYTES` for batches; `INFLIGHT_BYTES` for bodies that arrive in pieces or compressed,
//!   and as much again for arrays and objects with line breaks; one decoder per worker; one read buffer per connection
//!   (with HTTP/2 a window of about that size); a number of HTTP/2 streams for the whole server; a fixed number of
//!   idempotency keys. The number of connections is chosen so that the sum fits the memory. In a burst, a sealed batch
//!   that is completely in its journal releases its memory, within `SPILL_BYTES`, and is published from its journal.
//!   Beyond that, requests wait for a moment and are then refused.
//!
//! # What a 200 guarantees
//!
//! The report will be in a report file, even if ([`config::Ack`]):
//!
//! - `memory`: the server is shut down in an orderly way;
//! - `journal`: the process dies in any way;
//! - `disk`: the machine loses power or its kernel crashes.
//!
//! No mode survives the loss of the disk. [`store::recover`] turns the journals of dead processes into report files.

pub mod buffer;
pub mod cli;
pub mod config;
#[cfg(all(test, not(netwatch_loom)))]
mod durability_tests;
pub mod flush;
pub mod http;
pub mod listen;
pub mod maintenance;
pub mod metrics;
pub mod query;
pub mod report;
pub mod server;
pub mod store;
