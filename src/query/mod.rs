//! Queries: reports that match a filter, in the order of their batches.
//!
//! ```text
//!   store: batches ──► scan (several threads) ──► filter ──► output (in order)
//! ```
//!
//! Depends on `store` only. The command line and HTTP are thin interfaces to it.

mod extract;
mod filter;
mod output;
mod path;
mod range;
mod reports;
mod scan;
pub mod stats;

pub use self::filter::{Evaluator, Filter, FilterError, Verdict};
pub use self::output::{Format, Output};
pub use self::path::{InvalidPath, Path};
pub use self::range::{TimeRange, parse_time};
pub use self::reports::{Incomplete, Order, Progress, Query, ReportTime, lines_of, run_line};
