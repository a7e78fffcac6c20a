//! Queries: reports that match a filter, values at paths, and statistics about them.
//!
//! ```text
//!   store: batches ──► scan (several threads) ──► filter ──► output (in order)
//!                                            └──► extract ──► stats (merged)
//! ```
//!
//! Depends on `store` only. The command line and HTTP are thin interfaces to it.

mod extract;
mod fast;
mod filter;
mod incomplete;
mod output;
mod path;
mod range;
mod reports;
mod scan;
pub mod stats;

pub use self::filter::{Evaluator, Filter, FilterError, Verdict};
pub use self::incomplete::Incomplete;
pub use self::output::{Format, Output};
pub use self::path::{InvalidPath, Path};
pub use self::range::{TimeRange, parse_time};
pub use self::reports::{Order, Progress, Query, ReportTime, lines_of, run_line};
